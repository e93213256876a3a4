/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blk.c - disks and their queues: set-up, and what a worker calls.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "devices/blk/csrc/blk_int.h"

struct blk *blk_new(struct blk_store *store, const struct blk_config *config, uint64_t capacity)
{
	struct blk *blk = calloc(1, sizeof(*blk));

	if (!blk)
		return NULL;
	blk->store = store;
	blk->config = *config;
	blk->align_mask = config->blk_size - 1;
	atomic_store(&blk->capacity, capacity);
	return blk;
}

void blk_free(struct blk *blk)
{
	free(blk);
}

void blk_set_features(struct blk *blk, uint64_t features)
{
	atomic_store(&blk->features, features);
}

void blk_set_writethrough(struct blk *blk, int on)
{
	atomic_store(&blk->writethrough, on);
}

void blk_set_capacity(struct blk *blk, uint64_t bytes)
{
	atomic_store(&blk->capacity, bytes);
}

void blk_store_free(struct blk_store *store)
{
	if (store)
		store->ops->free(store);
}

uint32_t blk_store_can(const struct blk_store *store)
{
	return store->can;
}

/* --- a queue ---------------------------------------------------------------------------------------------------- */

static inline struct blk_queue *queue_of(struct ring_source *source)
{
	return (struct blk_queue *)(void *)source;
}

static int poll_store(struct blk_queue *q, int budget)
{
	struct ring_chain *chains[BLK_BATCH];
	bool share = !q->told;
	uint64_t ticks;
	int n, i;

	if (budget > BLK_BATCH)
		budget = BLK_BATCH;
	if ((uint32_t)budget > q->nr_free)
		budget = (int)q->nr_free;
	if (!budget)
		return 0;
	n = ring_vq_pop(q->source.vq, chains, budget);
	if (n <= 0)
		return n;
	q->once_few = ring_vq_in_flight(q->source.vq) <= BLK_ONCE_FEW;
	ticks = measure_ticks();
	for (i = 0; i < n; i++) {
		/* what was done on the spot: see blk_poll_inline() */
		if (share && i % BLK_SHARE == 0 && i)
			ring_vq_flush(q->source.vq);
		blk_begin(q, chains[i], ticks);
	}
	q->reap_ticks = 0;
	return n;
}

/* One popped chain under limits. Returns 0 if it has to stay in the ring for *@wait_ns. */
static int begin_limited(struct blk_queue *q, struct ring_chain *chain, uint64_t now_ns, uint64_t *wait_ns)
{
	struct blk_segment segs[BLK_SEGMENTS_MAX];
	struct blk_parsed p;

	blk_parse(q->blk, chain, &p, segs);
	if (p.status == VIRTIO_BLK_S_OK && p.op < BLK_OTHER && !blk_take(q->blk, p.op, p.len, now_ns, wait_ns))
		return 0;
	if (q->store->kind != BLK_INLINE_NO) {
		uint32_t op = p.op < BLK_OTHER ? p.op : BLK_OTHER;

		blk_serve_inline(q, chain, &p, segs);
		blk_account(q, op, p.len, p.status != VIRTIO_BLK_S_OK, 0);
		ring_source_completed(&q->source);
	} else if (p.status == VIRTIO_BLK_S_OK && p.op < BLK_OTHER) {
		blk_submit(q, chain, &p, segs, measure_ticks());
	} else {
		blk_begin(q, chain, measure_ticks());
	}
	return 1;
}

/* With limits, chains are popped one by one, and one that has no tokens goes back into the ring. */
static int poll_limited(struct blk_queue *q, int budget)
{
	struct ring_chain *chain;
	uint64_t now_ns = ring_now_ns();
	uint64_t wait_ns = 0;
	int done = 0;

	q->throttled = false;
	while (done < budget && (q->nr_free || q->store->kind != BLK_INLINE_NO)) {
		int n;

		if (!blk_may_start(q->blk, now_ns, &wait_ns)) {
			q->throttled = true;
			break;
		}
		n = ring_vq_pop(q->source.vq, &chain, 1);
		if (n < 0)
			return done ? done : n;
		if (!n)
			break;
		q->once_few = ring_vq_in_flight(q->source.vq) <= BLK_ONCE_FEW;
		if (!begin_limited(q, chain, now_ns, &wait_ns)) {
			ring_vq_unpop(q->source.vq, 1);
			q->throttled = true;
			break;
		}
		done++;
	}
	q->reap_ticks = 0;
	if (q->throttled) {
		ring_count(&q->stats.throttled, 1);
		/* limits may be changed meanwhile: look again soon */
		q->source.deadline_ns = now_ns + (wait_ns < BLK_THROTTLE_LOOK_NS ? wait_ns : BLK_THROTTLE_LOOK_NS);
	}
	return done;
}

static int queue_poll(struct ring_source *source, int budget)
{
	struct blk_queue *q = queue_of(source);
	int n;

	source->deadline_ns = 0;
	if (blk_unlikely(q->waiting != NULL))
		blk_retry_waiting(q);
	if (blk_unlikely(!budget))
		n = 0;
	else if (blk_unlikely(atomic_load_explicit(&q->blk->limited, memory_order_relaxed)))
		n = poll_limited(q, budget);
	else if (q->store->kind != BLK_INLINE_NO)
		n = blk_poll_inline(q, budget);
	else
		n = poll_store(q, budget);
	if (blk_unlikely(q->waiting != NULL) && !source->deadline_ns)
		source->deadline_ns = ring_now_ns() + 1000000;	/* io_uring was full, and no completion may be due */
	return n;
}

static void queue_flush(struct ring_source *source)
{
	struct blk_queue *q = queue_of(source);

	q->reap_ticks = 0;
	if (blk_unlikely(q->waiting != NULL))
		blk_retry_waiting(q);
	q->told = ring_vq_flush(source->vq);
}

static int queue_arm(struct ring_source *source)
{
	struct blk_queue *q = queue_of(source);

	if (q->throttled)
		return 0;	/* chains are there; the deadline says when they are taken */
	if (!q->nr_free)
		return 1;	/* completions say when */
	return ring_vq_kicks_on(source->vq);
}

static void queue_disarm(struct ring_source *source)
{
	queue_of(source)->throttled = false;
	ring_vq_kicks_off(source->vq);
}

static const struct ring_source_ops queue_ops = {
	.poll = queue_poll,
	.flush = queue_flush,
	.arm = queue_arm,
	.disarm = queue_disarm,
};

static int make_slots(struct blk_queue *q)
{
	uint32_t i;

	q->reqs = calloc(q->depth, sizeof(*q->reqs));
	if (!q->reqs)
		return -ENOMEM;
	for (i = q->depth; i-- > 0;) {
		q->reqs[i].next = q->free;
		q->free = &q->reqs[i];
	}
	q->nr_free = q->depth;
	if (q->store->mem_align <= 1)
		return 0;
	q->bounce_mem = mmap(NULL, (size_t)BLK_BOUNCES * BLK_BOUNCE_BYTES, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (q->bounce_mem == MAP_FAILED) {
		q->bounce_mem = NULL;
		return -ENOMEM;
	}
	for (i = 0; i < BLK_BOUNCES; i++)
		q->bounces[i] = (uint8_t)i;
	q->nr_bounces = BLK_BOUNCES;
	return 0;
}

static void free_queue(struct blk_queue *q)
{
	if (q->bounce_mem)
		munmap(q->bounce_mem, (size_t)BLK_BOUNCES * BLK_BOUNCE_BYTES);
	free(q->reqs);
	free(q);
}

struct ring_source *blk_queue_new(struct blk *blk, struct ring_vq *vq, uint32_t depth)
{
	struct blk_queue *q = ring_source_new(sizeof(*q), &queue_ops, vq);

	if (!q)
		return NULL;
	q->source.coalesce = true;
	q->blk = blk;
	q->store = blk->store;
	q->depth = q->store->kind == BLK_INLINE_NO ? depth : 1;	/* inline stores need no slots */
	q->waiting_end = &q->waiting;
	if (make_slots(q) < 0) {
		free_queue(q);
		return NULL;
	}
	return &q->source;
}

int blk_queue_free(struct ring_source *source)
{
	struct blk_queue *q;

	if (!source)
		return 0;
	q = queue_of(source);
	if (source->worker || q->nr_free != q->depth)
		return -EBUSY;
	free_queue(q);
	return 0;
}

void blk_queue_stats(const struct ring_source *source, struct blk_stats *out)
{
	ring_stats_copy(out, &((const struct blk_queue *)(const void *)source)->stats, sizeof(*out));
}

double blk_tick_ns(void)
{
	return ring_tick_ns();
}
