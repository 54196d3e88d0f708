// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Every program, each named after its function. */
#include "common.h"
#include "packet.h"
#include "ipv4.h"
#include "ipv6.h"
#include "rare.h"
#include "dsr.h"
#include "traffic.h"
#include "events.h"
#include "conntrack.h"
#include "flows.h"
#include "maglev.h"
#include "service.h"
#include "sockets.h"
#include "connected.h"
#include "xdp.h"

#define FAMILY 4
#include "family_tmpl.h"
#undef FAMILY

#define FAMILY 6
#include "family_tmpl.h"
#undef FAMILY

/*
 * A VLAN's device will see the packet again, without the tag. A tag that has
 * only a priority belongs to no VLAN: there is no other device.
 */
static __always_inline bool is_in_vlan(const struct __sk_buff *skb)
{
	return skb->vlan_present && (skb->vlan_tci & VLAN_ID_MASK);
}

static __always_inline int ingress(struct __sk_buff *skb)
{
	int verdict;

	if (skb->pkt_type != PACKET_HOST || is_in_vlan(skb))
		return TC_ACT_UNSPEC;
	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		verdict = ingress4(skb);
		return verdict == RARE ? ingress_rare4(skb) : verdict;
	case bpf_htons(ETH_P_IPV6):
		verdict = ingress6(skb);
		return verdict == RARE ? ingress_rare6(skb) : verdict;
	}
	return TC_ACT_UNSPEC;
}

/* What is sent on from here leaves without the tag that it came with. */
static __always_inline int ingress_untagged(struct __sk_buff *skb)
{
	int verdict = ingress(skb);

	if (verdict == TC_ACT_REDIRECT && skb->vlan_present)
		bpf_skb_vlan_pop(skb);
	return verdict;
}

/* What another node has marked. */
static __always_inline int learn(struct __sk_buff *skb)
{
	if (skb->pkt_type != PACKET_HOST || is_in_vlan(skb))
		return TC_ACT_UNSPEC;
	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		return dsr_learn4(skb);
	case bpf_htons(ETH_P_IPV6):
		return dsr_learn6(skb);
	}
	return TC_ACT_UNSPEC;
}

/* At the host's end of a pod's interface: what the pod sends. */
SEC("classifier")
int kubenet_from_pod(struct __sk_buff *skb)
{
	return ingress_untagged(skb);
}

/* At a device of the node that leads outside: what comes in. */
SEC("classifier")
int kubenet_from_external(struct __sk_buff *skb)
{
	if (have_dsr && learn(skb) == TC_ACT_SHOT)
		return TC_ACT_SHOT;
	return ingress_untagged(skb);
}

/* At both kinds of device: what goes out. */
SEC("classifier")
int kubenet_to_device(struct __sk_buff *skb)
{
	int verdict;

	if (is_in_vlan(skb))
		return TC_ACT_UNSPEC;
	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		verdict = egress4(skb);
		return verdict == RARE ? egress_rare4(skb) : verdict;
	case bpf_htons(ETH_P_IPV6):
		verdict = egress6(skb);
		return verdict == RARE ? egress_rare6(skb) : verdict;
	}
	return TC_ACT_UNSPEC;
}

/* Apart, because the stack has not the room for both families at once. */
static __noinline int xdp_ipv4(struct xdp_md *ctx)
{
	struct tuple4 tuple = {}, target = {};
	struct packet pkt = {};

	return xdp4(ctx, &pkt, &tuple, &target);
}

/* Nor for IPv6 alone: no packet that needs rare_tmpl.h is looked at meanwhile. */
static __noinline int xdp_ipv6(struct xdp_md *ctx)
{
	struct rare6 *room = room6();

	if (!room)
		return XDP_PASS;
	return xdp6(ctx, &room->pkt, &room->tuple, &room->target);
}

/* At a device that leads outside: what comes in, before TC. */
SEC("xdp.frags")
int kubenet_xdp(struct xdp_md *ctx)
{
	const struct ethhdr *eth = frame_at(ctx, 0, sizeof(*eth));
	int verdict;

	if (!eth || !is_for_device(ctx, eth))
		return XDP_PASS;
	switch (eth->h_proto) {
	case bpf_htons(ETH_P_IP):
		verdict = xdp_known4(ctx);
		return verdict == XDP_LOOK_AGAIN ? xdp_ipv4(ctx) : verdict;
	case bpf_htons(ETH_P_IPV6):
		verdict = xdp_known6(ctx);
		return verdict == XDP_LOOK_AGAIN ? xdp_ipv6(ctx) : verdict;
	}
	return XDP_PASS;
}

static __always_inline struct service_key4 sock_read4(struct bpf_sock_addr *ctx,
						      __be32 addr)
{
	return (struct service_key4){
		.addr = addr,
		.port = ctx->user_port,
		.proto = ctx->protocol,
	};
}

static __always_inline struct service_key6 sock_read6(struct bpf_sock_addr *ctx)
{
	return (struct service_key6){
		.addr = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2],
			  ctx->user_ip6[3] },
		.port = ctx->user_port,
		.proto = ctx->protocol,
	};
}

static __always_inline void sock_write6(struct bpf_sock_addr *ctx,
					const struct service_key6 *key)
{
	ctx->user_ip6[0] = key->addr[0];
	ctx->user_ip6[1] = key->addr[1];
	ctx->user_ip6[2] = key->addr[2];
	ctx->user_ip6[3] = key->addr[3];
	ctx->user_port = key->port;
}

/* An IPv4 address in an IPv6 socket: the IPv4 tables serve it. */
static __always_inline bool sock_is_mapped(struct bpf_sock_addr *ctx)
{
	return !ctx->user_ip6[0] && !ctx->user_ip6[1] &&
	       ctx->user_ip6[2] == bpf_htonl(0xffff);
}

static __always_inline int sock_dial_ipv4(struct bpf_sock_addr *ctx,
					  bool sticky)
{
	struct service_key4 key;
	int verdict;

	if (!sock_takes_new(ctx)) {
		if (!sticky)
			forget_connected(ctx);
		return SOCK_ALLOW;
	}
	key = sock_read4(ctx, ctx->user_ip4);
	verdict = sock_dial4(ctx, &key, sticky);
	if (verdict == SOCK_ALLOW) {
		ctx->user_ip4 = key.addr;
		ctx->user_port = key.port;
	}
	return verdict;
}

static __always_inline int sock_dial_ipv6(struct bpf_sock_addr *ctx,
					  bool sticky)
{
	struct service_key6 key;
	int verdict;

	if (!sock_takes_new(ctx)) {
		if (!sticky)
			forget_connected(ctx);
		return SOCK_ALLOW;
	}
	if (sock_is_mapped(ctx)) {
		struct service_key4 mapped = sock_read4(ctx, ctx->user_ip6[3]);

		verdict = sock_dial4(ctx, &mapped, sticky);
		if (verdict == SOCK_ALLOW) {
			ctx->user_ip6[3] = mapped.addr;
			ctx->user_port = mapped.port;
		}
		return verdict;
	}
	key = sock_read6(ctx);
	verdict = sock_dial6(ctx, &key, sticky);
	if (verdict == SOCK_ALLOW)
		sock_write6(ctx, &key);
	return verdict;
}

/* These never fail: the answer is there, only its name is in question. */
static __always_inline int sock_name_ipv4(struct bpf_sock_addr *ctx)
{
	struct service_key4 key = sock_read4(ctx, ctx->user_ip4);

	if (sock_restore4(ctx, &key)) {
		ctx->user_ip4 = key.addr;
		ctx->user_port = key.port;
	}
	return SOCK_ALLOW;
}

static __always_inline int sock_name_ipv6(struct bpf_sock_addr *ctx)
{
	struct service_key6 key;

	if (sock_is_mapped(ctx)) {
		struct service_key4 mapped = sock_read4(ctx, ctx->user_ip6[3]);

		if (sock_restore4(ctx, &mapped)) {
			ctx->user_ip6[3] = mapped.addr;
			ctx->user_port = mapped.port;
		}
		return SOCK_ALLOW;
	}
	key = sock_read6(ctx);
	if (sock_restore6(ctx, &key))
		sock_write6(ctx, &key);
	return SOCK_ALLOW;
}

/* A connected socket keeps its backend; one that is not is kept on it. */
SEC("cgroup/connect4")
int kubenet_connect4(struct bpf_sock_addr *ctx)
{
	return sock_dial_ipv4(ctx, false);
}

SEC("cgroup/connect6")
int kubenet_connect6(struct bpf_sock_addr *ctx)
{
	return sock_dial_ipv6(ctx, false);
}

SEC("cgroup/sendmsg4")
int kubenet_sendmsg4(struct bpf_sock_addr *ctx)
{
	return sock_dial_ipv4(ctx, true);
}

SEC("cgroup/sendmsg6")
int kubenet_sendmsg6(struct bpf_sock_addr *ctx)
{
	return sock_dial_ipv6(ctx, true);
}

SEC("cgroup/recvmsg4")
int kubenet_recvmsg4(struct bpf_sock_addr *ctx)
{
	return sock_name_ipv4(ctx);
}

SEC("cgroup/recvmsg6")
int kubenet_recvmsg6(struct bpf_sock_addr *ctx)
{
	return sock_name_ipv6(ctx);
}

SEC("cgroup/getpeername4")
int kubenet_getpeername4(struct bpf_sock_addr *ctx)
{
	return sock_name_ipv4(ctx);
}

SEC("cgroup/getpeername6")
int kubenet_getpeername6(struct bpf_sock_addr *ctx)
{
	return sock_name_ipv6(ctx);
}

/* A UDP socket is closed. */
SEC("cgroup/sock_release")
int kubenet_sock_release(struct bpf_sock *ctx)
{
	__u64 cookie;

	if (ctx->protocol == IPPROTO_UDP) {
		cookie = bpf_get_socket_cookie(ctx);
		bpf_map_delete_elem(&socket_flows, &cookie);
	}
	return SOCK_ALLOW;
}

char _license[] SEC("license") = "Dual BSD/GPL";
