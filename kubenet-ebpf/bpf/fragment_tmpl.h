/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Fragments: the first one has the ports, and is served as a whole packet would
 * be. What came of it is kept for the others. One that comes before the first
 * cannot be told from one of another flow; to an address with Services it is
 * dropped, as it would leave the node by whatever route there is. At the node's
 * own addresses the stack keeps it, and waits for a first one in vain.
 */

/* How long a receiver waits for the rest of a datagram. */
#define FRAGMENT_LIFE 30

static __always_inline void F(fragment_key)(struct F(fragment_key) *key,
					    const struct F(rare) *rare)
{
	copy(key->saddr, rare->tuple.saddr);
	copy(key->daddr, rare->tuple.daddr);
	key->id = rare->pkt.fragment_id;
	key->proto = rare->pkt.fragment_proto;
}

/* Whether a packet to this address, other than the node's, may be a Service's. */
static __always_inline bool F(may_be_service)(const struct F(rare) *rare)
{
	if (bpf_map_lookup_elem(&F(cluster_ips), &rare->tuple.daddr))
		return true;
	return bpf_map_lookup_elem(&F(service_addrs), &rare->tuple.daddr) &&
	       !bpf_map_lookup_elem(&F(node_addrs), &rare->tuple.daddr);
}

/* The same, and whether this instance is the one that serves it now. */
static __noinline bool F(must_not_pass)(const struct F(rare) *rare)
{
	const struct config *cfg = get_config();

	return cfg && !(cfg->flags & CONFIG_DRAINING) &&
	       F(may_be_service)(rare);
}

/* What was decided about the first fragment. */
static __noinline void F(remember_fragment)(const struct F(rare) *rare,
					    int verdict)
{
	struct F(fragment_target) target = { .last_seen = now_ticks() };
	struct F(fragment_key) key = {};

	F(fragment_key)(&key, rare);
	copy(target.saddr, rare->target.saddr);
	copy(target.daddr, rare->target.daddr);
	if (verdict == TC_ACT_UNSPEC) {
		/* Nothing is needed where those that are unknown pass, too. */
		if (!F(may_be_service)(rare)) {
			bpf_map_delete_elem(&F(fragments), &key);
			return;
		}
		target.flags = FRAGMENT_PASS;
	} else if (verdict != TRANSLATE) {
		target.flags = FRAGMENT_DROP;
	}
	bpf_map_update_elem(&F(fragments), &key, &target, BPF_ANY);
}

/* TRANSLATE, with the target filled, or what is to be done with the fragment. */
static __noinline int F(follow_fragment)(struct F(rare) *rare)
{
	const struct F(fragment_target) *target;
	struct F(fragment_key) key = {};

	F(fragment_key)(&key, rare);
	target = bpf_map_lookup_elem(&F(fragments), &key);
	if (!target || older(target->last_seen, now_ticks(), FRAGMENT_LIFE)) {
		if (!F(must_not_pass)(rare))
			return TC_ACT_UNSPEC;
		return drop(METRIC_DROP_FRAGMENT_EARLY);
	}
	if (target->flags & FRAGMENT_PASS)
		return TC_ACT_UNSPEC;
	if (target->flags & FRAGMENT_DROP)
		return drop(METRIC_DROP_FRAGMENT);
	copy(rare->target.saddr, target->saddr);
	copy(rare->target.daddr, target->daddr);
	rare->target.proto = rare->tuple.proto;
	count(METRIC_FORWARDED);
	return TRANSLATE;
}
