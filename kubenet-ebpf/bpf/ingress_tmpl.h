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
	int verdict;

	if (is_connection(pkt) && !is_syn(pkt))
		return TC_ACT_UNSPEC;
	service = F(service_of)(tuple);
	if (!service && !bpf_map_lookup_elem(&F(cluster_ips), &tuple->daddr))
		return TC_ACT_UNSPEC;
	cfg = get_config();
	if (!cfg || cfg->flags & CONFIG_DRAINING)
		return TC_ACT_UNSPEC;
	if (F(is_spoofed)(&tuple->saddr))
		return drop(METRIC_DROP_SPOOFED);
	/* A cluster IP, and no port of it that is served. */
	if (!service)
		return REJECT;
	verdict = F(new_flow)(pkt, tuple, service, target);
	if (verdict == TRANSLATE)
		F(tell_flow)(tuple, target);
	return verdict;
}

/*
 * TRANSLATE if the flow is known (not NULL) and goes on; NEW_FLOW for take_flow(),
 * or what is to be done with the packet. Notes nothing yet.
 */
static __always_inline int F(find_flow)(const struct packet *pkt,
					const struct F(tuple) *tuple,
					struct F(pair) *pair, __u32 *now)
{
	if (!pair)
		return NEW_FLOW;
	*now = now_ticks();
	switch (F(ct_check)(pkt, tuple, pair, *now)) {
	case FLOW_NOT_OURS:
		return TC_ACT_UNSPEC;
	case FLOW_NEW:
		return NEW_FLOW;
	case FLOW_KNOWN:
		break;
	}
	return TRANSLATE;
}

/* A packet of a known flow is on its way. */
static __always_inline void F(note_packet)(const struct packet *pkt,
					   struct F(pair) *pair, __u32 now)
{
	F(ct_touch)(pkt, pair, now);
	count(METRIC_FORWARDED);
}

/* Whether a packet of a known flow is to be marked for direct server return. */
static __always_inline bool F(is_direct)(const struct packet *pkt,
					 const struct F(pair) *pair)
{
	return have_dsr && !(pkt->place & CT_REPLY) &&
	       pair->half[0].flags & CT_DIRECT &&
	       (is_syn(pkt) || !is_connection(pkt));
}

/* The same at once: TRANSLATE comes with `target` filled. */
static __always_inline int F(serve)(struct packet *pkt, struct F(pair) *pair,
				    const struct F(tuple) *tuple,
				    struct F(tuple) *target,
				    struct F(route) **route)
{
	struct F(conntrack) *ct;
	__u32 now = 0;
	int verdict;

	verdict = F(find_flow)(pkt, tuple, pair, &now);
	if (verdict != TRANSLATE)
		return verdict;
	ct = F(half)(pair, pkt->place);
	F(ct_target)(target, ct, tuple->proto);
	if (!F(ct_kept)(ct, tuple, target))
		return drop(METRIC_DROP_CONNTRACK_FULL);
	F(note_packet)(pkt, pair, now);
	pkt->direct = F(is_direct)(pkt, pair);
	*route = &ct->route;
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
	verdict = F(serve)(&pkt, F(ct_find)(&tuple, &pkt.place, false), &tuple,
			   &target, &route);
	if (verdict == NEW_FLOW)
		verdict = F(take_flow)(&pkt, &tuple, &target);
	if (verdict == TRANSLATE) {
		verdict = F(forward)(skb, &pkt, &tuple, &target, route);
		verdict = F(dsr_mark_sent)(skb, &pkt, &tuple, verdict);
	}
	if (verdict == TOO_BIG)
		verdict = F(too_big)(skb, &pkt, &tuple);
	if (verdict == EXPIRED)
		verdict = F(expired)(skb, &pkt, &tuple);
	if (verdict == REJECT) {
		F(tell_drop)(&tuple, METRIC_REJECTED);
		verdict = F(reject)(skb, &pkt, &tuple);
	}
	return F(final)(&tuple, verdict);
}
