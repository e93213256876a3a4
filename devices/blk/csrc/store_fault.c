/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store_fault.c - a filter for tests: errors and delays in front of another store.
 *
 * Delays are io_uring timeouts; a worker without io_uring does not delay.
 */
#include <stdlib.h>
#include <string.h>

#include <liburing.h>

#include "devices/blk/csrc/blk_int.h"

struct fault {
	struct blk_store store;	/* must be first */
	struct blk_store *inner;
	_Atomic uint32_t error_ops, every, delay_ops;
	_Atomic int error;
	_Atomic uint64_t delay_us;
	_Atomic uint64_t seen, counted;
};

_Static_assert(sizeof(struct __kernel_timespec) == 16, "the first two words of the scratch space");

static struct fault *fault_of(struct blk_store *store)
{
	return (struct fault *)(void *)store;
}

/* The delay is over. */
static void delayed(struct ring_io *io, int res)
{
	struct blk_req *req = (struct blk_req *)(void *)io;
	struct blk_store *inner = fault_of(req->q->store)->inner;
	int rc;

	(void)res;
	memcpy(&req->io.done, &req->scratch[2], sizeof(req->io.done));
	rc = inner->ops->start(inner, req);
	if (rc == BLK_LATER)
		rc = -EAGAIN;
	if (rc != BLK_PENDING)
		req->done(req, rc);
}

static int delay(struct blk_req *req, uint64_t us)
{
	struct ring_worker *w = req->q->source.worker;
	const struct ring_worker_api *api = ring_worker_head(w)->api;
	struct __kernel_timespec ts = { .tv_sec = (int64_t)(us / 1000000), .tv_nsec = (int64_t)(us % 1000000 * 1000) };
	struct io_uring_sqe *sqe = api->sqe(w);

	if (!sqe)
		return api->uring(w) ? BLK_LATER : 0;
	memcpy(req->scratch, &ts, sizeof(ts));	/* read when it is submitted */
	memcpy(&req->scratch[2], &req->io.done, sizeof(req->io.done));
	req->io.done = delayed;
	io_uring_prep_timeout(sqe, (struct __kernel_timespec *)(void *)req->scratch, 0, 0);
	io_uring_sqe_set_data(sqe, &req->io);
	return BLK_PENDING;
}

static int fault_start(struct blk_store *store, struct blk_req *req)
{
	struct fault *f = fault_of(store);
	uint32_t bit = 1u << req->sub;
	uint32_t every = atomic_load(&f->every);

	atomic_fetch_add(&f->seen, 1);
	if (every && (atomic_load(&f->error_ops) & bit) && (atomic_fetch_add(&f->counted, 1) + 1) % every == 0)
		return -atomic_load(&f->error);
	if (atomic_load(&f->delay_us) && (atomic_load(&f->delay_ops) & bit)) {
		int rc = delay(req, atomic_load(&f->delay_us));

		if (rc)
			return rc;
	}
	return f->inner->ops->start(f->inner, req);
}

static void fault_free(struct blk_store *store)
{
	free(store);	/* the inner one stays its owner's */
}

struct blk_store *blk_fault_new(struct blk_store *inner)
{
	static const struct blk_store_ops ops = { .start = fault_start, .free = fault_free };
	struct fault *f = calloc(1, sizeof(*f));

	if (!f)
		return NULL;
	f->inner = inner;
	f->store = *inner;
	f->store.ops = &ops;
	f->store.kind = BLK_INLINE_NO;
	return &f->store;
}

void blk_fault_errors(struct blk_store *store, uint32_t ops, uint32_t every, int error)
{
	struct fault *f = fault_of(store);

	atomic_store(&f->error_ops, ops);
	atomic_store(&f->error, error);
	atomic_store(&f->counted, 0);
	atomic_store(&f->every, every);
}

void blk_fault_delay(struct blk_store *store, uint32_t ops, uint64_t delay_us)
{
	struct fault *f = fault_of(store);

	atomic_store(&f->delay_ops, ops);
	atomic_store(&f->delay_us, delay_us);
}

uint64_t blk_fault_seen(const struct blk_store *store)
{
	return atomic_load(&((const struct fault *)(const void *)store)->seen);
}
