/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a process of this node sends to a Service by its own name must not leave:
 * its socket was let pass as the Service drops, or was connected before the
 * Service had endpoints or the hooks were there. A UDP socket of that kind is
 * told, so that it connects again. Apart, for the stack's sake.
 */
static __noinline int F(egress_begins)(const struct packet *pkt,
				       const struct F(tuple) *tuple)
{
	const struct service *service;
	const struct config *cfg;

	cfg = get_config();
	if (!cfg || cfg->flags & CONFIG_DRAINING)
		return TC_ACT_UNSPEC;
	service = F(service_of)(tuple);
	if (service && !service->internal_count &&
	    service->flags & SVC_INTERNAL_DROP)
		return drop(METRIC_DROP_NO_LOCAL_BACKEND);
	if (service && pkt->proto == IPPROTO_UDP &&
	    bpf_map_lookup_elem(&F(cluster_ips), &tuple->daddr))
		return REJECT;
	return TC_ACT_UNSPEC;
}

/* A packet that is no answer of a known flow. */
static __always_inline int F(egress_unknown)(const struct __sk_buff *skb,
					     const struct packet *pkt,
					     const struct F(tuple) *tuple)
{
	if (skb->ingress_ifindex || (is_connection(pkt) && !is_syn(pkt)))
		return TC_ACT_UNSPEC;
	return F(egress_begins)(pkt, tuple);
}

/* Tells a process of this node that its packet is refused. */
static __always_inline int F(reject_own)(struct __sk_buff *skb,
					 const struct packet *pkt,
					 const struct F(tuple) *tuple)
{
	int verdict;

	F(tell_drop)(tuple, METRIC_REJECTED);
	verdict = F(reject)(skb, pkt, tuple);
	if (verdict != TC_ACT_REDIRECT)
		return verdict;
	/* The answer is for this side of the device. */
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

/* As serve(), of answers. */
static __always_inline int F(serve_answer)(const struct __sk_buff *skb,
					   const struct packet *pkt,
					   struct F(pair) *pair,
					   const struct F(tuple) *tuple,
					   struct F(tuple) *target)
{
	__u32 now;

	if (!pair || !(pkt->place & CT_REPLY))
		return F(egress_unknown)(skb, pkt, tuple);
	now = now_ticks();
	if (F(ct_check)(pkt, tuple, pair, now) != FLOW_KNOWN)
		return TC_ACT_UNSPEC;
	F(ct_target)(target, &pair->half[1], tuple->proto);
	if (!F(ct_kept)(&pair->half[1], tuple, target))
		return drop(METRIC_DROP_CONNTRACK_FULL);
	F(note_packet)(pkt, pair, now);
	return TRANSLATE;
}

/*
 * Packets that the stack sends out: answers of a backend that is a process of
 * this node, or of a pod whose own interface has no program. They are on their
 * way, so that only the names change, and programs behind this one see them.
 */
static __always_inline int F(egress)(struct __sk_buff *skb)
{
	struct F(tuple) tuple = {}, target = {};
	struct F(pair) *pair = NULL;
	struct packet pkt = {};
	int verdict;

	switch (F(parse)(skb, &pkt, &tuple)) {
	case PARSED_OTHER:
		return TC_ACT_UNSPEC;
	case PARSED_RARE:
		return RARE;
	case PARSED_FLOW:
		break;
	}
	if (may_answer(tuple.sport))
		pair = F(ct_find)(&tuple, &pkt.place, false);
	verdict = F(serve_answer)(skb, &pkt, pair, &tuple, &target);
	if (verdict == REJECT)
		verdict = F(reject_own)(skb, &pkt, &tuple);
	else if (verdict == TRANSLATE)
		verdict = F(rewrite)(skb, &pkt, &tuple, &target, pkt.ttl)
				  ? drop(METRIC_DROP_MALFORMED)
				  : TC_ACT_UNSPEC;
	return F(final)(&tuple, verdict);
}
