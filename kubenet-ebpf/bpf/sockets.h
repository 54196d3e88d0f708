/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the socket hooks of both families share. */
#ifndef KUBENET_SOCKETS_H
#define KUBENET_SOCKETS_H

#include "common.h"

/* Set by the loader: the size of the maps, a power of two, less one. */
volatile const __u32 dialled_mask = DIALLED - 1;

/* What a socket hook returns to the kernel. */
#define SOCK_REFUSE 0
#define SOCK_ALLOW 1

/* socket_key.pad: what the address in the key is. */
#define PEER_BACKEND 0 /* the backend, where packets really go */
#define PEER_DIALLED 1 /* the frontend, to stay with its backend */

/* Whether the socket is one that the hooks serve. */
static __always_inline bool sock_is_ours(struct bpf_sock_addr *ctx,
					 const struct config *cfg)
{
	return !cfg->netns_cookie ||
	       bpf_get_netns_cookie(ctx) == cfg->netns_cookie;
}

/* Whether new flows of this socket are to be translated. */
static __always_inline bool sock_takes_new(struct bpf_sock_addr *ctx)
{
	const struct config *cfg = get_config();

	if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP)
		return false;
	return cfg && !(cfg->flags & CONFIG_DRAINING) && sock_is_ours(ctx, cfg);
}

/*
 * Node ports on loopback addresses are for this node's own sockets alone: the
 * backend is dialled in their place, and no packet with such an address is ever
 * seen on a device.
 */
static __always_inline bool sock_is_loopback4(const __be32 *addr)
{
	struct lpm4 key = { .prefix_len = 32, .addr = *addr };

	return (bpf_ntohl(*addr) >> 24) == 127 &&
	       bpf_map_lookup_elem(&loopback_nets, &key);
}

static __always_inline bool sock_is_loopback6(const __be32 addr[4])
{
	return false;
}

/* The system call fails with this, or with EPERM where the kernel is old. */
static __always_inline int sock_refuse(int err)
{
	if (have_set_retval)
		bpf_set_retval(-err);
	return SOCK_REFUSE;
}

#endif
