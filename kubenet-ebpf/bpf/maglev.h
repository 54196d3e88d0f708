/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The hash of a client's address that says which slot of a table is the
 * client's, as kubenet_core::maglev specifies it. No port counts.
 */
#ifndef KUBENET_MAGLEV_H
#define KUBENET_MAGLEV_H

#include "common.h"

static __always_inline __u64 maglev_mix(__u64 x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

/* As that of the address mapped into IPv6, of which the upper half is zero. */
static __always_inline __u32 client_hash4(const __be32 *addr)
{
	return maglev_mix(0x0000ffff00000000ULL | bpf_ntohl(*addr)) >> 32;
}

static __always_inline __u32 client_hash6(const __be32 (*addr)[4])
{
	const __be32 *word = *addr;
	__u64 hi = (__u64)bpf_ntohl(word[0]) << 32 | bpf_ntohl(word[1]);
	__u64 lo = (__u64)bpf_ntohl(word[2]) << 32 | bpf_ntohl(word[3]);

	return maglev_mix(maglev_mix(hi) ^ lo) >> 32;
}

#endif
