/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blk_rig.h - a disk, one queue of it on a worker, and the driver's end of that queue, in one process.
 * For programs of one file.
 */
#ifndef MICRO_BLK_RIG_H
#define MICRO_BLK_RIG_H

#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "devices/blk/csrc/blk.h"
#include "ring/csrc/driver.h"

enum { BLOCK = 4096, DISK = 64 << 20, SIZE = 256, RING_AREA = 1 << 20, AREA = 8 << 20, DATA = RING_AREA + 65536 };

#define BLK_RIG_INDIRECT (1ull << 28)
#define BLK_RIG_EVENT_IDX (1ull << 29)
#define BLK_RIG_VERSION_1 (1ull << 32)
#define BLK_RIG_PACKED (1ull << 34)

struct blk_rig {
	/* the driver's end */
	struct ring_drv *drv;
	uint8_t *area;
	uint64_t block[SIZE];	/* asked for by each slot */
	uint64_t kicks, calls, bad;
	unsigned seed;
	int check;		/* data holds its block number */
	int kick, call;
	/* the device's */
	struct blk_store *store;
	struct blk *blk;
	struct ring_mem *mem;
	struct ring_vq *vq;
	struct ring_worker *worker;
	struct ring_source *source;
	int memfd, fd;
};

#define RIG_NEED(cond)                                                                                                 \
	do {                                                                                                           \
		if (!(cond)) {                                                                                         \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond);                                     \
			exit(2);                                                                                       \
		}                                                                                                      \
	} while (0)

/* Every block starts with its number: what comes back can be checked. */
static inline void blk_rig_stamp(void *base)
{
	uint64_t block;

	for (block = 0; block < DISK / BLOCK; block++)
		*(uint64_t *)(void *)((char *)base + block * BLOCK) = block;
}

/* @what: null, memory, or the path of a file that becomes a disk of DISK bytes. */
static inline void blk_rig_store(struct blk_rig *r, const char *what, int direct)
{
	struct blk_file_config fc = {
		.can = BLK_CAN_WRITE | BLK_CAN_FLUSH, .io_align = 512, .mem_align = 512, .at_once = 1,
	};
	char *map;

	r->check = strcmp(what, "null") != 0;
	r->fd = -1;
	if (!r->check) {
		r->store = blk_null_new();
	} else if (!strcmp(what, "memory")) {
		r->store = blk_memory_new(DISK);
		RIG_NEED(r->store);
		blk_rig_stamp(blk_memory_base(r->store));
	} else {
		r->fd = open(what, O_RDWR | O_CREAT | (direct ? O_DIRECT : 0), 0600);
		RIG_NEED(r->fd >= 0 && ftruncate(r->fd, DISK) == 0);
		map = mmap(NULL, DISK, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
		RIG_NEED(map != MAP_FAILED);
		blk_rig_stamp(map);
		munmap(map, DISK);
		fc.fd = r->fd;
		fc.direct = direct != 0;
		r->store = blk_file_new(&fc);
	}
	RIG_NEED(r->store);
}

static inline void blk_rig_open(struct blk_rig *r, const char *store, int direct, uint64_t features,
				const struct ring_worker_options *options)
{
	struct blk_config bc = { .blk_size = 512, .max_segments = 1, .id = "micro" };
	uint32_t base = features & BLK_RIG_PACKED ? 0x80008000u : 0;
	struct ring_drv_layout layout;
	struct ring_vq_config vc;

	memset(r, 0, sizeof(*r));
	r->seed = 1;
	blk_rig_store(r, store, direct);
	r->memfd = memfd_create("guest", MFD_CLOEXEC);
	RIG_NEED(r->memfd >= 0 && ftruncate(r->memfd, AREA) == 0);
	r->area = mmap(NULL, AREA, PROT_READ | PROT_WRITE, MAP_SHARED, r->memfd, 0);
	RIG_NEED(r->area != MAP_FAILED);
	r->mem = ring_mem_new();
	RIG_NEED(r->mem && ring_mem_add(r->mem, r->memfd, 0, AREA, 0, 0, 0) == 0);
	RIG_NEED(ring_drv_layout(SIZE, features, 0, &layout) == 0 && layout.bytes <= RING_AREA);
	r->drv = ring_drv_new(r->area, 0, SIZE, features, 0, base);
	r->kick = eventfd(0, EFD_CLOEXEC);
	r->call = eventfd(0, EFD_CLOEXEC);
	r->vq = ring_vq_new(r->mem, 0);
	vc = (struct ring_vq_config){
		.size = SIZE, .base = base, .features = features, .desc = layout.desc, .avail = layout.avail,
		.used = layout.used, .addr_kind = RING_ADDR_GPA, .call_fd = r->call, .err_fd = -1, .news_fd = -1,
	};
	RIG_NEED(r->drv && r->vq && ring_vq_start(r->vq, &vc) == 0);
	r->blk = blk_new(r->store, &bc, DISK);
	r->worker = ring_worker_new(options);
	RIG_NEED(r->blk && r->worker);
	r->source = blk_queue_new(r->blk, r->vq, SIZE);
	RIG_NEED(r->source && ring_worker_add(r->worker, r->source) == 0);
	RIG_NEED(ring_source_set_kick(r->source, r->kick) == 0);
}

/* The worker has returned. 0, or what blk_queue_free() says. */
static inline int blk_rig_close(struct blk_rig *r)
{
	int rc;

	ring_worker_remove(r->worker, r->source);
	rc = blk_queue_free(r->source);
	ring_worker_free(r->worker);
	ring_vq_free(r->vq);
	ring_mem_free(r->mem);
	ring_drv_free(r->drv);
	blk_free(r->blk);
	blk_store_free(r->store);
	munmap(r->area, AREA);
	close(r->memfd);
	close(r->kick);
	close(r->call);
	if (r->fd >= 0)
		close(r->fd);
	return rc;
}

static inline struct virtio_blk_outhdr *blk_rig_header(struct blk_rig *r, uint32_t i)
{
	return (struct virtio_blk_outhdr *)(void *)(r->area + RING_AREA + i * 32);
}

/* Ask for a block at random through slot @i. */
static inline void blk_rig_send(struct blk_rig *r, uint32_t i)
{
	struct virtio_blk_outhdr *h = blk_rig_header(r, i);
	uint64_t base = RING_AREA + (uint64_t)i * 32;
	struct ring_drv_buf bufs[3] = {
		{ .addr = base, .len = 16 },
		{ .addr = DATA + (uint64_t)i * BLOCK, .len = BLOCK },
		{ .addr = base + 16, .len = 1 },
	};

	r->seed = r->seed * 1103515245 + 12345;
	r->block[i] = (r->seed >> 8) % (DISK / BLOCK);
	h->type = VIRTIO_BLK_T_IN;
	h->sector = r->block[i] * (BLOCK / 512);
	*((uint8_t *)h + 16) = 0xff;
	if (ring_drv_add(r->drv, bufs, 1, 2, i, 1) < 0)
		abort();
}

static inline void blk_rig_publish(struct blk_rig *r)
{
	uint64_t one = 1;

	if (!ring_drv_publish(r->drv))
		return;
	r->kicks++;
	if (write(r->kick, &one, 8) != 8)
		abort();
}

static inline void blk_rig_received(struct blk_rig *r, uint32_t i, uint32_t len)
{
	uint8_t status = __atomic_load_n((uint8_t *)blk_rig_header(r, i) + 16, __ATOMIC_RELAXED);
	const uint8_t *data = r->area + DATA + (size_t)i * BLOCK;

	if (status != 0 || len != BLOCK + 1)
		r->bad++;
	else if (r->check && *(const uint64_t *)(const void *)data != r->block[i])
		r->bad++;
}

#endif
