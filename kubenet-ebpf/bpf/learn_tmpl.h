/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What marks of other nodes teach: see dsr.h. */

/*
 * Whether the flow is known both ways, with this target: then it is heard of
 * again. A connection that has ended, or begun to, is not what a SYN begins.
 */
static __always_inline bool F(dsr_knows)(const struct F(tuple) *frontend,
					 const struct F(tuple) *target)
{
	struct F(conntrack) *ct = F(ct_find)(frontend);
	const struct F(conntrack) *peer;
	struct F(tuple) known = {};

	if (!ct || ct->flags & CT_REPLY)
		return false;
	F(ct_target)(&known, ct, frontend->proto);
	if (!same(known, *target))
		return false;
	/* Without its entry an answer would not come from the frontend. */
	peer = F(ct_peer)(ct, frontend->proto);
	if (!peer || (ct->flags | peer->flags) & (CT_FIN | CT_RST))
		return false;
	if (ct->last_seen != now_ticks())
		ct->last_seen = now_ticks();
	return true;
}

/*
 * A packet that another node has sent on to a backend here: if it is marked, the
 * answers will go to the client in the frontend's name.
 */
static __noinline int F(dsr_learn)(struct __sk_buff *skb)
{
	struct F(rare) *rare = F(room)();
	const struct config *cfg = get_config();
	const struct service *service;
	struct F(new_entry) *entry;
	struct F(conntrack) *flow;
	struct F(tuple) frontend = {};
	__u32 zero = 0;

	if (!rare || !F(dsr_read)(skb, &frontend) || !cfg ||
	    cfg->flags & CONFIG_DRAINING ||
	    F(parse_rare)(skb, rare) != RARE_FLOW ||
	    (is_connection(&rare->pkt) && !is_syn(&rare->pkt)))
		return TC_ACT_UNSPEC;
	copy(frontend.saddr, rare->tuple.saddr);
	frontend.sport = rare->tuple.sport;
	frontend.proto = rare->tuple.proto;
	if (F(dsr_knows)(&frontend, &rare->tuple))
		return TC_ACT_UNSPEC;
	entry = bpf_map_lookup_elem(&F(new_entry), &zero);
	if (!entry)
		return TC_ACT_UNSPEC;
	flow = &entry->ct;
	__builtin_memset(flow, 0, sizeof(*flow));
	/* A node port is the other node's, and of no Service here. */
	service = F(service_of)(&frontend);
	if (service) {
		flow->service = service->id;
		flow->service_generation = service_generation(service->id);
	}
	flow->last_seen = now_ticks();
	flow->flags = CT_DIRECT;
	switch (F(ct_create)(&frontend, &rare->tuple, entry, 0, UDP_IDLE)) {
	case 0:
		count(METRIC_NEW_FLOW);
		F(tell_flow)(&frontend, &rare->tuple);
		return TC_ACT_UNSPEC;
	case -EEXIST:
		/* From this port the client talks to it by another frontend. */
		return F(final)(&frontend, drop(METRIC_DROP_SNAT_EXHAUSTED));
	default:
		return F(final)(&frontend, drop(METRIC_DROP_CONNTRACK_FULL));
	}
}
