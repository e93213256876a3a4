/* SPDX-License-Identifier: Apache-2.0 */
/*
 * span.c - see span.h.
 *
 * Theory of operation
 *   While nothing is in flight no id can be taken twice, but for one that a span has twice: it is given back twice. So slots
 *   need not be looked at. Whatever else is odd ends a span, and ring_vq_pop() judges it.
 *
 *   Lines of a packed ring are taken whole: the flags of four descriptors in the order in which the driver may have written them, then
 *   one test for all. No line behind the first that is not available is touched: the driver is writing there.
 */
#include "ring/csrc/span.h"
#include "ring/csrc/walk.h"

enum {
	LINE = 4,		/* descriptors */
	FEW = 8,		/* buffers; see split_peek() */
};

/* Is this a queue whose buffers need no slots? */
VQ_INLINE bool spans_allowed(const struct ring_vq *vq)
{
	return vq_running(vq) && !vq_faulted(vq) && !(vq->slow & (VQ_SLOW_POP | VQ_SLOW_PUSH)) && !vq->in_flight &&
	       !vq->hold;
}

/* Buffer @n of @span. False: an odd one. */
VQ_INLINE bool span_add(struct ring_vq *vq, struct vq_single *r, struct ring_span *span, uint32_t n, uint64_t g_addr,
			uint32_t g_len, uint32_t g_id)
{
	uint8_t *base = single_at(vq, r, g_addr, g_len);

	if (vq_unlikely(base == NULL || g_id >= vq->size))
		return false;
	span->iov[n].base = base;
	span->iov[n].len = g_len;
	span->id[n] = (uint16_t)g_id;
	return true;
}

/* --- packed ----------------------------------------------------------------------------------------------------- */

VQ_INLINE bool packed_add(struct ring_vq *vq, struct vq_single *r, struct ring_span *span, uint32_t n,
			  const SHM uint8_t *at, uint64_t second)
{
	return span_add(vq, r, span, n, shm_load64(at), (uint32_t)second, (uint32_t)(second >> 32) & 0xffff);
}

/* @nr slots from @at on, none of which is behind the end of the ring: up to the first that is not as @want has it. */
VQ_INLINE uint32_t packed_run(struct ring_vq *vq, struct vq_single *r, struct ring_span *span, uint32_t n,
			      const SHM uint8_t *at, uint32_t nr, uint64_t want)
{
	const uint64_t alike = (uint64_t)(VQ_DESC_AVAIL | VQ_DESC_USED | VQ_DESC_NEXT | VQ_DESC_INDIRECT | VQ_DESC_WRITE)
			       << 48;
	uint32_t end = n + nr, i;
	uint64_t d[LINE];

	while (n + LINE <= end) {
		uint64_t odd = 0;

		/* Pairs with the driver's release of a head's flags: all before it, and the rest of it, is there. */
		for (i = 0; i < LINE; i++) {
			d[i] = shm_load64_acquire(at + (size_t)VQ_DESC_BYTES * i + 8);
			odd |= d[i] ^ want;
		}
		if (vq_unlikely(odd & alike))
			break;
		for (i = 0; i < LINE; i++, n++, at += VQ_DESC_BYTES) {
			if (vq_unlikely(!packed_add(vq, r, span, n, at, d[i])))
				return n;
		}
	}
	for (; n < end; n++, at += VQ_DESC_BYTES) {
		d[0] = shm_load64_acquire(at + 8);	/* as above */
		if ((d[0] ^ want) & alike || vq_unlikely(!packed_add(vq, r, span, n, at, d[0])))
			break;
	}
	return n;
}

static int packed_peek(struct ring_vq *vq, struct ring_span *span, uint32_t max, uint32_t in)
{
	uint32_t pos = vq->avail_pos, room = vq->size - vq->taken, most = vq->size - pos, n;
	uint64_t wrote = in ? (uint64_t)VQ_DESC_WRITE << 48 : 0;
	uint64_t want = (uint64_t)(vq->avail_wrap ? VQ_DESC_AVAIL : VQ_DESC_USED) << 48;
	struct vq_single r;

	if (vq_unlikely(max > room)) {	/* the driver has not got the rest back: an error, if it is there */
		if (!room)
			return -1;
		max = room;
	}
	single_init(vq, &r);
	n = packed_run(vq, &r, span, 0, vq->desc + (size_t)VQ_DESC_BYTES * pos, most < max ? most : max, want | wrote);
	if (vq_unlikely(n == most && n < max)) {
		want ^= (uint64_t)(VQ_DESC_AVAIL | VQ_DESC_USED) << 48;
		n = packed_run(vq, &r, span, n, vq->desc, max - n, want | wrote);
	}
	if (n)
		return (int)n;
	return packed_ready(vq) ? -1 : 0;
}

static void packed_consume(struct ring_vq *vq, const struct ring_span *span, const uint32_t *written, uint32_t n)
{
	uint32_t avail = vq->avail_pos + n, pos = vq->used_pos, size = vq->size, i = 0;
	uint64_t used = vq->used_wrap ? VQ_DESC_AVAIL | VQ_DESC_USED : 0;

	vq->taken += n;
	if (avail >= size) {
		avail -= size;
		vq->avail_wrap ^= 1;
	}
	vq->avail_pos = avail;
	if (!vq->staged_slots) {	/* flush writes it */
		packed_stage(vq, span->id[0], 1, written != NULL ? written[0] : 0);
		pos = vq->used_pos;
		used = vq->used_wrap ? VQ_DESC_AVAIL | VQ_DESC_USED : 0;
		i = 1;
	}
	vq->staged_slots += n - i;
	vq->staged_chains += n - i;
	for (; i < n; i++) {
		uint64_t bytes = written != NULL ? written[i] : 0;
		uint64_t flags = used | (bytes ? VQ_DESC_WRITE : 0);

		shm_store64(vq->desc + (size_t)VQ_DESC_BYTES * pos + 8, bytes | (uint64_t)span->id[i] << 32 | flags << 48);
		if (vq_unlikely(++pos == size)) {
			pos = 0;
			used ^= VQ_DESC_AVAIL | VQ_DESC_USED;
		}
	}
	vq->used_pos = pos;
	vq->used_wrap = used != 0;
}

/* --- split ------------------------------------------------------------------------------------------------------ */

static int split_peek(struct ring_vq *vq, struct ring_span *span, uint32_t max, uint32_t in)
{
	uint16_t last = vq->last_avail;
	uint32_t want = in ? VQ_DESC_WRITE : 0, n, line = UINT32_MAX;
	struct vq_single r;
	uint32_t g_new;

	/* Both lines at the same time, where that counts; a driver that sends many is writing in the second. */
	if (vq->span_was < FEW)
		__builtin_prefetch(vq->avail + VQ_AVAIL_RING + 2 * (last & vq->mask));
	/* Pairs with the driver's release of avail->idx: heads and descriptors are there. */
	g_new = (uint16_t)(shm_load16_acquire(vq->avail + VQ_AVAIL_IDX) - last);
	if (!g_new)
		return 0;
	if (vq_unlikely(g_new > vq->size))
		return -1;
	shm_prefetch_write(vq->used + VQ_USED_RING + 8 * (vq->staged & vq->mask));
	if (max > g_new)
		max = g_new;
	for (n = 0; n < max; n++) {
		uint16_t g_head = shm_load16(vq->avail + VQ_AVAIL_RING + 2 * ((last + n) & vq->mask));

		if (vq_unlikely(g_head >= vq->size))
			break;
		span->id[n] = g_head;
		if (g_head / LINE != line) {
			line = g_head / LINE;
			__builtin_prefetch(vq->desc + (size_t)VQ_DESC_BYTES * g_head);
		}
	}
	max = n;
	single_init(vq, &r);
	for (n = 0; n < max; n++) {
		uint32_t id = span->id[n], flags;
		uint64_t d[2];

		shm_load_desc(d, vq->desc + (size_t)VQ_DESC_BYTES * id);
		flags = (uint32_t)(d[1] >> 32) & (VQ_DESC_NEXT | VQ_DESC_INDIRECT | VQ_DESC_WRITE);
		if (vq_unlikely(flags != want || !span_add(vq, &r, span, n, d[0], (uint32_t)d[1], id)))
			break;
	}
	return n ? (int)n : -1;
}

static void split_consume(struct ring_vq *vq, const struct ring_span *span, const uint32_t *written, uint32_t n)
{
	SHM uint8_t *ring = vq->used + VQ_USED_RING;
	uint32_t mask = vq->mask, i;
	uint16_t staged = vq->staged;

	for (i = 0; i < n; i++, staged++) {	/* wraps on purpose */
		SHM uint8_t *entry = ring + 8 * (staged & mask);

		shm_store32(entry, span->id[i]);
		shm_store32(entry + 4, written != NULL ? written[i] : 0);
	}
	vq->staged = staged;
	vq->last_avail = (uint16_t)(vq->last_avail + n);	/* wraps on purpose */
}

/* --- either ----------------------------------------------------------------------------------------------------- */

int ring_vq_peek(struct ring_vq *vq, struct ring_span *span, int max, int in)
{
	if (max > RING_SPAN_MAX)
		max = RING_SPAN_MAX;
	if (vq_unlikely(!spans_allowed(vq) || max <= 0))
		return -1;
	return vq->packed ? packed_peek(vq, span, (uint32_t)max, (uint32_t)in) :
			    split_peek(vq, span, (uint32_t)max, (uint32_t)in);
}

void ring_vq_consume(struct ring_vq *vq, const struct ring_span *span, const uint32_t *written, int n)
{
	if (vq_unlikely(n <= 0 || !vq_running(vq)))
		return;
	if (vq->packed)
		packed_consume(vq, span, written, (uint32_t)n);
	else
		split_consume(vq, span, written, (uint32_t)n);
	vq->span_was = (uint32_t)n;
	vq->popped += (uint32_t)n;
	ring_count(&vq->stats.popped, (uint64_t)n);
	ring_count(&vq->stats.batches, 1);
}
