/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Connected UDP sockets: their address is translated once, so that they would
 * stay with a backend that is gone. Which backend a socket was given is kept
 * until the socket is closed (kernel 5.9), for user space to cut those that must
 * choose again. Of a socket that dialled a backend by its own name nothing is.
 */
#ifndef KUBENET_CONNECTED_H
#define KUBENET_CONNECTED_H

#include "sockets.h"

/* This connect() is translated by nobody. */
static __always_inline void forget_connected(struct bpf_sock_addr *ctx)
{
	__u64 cookie;

	if (ctx->protocol != IPPROTO_UDP)
		return;
	cookie = bpf_get_socket_cookie(ctx);
	bpf_map_delete_elem(&socket_flows, &cookie);
}

static __always_inline bool is_connected(const struct bpf_sock *sk)
{
	return sk->state == BPF_TCP_ESTABLISHED;
}

/*
 * Whether the socket is connected to this very address. It hears of nobody else:
 * what is sent for it to a backend would never be answered.
 */
static __always_inline bool is_connected_to4(const struct bpf_sock *sk,
					     const struct service_key4 *key)
{
	/* Both are read: the verifier knows no field by a computed offset. */
	__be32 own = *(volatile const __u32 *)&sk->dst_ip4;
	__be32 mapped = *(volatile const __u32 *)&sk->dst_ip6[3];

	return is_connected(sk) &&
	       key->addr == (sk->family == AF_INET ? own : mapped) &&
	       sk->dst_port == key->port;
}

static __always_inline bool is_connected_to6(const struct bpf_sock *sk,
					     const struct service_key6 *key)
{
	return is_connected(sk) && sk->dst_ip6[0] == key->addr[0] &&
	       sk->dst_ip6[1] == key->addr[1] &&
	       sk->dst_ip6[2] == key->addr[2] &&
	       sk->dst_ip6[3] == key->addr[3] && sk->dst_port == key->port;
}

/* An address in the form that both families share. */
static __always_inline void any_family4(__be32 to[4], const __be32 *addr)
{
	to[0] = to[1] = 0;
	to[2] = bpf_htonl(0xffff);
	to[3] = *addr;
}

static __always_inline void any_family6(__be32 to[4], const __be32 addr[4])
{
	__builtin_memcpy(to, addr, 4 * sizeof(*to));
}

#endif
