/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What only IPv6 does. ipv4.h has the same functions. */
#ifndef KUBENET_IPV6_H
#define KUBENET_IPV6_H

#include "packet.h"

#define MAX_EXTENSIONS 6

#define QUOTE_MAX6 (sizeof(struct ipv6hdr) + 8)

#define ICMP_PROTO6 IPPROTO_ICMPV6
#define ICMP_PORT_UNREACHABLE6 ICMPV6_DEST_UNREACH, ICMPV6_PORT_UNREACH
#define ICMP_TOO_BIG6 ICMPV6_PKT_TOOBIG, 0

/* Not in the kernel's exported headers. */
struct fragment6 {
	__u8 next;
	__u8 reserved;
	__be16 offset; /* its lowest bit: more follow */
	__be32 id;
};

/*
 * Moves pkt->l4_off behind the extension headers. False when there are too
 * many, one of another kind, or the packet is a later fragment.
 */
static __always_inline bool skip_extensions(struct __sk_buff *skb,
					    struct packet *pkt, __u8 *next)
{
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		union {
			struct ipv6_opt_hdr option;
			struct ipv6_rt_hdr routing;
			struct fragment6 fragment;
		} ext;

		switch (*next) {
		case IPPROTO_TCP:
		case IPPROTO_UDP:
			return true;
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
		case IPPROTO_FRAGMENT:
			break;
		default:
			return false;
		}
		/* Every one of them is at least eight bytes. */
		if (bpf_skb_load_bytes(skb, pkt->l4_off, &ext, sizeof(ext)))
			return false;
		/* Not at its destination yet. */
		if (*next == IPPROTO_ROUTING && ext.routing.segments_left)
			return false;
		pkt->extended = true;
		if (*next == IPPROTO_FRAGMENT) {
			if (ext.fragment.offset & bpf_htons(~7))
				return false;
			pkt->fragment = ext.fragment.offset & bpf_htons(1);
			pkt->l4_off += sizeof(ext.fragment);
		} else {
			pkt->l4_off += (ext.option.hdrlen + 1) * 8;
		}
		*next = ext.option.nexthdr;
	}
	return *next == IPPROTO_TCP || *next == IPPROTO_UDP;
}

static __always_inline bool parse6(struct __sk_buff *skb, struct packet *pkt,
				   struct tuple6 *tuple)
{
	struct ipv6hdr *ip = header(skb, L3_OFF, sizeof(*ip));
	__u32 end;
	__u8 next;

	if (!ip || ip->version != 6)
		return false;
	next = ip->nexthdr;
	end = L3_OFF + sizeof(*ip) + bpf_ntohs(ip->payload_len);
	if (!ip->payload_len && skb->gso_segs)
		end = skb->len;
	if (end > skb->len)
		return false;
	copy(tuple->saddr, ip->saddr);
	copy(tuple->daddr, ip->daddr);
	pkt->ttl = ip->hop_limit;
	pkt->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
	pkt->length_next_hops = *(__be32 *)&ip->payload_len;
	pkt->l4_off = L3_OFF + sizeof(*ip);

	if (next != IPPROTO_TCP && next != IPPROTO_UDP &&
	    !skip_extensions(skb, pkt, &next))
		return false;
	if (end < pkt->l4_off)
		return false;
	tuple->proto = next;
	pkt->proto = next;
	pkt->l4_len = end - pkt->l4_off;
	return parse_l4(skb, pkt, &tuple->sport, &tuple->dport);
}

/*
 * As store_headers4(). There is no checksum here: a sum over the frame that the
 * device has made must be told of each change, but for the ports, which the
 * transport's checksum makes up for.
 */
static __always_inline long store_headers6(struct __sk_buff *skb,
					   const struct packet *pkt,
					   const struct tuple6 *to,
					   __u32 addresses, __u8 ttl)
{
	struct {
		__be32 length_next_hops;
		__be32 saddr[4];
		__be32 daddr[4];
	} rest;
	__u32 hops = bpf_ntohl(pkt->length_next_hops) & ~0xff;
	long err;

	rest.length_next_hops = bpf_htonl(hops | ttl);
	copy(rest.saddr, to->saddr);
	copy(rest.daddr, to->daddr);
	err = bpf_skb_store_bytes(
		skb, L3_OFF + offsetof(struct ipv6hdr, payload_len), &rest,
		sizeof(rest), BPF_F_RECOMPUTE_CSUM);
	if (err)
		return err;
	return bpf_skb_store_bytes(skb, pkt->l4_off, &to->sport, 4, 0);
}

/* Read from the place that is not being written. */
static __always_inline void snat6(__be32 (*to)[4], const struct config *cfg)
{
	__u32 flags = *(const volatile __u32 *)&cfg->flags;

	__builtin_memcpy(to, cfg->snat6[!!(flags & CONFIG_SNAT6_SECOND)],
			 sizeof(*to));
}

static __always_inline void fib_fill6(struct bpf_fib_lookup *fib,
				      const struct packet *pkt,
				      const struct tuple6 *to)
{
	fib->family = AF_INET6;
	fib->flowinfo = bpf_htonl(pkt->tos << 20);
	copy(fib->ipv6_src, to->saddr);
	copy(fib->ipv6_dst, to->daddr);
}

/* As answer_l3_4(). */
static __always_inline long answer_l3_6(struct __sk_buff *skb,
					const struct packet *pkt,
					const struct tuple6 *tuple, __u8 proto,
					__u32 len)
{
	struct ipv6hdr ip = {
		.version = 6,
		.payload_len = bpf_htons(len),
		.nexthdr = proto,
		.hop_limit = 64,
	};

	copy(ip.saddr, tuple->daddr);
	copy(ip.daddr, tuple->saddr);
	return bpf_skb_store_bytes(skb, L3_OFF, &ip, sizeof(ip), 0);
}

static __always_inline __u32 icmp_pseudo6(const struct tuple6 *tuple, __u32 len)
{
	__be32 rest[2] = { bpf_htonl(len), bpf_htonl(IPPROTO_ICMPV6) };
	__u32 sum;

	sum = bpf_csum_diff(NULL, 0, (__be32 *)&tuple->saddr,
			    2 * sizeof(tuple->saddr), 0);
	return bpf_csum_diff(NULL, 0, rest, sizeof(rest), sum);
}

#endif
