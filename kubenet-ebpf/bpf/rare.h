/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Packets that are not just TCP or UDP behind a network header. They are looked
 * at in functions of their own, so that all others pay nothing for them, and
 * what is known of them stands in a map: the stack has not the room.
 */
#ifndef KUBENET_RARE_H
#define KUBENET_RARE_H

#include "packet.h"
#include "sctp.h"

enum rare {
	RARE_OTHER, /* none of our business */
	RARE_FLOW, /* has ports */
	RARE_LATER, /* a fragment without them */
	RARE_ERROR, /* an ICMP error */
	RARE_BROKEN, /* has no ports where they can be found */
};

struct rare4 {
	struct packet pkt;
	struct packet quote; /* in an ICMP error */
	struct tuple4
		tuple; /* the packet's, or that of the quoted one's answer */
	struct tuple4 target;
	struct tuple4 from; /* what an error's own header has */
	struct tuple4 to;
};

struct rare6 {
	struct packet pkt;
	struct packet quote;
	struct tuple6 tuple;
	struct tuple6 target;
	struct tuple6 from;
	struct tuple6 to;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct rare4);
} rare4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct rare6);
} rare6 SEC(".maps");

/* As parse_l4(). */
static __always_inline bool parse_rare_l4(struct __sk_buff *skb,
					  struct packet *pkt, __be16 *sport,
					  __be16 *dport)
{
	__u8 head[TCP_FLAGS_OFF + 1];
	__be16 ports[2];

	pkt->l4_header_len = sizeof(struct udphdr);
	if (is_tcp(pkt)) {
		if (bpf_skb_load_bytes(skb, pkt->l4_off, head, sizeof(head)))
			return false;
		pkt->l4_header_len = (head[TCP_FLAGS_OFF - 1] >> 4) * 4;
		if (pkt->l4_header_len < sizeof(struct tcphdr))
			return false;
		pkt->tcp_flags = head[TCP_FLAGS_OFF];
	}
	if (pkt->proto == IPPROTO_SCTP) {
		/* Each packet has a chunk. */
		pkt->l4_header_len = SCTP_INIT_TAG_OFF;
		if (bpf_skb_load_bytes(skb,
				       pkt->l4_off + sizeof(struct sctp_header),
				       head, 1))
			return false;
		pkt->tcp_flags = sctp_flags(head[0]);
	}
	if (pkt->l4_len < pkt->l4_header_len ||
	    bpf_skb_load_bytes(skb, pkt->l4_off, ports, sizeof(ports)))
		return false;
	*sport = ports[0];
	*dport = ports[1];
	return true;
}

#endif
