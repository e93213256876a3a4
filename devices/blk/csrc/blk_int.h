/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blk_int.h - inside of virtio-blk: between blk.c (disk, queue), request.c (what a guest asks for), io.c (a request on
 * its way through a store), throttle.c and the stores.
 *
 * The way of a request
 *   poll pops a batch; parse() looks at a chain once and says what it is or which status it gets. Stores that never wait
 *   are served on the spot (inline.c). For others a slot (struct blk_req) is taken and goes to the store in parts:
 *   prepare -> start -> (done) -> advance -> prepare ..., until finish() writes the status byte and pushes the chain.
 */
#ifndef BLK_INT_H
#define BLK_INT_H

#include <errno.h>
#include <linux/virtio_blk.h>
#include <stdatomic.h>
#include <time.h>

#include "devices/blk/csrc/blk.h"
#include "ring/csrc/shm.h"
#include "ring/csrc/stats.h"

#define blk_likely(x) __builtin_expect(!!(x), 1)
#define blk_unlikely(x) __builtin_expect(!!(x), 0)

enum {
	BLK_BATCH = 64,			/* chains popped at once */
	BLK_AHEAD_BYTES = 16 * 1024,	/* fetched ahead of a copy: more would push out what is being copied */
	BLK_SHARE = 8,			/* chains published at once for a driver that polls */
	BLK_BOUNCES = 8,		/* buffers of a queue for what O_DIRECT does not take in place */
	BLK_BOUNCE_BYTES = 256 * 1024,
	BLK_ZEROS_BYTES = 256 * 1024,	/* zeros are written this much at a time */
	BLK_RETRIES = 64,		/* of an operation that was interrupted */
	BLK_THROTTLE_LOOK_NS = 50000000,	/* longest sleep of a queue that waits for tokens */
	BLK_HEADER = 16,
	BLK_SEGMENT_BYTES = 16,
	BLK_ID_REQ = 32,		/* op of parsed requests that need no store, besides BLK_OPS */
	BLK_LIFETIME_REQ = 33,
	BLK_LIFETIME_BYTES = 6,
	BLK_SAMPLE = 16,		/* batches of which one is timed, where nothing ever waits */
	BLK_ONCE_BYTES = 64 * 1024,	/* of longer reads the call is the smaller part */
	BLK_ONCE_MANY_BYTES = 16 * 1024,	/* likewise, of a file in memory with many in flight: others wait */
	BLK_ONCE_FEW = 2,		/* of more requests io_uring makes one call, which costs less than one each */
	BLK_ONCE_MISSES = 3,		/* in a row that are nothing special */
	BLK_ONCE_SKIP = 10,		/* log2 of the most requests left out after more of them */

	/* what blk_store_ops.start returns besides bytes and -errno */
	BLK_PENDING = -10001,		/* done() follows */
	BLK_LATER = -10002,		/* no room now, try again */

	BLK_NO_BOUNCE = 255,
};

struct blk_queue;
struct blk_req;

struct blk_store_ops {
	/*
	 * Begin what @req's store part says (sub, offset, x_*). On the worker's thread. Bytes done (0 for operations
	 * without data) if that was all; -errno; BLK_PENDING; BLK_LATER.
	 */
	int (*start)(struct blk_store *store, struct blk_req *req);
	void (*free)(struct blk_store *store);
};

enum blk_inline { BLK_INLINE_NO, BLK_INLINE_NULL, BLK_INLINE_MEMORY };

struct blk_store {
	const struct blk_store_ops *ops;
	uint32_t can;			/* BLK_CAN_* */
	uint32_t io_align;		/* offsets and lengths, 1 where it does not matter */
	uint32_t mem_align;		/* buffers */
	enum blk_inline kind;
};

struct blk_segment {
	uint64_t offset;	/* bytes */
	uint64_t len;		/* bytes */
	uint32_t unmap;
	uint32_t pad;
};

/* A request at the store. Slots belong to a queue. */
struct blk_req {
	struct ring_io io;		/* for stores on io_uring */
	struct ring_task task;		/* for stores on threads of their own */
	void (*done)(struct blk_req *req, int res);	/* on the worker's thread, after BLK_PENDING */

	/* what the store is to do now */
	uint8_t sub;			/* BLK_READ ... BLK_ERASE */
	uint8_t durable;		/* a write: done when durable */
	uint8_t unmap;			/* BLK_ZERO: may deallocate */
	uint8_t retried;		/* the last try said EAGAIN: it may block now */
	uint8_t fixed;			/* the store uses a registered buffer for it */
	uint8_t plain;			/* the store is not to do that */
	uint32_t x_nr;
	const struct ring_iov *x_iov;	/* buffers of this part */
	uint64_t x_len;			/* bytes of this part */
	uint64_t offset;		/* bytes, of this part */

	/* io.c's own */
	struct blk_queue *q;
	struct ring_chain *chain;
	struct blk_req *next;		/* free, or waiting */
	struct ring_iov *iov;		/* guest pieces still to do */
	uint32_t nr_iov;
	uint32_t left;			/* bytes of them */
	uint32_t data_len;
	uint8_t op;
	uint8_t bounce;			/* index or BLK_NO_BOUNCE */
	uint8_t force_bounce;
	uint8_t sync_due;		/* a flush follows before it is complete */
	uint8_t zeroing;		/* zeros are written because the store cannot deallocate */
	uint8_t retries;
	uint8_t nr_seg;
	uint8_t seg;
	uint64_t zero_left;
	uint64_t start_ticks;
	struct ring_iov one;		/* x_iov of a bounce buffer, or of zeros */
	/* pieces that were cut to the data, as they were: the one at the cursor and the last one */
	struct ring_iov *cut[2];
	struct ring_iov whole[2];
	uint64_t scratch[3];		/* the store's own */
	struct blk_segment segs[BLK_SEGMENTS_MAX];
};

struct blk_queue {
	struct ring_source source;	/* must be first */
	struct blk *blk;
	struct blk_store *store;
	struct blk_req *free;
	struct blk_req *waiting;	/* oldest first */
	struct blk_req **waiting_end;
	uint64_t reap_ticks;		/* of the completions being reaped; 0: not asked yet */
	uint32_t nr_free;
	uint32_t depth;
	uint32_t batch;			/* counts, for sampling */
	uint32_t fixed_gen;		/* io_uring's fixed file: see store_file.c */
	int fixed;
	uint32_t once_skip;		/* reads that are not tried at once: see store_file.c */
	uint32_t once_misses;		/* in a row */
	bool once_never;		/* this file cannot do it */
	bool told;			/* the driver wanted to be told of the last batch */
	bool once_few;			/* few requests are in flight */
	bool throttled;
	uint8_t nr_bounces;		/* free ones */
	uint8_t bounces[BLK_BOUNCES];
	uint8_t *bounce_mem;
	struct blk_req *reqs;
	_Alignas(64) struct blk_stats stats;
};

/* Generic cell rate algorithm: @tat is when the bucket would be full again. */
struct blk_bucket {
	_Atomic uint64_t rate;	/* units per second; 0: no limit */
	_Atomic uint64_t tat_ns;
};

enum { BLK_TOTAL, BLK_IN, BLK_OUT, BLK_DIRECTIONS };

struct blk {
	struct blk_store *store;
	struct blk_config config;
	uint32_t align_mask;		/* blk_size - 1 */
	_Atomic uint64_t capacity;	/* bytes */
	_Atomic uint64_t features;
	_Atomic int writethrough;
	_Atomic int limited;
	_Atomic uint64_t burst_ns;
	struct blk_bucket ops[BLK_DIRECTIONS];
	struct blk_bucket bytes[BLK_DIRECTIONS];
};

/* What a chain asks for, checked. */
struct blk_parsed {
	uint8_t op;		/* BLK_* */
	uint8_t status;		/* VIRTIO_BLK_S_OK, or why not */
	uint8_t broken;		/* no place for a status */
	uint8_t nr_seg;
	uint32_t len;		/* data bytes */
	uint64_t offset;	/* bytes */
};

/* request.c */
void blk_parse(const struct blk *blk, const struct ring_chain *chain, struct blk_parsed *p, struct blk_segment *segs);
/* Answer a request that needs no store. Returns bytes written, status included. */
uint32_t blk_answer(const struct blk *blk, const struct ring_chain *chain, const struct blk_parsed *p);

/* io.c */
void blk_begin(struct blk_queue *q, struct ring_chain *chain, uint64_t ticks);
void blk_submit(struct blk_queue *q, struct ring_chain *chain, const struct blk_parsed *p,
		const struct blk_segment *segs, uint64_t ticks);
void blk_store_done(struct blk_req *req, int res);
void blk_retry_waiting(struct blk_queue *q);
void blk_account(struct blk_queue *q, uint32_t op, uint64_t bytes, bool failed, uint64_t ticks);

/* inline.c: stores that never wait */
int blk_poll_inline(struct blk_queue *q, int budget);
void blk_serve_inline(struct blk_queue *q, struct ring_chain *chain, const struct blk_parsed *p,
		      const struct blk_segment *segs);

/* throttle.c; @wait_ns is set where the answer is no */
bool blk_may_start(struct blk *blk, uint64_t now_ns, uint64_t *wait_ns);
bool blk_take(struct blk *blk, uint32_t op, uint64_t bytes, uint64_t now_ns, uint64_t *wait_ns);

/* store_mem.c */
uint8_t *blk_memory_bytes(struct blk_store *store);

static inline SHM uint8_t *blk_status_byte(const struct ring_chain *chain)
{
	const struct ring_iov *last = &chain->iov[chain->nr_out + chain->nr_in - 1];

	return (SHM uint8_t *)last->base + (last->len - 1);
}

static inline uint32_t blk_bucket(uint64_t ticks)
{
	uint32_t b;

	if (ticks <= 1u << BLK_LATENCY_SHIFT)
		return 0;
	b = 64 - (uint32_t)__builtin_clzll(ticks - 1) - BLK_LATENCY_SHIFT;
	return b < BLK_LATENCY_BUCKETS ? b : BLK_LATENCY_BUCKETS - 1;
}

#endif
