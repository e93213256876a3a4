/* SPDX-License-Identifier: Apache-2.0 */
/*
 * loadgen.h - what load generators share: figures of a run, sleeping, and the loop of those that send requests.
 *
 * Theory of operation of struct gen
 *   Every request in flight has a slot. One loop takes what came back, sends as much again and publishes once per queue
 *   and round. The clock is read once per round that found something: a round's completions share one time, which is
 *   also the send time of what replaces them.
 *
 *   Closed loop (rate 0): a slot is sent again at once. Open loop: requests are due at fixed times whatever the device
 *   does, and latency counts from the time due, so that a stalled device is not flattered.
 *
 *   Sleeping follows a Linux driver: notifications off while working, on when nothing is left, one more look, poll().
 *
 *   What is sent and what must come back is the device's: struct gen_ops, a constant, so that its functions are known
 *   where the loop is compiled.
 */
#ifndef RING_LOADGEN_H
#define RING_LOADGEN_H

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <unistd.h>

#include "ring/csrc/driver.h"
#include "ring/csrc/measure.h"

/* cffi:begin */
enum {
	GEN_QUEUES = 64,
	GEN_DEPTH = 1024,	/* requests in flight per queue */
	GEN_HIST = 3776,	/* buckets of the histogram: measure.h */

	GEN_RUN = 0,		/* what a generator does: send all the time */
	GEN_ONCE = 1,		/* everything once, in order; returns when all came back */
	GEN_DRAIN = 2,		/* begin nothing; returns when nothing is in flight */

	GEN_E_RING = 1,		/* kinds of errors, for first_error; the device broke the ring: RING_E_* */
	GEN_E_LENGTH = 2,	/* what came back has another length */
	GEN_E_DATA = 3,		/* ... or other contents */
	GEN_E_OWN = 16,		/* from here on: of one generator only */
};

/* Of a run; the statistics of every generator begin with it. */
struct gen_stats {
	uint64_t ns;		/* measured time, by CLOCK_MONOTONIC */
	uint64_t ticks;		/* the same in the ticks that the histogram counts */
	uint64_t cpu_ns;	/* CPU time of the generator's thread */
	uint64_t done;		/* what came back */
	uint64_t errors;
	uint64_t first_error;	/* GEN_E_* or the generator's own */
	uint64_t first_error_info;
	uint64_t kicks;
	uint64_t calls;		/* notifications the device sent */
	uint64_t batches;	/* looks that found something */
	uint64_t max_batch;
	uint64_t sleeps;
	uint64_t voluntary;	/* context switches of the generator's thread */
	uint64_t involuntary;
	uint64_t late;		/* rate-limited: sent more than one interval after they were due */
	uint64_t samples;	/* latencies in the histogram; only of what was sent and came back within the run */
	uint64_t max_ticks;
	uint64_t hist[3776];	/* GEN_HIST */
};

/* Middle of histogram bucket @bucket, in ticks. */
uint64_t gen_hist_value(uint32_t bucket);
/* cffi:end */

_Static_assert((int)GEN_HIST == (int)MEASURE_HIST, "the histogram is measure.h's");

#define GEN_INLINE static inline __attribute__((always_inline))

/* --- figures of any generator */

/* What was spent when a run began. */
struct gen_account {
	struct rusage usage;
	uint64_t cpu_ns, ns, ticks;
};

/* This thread's figures from now on; it wakes from sleep without slack. */
void gen_account_begin(struct gen_account *account);
void gen_account_end(const struct gen_account *account, struct gen_stats *stats);
/* Sleep until one of @fds can be read, at most @limit_ns; @revents are 0 if that did not work. */
void gen_sleep(struct gen_stats *stats, struct pollfd *fds, nfds_t nr, uint64_t limit_ns);
/* Take what was called on a non-blocking eventfd; -1: there is none. */
void gen_drain_calls(struct gen_stats *stats, int call_fd);

static inline void gen_fail(struct gen_stats *stats, uint64_t kind, uint64_t info)
{
	if (stats->errors++ == 0) {
		stats->first_error = kind;
		stats->first_error_info = info;
	}
}

static inline void gen_note_latency(struct gen_stats *stats, uint64_t sent, uint64_t now)
{
	uint64_t took = now > sent ? now - sent : 0;

	stats->hist[measure_bucket(took)]++;
	stats->samples++;
	if (took > stats->max_ticks)
		stats->max_ticks = took;
}

/* Make visible what was added, and kick if the device wants that. 0, -EIO. */
static inline int gen_publish(struct gen_stats *stats, struct ring_drv *drv, int kick_fd)
{
	uint64_t one = 1;

	if (!ring_drv_publish(drv))
		return 0;
	stats->kicks++;
	/* EAGAIN: the counter is full, so the other side will look */
	return write(kick_fd, &one, sizeof(one)) < 0 && errno != EAGAIN ? -EIO : 0;
}

/* --- generators of requests */

/* The device's queue begins with it. */
struct gen_queue {
	struct ring_drv *drv;
	int kick_fd, call_fd;
	bool over;		/* GEN_ONCE: went through all of it */
	uint32_t nr_free;
	uint32_t dirty;		/* added, not published */
	uint16_t free[GEN_DEPTH];
	uint64_t sent[GEN_DEPTH];	/* by slot, ticks; before the run's start: not measured */
};

/* The device's generator begins with it. */
struct gen {
	struct gen_stats *stats;
	uint64_t rate;		/* per second over all queues; 0: as fast as they come back */
	bool poll;		/* never sleep */
	uint64_t start;		/* of this run, ticks */
	int mode;		/* GEN_RUN, ... */
	uint64_t in_flight;
	double ticks_per_ns;
	/* open loop */
	double interval;	/* ticks between requests */
	double due;		/* of the next one */
	uint32_t turn;		/* queue it goes to */
	uint32_t nr_queues;
	int broken;
	int stop;		/* atomic */
	struct gen_queue *queues[GEN_QUEUES];
};

struct gen_ops {
	/* Before anything is sent in a run: where queue @number goes on. */
	void (*begin)(struct gen *g, struct gen_queue *q, uint32_t number);
	/* Add slot @nr's request to the ring, counting it in @dirty. False: there is none, or no room. */
	bool (*send)(struct gen *g, struct gen_queue *q, uint16_t nr);
	/* Look at what came back. True: the slot is free again; false: more of the same was sent for it. */
	bool (*take)(struct gen *g, struct gen_queue *q, const struct ring_drv_used *used);
	/* After a round that found something; may be NULL. */
	void (*after)(struct gen *g);
};

/*
 * Add @q, from calloc() and owned from now on, with @depth slots that are all free. The caller keeps the ring.
 * 0, -ENOSPC, -ENOMEM: @q is freed then.
 */
int gen_add_queue(struct gen *g, struct gen_queue *q, struct ring_drv *drv, int kick_fd, int call_fd, uint32_t depth);
/* Frees the queues. */
void gen_close(struct gen *g);
void gen_stop(struct gen *g);	/* from any thread */
/* Sleep until a queue calls, at most @limit_ns. */
void gen_sleep_on_calls(struct gen *g, uint64_t limit_ns);

static inline void gen_kick(struct gen *g, struct gen_queue *q)
{
	if (q->dirty == 0)
		return;
	q->dirty = 0;
	if (gen_publish(g->stats, q->drv, q->kick_fd) < 0)
		g->broken = -EIO;
}

/* Send one request of @q; its latency counts from @when. False if it cannot. */
GEN_INLINE bool gen_send(struct gen *g, struct gen_queue *q, uint64_t when, const struct gen_ops *ops)
{
	uint16_t nr = q->free[q->nr_free - 1];

	if (!ops->send(g, q, nr))
		return false;
	q->sent[nr] = when;
	q->nr_free--;
	g->in_flight++;
	return true;
}

/* Take what came back on @q, and in a closed loop send as much again. Returns how many. */
GEN_INLINE int gen_round(struct gen *g, struct gen_queue *q, const struct gen_ops *ops)
{
	enum { BATCH = 256 };
	struct ring_drv_used used[BATCH];
	int n = ring_drv_poll(q->drv, used, BATCH);
	uint64_t now;

	if (n < 0) {
		gen_fail(g->stats, GEN_E_RING, (uint64_t)-n);
		g->broken = -EIO;
		return 0;
	}
	if (n == 0)
		return 0;
	now = measure_ticks();
	g->stats->batches++;
	if ((uint64_t)n > g->stats->max_batch)
		g->stats->max_batch = (uint64_t)n;
	for (int i = 0; i < n; i++) {
		uint16_t nr = (uint16_t)used[i].token;

		if (!ops->take(g, q, &used[i]))
			continue;
		g->stats->done++;
		if (q->sent[nr] >= g->start)
			gen_note_latency(g->stats, q->sent[nr], now);
		q->free[q->nr_free++] = nr;
		g->in_flight--;
		if (g->mode != GEN_DRAIN && g->interval == 0 && !q->over)
			gen_send(g, q, now, ops);
	}
	if (ops->after != NULL)
		ops->after(g);
	gen_kick(g, q);
	return n;
}

/* Open loop: send all that is due at @now. Returns ticks until the next one is. */
GEN_INLINE uint64_t gen_send_due(struct gen *g, uint64_t now, const struct gen_ops *ops)
{
	while (g->due <= (double)now) {
		struct gen_queue *q = g->queues[g->turn];

		if (q->nr_free == 0 || !gen_send(g, q, (uint64_t)g->due, ops))
			break;	/* stays due: its latency grows meanwhile */
		if ((double)now - g->due > g->interval)
			g->stats->late++;
		g->due += g->interval;
		g->turn = g->turn + 1 == g->nr_queues ? 0 : g->turn + 1;
	}
	for (uint32_t i = 0; i < g->nr_queues; i++)
		gen_kick(g, g->queues[i]);
	return g->due > (double)now ? (uint64_t)(g->due - (double)now) : 0;
}

static inline bool gen_all_over(const struct gen *g)
{
	for (uint32_t i = 0; i < g->nr_queues; i++)
		if (g->mode != GEN_DRAIN && !g->queues[i]->over)
			return false;
	return g->in_flight == 0;
}

GEN_INLINE void gen_loop(struct gen *g, uint64_t end, const struct gen_ops *ops)
{
	while (!g->broken && !__atomic_load_n(&g->stop, __ATOMIC_RELAXED)) {
		uint64_t now, wait;
		int n = 0;

		for (uint32_t i = 0; i < g->nr_queues; i++)
			n += gen_round(g, g->queues[i], ops);
		now = measure_ticks();
		if (now >= end || (g->in_flight == 0 && gen_all_over(g)))
			return;
		wait = end - now;
		if (g->mode == GEN_RUN && g->interval > 0) {
			uint64_t due = gen_send_due(g, now, ops);

			/* due already but no slot free: only a completion helps */
			if (due > 0 && due < wait)
				wait = due;
		}
		if (n == 0 && !g->poll)
			gen_sleep_on_calls(g, (uint64_t)((double)wait / g->ticks_per_ns));
	}
}

/* Send what the first round of a closed loop sends: all free slots. */
GEN_INLINE void gen_begin(struct gen *g, const struct gen_ops *ops)
{
	for (uint32_t i = 0; i < g->nr_queues; i++) {
		struct gen_queue *q = g->queues[i];
		uint64_t count;

		ring_drv_calls_off(q->drv);
		if (q->call_fd >= 0 && read(q->call_fd, &count, sizeof(count)) < 0)
			count = 0;	/* nothing was left from before */
		ops->begin(g, q, i);
	}
	if (g->mode == GEN_DRAIN || g->interval > 0)
		return;
	for (uint32_t i = 0; i < g->nr_queues; i++) {
		struct gen_queue *q = g->queues[i];

		while (q->nr_free > 0 && !q->over && gen_send(g, q, g->start, ops))
			;
		gen_kick(g, q);
	}
}

/*
 * Drive the queues for @duration_ns, or until gen_stop(), or as @mode says. The device has zeroed the statistics.
 * 0, -ETIME if GEN_ONCE or GEN_DRAIN did not end in time, -EIO once the device broke a ring.
 */
GEN_INLINE int gen_run(struct gen *g, uint64_t duration_ns, int mode, const struct gen_ops *ops)
{
	struct gen_account account;

	if (g->nr_queues == 0)
		return -EINVAL;
	if (g->ticks_per_ns == 0)
		g->ticks_per_ns = measure_ticks_per_ns();
	__atomic_store_n(&g->stop, 0, __ATOMIC_RELAXED);
	g->mode = mode;
	g->interval = g->rate && mode == GEN_RUN ? g->ticks_per_ns * 1e9 / (double)g->rate : 0;
	gen_account_begin(&account);
	g->start = account.ticks;
	g->due = (double)g->start;
	gen_begin(g, ops);
	gen_loop(g, g->start + (uint64_t)((double)duration_ns * g->ticks_per_ns), ops);
	gen_account_end(&account, g->stats);
	for (uint32_t i = 0; i < g->nr_queues; i++)
		gen_drain_calls(g->stats, g->queues[i]->call_fd);
	if (g->broken)
		return g->broken;
	return mode != GEN_RUN && !gen_all_over(g) ? -ETIME : 0;
}

#endif
