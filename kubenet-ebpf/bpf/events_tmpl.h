/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* See events.h. */

static __noinline void F(report_flow)(const struct F(tuple) *tuple,
				      const struct F(tuple) *target)
{
	struct event event = {
		.kind = EVENT_FLOW,
		.family = FAMILY,
		.proto = tuple->proto,
		.client_port = tuple->sport,
		.frontend_port = tuple->dport,
		.backend_port = target->dport,
	};

	__builtin_memcpy(event.client, &tuple->saddr, sizeof(tuple->saddr));
	__builtin_memcpy(event.frontend, &tuple->daddr, sizeof(tuple->daddr));
	__builtin_memcpy(event.backend, &target->daddr, sizeof(target->daddr));
	report(&event);
}

static __noinline void F(report_drop)(const struct F(tuple) *tuple,
				      __u32 metric)
{
	struct event event = {
		.kind = EVENT_DROP,
		.family = FAMILY,
		.proto = tuple->proto,
		.reason = metric,
		.client_port = tuple->sport,
		.frontend_port = tuple->dport,
	};

	__builtin_memcpy(event.client, &tuple->saddr, sizeof(tuple->saddr));
	__builtin_memcpy(event.frontend, &tuple->daddr, sizeof(tuple->daddr));
	report(&event);
}

static __always_inline void F(tell_flow)(const struct F(tuple) *tuple,
					 const struct F(tuple) *target)
{
	if (get_listeners())
		F(report_flow)(tuple, target);
}

static __always_inline void F(tell_drop)(const struct F(tuple) *tuple,
					 __u32 metric)
{
	if (get_listeners())
		F(report_drop)(tuple, metric);
}

/* What is returned to the kernel for a verdict; a drop is told with its reason. */
static __always_inline int F(final)(const struct F(tuple) *tuple, int verdict)
{
	if (!is_dropped(verdict))
		return verdict;
	F(tell_drop)(tuple, verdict - DROPPED);
	return TC_ACT_SHOT;
}
