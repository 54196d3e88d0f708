/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the programs know about a packet, whatever its family. */
#ifndef KUBENET_PACKET_H
#define KUBENET_PACKET_H

#include "common.h"

#define L3_OFF ETH_HLEN

#define VLAN_ID_MASK 0xfff

/*
 * Beside TC_ACT_*: what is left for the caller to do. Functions that need much
 * stack are called one after the other, and not by each other.
 */
#define TRANSLATE 64
#define REJECT 65
#define TOO_BIG 66
#define NEW_FLOW 67
#define SEND_BACK 68 /* another way than it was going */
#define RARE 69 /* the packet needs rare_tmpl.h */
#define EXPIRED 70 /* at the end of its hops */

/* What the programs make of a packet's headers at first sight. */
enum parsed {
	PARSED_OTHER, /* none of our business */
	PARSED_FLOW, /* TCP or UDP, whole, right behind the network header */
	PARSED_RARE, /* may be ours, and needs a closer look */
};

/* How a walk over a packet's network headers ended. */
enum walked {
	WALKED_TO_END, /* at a transport header, or in a later fragment */
	WALKED_OUT, /* the packet ends before, or is not for its destination */
	WALKED_TOO_FAR, /* there are too many headers */
};

/* The thirteenth byte of a TCP header. */
#define TCP_FLAGS_OFF 13
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

struct packet {
	/* Rewritten together with what stands next to them. */
	__be32 length_next_hops; /* IPv6: the word with the hop limit */
	__sum16 check; /* IPv4 */
	__u32 l4_off; /* from the start of the frame */
	__u32 l4_header_len;
	__u32 l4_len; /* with the payload */
	__u8 proto; /* IPPROTO_*, of the transport */
	__u8 tcp_flags; /* of SCTP, those that mean the same */
	__u8 ttl; /* or hop limit */
	__u8 tos;
	bool fragment; /* the first of several: it has the ports */
	bool later; /* one of the others: it has none */
	bool may_fragment; /* routers may cut it */
	bool extended; /* has IPv6 extension headers */
	bool direct; /* to be marked for direct server return */
	__u16 mtu; /* of the route, after TOO_BIG */
	__u8 fragment_proto; /* what was cut, and under which number */
	__be32 fragment_id;
	__u32 ifindex; /* where it came in; 0: not where pods are */
	__u32 place; /* of its flow, if that is known: see flows.h */
	bool looked_at; /* whoever sends it on counts it, if it is the first */
};

/* Whether a flow of this protocol may be one to a Service. */
static __always_inline bool is_served(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP ||
	       proto == IPPROTO_SCTP;
}

static __always_inline bool is_tcp(const struct packet *pkt)
{
	return pkt->proto == IPPROTO_TCP;
}

/* TCP or SCTP: a flow has a beginning and an end. */
static __always_inline bool is_connection(const struct packet *pkt)
{
	return pkt->proto != IPPROTO_UDP;
}

static __always_inline bool is_syn(const struct packet *pkt)
{
	return is_connection(pkt) && (pkt->tcp_flags & TCP_SYN) &&
	       !(pkt->tcp_flags & TCP_ACK);
}

static __always_inline bool is_syn_ack(const struct packet *pkt)
{
	return is_connection(pkt) && (pkt->tcp_flags & TCP_SYN) &&
	       (pkt->tcp_flags & TCP_ACK);
}

/* `len` bytes at `off`, or NULL if they are not all in the linear part. */
static __always_inline void *linear(struct __sk_buff *skb, __u32 off, __u32 len)
{
	void *at = (void *)(long)skb->data + off;

	/* The verifier wants the length added last. */
	asm volatile("" : "+r"(at));
	return at + len > (void *)(long)skb->data_end ? NULL : at;
}

/*
 * `len` bytes at `off`, made linear if they are not, or NULL if the frame is
 * shorter. Pointers from earlier calls are void afterwards: copy what is
 * needed.
 */
static __always_inline void *header(struct __sk_buff *skb, __u32 off, __u32 len)
{
	void *at = linear(skb, off, len);

	if (at)
		return at;
	if (bpf_skb_pull_data(skb, off + len))
		return NULL;
	return linear(skb, off, len);
}

/* What a transport header says; false if it contradicts itself. */
static __always_inline bool read_tcp(const struct tcphdr *tcp,
				     struct packet *pkt, __be16 *ports)
{
	if (tcp->doff < 5)
		return false;
	pkt->l4_header_len = tcp->doff * 4;
	set_ports(ports, get_ports(&tcp->source));
	pkt->tcp_flags = ((const __u8 *)tcp)[TCP_FLAGS_OFF];
	return pkt->l4_len >= pkt->l4_header_len;
}

static __always_inline bool read_udp(const struct udphdr *udp,
				     struct packet *pkt, __be16 *ports)
{
	pkt->l4_header_len = sizeof(*udp);
	set_ports(ports, get_ports(&udp->source));
	return pkt->l4_len >= pkt->l4_header_len;
}

/* Reads the transport header at pkt->l4_off. */
static __always_inline bool parse_l4(struct __sk_buff *skb, struct packet *pkt,
				     __be16 *ports)
{
	if (is_tcp(pkt)) {
		struct tcphdr *tcp = header(skb, pkt->l4_off, sizeof(*tcp));

		return tcp && read_tcp(tcp, pkt, ports);
	} else {
		struct udphdr *udp = header(skb, pkt->l4_off, sizeof(*udp));

		return udp && read_udp(udp, pkt, ports);
	}
}

/* Source and destination stand one behind the other. */
static __always_inline bool same_ports(const __be16 *a, const __be16 *b)
{
	return get_ports(a) == get_ports(b);
}

/* Offset of the transport checksum. */
static __always_inline __u32 l4_csum_off(const struct packet *pkt)
{
	return pkt->l4_off + (is_tcp(pkt) ? offsetof(struct tcphdr, check)
					  : offsetof(struct udphdr, check));
}

/* Turns the frame round and sends it back where it came from. */
static __always_inline int send_back(struct __sk_buff *skb)
{
	__u8 old[2 * ETH_ALEN], new[2 * ETH_ALEN];

	if (bpf_skb_load_bytes(skb, 0, old, sizeof(old)))
		return drop(METRIC_DROP_MALFORMED);
	__builtin_memcpy(new, old + ETH_ALEN, ETH_ALEN);
	__builtin_memcpy(new + ETH_ALEN, old, ETH_ALEN);
	if (bpf_skb_store_bytes(skb, 0, new, sizeof(new), 0))
		return drop(METRIC_DROP_MALFORMED);
	return bpf_redirect(skb->ifindex, 0);
}

static __always_inline bool leads_into_pod(__u32 ifindex)
{
	return bpf_map_lookup_elem(&pod_peers, &ifindex);
}

/*
 * Puts the frame into the network namespace of the pod behind this device, past
 * the rest of this one. A router would have put its own address in place of the
 * pod's, which is the one that the frame was for.
 */
static __always_inline int send_to_pod(struct __sk_buff *skb, __u32 ifindex,
				       const __u8 *mac)
{
	__u8 macs[2 * ETH_ALEN] __attribute__((aligned(4)));

	if (bpf_skb_load_bytes(skb, 0, macs + ETH_ALEN, ETH_ALEN))
		return drop(METRIC_DROP_MALFORMED);
	__builtin_memcpy(macs, mac, ETH_ALEN);
	if (bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0))
		return drop(METRIC_DROP_MALFORMED);
	return bpf_redirect_peer(ifindex, 0);
}

#endif
