/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What only IPv6 does. ipv4.h has the same functions. */
#ifndef KUBENET_IPV6_H
#define KUBENET_IPV6_H

#include "packet.h"

/* More headers than this are not looked behind. */
#define MAX_EXTENSIONS 8

/* With so many bytes of extension headers. */
#define QUOTE_MAX6 (sizeof(struct ipv6hdr) + 24 + 8)

#define ICMP_PROTO6 IPPROTO_ICMPV6
#define ICMP_PORT_UNREACHABLE6 ICMPV6_DEST_UNREACH, ICMPV6_PORT_UNREACH
#define ICMP_TOO_BIG6 ICMPV6_PKT_TOOBIG, 0
#define ICMP_EXPIRED6 ICMPV6_TIME_EXCEED, 0

/* Not in the kernel's exported headers. */
struct fragment6 {
	__u8 next;
	__u8 reserved;
	__be16 offset; /* its lowest bit: more follow */
	__be32 id;
};

static __always_inline void
take_header6(const struct ipv6hdr *ip, struct packet *pkt, struct tuple6 *tuple)
{
	copy(tuple->saddr, ip->saddr);
	copy(tuple->daddr, ip->daddr);
	pkt->ttl = ip->hop_limit;
	pkt->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
	pkt->length_next_hops = *(const __be32 *)&ip->payload_len;
}

/*
 * Moves pkt->l4_off behind the extension headers, but not behind that of a later
 * fragment. It only ever grows, so that no packet leads round in circles.
 */
static __always_inline int skip_extensions(struct __sk_buff *skb,
					   struct packet *pkt, __u8 next)
{
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		union {
			struct ipv6_opt_hdr option;
			struct ipv6_rt_hdr routing;
			struct fragment6 fragment;
		} ext;

		pkt->proto = next;
		switch (next) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_FRAGMENT:
		case IPPROTO_AH:
		case IPPROTO_DSTOPTS:
			break;
		default:
			return WALKED_TO_END;
		}
		/* Every one of them is at least eight bytes. */
		if (bpf_skb_load_bytes(skb, pkt->l4_off, &ext, sizeof(ext)))
			return WALKED_OUT;
		pkt->extended = true;
		switch (next) {
		case IPPROTO_FRAGMENT:
			pkt->l4_off += sizeof(ext.fragment);
			pkt->fragment_proto = ext.fragment.next;
			pkt->fragment_id = ext.fragment.id;
			pkt->later = ext.fragment.offset & bpf_htons(~7);
			pkt->fragment = !pkt->later &&
					(ext.fragment.offset & bpf_htons(1));
			if (pkt->later)
				return WALKED_TO_END;
			break;
		case IPPROTO_AH:
			pkt->l4_off += (ext.option.hdrlen + 2) * 4;
			break;
		case IPPROTO_ROUTING:
			/* Not at its destination yet. */
			if (ext.routing.segments_left)
				return WALKED_OUT;
			pkt->l4_off += (ext.routing.hdrlen + 1) * 8;
			break;
		default:
			pkt->l4_off += (ext.option.hdrlen + 1) * 8;
		}
		next = ext.option.nexthdr;
	}
	return WALKED_TOO_FAR;
}

/* As walk4(). */
static __noinline int walk6(struct __sk_buff *skb, __u32 off,
			    struct packet *pkt, struct tuple6 *tuple)
{
	struct ipv6hdr ip;
	__u32 len;
	int walked;

	if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)) || ip.version != 6)
		return WALKED_OUT;
	take_header6(&ip, pkt, tuple);
	pkt->l4_off = off + sizeof(ip);
	len = bpf_ntohs(ip.payload_len);
	if (!len && skb->gso_segs)
		len = skb->len - pkt->l4_off;
	pkt->l4_len = pkt->l4_off + len;
	walked = skip_extensions(skb, pkt, ip.nexthdr);
	if (walked == WALKED_TO_END && pkt->l4_len < pkt->l4_off)
		walked = WALKED_OUT;
	pkt->l4_len -= pkt->l4_off;
	set_proto(&tuple->proto, pkt->proto);
	return walked;
}

/* As is_icmp_error4(). */
static __always_inline bool is_icmp_error6(__u8 type)
{
	return type == ICMPV6_DEST_UNREACH || type == ICMPV6_PKT_TOOBIG ||
	       type == ICMPV6_TIME_EXCEED || type == ICMPV6_PARAMPROB;
}

/* As read_header4(). */
static __always_inline enum parsed read_header6(const struct ipv6hdr *ip,
						__u32 space, bool segments,
						struct packet *pkt,
						struct tuple6 *tuple)
{
	__u32 len;

	if (ip->version != 6)
		return PARSED_OTHER;
	if (ip->nexthdr != IPPROTO_TCP && ip->nexthdr != IPPROTO_UDP)
		return PARSED_RARE;
	len = bpf_ntohs(ip->payload_len);
	/* 0: more than 64 KiB. */
	if (!len && segments)
		len = space - sizeof(*ip);
	if (sizeof(*ip) + len > space)
		return PARSED_OTHER;
	take_header6(ip, pkt, tuple);
	set_proto(&tuple->proto, ip->nexthdr);
	pkt->proto = ip->nexthdr;
	pkt->l4_off = L3_OFF + sizeof(*ip);
	pkt->l4_len = len;
	return PARSED_FLOW;
}

static __always_inline enum parsed
parse6(struct __sk_buff *skb, struct packet *pkt, struct tuple6 *tuple)
{
	struct ipv6hdr *ip = header(skb, L3_OFF, sizeof(*ip));
	enum parsed parsed;

	if (!ip)
		return PARSED_OTHER;
	parsed = read_header6(ip, skb->len - L3_OFF, skb->gso_segs, pkt, tuple);
	if (parsed != PARSED_FLOW)
		return parsed;
	return parse_l4(skb, pkt, &tuple->sport) ? PARSED_FLOW : PARSED_OTHER;
}

/*
 * As store_headers4(). There is no checksum here: a sum over the frame that the
 * device has made must be told of each change, but for the ports, which the
 * transport's checksum makes up for.
 */
static __always_inline long store_headers6(struct __sk_buff *skb,
					   const struct packet *pkt,
					   const struct tuple6 *to,
					   __u32 addresses, __u8 ttl,
					   bool with_ports)
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
	if (err || !with_ports)
		return err;
	return bpf_skb_store_bytes(skb, pkt->l4_off, &to->sport, 4, 0);
}

/* As store_quote4(): here, nothing else changes. */
static __always_inline long store_quote6(struct __sk_buff *skb, __u32 off,
					 const struct packet *quote,
					 const struct tuple6 *to,
					 __u32 addresses, __u32 *change)
{
	return bpf_skb_store_bytes(skb, off + offsetof(struct ipv6hdr, saddr),
				   &to->saddr, 2 * sizeof(to->saddr), 0);
}

/* Read from the place that is not being written. */
static __always_inline void snat6(__be32 (*to)[4], const struct config *cfg)
{
	__u32 flags = *(const volatile __u32 *)&cfg->flags;

	__builtin_memcpy(to, cfg->snat6[!!(flags & CONFIG_SNAT6_SECOND)],
			 sizeof(*to));
}

/* As is_spoofed4(): multicast, none, loopback, and what is of IPv4. */
static __always_inline bool is_spoofed6(const __be32 (*addr)[4])
{
	const __be32 *word = *addr;

	if ((bpf_ntohl(word[0]) >> 24) == 0xff)
		return true;
	if (word[0] || word[1])
		return false;
	return word[2] == bpf_htonl(0xffff) ||
	       (!word[2] && bpf_ntohl(word[3]) <= 1);
}

#define IP_FAMILY6 AF_INET6
#define IP_HEADER6 struct ipv6hdr

/* TCP right behind the header, with hops left. */
static __always_inline bool is_plain_tcp6(const struct ipv6hdr *ip)
{
	return *(const __u8 *)ip >> 4 == 6 && ip->nexthdr == IPPROTO_TCP &&
	       ip->hop_limit > 1;
}

/* Of the packet, with its header. */
static __always_inline __u32 length6(const struct ipv6hdr *ip)
{
	return sizeof(*ip) + bpf_ntohs(ip->payload_len);
}

/* One hop on. */
static __always_inline void
send_header6(struct ipv6hdr *ip, const struct conntrack6 *ct, __u64 change)
{
	ip->hop_limit--;
	copy(ip->saddr, ct->saddr);
	copy(ip->daddr, ct->daddr);
}

static __always_inline void keep_hop6(struct route6 *route,
				      const struct bpf_fib_lookup *fib)
{
	copy(route->hop, fib->ipv6_dst);
}

static __always_inline void use_hop6(struct bpf_redir_neigh *hop,
				     const struct route6 *route)
{
	hop->nh_family = AF_INET6;
	copy(hop->ipv6_nh, route->hop);
}

static __always_inline void keep_mac6(struct route6 *route, const __u8 *mac)
{
	__builtin_memcpy(route->hop, mac, ETH_ALEN);
}

static __always_inline void use_mac6(__u8 *mac, const struct route6 *route)
{
	__builtin_memcpy(mac, route->hop, ETH_ALEN);
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

/*
 * Where an answer's transport header stands: where the packet's stood, but an
 * answer has no extension headers.
 */
static __always_inline __u32 answer_l4_off6(const struct packet *pkt)
{
	return pkt->extended ? L3_OFF + sizeof(struct ipv6hdr) : pkt->l4_off;
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
