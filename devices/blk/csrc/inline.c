/* SPDX-License-Identifier: Apache-2.0 */
/*
 * inline.c - stores that never wait, null and memory: a request is popped, served and pushed in one go, without a slot.
 *
 * This is the path that shows what rings and worker cost. Counters are added once per batch, and only one batch in
 * BLK_SAMPLE is timed.
 */
#include <string.h>
#include <sys/mman.h>

#include "devices/blk/csrc/blk_int.h"

/* Copy @len data bytes between guest pieces, @skip bytes into them, and @mem. */
static void copy_data(const struct ring_iov *iov, uint32_t skip, uint8_t *mem, uint32_t len, bool to_guest)
{
	while (skip >= iov->len && len) {
		skip -= (uint32_t)iov->len;
		iov++;
	}
	while (len) {
		size_t part = iov->len - skip;

		if (part > len)
			part = len;
		if (to_guest)
			shm_copy_out((uint8_t *)iov->base + skip, mem, part);
		else
			shm_copy_in(mem, (uint8_t *)iov->base + skip, part);
		mem += part;
		len -= (uint32_t)part;
		skip = 0;
		iov++;
	}
}

/* Discard, write zeroes and secure erase of memory all make zeros; whole pages go back to the system. */
static void zero_memory(uint8_t *mem, uint64_t len, bool unmap)
{
	uintptr_t page = 4095;
	uint8_t *from = (uint8_t *)(((uintptr_t)mem + page) & ~page);
	uint8_t *to = (uint8_t *)(((uintptr_t)mem + len) & ~page);

	if (unmap && from < to && madvise(from, (size_t)(to - from), MADV_DONTNEED) == 0) {
		memset(mem, 0, (size_t)(from - mem));
		memset(to, 0, (size_t)(mem + len - to));
		return;
	}
	memset(mem, 0, len);
}

static void serve_segments(struct blk_queue *q, const struct blk_parsed *p, const struct blk_segment *segs)
{
	uint32_t i;

	if (q->store->kind != BLK_INLINE_MEMORY)
		return;
	for (i = 0; i < p->nr_seg; i++) {
		uint8_t *mem = blk_memory_bytes(q->store) + segs[i].offset;

		if (p->op == BLK_ERASE)	/* overwritten, not merely given up */
			zero_memory(mem, segs[i].len, false);
		else
			zero_memory(mem, segs[i].len, p->op == BLK_DISCARD || segs[i].unmap);
	}
}

/* A parsed chain, whatever its status: serve, answer, push. */
void blk_serve_inline(struct blk_queue *q, struct ring_chain *chain, const struct blk_parsed *p,
		      const struct blk_segment *segs)
{
	uint32_t written = 1;

	if (blk_unlikely(p->broken)) {
		ring_vq_break(q->source.vq, RING_E_DEVICE, chain->id);
		ring_vq_push(q->source.vq, chain, 0);
		return;
	}
	if (blk_unlikely(p->status != VIRTIO_BLK_S_OK || p->op > BLK_WRITE)) {
		if (p->status == VIRTIO_BLK_S_OK)
			serve_segments(q, p, segs);
		ring_vq_push(q->source.vq, chain, blk_answer(q->blk, chain, p));
		return;
	}
	if (q->store->kind == BLK_INLINE_MEMORY) {
		uint8_t *mem = blk_memory_bytes(q->store) + p->offset;

		if (p->op == BLK_READ)
			copy_data(chain->iov + chain->nr_out, 0, mem, p->len, true);
		else
			copy_data(chain->iov, BLK_HEADER, mem, p->len, false);
	}
	if (p->op == BLK_READ)
		written += p->len;
	shm_store8(blk_status_byte(chain), VIRTIO_BLK_S_OK);
	ring_vq_push(q->source.vq, chain, written);
}

static void account(struct blk_queue *q, const uint32_t *requests, const uint64_t *bytes, uint64_t ticks, uint32_t n)
{
	int op;

	for (op = BLK_READ; op <= BLK_WRITE; op++) {
		if (!requests[op])
			continue;
		ring_count(&q->stats.requests[op], requests[op]);
		ring_count(&q->stats.bytes[op], bytes[op]);
	}
	if (ticks) {
		ticks = measure_ticks() - ticks;
		ring_count(&q->stats.latency[blk_bucket(ticks)], (uint64_t)n * BLK_SAMPLE);
		ring_count(&q->stats.latency_ticks, ticks * n * BLK_SAMPLE);
	}
}

/*
 * What the next request copies is on its way while this one is copied: into the second level cache, which has room for
 * more lines under way than the first, and all of them: the processor's own guess ends at a page and starts late.
 */
static void fetch_ahead(const struct blk_queue *q, const struct blk_parsed *p)
{
	const uint8_t *mem;
	uint32_t len = p->len < BLK_AHEAD_BYTES ? p->len : BLK_AHEAD_BYTES;
	uint32_t at;

	if (q->store->kind != BLK_INLINE_MEMORY || p->op > BLK_WRITE || p->status != VIRTIO_BLK_S_OK)
		return;
	mem = blk_memory_bytes(q->store) + p->offset;
	if (p->op == BLK_READ) {
		for (at = 0; at < len; at += SHM_LINE)
			__builtin_prefetch(mem + at, 0, 2);
	} else {
		for (at = 0; at < len; at += SHM_LINE)
			__builtin_prefetch(mem + at, 1, 2);
	}
}

int blk_poll_inline(struct blk_queue *q, int budget)
{
	struct ring_chain *chains[BLK_BATCH];
	struct blk_segment segs[2][BLK_SEGMENTS_MAX];
	struct blk_parsed parsed[2];
	uint32_t requests[2] = { 0, 0 };
	uint64_t bytes[2] = { 0, 0 };
	uint64_t ticks = 0;
	bool share = !q->told;
	int n, i;

	n = ring_vq_pop(q->source.vq, chains, budget < BLK_BATCH ? budget : BLK_BATCH);
	if (n <= 0)
		return n;
	if (blk_unlikely(++q->batch % BLK_SAMPLE == 0))
		ticks = measure_ticks();
	blk_parse(q->blk, chains[0], &parsed[0], segs[0]);
	for (i = 0; i < n; i++) {
		const struct blk_parsed *p = &parsed[i & 1];

		/* A driver that polls works on the first while we serve the rest. One that sleeps is woken once. */
		if (share && i % BLK_SHARE == 0 && i)
			ring_vq_flush(q->source.vq);
		if (i + 1 < n) {
			struct blk_parsed *next = &parsed[(i + 1) & 1];

			blk_parse(q->blk, chains[i + 1], next, segs[(i + 1) & 1]);
			fetch_ahead(q, next);
		}
		blk_serve_inline(q, chains[i], p, segs[i & 1]);
		if (blk_likely(p->op <= BLK_WRITE && p->status == VIRTIO_BLK_S_OK)) {
			requests[p->op]++;
			bytes[p->op] += p->len;
		} else {
			uint32_t op = p->op < BLK_OTHER ? p->op : BLK_OTHER;

			ring_count(&q->stats.requests[op], 1);
			ring_count(&q->stats.errors[op], p->status != VIRTIO_BLK_S_OK);
		}
	}
	account(q, requests, bytes, ticks, (uint32_t)n);
	q->told = ring_vq_flush(q->source.vq);
	return n;
}
