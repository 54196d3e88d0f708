/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every flow has a pair of entries, side by side:
 *
 *	client -> frontend	becomes	client or node -> backend
 *	backend -> client or node	becomes	frontend -> client	(CT_REPLY)
 *
 * so that the key of one is what the other's packets become, turned round.
 */

static __always_inline void F(reverse)(struct F(tuple) *to,
				       const struct F(tuple) *from)
{
	copy(to->saddr, from->daddr);
	copy(to->daddr, from->saddr);
	set_ports(&to->sport, turn_ports(&from->sport));
	set_proto(&to->proto, from->proto);
}

/* What a packet of this entry becomes. */
static __always_inline void F(ct_target)(struct F(tuple) *to,
					 const struct F(conntrack) *ct,
					 __u8 proto)
{
	copy(to->saddr, ct->saddr);
	copy(to->daddr, ct->daddr);
	set_ports(&to->sport, get_ports(&ct->sport));
	set_proto(&to->proto, proto);
}

/*
 * Whether the pair was not given to another flow while `read` was read of it. That
 * is as good as never, unless a flood takes the pairs that nobody answered.
 */
static __always_inline bool F(ct_stays)(const struct F(conntrack) *ct,
					const struct F(tuple) *tuple,
					__u64 read)
{
	const struct F(conntrack) *again = read_after(ct, read);

	return *(const volatile __u32 *)&again->key.sport ==
	       get_ports(&tuple->sport);
}

/* The same of a target. */
static __always_inline bool F(ct_kept)(const struct F(conntrack) *ct,
				       const struct F(tuple) *tuple,
				       const struct F(tuple) *target)
{
	/* To be read again, not to be spilled. */
	asm volatile("" : : "r"(target) : "memory");
	return F(ct_stays)(ct, tuple,
			   sum_words(target, sizeof(*target) / sizeof(__u32)));
}

/* The key of the other direction. */
static __always_inline void F(ct_peer_key)(struct F(tuple) *key,
					   const struct F(conntrack) *ct,
					   __u8 proto)
{
	copy(key->saddr, ct->daddr);
	copy(key->daddr, ct->saddr);
	set_ports(&key->sport, turn_ports(&ct->sport));
	set_proto(&key->proto, proto);
}

static __always_inline void F(ct_forget)(const struct packet *pkt)
{
	F(ct_drop)((pkt->place & FLOW_PLACE) >> 1, 0);
}

/*
 * Whether a packet from a backend answers a flow that is still there. Without
 * this, a client that dials the backend itself from a port that it used for
 * the Service before would have its answers translated.
 */
static __always_inline enum flow F(ct_check_reply)(const struct packet *pkt,
						   const struct F(pair) *pair,
						   __u32 now)
{
	if (is_connection(pkt)) {
		if (!is_syn_ack(pkt))
			return FLOW_KNOWN;
		if (!older(pair->half[0].last_seen, now, SYN_ANSWER) &&
		    !F(ct_closed)(pair))
			return FLOW_KNOWN;
	} else {
		/* The other half is seldom needed. */
		if (!older(pair->half[1].last_seen, now, UDP_IDLE) ||
		    !F(ct_idle)(pair, now, UDP_IDLE))
			return FLOW_KNOWN;
	}
	F(ct_forget)(pkt);
	return FLOW_NOT_OURS;
}

/*
 * Whether the frontend has the flow's backend for it still. That is looked up when
 * the frontend has lost one since. Apart, as few packets do.
 */
static __noinline bool F(ct_may_keep)(const struct F(tuple) *tuple,
				      struct F(conntrack) *ct,
				      const struct service *service,
				      __u32 ifindex)
{
	bool outside = F(origin)(tuple, ifindex) == SVC_MASQ_OUTSIDE;
	struct choice choice = {};

	F(choice)(&choice, service, outside, tuple);
	if (!choice.count || !may_choose(&choice, ct->backend))
		return false;
	ct->flags = (ct->flags & ~SVC_CUTS) | (service->flags & SVC_CUTS);
	return true;
}

/*
 * Whether a packet from a client may stay with its backend. An established
 * connection does so until it ends; a new connection or a datagram only while the
 * frontend is the same Service's and admits it, and the backend is in use.
 * While draining,
 * nobody says when a backend goes: a datagram stays only if answers came lately.
 */
static __always_inline bool F(ct_may_stay)(const struct packet *pkt,
					   const struct F(tuple) *tuple,
					   struct F(pair) *pair, __u32 now)
{
	struct F(conntrack) *ct = &pair->half[0];
	const struct F(backend) *backend;
	const struct service *service;
	const struct config *cfg;
	bool draining;

	if (is_connection(pkt) && !is_syn(pkt))
		return true;
	service = F(service_of)(tuple);
	if (!service || service->id != ct->service ||
	    !F(admits)(service, tuple))
		return false;
	backend = F(live_backend)(ct->backend, ct->generation);
	if (!backend)
		return false;
	if ((ct->flags ^ service->flags) & SVC_CUTS &&
	    !F(ct_may_keep)(tuple, ct, service, pkt->ifindex))
		return false;
	cfg = get_config();
	draining = cfg && cfg->flags & CONFIG_DRAINING;
	if (is_connection(pkt)) {
		if (draining || backend->flags & BACKEND_TERMINATING)
			return false;
		return !F(ct_closed)(pair);
	}
	if (draining)
		return !older(pair->half[1].last_seen, now, UDP_HURRY);
	return !older(ct->last_seen, now, UDP_IDLE) ||
	       !F(ct_idle)(pair, now, UDP_IDLE);
}

/* The beginning of a connection, or a datagram. Apart, for the stack's sake. */
static __noinline enum flow F(ct_check_begin)(const struct packet *pkt,
					      const struct F(tuple) *tuple,
					      struct F(pair) *pair, __u32 now)
{
	if (pkt->place & CT_REPLY)
		return F(ct_check_reply)(pkt, pair, now);
	if (F(ct_may_stay)(pkt, tuple, pair, now))
		return FLOW_KNOWN;
	F(ct_forget)(pkt);
	return FLOW_NEW;
}

static __always_inline enum flow F(ct_check)(const struct packet *pkt,
					     const struct F(tuple) *tuple,
					     struct F(pair) *pair, __u32 now)
{
	/* In both directions, an established connection goes on. */
	if (is_connection(pkt) && !(pkt->tcp_flags & TCP_SYN))
		return FLOW_KNOWN;
	return F(ct_check_begin)(pkt, tuple, pair, now);
}

/* Notes what the packet says about its flow. */
static __always_inline void F(ct_touch)(const struct packet *pkt,
					struct F(pair) *pair, __u32 now)
{
	struct F(conntrack) *ct = F(half)(pair, pkt->place);
	bool settle = false;
	__u32 flags = 0;

	F(count_packet)(pkt, ct);
	if (pkt->tcp_flags & TCP_FIN)
		flags |= CT_FIN;
	if (pkt->tcp_flags & TCP_RST)
		flags |= CT_RST;
	if ((ct->flags & (CT_REPLY | CT_SEEN_REPLY)) == CT_REPLY) {
		/* The backend answers for the first time. */
		pair->half[0].flags |= CT_SEEN_REPLY;
		flags |= CT_SEEN_REPLY;
		/* Often it is the only answer. */
		settle = true;
	}
	/* No answer comes by here, but the client goes on as if there were one. */
	if (have_dsr && ct->flags & CT_DIRECT && !(ct->flags & CT_REPLY) &&
	    is_connection(pkt) && !is_syn(pkt))
		flags |= CT_SEEN_REPLY;
	if (ct->last_seen != now) {
		ct->last_seen = now;
		ct->route.ifindex = 0;
		if (!is_connection(pkt))
			flags |= CT_LASTS;
		settle = true;
	}
	if (flags & ~ct->flags)
		ct->flags |= flags;
	if (settle || F(must_settle)(ct))
		F(settle)(pair, pkt->place & CT_REPLY);
}

/*
 * Whether another flow gives up the answers' tuple: it was closed at least
 * entry->closed ticks ago, or is UDP and was silent for entry->udp_idle. Or it is
 * the same flow, which another CPU just made or its client begins anew.
 */
static __always_inline bool F(ct_gives_way)(const struct F(new_entry) *entry,
					    __u32 place)
{
	__u32 idle = entry->target.proto == IPPROTO_UDP ? entry->udp_idle
							: TCP_IDLE;
	const struct F(pair) *owner = F(pair_at)(place);

	if (!owner)
		return false;
	if (F(ct_is)(&owner->half[0], &entry->key[0]))
		return true;
	if (F(ct_closed)(owner))
		idle = entry->closed;
	return F(ct_idle)(owner, entry->last_seen, idle);
}

static __always_inline void F(ct_set)(struct F(conntrack) *ct,
				      const struct F(new_entry) *entry,
				      const struct F(tuple) *key)
{
	__builtin_memcpy(&ct->key, key, sizeof(ct->key));
	ct->service = entry->service;
	ct->backend = entry->backend;
	ct->last_seen = entry->last_seen;
	ct->route.ifindex = 0;
	ct->packets = 0;
	ct->bytes = 0;
}

/* Nobody is to find half of it: the flags, with the protocol, come last. */
static __always_inline void F(ct_write)(struct F(pair) *pair,
					struct F(new_entry) *entry)
{
	__u32 flags = entry->flags | (__u32)entry->target.proto
					     << CT_PROTO_SHIFT;
	struct F(conntrack) *there = &pair->half[0], *back = &pair->half[1];

	F(ct_set)(there, entry, &entry->key[0]);
	there->generation = entry->generation;
	__builtin_memcpy(&there->saddr, &entry->target, sizeof(there->key));
	F(ct_set)(back, entry, &entry->key[1]);
	back->generation = entry->service_generation;
	copy(back->saddr, entry->key[0].daddr);
	copy(back->daddr, entry->key[0].saddr);
	set_ports(&back->sport, turn_ports(&entry->key[0].sport));
	asm volatile("" ::: "memory");
	back->flags = flags | CT_REPLY;
	there->flags = flags;
}

/*
 * Makes the flow of the CPU's new_entry known with its target, in both directions,
 * or in none. -EEXIST: another flow has the answers' tuple, see ct_gives_way().
 *
 * The slot for the answers comes first. Its lock has all other CPUs see the pair
 * written before the client's slot, which is filled under the next one.
 */
__noinline int F(ct_create)(void)
{
	struct F(new_entry) *entry = F(get_new_entry)();
	struct F(pair) *pair;
	int found = -ENOSPC;

	if (!entry)
		return -ENOSPC;
	pair = F(pair_at)(entry->pair << 1);
	if (!pair || !entry->pair)
		return -ENOSPC;
	F(reverse)(&entry->key[1], &entry->target);
	note_backend_port(entry->target.dport);
	F(ct_write)(pair, entry);
	for (int try = 0; try < FLOW_TRIES; try++) {
		found = F(ct_link)(CT_REPLY);
		if (found == -EAGAIN)
			continue;
		if (found <= 0)
			break;
		if (!F(ct_gives_way)(entry, found)) {
			found = -EEXIST;
			break;
		}
		F(ct_drop)((found & FLOW_PLACE) >> 1, 0);
		found = -EAGAIN;
	}
	if (found) {
		pair->half[1].flags = 0;
		pair->half[0].flags = CT_CLAIMED;
		return found;
	}
	for (int try = 0; try < FLOW_TRIES; try++) {
		found = F(ct_link)(0);
		if (found == -EAGAIN)
			continue;
		if (found <= 0)
			break;
		/* The newest flow of a client is the one that it means. */
		F(ct_drop)((found & FLOW_PLACE) >> 1, 0);
		found = -EAGAIN;
	}
	if (found) {
		pair->half[1].flags = 0;
		F(ct_unlink)(F(ct_hash)(&entry->key[1], entry->key[1].proto),
			     (entry->pair << 1 | 1) & FLOW_PLACE);
		pair->half[0].flags = CT_CLAIMED;
		return found;
	}
	entry->pair = 0;
	return 0;
}
