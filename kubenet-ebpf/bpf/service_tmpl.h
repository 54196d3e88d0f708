/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which Service a destination belongs to, and one of its backends. */

/*
 * One on the address itself wins over a node port, which stands under address
 * zero, where nobody can be. `key` is changed.
 */
static __always_inline const struct service *F(lookup_service)(
	struct F(service_key) *key)
{
	const struct service *service;
	const __u32 *flags;

	if (is_zero(key->addr))
		return NULL;
	service = bpf_map_lookup_elem(&F(services), key);
	if (service)
		return service;
	flags = bpf_map_lookup_elem(&F(node_addrs), &key->addr);
	if (!flags || !(*flags & NODE_ADDR_NODE_PORT))
		return NULL;
	__builtin_memset(&key->addr, 0, sizeof(key->addr));
	return bpf_map_lookup_elem(&F(services), key);
}

static __always_inline const struct service *F(service_of)(
	const struct F(tuple) *tuple)
{
	struct F(service_key) key;

	copy(key.addr, tuple->daddr);
	*(any_word *)&key.port = service_word(tuple->dport, tuple->proto);
	return F(lookup_service)(&key);
}

static __noinline bool F(in_source_range)(const struct service *service,
					  const struct F(tuple) *client)
{
	struct F(source_range) key = {
		.prefix_len = 8 * (sizeof(key.service) + sizeof(key.addr)),
		.service = service->id,
	};

	if (service->flags & SVC_SOURCE_NODE &&
	    bpf_map_lookup_elem(&F(node_addrs), &client->saddr))
		return true;
	copy(key.addr, client->saddr);
	return bpf_map_lookup_elem(&F(source_ranges), &key);
}

/* Whether this client may reach the Service; Route::admits() of kubenet-core. */
static __always_inline bool F(admits)(const struct service *service,
				      const struct F(tuple) *client)
{
	return !(service->flags & SVC_SOURCE_RANGES) ||
	       F(in_source_range)(service, client);
}

/*
 * Where a flow comes from, as the flag that says whether such flows are
 * masqueraded. NodeRouting::origin() of kubenet-core is the same rule.
 */
static __noinline __u32 F(origin)(const struct F(tuple) *tuple, __u32 ifindex)
{
	struct F(lpm) pod = { .prefix_len = 8 * sizeof(pod.addr) };

	if (bpf_map_lookup_elem(&F(node_addrs), &tuple->saddr))
		return SVC_MASQ_NODE;
	copy(pod.addr, tuple->saddr);
	if (bpf_map_lookup_elem(&F(pod_cidrs), &pod) ||
	    bpf_map_lookup_elem(&pod_interfaces, &ifindex))
		return SVC_MASQ_PODS;
	return SVC_MASQ_OUTSIDE;
}

/* What a flow of this client picks from. None may be picked from an empty set. */
static __always_inline void F(choice)(struct choice *choice,
				      const struct service *service,
				      bool outside,
				      const struct F(tuple) *client)
{
	choice->base = outside ? service->external_base
			       : service->internal_base;
	choice->count = outside ? service->external_count
				: service->internal_count;
	choice->hashed = service->flags & SVC_MAGLEV;
	if (choice->hashed)
		choice->hash = F(client_hash)(&client->saddr);
}

/*
 * A backend that was retired while this packet was on its way is picked all the
 * same: its address stands for a while, and the flow's next packet sees that it
 * is gone.
 */
static __always_inline const struct F(backend) *F(pick_backend)(
	const struct choice *choice, __u32 *id)
{
	__u32 slot;
	const __u32 *entry;

	*id = choice->fixed;
	if (!*id) {
		slot = choose_slot(choice);
		entry = bpf_map_lookup_elem(&slots, &slot);
		if (!entry || !*entry)
			return NULL;
		*id = *entry;
	}
	return bpf_map_lookup_elem(&F(backends), id);
}

/* The backend, if the id still means the one of that generation. */
static __always_inline const struct F(backend) *F(live_backend)(
	__u32 id, __u32 generation)
{
	const struct F(backend) *backend;

	backend = bpf_map_lookup_elem(&F(backends), &id);
	if (!backend || !(backend->flags & BACKEND_ALIVE) ||
	    backend->generation != generation)
		return NULL;
	return backend;
}
