/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* See rare.h. */

static __always_inline struct F(rare) *F(room)(void)
{
	__u32 zero = 0;
	struct F(rare) *rare = bpf_map_lookup_elem(&F(rare), &zero);

	if (rare)
		__builtin_memset(rare, 0, sizeof(*rare));
	return rare;
}

static __noinline enum rare F(parse_rare)(struct __sk_buff *skb,
					  struct F(rare) *rare)
{
	struct packet *pkt = &rare->pkt;
	__u8 type;

	if (F(walk)(skb, L3_OFF, pkt, &rare->tuple) != WALKED_TO_END ||
	    pkt->l4_off + pkt->l4_len > skb->len || pkt->later)
		return RARE_OTHER;
	if (pkt->proto == F(ICMP_PROTO)) {
		if (pkt->fragment || pkt->l4_len < ICMP_HEADER_LEN ||
		    bpf_skb_load_bytes(skb, pkt->l4_off, &type, 1))
			return RARE_OTHER;
		return F(is_icmp_error)(type) ? RARE_ERROR : RARE_OTHER;
	}
	if (!is_served(pkt->proto) ||
	    !parse_rare_l4(skb, pkt, &rare->tuple.sport, &rare->tuple.dport))
		return RARE_OTHER;
	return RARE_FLOW;
}

static __noinline int F(serve_rare)(struct F(rare) *rare)
{
	return F(serve)(&rare->pkt, &rare->tuple, &rare->target);
}

/* Not static, so that the verifier looks at it by itself. */
__noinline int F(ingress_rare)(struct __sk_buff *skb)
{
	struct F(rare) *rare = F(room)();
	int verdict;

	if (!rare)
		return TC_ACT_UNSPEC;
	switch (F(parse_rare)(skb, rare)) {
	case RARE_OTHER:
		return TC_ACT_UNSPEC;
	case RARE_ERROR:
		return F(translate_error)(skb, rare, false);
	case RARE_FLOW:
		break;
	}
	verdict = F(serve_rare)(rare);
	if (verdict == NEW_FLOW)
		verdict = F(take_flow)(&rare->pkt, &rare->tuple, &rare->target);
	if (verdict == TRANSLATE)
		verdict = F(forward_rare)(skb, &rare->pkt, &rare->tuple,
					  &rare->target);
	if (verdict == TOO_BIG)
		verdict = F(too_big)(skb, &rare->pkt, &rare->tuple);
	if (verdict == REJECT)
		verdict = F(reject)(skb, &rare->pkt, &rare->tuple);
	return verdict;
}

__noinline int F(egress_rare)(struct __sk_buff *skb)
{
	struct F(rare) *rare = F(room)();
	int verdict;

	if (!rare)
		return TC_ACT_UNSPEC;
	switch (F(parse_rare)(skb, rare)) {
	case RARE_OTHER:
		return TC_ACT_UNSPEC;
	case RARE_ERROR:
		return F(translate_error)(skb, rare, true);
	case RARE_FLOW:
		break;
	}
	verdict = F(serve_answer)(skb, &rare->pkt, &rare->tuple, &rare->target);
	if (verdict != TRANSLATE)
		return verdict;
	if (F(rewrite_rare)(skb, &rare->pkt, &rare->tuple, &rare->target,
			    rare->pkt.ttl))
		return drop(METRIC_DROP_MALFORMED);
	return TC_ACT_UNSPEC;
}
