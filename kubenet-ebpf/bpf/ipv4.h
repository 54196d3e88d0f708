/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What only IPv4 does. ipv6.h has the same functions. */
#ifndef KUBENET_IPV4_H
#define KUBENET_IPV4_H

#include "packet.h"

#define IP_DF 0x4000
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff

/* linux/icmp.h needs headers of the C library. */
#define ICMP_DEST_UNREACH 3
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMP_PORT_UNREACH 3
#define ICMP_FRAG_NEEDED 4

/* The longest header with options, and the 8 bytes that ICMP quotes. */
#define QUOTE_MAX4 68

#define ICMP_PROTO4 IPPROTO_ICMP
#define ICMP_PORT_UNREACHABLE4 ICMP_DEST_UNREACH, ICMP_PORT_UNREACH
#define ICMP_TOO_BIG4 ICMP_DEST_UNREACH, ICMP_FRAG_NEEDED
#define ICMP_EXPIRED4 ICMP_TIME_EXCEEDED, 0

/* What the network header says. `len` is what it says of the packet's length. */
static __always_inline void take_header4(const struct iphdr *ip, __u32 off,
					 __u32 len, struct packet *pkt,
					 struct tuple4 *tuple)
{
	tuple->saddr = ip->saddr;
	tuple->daddr = ip->daddr;
	set_proto(&tuple->proto, ip->protocol);
	pkt->proto = ip->protocol;
	pkt->ttl = ip->ttl;
	pkt->tos = ip->tos;
	pkt->check = ip->check;
	pkt->may_fragment = !(ip->frag_off & bpf_htons(IP_DF));
	pkt->l4_off = off + ip->ihl * 4;
	pkt->l4_len = len - ip->ihl * 4;
}

/*
 * What the network header of a frame says, with `space` bytes of the frame from
 * it on. `segments`: the frame is yet to be cut.
 */
static __always_inline enum parsed read_header4(const struct iphdr *ip,
						__u32 space, bool segments,
						struct packet *pkt,
						struct tuple4 *tuple)
{
	__u32 len;

	if (ip->version != 4 || ip->ihl < 5)
		return PARSED_OTHER;
	if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP)
		return ip->protocol == IPPROTO_ICMP ||
				       ip->protocol == IPPROTO_SCTP
			       ? PARSED_RARE
			       : PARSED_OTHER;
	if (ip->frag_off & bpf_htons(IP_OFFSET | IP_MF))
		return PARSED_RARE;

	len = bpf_ntohs(ip->tot_len);
	/* 0: more than 64 KiB. */
	if (!len && segments)
		len = space;
	if (len < ip->ihl * 4 || len > space)
		return PARSED_OTHER;
	take_header4(ip, L3_OFF, len, pkt, tuple);
	return PARSED_FLOW;
}

static __always_inline enum parsed
parse4(struct __sk_buff *skb, struct packet *pkt, struct tuple4 *tuple)
{
	struct iphdr *ip = header(skb, L3_OFF, sizeof(*ip));
	enum parsed parsed;

	if (!ip)
		return PARSED_OTHER;
	parsed = read_header4(ip, skb->len - L3_OFF, skb->gso_segs, pkt, tuple);
	if (parsed != PARSED_FLOW)
		return parsed;
	return parse_l4(skb, pkt, &tuple->sport) ? PARSED_FLOW : PARSED_OTHER;
}

/*
 * Reads the network header at `off`, the frame's own or one that an error
 * quotes: of those, pkt->l4_len may be more than there is.
 */
static __noinline int walk4(struct __sk_buff *skb, __u32 off,
			    struct packet *pkt, struct tuple4 *tuple)
{
	struct iphdr ip;
	__u32 len;

	if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)) || ip.version != 4 ||
	    ip.ihl < 5)
		return WALKED_OUT;
	len = bpf_ntohs(ip.tot_len);
	if (!len && skb->gso_segs)
		len = skb->len - L3_OFF;
	if (len < ip.ihl * 4)
		return WALKED_OUT;
	take_header4(&ip, off, len, pkt, tuple);
	pkt->later = ip.frag_off & bpf_htons(IP_OFFSET);
	pkt->fragment = !pkt->later && (ip.frag_off & bpf_htons(IP_MF));
	pkt->fragment_proto = ip.protocol;
	pkt->fragment_id = ip.id;
	return WALKED_TO_END;
}

/* Errors that say what became of a packet; a redirect does not. */
static __always_inline bool is_icmp_error4(__u8 type)
{
	return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED ||
	       type == ICMP_PARAMETERPROB;
}

/* The header's checksum after a change of addresses and of the TTL. */
static __always_inline __sum16 header_check4(const struct packet *pkt,
					     __u32 addresses, __u8 ttl)
{
	__u16 old_ttl = bpf_htons(pkt->ttl << 8);
	__u16 new_ttl = bpf_htons(ttl << 8);
	__u32 sum;

	sum = csum_add(addresses, (__u16)~pkt->check);
	sum = csum_add(sum, (__u16)~old_ttl);
	return csum_fold(csum_add(sum, new_ttl));
}

/*
 * Writes addresses, `ttl` and, `with_ports`, the ports. The header's checksum
 * makes up for every other change (`addresses` is the sum's), so that a sum over
 * the frame that the device has made stays right.
 */
static __always_inline long store_headers4(struct __sk_buff *skb,
					   const struct packet *pkt,
					   const struct tuple4 *to,
					   __u32 addresses, __u8 ttl,
					   bool with_ports)
{
	struct {
		__u8 ttl;
		__u8 protocol;
		__sum16 check;
		__be32 saddr;
		__be32 daddr;
		__be16 sport; /* right behind, if there are no options */
		__be16 dport;
	} rest = {
		.ttl = ttl,
		.protocol = pkt->proto,
		.saddr = to->saddr,
		.daddr = to->daddr,
		.sport = to->sport,
		.dport = to->dport,
	};
	__u32 off = L3_OFF + offsetof(struct iphdr, ttl);
	long err;

	rest.check = header_check4(pkt, addresses, ttl);
	if (with_ports && pkt->l4_off == L3_OFF + sizeof(struct iphdr))
		return bpf_skb_store_bytes(skb, off, &rest, sizeof(rest), 0);
	err = bpf_skb_store_bytes(skb, off, &rest,
				  offsetof(typeof(rest), sport), 0);
	if (err || !with_ports)
		return err;
	return bpf_skb_store_bytes(skb, pkt->l4_off, &rest.sport, 4, 0);
}

/* Writes the addresses of a quoted header, at `off`, and adds what else changes. */
static __always_inline long store_quote4(struct __sk_buff *skb, __u32 off,
					 const struct packet *quote,
					 const struct tuple4 *to,
					 __u32 addresses, __u32 *change)
{
	struct {
		__sum16 check;
		__be32 addrs[2];
	} __attribute__((packed)) rest = {
		.check = csum_fold(csum_add(addresses, (__u16)~quote->check)),
		.addrs = { to->saddr, to->daddr },
	};

	*change = csum_change(*change, quote->check, rest.check);
	return bpf_skb_store_bytes(skb, off + offsetof(struct iphdr, check),
				   &rest, sizeof(rest), 0);
}

/* The source of masqueraded flows, or 0. */
static __always_inline void snat4(__be32 *to, const struct config *cfg)
{
	*to = cfg->snat4;
}

/*
 * Addresses that nobody has: this network, loopback, multicast, broadcast. The
 * stack takes no packet from them, either.
 */
static __always_inline bool is_spoofed4(const __be32 *addr)
{
	__u32 first = bpf_ntohl(*addr) >> 24;

	return !first || first == 127 || (first & 0xf0) == 0xe0 ||
	       *addr == 0xffffffff;
}

#define IP_FAMILY4 AF_INET
#define IP_HEADER4 struct iphdr

/* TCP in one piece right behind the header, with hops left. */
static __always_inline bool is_plain_tcp4(const struct iphdr *ip)
{
	return *(const __u8 *)ip == 0x45 && ip->protocol == IPPROTO_TCP &&
	       !(ip->frag_off & bpf_htons(IP_OFFSET | IP_MF)) && ip->ttl > 1;
}

/* Of the packet, with its header. */
static __always_inline __u32 length4(const struct iphdr *ip)
{
	return bpf_ntohs(ip->tot_len);
}

/* One hop on; `change` is that of the sum of addresses. */
static __always_inline void
send_header4(struct iphdr *ip, const struct conntrack4 *ct, __u64 change)
{
	__u16 hop = ~bpf_htons(0x0100);

	ip->check = csum_fold64(change + hop + (__u16)~ip->check);
	ip->ttl--;
	ip->saddr = ct->saddr;
	ip->daddr = ct->daddr;
}

/* From a look-up, and to where the packet is sent. */
static __always_inline void keep_hop4(struct route4 *route,
				      const struct bpf_fib_lookup *fib)
{
	route->hop = fib->ipv4_dst;
}

static __always_inline void use_hop4(struct bpf_redir_neigh *hop,
				     const struct route4 *route)
{
	hop->nh_family = AF_INET;
	hop->ipv4_nh = route->hop;
}

/* The same of what XDP sends. */
static __always_inline void keep_mac4(struct route4 *route, const __u8 *mac)
{
	__builtin_memcpy(&route->hop, mac, 4);
	__builtin_memcpy(&route->hop_more, mac + 4, 2);
}

static __always_inline void use_mac4(__u8 *mac, const struct route4 *route)
{
	__builtin_memcpy(mac, &route->hop, 4);
	__builtin_memcpy(mac + 4, &route->hop_more, 2);
}

static __always_inline void fib_fill4(struct bpf_fib_lookup *fib,
				      const struct packet *pkt,
				      const struct tuple4 *to)
{
	fib->family = AF_INET;
	fib->tos = pkt->tos;
	fib->ipv4_src = to->saddr;
	fib->ipv4_dst = to->daddr;
}

/* Where an answer's transport header stands: where the packet's stood. */
static __always_inline __u32 answer_l4_off4(const struct packet *pkt)
{
	return pkt->l4_off;
}

/*
 * Turns the header into that of an answer with `len` bytes after it. It keeps
 * its length, because a checksum that is yet to be completed is at an offset
 * that cannot be changed: options become zeros, which end the list.
 */
static __always_inline long answer_l3_4(struct __sk_buff *skb,
					const struct packet *pkt,
					const struct tuple4 *tuple, __u8 proto,
					__u32 len)
{
	__u32 options = pkt->l4_off - L3_OFF - sizeof(struct iphdr);
	__u8 zeros[40] = {};
	struct iphdr ip = {
		.version = 4,
		.ihl = (pkt->l4_off - L3_OFF) / 4,
		.tot_len = bpf_htons(pkt->l4_off - L3_OFF + len),
		.frag_off = bpf_htons(IP_DF),
		.ttl = 64,
		.protocol = proto,
		.saddr = tuple->daddr,
		.daddr = tuple->saddr,
	};

	ip.check =
		csum_fold(bpf_csum_diff(NULL, 0, (__be32 *)&ip, sizeof(ip), 0));
	if (options) {
		if (options > sizeof(zeros) ||
		    bpf_skb_store_bytes(skb, L3_OFF + sizeof(ip), zeros,
					options, 0))
			return -1;
	}
	return bpf_skb_store_bytes(skb, L3_OFF, &ip, sizeof(ip), 0);
}

/* The part of the answer's checksum that ICMP has none of. */
static __always_inline __u32 icmp_pseudo4(const struct tuple4 *tuple, __u32 len)
{
	return 0;
}

#endif
