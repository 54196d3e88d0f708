/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the driver hands over before the stack has made a packet of it. Served
 * is what leaves again by the device that it came in by. All else is passed
 * untouched, and the TC program behind this one serves it, which sends it to
 * pods past netfilter. Without a TC program, what stays on this node is
 * translated and passed to the stack.
 */
#ifndef KUBENET_XDP_H
#define KUBENET_XDP_H

#include "conntrack.h"
#include "ipv4.h"
#include "ipv6.h"
#include "packet.h"

/*
 * So many ticks after its last one, the stack gets a packet of a next hop. XDP
 * only reads the neighbours' table: it takes a packet of the stack's to ask
 * whether a neighbour is still there.
 */
#define HOP_DUE 10

/* Not a verdict of XDP: somebody else is to look at the packet. */
#define XDP_LOOK_AGAIN 64

/* `len` bytes at `off`, or NULL if they are not all in the linear part. */
static __always_inline void *frame_at(const struct xdp_md *ctx, __u32 off,
				      __u32 len)
{
	void *at = (void *)(long)ctx->data + off;

	return at + len > (void *)(long)ctx->data_end ? NULL : at;
}

/* Bytes of the frame from `off` on, where the header says there are `len`. */
static __always_inline __u32 frame_space(struct xdp_md *ctx, __u32 off,
					 __u32 len)
{
	__u32 linear = ctx->data_end - ctx->data;

	/* The rest may be elsewhere. */
	if (off + len > linear)
		linear = bpf_xdp_get_buff_len(ctx);
	return linear - off;
}

/* MAC addresses are in order for 16 bits, which the compiler does not know. */
typedef __u16 __attribute__((may_alias)) mac_word;

static __always_inline bool same_mac(const void *a, const void *b)
{
	const mac_word *x = a, *y = b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]));
}

static __always_inline void copy_mac(void *to, const void *from)
{
	mac_word *x = to;
	const mac_word *y = from;

	x[0] = y[0];
	x[1] = y[1];
	x[2] = y[2];
}

/*
 * Whether the frame is for the device itself, which TC knows by then. One with a
 * VLAN tag is not: its type is the tag's.
 */
static __always_inline bool is_for_device(const struct xdp_md *ctx,
					  const struct ethhdr *eth)
{
	const struct xdp_devices *devices;
	const struct xdp_device *device;
	__u32 zero = 0;

	devices = bpf_map_lookup_elem(&xdp_devices, &zero);
	if (!devices)
		return false;
	for (int i = 0; i < XDP_DEVICES; i++) {
		device = &devices->at[i];
		if (!device->ifindex)
			return false;
		if (device->ifindex == ctx->ingress_ifindex)
			return same_mac(eth->h_dest, device->mac);
	}
	return false;
}

/* Reads headers that have neither options nor extensions. */
static __always_inline enum parsed xdp_parse_l4(struct xdp_md *ctx,
						struct packet *pkt, __u32 off,
						__be16 *ports, __sum16 *check)
{
	if (is_tcp(pkt)) {
		struct tcphdr *tcp = frame_at(ctx, off, sizeof(*tcp));

		if (!tcp || !read_tcp(tcp, pkt, ports))
			return PARSED_RARE;
		*check = tcp->check;
	} else {
		struct udphdr *udp = frame_at(ctx, off, sizeof(*udp));

		if (!udp || !read_udp(udp, pkt, ports))
			return PARSED_RARE;
		*check = udp->check;
	}
	return PARSED_FLOW;
}

static __always_inline enum parsed xdp_parse4(struct xdp_md *ctx,
					      struct packet *pkt,
					      struct tuple4 *tuple,
					      __sum16 *check)
{
	struct iphdr *ip = frame_at(ctx, L3_OFF, sizeof(*ip));
	enum parsed parsed;
	__u32 space;

	if (!ip || ip->ihl != sizeof(*ip) / 4)
		return PARSED_RARE;
	space = frame_space(ctx, L3_OFF, bpf_ntohs(ip->tot_len));
	parsed = read_header4(ip, space, false, pkt, tuple);
	if (parsed != PARSED_FLOW)
		return parsed;
	return xdp_parse_l4(ctx, pkt, L3_OFF + sizeof(*ip), &tuple->sport,
			    check);
}

static __always_inline enum parsed xdp_parse6(struct xdp_md *ctx,
					      struct packet *pkt,
					      struct tuple6 *tuple,
					      __sum16 *check)
{
	struct ipv6hdr *ip = frame_at(ctx, L3_OFF, sizeof(*ip));
	enum parsed parsed;
	__u32 space;

	if (!ip)
		return PARSED_RARE;
	space = frame_space(ctx, L3_OFF,
			    sizeof(*ip) + bpf_ntohs(ip->payload_len));
	parsed = read_header6(ip, space, false, pkt, tuple);
	if (parsed != PARSED_FLOW)
		return parsed;
	return xdp_parse_l4(ctx, pkt, L3_OFF + sizeof(*ip), &tuple->sport,
			    check);
}

/* Writes what a network header becomes; returns where it ends, or NULL. */
static __always_inline void *xdp_store4(struct xdp_md *ctx,
					const struct packet *pkt,
					const struct tuple4 *to,
					__u32 addresses, __u8 ttl)
{
	struct iphdr *ip = frame_at(ctx, L3_OFF, sizeof(*ip));

	if (!ip)
		return NULL;
	ip->check = header_check4(pkt, addresses, ttl);
	ip->ttl = ttl;
	ip->saddr = to->saddr;
	ip->daddr = to->daddr;
	return ip + 1;
}

static __always_inline void *xdp_store6(struct xdp_md *ctx,
					const struct packet *pkt,
					const struct tuple6 *to,
					__u32 addresses, __u8 ttl)
{
	struct ipv6hdr *ip = frame_at(ctx, L3_OFF, sizeof(*ip));

	if (!ip)
		return NULL;
	ip->hop_limit = ttl;
	copy(ip->saddr, to->saddr);
	copy(ip->daddr, to->daddr);
	return ip + 1;
}

/* The frame leaves by the device that it came in by, which was its destination. */
static __always_inline int transmit(struct xdp_md *ctx, const __u8 *mac)
{
	struct ethhdr *eth = frame_at(ctx, 0, sizeof(*eth));

	if (!eth)
		return XDP_ABORTED;
	copy_mac(eth->h_source, eth->h_dest);
	copy_mac(eth->h_dest, mac);
	return XDP_TX;
}

static __always_inline int xdp_drop(__u32 metric)
{
	count(metric);
	return XDP_DROP;
}

/* What others say of a packet, in XDP's words. */
static __always_inline int xdp_verdict(int verdict)
{
	if (verdict == TC_ACT_SHOT)
		return XDP_DROP;
	/* Who answers is behind. */
	if (verdict == REJECT && !has_external_tc)
		return xdp_drop(METRIC_REJECTED);
	return XDP_PASS;
}

/* Whether the next hop's packet is the stack's this time. Apart, for the stack. */
static __noinline bool hop_is_due(const struct bpf_fib_lookup *fib)
{
	struct xdp_hop hop = { .ifindex = fib->ifindex };
	__u32 *last, now = now_ticks();

	if (fib->family == AF_INET)
		hop.addr[0] = fib->ipv4_dst;
	else
		copy(hop.addr, fib->ipv6_dst);
	last = bpf_map_lookup_elem(&xdp_hops, &hop);
	if (!last) {
		bpf_map_update_elem(&xdp_hops, &hop, &now, BPF_ANY);
		return false;
	}
	if (!older(*last, now, HOP_DUE))
		return false;
	*last = now;
	return true;
}

#endif
