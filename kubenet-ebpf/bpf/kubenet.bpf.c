// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Every program. Each is named after its function. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#include "types.h"
#include "maps.h"

/* Set by the loader. */
volatile const __u32 kernel_hz = 250;
volatile const __u32 have_set_retval = 1; /* bpf_set_retval, kernel 5.18 */

#define TC_PROGRAM(name)                                  \
	SEC("classifier") int name(struct __sk_buff *skb) \
	{                                                 \
		return TC_ACT_UNSPEC + (kernel_hz & 0) +  \
		       (have_set_retval & 0);             \
	}
#define SOCK_PROGRAM(hook)                                                 \
	SEC("cgroup/" #hook) int kubenet_##hook(struct bpf_sock_addr *ctx) \
	{                                                                  \
		return 1;                                                  \
	}

TC_PROGRAM(kubenet_from_pod)
TC_PROGRAM(kubenet_from_external)
TC_PROGRAM(kubenet_to_device)
SOCK_PROGRAM(connect4)
SOCK_PROGRAM(connect6)
SOCK_PROGRAM(sendmsg4)
SOCK_PROGRAM(sendmsg6)
SOCK_PROGRAM(recvmsg4)
SOCK_PROGRAM(recvmsg6)
SOCK_PROGRAM(getpeername4)
SOCK_PROGRAM(getpeername6)

char _license[] SEC("license") = "Dual BSD/GPL";
