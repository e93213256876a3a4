/* SPDX-License-Identifier: Apache-2.0 */
/*
 * guestio - what a guest does to its disk when a test wants to know exactly what must be there afterwards.
 *
 *   guestio write DEV FIRST BLOCKS STEPS THREADS FSYNC_EVERY [SEED]
 *	Writes 4 KiB blocks with O_DIRECT. Step s (0, 1, ...) goes to block FIRST + (s * 7919 + SEED) % BLOCKS and carries
 *	{magic, step, block, seed} and bytes made from them. Thread t takes the steps whose block % THREADS is t, so
 *	that steps to one block stay in order. After each fsync of all threads it prints "synced S": every
 *	step below S is on the disk. STEPS 0 runs until SIGTERM. Ends with "done S" after a last fsync.
 *   guestio verify DEV FIRST BLOCKS STEPS [SEED]
 *	Reads the blocks back with O_DIRECT and compares with what STEPS steps must have left. Ends with "verified N".
 *   guestio touch MEBIBYTES
 *	Fills that much memory with a pattern and keeps reading it until SIGTERM: makes a guest use its memory.
 *
 * Linked statically: it is all that the initramfs needs of a C library. tests/guestlib/seqio.py is the host's side.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 4096 };
#define MAGIC UINT64_C(0x6f69747365756721)
#define STRIDE UINT64_C(7919) /* a prime: the walk reaches every block where BLOCKS is no multiple of it */

struct header {
	uint64_t magic;
	uint64_t step;
	uint64_t block;
	uint64_t seed;
};

static int fd;
static uint64_t first, blocks, steps, seed, every;
static unsigned int nr_threads;
static volatile sig_atomic_t stop;
static pthread_barrier_t barrier;
static _Atomic(uint64_t) end; /* the step at which all threads stop; agreed on at a barrier */

static void on_term(int sig)
{
	(void)sig;
	stop = 1;
}

static void die(const char *what, uint64_t block)
{
	fprintf(stdout, "guestio: %s, block %llu: %s\n", what, (unsigned long long)block, strerror(errno));
	fflush(stdout);
	exit(1);
}

static uint64_t block_of(uint64_t step)
{
	return (step * STRIDE + seed) % blocks;
}

static void fill(unsigned char *buf, uint64_t step, uint64_t block)
{
	struct header h = { MAGIC, step, block, seed };
	uint64_t x = step * UINT64_C(0x9e3779b97f4a7c15) + block + seed * 1000003;

	for (size_t i = 0; i < BLOCK; i += 8) {
		x = x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		memcpy(buf + i, &x, 8);
	}
	memcpy(buf, &h, sizeof(h));
}

static void *writer(void *arg)
{
	unsigned int me = (unsigned int)(uintptr_t)arg;
	unsigned char *buf;
	uint64_t from = 0;

	if (posix_memalign((void **)&buf, BLOCK, BLOCK))
		die("no memory", 0);
	for (;;) {
		uint64_t upto = from + every;

		if (steps && upto > steps)
			upto = steps;
		for (uint64_t s = from; s < upto; s++) {
			uint64_t block = block_of(s);

			if (block % nr_threads != me)
				continue;
			fill(buf, s, block);
			if (pwrite(fd, buf, BLOCK, (off_t)((first + block) * BLOCK)) != BLOCK)
				die("write failed", block);
		}
		pthread_barrier_wait(&barrier);
		if (me == 0) {
			if (fsync(fd))
				die("fsync failed", 0);
			printf("synced %llu\n", (unsigned long long)upto);
			fflush(stdout);
			atomic_store(&end, stop || (steps && upto == steps) ? upto : 0);
		}
		pthread_barrier_wait(&barrier);
		if (atomic_load(&end))
			break;
		from = upto;
	}
	free(buf);
	return NULL;
}

static int do_write(void)
{
	pthread_t threads[64];

	if (nr_threads < 1 || nr_threads > 64 || every < 1)
		return 2;
	pthread_barrier_init(&barrier, NULL, nr_threads);
	for (unsigned int t = 1; t < nr_threads; t++)
		if (pthread_create(&threads[t], NULL, writer, (void *)(uintptr_t)t))
			die("no thread", t);
	writer((void *)0);
	for (unsigned int t = 1; t < nr_threads; t++)
		pthread_join(threads[t], NULL);
	printf("done %llu\n", (unsigned long long)atomic_load(&end));
	return 0;
}

static int do_verify(void)
{
	uint64_t *last = calloc(blocks, sizeof(*last)), bad = 0, seen = 0;
	unsigned char *buf, *want;

	if (!last || posix_memalign((void **)&buf, BLOCK, BLOCK) || posix_memalign((void **)&want, BLOCK, BLOCK))
		die("no memory", 0);
	for (uint64_t s = 0; s < steps; s++)
		last[block_of(s)] = s + 1;
	for (uint64_t block = 0; block < blocks; block++) {
		if (!last[block])
			continue;
		if (pread(fd, buf, BLOCK, (off_t)((first + block) * BLOCK)) != BLOCK)
			die("read failed", block);
		fill(want, last[block] - 1, block);
		seen++;
		if (memcmp(buf, want, BLOCK) && bad++ < 5) {
			struct header h;

			memcpy(&h, buf, sizeof(h));
			printf("guestio: block %llu holds step %lld, wanted %lld\n", (unsigned long long)block,
			       h.magic == MAGIC ? (long long)h.step : -1LL, (long long)last[block] - 1);
		}
	}
	if (!bad)
		printf("verified %llu\n", (unsigned long long)seen);
	free(last);
	return bad != 0;
}

static int do_touch(size_t mebibytes)
{
	size_t size = mebibytes << 20, pages = size / BLOCK;
	uint64_t *memory = malloc(size);

	if (!memory)
		die("no memory", 0);
	for (size_t i = 0; i < pages; i++)
		memory[i * (BLOCK / 8)] = i * MAGIC;
	printf("touched %zu\n", mebibytes);
	fflush(stdout);
	while (!stop) {
		for (size_t i = 0; i < pages && !stop; i++)
			if (memory[i * (BLOCK / 8)] != i * MAGIC) {
				printf("guestio: memory page %zu changed\n", i);
				return 1;
			}
		usleep(200000);
	}
	free(memory);
	return 0;
}

static uint64_t number(const char *text)
{
	return strtoull(text, NULL, 0);
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_term };

	sigaction(SIGTERM, &action, NULL);
	if (argc == 3 && !strcmp(argv[1], "touch"))
		return do_touch(number(argv[2]));
	if (argc < 6)
		return 2;
	first = number(argv[3]);
	blocks = number(argv[4]);
	steps = number(argv[5]);
	if (!blocks)
		return 2;
	fd = open(argv[2], (strcmp(argv[1], "write") ? O_RDONLY : O_RDWR) | O_DIRECT | O_CLOEXEC);
	if (fd < 0)
		die(argv[2], 0);
	if (!strcmp(argv[1], "write") && argc >= 8) {
		nr_threads = (unsigned int)number(argv[6]);
		every = number(argv[7]);
		seed = argc > 8 ? number(argv[8]) : 0;
		return do_write();
	}
	if (!strcmp(argv[1], "verify")) {
		seed = argc > 6 ? number(argv[6]) : 0;
		return do_verify();
	}
	return 2;
}
