/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A packet is counted in its flow's entry, which it has in its hands anyway, and
 * which mostly one CPU writes. From there it goes to its service and its backend
 * once in a tick, and at once when the flow ends.
 */

__noinline int F(charge_backend)(__u32 id, __u32 generation, __u32 reply,
				 __u32 packets, __u32 bytes)
{
	return charge(bpf_map_lookup_elem(&F(backend_traffic), &id), generation,
		      reply, packets, bytes);
}

__noinline int F(connect_backend)(__u32 id, __u32 generation, __u32 bytes)
{
	return charge_connection(bpf_map_lookup_elem(&F(backend_traffic), &id),
				 generation, bytes);
}

/* Settled before the next tick: more will not come, or there is no room for it. */
static __always_inline bool F(must_settle)(const struct F(conntrack) *ct)
{
	return ct->flags & (CT_FIN | CT_RST) || (__s32)ct->bytes < 0;
}

static __always_inline void F(count_packet)(const struct packet *pkt,
					    struct F(conntrack) *ct)
{
	ct->packets++;
	ct->bytes += packet_bytes(pkt);
}
