/* SPDX-License-Identifier: Apache-2.0 */
/*
 * span_unit - buffers taken many at a time, without chains: what ring_vq_peek() takes, what it leaves to ring_vq_pop(), and
 * that both get along on one ring.
 */
#include "ring/csrc/span.h"
#include "tests/c/raw.h"

static struct ring_span span;

static int peek(int max, int in)
{
	return ring_vq_peek(r.vq, &span, max, in);
}

/* Buffer @id of @len bytes. */
static void give(uint16_t id, uint32_t len, uint16_t flags)
{
	chain(id, &(struct buf){ data(256 * (uint64_t)id), len, flags }, 1);
}

static void test_some(uint64_t features)
{
	static const uint32_t written[] = { 3, 0, 2 };
	struct ring_vq_stats stats;
	uint16_t i;

	open_queue(SIZE, features);
	CHECK_EQ(peek(8, 1), 0);
	for (i = 0; i < 5; i++)
		give(i, 10u + i, WRITE);
	CHECK_EQ(peek(8, 1), 5);
	CHECK_EQ(peek(3, 1), 3);	/* nothing has happened */
	for (i = 0; i < 3; i++)
		CHECK(span.iov[i].base == host(data(256 * (uint64_t)i)) && span.iov[i].len == 10u + i);
	ring_vq_consume(r.vq, &span, written, 2);
	CHECK_EQ(peek(8, 1), 3);
	CHECK(span.iov[0].len == 12);
	ring_vq_consume(r.vq, &span, written + 2, 1);
	ring_vq_flush(r.vq);
	CHECK_EQ(peek(8, 1), 2);
	ring_vq_stats(r.vq, &stats);
	CHECK_EQ(stats.popped, 3);
	CHECK_EQ(stats.pushed, 3);
	CHECK_EQ(ring_vq_in_flight(r.vq), 0);
	rig_close(&r);
}

/* What comes first decides; what is not alike is left. */
static void test_kinds(uint64_t features)
{
	struct ring_chain *c;

	open_queue(SIZE, features | RIG_INDIRECT);
	give(0, 8, 0);
	give(1, 8, WRITE);
	CHECK_EQ(peek(8, 1), -1);
	CHECK_EQ(peek(8, 0), 1);
	ring_vq_consume(r.vq, &span, NULL, 1);
	CHECK_EQ(peek(8, 0), -1);
	CHECK_EQ(peek(8, 1), 1);
	ring_vq_consume(r.vq, &span, NULL, 1);
	ring_vq_flush(r.vq);
	chain(2, (struct buf[]){ { data(0), 8, 0 }, { data(64), 8, 0 } }, 2);
	CHECK_EQ(peek(8, 0), -1);
	CHECK_EQ(pop1(&c), 1);
	give(6, 8, 0);
	CHECK_EQ(peek(8, 0), -1);	/* something is in flight */
	ring_vq_push(r.vq, c, 0);
	CHECK_EQ(peek(8, 0), 1);
	ring_vq_consume(r.vq, &span, NULL, 1);
	ring_vq_flush(r.vq);
	table_entry(data(0), 0, data(64), 3, 0, 0);
	chain(7, &(struct buf){ data(0), 16, IND }, 1);
	CHECK_EQ(peek(8, 0), -1);
	CHECK_EQ(pop1(&c), 1);
	ring_vq_push(r.vq, c, 0);
	ring_vq_flush(r.vq);
	rig_close(&r);
}

/* Hostile ones are the careful way's to judge, and those before them are taken. */
static void test_hostile(uint64_t features)
{
	static const struct {
		uint64_t addr;
		uint32_t len;
		uint16_t id;
	} bad[] = { { 0, 8, 1 }, { RIG_GPA, UINT32_MAX, 1 }, { UINT64_MAX - 3, 8, 1 }, { RIG_GPA, 8, SIZE } };
	struct ring_chain *c;
	uint64_t detail;
	size_t i;

	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		open_queue(SIZE, features);
		give(0, 8, 0);
		if (bad[i].id < SIZE) {
			chain(bad[i].id, &(struct buf){ bad[i].addr, bad[i].len, 0 }, 1);
		} else if (is_packed()) {
			chain(bad[i].id, &(struct buf){ data(0), bad[i].len, 0 }, 1);
		} else {
			split_avail(SIZE);
		}
		CHECK_EQ(peek(8, 0), 1);
		ring_vq_consume(r.vq, &span, NULL, 1);
		CHECK_EQ(peek(8, 0), -1);
		CHECK(pop1(&c) < 0);
		CHECK(ring_vq_error(r.vq, &detail) != 0);
		CHECK_EQ(peek(8, 0), -1);
		rig_close(&r);
	}
	/* an empty buffer */
	open_queue(SIZE, features);
	give(0, 0, 0);
	CHECK_EQ(peek(8, 0), -1);
	CHECK_EQ(pop1(&c), 1);
	rig_close(&r);
}

static void test_wants_more(uint64_t features)
{
	open_queue(SIZE, features | RIG_IN_ORDER);
	give(0, 8, 0);
	CHECK_EQ(peek(8, 0), -1);
	rig_close(&r);
	open_queue(SIZE, features);
	give(0, 8, 0);
	ring_vq_set_logging(r.vq, 1, 1, 0);
	CHECK_EQ(peek(8, 0), -1);
	ring_vq_set_logging(r.vq, 0, 0, 0);
	CHECK_EQ(peek(8, 0), 1);
	ring_vq_stop(r.vq);
	CHECK_EQ(peek(8, 0), -1);
	ring_vq_consume(r.vq, &span, NULL, 1);
	rig_close(&r);
}

/* The same id twice: given back twice, and a driver's own affair. */
static void test_twice(uint64_t features)
{
	open_queue(SIZE, features);
	give(3, 8, WRITE);
	give(3, 8, WRITE);
	CHECK_EQ(peek(8, 1), 2);
	ring_vq_consume(r.vq, &span, (const uint32_t[]){ 8, 8 }, 2);
	ring_vq_flush(r.vq);
	CHECK_EQ(ring_vq_state(r.vq), RING_VQ_RUNNING);
	rig_close(&r);
}

/* Both ways by turns, round and round a ring, with a driver that checks what comes back. */
static void test_churn(uint32_t size, uint64_t features, uint64_t seed)
{
	struct ring_drv_used used[8];
	struct ring_chain *c[8];
	uint64_t rnd = seed, sent = 0, got = 0;
	uint32_t written[8], rounds;
	int n, i;

	open_queue(size, features);
	for (rounds = 0; rounds < 4000; rounds++) {
		uint32_t more = (uint32_t)(rig_rnd(&rnd) % 9);

		while (more--) {
			struct ring_drv_buf buf = { .addr = data(64 * (sent % 100)), .len = (uint32_t)(1 + sent % 60) };

			if (ring_drv_add(r.drv, &buf, 0, 1, sent, 0) >= 0)
				sent++;
		}
		if (rig_rnd(&rnd) % 3)
			ring_drv_publish(r.drv);
		if (rig_rnd(&rnd) % 4) {
			n = peek(1 + (int)(rig_rnd(&rnd) % 8), 1);
			CHECK(n >= 0 || (n == -1 && is_packed()));	/* all of it waits for a flush */
			if (n > 1)
				n -= (int)(rig_rnd(&rnd) % (uint64_t)n);
			for (i = 0; i < n; i++)
				written[i] = (uint32_t)span.iov[i].len;
			ring_vq_consume(r.vq, &span, written, n);
		} else {
			n = ring_vq_pop(r.vq, c, 8);
			CHECK(n >= 0);
			if (n && rig_rnd(&rnd) & 1)
				CHECK_EQ(ring_vq_unpop(r.vq, 1), 1);
			else if (n)
				ring_vq_push(r.vq, c[n - 1], c[n - 1]->in_bytes);
			for (i = 0; i < n - 1; i++)
				ring_vq_push(r.vq, c[i], c[i]->in_bytes);
		}
		if (rig_rnd(&rnd) & 1)
			ring_vq_flush(r.vq);
		n = ring_drv_poll(r.drv, used, 8);
		CHECK(n >= 0);
		for (i = 0; i < n; i++)
			CHECK_EQ(used[i].len, 1 + used[i].token % 60);
		got += (uint64_t)n;
	}
	CHECK(got > 1000 && got <= sent);
	rig_close(&r);
}

int main(void)
{
	static const uint64_t layouts[] = { 0, RIG_PACKED };
	uint64_t seed;
	size_t i;

	for (i = 0; i < 2; i++) {
		uint64_t f = layouts[i];

		test_some(f);
		test_kinds(f);
		test_hostile(f);
		test_wants_more(f);
		test_twice(f);
		for (seed = 1; seed < 4; seed++) {
			test_churn(f ? 7 : 8, f, seed);
			test_churn(f ? 100 : 128, f | RIG_EVENT_IDX, seed);
		}
	}
	return 0;
}
