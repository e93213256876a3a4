/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rig.h - checks; and one ring with both of its ends: guest memory between two guard pages, a driver, a device queue.
 * For programs of one file.
 */
#ifndef TESTS_RIG_H
#define TESTS_RIG_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "ring/csrc/driver.h"

#define CHECK(cond)                                                                                                    \
	do {                                                                                                           \
		if (!(cond)) {                                                                                         \
			fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, __func__, #cond);                       \
			exit(1);                                                                                       \
		}                                                                                                      \
	} while (0)

#define CHECK_EQ(got, want)                                                                                            \
	do {                                                                                                           \
		long long got_ = (long long)(got), want_ = (long long)(want);                                          \
		if (got_ != want_) {                                                                                   \
			fprintf(stderr, "%s:%d: %s: %s = %lld, not %lld\n", __FILE__, __LINE__, __func__, #got, got_,  \
				want_);                                                                                \
			exit(1);                                                                                       \
		}                                                                                                      \
	} while (0)

/* ASan would take the SIGBUS that is ours to handle (docs/decisions/0001-sigbus.md) */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "handle_sigbus=0";
}

#define RIG_INDIRECT (1ULL << 28)
#define RIG_EVENT_IDX (1ULL << 29)
#define RIG_VERSION_1 (1ULL << 32)
#define RIG_PACKED (1ULL << 34)
#define RIG_IN_ORDER (1ULL << 35)

#define RIG_GPA 0x40000000ULL
#define RIG_PACKED_BASE 0x80008000u	/* both indexes 0, both wrap counters 1 */
#define RIG_UADDR 0x7f0000000000ULL

struct rig {
	uint8_t *map;		/* with the guard pages */
	uint8_t *area;		/* ring, then data */
	uint64_t bytes;		/* of the area */
	uint64_t data;		/* offset of the data, bytes */
	struct ring_drv_layout lay;
	struct ring_vq_config cfg;
	struct ring_mem *mem;
	struct ring_vq *vq;
	struct ring_drv *drv;
};

static inline void rig_start(struct rig *r)
{
	CHECK_EQ(ring_vq_start(r->vq, &r->cfg), 0);
}

/* Data pages: @data_bytes. The queue is not started yet: change r->cfg first if need be. */
static inline void rig_open(struct rig *r, uint32_t size, uint64_t features, uint32_t base, uint64_t data_bytes)
{
	memset(r, 0, sizeof(*r));
	CHECK_EQ(ring_drv_layout(size, features, 0, &r->lay), 0);
	r->data = r->lay.bytes;
	r->bytes = r->lay.bytes + (data_bytes + 4095) / 4096 * 4096;
	r->map = mmap(NULL, r->bytes + 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(r->map != MAP_FAILED);
	r->area = r->map + 4096;
	CHECK(mprotect(r->area, r->bytes, PROT_READ | PROT_WRITE) == 0);
	r->mem = ring_mem_new();
	CHECK_EQ(ring_mem_add_mapped(r->mem, r->area, RIG_GPA, r->bytes, RIG_UADDR, 0), 0);
	r->drv = ring_drv_new(r->area, RIG_GPA, size, features, 0, base);
	CHECK(r->drv != NULL);
	r->vq = ring_vq_new(r->mem, 0);
	CHECK(r->vq != NULL);
	r->cfg = (struct ring_vq_config){
		.size = size,
		.base = base,
		.features = features,
		.desc = RIG_GPA + r->lay.desc,
		.avail = RIG_GPA + r->lay.avail,
		.used = RIG_GPA + r->lay.used,
		.addr_kind = RING_ADDR_GPA,
		.call_fd = -1,
		.err_fd = -1,
		.news_fd = -1,
	};
}

static inline void rig_close(struct rig *r)
{
	ring_vq_free(r->vq);
	ring_drv_free(r->drv);
	ring_mem_free(r->mem);
	munmap(r->map, r->bytes + 8192);
}

static inline uint64_t rig_rnd(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

#endif
