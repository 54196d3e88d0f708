/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Direct server return: a client outside is not masqueraded on the way to a
 * backend on another node. The first node marks the packet with the frontend
 * that was dialled, and the backend's node, which learns it from there, answers
 * the client in the frontend's name.
 *
 * The mark is an IPv4 option, or an IPv6 option for the destination, of those
 * that RFC 4727 sets aside: no encapsulation, so that the way to the backend is
 * the ordinary one, and receivers that do not know it skip it. It stands right
 * behind the fixed header, in the first packet of a connection, which is small,
 * and in every UDP datagram, as each may be the first that arrives.
 */
#ifndef KUBENET_DSR_H
#define KUBENET_DSR_H

#include "packet.h"

#define IPV6_PADN 1

/* Copied into every fragment, number 30. */
#define DSR_OPTION4 0x9e
/* To be skipped by who does not know it, and left as it is on the way. */
#define DSR_OPTION6 0x1e

struct dsr4 {
	__u8 type;
	__u8 len;
	__be16 port;
	__be32 addr;
};

struct dsr6 {
	__u8 next;
	__u8 hdrlen;
	__u8 type;
	__u8 len;
	__be32 addr[4];
	__be16 port;
	__u8 pad[2]; /* the option PadN */
} __attribute__((packed));

#define DSR_LEN4 sizeof(struct dsr4)
#define DSR_LEN6 sizeof(struct dsr6)

static __always_inline long dsr_room(struct __sk_buff *skb, __u32 len)
{
	return bpf_skb_adjust_room(skb, len, BPF_ADJ_ROOM_NET,
				   BPF_F_ADJ_ROOM_FIXED_GSO);
}

/* Marks a packet that was sent to this frontend. */
static __noinline long dsr_mark4(struct __sk_buff *skb,
				 const struct tuple4 *frontend)
{
	struct {
		struct iphdr ip;
		struct dsr4 option;
	} head = {
		.option = { .type = DSR_OPTION4,
			    .len = DSR_LEN4,
			    .port = frontend->dport,
			    .addr = frontend->daddr },
	};
	__be16 *words;
	__u32 sum;

	if (bpf_skb_load_bytes(skb, L3_OFF, &head.ip, sizeof(head.ip)) ||
	    head.ip.ihl > 15 - DSR_LEN4 / 4 || dsr_room(skb, DSR_LEN4))
		return -EINVAL;
	words = (__be16 *)&head.ip;
	sum = (__u16)~head.ip.check;
	for (int i = 0; i < 2; i++)
		sum = csum_add(sum, (__u16)~words[i]);
	head.ip.ihl += DSR_LEN4 / 4;
	/* 0: more than 64 KiB, to be segmented later. */
	if (head.ip.tot_len)
		head.ip.tot_len =
			bpf_htons(bpf_ntohs(head.ip.tot_len) + DSR_LEN4);
	for (int i = 0; i < 2; i++)
		sum = csum_add(sum, words[i]);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&head.option,
			    sizeof(head.option), sum);
	head.ip.check = csum_fold(sum);
	return bpf_skb_store_bytes(skb, L3_OFF, &head, sizeof(head), 0);
}

static __noinline long dsr_mark6(struct __sk_buff *skb,
				 const struct tuple6 *frontend)
{
	const __u32 off = L3_OFF + offsetof(struct ipv6hdr, payload_len);
	struct {
		__be16 payload_len;
		__u8 nexthdr;
		__u8 hop_limit;
	} head;
	struct dsr6 option = {
		.hdrlen = DSR_LEN6 / 8 - 1,
		.type = DSR_OPTION6,
		.len = sizeof(option.addr) + sizeof(option.port),
		.port = frontend->dport,
		.pad = { IPV6_PADN },
	};
	long err;

	/* What every hop looks at must come first. */
	if (bpf_skb_load_bytes(skb, off, &head, sizeof(head)) ||
	    head.nexthdr == IPPROTO_HOPOPTS || dsr_room(skb, DSR_LEN6))
		return -EINVAL;
	copy(option.addr, frontend->daddr);
	option.next = head.nexthdr;
	head.nexthdr = IPPROTO_DSTOPTS;
	if (head.payload_len)
		head.payload_len =
			bpf_htons(bpf_ntohs(head.payload_len) + DSR_LEN6);
	err = bpf_skb_store_bytes(skb, off, &head, sizeof(head),
				  BPF_F_RECOMPUTE_CSUM);
	return err
		       ?: bpf_skb_store_bytes(skb,
					      L3_OFF + sizeof(struct ipv6hdr),
					      &option, sizeof(option),
					      BPF_F_RECOMPUTE_CSUM);
}

/* Reads the frontend off a packet that is marked. */
static __always_inline bool dsr_read4(struct __sk_buff *skb,
				      struct tuple4 *frontend)
{
	struct iphdr *ip = linear(skb, L3_OFF, sizeof(*ip));
	struct dsr4 option;

	if (!ip || ip->version != 4 || ip->ihl < (sizeof(*ip) + DSR_LEN4) / 4 ||
	    bpf_skb_load_bytes(skb, L3_OFF + sizeof(*ip), &option,
			       sizeof(option)) ||
	    option.type != DSR_OPTION4 || option.len != DSR_LEN4)
		return false;
	frontend->daddr = option.addr;
	frontend->dport = option.port;
	return true;
}

static __always_inline bool dsr_read6(struct __sk_buff *skb,
				      struct tuple6 *frontend)
{
	struct ipv6hdr *ip = linear(skb, L3_OFF, sizeof(*ip));
	struct dsr6 option;

	if (!ip || ip->version != 6 || ip->nexthdr != IPPROTO_DSTOPTS ||
	    bpf_skb_load_bytes(skb, L3_OFF + sizeof(*ip), &option,
			       sizeof(option)) ||
	    option.hdrlen != DSR_LEN6 / 8 - 1 || option.type != DSR_OPTION6 ||
	    option.len != sizeof(option.addr) + sizeof(option.port))
		return false;
	copy(frontend->daddr, option.addr);
	frontend->dport = option.port;
	return true;
}

#endif
