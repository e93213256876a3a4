/* SPDX-License-Identifier: Apache-2.0 */
/*
 * raw.h - a driver of few words: descriptors put into a ring's memory by hand, so that nothing depends on what our own
 * driver side would write. One queue at a time, in @r.
 */
#ifndef TESTS_RAW_H
#define TESTS_RAW_H

#include "tests/c/rig.h"

enum { NEXT = 1, WRITE = 2, IND = 4, SIZE = 16, PAGE = 4096 };

static struct rig r;

static struct {
	uint16_t idx;		/* split: avail index; packed: slot */
	uint8_t wrap;
	uint16_t id;
} raw;

static inline uint64_t data(uint64_t off)
{
	return RIG_GPA + r.data + off;
}

static inline uint64_t uaddr(uint64_t off)
{
	return RIG_UADDR + r.data + off;
}

static inline uint8_t *host(uint64_t gpa)
{
	return r.area + (gpa - RIG_GPA);
}

static inline bool is_packed(void)
{
	return r.cfg.features & RIG_PACKED;
}

static inline void put(uint8_t *at, uint64_t addr, uint32_t len, uint16_t lo, uint16_t hi)
{
	shm_store64(at, addr);
	shm_store32(at + 8, len);
	shm_store16(at + 12, lo);
	shm_store16(at + 14, hi);
}

static inline uint8_t *desc(uint32_t i)
{
	return r.area + r.lay.desc + 16 * (size_t)i;
}

static inline void split_desc(uint32_t i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
	put(desc(i), addr, len, flags, next);
}

static inline void split_avail(uint16_t head)
{
	shm_store16(r.area + r.lay.avail + 4 + 2 * (size_t)(raw.idx & (r.cfg.size - 1)), head);
	shm_store16_release(r.area + r.lay.avail + 2, ++raw.idx);
}

static inline void packed_desc(uint64_t addr, uint32_t len, uint16_t id, uint16_t flags)
{
	put(desc(raw.idx), addr, len, id, (uint16_t)(flags | (raw.wrap ? 1 << 7 : 1 << 15)));
	if (++raw.idx == r.cfg.size) {
		raw.idx = 0;
		raw.wrap ^= 1;
	}
}

struct buf {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
};

/* One chain of @n descriptors under @id; in a split ring descriptors id, id + 1, … are used. */
static inline void chain(uint16_t id, const struct buf *bufs, uint32_t n)
{
	uint32_t i;

	for (i = 0; i < n; i++) {
		uint16_t flags = (uint16_t)(bufs[i].flags | (i + 1 < n ? NEXT : 0));

		if (is_packed())
			packed_desc(bufs[i].addr, bufs[i].len, id, flags);
		else
			split_desc((id + i) % r.cfg.size, bufs[i].addr, bufs[i].len, flags,
				   (uint16_t)((id + i + 1) % r.cfg.size));
	}
	if (!is_packed())
		split_avail(id);
}

static inline void table_entry(uint64_t table, uint32_t i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
	if (is_packed())
		put(host(table) + 16 * (size_t)i, addr, len, 0, flags);
	else
		put(host(table) + 16 * (size_t)i, addr, len, flags, next);
}

static inline void open_queue(uint32_t size, uint64_t features)
{
	uint32_t base = features & RIG_PACKED ? RIG_PACKED_BASE : 0;

	rig_open(&r, size, features | RIG_VERSION_1, base, 1 << 20);
	memset(&raw, 0, sizeof(raw));
	raw.wrap = 1;
	rig_start(&r);
}

static inline int pop1(struct ring_chain **c)
{
	return ring_vq_pop(r.vq, c, 1);
}

/* The next pop must break the queue with @error. */
static inline void expect_broken(int error)
{
	struct ring_chain *c;
	uint64_t detail;

	CHECK_EQ(pop1(&c), -error);
	CHECK_EQ(ring_vq_state(r.vq), RING_VQ_BROKEN);
	CHECK_EQ(ring_vq_error(r.vq, &detail), error);
	CHECK_EQ(pop1(&c), -error);	/* sticky */
	CHECK_EQ(ring_vq_flush(r.vq), 0);
	CHECK_EQ(ring_vq_kicks_on(r.vq), 0);
	CHECK_EQ(ring_vq_ready(r.vq), 0);
	CHECK(strlen(ring_strerror(-error)) > 10);
	rig_close(&r);
}

static inline uint32_t used_count(void)
{
	return shm_load16(r.area + r.lay.used + 2);
}

#endif
