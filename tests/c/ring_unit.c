/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ring_unit - the device side of both layouts against rings written word by word: what is accepted, every state change,
 * notifications, log, IOTLB. What is refused: refuse_unit.c.
 *
 * Longer than most files here: one list of cases, each of which stands alone.
 */
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ring/csrc/vq.h"
#include "tests/c/raw.h"

static void test_zero_length(uint64_t features)
{
	struct ring_chain *c;

	open_queue(SIZE, features);
	/* an empty buffer is nobody's: its address does not matter */
	chain(0, (struct buf[]){ { UINT64_MAX, 0, 0 }, { data(0), 4, 0 }, { 1, 0, WRITE }, { data(8), 2, WRITE } }, 4);
	chain(8, &(struct buf){ 0, 0, WRITE }, 1);
	CHECK_EQ(pop1(&c), 1);
	CHECK_EQ(c->nr_out, 1);
	CHECK_EQ(c->nr_in, 1);
	CHECK_EQ(c->out_bytes, 4);
	CHECK_EQ(c->in_bytes, 2);
	CHECK_EQ(pop1(&c), 1);
	CHECK_EQ(c->nr_out + c->nr_in, 0);
	rig_close(&r);
}

/* Memory cut into regions of one page; a buffer and an indirect table run across. */
static void test_regions(uint64_t features)
{
	struct ring_chain *c;
	uint8_t *area;
	uint64_t i;
	uint32_t k;

	open_queue(SIZE, features);
	area = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(area != MAP_FAILED);
	for (i = 0; i < 4; i++)	/* adjacent in the guest, every second page here, the last first */
		CHECK_EQ(ring_mem_add_mapped(r.mem, area + (6 - 2 * i) * PAGE, 0x10000 + i * PAGE, PAGE, 0x10000 + i * PAGE,
					     0), 0);
	chain(0, &(struct buf){ 0x10000 + 100, 3 * PAGE, WRITE }, 1);
	CHECK_EQ(pop1(&c), 1);
	CHECK_EQ(c->nr_in, 4);
	CHECK(c->iov[0].base == area + 6 * PAGE + 100 && c->iov[0].len == PAGE - 100);
	CHECK(c->iov[1].base == area + 4 * PAGE && c->iov[1].len == PAGE);
	CHECK(c->iov[3].base == area && c->iov[3].len == 100);
	CHECK_EQ(ring_chain_write(c, PAGE - 102, "abcd", 4), 4);
	CHECK(area[6 * PAGE + PAGE - 2] == 'a' && area[6 * PAGE + PAGE - 1] == 'b' && area[4 * PAGE + 1] == 'd');
	CHECK(ring_vq_overlaps(r.vq, area, 1) && ring_vq_overlaps(r.vq, area + 99, 1));
	CHECK(!ring_vq_overlaps(r.vq, area + 100, PAGE) && !ring_vq_overlaps(r.vq, area + PAGE, PAGE));
	/* a table of two entries, the second one half in the next region */
	uint8_t table[32];

	for (k = 0; k < 2; k++) {
		if (is_packed())
			put(table + 16 * k, data(k), k + 1, 0, k ? WRITE : 0);
		else
			put(table + 16 * k, data(k), k + 1, k ? WRITE : NEXT, 1);
	}
	memcpy(area + 6 * PAGE + PAGE - 24, table, 24);
	memcpy(area + 4 * PAGE, table + 24, 8);
	chain(1, &(struct buf){ 0x10000 + PAGE - 24, 32, IND | WRITE }, 1);	/* WRITE there means nothing */
	CHECK_EQ(pop1(&c), 1);
	CHECK_EQ(c->out_bytes, 1);
	CHECK_EQ(c->in_bytes, 2);
	/* misaligned */
	memcpy(host(data(1001)), table, 32);
	chain(2, &(struct buf){ data(1001), 32, IND }, 1);
	CHECK_EQ(pop1(&c), 1);
	CHECK_EQ(c->in_bytes, 2);
	/* past the end */
	chain(3, &(struct buf){ 0x10000 + 3 * PAGE + 1, PAGE, 0 }, 1);
	expect_broken(RING_E_ADDR);
	munmap(area, 8 * PAGE);
}

/* Direct descriptors, then a table (VIRTIO 1.3, 2.7.5.3.1: devices must cope). */
static void test_mixed(uint64_t features)
{
	struct ring_chain *c;

	open_queue(SIZE, features);
	table_entry(data(0), 0, data(64), 3, NEXT, 1);
	table_entry(data(0), 1, data(128), 5, WRITE, 0);
	chain(0, (struct buf[]){ { data(256), 2, 0 }, { data(0), 32, IND } }, 2);
	CHECK_EQ(pop1(&c), 1);
	CHECK_EQ(c->nr_out, 2);
	CHECK_EQ(c->out_bytes, 5);
	CHECK_EQ(c->nr_in, 1);
	CHECK_EQ(c->in_bytes, 5);
	rig_close(&r);
}

/* Every size of block, every turn from readable to writable, in a table and in the ring itself. */
static void test_lengths(uint64_t features)
{
	static const uint32_t lengths[] = { 1, 5, 6, 7, 8, 135, 136, 137, 1023, 1024 };
	struct ring_chain *c;
	uint32_t k, i, n, nr_out, direct;

	open_queue(1024, features);
	for (k = 0; k < sizeof(lengths) / sizeof(lengths[0]); k++)
		for (nr_out = 0; nr_out <= lengths[k]; nr_out += 1 + nr_out / 3)
			for (direct = 0; direct < 2; direct++) {
				static struct buf bufs[1024];

				n = lengths[k];
				for (i = 0; i < n; i++) {
					bufs[i] = (struct buf){ data(32768 + 16 * i), 1 + i, i < nr_out ? 0 : WRITE };
					table_entry(data(0), i, bufs[i].addr, bufs[i].len,
						    (uint16_t)(bufs[i].flags | (i + 1 < n ? NEXT : 0)), (uint16_t)(i + 1));
				}
				if (direct)
					chain(0, bufs, n);
				else
					chain(0, &(struct buf){ data(0), 16 * n, IND }, 1);
				CHECK_EQ(pop1(&c), 1);
				CHECK(c->nr_out == nr_out && c->nr_in == n - nr_out);
				CHECK_EQ(c->out_bytes, nr_out * (nr_out + 1) / 2);
				CHECK_EQ(c->out_bytes + c->in_bytes, n * (n + 1) / 2);
				for (i = 0; i < n; i++)
					CHECK(c->iov[i].base == host(bufs[i].addr) && c->iov[i].len == bufs[i].len);
				ring_vq_push(r.vq, c, 0);
				ring_vq_flush(r.vq);
			}
	rig_close(&r);
}

/* Long chains come from pools: when those are used up pop waits for a push, and nothing spins. */
static void test_pools(uint64_t features)
{
	struct ring_chain *c[SIZE * 4];
	uint32_t i, n;
	int rc;

	open_queue(SIZE * 4, features);
	for (i = 0; i < 200; i++)
		table_entry(data(0), i, data(4096 + 8 * i), 8, (uint16_t)(i ? WRITE | NEXT : NEXT), (uint16_t)(i + 1));
	table_entry(data(0), 200, data(0), 1, WRITE, 0);
	for (i = 0; i < SIZE * 4; i++)
		chain((uint16_t)i, &(struct buf){ data(0), 16 * 201, IND }, 1);
	for (n = 0; (rc = ring_vq_pop(r.vq, c + n, 16)) > 0; n += (uint32_t)rc)
		;
	CHECK_EQ(rc, 0);
	CHECK_EQ(n, 32);	/* blocks of that size */
	CHECK_EQ(ring_vq_kicks_on(r.vq), 0);
	CHECK_EQ(ring_vq_ready(r.vq), 0);
	CHECK_EQ(ring_vq_state(r.vq), RING_VQ_RUNNING);
	for (i = 0; i < n; i++) {
		CHECK_EQ(c[i]->nr_in, 200);
		CHECK(c[i]->iov[100].base == host(data(4096 + 800)));
	}
	ring_vq_push(r.vq, c[7], 1);
	CHECK_EQ(ring_vq_ready(r.vq), 1);
	CHECK_EQ(ring_vq_kicks_on(r.vq), 1);
	CHECK_EQ(pop1(&c[7]), 1);
	CHECK_EQ(ring_vq_unpop(r.vq, 1), 1);	/* gives its block back too */
	CHECK_EQ(pop1(&c[7]), 1);
	CHECK_EQ(pop1(&c[32]), 0);
	rig_close(&r);
}

static void test_unpop(uint64_t features)
{
	struct ring_chain *c[8];
	struct ring_vq_stats stats;
	uint32_t base;
	int i;

	open_queue(8, features);
	for (i = 0; i < 3; i++)
		chain((uint16_t)(2 * i), (struct buf[]){ { data(0), (uint32_t)i + 1, 0 }, { data(64), 1, WRITE } }, 2);
	CHECK_EQ(pop1(c), 1);
	base = ring_vq_base(r.vq);
	CHECK_EQ(ring_vq_pop(r.vq, c + 1, 7), 2);
	CHECK_EQ(ring_vq_unpop(r.vq, 4), -RING_E_STATE);
	CHECK_EQ(ring_vq_unpop(r.vq, 2), 2);
	CHECK_EQ(ring_vq_base(r.vq), base);
	CHECK_EQ(ring_vq_in_flight(r.vq), 1);
	CHECK_EQ(ring_vq_pop(r.vq, c + 1, 7), 2);
	CHECK_EQ(c[1]->out_bytes, 2);
	CHECK_EQ(c[2]->out_bytes, 3);
	ring_vq_push(r.vq, c[2], 0);
	CHECK_EQ(ring_vq_unpop(r.vq, 1), -RING_E_STATE);	/* the newest is completed */
	ring_vq_stats(r.vq, &stats);
	CHECK_EQ(stats.popped, 3);
	rig_close(&r);
}

static uint32_t used_id(uint32_t i)
{
	if (is_packed())
		return shm_load16(desc(i) + 12);
	return shm_load32(r.area + r.lay.used + 4 + 8 * (size_t)i);
}

static void test_in_order(uint64_t features)
{
	struct ring_chain *c[4];
	uint32_t i;

	open_queue(SIZE, features | RIG_IN_ORDER);
	for (i = 0; i < 4; i++)
		chain((uint16_t)i, &(struct buf){ data(0), 8, WRITE }, 1);
	CHECK_EQ(ring_vq_pop(r.vq, c, 4), 4);
	ring_vq_push(r.vq, c[2], 2);
	ring_vq_push(r.vq, c[1], 1);
	CHECK_EQ(ring_vq_flush(r.vq), 0);
	if (!is_packed())
		CHECK_EQ(used_count(), 0);
	ring_vq_push(r.vq, c[0], 0);
	ring_vq_flush(r.vq);
	for (i = 0; i < 3; i++)
		CHECK_EQ(used_id(i), i);
	if (!is_packed())
		CHECK_EQ(used_count(), 3);
	else
		CHECK_EQ(shm_load16(desc(3) + 14), WRITE | 1 << 7);
	CHECK_EQ(ring_vq_in_flight(r.vq), 1);
	rig_close(&r);
}

static void test_state(uint64_t features)
{
	int err = eventfd(0, EFD_CLOEXEC), news = eventfd(0, EFD_CLOEXEC);
	struct ring_chain *c[3];
	uint64_t v, detail;

	open_queue(SIZE, features);
	ring_vq_stop(r.vq);
	CHECK_EQ(pop1(c), -RING_E_STATE);
	r.cfg.err_fd = err;
	r.cfg.news_fd = news;
	rig_start(&r);
	chain(0, &(struct buf){ data(0), 8, WRITE }, 1);
	chain(1, &(struct buf){ data(0), 8, WRITE }, 1);
	chain(2, &(struct buf){ data(0), 8, WRITE }, 1);
	CHECK_EQ(ring_vq_pop(r.vq, c, 3), 3);
	CHECK(read(err, &v, 8) == -1 && errno == EAGAIN);	/* made non-blocking */
	ring_vq_break(r.vq, RING_E_DEVICE, 77);
	ring_vq_break(r.vq, RING_E_LEN, 78);
	CHECK_EQ(ring_vq_error(r.vq, &detail), RING_E_DEVICE);
	CHECK_EQ(detail, 77);
	CHECK(read(err, &v, 8) == 8 && v == 1);
	CHECK(read(news, &v, 8) == 8 && v == 1);
	ring_vq_push(r.vq, c[0], 8);
	CHECK_EQ(ring_vq_flush(r.vq), 0);
	CHECK_EQ(ring_vq_in_flight(r.vq), 2);
	if (!is_packed())
		CHECK_EQ(used_count(), 0);
	ring_vq_stop(r.vq);
	CHECK_EQ(ring_vq_error(r.vq, &detail), 0);
	CHECK(c[1]->iov[0].base == host(data(0)));	/* still readable */
	ring_vq_push(r.vq, c[1], 8);
	/* pushed twice: the device is wrong, the ring is not touched */
	r.cfg.base = ring_vq_base(r.vq);
	rig_start(&r);
	chain(5, &(struct buf){ data(0), 8, WRITE }, 1);
	CHECK_EQ(pop1(c), 1);
	ring_vq_push(r.vq, c[0], 1);
	ring_vq_push(r.vq, c[0], 1);
	CHECK_EQ(ring_vq_error(r.vq, NULL), RING_E_STATE);
	rig_close(&r);
	/* truncated memory file */
	open_queue(SIZE, features);
	chain(0, &(struct buf){ data(0), 8, WRITE }, 1);
	CHECK_EQ(pop1(c), 1);
	atomic_store(&r.mem->faulted, 1);
	ring_vq_push(r.vq, c[0], 8);
	ring_vq_flush(r.vq);
	CHECK_EQ(ring_vq_error(r.vq, NULL), RING_E_FAULT);
	expect_broken(RING_E_FAULT);
	close(err);
	close(news);
}

/* ---- notifications ---- */

static void test_split_notify(void)
{
	int call = eventfd(0, EFD_CLOEXEC);
	struct ring_chain *c[4];
	struct ring_vq_stats stats;
	uint16_t *event;
	uint32_t i;

	open_queue(SIZE, 0);
	ring_vq_set_call(r.vq, call);
	for (i = 0; i < 2; i++)
		chain((uint16_t)i, &(struct buf){ data(0), 8, WRITE }, 1);
	CHECK_EQ(ring_vq_pop(r.vq, c, 4), 2);
	ring_vq_push(r.vq, c[0], 0);
	CHECK_EQ(ring_vq_flush(r.vq), 1);
	CHECK_EQ(ring_vq_flush(r.vq), 0);	/* nothing new */
	shm_store16(r.area + r.lay.avail, 1);	/* NO_INTERRUPT */
	ring_vq_push(r.vq, c[1], 0);
	CHECK_EQ(ring_vq_flush(r.vq), 0);
	ring_vq_stats(r.vq, &stats);
	CHECK(stats.notified == 1 && stats.suppressed == 1 && stats.pushed == 2 && stats.batches == 1);
	ring_vq_kicks_off(r.vq);
	CHECK_EQ(shm_load16(r.area + r.lay.used), 1);
	CHECK_EQ(ring_vq_kicks_on(r.vq), 0);
	CHECK_EQ(shm_load16(r.area + r.lay.used), 0);
	chain(9, &(struct buf){ data(0), 8, WRITE }, 1);
	CHECK_EQ(ring_vq_kicks_on(r.vq), 1);
	rig_close(&r);

	open_queue(SIZE, RIG_EVENT_IDX);
	ring_vq_set_call(r.vq, call);
	event = (uint16_t *)(void *)(r.area + r.lay.avail + 4 + 2 * SIZE);
	for (i = 0; i < 6; i++) {	/* completions 0 … 5; told at the first (anyhow) and after event 3 */
		shm_store16(event, 3);
		chain((uint16_t)i, &(struct buf){ data(0), 8, WRITE }, 1);
		CHECK_EQ(pop1(c), 1);
		ring_vq_push(r.vq, c[0], 0);
		CHECK_EQ(ring_vq_flush(r.vq), i == 0 || i == 3);
	}
	CHECK_EQ(ring_vq_kicks_on(r.vq), 0);
	CHECK_EQ(shm_load16(r.area + r.lay.used + 4 + 8 * SIZE), 6);	/* avail_event */
	ring_vq_kicks_off(r.vq);
	CHECK_EQ(shm_load16(r.area + r.lay.used), 0);	/* flags stay 0 with EVENT_IDX */
	rig_close(&r);
	close(call);
}

/* @n requests, each served and flushed by itself; returns the calls. @first: the driver's, counts on. */
static int serve(uint16_t *first, int n)
{
	struct ring_chain *c[1];
	int i, calls = 0;

	for (i = 0; i < n; i++) {
		chain((uint16_t)(*first % SIZE), &(struct buf){ data(0), 8, WRITE }, 1);
		++*first;
		CHECK_EQ(pop1(c), 1);
		ring_vq_push(r.vq, c[0], 0);
		calls += ring_vq_flush(r.vq);
		CHECK_EQ(used_count(), *first);	/* published at once, whatever becomes of the call */
	}
	return calls;
}

/* Calls that wait for more, split rings with EVENT_IDX. The driver has seen all before *@event. */
static void test_hold(void)
{
	int call = eventfd(0, EFD_CLOEXEC), i;
	struct ring_chain *c[2];
	struct ring_vq_stats stats;
	uint16_t *event, n = 0;

	open_queue(SIZE, RIG_EVENT_IDX);
	ring_vq_set_call(r.vq, call);
	r.vq->hold_ns = UINT32_MAX;
	event = (uint16_t *)(void *)(r.area + r.lay.avail + 4 + 2 * SIZE);
	for (i = 0; i < 3; i++, shm_store16(event, n))
		CHECK_EQ(serve(&n, 1), 1);	/* one at a time: never held */
	CHECK(!vq_holds(r.vq));
	CHECK_EQ(serve(&n, 4), 1);	/* told at the first, as ever: four at a time is new */
	for (i = 0; i < 3; i++) {
		shm_store16(event, n);
		CHECK_EQ(serve(&n, 3), 0);
		CHECK(vq_holds(r.vq));
		CHECK_EQ(serve(&n, 1), 1);	/* all four */
		CHECK(!vq_holds(r.vq));
	}
	/* the time is up: told; fewer are under way, too few to wait for, and it is left out for some flushes after that */
	shm_store16(event, n);
	CHECK_EQ(serve(&n, 2), 0);
	CHECK_EQ(split_release(r.vq, true), 1);
	CHECK_EQ(r.vq->depth, 2);
	for (i = 0; i < 2; i++) {
		shm_store16(event, n);
		CHECK_EQ(serve(&n, 1), 1);
	}
	for (i = 0; i < 2; i++) {
		shm_store16(event, n);
		CHECK_EQ(serve(&n, 4), 1);
	}
	shm_store16(event, n);
	CHECK_EQ(serve(&n, 3), 0);
	/* the driver has looked meanwhile: nothing is left to tell */
	shm_store16(event, n);
	CHECK_EQ(split_release(r.vq, false), 0);
	/* something takes longer */
	CHECK_EQ(serve(&n, 1), 0);
	chain(0, &(struct buf){ data(0), 8, WRITE }, 1);
	chain(1, &(struct buf){ data(0), 8, WRITE }, 1);
	CHECK_EQ(ring_vq_pop(r.vq, c, 2), 2);
	ring_vq_push(r.vq, c[0], 0);
	CHECK_EQ(ring_vq_flush(r.vq), 1);
	ring_vq_push(r.vq, c[1], 0);
	ring_vq_flush(r.vq);
	n = (uint16_t)(n + 2);
	/* a driver that says it has seen what there is not yet: as without */
	shm_store16(event, (uint16_t)(n + 100));
	CHECK_EQ(serve(&n, 3), 0);
	CHECK(!vq_holds(r.vq));
	/* no listener, a broken queue: nobody to tell, nothing to read */
	shm_store16(event, n);
	CHECK_EQ(serve(&n, 1), 0);
	CHECK(vq_holds(r.vq));
	ring_vq_break(r.vq, RING_E_DEVICE, 0);
	CHECK_EQ(split_release(r.vq, false), 0);
	CHECK(!vq_holds(r.vq));
	ring_vq_stats(r.vq, &stats);
	CHECK(stats.held >= 12);
	rig_close(&r);
	close(call);
}

/* Every batch position against every event value, by the definition: is the slot named among those just used? */
static void test_packed_notify(void)
{
	enum { N = 5 };
	int call = eventfd(0, EFD_CLOEXEC);
	struct ring_chain *c[N];
	uint32_t batch, off, wrap, i;

	for (batch = 1; batch <= N; batch++)
		for (off = 0; off < N; off++)
			for (wrap = 0; wrap < 2; wrap++) {
				uint32_t lap, told, pos = 0;

				open_queue(N, RIG_PACKED | RIG_EVENT_IDX);
				ring_vq_set_call(r.vq, call);
				for (lap = 0; lap < 3 * N; lap++) {
					uint32_t k, want = 0, w = 1;

					for (i = 0; i < batch; i++)
						chain((uint16_t)i, &(struct buf){ data(0), 8, WRITE }, 1);
					CHECK_EQ(ring_vq_pop(r.vq, c, N), (int)batch);
					for (i = 0; i < batch; i++)
						ring_vq_push(r.vq, c[i], 0);
					shm_store32(r.area + r.lay.avail, off | wrap << 15 | 2u << 16);
					for (k = 0; k < batch; k++) {
						w = (pos / N & 1) ^ 1;
						want |= pos % N == off && w == wrap;
						pos++;
					}
					told = (uint32_t)ring_vq_flush(r.vq);
					CHECK_EQ(told, lap == 0 || want);
				}
				rig_close(&r);
			}
	/* flags: disable, enable, reserved, AT_DESC not negotiated */
	open_queue(N, RIG_PACKED);
	ring_vq_set_call(r.vq, call);
	static const uint16_t flags[] = { 0, 1, 2, 3, 0xfffd };

	for (i = 0; i < 5; i++) {
		chain(0, &(struct buf){ data(0), 8, WRITE }, 1);
		CHECK_EQ(pop1(c), 1);
		ring_vq_push(r.vq, c[0], 0);
		shm_store16(r.area + r.lay.avail + 2, flags[i]);
		CHECK_EQ(ring_vq_flush(r.vq), flags[i] != 1);
	}
	ring_vq_kicks_off(r.vq);
	CHECK_EQ(shm_load32(r.area + r.lay.used), 1u << 16);
	CHECK_EQ(ring_vq_kicks_on(r.vq), 0);
	CHECK_EQ(shm_load32(r.area + r.lay.used), 0);
	rig_close(&r);
	open_queue(N, RIG_PACKED | RIG_EVENT_IDX);
	for (i = 0; i < N + 2; i++) {
		CHECK_EQ(ring_vq_kicks_on(r.vq), 0);
		CHECK_EQ(shm_load32(r.area + r.lay.used), 2u << 16 | i % N | (i < N ? 1u << 15 : 0));
		chain(0, &(struct buf){ data(0), 8, WRITE }, 1);
		CHECK_EQ(ring_vq_kicks_on(r.vq), 1);
		CHECK_EQ(pop1(c), 1);
		ring_vq_push(r.vq, c[0], 0);
		ring_vq_flush(r.vq);
	}
	rig_close(&r);
	close(call);
}

/* ---- base ---- */

static void test_base(void)
{
	struct ring_chain *c[4];

	open_queue(SIZE, 0);
	ring_vq_stop(r.vq);
	shm_store16(r.area + r.lay.avail + 2, 0xfffe);
	shm_store16(r.area + r.lay.used + 2, 0xfffe);
	r.cfg.base = raw.idx = 0xfffe;
	rig_start(&r);
	for (uint16_t i = 0; i < 4; i++)
		chain(i, &(struct buf){ data(0), 8, WRITE }, 1);
	CHECK_EQ(ring_vq_pop(r.vq, c, 4), 4);
	for (int i = 0; i < 4; i++)
		ring_vq_push(r.vq, c[i], 1);
	ring_vq_flush(r.vq);
	CHECK_EQ(used_count(), 2);
	ring_vq_stop(r.vq);
	CHECK_EQ(ring_vq_base(r.vq), 2);
	/* lost requests come again when the base is taken from the used ring */
	chain(9, &(struct buf){ data(0), 8, WRITE }, 1);
	r.cfg.base = 3;
	r.cfg.base_from_used = 1;
	rig_start(&r);
	CHECK_EQ(pop1(c), 1);
	CHECK_EQ(c[0]->id, 9);
	rig_close(&r);

	open_queue(3, RIG_PACKED);
	chain(0, &(struct buf){ data(0), 8, WRITE }, 1);
	chain(1, &(struct buf){ data(0), 8, WRITE }, 1);
	CHECK_EQ(ring_vq_pop(r.vq, c, 4), 2);
	ring_vq_push(r.vq, c[1], 1);
	ring_vq_flush(r.vq);
	CHECK_EQ(ring_vq_base(r.vq), (2 | 1 << 15 | 1 << 16 | 1u << 31));
	ring_vq_push(r.vq, c[0], 1);	/* staged only */
	CHECK_EQ(ring_vq_base(r.vq), (2 | 1 << 15 | 1 << 16 | 1u << 31));
	ring_vq_flush(r.vq);
	chain(1, (struct buf[]){ { data(0), 8, 0 }, { data(0), 8, WRITE } }, 2);	/* across the end */
	CHECK_EQ(pop1(c), 1);
	CHECK_EQ(ring_vq_base(r.vq), (1 | 0 << 15 | 2 << 16 | 1u << 31));
	ring_vq_push(r.vq, c[0], 1);
	CHECK_EQ(ring_vq_base(r.vq), (1 | 0 << 15 | 2 << 16 | 1u << 31));
	ring_vq_flush(r.vq);
	CHECK_EQ(ring_vq_base(r.vq), (1 | 1 << 16));
	CHECK_EQ(ring_vq_unpop(r.vq, 1), -RING_E_STATE);
	rig_close(&r);
}

/* ---- dirty log, IOTLB ---- */

static void test_log(uint64_t features)
{
	struct ring_chain *c;
	int fd = memfd_create("log", MFD_CLOEXEC);
	uint64_t first = RIG_GPA / PAGE / 8, bytes = first + 64;
	uint8_t *log;
	uint64_t at;

	CHECK(ftruncate(fd, (off_t)bytes) == 0);
	log = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(log != MAP_FAILED);
	open_queue(SIZE, features);
	CHECK_EQ(ring_mem_log_set(r.mem, fd, bytes, 0), 0);
#define DIRTY(gpa) (log[(gpa) / PAGE / 8] >> ((gpa) / PAGE % 8) & 1)
	chain(0, (struct buf[]){ { data(0), 8, 0 }, { data(2 * PAGE), 3 * PAGE, WRITE } }, 2);
	CHECK_EQ(pop1(&c), 1);
	ring_vq_push(r.vq, c, 3 * PAGE);
	ring_vq_flush(r.vq);
	CHECK(!DIRTY(data(2 * PAGE)));	/* logging is off */
	ring_vq_set_logging(r.vq, 1, 1, RIG_GPA + r.lay.used);
	at = is_packed() ? RIG_GPA + r.lay.desc : RIG_GPA + r.lay.used;
	chain(2, (struct buf[]){ { data(0), 8, 0 }, { data(2 * PAGE), 3 * PAGE, WRITE } }, 2);
	CHECK_EQ(pop1(&c), 1);
	ring_vq_push(r.vq, c, PAGE + 1);
	CHECK(!DIRTY(at));
	ring_vq_flush(r.vq);
	CHECK(DIRTY(at));
	CHECK(!DIRTY(data(0)) && !DIRTY(data(PAGE)));
	CHECK(DIRTY(data(2 * PAGE)) && DIRTY(data(3 * PAGE)));
	CHECK(DIRTY(data(4 * PAGE)));	/* the last byte, where a status lies */
	CHECK(!DIRTY(data(5 * PAGE)));
	rig_close(&r);
	munmap(log, bytes);
	close(fd);
#undef DIRTY
}

static void test_iotlb(uint64_t features)
{
	struct ring_iotlb *tlb = ring_iotlb_new();
	struct ring_iotlb_miss miss[4];
	int news = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct ring_chain *c[2];
	uint64_t iova = 0x7000000000, v;

	open_queue(SIZE, features);
	ring_vq_stop(r.vq);
	r.cfg.desc = iova + r.lay.desc;
	r.cfg.avail = iova + r.lay.avail;
	r.cfg.used = iova + r.lay.used;
	r.cfg.iotlb = tlb;
	r.cfg.news_fd = news;
	CHECK_EQ(ring_vq_start(r.vq, &r.cfg), -RING_MISS);
	CHECK_EQ(ring_iotlb_misses(tlb, miss, 4), 1);
	CHECK_EQ(miss[0].iova, iova + r.lay.desc);
	CHECK_EQ(ring_iotlb_update(tlb, iova, r.lay.bytes, RIG_UADDR, RING_PERM_READ | RING_PERM_WRITE), 0);
	rig_start(&r);
	/* two pages of data, exchanged; the first good chain, then one that misses in its second buffer */
	CHECK_EQ(ring_iotlb_update(tlb, 0x1000, PAGE, uaddr(PAGE), RING_PERM_READ), 0);
	chain(0, &(struct buf){ 0x1800, 16, 0 }, 1);
	chain(1, (struct buf[]){ { 0x1800, 16, 0 }, { 0x1ff8, 16, 0 } }, 2);
	CHECK_EQ(ring_vq_pop(r.vq, c, 2), 1);
	CHECK(c[0]->iov[0].base == host(data(PAGE + 0x800)));
	CHECK_EQ(ring_vq_pop(r.vq, c + 1, 1), -RING_MISS);
	CHECK_EQ(ring_vq_pop(r.vq, c + 1, 1), -RING_MISS);	/* no effect, as often as wanted */
	CHECK_EQ(ring_vq_kicks_on(r.vq), 0);
	CHECK(read(news, &v, 8) == 8);
	CHECK_EQ(ring_vq_in_flight(r.vq), 1);
	CHECK_EQ(ring_iotlb_misses(tlb, miss, 4), 1);
	CHECK_EQ(ring_iotlb_update(tlb, 0x2000, PAGE, uaddr(0), RING_PERM_READ), 0);
	CHECK_EQ(ring_vq_pop(r.vq, c + 1, 1), 1);
	CHECK_EQ(c[1]->nr_out, 3);
	CHECK(c[1]->iov[2].base == host(data(0)) && c[1]->iov[2].len == 8);
	if (features & RIG_INDIRECT) {	/* a table across both pages, its second entry cut in two */
		uint8_t table[32];

		for (uint32_t k = 0; k < 2; k++) {
			if (is_packed())
				put(table + 16 * k, 0x1000, 1, 0, 0);
			else
				put(table + 16 * k, 0x1000, 1, k ? 0 : NEXT, 1);
		}
		memcpy(host(data(PAGE + PAGE - 24)), table, 24);
		memcpy(host(data(0)), table + 24, 8);
		chain(5, &(struct buf){ 0x2000 - 24, 32, IND }, 1);
		CHECK_EQ(pop1(c), 1);
		CHECK_EQ(c[0]->nr_out, 2);
	}
	rig_close(&r);
	ring_iotlb_free(tlb);
	close(news);
}

/* ---- memory that moves, fds of every kind ---- */

/* The memory behind the ring is replaced while it runs: nothing is lost, nothing goes to the old place. */
static void test_remap(uint64_t features)
{
	uint8_t *fresh = mmap(NULL, 1 << 22, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct ring_chain *c;
	uint8_t *old;

	CHECK(fresh != MAP_FAILED);
	open_queue(SIZE, features);
	chain(0, &(struct buf){ data(0), 8, WRITE }, 1);
	CHECK_EQ(pop1(&c), 1);
	old = r.area;
	memcpy(fresh, r.area, r.bytes);
	CHECK_EQ(ring_mem_remove(r.mem, RIG_GPA, r.bytes, RIG_UADDR), 0);
	CHECK_EQ(ring_mem_add_mapped(r.mem, fresh, RIG_GPA, r.bytes, RIG_UADDR, 0), 0);
	CHECK_EQ(ring_vq_remap(r.vq), 0);
	memset(old, 0xee, r.bytes);
	r.area = fresh;
	ring_vq_push(r.vq, c, 8);
	ring_vq_flush(r.vq);
	CHECK_EQ(old[r.lay.used + 2], 0xee);
	if (!is_packed())
		CHECK_EQ(used_count(), 1);
	chain(1, &(struct buf){ data(0), 8, WRITE }, 1);
	CHECK_EQ(pop1(&c), 1);
	CHECK(c->iov[0].base == fresh + r.data);
	/* gone altogether: broken, not a crash */
	CHECK_EQ(ring_mem_remove(r.mem, RIG_GPA, r.bytes, RIG_UADDR), 0);
	CHECK_EQ(ring_vq_remap(r.vq), -RING_E_RING);
	CHECK_EQ(ring_vq_state(r.vq), RING_VQ_BROKEN);
	r.area = old;
	rig_close(&r);
	munmap(fresh, 1 << 22);
}

/* Full, closed on the other side, or a socket: the worker neither blocks nor dies of SIGPIPE. */
static void test_call_fds(void)
{
	struct ring_chain *c;
	int pair[2], i;
	ssize_t n;
	char eight[8];

	open_queue(SIZE, 0);
	CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	ring_vq_set_call(r.vq, pair[0]);
	for (i = 0; i < 3; i++) {
		chain(0, &(struct buf){ data(0), 8, WRITE }, 1);
		CHECK_EQ(pop1(&c), 1);
		ring_vq_push(r.vq, c, 0);
		CHECK_EQ(ring_vq_flush(r.vq), 1);
		if (i == 0) {
			n = read(pair[1], eight, 8);
			CHECK(n == 8 && eight[0] == 1);
			CHECK(close(pair[1]) == 0);
		}
	}
	CHECK(close(pair[0]) == 0);
	CHECK(pipe2(pair, O_CLOEXEC) == 0);
	ring_vq_set_call(r.vq, pair[1]);
	for (i = 0; i < 10000; i++) {	/* 64 KiB are full after 8192 */
		chain(0, &(struct buf){ data(0), 8, WRITE }, 1);
		CHECK_EQ(pop1(&c), 1);
		ring_vq_push(r.vq, c, 0);
		CHECK_EQ(ring_vq_flush(r.vq), 1);
	}
	CHECK(close(pair[0]) == 0 && close(pair[1]) == 0);
	rig_close(&r);
}

/* ---- long runs with our own driver, any order of completion ---- */

static void test_churn(uint32_t size, uint64_t features, uint64_t seed)
{
	struct ring_chain *held[64], *c;
	uint32_t nr_held = 0, rounds;
	uint64_t rnd = seed, next_token = 1, sent = 0, got = 0;
	struct ring_drv_used used[8];

	open_queue(size, features);
	for (rounds = 0; rounds < 4000; rounds++) {
		struct ring_drv_buf bufs[4];
		uint32_t nr = (uint32_t)(1 + rig_rnd(&rnd) % 4), i, n_in = (uint32_t)(rig_rnd(&rnd) % (nr + 1));
		int n;

		for (i = 0; i < nr; i++)
			bufs[i] = (struct ring_drv_buf){ .addr = data(64 * i), .len = 1 + i };
		n = ring_drv_add(r.drv, bufs, nr - n_in, n_in, next_token,
				 features & RIG_INDIRECT && rig_rnd(&rnd) & 1);
		if (n >= 0) {
			next_token++;
			sent++;
		}
		if (rig_rnd(&rnd) % 3 == 0)
			ring_drv_publish(r.drv);
		if (nr_held < 64 && rig_rnd(&rnd) & 1) {
			n = pop1(&c);
			CHECK(n >= 0);
			if (n)
				held[nr_held++] = c;
			if (n && rig_rnd(&rnd) % 8 == 0) {
				CHECK_EQ(ring_vq_unpop(r.vq, 1), 1);
				nr_held--;
			}
		}
		if (nr_held && rig_rnd(&rnd) & 1) {
			i = (uint32_t)(rig_rnd(&rnd) % nr_held);
			ring_vq_push(r.vq, held[i], held[i]->in_bytes);
			held[i] = held[--nr_held];
		}
		if (rig_rnd(&rnd) % 3 == 0)
			ring_vq_flush(r.vq);
		n = ring_drv_poll(r.drv, used, 8);
		CHECK(n >= 0);
		for (i = 0; i < (uint32_t)n; i++)
			CHECK(used[i].token < next_token);
		got += (uint64_t)n;
	}
	ring_drv_publish(r.drv);
	for (rounds = 0; rounds < 4 * size; rounds++) {
		int n;

		while (nr_held)
			ring_vq_push(r.vq, held[--nr_held], 0);
		ring_vq_flush(r.vq);
		while ((n = ring_drv_poll(r.drv, used, 8)) > 0)
			got += (uint64_t)n;
		if (pop1(&c) == 1)
			held[nr_held++] = c;
	}
	CHECK_EQ(got, sent);
	CHECK(sent > 1000);
	CHECK_EQ(ring_vq_in_flight(r.vq), 0);
	rig_close(&r);
}

int main(void)
{
	static const uint64_t layouts[] = { 0, RIG_PACKED };
	size_t i;

	for (i = 0; i < 2; i++) {
		uint64_t f = layouts[i];

		test_zero_length(f);
		test_regions(f | RIG_INDIRECT);
		test_mixed(f | RIG_INDIRECT);
		test_lengths(f | RIG_INDIRECT);
		test_pools(f | RIG_INDIRECT);
		test_unpop(f);
		test_in_order(f);
		test_state(f);
		test_log(f);
		test_remap(f);
		test_iotlb(f);
		test_iotlb(f | RIG_INDIRECT);
		for (uint64_t seed = 1; seed < 4; seed++) {
			test_churn(f ? 7 : 8, f, seed);
			test_churn(f ? 5 : 4, f | RIG_INDIRECT | RIG_EVENT_IDX, seed);
			test_churn(f ? 100 : 128, f | RIG_INDIRECT, seed);
			test_churn(f ? 12 : 16, f | RIG_INDIRECT | RIG_IN_ORDER, seed);
		}
	}
	test_split_notify();
	test_hold();
	test_packed_notify();
	test_base();
	test_call_fds();
	return 0;
}
