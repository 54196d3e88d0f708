/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is to be known of SCTP. */
#ifndef KUBENET_SCTP_H
#define KUBENET_SCTP_H

#include "crc32c.h"
#include "packet.h"

struct sctp_header {
	__be16 source;
	__be16 dest;
	__be32 tag;
	/*
	 * Zero: the device is to fill it in, as it does for the stack of a pod
	 * behind a virtual interface. One packet in four billion has zero by
	 * right, and is lost where its ports change: a program cannot see the
	 * difference.
	 */
	__u32 check;
};

struct sctp_chunk {
	__u8 type;
	__u8 flags;
	__be16 length;
};

#define SCTP_INIT 1
#define SCTP_INIT_ACK 2
#define SCTP_ABORT 6
#define SCTP_SHUTDOWN_COMPLETE 14

/* The tag that answers to an INIT carry, right behind the chunk's header. */
#define SCTP_INIT_TAG_OFF \
	(sizeof(struct sctp_header) + sizeof(struct sctp_chunk))

/* What a packet does to its flow, by its first chunk, in TCP's words. */
static __always_inline __u8 sctp_flags(__u8 chunk)
{
	switch (chunk) {
	case SCTP_INIT:
		return TCP_SYN;
	case SCTP_INIT_ACK:
		return TCP_SYN | TCP_ACK;
	case SCTP_ABORT:
	case SCTP_SHUTDOWN_COMPLETE:
		return TCP_RST;
	}
	return TCP_ACK;
}

/* The checksum of a packet of `length` bytes, after its ports have changed. */
static __always_inline __u32 sctp_check(__u32 check, const __be16 *from,
					const __be16 *to, __u32 length)
{
	__u32 change = *(const __u32 *)from ^ *(const __u32 *)to;

	return check ? check ^ crc32c_shift(change, length) : 0;
}

#endif
