/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Clients that stay with a backend: by their address and never by a port, the
 * same behind every frontend of a Service port. A choice counts for the time
 * that the Service says now, from the client's last new flow on.
 */

/* The backend that the client was given, if it may have it again; or 0. */
static __always_inline
	__u32 F(affine_backend)(const struct F(affinity_key) *key,
				const struct service *service,
				const struct choice *choice, __u64 now)
{
	const __u64 slack = (__u64)KUBENET_CLOCK_SLACK << KUBENET_CLOCK_SHIFT;
	__u64 timeout = (__u64)service->timeout * 1000000000;
	struct affinity *given;
	__u32 id;

	given = bpf_map_lookup_elem(&F(affinity), key);
	/* Nor does one count from further ahead than a CPU's clock can be. */
	if (!given || now - given->last_new + slack > timeout + slack)
		return 0;
	id = given->backend;
	/* Another frontend, or the other side of this one, may have others. */
	if (!F(live_backend)(id, given->generation) || !may_choose(choice, id))
		return 0;
	given->last_new = now;
	return id;
}

/* The backend that a new flow of this client gets, or 0. */
static __noinline __u32 F(stick)(const struct F(tuple) *client,
				 const struct service *service,
				 const struct choice *choice)
{
	struct F(affinity_key) key = { .affinity = service->affinity };
	struct affinity given = { .last_new = now_ns() };
	const struct F(backend) *backend;
	__u32 id;

	copy(key.addr, client->saddr);
	id = F(affine_backend)(&key, service, choice, given.last_new);
	if (id)
		return id;
	backend = F(pick_backend)(choice, &given.backend);
	if (!backend)
		return 0;
	given.generation = backend->generation;
	/*
	 * What is there does not count any more. If another flow of this client
	 * chooses at the same time, the first one's choice stands.
	 */
	if (bpf_map_lookup_elem(&F(affinity), &key))
		bpf_map_delete_elem(&F(affinity), &key);
	if (bpf_map_update_elem(&F(affinity), &key, &given, BPF_NOEXIST) ==
	    -EEXIST) {
		id = F(affine_backend)(&key, service, choice, given.last_new);
		if (id)
			return id;
	}
	return given.backend;
}
