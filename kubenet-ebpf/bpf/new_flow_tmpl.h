/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The first packet of a flow: picks a backend and remembers it. */

/* In the ports of this instance, then in those of all. */
#define SNAT_OWN_TRIES 12
#define SNAT_TRIES 16

/*
 * Gives the flow a random port that is free: with CT_SNAT one of this node's, else
 * one of the client's own address, as netfilter does where a tuple is taken.
 */
static __always_inline int F(masquerade)(struct F(new_entry) *entry)
{
	struct F(tuple) *target = &entry->target;
	const struct config *cfg = get_config();
	__u32 first, ports;

	if (!cfg || cfg->snat_port_max < cfg->snat_port_min)
		return -EEXIST;
	if (entry->flags & CT_SNAT)
		F(snat)(&target->saddr, cfg);
	if (is_zero(target->saddr))
		return -EEXIST;
	first = cfg->snat_port_min;
	ports = cfg->snat_port_max - first + 1;
	for (int i = 0; i < SNAT_TRIES; i++) {
		bool hurry = i >= SNAT_TRIES / 2;
		int err;

		entry->udp_idle = hurry ? UDP_HURRY : UDP_IDLE;
		entry->closed = hurry ? LAST_ACK : TIME_WAIT;
		/* Better a port that may be refused for a second than none. */
		if (i == SNAT_TRIES - 1)
			entry->closed = 0;

		if (i == SNAT_OWN_TRIES && cfg->snat_wide_min &&
		    cfg->snat_wide_max >= cfg->snat_wide_min) {
			first = cfg->snat_wide_min;
			ports = cfg->snat_wide_max - first + 1;
		}
		/* An SCTP client has its port, if nobody else has it. */
		if (i || target->proto != IPPROTO_SCTP)
			target->sport = bpf_htons(
				first + bpf_get_prandom_u32() % ports);
		err = F(ct_create)();
		if (err != -EEXIST)
			return err;
	}
	return -EEXIST;
}

/*
 * Whether a backend is on this node: its endpoint says so, or it has an address
 * of the node. What is masqueraded for that one, the stack would drop.
 */
static __always_inline bool F(is_here)(const struct F(backend) *backend)
{
	const __u32 *flags;

	if (backend->flags & BACKEND_LOCAL)
		return true;
	flags = bpf_map_lookup_elem(&F(node_addrs), &backend->addr);
	return flags && *flags & NODE_ADDR_LOCAL;
}

/*
 * Fills `target`. The client's own port is kept if it can be: when another
 * flow has it already on the way to the same backend, another backend may do
 * where the pick is random, else another port tells the two apart. The address
 * changes only where it must: the stack drops what comes from outside with one of
 * the node's.
 */
static __always_inline int F(assign)(struct F(new_entry) *entry,
				     const struct choice *choice,
				     bool masquerade, bool outside)
{
	const struct F(tuple) *tuple = &entry->key[0];
	struct F(tuple) *target = &entry->target;
	bool found = false;
	int err;

	entry->closed = 0;
	entry->udp_idle = UDP_IDLE;
	for (int i = 0; i < 2; i++) {
		const struct F(backend) *backend;

		backend = F(pick_backend)(choice, &entry->backend);
		if (!backend)
			continue;
		found = true;
		entry->generation = backend->generation;
		copy(target->saddr, tuple->saddr);
		copy(target->daddr, backend->addr);
		set_ports(&target->sport, two(tuple->sport, backend->port));
		set_proto(&target->proto, tuple->proto);
		/* A backend that reaches itself would answer itself. */
		entry->flags &= ~CT_SNAT;
		if (same(backend->addr, tuple->saddr)) {
			entry->flags |= CT_SNAT;
			break;
		}
		if (masquerade && !F(is_here)(backend)) {
			if (!have_dsr || !outside) {
				entry->flags |= CT_SNAT;
				break;
			}
			entry->flags |= CT_DIRECT;
		}
		err = F(ct_create)();
		if (err != -EEXIST)
			return err;
		if (entry->flags & CT_DIRECT)
			entry->flags ^= CT_DIRECT | CT_SNAT;
	}
	if (!found)
		return -EHOSTUNREACH;
	return F(masquerade)(entry);
}

/* TRANSLATE: the flow is known from now on, and `target` filled; or REJECT. */
static __noinline int F(new_flow)(struct packet *pkt,
				  const struct F(tuple) *tuple,
				  const struct service *service,
				  struct F(tuple) *target)
{
	__u32 origin = F(origin)(tuple, pkt->ifindex);
	bool outside = origin == SVC_MASQ_OUTSIDE;
	__u32 bytes = pkt->looked_at ? 0 : packet_bytes(pkt);
	struct F(new_entry) *entry = F(get_new_entry)();
	struct choice choice = {};

	if (!entry)
		return drop(METRIC_DROP_CONNTRACK_FULL);
	entry->key[0] = *tuple;
	entry->service = service->id;
	entry->service_generation = service_generation(service->id);
	entry->flags = service->flags & SVC_CUTS;
	entry->last_seen = now_ticks();
	if (!F(admits)(service, tuple))
		return drop(METRIC_DROP_SOURCE_RANGE);
	F(choice)(&choice, service, outside, tuple);
	if (!choice.count) {
		if (service->flags &
		    (outside ? SVC_EXTERNAL_DROP : SVC_INTERNAL_DROP))
			return drop(METRIC_DROP_NO_LOCAL_BACKEND);
		return REJECT;
	}
	if (service->affinity)
		choice.fixed = F(stick)(tuple, service, &choice);
	if (!F(ct_claim)(entry))
		return drop(METRIC_DROP_CONNTRACK_FULL);
	switch (F(assign)(entry, &choice, service->flags & origin, outside)) {
	case 0:
		*target = entry->target;
		pkt->direct = entry->flags & CT_DIRECT;
		count(METRIC_NEW_FLOW);
		connect_service(entry->service, entry->service_generation,
				bytes);
		F(connect_backend)(entry->backend, entry->generation, bytes);
		return TRANSLATE;
	case -EHOSTUNREACH:
		return drop(METRIC_DROP_ROUTE);
	case -EEXIST:
		return drop(METRIC_DROP_SNAT_EXHAUSTED);
	default:
		return drop(METRIC_DROP_CONNTRACK_FULL);
	}
}
