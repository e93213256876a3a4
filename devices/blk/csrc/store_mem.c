/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store_mem.c - stores that never wait: null, and memory. Served by inline.c; start() is for filters on top of them.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "devices/blk/csrc/blk_int.h"

struct memory {
	struct blk_store store;	/* must be first */
	uint8_t *base;
	uint64_t size;
};

uint8_t *blk_memory_bytes(struct blk_store *store)
{
	return ((struct memory *)(void *)store)->base;
}

void *blk_memory_base(struct blk_store *store)
{
	return store->kind == BLK_INLINE_MEMORY ? blk_memory_bytes(store) : NULL;
}

static int null_start(struct blk_store *store, struct blk_req *req)
{
	(void)store;
	return req->sub <= BLK_WRITE ? (int)(req->x_len > INT32_MAX ? INT32_MAX : req->x_len) : 0;
}

static int memory_start(struct blk_store *store, struct blk_req *req)
{
	uint8_t *mem = blk_memory_bytes(store) + req->offset;
	uint64_t done = 0;
	uint32_t i;

	if (req->sub == BLK_FLUSH)
		return 0;
	if (req->sub > BLK_FLUSH) {
		memset(mem, 0, req->x_len);
		return 0;
	}
	for (i = 0; i < req->x_nr && done <= INT32_MAX - req->x_iov[i].len; i++) {
		size_t len = req->x_iov[i].len;

		if (req->sub == BLK_READ)
			shm_copy_out(req->x_iov[i].base, mem + done, len);
		else
			shm_copy_in(mem + done, req->x_iov[i].base, len);
		done += len;
	}
	return (int)done;
}

static void null_free(struct blk_store *store)
{
	free(store);
}

static void memory_free(struct blk_store *store)
{
	struct memory *m = (struct memory *)(void *)store;

	munmap(m->base, m->size);
	free(m);
}

struct blk_store *blk_null_new(void)
{
	static const struct blk_store_ops ops = { .start = null_start, .free = null_free };
	struct blk_store *store = calloc(1, sizeof(*store));

	if (!store)
		return NULL;
	store->ops = &ops;
	store->kind = BLK_INLINE_NULL;
	store->can = BLK_CAN_WRITE | BLK_CAN_FLUSH | BLK_CAN_DISCARD | BLK_CAN_ZERO;
	store->io_align = 1;
	store->mem_align = 1;
	return store;
}

struct blk_store *blk_memory_new(uint64_t size)
{
	static const struct blk_store_ops ops = { .start = memory_start, .free = memory_free };
	struct memory *m = calloc(1, sizeof(*m));

	if (!m)
		return NULL;
	m->base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (m->base == MAP_FAILED) {
		free(m);
		return NULL;
	}
	/* random access to small pages costs a walk of the page tables each; refused: only slower */
	madvise(m->base, size, MADV_HUGEPAGE);
	m->size = size;
	m->store.ops = &ops;
	m->store.kind = BLK_INLINE_MEMORY;
	m->store.can = BLK_CAN_WRITE | BLK_CAN_FLUSH | BLK_CAN_DISCARD | BLK_CAN_ZERO | BLK_CAN_ERASE |
		       BLK_CAN_LIFETIME;
	m->store.io_align = 1;
	m->store.mem_align = 1;
	return &m->store;
}
