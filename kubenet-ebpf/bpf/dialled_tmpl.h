/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What TCP sockets of this node dialled, for who asks them for their peer. It
 * stands in the place that the socket's cookie gives it. Cookies count up, so
 * that a name goes when so many sockets later another one is written there:
 * about what a map that forgets the least recent would do. An insertion there
 * was half of what connect() pays to be served.
 */

static __always_inline struct F(dialled) *F(dialled_at)(__u64 cookie)
{
	__u32 place = cookie & dialled_mask;

	return bpf_map_lookup_elem(&F(dialled), &place);
}

/*
 * One word that is right for this socket, this name and this backend alone: of
 * two that write to one place at once, no one is to read a mixture.
 */
static __always_inline
	__u64 F(dialled_check)(__u64 cookie, const struct F(service_key) *name,
			       const struct F(service_key) *backend)
{
	const __u32 *x = (const __u32 *)&name->addr,
		    *y = (const __u32 *)&backend->addr;
	__u64 sum = two(name->port, backend->port);

#pragma unroll
	for (__u32 i = 0; i < sizeof(name->addr) / sizeof(*x); i++)
		sum = (sum + x[i] + ((__u64)y[i] << 32)) * 0x9e3779b97f4a7c15;
	return cookie ^ sum ^ sum >> 32;
}

/* What the socket dialled that was given this backend, if that is known. */
static __always_inline bool F(dialled_for)(__u64 cookie,
					   const struct F(service_key) *backend,
					   struct F(service_key) *name)
{
	const struct F(dialled) *at = F(dialled_at)(cookie);

	if (!at)
		return false;
	copy(name->addr, at->addr);
	name->port = at->port;
	return at->check == F(dialled_check)(cookie, name, backend);
}

static __always_inline void F(note_dialled)(
	__u64 cookie, const struct F(service_key) *name,
	const struct F(service_key) *backend)
{
	struct F(dialled) *at = F(dialled_at)(cookie);

	if (!at)
		return;
	copy(at->addr, name->addr);
	at->port = name->port;
	at->check = F(dialled_check)(cookie, name, backend);
}

/* The socket dials this backend by its own name. */
static __always_inline void F(forget_dialled)(
	__u64 cookie, const struct F(service_key) *backend)
{
	struct F(service_key) name = {};
	struct F(dialled) *at;

	if (!F(dialled_for)(cookie, backend, &name))
		return;
	at = F(dialled_at)(cookie);
	if (at)
		at->check = 0;
}
