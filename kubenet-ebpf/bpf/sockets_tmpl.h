/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * This node's own processes: the address is changed at the socket, once, and
 * packets then need nothing. `key` is what the application dialled; after
 * SOCK_ALLOW, what it gets.
 */

static __always_inline void F(sock_key)(struct F(socket_key) *to, __u64 cookie,
					const struct F(service_key) *at,
					__u16 kind)
{
	to->cookie = cookie;
	copy(to->addr, at->addr);
	to->port = at->port;
	to->pad = kind;
}

/* The backend that this socket was given for `dialled` before, if it may keep it. */
static __always_inline const struct F(backend) *F(sock_sticky)(
	const struct F(socket_key) *dialled, const struct service *service,
	const struct choice *choice, __u16 cuts, __u32 *id)
{
	const struct F(backend) *backend;
	struct F(socket_peer) *peer;

	peer = bpf_map_lookup_elem(&F(socket_peers), dialled);
	if (!peer || peer->service != service->id)
		return NULL;
	*id = peer->backend;
	backend = F(live_backend)(peer->backend, peer->generation);
	if (!backend || backend->flags & BACKEND_TERMINATING)
		return NULL;
	if (peer->cuts != cuts) {
		if (!choice->count || !may_choose(choice, *id))
			return NULL;
		peer->cuts = cuts;
	}
	return backend;
}

/*
 * Whose flow this is: the node's processes together are one client, under the
 * node's first address. A socket that connects has mostly none of its own yet,
 * and a packet from here would leave with that one.
 */
static __always_inline void F(sock_client)(struct F(tuple) *client)
{
	const struct config *cfg = get_config();

	if (cfg)
		F(snat)(&client->saddr, cfg);
}

/* What comes from a backend is given back the name that was dialled. */
static __always_inline void F(sock_name)(struct F(socket_key) *socket,
					 const struct F(service_key) *backend,
					 const struct F(socket_peer) *peer)
{
	const struct F(socket_peer) *before;

	copy(socket->addr, backend->addr);
	socket->port = backend->port;
	socket->pad = PEER_BACKEND;
	/* To look costs a fraction of writing. */
	before = bpf_map_lookup_elem(&F(socket_peers), socket);
	if (!before || before->port != peer->port ||
	    !same(before->addr, peer->addr))
		bpf_map_update_elem(&F(socket_peers), socket, peer, BPF_ANY);
}

/* What this connect() is translated to. Where the map is full, nobody knows later. */
static __always_inline void F(remember_connected)(
	__u64 cookie, const struct F(service_key) *frontend,
	const struct F(service_key) *backend, __u32 service)
{
	struct socket_flow flow = {
		.port = backend->port,
		.frontend_port = frontend->port,
		.service = service,
	};

	F(any_family)(flow.addr, (const __be32 *)&backend->addr);
	F(any_family)(flow.frontend, (const __be32 *)&frontend->addr);
	bpf_map_update_elem(&socket_flows, &cookie, &flow, BPF_ANY);
}

/* Counts a refusal, and tells of it. */
static __always_inline void F(sock_tell)(const struct F(service_key) *dialled,
					 __u8 proto, __u32 metric)
{
	struct F(tuple) tuple = { .dport = dialled->port, .proto = proto };

	count(metric);
	copy(tuple.daddr, dialled->addr);
	F(tell_drop)(&tuple, metric);
}

static __always_inline void F(sock_tell_flow)(
	const struct F(service_key) *dialled, __u8 proto,
	const struct F(backend) *backend)
{
	struct F(tuple) tuple = { .dport = dialled->port, .proto = proto };
	struct F(tuple) target = { .dport = backend->port };

	copy(tuple.daddr, dialled->addr);
	copy(target.daddr, backend->addr);
	F(tell_flow)(&tuple, &target);
}

static __always_inline int F(sock_dial)(struct bpf_sock_addr *ctx,
					struct F(service_key) *key, bool sticky)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct F(socket_key) socket = {};
	const struct F(backend) *backend = NULL;
	struct F(socket_peer) peer = {};
	const struct service *service;
	struct F(service_key) lookup = *key, dialled = {};
	struct F(tuple) client = {};
	struct choice choice = {};
	bool known;

	service = F(lookup_service)(&lookup);
	if (!service && F(sock_is_loopback)((const __be32 *)&key->addr)) {
		__builtin_memset(&lookup.addr, 0, sizeof(lookup.addr));
		service = bpf_map_lookup_elem(&F(services), &lookup);
	}
	if (!service) {
		/* A cluster IP, and no port of it that is served. */
		if (bpf_map_lookup_elem(&F(cluster_ips), &key->addr)) {
			F(sock_tell)(key, ctx->protocol, METRIC_REJECTED);
			return sock_refuse(ECONNREFUSED);
		}
		/* What a connected IPv4 socket of IPv6 sends comes here, too. */
		if (sticky && is_connected(ctx->sk))
			return SOCK_ALLOW;
		/* A backend dialled by its own name keeps it. */
		if (ctx->protocol == IPPROTO_TCP) {
			F(forget_dialled)(cookie, key);
			return SOCK_ALLOW;
		}
		F(sock_key)(&socket, cookie, key, PEER_BACKEND);
		bpf_map_delete_elem(&F(socket_peers), &socket);
		if (!sticky)
			forget_connected(ctx);
		return SOCK_ALLOW;
	}
	F(sock_client)(&client);
	if (!F(admits)(service, &client)) {
		F(sock_tell)(key, ctx->protocol, METRIC_DROP_SOURCE_RANGE);
		return sock_refuse(EPERM);
	}
	copy(peer.addr, key->addr);
	peer.port = key->port;
	peer.service = service->id;
	peer.cuts = service->flags >> SVC_CUTS_SHIFT;

	F(choice)(&choice, service, false, &client);
	if (sticky) {
		F(sock_key)(&socket, cookie, key, PEER_DIALLED);
		backend = F(sock_sticky)(&socket, service, &choice, peer.cuts,
					 &peer.backend);
	}
	if (!backend && !service->internal_count) {
		/*
		 * Silence: the packets go out as they are, and the program at
		 * the device drops them. Those to a node port would stay here.
		 */
		if (has_external_tc && service->flags & SVC_INTERNAL_DROP &&
		    !is_zero(lookup.addr)) {
			if (!sticky)
				forget_connected(ctx);
			return SOCK_ALLOW;
		}
		F(sock_tell)(key, ctx->protocol, METRIC_REJECTED);
		return sock_refuse(service->flags & SVC_INTERNAL_DROP
					   ? EHOSTUNREACH
					   : ECONNREFUSED);
	}
	/* It was connected before the Service had a backend to give. */
	if (sticky && F(is_connected_to)(ctx->sk, key)) {
		F(sock_tell)(key, ctx->protocol, METRIC_REJECTED);
		return sock_refuse(ECONNREFUSED);
	}
	known = backend;
	if (!backend && service->affinity)
		choice.fixed = F(stick)(&client, service, &choice);
	/* The second try is for a range that was just being replaced. */
	for (int i = 0; i < 2 && !backend; i++)
		backend = F(pick_backend)(&choice, &peer.backend);
	if (!backend) {
		F(sock_tell)(key, ctx->protocol, METRIC_DROP_ROUTE);
		return sock_refuse(EHOSTUNREACH);
	}
	peer.generation = backend->generation;
	count(known ? METRIC_FORWARDED : METRIC_NEW_FLOW);
	if (!known) {
		connect_service(service->id, service_generation(service->id),
				0);
		F(connect_backend)(peer.backend, peer.generation, 0);
		F(sock_tell_flow)(key, ctx->protocol, backend);
	}
	if (sticky && !known)
		bpf_map_update_elem(&F(socket_peers), &socket, &peer, BPF_ANY);
	copy(dialled.addr, key->addr);
	dialled.port = key->port;
	copy(key->addr, backend->addr);
	key->port = backend->port;
	if (ctx->protocol == IPPROTO_TCP) {
		F(note_dialled)(cookie, &dialled, key);
		return SOCK_ALLOW;
	}
	socket.cookie = cookie;
	F(sock_name)(&socket, key, &peer);
	if (!sticky)
		F(remember_connected)(cookie, &lookup, key, peer.service);
	return SOCK_ALLOW;
}

/* Gives a backend's address back the name that was dialled. */
static __always_inline bool F(sock_restore)(struct bpf_sock_addr *ctx,
					    struct F(service_key) *key)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	const struct F(socket_peer) *peer;
	struct F(socket_key) socket = {};
	struct F(service_key) name = {};

	if (ctx->protocol == IPPROTO_TCP) {
		if (!F(dialled_for)(cookie, key, &name))
			return false;
		copy(key->addr, name.addr);
		key->port = name.port;
		return true;
	}
	F(sock_key)(&socket, cookie, key, PEER_BACKEND);
	peer = bpf_map_lookup_elem(&F(socket_peers), &socket);
	if (!peer)
		return false;
	copy(key->addr, peer->addr);
	key->port = peer->port;
	return true;
}
