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
};

static __always_inline __u32 choose_slot(const struct choice *choice)
{
	if (choice->hashed)
		return choice->base +
		       ((__u64)choice->hash * choice->count >> 32);
	return choice->base + bpf_get_prandom_u32() % choice->count;
}

#endif
