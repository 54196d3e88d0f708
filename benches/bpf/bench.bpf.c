// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What the benchmark compares with, and what feeds the programs under test.
 *
 * A test run does not restore its packet between rounds. The drivers do: they
 * write the headers anew, of a flow that they choose, and call the program. Those
 * of XDP call programs for frames in several buffers, as the datapath's is one.
 */
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define TTL 64
#define AF_INET 2

/* Which packets a driver makes; user space has the same in a struct. */
struct plan {
	/* So many different flows, spread over so many Services. */
	__u32 flows;
	__u32 services;
	/* In no order; else one after the other, from `next` on. */
	__u32 random;
	__u32 next;
	/* From backend to client, else from client to Service. */
	__u32 reply;
	/* Of TCP: SYN 2, ACK 16. */
	__u32 flags;
	/* Lowest addresses, host byte order: 4,096 flows for each client, */
	__u32 clients;
	/* one for each Service, */
	__u32 service;
	/* and every third from the second on for the backend of each. */
	__u32 backends;
	/* Of Services, host byte order. */
	__u32 port;
	/* Of the frame, in its order: XDP programs write new ones. */
	__u16 macs[ETH_ALEN];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct plan);
} plan SEC(".maps");

/* The program under test. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} tc_target SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} xdp_target SEC(".maps");

struct floor_key4 {
	__be32 addr;
	__be16 port;
	__u16 proto;
};

struct floor_key6 {
	__be32 addr[4];
	__be16 port;
	__u16 proto;
};

struct floor4 {
	__be32 addr;
	__be16 port;
	__u16 pad;
};

struct floor6 {
	__be32 addr[4];
	__be16 port;
	__u16 pad;
};

/* Sized by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct floor_key4);
	__type(value, struct floor4);
} floor_services4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct floor_key6);
	__type(value, struct floor6);
} floor_services6 SEC(".maps");

/* ---- the drivers ---- */

/* A part of `of`, each as likely as the next, from a well mixed number. */
static __always_inline __u32 part(__u32 mixed, __u32 of)
{
	return ((__u64)mixed * of) >> 32;
}

typedef __u32 __attribute__((may_alias)) any_word;
typedef __u16 __attribute__((may_alias)) any_half;

static __always_inline int restore(void *data, void *data_end)
{
	struct ethhdr *eth = data;
	__u32 zero = 0, flow, service, client, address;
	__be16 sport, dport;
	struct tcphdr *tcp;
	struct plan *p = bpf_map_lookup_elem(&plan, &zero);

	if (!p || (void *)(eth + 1) > data_end)
		return -1;
	__builtin_memcpy(eth, p->macs, sizeof(p->macs));
	if (p->random) {
		flow = part(bpf_get_prandom_u32(), p->flows);
	} else {
		flow = p->next;
		p->next = flow + 1 >= p->flows ? 0 : flow + 1;
	}
	service = part(flow * 2654435761u, p->services);
	client = p->clients + (flow >> 12);
	sport = bpf_htons(16384 + (flow & 0xfff));
	dport = bpf_htons(p->port);
	if (p->reply) {
		address = client;
		client = p->backends + 3 * service + 1;
		dport = sport;
		sport = bpf_htons(80);
	} else {
		address = p->service + service;
	}

	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		tcp = (void *)(ip + 1);
		if ((void *)(tcp + 1) > data_end)
			return -1;
		ip->ttl = TTL;
		ip->saddr = bpf_htonl(client);
		ip->daddr = bpf_htonl(address);
	} else {
		struct ipv6hdr *ip = (void *)(eth + 1);

		tcp = (void *)(ip + 1);
		if ((void *)(tcp + 1) > data_end)
			return -1;
		/* As fd00:first_byte::the.same.address. */
		ip->hop_limit = TTL;
		ip->saddr.in6_u.u6_addr32[0] =
			bpf_htonl(0xfd000000 | client >> 24);
		ip->saddr.in6_u.u6_addr32[1] = 0;
		ip->saddr.in6_u.u6_addr32[2] = 0;
		ip->saddr.in6_u.u6_addr32[3] = bpf_htonl(client);
		ip->daddr.in6_u.u6_addr32[0] =
			bpf_htonl(0xfd000000 | address >> 24);
		ip->daddr.in6_u.u6_addr32[1] = 0;
		ip->daddr.in6_u.u6_addr32[2] = 0;
		ip->daddr.in6_u.u6_addr32[3] = bpf_htonl(address);
	}
	/*
	 * In the widths that programs read: what was written in parts a moment
	 * ago would hold them up, which no real packet does.
	 */
	*(any_word *)&tcp->source = sport | (__u32)dport << 16;
	((any_half *)tcp)[6] = 0x50 | p->flags << 8;
	/* Of no pseudo header: one that is yet to be completed, XDP leaves. */
	tcp->check = 0;
	return 0;
}

SEC("classifier")
int tc_driver(struct __sk_buff *skb)
{
	if (!restore((void *)(long)skb->data, (void *)(long)skb->data_end))
		bpf_tail_call(skb, &tc_target, 0);
	/* There is none: the driver's own cost. */
	return TC_ACT_PIPE;
}

SEC("xdp.frags")
int xdp_driver(struct xdp_md *ctx)
{
	if (!restore((void *)(long)ctx->data, (void *)(long)ctx->data_end))
		bpf_tail_call(ctx, &xdp_target, 0);
	return XDP_ABORTED;
}

/* ---- what can hardly be less ---- */

SEC("classifier")
int tc_empty(struct __sk_buff *skb)
{
	return TC_ACT_OK;
}

SEC("xdp.frags")
int xdp_empty(struct xdp_md *ctx)
{
	return XDP_TX;
}

/* One's complement arithmetic on a checksum. */
static __always_inline __sum16 csum_replace(__sum16 check, __u32 difference)
{
	__u32 sum = (__u16)~check + difference;

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__sum16)~sum;
}

/* What a sum of 16-bit words grows by. */
static __always_inline __u32 grows(const void *from, const void *to, int words)
{
	const __u16 *old = from, *new = to;
	__u32 sum = 0;

	for (int i = 0; i < words; i++)
		sum += (__u16)~old[i] + new[i];
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* DNAT: parse, one lookup, new destination, checksums. */
static __always_inline int dnat(void *data, void *data_end)
{
	struct ethhdr *eth = data;
	struct tcphdr *tcp;

	if ((void *)(eth + 1) > data_end)
		return -1;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);
		struct floor_key4 key = {};
		struct floor4 *to;
		__u32 address;

		if ((void *)(ip + 1) > data_end || ip->ihl != 5 ||
		    ip->protocol != IPPROTO_TCP)
			return -1;
		tcp = (void *)(ip + 1);
		if ((void *)(tcp + 1) > data_end)
			return -1;
		key.addr = ip->daddr;
		key.port = tcp->dest;
		key.proto = IPPROTO_TCP;
		to = bpf_map_lookup_elem(&floor_services4, &key);
		if (!to)
			return -1;
		address = grows(&ip->daddr, &to->addr, 2);
		ip->check = csum_replace(ip->check, address);
		tcp->check = csum_replace(
			tcp->check, address + grows(&tcp->dest, &to->port, 1));
		ip->daddr = to->addr;
		tcp->dest = to->port;
		return 0;
	}
	if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);
		struct floor_key6 key = {};
		struct floor6 *to;

		if ((void *)(ip + 1) > data_end || ip->nexthdr != IPPROTO_TCP)
			return -1;
		tcp = (void *)(ip + 1);
		if ((void *)(tcp + 1) > data_end)
			return -1;
		__builtin_memcpy(key.addr, &ip->daddr, sizeof(key.addr));
		key.port = tcp->dest;
		key.proto = IPPROTO_TCP;
		to = bpf_map_lookup_elem(&floor_services6, &key);
		if (!to)
			return -1;
		tcp->check = csum_replace(
			tcp->check, grows(&ip->daddr, to->addr, 8) +
					    grows(&tcp->dest, &to->port, 1));
		__builtin_memcpy(&ip->daddr, to->addr, sizeof(to->addr));
		tcp->dest = to->port;
		return 0;
	}
	return -1;
}

SEC("classifier")
int tc_floor(struct __sk_buff *skb)
{
	if (dnat((void *)(long)skb->data, (void *)(long)skb->data_end))
		return TC_ACT_SHOT;
	return bpf_redirect(skb->ifindex, 0);
}

/*
 * What to ask for the way to a destination, of IPv4. -1: the packet is not
 * served.
 */
static __always_inline int routed(void *data, void *data_end, __u32 device,
				  struct bpf_fib_lookup *fib)
{
	struct iphdr *ip = data + sizeof(struct ethhdr);

	if (dnat(data, data_end) || (void *)(ip + 1) > data_end)
		return -1;
	__builtin_memset(fib, 0, sizeof(*fib));
	fib->family = AF_INET;
	fib->l4_protocol = IPPROTO_TCP;
	fib->ifindex = device;
	fib->tot_len = bpf_ntohs(ip->tot_len);
	fib->ipv4_src = ip->saddr;
	fib->ipv4_dst = ip->daddr;
	return 0;
}

/* The floor, and the way to its destination looked up. */
SEC("classifier")
int tc_routed(struct __sk_buff *skb)
{
	struct bpf_redir_neigh hop = { .nh_family = AF_INET };
	struct bpf_fib_lookup fib;

	if (routed((void *)(long)skb->data, (void *)(long)skb->data_end,
		   skb->ifindex, &fib))
		return TC_ACT_SHOT;
	switch (bpf_fib_lookup(skb, &fib, sizeof(fib), 0)) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		hop.ipv4_nh = fib.ipv4_dst;
		return bpf_redirect_neigh(fib.ifindex, &hop, sizeof(hop), 0);
	}
	return TC_ACT_SHOT;
}

SEC("xdp.frags")
int xdp_floor(struct xdp_md *ctx)
{
	if (dnat((void *)(long)ctx->data, (void *)(long)ctx->data_end))
		return XDP_DROP;
	return XDP_TX;
}

/* The same, and to the neighbour that the way leads to. */
SEC("xdp.frags")
int xdp_routed(struct xdp_md *ctx)
{
	void *data_end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	struct ethhdr *eth = data;
	struct bpf_fib_lookup fib;

	if (routed(data, data_end, ctx->ingress_ifindex, &fib) ||
	    bpf_fib_lookup(ctx, &fib, sizeof(fib), 0) !=
		    BPF_FIB_LKUP_RET_SUCCESS ||
	    fib.ifindex != ctx->ingress_ifindex || (void *)(eth + 1) > data_end)
		return XDP_DROP;
	__builtin_memcpy(eth->h_source, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, fib.dmac, ETH_ALEN);
	return XDP_TX;
}

char _license[] SEC("license") = "Dual BSD/GPL";
