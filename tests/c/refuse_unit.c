/* SPDX-License-Identifier: Apache-2.0 */
/*
 * refuse_unit - every way in which a ring can be bad, and the RING_E_* that says so: both layouts, word by word.
 */
#include "tests/c/raw.h"

static void refused_chain(uint64_t features, const struct buf *bufs, uint32_t n, int error)
{
	open_queue(SIZE, features);
	chain(0, bufs, n);
	expect_broken(error);
}

static void test_refused(uint64_t features)
{
	const struct buf ok = { RIG_GPA, 16, 0 };
	struct buf many[3] = { ok, ok, ok };
	uint32_t i;

	refused_chain(features, &(struct buf){ RIG_GPA - 1, 16, 0 }, 1, RING_E_ADDR);
	refused_chain(features, &(struct buf){ RIG_GPA - 8, 16, 0 }, 1, RING_E_ADDR);
	refused_chain(features, &(struct buf){ UINT64_MAX - 8, 16, 0 }, 1, RING_E_ADDR);
	refused_chain(features, &(struct buf){ UINT64_MAX, 1, WRITE }, 1, RING_E_ADDR);
	refused_chain(features, &(struct buf){ 0, UINT32_MAX, WRITE }, 1, RING_E_ADDR);
	many[1].flags = WRITE;
	refused_chain(features, many, 3, RING_E_ORDER);
	many[2].len = 0;
	refused_chain(features, many, 3, RING_E_ORDER);
	/* indirect: not negotiated; empty; not a multiple of 16; together with NEXT */
	refused_chain(features & ~RIG_INDIRECT, &(struct buf){ RIG_GPA, 16, IND }, 1, RING_E_INDIRECT);
	refused_chain(features, &(struct buf){ RIG_GPA, 0, IND }, 1, RING_E_INDIRECT);
	refused_chain(features, &(struct buf){ RIG_GPA, 24, IND }, 1, RING_E_INDIRECT);
	refused_chain(features, &(struct buf){ RIG_GPA - 32, 32, IND }, 1, RING_E_ADDR);
	refused_chain(features, &(struct buf){ UINT64_MAX - 15, 32, IND }, 1, RING_E_ADDR);
	many[0].flags = IND;
	refused_chain(features, many, 3, RING_E_INDIRECT);
	/* nested */
	open_queue(SIZE, features);
	table_entry(data(0), 0, data(64), 16, IND, 0);
	chain(0, &(struct buf){ data(0), 16, IND }, 1);
	expect_broken(RING_E_INDIRECT);
	/* a table of more than RING_CHAIN_MAX buffers */
	open_queue(SIZE, features);
	for (i = 0; i < RING_CHAIN_MAX + 1; i++)
		table_entry(data(0), i, data(0), 1, i < RING_CHAIN_MAX ? NEXT : 0, (uint16_t)(i + 1));
	chain(0, &(struct buf){ data(0), 16 * (RING_CHAIN_MAX + 1), IND }, 1);
	expect_broken(RING_E_LOOP);
}

static void test_too_long(uint64_t features)
{
	struct ring_chain *c;
	uint8_t *big = mmap(NULL, 1ul << 32, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint64_t at = 1ull << 40;

	CHECK(big != MAP_FAILED);
	/* 2^32 - 1 bytes in all are the most */
	open_queue(SIZE, features);
	CHECK_EQ(ring_mem_add_mapped(r.mem, big, at, 1ull << 32, at, 0), 0);
	chain(0, (struct buf[]){ { at, 1u << 31, 0 }, { at, (1u << 31) - 1, WRITE } }, 2);
	CHECK_EQ(pop1(&c), 1);
	CHECK_EQ(c->out_bytes, 1u << 31);
	CHECK_EQ(c->in_bytes, (1u << 31) - 1);
	chain(2, (struct buf[]){ { at, 1u << 31, 0 }, { at, 1u << 31, WRITE } }, 2);
	expect_broken(RING_E_LEN);
	munmap(big, 1ul << 32);
}

static void test_read_only(uint64_t features)
{
	static uint8_t page[PAGE] __attribute__((aligned(4096)));
	struct ring_chain *c;

	open_queue(SIZE, features);
	CHECK_EQ(ring_mem_add_mapped(r.mem, page, 1 << 20, PAGE, 1 << 20, RING_MEM_RO), 0);
	chain(0, &(struct buf){ 1 << 20, 16, 0 }, 1);
	CHECK_EQ(pop1(&c), 1);
	CHECK(c->iov[0].base == page);
	chain(1, &(struct buf){ 1 << 20, 16, WRITE }, 1);
	expect_broken(RING_E_PERM);
}

static void test_split_refused(void)
{
	uint32_t i;

	open_queue(SIZE, 0);	/* head */
	split_avail(SIZE);
	expect_broken(RING_E_HEAD);
	open_queue(SIZE, 0);	/* index jump */
	shm_store16(r.area + r.lay.avail + 2, SIZE + 1);
	expect_broken(RING_E_AVAIL);
	open_queue(SIZE, 0);	/* next */
	split_desc(0, RIG_GPA, 1, NEXT, SIZE);
	split_avail(0);
	expect_broken(RING_E_NEXT);
	open_queue(SIZE, 0);	/* endless */
	split_desc(0, RIG_GPA, 1, NEXT, 1);
	split_desc(1, RIG_GPA, 1, NEXT, 0);
	split_avail(0);
	expect_broken(RING_E_LOOP);
	open_queue(SIZE, 0);	/* endless, of empty buffers */
	split_desc(0, RIG_GPA, 0, NEXT, 0);
	split_avail(0);
	expect_broken(RING_E_LOOP);
	open_queue(4096, 0);	/* longer than RING_CHAIN_MAX though shorter than the table */
	for (i = 0; i < 2000; i++)
		split_desc(i, RIG_GPA, 1, NEXT, (uint16_t)(i + 1));
	split_desc(2000, RIG_GPA, 1, 0, 0);
	split_avail(0);
	expect_broken(RING_E_LOOP);
	open_queue(SIZE, RIG_INDIRECT);	/* in a table: next, loop */
	table_entry(data(0), 0, RIG_GPA, 1, NEXT, 2);
	split_desc(0, data(0), 32, IND, 0);
	split_avail(0);
	expect_broken(RING_E_NEXT);
	open_queue(SIZE, RIG_INDIRECT);
	table_entry(data(0), 0, RIG_GPA, 1, NEXT, 1);
	table_entry(data(0), 1, RIG_GPA, 1, NEXT, 0);
	split_desc(0, data(0), 32, IND, 0);
	split_avail(0);
	expect_broken(RING_E_LOOP);
}

static void test_duplicate(uint64_t features)
{
	struct ring_chain *c[4];

	open_queue(SIZE, features);
	chain(3, &(struct buf){ RIG_GPA, 1, 0 }, 1);
	chain(3, &(struct buf){ RIG_GPA, 1, 0 }, 1);
	CHECK_EQ(ring_vq_pop(r.vq, c, 4), 1);	/* the good one first */
	CHECK_EQ(ring_vq_state(r.vq), RING_VQ_RUNNING);
	expect_broken(RING_E_DUP);
}

static void test_packed_refused(void)
{
	struct ring_chain *c;
	uint32_t i;

	open_queue(SIZE, RIG_PACKED);
	packed_desc(RIG_GPA, 1, SIZE, 0);
	expect_broken(RING_E_ID);
	/* a list as long as the ring, all NEXT */
	open_queue(SIZE, RIG_PACKED);
	for (i = 0; i < SIZE; i++)
		packed_desc(RIG_GPA, 1, 0, NEXT);
	expect_broken(RING_E_LOOP);
	/* runs into slots that were not given back */
	open_queue(SIZE, RIG_PACKED);
	for (i = 0; i < SIZE; i++)
		packed_desc(RIG_GPA, 1, (uint16_t)i, 0);
	for (i = 0; i < SIZE; i++)
		CHECK_EQ(pop1(&c), 1);
	CHECK_EQ(pop1(&c), 0);
	packed_desc(RIG_GPA, 1, 0, 0);
	expect_broken(RING_E_AVAIL);
	/* the id that counts is the last one's */
	open_queue(SIZE, RIG_PACKED);
	packed_desc(RIG_GPA, 7, 900, NEXT);
	packed_desc(RIG_GPA, 8, 2, NEXT);
	packed_desc(RIG_GPA, 9, 5, WRITE);
	CHECK_EQ(pop1(&c), 1);
	CHECK_EQ(c->id, 5);
	CHECK_EQ(c->nr_desc, 3);
	CHECK_EQ(c->nr_out, 2);
	CHECK(c->iov == c->inl && c->iov[2].len == 9);
	ring_vq_push(r.vq, c, 9);
	ring_vq_flush(r.vq);
	CHECK_EQ(shm_load16(desc(0) + 12), 5);
	CHECK_EQ(shm_load16(desc(0) + 14), 1 << 7 | 1 << 15 | WRITE);
	rig_close(&r);
	/* flags that are neither available nor used */
	open_queue(SIZE, RIG_PACKED);
	put(desc(0), RIG_GPA, 1, 0, 1 << 7 | 1 << 15);
	CHECK_EQ(ring_vq_ready(r.vq), 0);
	CHECK_EQ(pop1(&c), 0);
	put(desc(0), RIG_GPA, 1, 0, 1 << 15);	/* available, but for the other lap */
	CHECK_EQ(pop1(&c), 0);
	put(desc(0), RIG_GPA, 1, 0, 1 << 7);
	CHECK_EQ(ring_vq_ready(r.vq), 1);
	CHECK_EQ(pop1(&c), 1);
	rig_close(&r);
}

static void test_start_refused(void)
{
	struct ring_vq_config good;

	open_queue(SIZE, 0);
	good = r.cfg;
	CHECK_EQ(ring_vq_start(r.vq, &good), -RING_E_STATE);
	ring_vq_stop(r.vq);
#define REFUSED(field, value, error)                                                                                   \
	do {                                                                                                           \
		r.cfg = good;                                                                                          \
		r.cfg.field = (value);                                                                                 \
		CHECK_EQ(ring_vq_start(r.vq, &r.cfg), -(error));                                                       \
		CHECK_EQ(ring_vq_state(r.vq), RING_VQ_STOPPED);                                                        \
	} while (0)
	REFUSED(size, 0, RING_E_SIZE);
	REFUSED(size, 3, RING_E_SIZE);
	REFUSED(size, 65536, RING_E_SIZE);
	REFUSED(base, 65536, RING_E_RING);
	REFUSED(desc, good.desc + 8, RING_E_RING);
	REFUSED(avail, good.avail + 1, RING_E_RING);
	REFUSED(used, good.used + 2, RING_E_RING);
	REFUSED(desc, RIG_GPA + r.bytes, RING_E_RING);
	REFUSED(desc, RIG_GPA + r.bytes - 16 * SIZE + 16, RING_E_RING);
	REFUSED(used, RIG_GPA + r.bytes - 8, RING_E_RING);
	REFUSED(avail, 0, RING_E_RING);
	/* a used ring without room for avail_event: fine without EVENT_IDX, not with it */
	r.cfg = good;
	r.cfg.used = RIG_GPA + r.bytes - (4 + 8 * SIZE);
	CHECK_EQ(ring_vq_start(r.vq, &r.cfg), 0);
	ring_vq_stop(r.vq);
	r.cfg.features |= RIG_EVENT_IDX;
	CHECK_EQ(ring_vq_start(r.vq, &r.cfg), -RING_E_RING);
	rig_close(&r);
	open_queue(SIZE, RIG_PACKED);
	good = r.cfg;
	ring_vq_stop(r.vq);
	REFUSED(base, SIZE, RING_E_RING);
	REFUSED(base, SIZE << 16, RING_E_RING);
	REFUSED(avail, good.avail + 2, RING_E_RING);
	REFUSED(size, 32769, RING_E_SIZE);
	r.cfg = good;
	r.cfg.size = 3;	/* need not be a power of two */
	rig_start(&r);
	rig_close(&r);
#undef REFUSED
}

int main(void)
{
	static const uint64_t layouts[] = { 0, RIG_PACKED };

	for (size_t i = 0; i < 2; i++) {
		test_refused(layouts[i] | RIG_INDIRECT);
		test_too_long(layouts[i]);
		test_read_only(layouts[i]);
		test_duplicate(layouts[i]);
	}
	test_split_refused();
	test_packed_refused();
	test_start_refused();
	return 0;
}
