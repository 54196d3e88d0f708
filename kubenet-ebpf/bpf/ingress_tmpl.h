/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Packets that come in, from a pod or from outside. Whatever is not ours goes
 * on to the next program and the stack: also TCP that is established, but not
 * known here, because another datapath may own it.
 */

/* No flow is known: TRANSLATE if there is one now. */
static __always_inline int F(take_flow)(struct packet *pkt,
					const struct F(tuple) *tuple,
					struct F(tuple) *target)
{
	const struct service *service;
	const struct config *cfg;

	if (is_connection(pkt) && !is_syn(pkt))
		return TC_ACT_UNSPEC;
	service = F(service_of)(tuple);
	if (!service && !bpf_map_lookup_elem(&F(cluster_ips), &tuple->daddr))
		return TC_ACT_UNSPEC;
	cfg = get_config();
	if (!cfg || cfg->flags & CONFIG_DRAINING)
		return TC_ACT_UNSPEC;
	/* A cluster IP, and no port of it that is served. */
	if (!service)
		return REJECT;
	return F(new_flow)(pkt, tuple, service, target);
}

/*
 * A packet of a flow that may be known: TRANSLATE, with `target` filled, NEW_FLOW
 * for take_flow(), or what is to be done with the packet.
 */
static __always_inline int F(serve)(struct packet *pkt,
				    const struct F(tuple) *tuple,
				    struct F(tuple) *target,
				    struct F(route) **route)
{
	struct F(conntrack) *ct;
	__u32 now;

	ct = F(ct_find)(tuple);
	if (!ct)
		return NEW_FLOW;
	now = now_ticks();
	switch (F(ct_check)(pkt, tuple, ct, now)) {
	case FLOW_NOT_OURS:
		return TC_ACT_UNSPEC;
	case FLOW_NEW:
		return NEW_FLOW;
	case FLOW_KNOWN:
		break;
	}
	F(ct_target)(target, ct, tuple->proto);
	F(ct_touch)(pkt, tuple, ct, now);
	if (have_dsr && !(ct->flags & CT_REPLY))
		pkt->direct = ct->flags & CT_DIRECT &&
			      (is_syn(pkt) || !is_connection(pkt));
	*route = &ct->route;
	count(METRIC_FORWARDED);
	return TRANSLATE;
}

static __always_inline int F(ingress)(struct __sk_buff *skb)
{
	struct packet pkt = { .ifindex = skb->ifindex };
	struct F(tuple) tuple = {}, target = {};
	struct F(route) *route = NULL;
	int verdict;

	switch (F(parse)(skb, &pkt, &tuple)) {
	case PARSED_OTHER:
		return TC_ACT_UNSPEC;
	case PARSED_RARE:
		return RARE;
	case PARSED_FLOW:
		break;
	}
	verdict = F(serve)(&pkt, &tuple, &target, &route);
	if (verdict == NEW_FLOW)
		verdict = F(take_flow)(&pkt, &tuple, &target);
	if (verdict == TRANSLATE) {
		verdict = F(forward)(skb, &pkt, &tuple, &target, route);
		verdict = F(dsr_mark_sent)(skb, &pkt, &tuple, verdict);
	}
	if (verdict == TOO_BIG)
		verdict = F(too_big)(skb, &pkt, &tuple);
	if (verdict == REJECT)
		verdict = F(reject)(skb, &pkt, &tuple);
	return verdict;
}
