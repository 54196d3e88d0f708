/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Everything that both address families do alike, compiled once for each:
 * define FAMILY as 4 or 6 and include this. In here F(name) is name4 or
 * name6, for functions, structs and maps.
 */
#ifndef FAMILY
#error "define FAMILY as 4 or 6"
#endif

#define F_PASTE(name, family) name##family
#define F_EXPAND(name, family) F_PASTE(name, family)
#define F(name) F_EXPAND(name, FAMILY)

#include "service_tmpl.h"
#include "affinity_tmpl.h"
#include "traffic_tmpl.h"
#include "events_tmpl.h"
#include "flows_tmpl.h"
#include "conntrack_tmpl.h"
#include "rewrite_tmpl.h"
#include "answer_tmpl.h"
#include "forward_tmpl.h"
#include "new_flow_tmpl.h"
#include "dsr_tmpl.h"
#include "ingress_tmpl.h"
#include "egress_tmpl.h"
#include "icmp_tmpl.h"
#include "fragment_tmpl.h"
#include "rare_tmpl.h"
#include "learn_tmpl.h"
#include "dialled_tmpl.h"
#include "sockets_tmpl.h"
#include "xdp_tmpl.h"
#include "xdp_known_tmpl.h"

#undef F
#undef F_EXPAND
#undef F_PASTE
