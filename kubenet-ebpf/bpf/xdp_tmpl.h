/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* See xdp.h. */

/*
 * Whether a checksum may be one that somebody is to complete later, as in frames
 * that come over a virtual device from a sender on this machine. XDP is not
 * told; but such a one holds the sum of the pseudo header, which one in 65,536
 * others does, too.
 */
static __always_inline bool F(may_be_partial)(const struct packet *pkt,
					      const struct F(tuple) *tuple,
					      __sum16 check)
{
	const __be32 *word = (const __be32 *)&tuple->saddr;
	__u32 sum = bpf_htons(pkt->l4_len) + bpf_htons(pkt->proto);

#pragma unroll
	for (__u32 i = 0; i < 2 * sizeof(tuple->saddr) / sizeof(*word); i++)
		sum = csum_add(sum, word[i]);
	return (__u16)~csum_fold(sum) == check;
}

/* All checksums are changed by difference. A UDP checksum of 0 (none) stays 0. */
static __always_inline bool F(xdp_rewrite)(struct xdp_md *ctx,
					   const struct packet *pkt,
					   const struct F(tuple) *from,
					   const struct F(tuple) *to, __u8 ttl)
{
	__u32 addresses = F(address_change)(from, to);
	__u32 sum = csum_add(addresses, F(port_change)(from, to));
	void *end = (void *)(long)ctx->data_end;
	void *l4 = F(xdp_store)(ctx, pkt, to, addresses, ttl);

	if (!l4)
		return false;
	if (is_tcp(pkt)) {
		struct tcphdr *tcp = l4;

		if ((void *)(tcp + 1) > end)
			return false;
		set_ports(&tcp->source, get_ports(&to->sport));
		tcp->check = csum_fold(csum_add(sum, (__u16)~tcp->check));
	} else {
		struct udphdr *udp = l4;

		if ((void *)(udp + 1) > end)
			return false;
		set_ports(&udp->source, get_ports(&to->sport));
		if (udp->check)
			udp->check =
				csum_fold(csum_add(sum, (__u16)~udp->check))
					?: 0xffff;
	}
	return true;
}

static __always_inline int F(xdp_transmit)(struct xdp_md *ctx,
					   const struct packet *pkt,
					   const struct F(tuple) *from,
					   const struct F(tuple) *to,
					   const __u8 *mac)
{
	/* The headers were there a moment ago. */
	if (!F(xdp_rewrite)(ctx, pkt, from, to, pkt->ttl - 1))
		return XDP_ABORTED;
	return transmit(ctx, mac);
}

/*
 * The first packet of a flow, which new_flow() has left uncounted: what it wrote
 * of the flow is where it made it.
 */
static __always_inline void F(xdp_count_first)(const struct packet *pkt)
{
	const struct F(new_entry) *entry = F(get_new_entry)();
	__u32 bytes = packet_bytes(pkt);

	if (!entry)
		return;
	charge_service(entry->service, entry->service_generation, 0, 1, bytes);
	F(charge_backend)(entry->backend, entry->generation, 0, 1, bytes);
}

/* Looks for the way. `pair` is NULL for a flow that has just begun. */
static __noinline int F(xdp_send_on)(struct xdp_md *ctx,
				     const struct packet *pkt,
				     const struct F(tuple) *from,
				     const struct F(tuple) *to,
				     struct F(pair) *pair)
{
	struct bpf_fib_lookup fib = {
		.l4_protocol = to->proto,
		.sport = to->sport,
		.dport = to->dport,
		.tot_len = pkt->l4_off - L3_OFF + pkt->l4_len,
		.ifindex = ctx->ingress_ifindex,
	};
	bool leaves;

	F(fib_fill)(&fib, pkt, to);
	leaves = pkt->ttl > 1 &&
		 bpf_fib_lookup(ctx, &fib, sizeof(fib), 0) ==
			 BPF_FIB_LKUP_RET_SUCCESS &&
		 fib.ifindex == ctx->ingress_ifindex;
	if (has_external_tc && (!leaves || hop_is_due(&fib)))
		return XDP_PASS;
	/* What comes in with this node's own address, the stack drops. */
	if (!leaves && bpf_map_lookup_elem(&F(node_addrs), &to->saddr))
		return xdp_drop(METRIC_DROP_ROUTE);
	if (pair)
		F(note_packet)(pkt, pair, now_ticks());
	else if (pkt->looked_at)
		F(xdp_count_first)(pkt);
	if (leaves) {
		if (pair) {
			struct F(route) *route;

			route = &F(half)(pair, pkt->place)->route;
			route->ifindex = 0;
			F(keep_mac)(route, fib.dmac);
			route->mtu = fib.mtu_result;
			route->ifindex = fib.ifindex | ROUTE_XDP;
		}
		return F(xdp_transmit)(ctx, pkt, from, to, fib.dmac);
	}
	return F(xdp_rewrite)(ctx, pkt, from, to, pkt->ttl) ? XDP_PASS
							    : XDP_ABORTED;
}

/* A packet of a known flow goes the way of the one before. */
static __always_inline bool F(xdp_knows_route)(const struct xdp_md *ctx,
					       const struct packet *pkt,
					       const struct F(conntrack) *ct,
					       __u32 now)
{
	return ct->last_seen == now &&
	       ct->route.ifindex == (ctx->ingress_ifindex | ROUTE_XDP) &&
	       pkt->l4_off - L3_OFF + pkt->l4_len <= ct->route.mtu &&
	       pkt->ttl > 1;
}

/* All but `ctx` begins with zeros. */
static __always_inline int F(xdp)(struct xdp_md *ctx, struct packet *pkt,
				  struct F(tuple) *tuple,
				  struct F(tuple) *target)
{
	const struct F(conntrack) *ct;
	struct F(pair) *pair;
	__u8 mac[ETH_ALEN] __attribute__((aligned(4)));
	__sum16 check = 0;
	int verdict;
	__u32 now = 0;

	pkt->ifindex = ctx->ingress_ifindex;
	/* TC may get it, and counts what it gets. */
	pkt->looked_at = has_external_tc;
	if (F(xdp_parse)(ctx, pkt, tuple, &check) != PARSED_FLOW ||
	    F(may_be_partial)(pkt, tuple, check))
		return XDP_PASS;
	pair = F(ct_look)(tuple, &pkt->place);
	verdict = F(find_flow)(pkt, tuple, pair, &now);
	/* The mark of direct server return is TC's to make. */
	if (have_dsr && (verdict == NEW_FLOW ||
			 (verdict == TRANSLATE && F(is_direct)(pkt, pair))))
		return XDP_PASS;
	if (verdict == NEW_FLOW) {
		pair = NULL;
		verdict = F(take_flow)(pkt, tuple, target);
	} else if (verdict == TRANSLATE) {
		ct = F(half)(pair, pkt->place);
		F(ct_target)(target, ct, tuple->proto);
		if (!F(ct_kept)(ct, tuple, target))
			return xdp_drop(METRIC_DROP_CONNTRACK_FULL);
		if (F(xdp_knows_route)(ctx, pkt, ct, now)) {
			F(use_mac)(mac, &ct->route);
			F(note_packet)(pkt, pair, now);
			return F(xdp_transmit)(ctx, pkt, tuple, target, mac);
		}
	}
	if (verdict != TRANSLATE) {
		if (verdict == REJECT && !has_external_tc)
			F(tell_drop)(tuple, METRIC_REJECTED);
		return xdp_verdict(F(final)(tuple, verdict));
	}
	return F(xdp_send_on)(ctx, pkt, tuple, target, pair);
}
