/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How a flow to a Service picks a backend, whatever its family. */
#ifndef KUBENET_SERVICE_H
#define KUBENET_SERVICE_H

#include "common.h"

/* The slots that a flow may pick from. */
struct choice {
	__u32 base;
	__u32 count;
	/* SVC_MAGLEV: the client has one of them, by this hash. */
	bool hashed;
	__u32 hash;
	/* Not 0: the backend that the client stays with. */
	__u32 fixed;
};

/* What stands behind the address in the key of a service. */
static __always_inline __u32 service_word(__be16 port, __u8 proto)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return two(port, proto);
#else
	return two(port, (__u16)proto << 8);
#endif
}

static __always_inline __u32 choose_slot(const struct choice *choice)
{
	if (choice->hashed)
		return choice->base +
		       ((__u64)choice->hash * choice->count >> 32);
	return choice->base + bpf_get_prandom_u32() % choice->count;
}

/* Slots are at most 1 << 26. */
#define MAX_HALVINGS 27

/*
 * Whether slots that hold ids in order hold this one. Not static: the verifier
 * looks at it once, and not again at each call.
 */
__noinline int is_member(__u32 first, __u32 count, __u32 id)
{
	const __u32 *entry;

	for (int i = 0; i < MAX_HALVINGS && count; i++) {
		__u32 slot = first + count / 2;

		entry = bpf_map_lookup_elem(&slots, &slot);
		if (!entry)
			return false;
		if (*entry == id)
			return true;
		if (*entry < id) {
			first = slot + 1;
			count = (count - 1) / 2;
		} else {
			count /= 2;
		}
	}
	return false;
}

/*
 * Whether a backend is one of the set. The ids stand in order in the slots to
 * pick from, or in the list behind those of Maglev.
 */
static __always_inline bool may_choose(const struct choice *choice, __u32 id)
{
	__u32 list = choice->base + choice->count;
	const __u32 *length;

	if (!choice->hashed)
		return is_member(choice->base, choice->count, id);
	length = bpf_map_lookup_elem(&slots, &list);
	return length && is_member(list + 1, *length, id);
}

#endif
