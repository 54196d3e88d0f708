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

	switch (F(walk)(skb, L3_OFF, pkt, &rare->tuple)) {
	case WALKED_OUT:
		return RARE_OTHER;
	case WALKED_TOO_FAR:
		return RARE_BROKEN;
	}
	if (pkt->l4_off + pkt->l4_len > skb->len)
		return RARE_OTHER;
	if (pkt->later)
		return RARE_LATER;
	if (pkt->proto == F(ICMP_PROTO)) {
		if (pkt->fragment || pkt->l4_len < ICMP_HEADER_LEN ||
		    bpf_skb_load_bytes(skb, pkt->l4_off, &type, 1))
			return RARE_OTHER;
		return F(is_icmp_error)(type) ? RARE_ERROR : RARE_OTHER;
	}
	if (!is_served(pkt->proto))
		return RARE_OTHER;
	if (parse_rare_l4(skb, pkt, &rare->tuple.sport, &rare->tuple.dport))
		return RARE_FLOW;
	/* The other fragments will complete it, where no ports are needed. */
	return pkt->fragment ? RARE_BROKEN : RARE_OTHER;
}

/*
 * The checksum of an SCTP packet cannot be changed without its length, which a
 * fragment does not tell. All others have what their verdict says.
 */
static __always_inline int F(check_fragment)(const struct F(rare) *rare,
					     int verdict)
{
	if (verdict == TRANSLATE && rare->pkt.fragment &&
	    rare->pkt.proto == IPPROTO_SCTP &&
	    !same_ports(&rare->tuple.sport, &rare->target.sport))
		return drop(METRIC_DROP_FRAGMENT);
	return verdict;
}

static __noinline int F(serve_rare)(struct F(rare) *rare)
{
	struct F(pair) *pair = F(ct_look)(&rare->tuple, &rare->pkt.place);
	struct F(route) *unused;

	return F(serve)(&rare->pkt, pair, &rare->tuple, &rare->target, &unused);
}

/* Not static, so that the verifier looks at it by itself. */
__noinline int F(ingress_rare)(struct __sk_buff *skb)
{
	struct F(rare) *rare = F(room)();
	int verdict = TC_ACT_UNSPEC;

	if (!rare)
		return TC_ACT_UNSPEC;
	rare->pkt.ifindex = skb->ifindex;
	switch (F(parse_rare)(skb, rare)) {
	case RARE_OTHER:
		return TC_ACT_UNSPEC;
	case RARE_ERROR:
		verdict = F(translate_error)(skb, rare, false);
		break;
	case RARE_BROKEN:
		if (F(must_not_pass)(rare))
			return F(final)(&rare->tuple,
					drop(METRIC_DROP_MALFORMED));
		return TC_ACT_UNSPEC;
	case RARE_LATER:
		verdict = F(follow_fragment)(rare);
		break;
	case RARE_FLOW:
		verdict = F(serve_rare)(rare);
		if (verdict == NEW_FLOW)
			verdict = F(take_flow)(&rare->pkt, &rare->tuple,
					       &rare->target);
		verdict = F(check_fragment)(rare, verdict);
		if (rare->pkt.fragment)
			F(remember_fragment)(rare, verdict);
	}
	if (verdict == TRANSLATE) {
		verdict = F(forward_rare)(skb, &rare->pkt, &rare->tuple,
					  &rare->target);
		verdict = F(dsr_mark_sent)(skb, &rare->pkt, &rare->tuple,
					   verdict);
	}
	/* Nobody is told about an error that does not arrive. */
	if (verdict == TOO_BIG && rare->pkt.proto == F(ICMP_PROTO))
		verdict = drop(METRIC_DROP_ROUTE);
	if (verdict == TOO_BIG)
		verdict = F(too_big)(skb, &rare->pkt, &rare->tuple);
	if (verdict == EXPIRED)
		verdict = F(expired)(skb, &rare->pkt, &rare->tuple);
	if (verdict == REJECT) {
		F(tell_drop)(&rare->tuple, METRIC_REJECTED);
		verdict = F(reject)(skb, &rare->pkt, &rare->tuple);
	}
	return F(final)(&rare->tuple, verdict);
}

/* Two steps of egress_rare(), whose stack is to be left to others. */
static __noinline int F(serve_rare_answer)(const struct __sk_buff *skb,
					   struct F(rare) *rare)
{
	struct F(pair) *pair = F(ct_look)(&rare->tuple, &rare->pkt.place);

	return F(serve_answer)(skb, &rare->pkt, pair, &rare->tuple,
			       &rare->target);
}

static __noinline long F(rewrite_rare_answer)(struct __sk_buff *skb,
					      const struct F(rare) *rare)
{
	return F(rewrite_rare)(skb, &rare->pkt, &rare->tuple, &rare->target,
			       rare->pkt.ttl);
}

__noinline int F(egress_rare)(struct __sk_buff *skb)
{
	struct F(rare) *rare = F(room)();
	int verdict = TC_ACT_UNSPEC;

	if (!rare)
		return TC_ACT_UNSPEC;
	switch (F(parse_rare)(skb, rare)) {
	case RARE_OTHER:
	case RARE_BROKEN:
		return TC_ACT_UNSPEC;
	case RARE_ERROR:
		verdict = F(translate_error)(skb, rare, true);
		break;
	case RARE_LATER:
		verdict = F(follow_fragment)(rare);
		break;
	case RARE_FLOW:
		verdict = F(serve_rare_answer)(skb, rare);
		verdict = F(check_fragment)(rare, verdict);
		if (rare->pkt.fragment)
			F(remember_fragment)(rare, verdict);
	}
	if (verdict == SEND_BACK) {
		verdict = F(forward_rare)(skb, &rare->pkt, &rare->tuple,
					  &rare->target);
		if (verdict == TOO_BIG || verdict == EXPIRED)
			verdict = drop(METRIC_DROP_ROUTE);
	} else if (verdict == REJECT) {
		verdict = F(reject_own)(skb, &rare->pkt, &rare->tuple);
	} else if (verdict == TRANSLATE) {
		verdict = F(rewrite_rare_answer)(skb, rare)
				  ? drop(METRIC_DROP_MALFORMED)
				  : TC_ACT_UNSPEC;
	}
	return F(final)(&rare->tuple, verdict);
}
