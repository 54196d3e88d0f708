/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The way of a translated packet: another device, or this node's stack. */

/* A packet of the largest size that this one will be cut to. */
static __always_inline __u32 F(packet_size)(const struct __sk_buff *skb,
					    const struct packet *pkt)
{
	__u32 header_len = pkt->l4_off - L3_OFF;

	if (have_dsr && pkt->direct)
		header_len += F(DSR_LEN);
	if (skb->gso_size)
		return header_len + pkt->l4_header_len + skb->gso_size;
	return header_len + pkt->l4_len;
}

static __always_inline long F(rewrite_any)(struct __sk_buff *skb,
					   const struct packet *pkt,
					   const struct F(tuple) *from,
					   const struct F(tuple) *to, __u8 ttl,
					   bool rare)
{
	return rare ? F(rewrite_rare)(skb, pkt, from, to, ttl)
		    : F(rewrite)(skb, pkt, from, to, ttl);
}

/* Keeps a route for the next packets; one by way of the other family it does not. */
static __always_inline void F(keep_route)(struct F(route) *route,
					  const struct bpf_fib_lookup *fib)
{
	if (fib->family != F(IP_FAMILY))
		return;
	route->ifindex = 0;
	F(keep_hop)(route, fib);
	route->mtu = fib->mtu_result;
	route->ifindex = fib->ifindex;
}

/* The same of one into a pod. */
static __always_inline void F(keep_peer)(struct F(route) *route,
					 const struct bpf_fib_lookup *fib)
{
	route->ifindex = 0;
	F(keep_mac)(route, fib->dmac);
	route->mtu = fib->mtu_result;
	route->ifindex = fib->ifindex | ROUTE_PEER;
}

/*
 * Rewrites the packet from `from` to `to` and sends it on its way. The route
 * is looked up first, so that a packet that is TOO_BIG can be answered as its
 * sender knows it.
 */
static __always_inline int F(send_on)(struct __sk_buff *skb, struct packet *pkt,
				      const struct F(tuple) *from,
				      const struct F(tuple) *to,
				      struct F(route) *kept, bool rare)
{
	struct bpf_fib_lookup fib = {
		.l4_protocol = to->proto,
		.sport = to->sport,
		.dport = to->dport,
		.tot_len = F(packet_size)(skb, pkt),
		.ifindex = skb->ifindex,
	};
	struct bpf_redir_neigh hop = {};
	long found;

	/* All fragments of a datagram go one way. */
	if (rare && (pkt->fragment || pkt->later))
		fib.sport = fib.dport = 0;
	F(fib_fill)(&fib, pkt, to);
	found = bpf_fib_lookup(skb, &fib, sizeof(fib), fib_flags);
	/*
	 * The stack cuts what is not this node's own. What is can leave whole
	 * if the device takes it: the next router may cut it.
	 */
	if (found == BPF_FIB_LKUP_RET_FRAG_NEEDED && pkt->may_fragment &&
	    bpf_map_lookup_elem(&F(node_addrs), &to->saddr)) {
		fib.tot_len = 0;
		fib.ifindex = skb->ifindex;
		/* Not for packets that may not be cut. */
		kept = NULL;
		found = bpf_fib_lookup(skb, &fib, sizeof(fib), fib_flags);
	}
	switch (found) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		if (pkt->ttl <= 1)
			return EXPIRED;
		if (F(rewrite_any)(skb, pkt, from, to, pkt->ttl - 1, rare))
			return drop(METRIC_DROP_MALFORMED);
		/* Without a neighbour, the stack is to ask for it. */
		if (have_peer && !rare && found == BPF_FIB_LKUP_RET_SUCCESS &&
		    leads_into_pod(fib.ifindex)) {
			if (kept)
				F(keep_peer)(kept, &fib);
			return send_to_pod(skb, fib.ifindex, fib.dmac);
		}
		if (kept)
			F(keep_route)(kept, &fib);
		/* The gateway may be of the other family. */
		hop.nh_family = fib.family;
		copy(hop.ipv6_nh, fib.ipv6_dst);
		return bpf_redirect_neigh(fib.ifindex, &hop, sizeof(hop), 0);
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		if (!pkt->may_fragment) {
			pkt->mtu = fib.mtu_result;
			/* Kernels before 5.12 do not tell it. */
			if (pkt->mtu >= F(packet_size)(skb, pkt))
				pkt->mtu = 1280;
			if (have_dsr && pkt->direct)
				pkt->mtu -= F(DSR_LEN);
			return TOO_BIG;
		}
		break;
	case BPF_FIB_LKUP_RET_NOT_FWDED:
	case BPF_FIB_LKUP_RET_FWD_DISABLED:
	case BPF_FIB_LKUP_RET_UNSUPP_LWT:
		break;
	default:
		return drop(METRIC_DROP_ROUTE);
	}
	/* What comes in with this node's own address, the stack drops. */
	if (bpf_map_lookup_elem(&F(node_addrs), &to->saddr))
		return drop(METRIC_DROP_ROUTE);
	if (F(rewrite_any)(skb, pkt, from, to, pkt->ttl, rare))
		return drop(METRIC_DROP_MALFORMED);
	return TC_ACT_OK;
}

/*
 * The packets of a flow take the same route, so that most need not look for it:
 * that is a third of what such a packet costs. A route that changes is noticed
 * when the entry's tick is over, after a second.
 */
static __noinline int F(forward)(struct __sk_buff *skb, struct packet *pkt,
				 const struct F(tuple) *from,
				 const struct F(tuple) *to,
				 struct F(route) *route)
{
	struct bpf_redir_neigh hop = {};
	__u32 ifindex = route ? route->ifindex : 0;
	__u8 mac[ETH_ALEN] __attribute__((aligned(4)));
	/* Of other programs, from before an upgrade or behind another device. */
	__u32 others = ROUTE_XDP | ROUTE_PEER;

	if (have_peer)
		others = ROUTE_XDP;
	if (!ifindex || ifindex & others ||
	    F(packet_size)(skb, pkt) > route->mtu || pkt->ttl <= 1)
		return F(send_on)(skb, pkt, from, to, route, false);
	if (have_peer && ifindex & ROUTE_PEER) {
		F(use_mac)(mac, route);
		if (F(rewrite)(skb, pkt, from, to, pkt->ttl - 1))
			return drop(METRIC_DROP_MALFORMED);
		return send_to_pod(skb, ifindex & ~ROUTE_PEER, mac);
	}
	F(use_hop)(&hop, route);
	if (F(rewrite)(skb, pkt, from, to, pkt->ttl - 1))
		return drop(METRIC_DROP_MALFORMED);
	return bpf_redirect_neigh(ifindex, &hop, sizeof(hop), 0);
}

static __noinline int F(forward_rare)(struct __sk_buff *skb, struct packet *pkt,
				      const struct F(tuple) *from,
				      const struct F(tuple) *to)
{
	return F(send_on)(skb, pkt, from, to, NULL, true);
}
