/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How long flows are believed, in ticks of about a second. */
#ifndef KUBENET_CONNTRACK_H
#define KUBENET_CONNTRACK_H

#include "packet.h"

/* A UDP flow ends when both sides were silent for so long. */
#define UDP_IDLE 120
/* A TCP flow that is silent for so long may lose its ports to a new one. */
#define TCP_IDLE 3600
/* A SYN-ACK answers a SYN that is not older than this. */
#define SYN_ANSWER 75
/* A closed TCP flow's masquerading port is not taken again before... */
#define TIME_WAIT 60
/*
 * ...unless ports run out, when this will do: a backend that waits for the last
 * ACK of the old connection answers the SYN of a new one with an ACK. Two ticks,
 * as one may be over at once.
 */
#define LAST_ACK 2
/*
 * Then this UDP silence will do, too. An instance that drains gives a UDP flow
 * away when its backend was silent for so long.
 */
#define UDP_HURRY 30

static __always_inline bool older(__u32 last_seen, __u32 now, __u32 ticks)
{
	/* A stamp of no clock that is known here is older than everything. */
	return now - last_seen + KUBENET_CLOCK_SLACK >=
	       ticks + KUBENET_CLOCK_SLACK;
}

/* What to do with a packet whose tuple is known. */
enum flow {
	FLOW_KNOWN,
	FLOW_NEW, /* the entry was of an earlier flow and is gone */
	FLOW_NOT_OURS, /* so it was, and this is no flow to a Service */
};

#endif
