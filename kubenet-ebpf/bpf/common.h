/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What every other header stands on: constants of the loader, time, counters. */
#ifndef KUBENET_COMMON_H
#define KUBENET_COMMON_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/icmpv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#include "types.h"
#include "maps.h"

/* Set by the loader before load; the verifier removes what they switch off. */
/* bpf_ktime_get_coarse_ns(): kernel 5.11. */
volatile const __u32 have_coarse_clock = 1;
/* bpf_set_retval() in the socket hooks: kernel 5.18. */
volatile const __u32 have_set_retval = 1;
/* Direct server return: see dsr.h. */
volatile const __u32 have_dsr = 0;
/* Packets go straight into the pods' namespaces: see send_to_pod(). */
volatile const __u32 have_peer = 0;
/*
 * BPF_FIB_LOOKUP_SKIP_NEIGH, which spares a lookup: kernel 6.3. 0 before, and with
 * have_peer, which needs the neighbour.
 */
volatile const __u32 fib_flags = 0;

/*
 * TC programs are at external devices: what XDP passes and what the socket hooks
 * let out meets them.
 */
volatile const __u32 has_external_tc = 1;

/* Missing from the C library's headers, which cannot be mixed with linux/. */
#define AF_INET 2
#define AF_INET6 10

/* The coarse clock does not ask the hardware. */
static __always_inline __u64 now_ns(void)
{
	return have_coarse_clock ? bpf_ktime_get_coarse_ns()
				 : bpf_ktime_get_ns();
}

/* The last tick that was read, behind the jiffy of then: one word, never torn. */
static volatile __u64 last_tick;

/*
 * Ticks of about a second, which user space can read, too: see
 * KUBENET_CLOCK_SHIFT. The clock is asked once in a jiffy: a call costs as much
 * as a look-up in a map, and a jiffy is read in place.
 */
static __always_inline __u32 now_ticks(void)
{
	__u32 jiffy = bpf_jiffies64();
	__u64 last = last_tick;
	__u32 now;

	if (last >> 32 == jiffy)
		return last;
	now = now_ns() >> KUBENET_CLOCK_SHIFT;
	last_tick = (__u64)jiffy << 32 | now;
	return now;
}

static __always_inline void count(__u32 metric)
{
	__u64 *counter = bpf_map_lookup_elem(&metrics, &metric);

	if (counter)
		++*counter;
}

/* A verdict with its reason in it, until F(final)() makes TC_ACT_SHOT of it. */
#define DROPPED 256

static __always_inline bool is_dropped(int verdict)
{
	return verdict >= DROPPED && verdict < DROPPED + METRIC_MAX;
}

static __always_inline int drop(__u32 metric)
{
	count(metric);
	return DROPPED + metric;
}

static __always_inline const struct config *get_config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&config, &zero);
}

/*
 * Addresses are one word (IPv4) or four (IPv6). These treat both alike, so
 * that the templates are written once.
 */
#define copy(to, from)                                                      \
	({                                                                  \
		_Static_assert(sizeof(to) == sizeof(from), "sizes differ"); \
		__builtin_memcpy(&(to), &(from), sizeof(to));               \
	})

#define same(a, b)                                                      \
	({                                                              \
		_Static_assert(sizeof(a) == sizeof(b), "sizes differ"); \
		same_words(&(a), &(b), sizeof(a) / sizeof(__u32));      \
	})

static __always_inline bool same_words(const void *a, const void *b,
				       __u32 words)
{
	const __u32 *x = a, *y = b;
	__u32 difference = 0;

#pragma unroll
	for (__u32 i = 0; i < words; i++)
		difference |= x[i] ^ y[i];
	return !difference;
}

#define is_zero(a) is_zero_words(&(a), sizeof(a) / sizeof(__u32))

static __always_inline bool is_zero_words(const void *a, __u32 words)
{
	const __u32 *x = a;
	__u32 any = 0;

#pragma unroll
	for (__u32 i = 0; i < words; i++)
		any |= x[i];
	return !any;
}

/*
 * What is hashed or read in words later is written in words, too: a CPU that
 * reads what it wrote in parts a moment ago waits until it is in the cache.
 */
typedef __u32 __attribute__((may_alias)) any_word;

/* Two 16-bit fields, one behind the other. */
static __always_inline __u32 two(__u16 first, __u16 second)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return first | (__u32)second << 16;
#else
	return (__u32)first << 16 | second;
#endif
}

/* Source and destination port stand one behind the other. */
static __always_inline void set_ports(__be16 *ports, __u32 both)
{
	*(any_word *)ports = both;
}

static __always_inline __u32 get_ports(const __be16 *ports)
{
	return *(const any_word *)ports;
}

/* The same the other way round. */
static __always_inline __u32 turn_ports(const __be16 *ports)
{
	__u32 both = get_ports(ports);

	return both << 16 | both >> 16;
}

/* A protocol and the zeros behind it. */
static __always_inline void set_proto(__u8 *proto, __u8 to)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	*(any_word *)proto = to;
#else
	*(any_word *)proto = (__u32)to << 24;
#endif
}

/* One's complement sums, as in the kernel. */
static __always_inline __u32 csum_add(__u32 sum, __u32 more)
{
	sum += more;
	return sum + (sum < more);
}

/* What a change of a few words adds to one; cheaper than a call of a helper. */
static __always_inline __u32 csum_words(const void *from, const void *to,
					__u32 words)
{
	const __u32 *x = from, *y = to;
	__u64 sum = 0;

#pragma unroll
	for (__u32 i = 0; i < words; i++)
		sum += (__u64)(__u32)~x[i] + y[i];
	return csum_add(sum, sum >> 32);
}

/* What a change of one 16-bit word adds to a sum. */
static __always_inline __u32 csum_change(__u32 sum, __u16 from, __u16 to)
{
	return csum_add(csum_add(sum, (__u16)~from), to);
}

/* The sum of a few words, for csum_fold64(). */
static __always_inline __u64 sum_words(const void *from, __u32 words)
{
	const __u32 *x = from;
	__u64 sum = 0;

#pragma unroll
	for (__u32 i = 0; i < words; i++)
		sum += x[i];
	return sum;
}

/* What is added to take so many words away again, of which this is the sum. */
static __always_inline __u64 without_words(__u64 sum, __u32 words)
{
	return words * 0xffffffffull - sum;
}

/* Of a sum of less than 65,535 words. */
static __always_inline __u16 csum_fold64(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline __u16 csum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

#endif
