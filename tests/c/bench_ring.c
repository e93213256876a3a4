/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_ring - what a request costs at the ring: both ends on one thread, then an end on each of two CPUs.
 *
 *	bench_ring [SECONDS-PER-CELL [one|two [PATTERN]]]
 *
 * A request is a block read: 16-byte header, 4 KiB, status byte; header and status are touched, data is not.
 * Figures of a busy machine say nothing.
 */
#include <pthread.h>
#include <sched.h>
#include <time.h>

#include "tests/c/rig.h"

struct cell {
	const char *name;
	uint64_t features;
	bool indirect;
	int depth;
};

struct slot {
	uint8_t header[16];
	uint8_t status;
	uint8_t pad[111];
};

static double seconds = 0.2;
static struct rig rig;
static _Atomic int done;

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void add(uint32_t i, const struct cell *c)
{
	uint64_t at = RIG_GPA + rig.data + i * sizeof(struct slot);
	struct ring_drv_buf bufs[3] = {
		{ .addr = at, .len = 16 },
		{ .addr = RIG_GPA + rig.data + 0x100000 + i * 4096ULL, .len = 4096 },
		{ .addr = at + 16, .len = 1 },
	};

	shm_store64(rig.area + rig.data + i * sizeof(struct slot), i);
	CHECK(ring_drv_add(rig.drv, bufs, 1, 2, i, c->indirect) >= 0);
}

static int device_once(void)
{
	struct ring_chain *chains[64];
	int n = ring_vq_pop(rig.vq, chains, 64);

	CHECK(n >= 0);
	for (int i = 0; i < n; i++) {
		struct ring_chain *c = chains[i];
		uint64_t header[2];

		ring_chain_read(c, 0, header, sizeof(header));
		shm_store8(c->iov[c->nr_out + c->nr_in - 1].base, (uint8_t)(header[0] & 0));
		ring_vq_push(rig.vq, c, 4097);
	}
	if (n)
		ring_vq_flush(rig.vq);
	return n;
}

static uint64_t driver_once(const struct cell *c)
{
	struct ring_drv_used used[64];
	int n = ring_drv_poll(rig.drv, used, 64);

	CHECK(n >= 0);
	for (int i = 0; i < n; i++)
		add((uint32_t)used[i].token, c);
	if (n)
		ring_drv_publish(rig.drv);
	return (uint64_t)n;
}

static void pin(size_t cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

static void *device_thread(void *arg)
{
	(void)arg;
	pin(1);
	while (!atomic_load_explicit(&done, memory_order_relaxed))
		if (!device_once())
			__builtin_ia32_pause();
	return NULL;
}

static void run(const struct cell *c, bool two)
{
	uint64_t start, total = 0, end;
	pthread_t thread;

	rig_open(&rig, 256, c->features | RIG_VERSION_1 | RIG_INDIRECT,
		 c->features & RIG_PACKED ? RIG_PACKED_BASE : 0, 8 << 20);
	rig.cfg.call_fd = -1;
	rig_start(&rig);
	ring_vq_kicks_off(rig.vq);
	ring_drv_calls_off(rig.drv);
	for (int i = 0; i < c->depth; i++)
		add((uint32_t)i, c);
	ring_drv_publish(rig.drv);
	atomic_store(&done, 0);
	if (two) {
		pin(0);
		CHECK(pthread_create(&thread, NULL, device_thread, NULL) == 0);
	}
	start = now_ns();
	end = start + (uint64_t)(seconds * 1e9);
	do {
		for (int i = 0; i < 256; i++) {
			if (!two)
				device_once();
			total += driver_once(c);
		}
	} while (now_ns() < end);
	end = now_ns();
	if (two) {
		atomic_store(&done, 1);
		pthread_join(thread, NULL);
	}
	printf("%-3s %-28s depth %3d  %7.1f ns/request\n", two ? "two" : "one", c->name, c->depth,
	       (double)(end - start) / (double)total);
	rig_close(&rig);
}

int main(int argc, char **argv)
{
	static const int depths[] = { 1, 8, 32, 64 };
	struct cell cells[] = {
		{ "split direct", 0, false, 0 },
		{ "split indirect", 0, true, 0 },
		{ "split event_idx direct", RIG_EVENT_IDX, false, 0 },
		{ "packed direct", RIG_PACKED, false, 0 },
		{ "packed indirect", RIG_PACKED, true, 0 },
		{ "packed event_idx indirect", RIG_PACKED | RIG_EVENT_IDX, true, 0 },
	};

	if (argc > 1)
		seconds = atof(argv[1]);
	for (int two = 0; two < 2; two++) {
		if (argc > 2 && strcmp(argv[2], two ? "two" : "one"))
			continue;
		if (two && argc <= 2)
			break;
		for (size_t i = 0; i < sizeof(cells) / sizeof(cells[0]); i++) {
			if (argc > 3 && !strstr(cells[i].name, argv[3]))
				continue;
			for (size_t j = 0; j < sizeof(depths) / sizeof(depths[0]); j++) {
				cells[i].depth = depths[j];
				run(&cells[i], two);
			}
		}
	}
	return 0;
}
