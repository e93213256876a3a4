/* SPDX-License-Identifier: Apache-2.0 */
/*
 * span.h - buffers of one descriptor each, many at a time: what the rings of networks hold.
 *
 * A chain has a slot that says where it is until it is pushed. Buffers that are given back before anything else happens to
 * their queue need none: they are read from the ring into the caller's list, and used, or left as they are.
 *
 *	n = ring_vq_peek(vq, &span, 32, 0);		nothing has happened to the queue yet
 *	...						no other call on this queue
 *	ring_vq_consume(vq, &span, NULL, n);		or fewer: the others come again
 *	ring_vq_flush(vq);
 */
#ifndef RING_SPAN_H
#define RING_SPAN_H

#include "ring/csrc/ring.h"

enum { RING_SPAN_MAX = 64 };

/* Filled by ring_vq_peek(); @id is the queue's own. */
struct ring_span {
	struct ring_iov iov[RING_SPAN_MAX];
	uint16_t id[RING_SPAN_MAX];
};

/*
 * The next buffers of the ring, at most @max of them, up to one that is not alike: readable ones, or with @in 1 writable. Returns
 * their number; 0: the ring is empty; -1: ring_vq_pop() is to be asked, for what comes next is of another kind, or
 * something is in flight, or the queue wants more than its ring (a log, an IOTLB, an inflight record, IN_ORDER).
 * What they point to is not fetched.
 */
int ring_vq_peek(struct ring_vq *vq, struct ring_span *span, int max, int in);
/* The first @n of @span are done; @written: bytes of each, not more than there are, NULL: nothing. Staged, as by ring_vq_push(). */
void ring_vq_consume(struct ring_vq *vq, const struct ring_span *span, const uint32_t *written, int n);

#endif
