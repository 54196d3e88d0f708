/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Answers that the node gives itself: a TCP reset, an abort of SCTP, or an ICMP
 * error that quotes the packet. Each is made out of the packet and sent back where it came from,
 * in the name of the address that was dialled.
 *
 * A packet from a virtual device may carry a checksum that somebody is to
 * complete later, from the transport header to the end, and a program can
 * neither see nor change that. So the answer's transport header stands where
 * the packet's stood, and both cases come out right (see each function).
 */

static __always_inline int F(send_reset)(struct __sk_buff *skb,
					 const struct packet *pkt,
					 const struct F(tuple) *tuple)
{
	__be32 rest[2] = { bpf_htonl(sizeof(struct tcphdr)),
			   bpf_htonl(IPPROTO_TCP) };
	struct tcphdr tcp, rst = {
		.source = tuple->dport,
		.dest = tuple->sport,
		.doff = sizeof(rst) / 4,
		.rst = 1,
	};
	__u32 off = F(answer_l4_off)(pkt);
	__u32 sum, csum_off = off + offsetof(struct tcphdr, check);
	__sum16 check;

	if (bpf_skb_load_bytes(skb, pkt->l4_off, &tcp, sizeof(tcp)))
		return drop(METRIC_DROP_MALFORMED);
	if (tcp.ack) {
		rst.seq = tcp.ack_seq;
	} else {
		rst.ack = 1;
		rst.ack_seq = bpf_htonl(bpf_ntohl(tcp.seq) + tcp.syn + tcp.fin +
					pkt->l4_len - tcp.doff * 4);
	}
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&rst, sizeof(rst), 0);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&tuple->saddr,
			    2 * sizeof(tuple->saddr), sum);
	sum = bpf_csum_diff(NULL, 0, rest, sizeof(rest), sum);

	/*
	 * A checksum to be completed has only the addresses (the same, turned
	 * round) and the length: correct that. Then set any other to the sum
	 * that is wanted; the kernel leaves out the first kind.
	 */
	rst.check = tcp.check;
	if (bpf_skb_change_tail(skb, off + sizeof(rst), 0) ||
	    F(answer_l3_)(skb, pkt, tuple, IPPROTO_TCP, sizeof(rst)) ||
	    bpf_skb_store_bytes(skb, off, &rst, sizeof(rst), 0) ||
	    bpf_l4_csum_replace(skb, csum_off, bpf_htons(pkt->l4_len),
				bpf_htons(sizeof(rst)), BPF_F_PSEUDO_HDR | 2) ||
	    bpf_skb_load_bytes(skb, csum_off, &check, sizeof(check)) ||
	    bpf_l4_csum_replace(skb, csum_off, 0, csum_add(sum, check), 0))
		return drop(METRIC_DROP_MALFORMED);
	return send_back(skb);
}

/* Answers the INIT of an association that nobody serves. */
static __always_inline int F(send_abort)(struct __sk_buff *skb,
					 const struct packet *pkt,
					 const struct F(tuple) *tuple)
{
	struct {
		struct sctp_header sctp;
		struct sctp_chunk chunk;
	} abort = {
		.sctp = { .source = tuple->dport, .dest = tuple->sport },
		.chunk = { .type = SCTP_ABORT,
			   .length = bpf_htons(sizeof(abort.chunk)) },
	};
	__u32 off = F(answer_l4_off)(pkt);
	__u32 check;

	if (bpf_skb_load_bytes(
		    skb, pkt->l4_off + offsetof(struct sctp_header, check),
		    &check, sizeof(check)) ||
	    bpf_skb_load_bytes(skb, pkt->l4_off + SCTP_INIT_TAG_OFF,
			       &abort.sctp.tag, sizeof(abort.sctp.tag)))
		return drop(METRIC_DROP_MALFORMED);
	/* The device fills this one in, too. */
	if (check)
		abort.sctp.check = crc32c_words((__u32 *)&abort,
						sizeof(abort) / sizeof(__u32));
	if (bpf_skb_change_tail(skb, off + sizeof(abort), 0) ||
	    F(answer_l3_)(skb, pkt, tuple, IPPROTO_SCTP, sizeof(abort)) ||
	    bpf_skb_store_bytes(skb, off, &abort, sizeof(abort), 0))
		return drop(METRIC_DROP_MALFORMED);
	return send_back(skb);
}

static __always_inline int F(send_icmp)(struct __sk_buff *skb,
					const struct packet *pkt,
					const struct F(tuple) *tuple, __u8 type,
					__u8 code, __be32 info)
{
	struct {
		__u8 type;
		__u8 code;
		__sum16 check;
		__be32 info;
	} icmp = { .type = type, .code = code, .info = info };
	__u32 len = pkt->l4_off - L3_OFF + 8;
	__u32 off = F(answer_l4_off)(pkt);
	__u8 quote[F(QUOTE_MAX)] = {};
	__u32 sum;

	if (len < 8 || len > sizeof(quote) ||
	    bpf_skb_load_bytes(skb, L3_OFF, quote, len))
		return drop(METRIC_DROP_MALFORMED);
	sum = F(icmp_pseudo)(tuple, sizeof(icmp) + len);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&icmp, sizeof(icmp), sum);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)quote, sizeof(quote), sum);
	icmp.check = csum_fold(sum);

	if (bpf_skb_change_tail(skb, off + sizeof(icmp) + len, 0) ||
	    F(answer_l3_)(skb, pkt, tuple, F(ICMP_PROTO), sizeof(icmp) + len) ||
	    bpf_skb_store_bytes(skb, off, &icmp, sizeof(icmp), 0) ||
	    bpf_skb_store_bytes(skb, off + sizeof(icmp), quote, len, 0))
		return drop(METRIC_DROP_MALFORMED);
	return send_back(skb);
}

/*
 * Nobody serves this: the client must fail at once.
 *
 * A UDP checksum to be completed will be written over the last two bytes of
 * ICMP's unused word, as the complement of what the message sums up to. That is
 * the sum of the pseudo header: if it stands there already, nothing changes.
 */
static __noinline int F(reject)(struct __sk_buff *skb, const struct packet *pkt,
				const struct F(tuple) *tuple)
{
	__u32 len = pkt->l4_off - L3_OFF + 8;
	__u16 sum;

	count(METRIC_REJECTED);
	if (is_tcp(pkt))
		return F(send_reset)(skb, pkt, tuple);
	if (pkt->proto == IPPROTO_SCTP)
		return F(send_abort)(skb, pkt, tuple);
	sum = ~csum_fold(F(icmp_pseudo)(tuple, 8 + len));
	return F(send_icmp)(skb, pkt, tuple, F(ICMP_PORT_UNREACHABLE),
			    bpf_htonl(bpf_ntohs(sum)));
}

/*
 * A checksum to be completed spoils this one, where a device completes it: in
 * packets that another virtual machine on the same host sent, not in a pod's.
 */
static __noinline int F(too_big)(struct __sk_buff *skb,
				 const struct packet *pkt,
				 const struct F(tuple) *tuple)
{
	return F(send_icmp)(skb, pkt, tuple, F(ICMP_TOO_BIG),
			    bpf_htonl(pkt->mtu));
}

/*
 * A packet at the end of its hops, in this node's own name: to the sender, this
 * node is a router on the way. See too_big() for checksums.
 */
static __noinline int F(expired)(struct __sk_buff *skb,
				 const struct packet *pkt,
				 const struct F(tuple) *tuple)
{
	const struct config *cfg = get_config();
	struct F(tuple) from_here = *tuple;

	count(METRIC_DROP_ROUTE);
	/* Nobody is told about an error, nor more than once about a datagram. */
	if (pkt->later || pkt->proto == F(ICMP_PROTO))
		return TC_ACT_SHOT;
	if (cfg)
		F(snat)(&from_here.daddr, cfg);
	if (is_zero(from_here.daddr))
		copy(from_here.daddr, tuple->daddr);
	return F(send_icmp)(skb, pkt, &from_here, F(ICMP_EXPIRED), 0);
}
