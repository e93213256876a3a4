/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rx_int.h - inside of the receiving side of a card: rx.c and feed.c, nobody else.
 */
#ifndef NET_RX_INT_H
#define NET_RX_INT_H

#include "devices/net/csrc/dev.h"

/* Where the next byte goes: piece @piece of the chain at @chain, @off bytes into it. */
struct net_rx_cursor {
	struct ring_chain **chain;
	uint32_t piece;		/* from the first writable one */
	size_t off;
};

/* Does it deliver at all? */
static inline bool net_rx_runs(const struct net_rxq *q)
{
	return q && q->source.worker && q->enabled && !q->source.paused;
}

/* The next buffer of the stash has @bytes in it. */
static inline void net_rx_fill(struct net_rxq *q, uint32_t bytes)
{
	q->written[q->at++] = bytes;
}

/*
 * Buffers for @bytes, header included: chains[at] … Returns their number; 0 without room, *@why says why. @want: buffers
 * worth popping at once.
 */
uint32_t net_rx_reserve(struct net_rxq *q, uint32_t bytes, uint32_t want, uint32_t *why);
/* Buffers that are filled go to the driver, in one go. */
void net_rx_push_filled(struct net_rxq *q);
/* The same, and what is left of the stash goes back into the ring. */
void net_rx_give_back(struct net_rxq *q);
/* Copy @len bytes to where @c stands. There is room: see net_rx_reserve(). */
void net_rx_put(struct net_rx_cursor *c, const void *src, size_t len);
/* @n frames to the driver; what does not fit is dropped, and counted. */
void net_rx_deliver(struct net_rxq *q, const struct net_frame *const *frames, int n);
/* Those of them that are what nearly all are, up to the first that is not or has no buffer. Returns their number. */
int net_rx_deliver_some(struct net_rxq *q, const struct net_frame *const *frames, int n);
/* feed.c: ask for kicks, unless there are buffers for @q->need bytes by now: then true. */
bool net_rx_ask(struct net_rxq *q);

#endif
