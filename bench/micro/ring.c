/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ring.c - what a request costs at the ring: both ends on one thread, then an end on each of two CPUs.
 *
 *	ring time one|two SECONDS-PER-CELL	lines "ring LAYOUT BATCH NS"
 *	ring count				instructions of each end, under callgrind (see count.h)
 *
 * A request is a block read: 16-byte header, 4 KiB, status byte; header and status are touched, data is not.
 */
#include <pthread.h>
#include <sched.h>
#include <time.h>

#include "bench/micro/count.h"
#include "tests/c/rig.h"

enum {
	SIZE = 256,
	COUNTED = 1920,		/* requests per cell: a multiple of every batch; the ring wraps several times */
	WARM = 640,
};

struct cell {
	const char *name;
	uint64_t features;
	bool indirect;
};

static const struct cell cells[] = {
	{ "split-direct", 0, false },
	{ "split-indirect", 0, true },
	{ "split-indirect-event", RIG_EVENT_IDX, true },
	{ "packed-direct", RIG_PACKED, false },
	{ "packed-indirect", RIG_PACKED, true },
	{ "packed-indirect-event", RIG_PACKED | RIG_EVENT_IDX, true },
};
static const int batches[] = { 1, 8, 32 };

#define NR(a) (sizeof(a) / sizeof((a)[0]))

struct slot {
	uint8_t header[16];
	uint8_t status;
	uint8_t pad[111];
};

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

static __attribute__((noinline)) int device_once(void)
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

static __attribute__((noinline)) uint64_t driver_once(const struct cell *c)
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

static void open_rig(const struct cell *c, int batch)
{
	rig_open(&rig, SIZE, c->features | RIG_VERSION_1 | RIG_INDIRECT,
		 c->features & RIG_PACKED ? RIG_PACKED_BASE : 0, 8 << 20);
	rig.cfg.call_fd = -1;
	rig_start(&rig);
	ring_vq_kicks_off(rig.vq);
	ring_drv_calls_off(rig.drv);
	for (int i = 0; i < batch; i++)
		add((uint32_t)i, c);
	ring_drv_publish(rig.drv);
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

static void time_cell(const struct cell *c, int batch, bool two, double seconds)
{
	uint64_t start, total = 0, end;
	pthread_t thread;

	open_rig(c, batch);
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
	printf("ring %s %d %.2f\n", c->name, batch, (double)(end - start) / (double)total);
	rig_close(&rig);
}

static void rounds(const struct cell *c, int batch, int requests, bool device, bool driver)
{
	for (int i = 0; i < requests; i += batch) {
		if (device)
			count_begin();
		CHECK_EQ(device_once(), batch);
		if (device)
			count_end();
		if (driver)
			count_begin();
		CHECK_EQ(driver_once(c), batch);
		if (driver)
			count_end();
	}
}

static void count_cell(const struct cell *c, int batch)
{
	char name[128];

	open_rig(c, batch);
	rounds(c, batch, WARM, false, false);
	for (int side = 0; side < 2; side++) {
		snprintf(name, sizeof(name), "ring %s %d %s = %d", c->name, batch, side ? "driver" : "device", COUNTED);
		count_clear();
		rounds(c, batch, COUNTED, side == 0, side == 1);
		count_dump(name);
	}
	rig_close(&rig);
}

int main(int argc, char **argv)
{
	bool count = argc == 2 && !strcmp(argv[1], "count");
	bool two = argc == 4 && !strcmp(argv[2], "two");

	if (!count && (argc != 4 || strcmp(argv[1], "time") != 0)) {
		fprintf(stderr, "usage: ring count | ring time one|two SECONDS\n");
		return 2;
	}
	if (count)
		count_need();
	for (size_t i = 0; i < NR(cells); i++) {
		for (size_t j = 0; j < NR(batches); j++) {
			if (count)
				count_cell(&cells[i], batches[j]);
			else
				time_cell(&cells[i], batches[j], two, atof(argv[3]));
		}
	}
	return 0;
}
