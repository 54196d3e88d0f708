/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows that begin and packets that are dropped, for who listens. Nobody does,
 * mostly: then a flow's first packet pays for one look into an array, and all
 * others for nothing. Whoever listens says so anew each second, so that a reader
 * that dies leaves nothing switched on.
 */
#ifndef KUBENET_EVENTS_H
#define KUBENET_EVENTS_H

#include "common.h"

static __always_inline const struct listeners *get_listeners(void)
{
	const struct listeners *found;
	__u32 zero = 0;

	found = bpf_map_lookup_elem(&listeners, &zero);
	return found && (found->until[0] || found->until[1]) ? found : NULL;
}

/* Nobody says that he listens for longer than this, in ticks. */
#define LEASE_MOST 128

static __always_inline bool listens(__u32 until, __u32 now)
{
	return until && until - now - 1 < LEASE_MOST;
}

/* Whether this CPU may report another event in this tick. */
static __always_inline bool within_budget(const struct listeners *all,
					  __u32 now)
{
	struct event_budget *budget;
	__u32 zero = 0;

	budget = bpf_map_lookup_elem(&event_budget, &zero);
	if (!budget)
		return false;
	if (budget->tick != now) {
		budget->tick = now;
		budget->used = 0;
	}
	if (budget->used < (all->budget ?: EVENT_BUDGET)) {
		budget->used++;
		return true;
	}
	count(METRIC_EVENT_OVER_BUDGET);
	return false;
}

static __noinline void report(struct event *event)
{
	const struct listeners *all = get_listeners();
	__u32 now = now_ticks();
	bool own, follower;

	if (!all || !event)
		return;
	own = listens(all->until[0], now);
	follower = listens(all->until[1], now);
	if ((!own && !follower) || !within_budget(all, now))
		return;
	if (own && bpf_ringbuf_output(&events, event, sizeof(*event), 0))
		count(METRIC_EVENT_LOST);
	if (follower && bpf_ringbuf_output(&followed, event, sizeof(*event), 0))
		count(METRIC_EVENT_LOST_TO_FOLLOWER);
}

#endif
