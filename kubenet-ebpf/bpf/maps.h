/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every map. The sizes are defaults: the loader sets its own before load. */
#ifndef KUBENET_MAPS_H
#define KUBENET_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "types.h"

#define FLOW_PAIRS 65536
/* A power of two. About four halves of pairs share one. */
#define FLOW_BUCKETS (FLOW_PAIRS / 2)

/* The same of what TCP sockets dialled. */
#define DIALLED 65536
#define FLOW_LOCKS 256

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct service_key4);
	__type(value, struct service);
} services4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct service_key6);
	__type(value, struct service);
} services6 SEC(".maps");

/* Addresses that belong to Services alone, with all their ports. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __be32);
	__type(value, __u32);
} cluster_ips4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __be32[4]);
	__type(value, __u32);
} cluster_ips6 SEC(".maps");

/* Addresses that are not the cluster's, and have some ports that are Services'. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __be32);
	__type(value, __u32);
} service_addrs4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __be32[4]);
	__type(value, __u32);
} service_addrs6 SEC(".maps");

/* Backend ids; a service's set is a range. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1 << 20);
	__type(key, __u32);
	__type(value, __u32);
} slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct backend4);
} backends4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct backend6);
} backends6 SEC(".maps");

/* Flows; the first is never used. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, FLOW_PAIRS);
	__type(key, __u32);
	__type(value, struct pair4);
} flows4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, FLOW_PAIRS);
	__type(key, __u32);
	__type(value, struct pair6);
} flows6 SEC(".maps");

/* Where a flow is: see flows.h. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, FLOW_BUCKETS);
	__type(key, __u32);
	__type(value, struct flow_bucket);
} flow_index4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, FLOW_BUCKETS);
	__type(key, __u32);
	__type(value, struct flow_bucket);
} flow_index6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FLOW_BUCKETS / 2 / FLOW_COUNTS);
	__type(key, __u32);
	__type(value, struct flow_counts);
} flow_counts4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FLOW_BUCKETS / 2 / FLOW_COUNTS);
	__type(key, __u32);
	__type(value, struct flow_counts);
} flow_counts6 SEC(".maps");

/* Of the index, each for every FLOW_LOCKS-th pair of buckets, in a cache line of its own. */
struct flow_lock {
	struct bpf_spin_lock lock;
	__u32 pad[15];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FLOW_LOCKS);
	__type(key, __u32);
	__type(value, struct flow_lock);
} flow_locks SEC(".maps");

/* How many pairs were given out to be looked through, in all rounds. */
struct flow_hand {
	struct bpf_spin_lock lock;
	__u32 pad;
	__u64 given;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow_hand);
} flow_hand4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow_hand);
} flow_hand6 SEC(".maps");

/* What comes from a port that no flow's backend has answers no flow. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct backend_ports);
} backend_ports SEC(".maps");

/* For user space: the programs have it as a constant. All zero: not chosen yet. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow_seed);
} flow_seed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct affinity_key4);
	__type(value, struct affinity);
} affinity4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct affinity_key6);
	__type(value, struct affinity);
} affinity6 SEC(".maps");

/* An address of this node -> NODE_ADDR_*. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __be32);
	__type(value, __u32);
} node_addrs4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __be32[4]);
	__type(value, __u32);
} node_addrs6 SEC(".maps");

/* Prefixes that pods have their addresses from. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct lpm4);
	__type(value, __u32);
} pod_cidrs4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct lpm6);
	__type(value, __u32);
} pod_cidrs6 SEC(".maps");

/* Interfaces whose packets are pods', where the interface tells. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, __u32);
} pod_interfaces SEC(".maps");

/* Devices of which the other end is in a pod's network namespace; none without have_peer. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, __u32);
} pod_peers SEC(".maps");

/* The parts of 127.0.0.0/8 on which node ports answer. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 64);
	__type(key, struct lpm4);
	__type(value, __u32);
} loopback_nets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct source_range4);
	__type(value, __u32);
} source_ranges4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct source_range6);
	__type(value, __u32);
} source_ranges6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct config);
} config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct socket_key4);
	__type(value, struct socket_peer4);
} socket_peers4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct socket_key6);
	__type(value, struct socket_peer6);
} socket_peers6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, DIALLED);
	__type(key, __u32);
	__type(value, struct dialled4);
} dialled4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, DIALLED);
	__type(key, __u32);
	__type(value, struct dialled6);
} dialled6 SEC(".maps");

/* Of connected UDP sockets, for user space to find those whose backend goes. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct socket_flow);
} socket_flows SEC(".maps");

/* Never read here: it lets user space read the whole table back. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct service_name);
} service_names SEC(".maps");

/* By the id of a service, of both families. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct traffic);
} service_traffic SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct traffic);
} backend_traffic4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct traffic);
} backend_traffic6 SEC(".maps");

/* What is reported, see events.h: to this datapath's process... */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} events SEC(".maps");

/* ...and to one that looks in from outside. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} followed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct listeners);
} listeners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct event_budget);
} event_budget SEC(".maps");

/* Of no use after the half minute that a receiver waits for the rest. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct fragment_key4);
	__type(value, struct fragment_target4);
} fragments4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct fragment_key6);
	__type(value, struct fragment_target6);
} fragments6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct xdp_devices);
} xdp_devices SEC(".maps");

/* A next hop of packets that XDP sends -> the tick when one last was the stack's. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct xdp_hop);
	__type(value, __u32);
} xdp_hops SEC(".maps");

/* A flow that is being made: the stack has not the room. */
struct new_entry4 {
	struct tuple4 key[2]; /* of the client's packets, and of the answers */
	struct tuple4 target; /* what the client's packets become */
	__u32 service;
	__u32 service_generation;
	__u32 backend;
	__u32 generation;
	__u32 last_seen;
	__u32 flags;
	__u32 closed; /* see ct_gives_way() */
	__u32 udp_idle;
	__u32 pair; /* for the next flow; 0: none is claimed */
	__u32 next; /* to look at, of the pairs that this CPU was given... */
	__u64 given; /* ...after so many */
};

struct new_entry6 {
	struct tuple6 key[2];
	struct tuple6 target;
	__u32 service;
	__u32 service_generation;
	__u32 backend;
	__u32 generation;
	__u32 last_seen;
	__u32 flags;
	__u32 closed;
	__u32 udp_idle;
	__u32 pair;
	__u32 next;
	__u64 given;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct new_entry4);
} new_entry4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct new_entry6);
} new_entry6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, METRIC_MAX);
	__type(key, __u32);
	__type(value, __u64);
} metrics SEC(".maps");

#endif
