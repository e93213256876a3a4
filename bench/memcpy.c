/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memcpy.c - what copying costs on this processor: random pieces of a large area into a few buffers, in turn.
 *
 *	memcpy AREA_BYTES PIECE_BYTES BUFFERS NANOSECONDS CPU
 *
 * prints pieces copied and nanoseconds taken. It is what a disk in memory does for a random read, and nothing else.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { BATCH = 256 };

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ULL + (uint64_t)ts.tv_nsec;
}

/* Pages of its own, written to: those never written are all one page of zeroes, which the cache holds. */
static unsigned char *area_of(size_t bytes, int how)
{
	void *area = mmap(NULL, bytes, PROT_READ | PROT_WRITE, how | MAP_ANONYMOUS, -1, 0);

	if (area == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	memset(area, 1, bytes);
	return area;
}

int main(int argc, char **argv)
{
	uint64_t x = 88172645463325252ULL, pieces = 0, start, now, limit;
	size_t bytes, piece, buffers, next = 0;
	unsigned char *from, *to;
	cpu_set_t cpus;

	if (argc != 6)
		return 2;
	bytes = strtoull(argv[1], NULL, 10);
	piece = strtoull(argv[2], NULL, 10);
	buffers = strtoull(argv[3], NULL, 10);
	limit = strtoull(argv[4], NULL, 10);
	if (piece == 0 || bytes < piece || buffers == 0)
		return 2;
	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[5]), &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus) < 0) {
		perror("sched_setaffinity");
		return 1;
	}
	from = area_of(bytes, MAP_PRIVATE);
	to = area_of(piece * buffers, MAP_SHARED);	/* as a guest's memory is */
	start = now_ns();
	do {
		for (int i = 0; i < BATCH; i++) {
			x ^= x >> 12;
			x ^= x << 25;
			x ^= x >> 27;
			memcpy(to + next * piece, from + (uint64_t)(((unsigned __int128)x * (bytes / piece)) >> 64) * piece,
			       piece);
			/* the copy is wanted */
			__asm__ __volatile__("" ::: "memory");
			next = next + 1 == buffers ? 0 : next + 1;
		}
		pieces += BATCH;
		now = now_ns();
	} while (now - start < limit);
	printf("%llu %llu\n", (unsigned long long)pieces, (unsigned long long)(now - start));
	return 0;
}
