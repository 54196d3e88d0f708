/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows that have lasted, where no flood reaches them.
 *
 * `conntrack` gives the room of what was least recently used to new flows: a
 * flood of SYNs, or many short connections, would push out those that were
 * silent for a moment. So both entries of a flow that was answered, and went on
 * in a later tick, are copied to `established`, which short flows never see, and
 * taken back from there when they are missed. Known flows cost nothing more.
 */

/* The entry of a flow, be it only the copy: not to be written to. */
static __always_inline const struct F(conntrack) *F(ct_peek)(
	const struct F(tuple) *key)
{
	const struct F(conntrack) *ct;

	ct = bpf_map_lookup_elem(&F(conntrack), key);
	return ct ?: bpf_map_lookup_elem(&F(established), key);
}

/* Takes back what `conntrack` has lost. */
static __noinline struct F(conntrack) *F(ct_recall)(const struct F(tuple) *key)
{
	const struct F(conntrack) *kept;
	struct F(conntrack) *ct;
	long err;

	kept = bpf_map_lookup_elem(&F(established), key);
	if (!kept)
		return NULL;
	err = bpf_map_update_elem(&F(conntrack), key, kept, BPF_NOEXIST);
	ct = bpf_map_lookup_elem(&F(conntrack), key);
	/* What was counted when it was copied has been settled since. */
	if (!err && ct)
		ct->packets = ct->bytes = 0;
	return ct;
}

static __always_inline struct F(conntrack) *F(ct_find)(
	const struct F(tuple) *key)
{
	struct F(conntrack) *ct = bpf_map_lookup_elem(&F(conntrack), key);

	return ct ?: F(ct_recall)(key);
}

/* Copies both entries of a flow; `ct` is the client's. */
static __noinline void F(ct_keep)(const struct F(tuple) *tuple,
				  struct F(conntrack) *ct,
				  const struct F(tuple) *peer_key)
{
	struct F(conntrack) *peer;

	peer = bpf_map_lookup_elem(&F(conntrack), peer_key);
	if (!peer || (peer->flags | ct->flags) & (CT_FIN | CT_RST))
		return;
	ct->flags |= CT_KEPT;
	peer->flags |= CT_KEPT;
	bpf_map_update_elem(&F(established), tuple, ct, BPF_ANY);
	bpf_map_update_elem(&F(established), peer_key, peer, BPF_ANY);
}

/* A flow that ends needs no copies. */
static __noinline void F(ct_let_go)(const struct F(tuple) *key,
				    const struct F(tuple) *peer_key)
{
	bpf_map_delete_elem(&F(established), key);
	bpf_map_delete_elem(&F(established), peer_key);
}
