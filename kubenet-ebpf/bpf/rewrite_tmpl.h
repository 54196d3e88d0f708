/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Makes of a packet what it becomes. */

static __always_inline __u32 F(address_change)(const struct F(tuple) *from,
					       const struct F(tuple) *to)
{
	_Static_assert(offsetof(struct F(tuple), daddr) == sizeof(from->saddr),
		       "daddr must follow saddr");
	return csum_words(&from->saddr, &to->saddr,
			  2 * sizeof(from->saddr) / sizeof(__u32));
}

static __always_inline __u32 F(port_change)(const struct F(tuple) *from,
					    const struct F(tuple) *to)
{
	_Static_assert(offsetof(struct F(tuple), dport) ==
			       offsetof(struct F(tuple), sport) + 2,
		       "dport must follow sport");
	return csum_words(&from->sport, &to->sport, 1);
}

/*
 * Rewrites addresses, ports and TTL in place. All checksums are changed by
 * difference, because on virtual devices they are often not yet complete:
 * then only the part for the addresses is in the packet, which is what
 * BPF_F_PSEUDO_HDR tells the kernel to look for. A UDP checksum of 0 (none)
 * stays 0.
 *
 * The bytes are written by helpers and not in place: with direct writes, the
 * kernel copies the head of every cloned packet before the program runs, also
 * of the many that are only passed on.
 */
static __always_inline long F(rewrite)(struct __sk_buff *skb,
				       const struct packet *pkt,
				       const struct F(tuple) *from,
				       const struct F(tuple) *to, __u8 ttl)
{
	__u64 flags = is_tcp(pkt) ? 0 : BPF_F_MARK_MANGLED_0;
	__u32 csum_off = l4_csum_off(pkt);
	__u32 addresses, ports;
	long err;

	addresses = F(address_change)(from, to);
	err = bpf_l4_csum_replace(skb, csum_off, 0, addresses,
				  flags | BPF_F_PSEUDO_HDR);
	if (err)
		return err;
	if (!same_ports(&from->sport, &to->sport)) {
		ports = F(port_change)(from, to);
		err = bpf_l4_csum_replace(skb, csum_off, 0, ports, flags);
		if (err)
			return err;
	}
	return F(store_headers)(skb, pkt, to, addresses, ttl, true);
}

static __always_inline long F(rewrite_sctp)(struct __sk_buff *skb,
					    const struct packet *pkt,
					    const struct F(tuple) *from,
					    const struct F(tuple) *to)
{
	__u32 off = pkt->l4_off + offsetof(struct sctp_header, check);
	__u32 check;
	long err;

	if (same_ports(&from->sport, &to->sport))
		return 0;
	err = bpf_skb_load_bytes(skb, off, &check, sizeof(check));
	if (err)
		return err;
	check = sctp_check(check, &from->sport, &to->sport, pkt->l4_len);
	err = bpf_skb_store_bytes(skb, off, &check, sizeof(check),
				  BPF_F_RECOMPUTE_CSUM);
	if (err)
		return err;
	return bpf_skb_store_bytes(skb, pkt->l4_off, &to->sport, 4,
				   BPF_F_RECOMPUTE_CSUM);
}

/* The same for packets with other things than TCP or UDP in them. */
static __always_inline long F(rewrite_rare)(struct __sk_buff *skb,
					    const struct packet *pkt,
					    const struct F(tuple) *from,
					    const struct F(tuple) *to, __u8 ttl)
{
	__u32 addresses;
	long err;

	if ((pkt->proto == IPPROTO_TCP || pkt->proto == IPPROTO_UDP) &&
	    !pkt->later)
		return F(rewrite)(skb, pkt, from, to, ttl);
	addresses = F(address_change)(from, to);
	if (pkt->proto == IPPROTO_SCTP && !pkt->later) {
		err = F(rewrite_sctp)(skb, pkt, from, to);
		if (err)
			return err;
	}
	if (pkt->proto == IPPROTO_ICMPV6 && !pkt->later) {
		err = bpf_l4_csum_replace(
			skb,
			pkt->l4_off + offsetof(struct icmp6hdr, icmp6_cksum), 0,
			addresses, BPF_F_PSEUDO_HDR);
		if (err)
			return err;
	}
	return F(store_headers)(skb, pkt, to, addresses, ttl, false);
}
