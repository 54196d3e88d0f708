/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The table of flows: an array of pairs, and an index of it.
 *
 * Both directions of a flow stand side by side, so that a packet of a known flow
 * touches one line of the index and one or two of the pair. The index is made of
 * buckets of one line. Each slot has a place, which is half a pair, and a tag:
 * other bits of the hash than those that the bucket is chosen by. A full bucket's
 * flows go to its neighbour, and it says how many did.
 *
 * Who looks takes no lock, and compares the whole key, which is in the pair. Who
 * writes a slot does so under a lock. No function may be called under one, so
 * that it looks before, and again if a slot was filled meanwhile.
 *
 * Most buckets may be empty, and most packets of no flow. How many slots are
 * filled is kept apart, a byte for a bucket and its neighbour: that mostly is in
 * the cache, while for a bucket a packet waits longer than for all else together.
 *
 * A pair belongs to who emptied its client's slot, until it is free or linked
 * again. Free ones are found by a hand that goes round over the array: each CPU
 * is given a few pairs at a time, and looks through them by itself.
 */
#ifndef KUBENET_FLOWS_H
#define KUBENET_FLOWS_H

#include "conntrack.h"

/*
 * Set by the loader: sizes of the maps, and a secret that keeps buckets unforeseen.
 */
volatile const __u32 flow_pairs = FLOW_PAIRS;
volatile const __u32 flow_mask = FLOW_BUCKETS - 1;
volatile const struct flow_seed flow_secret = {
	.word = { 0x243f6a8885a308d3, 0x13198a2e03707344, 0xa4093822299f31d0,
		  0x082efa98ec4e6c89, 0x452821e638d01377, 0xbe5466cf34e90c6c,
		  0xc0ac29b7c97c50dd, 0x3f84d5b5b5470917, 0x9216d5d98979fb1b,
		  0xd1310ba698dfb5ac, 0x2ffd72dbd01adfb7 },
};

/*
 * Whether packets from this port may answer a flow. Of those that leave the node
 * most do not, and to look for their flow costs a line of the cache that nobody
 * else needs: this is one of a thousand.
 */
static __always_inline bool may_answer(__be16 port)
{
	const struct backend_ports *ports;
	__u32 zero = 0;

	ports = bpf_map_lookup_elem(&backend_ports, &zero);
	return ports && ports->seen[port];
}

/* Before the flow is to be found. Nobody takes it back. */
static __always_inline void note_backend_port(__be16 port)
{
	struct backend_ports *ports;
	__u32 zero = 0;

	ports = bpf_map_lookup_elem(&backend_ports, &zero);
	if (ports && !ports->seen[port])
		ports->seen[port] = true;
}

/* Pairs that are looked at before the best of them has to do. */
#define FLOW_LOOKS 32
/* The same of those that are drawn by lot, where the others were all answered. */
#define FLOW_DRAWS 16
#define FLOW_DRAWN 0x40000000
/* Tries to write a slot while others write to its bucket, too. */
#define FLOW_TRIES 4

/* How well a pair does for another flow, beside how long it was silent. */
#define WORTH_FREE 0xffffffff
#define WORTH_AT_ONCE 0xfffffffe
#define WORTH_CLOSED 0x03000000
#define WORTH_UNANSWERED 0x02000000
#define WORTH_ONE_WAY 0x01000000
#define WORTH_IDLE 0x00ffffff

/*
 * Multilinear hashing with a secret seed: for any two keys, a client cannot make
 * the sums alike. Those of keys that follow each other do so, too, and would fill
 * some buckets for some seeds: what comes after it leaves nothing of that.
 */
static __always_inline __u32 flow_hash(const void *key, __u32 words, __u8 proto)
{
	const any_word *word = key;
	__u64 sum = flow_secret.word[FLOW_SEED - 1];

#pragma unroll
	for (__u32 i = 0; i + 1 < words; i += 2) {
		sum += (flow_secret.word[i] + word[i]) *
		       (flow_secret.word[i + 1] + word[i + 1]);
		/* One after the other, for the stack's sake. */
		asm volatile("" : "+r"(sum) : : "memory");
	}
	sum += (flow_secret.word[words - 1] + word[words - 1]) *
	       (flow_secret.word[words] + proto);
	sum ^= sum >> 32;
	return sum * 0x9e3779b97f4a7c15 >> 32;
}

/* Never 0, as that of an empty slot is. */
static __always_inline __u32 flow_tag(__u32 hash)
{
	return hash & FLOW_TAG ?: FLOW_PLACE + 1;
}

/* Both buckets of a pair have one. */
static __always_inline struct flow_lock *flow_lock_of(__u32 hash)
{
	__u32 stripe = ((hash & flow_mask) >> 1) % FLOW_LOCKS;

	return bpf_map_lookup_elem(&flow_locks, &stripe);
}

static __always_inline __u32 flow_state(const struct flow_bucket *bucket)
{
	return *(const volatile __u32 *)&bucket->state;
}

static __always_inline __u32 flow_slot(const struct flow_bucket *bucket,
				       __u32 i)
{
	return *(const volatile __u32 *)&bucket->slot[i];
}

/*
 * The first slot with this value, or FLOW_SLOTS. Without a branch, each of which
 * the verifier would follow.
 */
static __always_inline __u32 flow_slot_with(const struct flow_bucket *bucket,
					    __u32 value)
{
	__u64 at = FLOW_SLOTS;

#pragma unroll
	for (int i = FLOW_SLOTS - 1; i >= 0; i--) {
		__u64 other = flow_slot(bucket, i) ^ value;
		__u64 found = (other - 1) >> 63;

		/* The compiler would make one of it. */
		asm volatile("" : "+r"(found));
		at ^= (at ^ i) & -found;
	}
	return at & 0xf;
}

/*
 * The same address, for what is to be read after `value`: a CPU that reads out of
 * order keeps to what addresses are made of.
 */
#define read_after(at, value)                            \
	({                                               \
		__u64 nothing = (value);                 \
		asm volatile("%0 &= 0" : "+r"(nothing)); \
		(void *)(at) + nothing;                  \
	})

#endif
