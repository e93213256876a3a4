/* SPDX-License-Identifier: Apache-2.0 */
/*
 * throttle.c - limits of a disk, shared by its queues on any workers without a lock.
 *
 * Theory of operation
 *   Generic cell rate algorithm: a bucket is one number, the time at which it would be full again. A request may
 *   start while that time is at most the burst ahead of now, and moves it on by its cost. A big request may overdraw;
 *   the ones after it wait for that. Queues that ask at the same moment may both be let in: the error is one request per
 *   queue, and is paid back.
 */
#include "devices/blk/csrc/blk_int.h"

/* Below it the sleep of a worker is as long as the gap between requests. */
#define BURST_MIN_NS 5000000u

static bool has_room(const struct blk *blk, const struct blk_bucket *bucket, uint64_t now_ns, uint64_t *wait_ns)
{
	uint64_t burst = atomic_load_explicit(&blk->burst_ns, memory_order_relaxed);
	uint64_t tat;

	if (!atomic_load_explicit(&bucket->rate, memory_order_relaxed))
		return true;
	tat = atomic_load_explicit(&bucket->tat_ns, memory_order_relaxed);
	if (tat <= now_ns + burst)
		return true;
	if (tat - burst - now_ns > *wait_ns)
		*wait_ns = tat - burst - now_ns;
	return false;
}

static void charge(struct blk_bucket *bucket, uint64_t units, uint64_t now_ns)
{
	uint64_t rate = atomic_load_explicit(&bucket->rate, memory_order_relaxed);
	uint64_t tat, from, cost;

	if (!rate || !units)
		return;
	cost = (uint64_t)((double)units * 1e9 / (double)rate);
	tat = atomic_load_explicit(&bucket->tat_ns, memory_order_relaxed);
	do {
		from = tat > now_ns ? tat : now_ns;
	} while (!atomic_compare_exchange_weak_explicit(&bucket->tat_ns, &tat, from + cost, memory_order_relaxed,
							memory_order_relaxed));
}

/* Before anything is known of the next request. */
bool blk_may_start(struct blk *blk, uint64_t now_ns, uint64_t *wait_ns)
{
	bool ok;

	*wait_ns = 0;
	ok = has_room(blk, &blk->ops[BLK_TOTAL], now_ns, wait_ns);
	return has_room(blk, &blk->bytes[BLK_TOTAL], now_ns, wait_ns) && ok;
}

/* A request of @op, when blk_may_start() said yes: take its tokens, or say how long they are to come. */
bool blk_take(struct blk *blk, uint32_t op, uint64_t bytes, uint64_t now_ns, uint64_t *wait_ns)
{
	int dir = op == BLK_READ ? BLK_IN : BLK_OUT;
	bool ok;

	*wait_ns = 0;
	ok = has_room(blk, &blk->ops[dir], now_ns, wait_ns);
	if (!has_room(blk, &blk->bytes[dir], now_ns, wait_ns) || !ok)
		return false;
	charge(&blk->ops[BLK_TOTAL], 1, now_ns);
	charge(&blk->ops[dir], 1, now_ns);
	charge(&blk->bytes[BLK_TOTAL], bytes, now_ns);
	charge(&blk->bytes[dir], bytes, now_ns);
	return true;
}

static void set(struct blk_bucket *bucket, uint64_t rate)
{
	/* old debts are forgiven: a limit that is raised counts at once */
	atomic_store_explicit(&bucket->tat_ns, 0, memory_order_relaxed);
	atomic_store_explicit(&bucket->rate, rate, memory_order_relaxed);
}

void blk_set_limits(struct blk *blk, const struct blk_limits *limits)
{
	uint64_t burst = limits->burst_ms * 1000000;

	atomic_store(&blk->burst_ns, burst > BURST_MIN_NS ? burst : BURST_MIN_NS);
	set(&blk->ops[BLK_TOTAL], limits->iops);
	set(&blk->ops[BLK_IN], limits->read_iops);
	set(&blk->ops[BLK_OUT], limits->write_iops);
	set(&blk->bytes[BLK_TOTAL], limits->bps);
	set(&blk->bytes[BLK_IN], limits->read_bps);
	set(&blk->bytes[BLK_OUT], limits->write_bps);
	atomic_store(&blk->limited, limits->iops || limits->read_iops || limits->write_iops || limits->bps ||
					    limits->read_bps || limits->write_bps);
}
