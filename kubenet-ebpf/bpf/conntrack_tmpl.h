/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every flow has a pair of entries:
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

static __always_inline void F(ct_set_target)(struct F(conntrack) *ct,
					     const struct F(tuple) *to)
{
	copy(ct->saddr, to->saddr);
	copy(ct->daddr, to->daddr);
	set_ports(&ct->sport, get_ports(&to->sport));
}

/* The same for the other direction: what came in, turned round. */
static __always_inline void F(ct_set_reply)(struct F(conntrack) *ct,
					    const struct F(tuple) *from)
{
	copy(ct->saddr, from->daddr);
	copy(ct->daddr, from->saddr);
	set_ports(&ct->sport, turn_ports(&from->sport));
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

static __always_inline const struct F(conntrack) *F(ct_peer)(
	const struct F(conntrack) *ct, __u8 proto)
{
	struct F(tuple) key = {};

	F(ct_peer_key)(&key, ct, proto);
	return F(ct_peek)(&key);
}

static __noinline void F(ct_forget)(const struct F(tuple) *key,
				    struct F(conntrack) *ct)
{
	struct F(tuple) peer_key = {};
	struct F(conntrack) *peer;

	F(ct_peer_key)(&peer_key, ct, key->proto);
	F(settle)(ct);
	peer = bpf_map_lookup_elem(&F(conntrack), &peer_key);
	if (peer)
		F(settle)(peer);
	if (ct->flags & CT_KEPT)
		F(ct_let_go)(key, &peer_key);
	bpf_map_delete_elem(&F(conntrack), &peer_key);
	bpf_map_delete_elem(&F(conntrack), key);
}

/* A reset, or FIN from both sides. */
static __always_inline bool F(ct_closed)(const struct F(conntrack) *ct,
					 const struct F(conntrack) *peer)
{
	__u32 either = ct->flags, both = 0;

	if (peer) {
		either |= peer->flags;
		both = ct->flags & peer->flags;
	}
	return (either & CT_RST) || (both & CT_FIN);
}

/* Neither side was heard for so long. */
static __always_inline bool F(ct_idle)(const struct F(conntrack) *ct,
				       const struct F(conntrack) *peer,
				       __u32 now, __u32 ticks)
{
	return older(ct->last_seen, now, ticks) &&
	       (!peer || older(peer->last_seen, now, ticks));
}

/*
 * Whether a packet from a backend answers a flow that is still there. Without
 * this, a client that dials the backend itself from a port that it used for
 * the Service before would have its answers translated.
 */
static __always_inline enum flow F(ct_check_reply)(const struct packet *pkt,
						   const struct F(tuple) *tuple,
						   struct F(conntrack) *ct,
						   __u32 now)
{
	const struct F(conntrack) *peer;

	if (is_connection(pkt)) {
		if (!is_syn_ack(pkt))
			return FLOW_KNOWN;
		peer = F(ct_peer)(ct, pkt->proto);
		if (peer && !older(peer->last_seen, now, SYN_ANSWER) &&
		    !F(ct_closed)(ct, peer))
			return FLOW_KNOWN;
	} else {
		if (!older(ct->last_seen, now, UDP_IDLE))
			return FLOW_KNOWN;
		peer = F(ct_peer)(ct, pkt->proto);
		if (!F(ct_idle)(ct, peer, now, UDP_IDLE))
			return FLOW_KNOWN;
	}
	F(ct_forget)(tuple, ct);
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
					   struct F(conntrack) *ct, __u32 now)
{
	const struct F(backend) *backend;
	const struct F(conntrack) *peer;
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
		return !F(ct_closed)(ct, F(ct_peer)(ct, pkt->proto));
	}
	if (draining) {
		peer = F(ct_peer)(ct, pkt->proto);
		return peer && !older(peer->last_seen, now, UDP_HURRY);
	}
	return !older(ct->last_seen, now, UDP_IDLE) ||
	       !F(ct_idle)(ct, F(ct_peer)(ct, pkt->proto), now, UDP_IDLE);
}

/* The beginning of a connection, or a datagram. Apart, for the stack's sake. */
static __noinline enum flow F(ct_check_begin)(const struct packet *pkt,
					      const struct F(tuple) *tuple,
					      struct F(conntrack) *ct,
					      __u32 now)
{
	if (ct->flags & CT_REPLY)
		return F(ct_check_reply)(pkt, tuple, ct, now);
	if (F(ct_may_stay)(pkt, tuple, ct, now))
		return FLOW_KNOWN;
	F(ct_forget)(tuple, ct);
	return FLOW_NEW;
}

static __always_inline enum flow F(ct_check)(const struct packet *pkt,
					     const struct F(tuple) *tuple,
					     struct F(conntrack) *ct, __u32 now)
{
	/* In both directions, an established connection goes on. */
	if (is_connection(pkt) && !(pkt->tcp_flags & TCP_SYN))
		return FLOW_KNOWN;
	return F(ct_check_begin)(pkt, tuple, ct, now);
}

/* Writes the other direction again, at `key`, if the LRU has dropped it. */
static __always_inline void F(ct_heal)(const struct F(tuple) *tuple,
				       const struct F(conntrack) *ct,
				       const struct F(tuple) *key)
{
	struct F(new_entry) *entry;
	struct F(conntrack) *peer;
	__u32 zero = 0;

	if (F(ct_find)(key))
		return;
	entry = bpf_map_lookup_elem(&F(new_entry), &zero);
	if (!entry)
		return;
	peer = &entry->ct;
	__builtin_memset(peer, 0, sizeof(*peer));
	peer->service = ct->service;
	peer->backend = ct->backend;
	peer->generation = ct->generation;
	peer->last_seen = ct->last_seen;
	peer->flags = (ct->flags ^ CT_REPLY) & ~CT_FIN;
	peer->service_generation = ct->service_generation;
	F(ct_set_reply)(peer, tuple);
	bpf_map_update_elem(&F(conntrack), key, peer, BPF_NOEXIST);
}

/*
 * Whether a flow that goes on in another tick is worth keeping: its client has
 * heard the backend, and neither says that it ends.
 */
static __always_inline bool F(ct_lasts)(const struct packet *pkt,
					const struct F(conntrack) *ct)
{
	if (is_syn(pkt) || is_syn_ack(pkt) || ct->flags & (CT_FIN | CT_RST))
		return false;
	/* Only answers come by here. */
	if (have_dsr && ct->flags & CT_REPLY && ct->flags & CT_DIRECT)
		return true;
	return (ct->flags & (CT_REPLY | CT_SEEN_REPLY)) == CT_SEEN_REPLY;
}

/*
 * What few packets of a flow have to tell the other direction stands apart: its
 * key would take room on the stack of all others.
 */

/* The flow ends, and needs no copies. */
static __noinline void F(ct_end)(const struct F(tuple) *tuple,
				 const struct F(conntrack) *ct)
{
	struct F(tuple) peer_key = {};

	F(ct_peer_key)(&peer_key, ct, tuple->proto);
	F(ct_let_go)(tuple, &peer_key);
}

/* The backend answers for the first time. */
static __noinline void F(ct_answered)(const struct F(tuple) *tuple,
				      const struct F(conntrack) *ct)
{
	struct F(tuple) peer_key = {};
	struct F(conntrack) *peer;

	F(ct_peer_key)(&peer_key, ct, tuple->proto);
	peer = bpf_map_lookup_elem(&F(conntrack), &peer_key);
	if (peer)
		peer->flags |= CT_SEEN_REPLY;
}

/* The flow goes on in another tick. */
static __noinline void F(ct_goes_on)(const struct packet *pkt,
				     const struct F(tuple) *tuple,
				     struct F(conntrack) *ct)
{
	struct F(tuple) peer_key = {};

	F(ct_peer_key)(&peer_key, ct, tuple->proto);
	F(ct_heal)(tuple, ct, &peer_key);
	if (F(ct_lasts)(pkt, ct))
		F(ct_keep)(tuple, ct, &peer_key);
}

/* Notes what the packet says about its flow. */
static __always_inline void F(ct_touch)(const struct packet *pkt,
					const struct F(tuple) *tuple,
					struct F(conntrack) *ct, __u32 now)
{
	bool settle = false;
	__u32 flags = 0;

	F(count_packet)(pkt, ct);
	if (pkt->tcp_flags & TCP_FIN)
		flags |= CT_FIN;
	if (pkt->tcp_flags & TCP_RST)
		flags |= CT_RST;
	if (flags && ct->flags & CT_KEPT)
		F(ct_end)(tuple, ct);
	if ((ct->flags & (CT_REPLY | CT_SEEN_REPLY)) == CT_REPLY) {
		F(ct_answered)(tuple, ct);
		flags |= CT_SEEN_REPLY;
		/* Often it is the only answer. */
		settle = true;
	}
	/* No answer comes by here, but the client goes on as if there were one. */
	if (have_dsr && ct->flags & CT_DIRECT && !(ct->flags & CT_REPLY) &&
	    is_connection(pkt) && !is_syn(pkt))
		flags |= CT_SEEN_REPLY;
	if (flags & ~ct->flags)
		ct->flags |= flags;
	if (ct->last_seen != now) {
		ct->last_seen = now;
		ct->route.ifindex = 0;
		F(ct_goes_on)(pkt, tuple, ct);
		settle = true;
	}
	if (settle || F(must_settle)(ct))
		F(settle)(ct);
}

/* Whether both are entries of one flow, from one backend. */
static __always_inline bool F(ct_same_target)(const struct F(conntrack) *a,
					      const struct F(conntrack) *b)
{
	return same_words(
		a, b, offsetof(struct F(conntrack), service) / sizeof(__u32));
}

/*
 * Whether another flow gives up its reply entry at `key`: it was closed at
 * least `closed` ticks ago, or is UDP and was silent for `udp_idle` ticks.
 */
static __always_inline bool F(ct_gives_way)(const struct F(tuple) *key,
					    const struct F(conntrack) *owner,
					    __u32 now, __u32 closed,
					    __u32 udp_idle)
{
	__u32 idle = key->proto == IPPROTO_UDP ? udp_idle : TCP_IDLE;
	const struct F(conntrack) *peer;
	struct F(tuple) peer_key = {};

	F(ct_peer_key)(&peer_key, owner, key->proto);
	peer = F(ct_peek)(&peer_key);
	if (F(ct_closed)(owner, peer))
		idle = closed;
	if (!F(ct_idle)(owner, peer, now, idle))
		return false;
	if (owner->flags & CT_KEPT)
		F(ct_let_go)(key, &peer_key);
	bpf_map_delete_elem(&F(conntrack), &peer_key);
	return true;
}

/*
 * Writes both entries of a new flow, or none. -EEXIST: another flow has the
 * reply's tuple, see ct_gives_way().
 */
static __noinline long F(ct_create)(const struct F(tuple) *tuple,
				    const struct F(tuple) *target,
				    struct F(new_entry) *entry, __u32 closed,
				    __u32 udp_idle)
{
	struct F(conntrack) *flow = &entry->ct;
	struct F(tuple) *key = &entry->reply;
	const struct F(conntrack) *owner;
	long err;

	F(reverse)(key, target);
	F(ct_set_reply)(flow, tuple);
	flow->flags |= CT_REPLY;
	/* The tuple of a flow that lasts is taken, though it was pushed out. */
	F(ct_recall)(key);
	err = bpf_map_update_elem(&F(conntrack), key, flow, BPF_NOEXIST);
	if (err == -EEXIST) {
		owner = bpf_map_lookup_elem(&F(conntrack), key);
		if (owner && !F(ct_same_target)(owner, flow) &&
		    !F(ct_gives_way)(key, owner, flow->last_seen, closed,
				     udp_idle))
			return -EEXIST;
		err = bpf_map_update_elem(&F(conntrack), key, flow, BPF_ANY);
	}
	if (err)
		return err;

	F(ct_set_target)(flow, target);
	flow->flags &= ~CT_REPLY;
	err = bpf_map_update_elem(&F(conntrack), tuple, flow, BPF_ANY);
	if (err)
		bpf_map_delete_elem(&F(conntrack), key);
	return err;
}
