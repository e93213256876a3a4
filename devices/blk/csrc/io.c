/* SPDX-License-Identifier: Apache-2.0 */
/*
 * io.c - a request on its way through a store that may wait.
 *
 * Theory of operation
 *   go() repeats prepare, start, advance until the request is finished, pends, or has to wait for a bounce buffer or
 *   for io_uring. prepare() says what the store does next: the rest of the data in place, a part of it by way of a bounce
 *   buffer, the next segment, a stretch of zeros, a flush at the end. advance() looks at how that went.
 *
 *   Guest pieces are used in place: header and status are cut off the first and the last one, and so is what a short
 *   transfer already did. finish() restores what was cut before the chain goes back, because the queue looks at
 *   it again (dirty log).
 */
#include <string.h>

#include "devices/blk/csrc/blk_int.h"

static const _Alignas(4096) uint8_t zeros[BLK_ZEROS_BYTES];

/* --- accounting and the end ------------------------------------------------------------------------------------- */

void blk_account(struct blk_queue *q, uint32_t op, uint64_t bytes, bool failed, uint64_t ticks)
{
	ring_count(&q->stats.requests[op], 1);
	if (failed)
		ring_count(&q->stats.errors[op], 1);
	else
		ring_count(&q->stats.bytes[op], bytes);
	ring_count(&q->stats.latency[blk_bucket(ticks)], 1);
	ring_count(&q->stats.latency_ticks, ticks);
}

static uint64_t reap_ticks(struct blk_queue *q)
{
	if (!q->reap_ticks)
		q->reap_ticks = measure_ticks();
	return q->reap_ticks;
}

static void restore(struct blk_req *req, int which)
{
	if (req->cut[which]) {
		*req->cut[which] = req->whole[which];
		req->cut[which] = NULL;
	}
}

static void give_bounce(struct blk_req *req)
{
	struct blk_queue *q = req->q;

	if (req->bounce == BLK_NO_BOUNCE)
		return;
	q->bounces[q->nr_bounces++] = req->bounce;
	req->bounce = BLK_NO_BOUNCE;
}

static void finish(struct blk_req *req, int error)
{
	struct blk_queue *q = req->q;
	struct ring_chain *chain = req->chain;
	uint8_t status = error == 0 ? VIRTIO_BLK_S_OK : error == -EOPNOTSUPP ? VIRTIO_BLK_S_UNSUPP : VIRTIO_BLK_S_IOERR;
	uint32_t written = 1;

	restore(req, 0);
	restore(req, 1);
	give_bounce(req);
	if (!error && req->op == BLK_READ)
		written += req->data_len;
	shm_store8(blk_status_byte(chain), status);
	blk_account(q, req->op, req->data_len, error != 0, reap_ticks(q) - req->start_ticks);
	ring_vq_push(q->source.vq, chain, written);
	req->chain = NULL;
	req->next = q->free;
	q->free = req;
	q->nr_free++;
	ring_source_completed(&q->source);
}

/* --- pieces ----------------------------------------------------------------------------------------------------- */

static void cut(struct blk_req *req, int which, struct ring_iov *piece)
{
	if (req->cut[0] == piece || req->cut[1] == piece)
		return;	/* remembered whole already */
	req->cut[which] = piece;
	req->whole[which] = *piece;
}

/* @n bytes at the cursor are done. */
static void consume(struct blk_req *req, uint64_t n)
{
	req->left -= (uint32_t)n;
	req->offset += n;
	while (n) {
		struct ring_iov *piece = req->iov;

		if (n < piece->len) {
			cut(req, 0, piece);
			piece->base = (uint8_t *)piece->base + n;
			piece->len -= n;
			return;
		}
		n -= piece->len;
		if (req->cut[0] == piece)
			restore(req, 0);
		req->iov++;
		req->nr_iov--;
	}
}

/* The data of the chain: pieces without header and status. */
static void set_pieces(struct blk_req *req)
{
	struct ring_chain *chain = req->chain;
	uint32_t skip = BLK_HEADER;
	struct ring_iov *last;

	req->left = req->data_len;
	if (!req->data_len) {
		req->nr_iov = 0;
		return;
	}
	if (req->op == BLK_WRITE) {
		req->iov = chain->iov;
		req->nr_iov = chain->nr_out;
		while (skip >= req->iov->len) {
			skip -= (uint32_t)req->iov->len;
			req->iov++;
			req->nr_iov--;
		}
		if (skip) {
			cut(req, 0, req->iov);
			req->iov->base = (uint8_t *)req->iov->base + skip;
			req->iov->len -= skip;
		}
		return;
	}
	req->iov = chain->iov + chain->nr_out;
	req->nr_iov = chain->nr_in;
	last = &req->iov[req->nr_iov - 1];
	if (last->len == 1) {
		req->nr_iov--;
	} else {
		cut(req, 1, last);
		last->len--;
	}
}

/* Copy @n bytes at the cursor to or from a buffer of ours. */
static void copy_pieces(const struct blk_req *req, uint8_t *buf, uint64_t n, bool to_guest)
{
	const struct ring_iov *piece = req->iov;

	while (n) {
		uint64_t part = piece->len < n ? piece->len : n;

		if (to_guest)
			shm_copy_out(piece->base, buf, part);
		else
			shm_copy_in(buf, piece->base, part);
		buf += part;
		n -= part;
		piece++;
	}
}

/* The file ends here though the disk does not: the rest reads as zeros. */
static void read_zeros(struct blk_req *req)
{
	uint32_t i;

	for (i = 0; i < req->nr_iov; i++)
		memset(req->iov[i].base, 0, req->iov[i].len);
	if (req->nr_iov)
		consume(req, req->left);
}

static bool misaligned(const struct blk_req *req)
{
	const struct blk_store *store = req->q->store;
	uintptr_t mem = 0;
	uintptr_t len = 0;
	uint32_t i;

	if (req->force_bounce)
		return true;
	if (store->mem_align <= 1)
		return false;
	for (i = 0; i < req->nr_iov; i++) {
		mem |= (uintptr_t)req->iov[i].base;
		len |= req->iov[i].len;
	}
	return (mem & (store->mem_align - 1)) || (len & (store->io_align - 1));
}

/* --- the machine ------------------------------------------------------------------------------------------------ */

/* 0, or BLK_LATER: no bounce buffer is free. */
static int prepare_data(struct blk_req *req)
{
	struct blk_queue *q = req->q;
	uint8_t *buf;

	req->sub = req->op;
	if (!misaligned(req)) {
		req->x_iov = req->iov;
		req->x_nr = req->nr_iov;
		req->x_len = req->left;
		return 0;
	}
	if (req->bounce == BLK_NO_BOUNCE) {
		if (!q->nr_bounces)
			return BLK_LATER;
		req->bounce = q->bounces[--q->nr_bounces];
		ring_count(&q->stats.bounced, 1);
	}
	buf = q->bounce_mem + (size_t)req->bounce * BLK_BOUNCE_BYTES;
	req->x_len = req->left < BLK_BOUNCE_BYTES ? req->left : BLK_BOUNCE_BYTES;
	if (req->op == BLK_WRITE)
		copy_pieces(req, buf, req->x_len, false);
	req->one.base = buf;
	req->one.len = req->x_len;
	req->x_iov = &req->one;
	req->x_nr = 1;
	return 0;
}

static void prepare_zeros(struct blk_req *req)
{
	req->sub = BLK_WRITE;
	req->x_len = req->zero_left < BLK_ZEROS_BYTES ? req->zero_left : BLK_ZEROS_BYTES;
	req->one.base = (void *)(uintptr_t)zeros;
	req->one.len = req->x_len;
	req->x_iov = &req->one;
	req->x_nr = 1;
}

static int prepare(struct blk_req *req)
{
	const struct blk_segment *seg = &req->segs[req->seg];

	req->x_nr = 0;
	if (req->op == BLK_READ || req->op == BLK_WRITE)
		return prepare_data(req);
	if (req->zeroing) {
		prepare_zeros(req);
	} else if (req->op == BLK_FLUSH || req->seg == req->nr_seg) {
		req->sub = BLK_FLUSH;
	} else {
		req->sub = req->op;
		req->offset = seg->offset;
		req->x_len = seg->len;
		req->unmap = seg->unmap != 0;
	}
	return 0;
}

/* One segment is done. Returns 1 if that was all, -errno never. */
static int next_segment(struct blk_req *req)
{
	req->zeroing = 0;
	req->seg++;
	return req->seg == req->nr_seg && !req->sync_due;
}

static int advance_data(struct blk_req *req, int res)
{
	uint32_t io_align = req->q->store->io_align;
	uint64_t n = (uint64_t)res;

	if (res == -EINVAL && req->q->store->mem_align > 1 && !req->force_bounce) {
		req->force_bounce = 1;	/* the kernel is pickier than it said */
		return 0;
	}
	if (res < 0)
		return res;
	if (n > req->x_len)
		return -EIO;
	if (req->op == BLK_WRITE) {
		if (!n)
			return -EIO;
		consume(req, n);
		return req->left && n % io_align ? -EIO : !req->left;
	}
	if (req->bounce != BLK_NO_BOUNCE)
		copy_pieces(req, req->one.base, n, true);
	consume(req, n);
	if (req->left && (!n || n % io_align))
		read_zeros(req);
	return !req->left;
}

static int advance_segment(struct blk_req *req, int res)
{
	if (req->sub == BLK_FLUSH)
		return res < 0 ? res : 1;
	if (req->zeroing) {
		if (res <= 0)
			return res < 0 ? res : -EIO;
		req->offset += (uint64_t)res;
		req->zero_left -= (uint64_t)res;
		return req->zero_left ? 0 : next_segment(req);
	}
	if (res == -EOPNOTSUPP && req->op == BLK_DISCARD)
		return next_segment(req);	/* a hint that this store cannot take */
	if (res == -EOPNOTSUPP && req->op == BLK_ZERO) {
		req->zeroing = 1;
		req->zero_left = req->x_len;
		return 0;
	}
	return res < 0 ? res : next_segment(req);
}

/* The store did what it was told, with @res. 0: there is more to do; 1: finished; -errno: failed. */
static int advance(struct blk_req *req, int res)
{
	if (res == -EAGAIN || res == -EINTR) {
		if (++req->retries > BLK_RETRIES)
			return -EIO;
		req->retried = 1;
		return 0;
	}
	if (blk_unlikely(res == -EFAULT && req->fixed)) {
		req->plain = 1;		/* what was registered is not what the kernel found */
		return 0;
	}
	req->retried = 0;
	if (req->op == BLK_READ || req->op == BLK_WRITE)
		return advance_data(req, res);
	return advance_segment(req, res);
}

/* Returns BLK_LATER if it has to wait, with nothing under way. */
static int go(struct blk_req *req)
{
	struct blk_store *store = req->q->store;
	int rc;

	do {
		rc = prepare(req);
		if (rc == 0)
			rc = store->ops->start(store, req);
		if (rc == BLK_PENDING || rc == BLK_LATER)
			return rc;
		rc = advance(req, rc);
	} while (rc == 0);
	finish(req, rc < 0 ? rc : 0);
	return 0;
}

static void wait_in_line(struct blk_req *req)
{
	struct blk_queue *q = req->q;

	ring_count(&q->stats.waits, 1);
	req->next = NULL;
	*q->waiting_end = req;
	q->waiting_end = &req->next;
}

void blk_store_done(struct blk_req *req, int res)
{
	int rc = advance(req, res);

	if (rc)
		finish(req, rc < 0 ? rc : 0);
	else if (go(req) == BLK_LATER)
		wait_in_line(req);
}

/* Those that waited longest first; stops at the first that still has to. */
void blk_retry_waiting(struct blk_queue *q)
{
	while (q->waiting) {
		struct blk_req *req = q->waiting;
		struct blk_req *next = req->next;

		if (go(req) == BLK_LATER)
			return;
		q->waiting = next;
		if (!next)
			q->waiting_end = &q->waiting;
	}
}

static void io_done(struct ring_io *io, int res)
{
	blk_store_done((struct blk_req *)(void *)io, res);
}

/* A parsed request that is OK and needs the store. There is a free slot. */
void blk_submit(struct blk_queue *q, struct ring_chain *chain, const struct blk_parsed *p,
		const struct blk_segment *segs, uint64_t ticks)
{
	struct blk_req *req = q->free;

	q->free = req->next;
	q->nr_free--;
	req->io.done = io_done;
	req->done = blk_store_done;
	req->q = q;
	req->chain = chain;
	req->op = p->op;
	req->bounce = BLK_NO_BOUNCE;
	req->force_bounce = 0;
	req->zeroing = 0;
	req->retries = 0;
	req->retried = 0;
	req->fixed = 0;
	req->plain = 0;
	req->seg = 0;
	req->nr_seg = p->nr_seg;
	req->data_len = p->len;
	req->offset = p->offset;
	req->start_ticks = ticks;
	req->cut[0] = NULL;
	req->cut[1] = NULL;
	req->durable = p->op != BLK_READ && atomic_load_explicit(&q->blk->writethrough, memory_order_relaxed);
	req->sync_due = req->durable && p->op != BLK_WRITE && p->op != BLK_FLUSH;
	if (p->nr_seg)
		memcpy(req->segs, segs, p->nr_seg * sizeof(*segs));
	if (p->op == BLK_READ || p->op == BLK_WRITE) {
		set_pieces(req);
		if (!req->left) {
			finish(req, 0);
			return;
		}
	}
	if (q->waiting || go(req) == BLK_LATER)
		wait_in_line(req);
}

/* Whatever it asks for: answer it, or send it on its way. */
void blk_begin(struct blk_queue *q, struct ring_chain *chain, uint64_t ticks)
{
	struct blk_segment segs[BLK_SEGMENTS_MAX];
	struct blk_parsed p;

	blk_parse(q->blk, chain, &p, segs);
	if (blk_unlikely(p.broken)) {
		ring_vq_break(q->source.vq, RING_E_DEVICE, chain->id);
		ring_vq_push(q->source.vq, chain, 0);
		return;
	}
	if (blk_unlikely(p.status != VIRTIO_BLK_S_OK || p.op >= BLK_OTHER)) {
		uint32_t op = p.op < BLK_OTHER ? p.op : BLK_OTHER;

		ring_vq_push(q->source.vq, chain, blk_answer(q->blk, chain, &p));
		blk_account(q, op, 0, p.status != VIRTIO_BLK_S_OK, 0);
		ring_source_completed(&q->source);
		return;
	}
	blk_submit(q, chain, &p, segs, ticks);
}
