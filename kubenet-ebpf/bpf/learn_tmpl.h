/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What marks of other nodes teach: see dsr.h. */

/*
 * Whether the flow is known, with this target: then it is heard of
 * again. A connection that has ended, or begun to, is not what a SYN begins.
 */
static __always_inline bool F(dsr_knows)(const struct F(tuple) *frontend,
					 const struct F(tuple) *target)
{
	struct F(conntrack) *ct;
	struct F(pair) *pair;
	__u32 place;

	pair = F(ct_look)(frontend, &place);
	if (!pair || place & CT_REPLY)
		return false;
	ct = &pair->half[0];
	if (!same_words(&ct->saddr, target, sizeof(ct->key) / sizeof(__u32)) ||
	    (ct->flags | pair->half[1].flags) & (CT_FIN | CT_RST))
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
	struct F(tuple) frontend = {};

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
	entry = F(get_new_entry)();
	if (!entry)
		return TC_ACT_UNSPEC;
	/* A node port is the other node's, and of no Service here. */
	service = F(service_of)(&frontend);
	entry->service = service ? service->id : 0;
	entry->service_generation = service ? service_generation(service->id)
					    : 0;
	entry->backend = 0;
	entry->generation = 0;
	entry->last_seen = now_ticks();
	entry->flags = CT_DIRECT;
	entry->closed = 0;
	entry->udp_idle = UDP_IDLE;
	entry->key[0] = frontend;
	entry->target = rare->tuple;
	switch (F(ct_claim)(entry) ? F(ct_create)() : -ENOSPC) {
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
