/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Values shared with user space (src/layout.rs mirrors them field by field).
 *
 * Addresses and ports are in network byte order wherever the type says __be;
 * everything else is in host byte order. There is one set of maps per address
 * family: small IPv4 keys are what keeps lookups in the caches.
 */
#ifndef KUBENET_TYPES_H
#define KUBENET_TYPES_H

#include <linux/types.h>

/* Laid out as tables. */
/* clang-format off */

/* Bumped whenever a map's key, value or meaning changes. */
#define KUBENET_LAYOUT 5

/* Of the monotonic clock in nanoseconds: what last_seen leaves out. */
#define KUBENET_CLOCK_SHIFT 30

/*
 * Ticks by which a stamp may be ahead of the clock, as another CPU may have read
 * that a moment later. From further ahead is no stamp of this clock.
 */
#define KUBENET_CLOCK_SLACK 2

/* ---- services: frontend -> where its backends stand in `slots` ---- */

struct service_key4 {
	__be32 addr;	/* 0 for a node port: any chosen address of the node */
	__be16 port;
	__u8 proto;
	__u8 pad;
};

struct service_key6 {
	__be32 addr[4];	/* all zero for a node port */
	__be16 port;
	__u8 proto;
	__u8 pad;
};

/* Masquerade by origin; see struct Masquerade of kubenet-core. */
#define SVC_MASQ_PODS		0x01
#define SVC_MASQ_NODE		0x02
#define SVC_MASQ_OUTSIDE	0x04
/* What a new flow meets when the set is empty: drop if set, else reject. */
#define SVC_INTERNAL_DROP	0x08
#define SVC_EXTERNAL_DROP	0x10
#define SVC_NODE_PORT		0x20
/* A flow's slot is that of the client's hash, not one at random. */
#define SVC_MAGLEV		0x40
/*
 * Members have other numbers of slots than one each. Behind the slots to pick
 * from stand the number of members, the id of each, and, for user space alone,
 * the weight of each.
 */
#define SVC_LISTED		0x80
/* Only who is in `source_ranges` may reach it... */
#define SVC_SOURCE_RANGES	0x100
/* ...and this node. */
#define SVC_SOURCE_NODE		0x200
/*
 * How often this frontend of UDP lost a backend, which others may have still. A
 * flow has the number among its own flags that it was last looked at with.
 */
#define SVC_CUTS_SHIFT		16
#define SVC_CUTS		0xffff0000

struct service {
	__u32 internal_base;	/* first slot for flows from pods and this node */
	__u32 internal_count;	/* slots to pick from; with SVC_MAGLEV a power of two */
	__u32 external_base;	/* first slot for flows from outside */
	__u32 external_count;
	__u32 id;		/* allocated, never hashed, never 0 */
	__u32 flags;		/* SVC_* */
	__u32 affinity;		/* id that the frontends of a Service port share; 0: none */
	__u32 timeout;		/* of a client's choice, in seconds */
};

/* ---- affinity: a client -> the backend that it was given last ---- */

struct affinity_key4 {
	__u32 affinity;		/* struct service.affinity */
	__be32 addr;		/* of the client */
};

struct affinity_key6 {
	__u32 affinity;
	__be32 addr[4];
};

struct affinity {
	__u32 backend;
	__u32 generation;	/* of that backend when it was picked */
	__u64 last_new;		/* when it was last given, of the monotonic clock in ns */
};

/* ---- backends: id -> endpoint; id 0 is never used ---- */

#define BACKEND_ALIVE		0x01	/* the id is in use */
#define BACKEND_LOCAL		0x02	/* on this node */
#define BACKEND_TERMINATING	0x04

struct backend4 {
	__be32 addr;
	__be16 port;
	__u16 flags;		/* BACKEND_* */
	__u32 generation;	/* counts how often the id was handed out */
};

struct backend6 {
	__be32 addr[4];
	__be16 port;
	__u16 flags;
	__u32 generation;
};

/* ---- flows: a packet's tuple -> the tuple that it is rewritten to ---- */

/* The addresses and ports come first and leave no gap, as in struct ends4 and ends6. */
struct tuple4 {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad[3];
};

struct tuple6 {
	__be32 saddr[4];
	__be32 daddr[4];
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad[3];
};

struct ends4 {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
};

struct ends6 {
	__be32 saddr[4];
	__be32 daddr[4];
	__be16 sport;
	__be16 dport;
};

#define CT_REPLY	0x01	/* from backend to client; else the other way */
#define CT_SEEN_REPLY	0x02	/* on both: the backend answered */
#define CT_FIN		0x04	/* a FIN was seen in this entry's direction */
#define CT_RST		0x08	/* closed by a reset */
#define CT_SNAT		0x10	/* the source is the node's, too */
#define CT_LASTS	0x20	/* of UDP: the client went on in another tick */
#define CT_DIRECT	0x40	/* the backend's node answers by itself: see dsr.h */
#define CT_CLAIMED	0x80	/* nobody's flow: a CPU has taken it for its next one */
/* IPPROTO_*, of a flow; SVC_CUTS stands above. */
#define CT_PROTO_SHIFT	8
#define CT_PROTO	0xff00

/*
 * Of a flow's last packet, believed until the entry's tick is over. With either
 * flag, `hop` begins with the MAC address of the next hop: XDP has sent the packet,
 * or TC has put it into a pod's namespace.
 */
#define ROUTE_XDP	0x80000000u
#define ROUTE_PEER	0x40000000u

struct route4 {
	__u32 ifindex;		/* 0: not known; may have a flag */
	__be32 hop;		/* the next one; not of the other family */
	__u16 hop_more;		/* the rest of a MAC address */
	__u16 mtu;
};

struct route6 {
	__u32 ifindex;
	__be32 hop[4];
	__u32 mtu;
};

/*
 * One direction of a flow: one line of the CPU's cache for IPv4, two for IPv6.
 * Of a pair that is free all flags are 0.
 */
struct conntrack4 {
	struct ends4 key;	/* what its packets have */
	__be32 saddr;		/* what they get instead */
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__u32 service;		/* struct service.id */
	__u32 backend;		/* index in backends4 */
	__u32 generation;	/* of that backend; with CT_REPLY, of the service */
	__u32 last_seen;	/* CLOCK_MONOTONIC >> KUBENET_CLOCK_SHIFT */
	__u32 flags;		/* CT_* */
	struct route4 route;
	__u32 packets;		/* in this direction, and not in struct traffic yet */
	__u32 bytes;
};

struct conntrack6 {
	struct ends6 key;
	__be32 saddr[4];
	__be32 daddr[4];
	__be16 sport;
	__be16 dport;
	__u32 service;
	__u32 backend;
	__u32 generation;
	__u32 last_seen;
	__u32 flags;
	struct route6 route;
	__u32 packets;
	__u32 bytes;
	__u32 pad;
};

/* Whether a flow ever had a backend with this port: the index, as in the packet. */
struct backend_ports {
	__u8 seen[65536];
};

/* A flow: the client's direction, and the answers'. */
struct pair4 {
	struct conntrack4 half[2];
};

struct pair6 {
	struct conntrack6 half[2];
};

/* ---- their index: see flows.h ---- */

#define FLOW_SLOTS 15
/* Halves of pairs are counted through: the pair's number times two, and CT_REPLY. */
#define FLOW_PLACE 0xffffff
#define FLOW_TAG 0xff000000

struct flow_bucket {
	__u32 slot[FLOW_SLOTS];	/* a tag and a place; 0: empty */
	__u32 state;
};

/* How many of the bucket's flows are in its neighbour, ... */
#define FLOW_OUTSIDE 0xf
/* ...and how often a slot was filled. */
#define FLOW_VERSION 0x10

/* Of so many pairs of buckets: how many slots are filled. */
#define FLOW_COUNTS 8

struct flow_counts {
	__u8 of[FLOW_COUNTS];
};

/* Pairs that a CPU looks through by itself. */
#define FLOW_CHUNK 8

/* Words of a key with its protocol, and one more. */
#define FLOW_SEED 11

struct flow_seed {
	__u64 word[FLOW_SEED];
};

/* ---- fragments: those without ports -> what the first one became ---- */

struct fragment_key4 {
	__be32 saddr;
	__be32 daddr;
	__be32 id;
	__u8 proto;
	__u8 pad[3];
};

struct fragment_key6 {
	__be32 saddr[4];
	__be32 daddr[4];
	__be32 id;
	__u8 proto;	/* the first header behind that of the fragment */
	__u8 pad[3];
};

#define FRAGMENT_DROP	0x01	/* the first one was not let through */
#define FRAGMENT_PASS	0x02	/* it was left as it is */

struct fragment_target4 {
	__be32 saddr;
	__be32 daddr;
	__u32 last_seen;	/* CLOCK_MONOTONIC >> KUBENET_CLOCK_SHIFT */
	__u32 flags;		/* FRAGMENT_* */
};

struct fragment_target6 {
	__be32 saddr[4];
	__be32 daddr[4];
	__u32 last_seen;
	__u32 flags;
};

/* ---- source ranges: who may reach a Service that not everybody may ---- */

/* Key of LPM tries; its length counts the bits of the id, too. */
struct source_range4 {
	__u32 prefix_len;
	__u32 service;		/* struct service.id */
	__be32 addr;
};

struct source_range6 {
	__u32 prefix_len;
	__u32 service;
	__be32 addr[4];
};

/* ---- facts about the node ---- */

/* The upper bits are user space's own. */
#define NODE_ADDR_LOCAL		0x01	/* an address of this node */
#define NODE_ADDR_NODE_PORT	0x02	/* node ports answer on it */

/* Key of the LPM tries of pod addresses. */
struct lpm4 {
	__u32 prefix_len;
	__be32 addr;
};

struct lpm6 {
	__u32 prefix_len;
	__be32 addr[4];
};

#define CONFIG_DRAINING		0x01	/* serve known flows, take no new ones */
#define CONFIG_SNAT6_SECOND	0x02	/* the second of both places is in use */
/* How `detector` tells pods by the interface, for user space alone. */
#define CONFIG_BRIDGE		0x100
#define CONFIG_PREFIX		0x200

struct config {
	__be32 snat4;		/* source of masqueraded flows; 0: none */
	__u32 flags;		/* CONFIG_* */
	__be32 snat6[2][4];	/* one in use, one to write the next address to */
	__u64 netns_cookie;	/* the socket hooks act in this namespace only; 0: in every one */
	__u16 snat_port_min;	/* this instance's own ports, host byte order, inclusive */
	__u16 snat_port_max;
	__u16 snat_wide_min;	/* those of all instances, when its own run out; 0 to 0: none */
	__u16 snat_wide_max;
	char detector[16];	/* the bridge's name, or how pods' interfaces begin */
};

/* ---- XDP ---- */

#define XDP_DEVICES 16

/* The devices with an XDP program: it serves what is sent to their addresses. */
struct xdp_device {
	__u32 ifindex;		/* 0: the last one was before */
	__u8 mac[6];
	__u16 pad;
};

struct xdp_devices {
	struct xdp_device at[XDP_DEVICES];
};

/* Key of the map that knows when a next hop was the stack's last. */
struct xdp_hop {
	__u32 ifindex;
	__be32 addr[4];		/* of IPv4, the first */
};

/* ---- socket hooks ---- */

/* Which Service a UDP socket of this node believes to talk to. */
struct socket_key4 {
	__u64 cookie;
	__be32 addr;		/* of the backend */
	__be16 port;
	__u16 pad;
};

struct socket_key6 {
	__u64 cookie;
	__be32 addr[4];
	__be16 port;
	__u16 pad;
	__u32 pad2;
};

struct socket_peer4 {
	__be32 addr;		/* what the application dialled */
	__be16 port;
	__u16 cuts;		/* SVC_CUTS, as a flow keeps it */
	__u32 service;
	__u32 backend;
	__u32 generation;
};

struct socket_peer6 {
	__be32 addr[4];
	__be16 port;
	__u16 cuts;
	__u32 service;
	__u32 backend;
	__u32 generation;
};

/* What a TCP socket dialled, see dialled_tmpl.h. */
struct dialled4 {
	__u64 check;
	__be32 addr;
	__be16 port;
	__u16 pad;
};

struct dialled6 {
	__u64 check;
	__be32 addr[4];
	__be16 port;
	__u16 pad[3];
};

/*
 * The backend that a connected UDP socket was given, by the socket's cookie: it
 * goes with the socket, and with the next connect().
 */
struct socket_flow {
	__be32 addr[4];		/* of the backend; an IPv4 one as ::ffff:a.b.c.d */
	__be32 frontend[4];	/* key of the map of services, in the same form */
	__be16 port;
	__be16 frontend_port;
	__u32 service;		/* struct service.id */
};

/* ---- traffic: by service id, and by backend id ---- */

/*
 * Not per CPU, as there may be many of either: packets are counted in the entry
 * of their flow, and added here once in a tick.
 */
struct traffic {
	__u32 generation;	/* how often the id was handed out; 0: nobody has it */
	__u32 begun;		/* user space: the generation that the numbers are of */
	__u64 connections;	/* for which a backend was picked */
	__u64 packets;		/* from clients */
	__u64 bytes;		/* of those, network headers included */
	__u64 reply_packets;	/* from backends */
	__u64 reply_bytes;
};

/* ---- counters: one per reason, per CPU, index into `metrics` ---- */

enum metric {
	METRIC_FORWARDED,	/* a known flow was translated */
	METRIC_NEW_FLOW,	/* a backend was picked */
	METRIC_REJECTED,	/* no backend or no such port, the client was told */
	METRIC_DROP_NO_LOCAL_BACKEND,	/* [E6], policy Local */
	METRIC_DROP_FRAGMENT,	/* its datagram's first fragment was not let through */
	METRIC_DROP_SNAT_EXHAUSTED,	/* no free port to masquerade with */
	METRIC_DROP_CONNTRACK_FULL,	/* no room for the flow, or it was just given away */
	METRIC_DROP_MALFORMED,	/* headers that cannot be rewritten */
	METRIC_DROP_ROUTE,	/* no way to the backend, or TTL exceeded */
	METRIC_DROP_SOURCE_RANGE,	/* the client is in none of the Service's source ranges */
	METRIC_DROP_FRAGMENT_EARLY,	/* a fragment to a Service's address, before its datagram's first */
	METRIC_EVENT_OVER_BUDGET,	/* more events than may be reported in a tick */
	METRIC_EVENT_LOST,	/* no room for it in the datapath's own ring */
	METRIC_EVENT_LOST_TO_FOLLOWER,	/* nor in the ring of who looks in from outside */
	METRIC_DROP_SPOOFED,	/* a new flow from an address that no client has */
	METRIC_MAX,
};

/* ---- events: what becomes of a flow, for who listens ---- */

#define EVENT_FLOW	1	/* a backend was picked */
#define EVENT_DROP	2	/* a packet was dropped or refused */

/* Addresses of IPv4 stand in the first word. */
struct event {
	__u8 kind;		/* EVENT_* */
	__u8 family;		/* 4 or 6 */
	__u8 proto;
	__u8 reason;		/* of a drop: enum metric */
	__be16 client_port;
	__be16 frontend_port;
	__be16 backend_port;
	__u16 pad;
	__be32 client[4];	/* all zero: a process of this node, at its socket */
	__be32 frontend[4];
	__be32 backend[4];	/* of a flow */
};

/* A ring has one reader: the datapath's own process, and one from outside. */
struct listeners {
	__u32 until[2];		/* in ticks, kept ahead of the clock by who listens */
	__u32 budget;		/* events of a CPU in a tick; 0: EVENT_BUDGET */
};

#define EVENT_BUDGET	1000

struct event_budget {
	__u32 tick;
	__u32 used;
};

/* ---- names, for reading the table back ---- */

/* namespace, service and port name of a service id, each with its length. */
struct service_name {
	__u8 namespace_len;
	__u8 service_len;
	__u8 port_len;
	__u8 kind;		/* 0 cluster IP, 1 node port */
	char text[192];		/* one after the other */
};

#endif
