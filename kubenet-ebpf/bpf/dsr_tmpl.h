/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* See dsr.h. */

/* Marks a packet that is on its way, if it is to be marked. */
static __always_inline int F(dsr_mark_sent)(struct __sk_buff *skb,
					    const struct packet *pkt,
					    const struct F(tuple) *frontend,
					    int verdict)
{
	if (!have_dsr || !pkt->direct ||
	    (verdict != TC_ACT_REDIRECT && verdict != TC_ACT_OK))
		return verdict;
	if (F(dsr_mark)(skb, frontend))
		return drop(METRIC_DROP_MALFORMED);
	return verdict;
}
