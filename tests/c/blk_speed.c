/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blk_speed.c - both ends of a block queue in one process: what a request costs in rings, worker and device.
 *
 *	blk_speed STORE DEPTH MILLISECONDS [packed] [sleep] [event] [direct] [same] [nouring]
 *
 * STORE: null, memory, or the path of a file to read at random (4 KiB). The driver polls on CPU 0 (sleep: it waits for
 * the call eventfd), the worker is on CPU 1 (same: on CPU 0 too). Every byte that a memory or file store returns is
 * checked when the file holds its own sector numbers (see stamp()). Exit status 1: something came back wrong.
 */
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "devices/blk/csrc/blk.h"
#include "ring/csrc/driver.h"

enum { BLOCK = 4096, DISK = 64 << 20, SIZE = 256, RING_AREA = 1 << 20 };

static const char *options;

static int want(const char *word)
{
	return strstr(options, word) != NULL;
}

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((size_t)cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

static void *run_worker(void *arg)
{
	int rc = ring_worker_run(arg);

	if (rc)
		fprintf(stderr, "worker: %s\n", ring_strerror(rc));
	return NULL;
}

static void stamp(void *base)
{
	uint64_t block;

	for (block = 0; block < DISK / BLOCK; block++)
		*(uint64_t *)(void *)((char *)base + block * BLOCK) = block;
}

struct bench {
	struct ring_drv *drv;
	uint8_t *area;
	uint64_t block[SIZE];
	int kick, call;
	uint64_t kicks, calls, bad;
	unsigned seed;
	int check;
};

static struct virtio_blk_outhdr *header(struct bench *b, uint32_t i)
{
	return (struct virtio_blk_outhdr *)(void *)(b->area + RING_AREA + i * 32);
}

static uint8_t *data(struct bench *b, uint32_t i)
{
	return b->area + RING_AREA + 65536 + (size_t)i * BLOCK;
}

static void send(struct bench *b, uint32_t i)
{
	struct virtio_blk_outhdr *h = header(b, i);
	uint64_t base = RING_AREA + (uint64_t)i * 32;
	struct ring_drv_buf bufs[3] = {
		{ .addr = base, .len = 16 },
		{ .addr = RING_AREA + 65536 + (uint64_t)i * BLOCK, .len = BLOCK },
		{ .addr = base + 16, .len = 1 },
	};

	b->seed = b->seed * 1103515245 + 12345;
	b->block[i] = (b->seed >> 8) % (DISK / BLOCK);
	h->type = VIRTIO_BLK_T_IN;
	h->sector = b->block[i] * (BLOCK / 512);
	*((uint8_t *)h + 16) = 0xff;
	if (ring_drv_add(b->drv, bufs, 1, 2, i, 1) < 0)
		abort();
}

static void publish(struct bench *b)
{
	uint64_t one = 1;

	if (!ring_drv_publish(b->drv))
		return;
	b->kicks++;
	if (write(b->kick, &one, 8) != 8)
		abort();
}

static void received(struct bench *b, uint32_t i, uint32_t len)
{
	uint8_t status = __atomic_load_n((uint8_t *)header(b, i) + 16, __ATOMIC_RELAXED);

	if (status != 0 || len != BLOCK + 1)
		b->bad++;
	else if (b->check && *(uint64_t *)(void *)data(b, i) != b->block[i])
		b->bad++;
}

static void wait_call(struct bench *b)
{
	struct pollfd p = { .fd = b->call, .events = POLLIN };
	uint64_t n;

	if (ring_drv_calls_on(b->drv))
		return;
	poll(&p, 1, 1000);
	if (read(b->call, &n, 8) == 8)
		b->calls++;
	ring_drv_calls_off(b->drv);
}

static uint64_t drive(struct bench *b, uint32_t depth, uint64_t ms)
{
	struct ring_drv_used used[64];
	uint64_t end = ring_now_ns() + ms * 1000000;
	uint64_t done = 0;
	uint32_t turn = 0;
	uint32_t i;

	ring_drv_calls_off(b->drv);
	for (i = 0; i < depth; i++)
		send(b, i);
	publish(b);
	while (ring_drv_pending(b->drv)) {
		int n = ring_drv_poll(b->drv, used, 64);
		int k;

		if (n < 0) {
			b->bad++;
			break;
		}
		if (!n && want("sleep"))
			wait_call(b);
		else if (!n)
			__builtin_ia32_pause();
		for (k = 0; k < n; k++) {
			received(b, (uint32_t)used[k].token, used[k].len);
			done++;
			if (end)
				send(b, (uint32_t)used[k].token);
		}
		if (n && end)
			publish(b);
		if (end && ++turn % 256 == 0 && ring_now_ns() > end)
			end = 0;
	}
	return done;
}

int main(int argc, char **argv)
{
	struct ring_worker_options wo = { .poll_us = -1, .cpu = 1, .uring_entries = 256 };
	struct blk_config bc = { .blk_size = 512, .max_segments = 1, .id = "speed" };
	struct bench b = { .seed = 1 };
	struct ring_drv_layout layout;
	struct ring_worker_stats ws;
	struct ring_vq_stats vs;
	struct blk_store *store;
	struct ring_source *source;
	struct ring_worker *w;
	struct ring_mem *mem;
	struct ring_vq *vq;
	struct blk *blk;
	struct stat st;
	pthread_t thread;
	uint64_t features = 1ull << 28 | 1ull << 32;
	uint64_t start, ns, done;
	char joined[256] = "";
	int memfd, fd = -1, i, packed;

	if (argc < 4)
		return 2;
	for (i = 4; i < argc; i++)
		strcat(strcat(joined, argv[i]), " ");
	options = joined;
	packed = want("packed");
	features |= packed ? 1ull << 34 : 0;
	features |= want("event") ? 1ull << 29 : 0;
	if (want("always"))
		wo.poll_us = RING_POLL_ALWAYS;
	if (want("never"))
		wo.poll_us = 0;
	if (want("same"))
		wo.cpu = 0;
	if (want("nouring"))
		wo.uring_entries = 0;
	pin(0);
	if (!strcmp(argv[1], "null")) {
		store = blk_null_new();
	} else if (!strcmp(argv[1], "memory")) {
		store = blk_memory_new(DISK);
		stamp(blk_memory_base(store));
		b.check = 1;
	} else {
		struct blk_file_config fc = { .can = BLK_CAN_WRITE | BLK_CAN_FLUSH, .io_align = 512, .mem_align = 512 };
		char *map;

		fc.direct = want("direct");
		fd = open(argv[1], O_RDWR | O_CREAT | (fc.direct ? O_DIRECT : 0), 0600);
		if (fd < 0 || ftruncate(fd, DISK) < 0 || fstat(fd, &st) < 0)
			return 2;
		map = mmap(NULL, DISK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		stamp(map);
		munmap(map, DISK);
		fc.fd = fd;
		store = blk_file_new(&fc);
		b.check = 1;
	}
	memfd = memfd_create("guest", 0);
	if (ftruncate(memfd, 8 << 20) < 0)
		return 2;
	b.area = mmap(NULL, 8 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	mem = ring_mem_new();
	if (ring_mem_add(mem, memfd, 0, 8 << 20, 0, 0, 0) < 0)
		return 2;
	if (ring_drv_layout(SIZE, features, 0, &layout) < 0 || layout.bytes > RING_AREA)
		return 2;
	b.drv = ring_drv_new(b.area, 0, SIZE, features, 0, packed ? 0x80008000 : 0);
	b.kick = eventfd(0, 0);
	b.call = eventfd(0, 0);
	vq = ring_vq_new(mem, 0);
	struct ring_vq_config vc = {
		.size = SIZE, .base = packed ? 0x80008000 : 0, .features = features, .desc = layout.desc,
		.avail = layout.avail, .used = layout.used, .addr_kind = RING_ADDR_GPA, .call_fd = b.call, .err_fd = -1,
		.news_fd = -1,
	};
	if ((i = ring_vq_start(vq, &vc)) < 0) {
		fprintf(stderr, "%s\n", ring_strerror(i));
		return 2;
	}
	blk = blk_new(store, &bc, DISK);
	w = ring_worker_new(&wo);
	source = blk_queue_new(blk, vq, SIZE);
	if (ring_worker_add(w, source) < 0 || ring_source_set_kick(source, b.kick) < 0)
		return 2;
	pthread_create(&thread, NULL, run_worker, w);
	drive(&b, (uint32_t)atoi(argv[2]), 50);
	b.kicks = b.calls = 0;
	start = ring_now_ns();
	done = drive(&b, (uint32_t)atoi(argv[2]), (uint64_t)atoi(argv[3]));
	ns = ring_now_ns() - start;
	ring_worker_stats(w, &ws);
	ring_vq_stats(vq, &vs);
	if (want("idle")) {
		uint64_t cpu = ws.cpu_ns;

		sleep(1);
		ring_worker_stats(w, &ws);
		printf("idle second: %.3f ms of CPU\n", (double)(ws.cpu_ns - cpu) / 1e6);
	}
	printf("%s depth %s %s: %lu requests, %.1f ns each, %.0f k/s; kicks %lu calls %lu; notified %lu sleeps %lu submits %lu cpu %.0f%%; bad %lu\n",
	       argv[1], argv[2], options, done, (double)ns / (double)done, (double)done * 1e6 / (double)ns, b.kicks, b.calls,
	       vs.notified, ws.sleeps, ws.submits, (double)ws.cpu_ns / (double)ns * 100, b.bad);
	ring_worker_stop(w);
	pthread_join(thread, NULL);
	ring_worker_remove(w, source);
	i = blk_queue_free(source);
	ring_worker_free(w);
	ring_vq_free(vq);
	ring_mem_free(mem);
	ring_drv_free(b.drv);
	blk_free(blk);
	blk_store_free(store);
	munmap(b.area, 8 << 20);
	close(memfd);
	close(b.kick);
	close(b.call);
	if (fd >= 0)
		close(fd);
	return b.bad || i || !done;
}
