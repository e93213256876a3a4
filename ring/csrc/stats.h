/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stats.h - counters that one thread writes and any thread reads, and the clocks that go with them.
 *
 * Statistics are structs of uint64_t. Their writer needs no locked instruction: it is the only one.
 */
#ifndef RING_STATS_H
#define RING_STATS_H

#include <stddef.h>

#include "ring/csrc/measure.h"

static inline __attribute__((always_inline)) void ring_count(uint64_t *stat, uint64_t n)
{
	__atomic_store_n(stat, *stat + n, __ATOMIC_RELAXED);
}

/* Copy statistics of @bytes, which their writer goes on with. */
static inline void ring_stats_copy(void *out, const void *stats, size_t bytes)
{
	const uint64_t *from = stats;
	uint64_t *to = out;

	for (size_t i = 0; i < bytes / sizeof(*to); i++)
		to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
}

static inline uint64_t ring_now_ns(void)
{
	return measure_ns(CLOCK_MONOTONIC);
}

/* Nanoseconds of one of measure_ticks(); the first call takes 5 ms, asleep. */
static inline double ring_tick_ns(void)
{
	static double known;
	struct timespec nap = { .tv_nsec = 5000000 };
	uint64_t t0, t1, n0, n1;
	double ns;

	__atomic_load(&known, &ns, __ATOMIC_RELAXED);
	if (ns > 0)
		return ns;
	n0 = ring_now_ns();
	t0 = measure_ticks();
	nanosleep(&nap, NULL);
	n1 = ring_now_ns();
	t1 = measure_ticks();
	ns = t1 > t0 ? (double)(n1 - n0) / (double)(t1 - t0) : 1.0;
	__atomic_store(&known, &ns, __ATOMIC_RELAXED);
	return ns;
}

#endif
