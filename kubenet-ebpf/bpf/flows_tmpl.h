/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* See flows.h. */

#define KEY_WORDS (sizeof(struct F(ends)) / sizeof(__u32))

static __always_inline __u32 F(ct_hash)(const void *key, __u8 proto)
{
	return flow_hash(key, KEY_WORDS, proto);
}

static __always_inline struct F(pair) *F(pair_at)(__u32 place)
{
	__u32 pair = (place & FLOW_PLACE) >> 1;

	return bpf_map_lookup_elem(&F(flows), &pair);
}

static __always_inline struct F(conntrack) *F(half)(struct F(pair) *pair,
						    __u32 place)
{
	return (void *)pair + (place & 1) * sizeof(pair->half[0]);
}

static __always_inline __u8 F(ct_proto)(const struct F(conntrack) *ct)
{
	return (ct->flags & CT_PROTO) >> CT_PROTO_SHIFT;
}

/* Whether the entry is that of these packets. */
static __always_inline bool F(ct_is)(const struct F(conntrack) *ct,
				     const struct F(tuple) *tuple)
{
	_Static_assert(offsetof(struct F(tuple), proto) ==
			       sizeof(struct F(ends)),
		       "a tuple must begin as a key does");
	return same_words(&ct->key, tuple, KEY_WORDS) &&
	       F(ct_proto)(ct) == tuple->proto;
}

/* How many slots of the bucket and its neighbour are filled. */
static __always_inline __u8 *F(ct_filled)(__u32 bucket)
{
	__u32 both = bucket / 2, at = both / FLOW_COUNTS;
	struct flow_counts *counts;

	counts = bpf_map_lookup_elem(&F(flow_counts), &at);
	return counts ? &counts->of[both % FLOW_COUNTS] : NULL;
}

/* The half's place if it is in this bucket, or 0. */
static __always_inline __u32 F(ct_scan)(const struct flow_bucket *bucket,
					__u32 tag, const struct F(tuple) *tuple)
{
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < FLOW_SLOTS; i++) {
		__u32 slot = flow_slot(bucket, i);
		struct F(pair) *pair;

		if ((slot ^ tag) & FLOW_TAG)
			continue;
		pair = F(pair_at)(slot);
		if (pair && F(ct_is)(F(half)(pair, slot), tuple))
			return slot & FLOW_PLACE;
	}
	return 0;
}

/*
 * The same for both buckets. Few are looked for so: those in the neighbour, and
 * those behind one with the same tag.
 */
static __noinline __u32 F(ct_search)(const struct F(tuple) *tuple)
{
	__u32 hash = F(ct_hash)(tuple, tuple->proto), at = hash & flow_mask,
	      tag = flow_tag(hash), place;
	const struct flow_bucket *bucket;

	bucket = bpf_map_lookup_elem(&F(flow_index), &at);
	if (!bucket)
		return 0;
	place = F(ct_scan)(bucket, tag, tuple);
	if (place || !(flow_state(bucket) & FLOW_OUTSIDE))
		return place;
	at ^= 1;
	bucket = bpf_map_lookup_elem(&F(flow_index), &at);
	return bucket ? F(ct_scan)(bucket, tag, tuple) : 0;
}

/*
 * The flow that packets with this tuple are of, or NULL. `place` says in which
 * direction they are, and is good for ct_drop(). `likely`: there is one.
 */
static __always_inline struct F(pair) *F(ct_find)(const struct F(tuple) *tuple,
						  __u32 *place, bool likely)
{
	__u32 hash = F(ct_hash)(tuple, tuple->proto), at = hash & flow_mask;
	__u32 tag = flow_tag(hash), slot = 0;
	const struct flow_bucket *bucket;
	struct F(pair) *pair;

	/* To be read again, not to be spilled. */
	asm volatile("" : : "r"(tuple) : "memory");
	if (!likely) {
		const __u8 *filled = F(ct_filled)(at);

		if (!filled || !*(const volatile __u8 *)filled)
			return NULL;
	}
	bucket = bpf_map_lookup_elem(&F(flow_index), &at);
	if (!bucket)
		return NULL;
#pragma unroll
	for (int i = 0; i < FLOW_SLOTS; i++) {
		slot = flow_slot(bucket, i);
		if (!((slot ^ tag) & FLOW_TAG))
			goto found;
	}
	if (!(flow_state(bucket) & FLOW_OUTSIDE))
		return NULL;
	goto search;
found:
	pair = F(pair_at)(slot);
	if (pair && F(ct_is)(F(half)(pair, slot), tuple)) {
		*place = slot & FLOW_PLACE;
		return pair;
	}
search:
	*place = F(ct_search)(tuple);
	return *place ? F(pair_at)(*place) : NULL;
}

/* The same apart, for who has little stack or seldom looks. */
static __noinline struct F(pair) *F(ct_look)(const struct F(tuple) *tuple,
					     __u32 *place)
{
	return F(ct_find)(tuple, place, false);
}

/* A reset, or FIN from both sides. */
static __always_inline bool F(ct_closed)(const struct F(pair) *pair)
{
	__u32 there = pair->half[0].flags, back = pair->half[1].flags;

	return ((there | back) & CT_RST) || (there & back & CT_FIN);
}

/* Neither side was heard for so long. */
static __always_inline bool F(ct_idle)(const struct F(pair) *pair, __u32 now,
				       __u32 ticks)
{
	return older(pair->half[0].last_seen, now, ticks) &&
	       older(pair->half[1].last_seen, now, ticks);
}

/*
 * The functions from here on are not static, so that the verifier looks at each of
 * them once. What they work on is in the CPU's new_entry.
 */
static __always_inline struct F(new_entry) *F(get_new_entry)(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&F(new_entry), &zero);
}

/* Empties the slot of this place. Whether it was its own, and no one else's. */
__noinline int F(ct_unlink)(__u32 hash, __u32 place)
{
	__u32 at = hash & flow_mask, near_at = at ^ 1, slot, i;
	struct flow_bucket *home, *near, *bucket;
	struct flow_lock *lock;
	bool own = false;
	__u8 *filled;

	filled = F(ct_filled)(at);
	lock = flow_lock_of(hash);
	home = bpf_map_lookup_elem(&F(flow_index), &at);
	near = bpf_map_lookup_elem(&F(flow_index), &near_at);
	if (!filled || !lock || !home || !near)
		return false;
	slot = flow_tag(hash) | (place & FLOW_PLACE);
	bucket = home;
	i = flow_slot_with(bucket, slot);
	if (i >= FLOW_SLOTS) {
		bucket = near;
		i = flow_slot_with(bucket, slot);
	}
	if (i >= FLOW_SLOTS)
		return false;
	bpf_spin_lock(&lock->lock);
	if (bucket->slot[i] == slot) {
		bucket->slot[i] = 0;
		--*filled;
		if (bucket != home)
			home->state--;
		own = true;
	}
	bpf_spin_unlock(&lock->lock);
	return own;
}

/* What an entry has counted goes to its service and its backend. */
static __always_inline void F(settle)(struct F(pair) *pair, __u32 reply)
{
	struct F(conntrack) *ct = F(half)(pair, reply);
	__u32 packets = ct->packets, bytes = ct->bytes;

	ct->packets = 0;
	ct->bytes = 0;
	charge_service(ct->service, pair->half[1].generation, reply, packets,
		       bytes);
	F(charge_backend)(ct->backend, pair->half[0].generation, reply, packets,
			  bytes);
}

/*
 * Ends a flow, and leaves these flags. Whether it was this CPU that did: then the
 * pair was nobody else's meanwhile. What makes the keys match goes before the last
 * slot, and the flags after it, in which the lock keeps the order for all CPUs: who
 * finds the pair free may write to it.
 */
__noinline int F(ct_drop)(__u32 number, __u32 flags)
{
	struct F(pair) *pair = F(pair_at)(number << 1);
	__u32 back;
	__u8 proto;

	if (!pair)
		return false;
	proto = F(ct_proto)(&pair->half[0]);
	if (!F(ct_unlink)(F(ct_hash)(&pair->half[0].key, proto), number << 1))
		return false;
	F(settle)(pair, 0);
	F(settle)(pair, 1);
	pair->half[0].last_seen = now_ticks();
	back = F(ct_hash)(&pair->half[1].key, proto);
	set_ports(&pair->half[0].key.sport, 0);
	set_ports(&pair->half[1].key.sport, 0);
	pair->half[1].flags = 0;
	F(ct_unlink)(back, number << 1 | 1);
	pair->half[0].flags = flags;
	return true;
}

/*
 * Whether somebody ended the flow long ago, and a packet was noted all the same,
 * by a CPU that had found it just before.
 */
static __always_inline bool F(ct_haunts)(const struct F(pair) *pair, __u32 now)
{
	return pair->half[0].flags & CT_PROTO &&
	       !get_ports(&pair->half[0].key.sport) &&
	       older(pair->half[0].last_seen, now, TIME_WAIT);
}

/* Whether it is the CPU's that was given it to look through. */
static __always_inline bool F(ct_is_free)(const struct F(pair) *pair, __u32 now)
{
	return !(pair->half[0].flags & (CT_PROTO | CT_CLAIMED)) ||
	       F(ct_haunts)(pair, now);
}

/* WORTH_*, or 0 for one that is not to be had. */
__noinline __u32 F(ct_worth)(__u32 number, __u32 now)
{
	const struct F(pair) *pair = F(pair_at)(number << 1);
	const struct F(conntrack) *ct, *back;
	__u32 flags, silent, heard;

	if (!pair || !number)
		return 0;
	ct = &pair->half[0];
	back = &pair->half[1];
	flags = ct->flags;
	/* A late packet may have left a flag. */
	if (!(flags & CT_PROTO))
		return flags & CT_CLAIMED ? 0 : WORTH_FREE;
	if (F(ct_haunts)(pair, now))
		return WORTH_AT_ONCE;
	/* A flood makes room for itself. */
	if (!(flags & (CT_SEEN_REPLY | CT_LASTS | CT_RST)))
		return ct->last_seen == now ? WORTH_UNANSWERED : WORTH_AT_ONCE;
	silent = now - ct->last_seen + KUBENET_CLOCK_SLACK;
	heard = now - back->last_seen + KUBENET_CLOCK_SLACK;
	if (heard < silent)
		silent = heard;
	if (F(ct_closed)(pair)) {
		if (silent >= TIME_WAIT + KUBENET_CLOCK_SLACK)
			return WORTH_AT_ONCE;
		return silent >= LAST_ACK + KUBENET_CLOCK_SLACK
			       ? WORTH_CLOSED | silent
			       : WORTH_ONE_WAY | silent;
	}
	if (F(ct_proto)(ct) == IPPROTO_UDP &&
	    silent >= UDP_IDLE + KUBENET_CLOCK_SLACK)
		return WORTH_AT_ONCE;
	if (silent > WORTH_IDLE)
		silent = WORTH_IDLE;
	return flags & CT_SEEN_REPLY ? silent : WORTH_ONE_WAY | silent;
}

/*
 * The next pair to look at. A CPU that has not taken a flow for half a round gives
 * up what it was given, which will be another's soon.
 */
__noinline __u32 F(next_pair)(void)
{
	struct F(new_entry) *entry = F(get_new_entry)();
	struct flow_hand *hand;
	__u32 zero = 0;

	hand = bpf_map_lookup_elem(&F(flow_hand), &zero);
	if (!entry || !hand)
		return 0;
	if (!(entry->next % FLOW_CHUNK) ||
	    *(volatile __u64 *)&hand->given - entry->given > flow_pairs / 2) {
		__u64 given;

		bpf_spin_lock(&hand->lock);
		given = hand->given;
		hand->given = given + FLOW_CHUNK;
		bpf_spin_unlock(&hand->lock);
		entry->given = given;
		entry->next = given % flow_pairs;
	}
	return entry->next++;
}

/*
 * The pair that does best for the next flow, or 0. Where the hand finds only flows
 * that were answered, pairs are drawn by lot, with FLOW_DRAWN: one of those is no
 * one's only if it is dropped.
 */
__noinline int F(ct_pick)(void)
{
	__u32 now = now_ticks(), best = 0, most = 0;

	for (int i = 0; i < FLOW_LOOKS && most < WORTH_AT_ONCE; i++) {
		__u32 number = F(next_pair)();
		__u32 worth = F(ct_worth)(number, now);

		if (worth > most) {
			most = worth;
			best = number;
		}
	}
	for (int i = 0; i < FLOW_DRAWS && most < WORTH_UNANSWERED; i++) {
		__u32 number = bpf_get_prandom_u32() % flow_pairs;
		__u32 worth = F(ct_worth)(number, now);

		if (worth > most && worth != WORTH_FREE) {
			most = worth;
			best = number | FLOW_DRAWN;
		}
	}
	return best;
}

/* Has entry->pair be a pair for the next flow. Whether there is one. */
static __always_inline bool F(ct_claim)(struct F(new_entry) *entry)
{
	for (int try = 0; try < FLOW_TRIES && !entry->pair; try++) {
		__u32 picked = F(ct_pick)(), number = picked & ~FLOW_DRAWN;
		struct F(pair) *pair = F(pair_at)(number << 1);

		if (!number || !pair)
			break;
		if (picked == number && F(ct_is_free)(pair, entry->last_seen))
			pair->half[0].flags = CT_CLAIMED;
		else if (!F(ct_drop)(number, CT_CLAIMED))
			continue;
		entry->pair = number;
	}
	return entry->pair;
}

/*
 * Fills a slot with half of the pair, unless another flow has the key: its place,
 * or 0, or an error. -EAGAIN: another slot was filled meanwhile.
 */
__noinline int F(ct_link)(__u32 reply)
{
	struct F(new_entry) *entry = F(get_new_entry)();
	__u32 hash, at, near_at, tag, slot, place, i, state, near_state;
	struct flow_bucket *home, *near, *bucket;
	bool same, outside = false;
	const struct F(tuple) *key;
	struct flow_lock *lock;
	__u8 *filled;

	if (!entry)
		return -ENOSPC;
	key = (void *)entry + (reply & 1) * sizeof(*key);
	hash = F(ct_hash)(key, key->proto);
	tag = flow_tag(hash);
	slot = tag | ((entry->pair << 1 | (reply & 1)) & FLOW_PLACE);
	at = hash & flow_mask;
	filled = F(ct_filled)(at);
	lock = flow_lock_of(hash);
	home = bpf_map_lookup_elem(&F(flow_index), &at);
	if (!filled || !lock || !home)
		return -ENOSPC;
	state = flow_state(home);
	near = home;
	near_state = state;
	bucket = read_after(home, state);
	place = F(ct_scan)(bucket, tag, key);
	if (place)
		return place;
	i = flow_slot_with(bucket, 0);
	if (i >= FLOW_SLOTS || state & FLOW_OUTSIDE) {
		near_at = at ^ 1;
		near = bpf_map_lookup_elem(&F(flow_index), &near_at);
		if (!near)
			return -ENOSPC;
		near_state = flow_state(near);
		bucket = read_after(near, near_state);
		place = F(ct_scan)(bucket, tag, key);
		if (place)
			return place;
	}
	if (i >= FLOW_SLOTS) {
		i = flow_slot_with(bucket, 0);
		outside = true;
	}
	if (i >= FLOW_SLOTS)
		return -ENOSPC;
	bpf_spin_lock(&lock->lock);
	same = home->state == state && near->state == near_state;
	if (same) {
		bucket = outside ? near : home;
		++*filled;
		bucket->slot[i] = slot;
		bucket->state += FLOW_VERSION;
		home->state += outside;
	}
	bpf_spin_unlock(&lock->lock);
	return same ? 0 : -EAGAIN;
}

#undef KEY_WORDS
