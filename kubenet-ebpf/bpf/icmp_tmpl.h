/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ICMP errors about translated packets. Such an error quotes the packet as it
 * was on its way, and goes back to where that came from: it is translated as an
 * answer to it would be, and so is the quotation, the other way round, so that
 * the sender finds its own packet in it.
 *
 * As in netfilter, the error comes from the frontend where answers do, whichever
 * router sent it; else its source stays.
 */

/* What ICMP has before the quotation; in both families. */
#define ICMP_HEADER_LEN 8

/* The least that is quoted of a transport header. */
#define QUOTED_LEN 8

/* Where the quoted transport checksum is, or 0 if it is not quoted. */
static __always_inline __u32 F(quoted_check)(const struct packet *quote,
					     __u32 end)
{
	__u32 off = 0;

	if (quote->proto == IPPROTO_TCP)
		off = quote->l4_off + offsetof(struct tcphdr, check);
	if (quote->proto == IPPROTO_UDP)
		off = quote->l4_off + offsetof(struct udphdr, check);
	if (off + sizeof(__sum16) > end ||
	    off + sizeof(__sum16) > quote->l4_off + quote->l4_len)
		return 0;
	return off;
}

/* Its checksum depends on the length of the whole packet, not of what is quoted. */
static __always_inline long F(rewrite_quoted_sctp)(
	struct __sk_buff *skb, const struct packet *quote, __u32 end,
	const struct F(tuple) *from, const struct F(tuple) *to, __u32 *change)
{
	__u32 off = quote->l4_off + offsetof(struct sctp_header, check);
	__u32 check, old;
	long err;

	if (same_ports(&from->sport, &to->sport))
		return 0;
	/* Of such a packet no fragment was ever sent on. */
	if (quote->fragment)
		return -EINVAL;
	if (quote->l4_len < sizeof(struct sctp_header) ||
	    off + sizeof(check) > end)
		return 0;
	err = bpf_skb_load_bytes(skb, off, &old, sizeof(old));
	if (err)
		return err;
	check = sctp_check(old, &from->sport, &to->sport, quote->l4_len);
	*change = bpf_csum_diff(&old, sizeof(old), &check, sizeof(check),
				*change);
	return bpf_skb_store_bytes(skb, off, &check, sizeof(check), 0);
}

/*
 * Rewrites the quoted packet from `from` to `to`, and the error's checksum.
 */
static __noinline long F(rewrite_quote)(struct __sk_buff *skb,
					const struct packet *error,
					const struct packet *quote,
					const struct F(tuple) *from,
					const struct F(tuple) *to)
{
	__u32 addresses = F(address_change)(from, to);
	__u32 ports = F(port_change)(from, to);
	__u32 change = csum_add(addresses, ports);
	__u32 off = error->l4_off + ICMP_HEADER_LEN;
	__u32 end = error->l4_off + error->l4_len;
	__sum16 check, old;
	__u32 check_off;
	long err;

	check_off = F(quoted_check)(quote, end);
	if (check_off) {
		err = bpf_skb_load_bytes(skb, check_off, &old, sizeof(old));
		if (err)
			return err;
		check = csum_fold(csum_add(change, (__u16)~old));
		if (quote->proto == IPPROTO_UDP)
			check = old ? check ?: 0xffff : 0;
		change = csum_change(change, old, check);
		err = bpf_skb_store_bytes(skb, check_off, &check, sizeof(check),
					  0);
		if (err)
			return err;
	}
	if (quote->proto == IPPROTO_SCTP) {
		err = F(rewrite_quoted_sctp)(skb, quote, end, from, to,
					     &change);
		if (err)
			return err;
	}
	err = F(store_quote)(skb, off, quote, to, addresses, &change);
	if (err)
		return err;
	err = bpf_skb_store_bytes(skb, quote->l4_off, &to->sport, 4, 0);
	if (err)
		return err;
	/* The checksum is at the same place in both families. */
	return bpf_l4_csum_replace(
		skb, error->l4_off + offsetof(struct icmp6hdr, icmp6_cksum), 0,
		change, 0);
}

/*
 * Whether the error is about a packet of a flow that is known: fills rare->quote
 * and rare->tuple, which is what an answer to the quoted packet would have.
 */
static __noinline bool F(find_quoted)(struct __sk_buff *skb,
				      struct F(rare) *rare)
{
	const struct packet *error = &rare->pkt;
	__u32 off = error->l4_off + ICMP_HEADER_LEN;
	struct packet *quote = &rare->quote;

	if (F(walk)(skb, off, quote, &rare->target) != WALKED_TO_END ||
	    quote->later || !is_served(quote->proto) ||
	    quote->l4_off + QUOTED_LEN > error->l4_off + error->l4_len)
		return false;
	if (bpf_skb_load_bytes(skb, quote->l4_off, &rare->target.sport, 4))
		return false;
	F(reverse)(&rare->tuple, &rare->target);
	/* Who is told must be who sent the packet. */
	return same(rare->from.daddr, rare->target.saddr);
}

/*
 * Translates the quotation: TRANSLATE, with rare->tuple and rare->target filled
 * for the error's own header. On its way out of a device (`leaving`) an answer
 * goes on; what has to be taken back to a backend is SEND_BACK.
 */
static __noinline int F(translate_error)(struct __sk_buff *skb,
					 struct F(rare) *rare, bool leaving)
{
	const struct F(conntrack) *ct;
	const struct F(pair) *pair;
	struct F(tuple) *quoted = &rare->target;

	copy(rare->from, rare->tuple);
	if (!F(find_quoted)(skb, rare))
		return TC_ACT_UNSPEC;
	pair = F(ct_look)(&rare->tuple, &rare->quote.place);
	if (!pair)
		return TC_ACT_UNSPEC;
	if (rare->quote.proto == IPPROTO_UDP &&
	    F(ct_idle)(pair, now_ticks(), UDP_IDLE))
		return TC_ACT_UNSPEC;
	ct = F(half)((void *)pair, rare->quote.place);
	leaving = leaving && !(ct->flags & CT_REPLY);
	if (leaving && skb->ingress_ifindex)
		return TC_ACT_UNSPEC;

	/* Where answers come from another address, so does the error. */
	copy(rare->to, rare->from);
	if (!same(rare->tuple.saddr, ct->saddr))
		copy(rare->to.saddr, ct->saddr);
	copy(rare->to.daddr, ct->daddr);
	F(ct_peer_key)(&rare->tuple, ct, rare->quote.proto);
	if (F(rewrite_quote)(skb, &rare->pkt, &rare->quote, quoted,
			     &rare->tuple))
		return drop(METRIC_DROP_MALFORMED);
	count(METRIC_FORWARDED);
	copy(rare->tuple, rare->from);
	copy(rare->target, rare->to);
	return leaving ? SEND_BACK : TRANSLATE;
}
