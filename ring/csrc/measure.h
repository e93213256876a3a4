/* SPDX-License-Identifier: Apache-2.0 */
/*
 * measure.h - clocks, random numbers and the latency histogram of load generators.
 *
 * The histogram has MEASURE_SUB buckets per power of two, so that values are exact to 1.6 %.
 */
#ifndef RING_MEASURE_H
#define RING_MEASURE_H

#include <stdint.h>
#include <time.h>

#define MEASURE_NS 1000000000ULL

enum {
	MEASURE_SUB = 64,
	MEASURE_HIST = 59 * MEASURE_SUB,	/* buckets in all */
};

static inline uint64_t measure_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * MEASURE_NS + (uint64_t)ts.tv_nsec;
}

/* A clock that costs a few ns; its rate is measured against CLOCK_MONOTONIC. */
static inline uint64_t measure_ticks(void)
{
#if defined(__x86_64__)
	return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
	uint64_t v;

	__asm__ __volatile__("mrs %0, cntvct_el0" : "=r"(v));
	return v;
#else
	return measure_ns(CLOCK_MONOTONIC);
#endif
}

/* Takes 2 ms. */
static inline double measure_ticks_per_ns(void)
{
	uint64_t ns = measure_ns(CLOCK_MONOTONIC), t = measure_ticks(), end;

	do
		end = measure_ns(CLOCK_MONOTONIC);
	while (end - ns < 2 * MEASURE_NS / 1000);
	return (double)(measure_ticks() - t) / (double)(end - ns);
}

static inline void measure_relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ __volatile__("isb" ::: "memory");
#endif
}

/* splitmix64: contents that nobody writes by chance */
static inline uint64_t measure_mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ULL;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

/* xorshift64*: one multiplication, good enough to scatter blocks. @state: not 0. */
static inline uint64_t measure_draw(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	*state = x;
	return x * 0x2545f4914f6cdd1dULL;
}

/* A number below @bound, without division. */
static inline uint64_t measure_draw_below(uint64_t *state, uint64_t bound)
{
	return (uint64_t)(((unsigned __int128)measure_draw(state) * bound) >> 64);
}

static inline uint32_t measure_bucket(uint64_t v)
{
	unsigned int exp;

	if (v < MEASURE_SUB)
		return (uint32_t)v;
	exp = 63U - (unsigned int)__builtin_clzll(v);
	/* six bits below the leading one */
	return (exp - 5) * MEASURE_SUB + (uint32_t)((v >> (exp - 6)) & (MEASURE_SUB - 1));
}

/* Middle of a bucket. */
static inline uint64_t measure_value(uint32_t bucket)
{
	uint32_t exp = bucket / MEASURE_SUB;
	uint64_t low;

	if (exp == 0)
		return bucket;
	low = (uint64_t)(MEASURE_SUB + bucket % MEASURE_SUB) << (exp - 1);
	return low + ((1ULL << (exp - 1)) >> 1);
}

#endif
