/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What services and backends are charged with. */
#ifndef KUBENET_TRAFFIC_H
#define KUBENET_TRAFFIC_H

#include "packet.h"

/* As IP counts: without the frame. Segments that travel together are one packet. */
static __always_inline __u32 packet_bytes(const struct packet *pkt)
{
	return pkt->l4_off - L3_OFF + pkt->l4_len;
}

/* An id that was given to somebody else since is charged no more. */
static __always_inline int charge(struct traffic *traffic, __u32 generation,
				  bool reply, __u32 packets, __u32 bytes)
{
	if (!traffic || traffic->generation != generation)
		return 0;
	__sync_fetch_and_add(
		reply ? &traffic->reply_packets : &traffic->packets, packets);
	__sync_fetch_and_add(reply ? &traffic->reply_bytes : &traffic->bytes,
			     bytes);
	return 0;
}

/* A connection, with a packet of so many bytes or, if 0, without one. */
static __always_inline int charge_connection(struct traffic *traffic,
					     __u32 generation, __u32 bytes)
{
	if (!traffic || traffic->generation != generation)
		return 0;
	__sync_fetch_and_add(&traffic->connections, 1);
	return bytes ? charge(traffic, generation, false, 1, bytes) : 0;
}

/* These are not static, so that the verifier looks at each of them once. */
__noinline int charge_service(__u32 id, __u32 generation, __u32 reply,
			      __u32 packets, __u32 bytes)
{
	return charge(bpf_map_lookup_elem(&service_traffic, &id), generation,
		      reply, packets, bytes);
}

__noinline int connect_service(__u32 id, __u32 generation, __u32 bytes)
{
	return charge_connection(bpf_map_lookup_elem(&service_traffic, &id),
				 generation, bytes);
}

/* Which hand-out of the service's id a new flow belongs to. */
__noinline __u32 service_generation(__u32 id)
{
	const struct traffic *traffic;

	traffic = bpf_map_lookup_elem(&service_traffic, &id);
	return traffic ? traffic->generation : 0;
}

#endif
