/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The packets that most are: of an established TCP connection, in one piece, on
 * the way of the one before. One look at the headers, one look-up, and pointers
 * that are checked once. Everything else is left to xdp_tmpl.h, untouched.
 */

/* Whether the entry says all that there is to do, so that counting is the rest. */
static __always_inline bool F(needs_no_note)(const struct F(conntrack) *ct,
					     __u32 bytes, __u32 now)
{
	__u32 flags = ct->flags;

	if (flags & (CT_FIN | CT_RST) ||
	    (flags & (CT_REPLY | CT_SEEN_REPLY)) == CT_REPLY)
		return false;
	if (have_dsr &&
	    (flags & (CT_DIRECT | CT_REPLY | CT_SEEN_REPLY)) == CT_DIRECT)
		return false;
	return ct->last_seen == now && (__s32)(ct->bytes + bytes) >= 0;
}

#define ADDRESS_WORDS \
	(2 * sizeof(((struct F(tuple) *)0)->saddr) / sizeof(__u32))

/*
 * In line: a call costs a tenth. Little is kept over calls, as the functions that
 * look again need the stack.
 */
static __always_inline int F(xdp_known)(const struct xdp_md *ctx)
{
	void *data_end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	F(IP_HEADER) *ip = data + L3_OFF;
	struct tcphdr *tcp = (void *)(ip + 1);
	struct F(tuple) tuple;
	struct F(conntrack) *ct;
	struct F(pair) *pair;
	__u32 len, flags, now, place;
	__u64 change, sum;
	__u8 header;

	if ((void *)(tcp + 1) > data_end || !F(is_plain_tcp)(ip))
		return XDP_LOOK_AGAIN;
	len = F(length)(ip);
	header = ((const __u8 *)tcp)[TCP_FLAGS_OFF - 1] >> 4;
	flags = ((const __u8 *)tcp)[TCP_FLAGS_OFF];
	if (flags & (TCP_SYN | TCP_FIN | TCP_RST) || header < 5 ||
	    len < sizeof(*ip) + header * 4 || L3_OFF + len > data_end - data)
		return XDP_LOOK_AGAIN;
	copy(tuple.saddr, ip->saddr);
	copy(tuple.daddr, ip->daddr);
	set_ports(&tuple.sport, get_ports(&tcp->source));
	set_proto(&tuple.proto, IPPROTO_TCP);
	pair = F(ct_find)(&tuple, &place, true);
	if (!pair)
		return XDP_PASS;
	ct = F(half)(pair, place);
	now = now_ticks();
	if (ct->route.ifindex != (ctx->ingress_ifindex | ROUTE_XDP) ||
	    len > ct->route.mtu || !F(needs_no_note)(ct, len, now))
		return XDP_LOOK_AGAIN;

	/* See may_be_partial(). */
	sum = sum_words(&tuple.saddr, ADDRESS_WORDS);
	if (csum_fold64(sum + bpf_htons(len - sizeof(*ip)) +
			bpf_htons(IPPROTO_TCP)) == (__u16)~tcp->check)
		return XDP_LOOK_AGAIN;
	change = without_words(sum, ADDRESS_WORDS) +
		 sum_words(&ct->saddr, ADDRESS_WORDS);
	/* To be read again, not to be spilled. */
	asm volatile("" : : "r"(ct) : "memory");
	F(send_header)(ip, ct, change);
	change += without_words(get_ports(&tuple.sport), 1) +
		  get_ports(&ct->sport);
	tcp->check = csum_fold64(change + (__u16)~tcp->check);
	set_ports(&tcp->source, get_ports(&ct->sport));
	/* Too late to look again, and as good as never: see ct_stays(). */
	if (!F(ct_stays)(ct, &tuple, change))
		return xdp_drop(METRIC_DROP_CONNTRACK_FULL);
	ct->packets++;
	ct->bytes += len;
	copy_mac(data + ETH_ALEN, data);
	/* The rest of a MAC address stands right behind its beginning. */
	copy_mac(data, &ct->route.hop);
	count(METRIC_FORWARDED);
	return XDP_TX;
}

#undef ADDRESS_WORDS
