/* SPDX-License-Identifier: Apache-2.0 */
/*
 * inflight_unit - the inflight record: layout byte for byte, recovery, hostile contents, and a crash after every store.
 *
 * The crash test runs a device in a child, stepped one instruction at a time. Whenever the shared memory has changed, a
 * copy of it is what a crash would have left: a new queue recovers from the copy, and each request must come back
 * exactly once or have been returned to the driver, never both, never neither.
 */
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/c/rig.h"

enum { SIZE = 8, TOTAL = 64 * 1024 };

/* Guest memory and record in one shared mapping, so that a copy of it is a whole crash site. */
struct world {
	uint8_t *mem;		/* TOTAL bytes; the record is the last 4096 of them */
	struct ring_mem *table;
	struct ring_drv_layout lay;
	struct ring_vq_config cfg;
};

static uint8_t *record(const struct world *w)
{
	return w->mem + TOTAL - 4096;
}

static void world_open(struct world *w, uint64_t features, int shared)
{
	memset(w, 0, sizeof(*w));
	w->mem = mmap(NULL, TOTAL, PROT_READ | PROT_WRITE, (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);
	CHECK(w->mem != MAP_FAILED);
	w->table = ring_mem_new();
	CHECK_EQ(ring_mem_add_mapped(w->table, w->mem, RIG_GPA, TOTAL - 4096, RIG_GPA, 0), 0);
	CHECK_EQ(ring_drv_layout(SIZE, features, 4, &w->lay), 0);
	w->cfg = (struct ring_vq_config){
		.size = SIZE,
		.base = features & RIG_PACKED ? RIG_PACKED_BASE : 0,
		.features = features,
		.desc = RIG_GPA + w->lay.desc,
		.avail = RIG_GPA + w->lay.avail,
		.used = RIG_GPA + w->lay.used,
		.addr_kind = RING_ADDR_GPA,
		.inflight = record(w),
		.inflight_bytes = ring_inflight_bytes(SIZE, features & RIG_PACKED ? 1 : 0),
		.call_fd = -1,
		.err_fd = -1,
		.news_fd = -1,
	};
}

static void world_close(struct world *w)
{
	ring_mem_free(w->table);
	munmap(w->mem, TOTAL);
}

static struct ring_drv *driver(struct world *w)
{
	struct ring_drv *drv = ring_drv_new(w->mem, RIG_GPA, SIZE, w->cfg.features, 4, w->cfg.base);

	CHECK(drv != NULL);
	return drv;
}

/* Request @token: @nr buffers, recognisable by their addresses. */
static void add(struct ring_drv *drv, uint32_t token, uint32_t nr)
{
	struct ring_drv_buf bufs[3];
	uint32_t i;

	for (i = 0; i < nr; i++)
		bufs[i] = (struct ring_drv_buf){ .addr = RIG_GPA + 32768 + 64 * token + i, .len = 1 };
	CHECK(ring_drv_add(drv, bufs, nr, 0, token, 0) >= 0);
}

static uint32_t token_of(const struct world *w, const struct ring_chain *c)
{
	return (uint32_t)((uint8_t *)c->iov[0].base - w->mem - 32768) / 64;
}

/* ---- layout ---- */

static uint16_t u16(const uint8_t *p)
{
	return shm_load16(p);
}

static void test_split_layout(void)
{
	struct ring_chain *c[3];
	struct ring_drv *drv;
	struct ring_vq *vq;
	struct world w;
	uint8_t *rec;

	CHECK_EQ(ring_inflight_bytes(128, 0), 2112);
	CHECK_EQ(ring_inflight_bytes(128, 1), 4160);
	world_open(&w, RIG_VERSION_1, 0);
	rec = record(&w);
	drv = driver(&w);
	vq = ring_vq_new(w.table, 0);
	CHECK_EQ(ring_vq_start(vq, &w.cfg), 0);
	CHECK_EQ(u16(rec + 8), 1);
	CHECK_EQ(u16(rec + 10), SIZE);
	for (uint32_t i = 0; i < 3; i++)
		add(drv, i, 2);
	ring_drv_publish(drv);
	CHECK_EQ(ring_vq_pop(vq, c, 3), 3);
	for (int i = 0; i < 3; i++) {
		CHECK_EQ(rec[16 + 16 * c[i]->id], 1);
		CHECK_EQ(shm_load64(rec + 16 + 16 * c[i]->id + 8), i);
	}
	ring_vq_push(vq, c[1], 0);
	ring_vq_push(vq, c[0], 0);
	CHECK_EQ(u16(rec + 12), c[0]->id);
	CHECK_EQ(u16(rec + 16 + 16 * c[0]->id + 6), c[1]->id);
	CHECK_EQ(rec[16 + 16 * c[0]->id], 1);	/* until published */
	CHECK_EQ(u16(rec + 14), 0);
	ring_vq_flush(vq);
	CHECK_EQ(rec[16 + 16 * c[0]->id] | rec[16 + 16 * c[1]->id], 0);
	CHECK_EQ(rec[16 + 16 * c[2]->id], 1);
	CHECK_EQ(u16(rec + 14), 2);
	ring_vq_free(vq);
	ring_drv_free(drv);
	world_close(&w);
}

static void test_packed_layout(void)
{
	struct ring_chain *c[2];
	struct ring_drv *drv;
	struct ring_vq *vq;
	struct world w;
	uint8_t *rec;

	world_open(&w, RIG_VERSION_1 | RIG_PACKED, 0);
	rec = record(&w);
	drv = driver(&w);
	vq = ring_vq_new(w.table, 0);
	CHECK_EQ(ring_vq_start(vq, &w.cfg), 0);
	CHECK(u16(rec + 8) == 1 && u16(rec + 10) == SIZE && rec[20] == 1 && rec[21] == 1);
	CHECK(u16(rec + 32 + 2) == 1 && u16(rec + 32 + 7 * 32 + 2) == 8);
	add(drv, 0, 2);
	add(drv, 1, 1);
	ring_drv_publish(drv);
	CHECK_EQ(ring_vq_pop(vq, c, 2), 2);
	CHECK(rec[32] == 1 && u16(rec + 32 + 4) == 1 && u16(rec + 32 + 6) == 2 && shm_load64(rec + 32 + 8) == 0);
	CHECK(shm_load64(rec + 32 + 24) == RIG_GPA + 32768 && shm_load32(rec + 32 + 20) == 1);
	CHECK(u16(rec + 64 + 16) == c[0]->id && !(u16(rec + 64 + 18) & 1) && u16(rec + 32 + 18) & 1);
	CHECK(rec[96] == 1 && u16(rec + 96 + 6) == 1 && shm_load64(rec + 96 + 8) == 1);
	CHECK(u16(rec + 12) == 3 && u16(rec + 14) == 3);
	ring_vq_push(vq, c[0], 0);
	CHECK(u16(rec + 12) == 3 && u16(rec + 16) == 0);	/* nothing before the flush */
	ring_vq_flush(vq);
	CHECK(rec[32] == 0 && u16(rec + 64 + 2) == 3 && u16(rec + 12) == 0 && u16(rec + 14) == 0);
	CHECK(u16(rec + 16) == 2 && u16(rec + 18) == 2 && rec[20] == 1 && rec[21] == 1);
	ring_vq_free(vq);
	ring_drv_free(drv);
	world_close(&w);
}

/* ---- recovery ---- */

/* Started over, what was popped and not returned comes first, in the order of the first pop; unpop keeps that. */
static void test_resubmit(uint64_t features)
{
	struct ring_drv_used used[8];
	struct ring_vq_stats stats;
	struct ring_chain *c[8];
	struct ring_drv *drv;
	struct ring_vq *vq;
	struct world w;
	uint32_t base, first = features & RIG_IN_ORDER ? 0 : 1;	/* to be completed */

	world_open(&w, features, 0);
	drv = driver(&w);
	vq = ring_vq_new(w.table, 0);
	CHECK_EQ(ring_vq_start(vq, &w.cfg), 0);
	for (uint32_t i = 0; i < 4; i++)
		add(drv, i, 1 + i % 2);
	ring_drv_publish(drv);
	CHECK_EQ(ring_vq_pop(vq, c, 8), 4);
	CHECK_EQ(ring_vq_unpop(vq, 1), 1);	/* 3 was never seen */
	ring_vq_push(vq, c[first], 0);
	ring_vq_flush(vq);
	base = ring_vq_base(vq);
	ring_vq_free(vq);	/* the crash: two in flight, 3 not yet popped, one done */
	CHECK_EQ(ring_drv_poll(drv, used, 8), 1);
	CHECK_EQ(used[0].token, first);

	vq = ring_vq_new(w.table, 0);
	w.cfg.base = 5;	/* what the front-end believes does not count */
	CHECK_EQ(ring_vq_start(vq, &w.cfg), 0);
	CHECK_EQ(ring_vq_base(vq), base);
	CHECK_EQ(ring_vq_ready(vq), 1);
	CHECK_EQ(ring_vq_kicks_on(vq), 1);
	CHECK_EQ(ring_vq_pop(vq, c, 8), 2);
	CHECK(token_of(&w, c[0]) == 1 - first && token_of(&w, c[1]) == 2);
	CHECK_EQ(ring_vq_unpop(vq, 1), 1);
	CHECK_EQ(ring_vq_pop(vq, c + 1, 8), 1);
	CHECK_EQ(token_of(&w, c[1]), 2);
	CHECK_EQ(ring_vq_pop(vq, c + 2, 8), 1);
	CHECK_EQ(token_of(&w, c[2]), 3);
	CHECK_EQ(ring_vq_pop(vq, c + 3, 8), 0);
	ring_vq_stats(vq, &stats);
	CHECK_EQ(stats.resubmitted, 3);	/* one of them twice */
	for (int i = 2; i >= 0; i--)
		ring_vq_push(vq, c[i], 0);
	ring_vq_flush(vq);
	CHECK_EQ(ring_drv_poll(drv, used, 8), 3);
	CHECK_EQ(ring_drv_pending(drv), 0);
	/* and on, around the ring */
	for (uint32_t i = 0; i < 50; i++) {
		add(drv, i, 1 + i % 3);
		ring_drv_publish(drv);
		CHECK_EQ(ring_vq_pop(vq, c, 8), 1);
		CHECK_EQ(token_of(&w, c[0]), i);
		ring_vq_push(vq, c[0], 0);
		ring_vq_flush(vq);
		CHECK_EQ(ring_drv_poll(drv, used, 8), 1);
	}
	ring_vq_free(vq);
	ring_drv_free(drv);
	world_close(&w);
}

/* ---- hostile records ---- */

static int start_with(struct world *w)
{
	struct ring_vq *vq = ring_vq_new(w->table, 0);
	struct ring_chain *c[8];
	int rc = ring_vq_start(vq, &w->cfg), i, n;

	if (!rc) {	/* then it must at least be harmless */
		for (i = 0; i < 4; i++) {
			n = ring_vq_pop(vq, c, 8);
			while (n > 0)
				ring_vq_push(vq, c[--n], 0);
			ring_vq_flush(vq);
		}
	}
	ring_vq_free(vq);
	return rc;
}

static void test_hostile(uint64_t features)
{
	bool packed = features & RIG_PACKED;
	uint8_t *rec, good[TOTAL];
	uint64_t rnd = 88172645463325252ull;
	struct ring_chain *c[8];
	struct ring_drv *drv;
	struct ring_vq *vq;
	struct world w;
	int i, refused = 0;

	world_open(&w, features, 0);
	rec = record(&w);
	w.cfg.inflight_bytes -= 64;
	CHECK_EQ(start_with(&w), -RING_E_INFLIGHT);
	w.cfg.inflight_bytes += 64;
	w.cfg.inflight = rec + 4;
	CHECK_EQ(start_with(&w), -RING_E_INFLIGHT);
	w.cfg.inflight = rec;
	drv = driver(&w);
	vq = ring_vq_new(w.table, 0);
	CHECK_EQ(ring_vq_start(vq, &w.cfg), 0);
	for (uint32_t k = 0; k < 4; k++)
		add(drv, k, 2);
	ring_drv_publish(drv);
	CHECK_EQ(ring_vq_pop(vq, c, 8), 4);
	ring_vq_push(vq, c[0], 0);
	ring_vq_flush(vq);
	ring_vq_free(vq);
	memcpy(good, w.mem, TOTAL);
	CHECK_EQ(start_with(&w), 0);
#define REFUSED(offset, value)                                                                                         \
	do {                                                                                                           \
		memcpy(w.mem, good, TOTAL);                                                                            \
		shm_store16(rec + (offset), (value));                                                                  \
		CHECK_EQ(start_with(&w), -RING_E_INFLIGHT);                                                            \
	} while (0)
	REFUSED(8, 2);			/* version */
	REFUSED(10, SIZE - 1);		/* desc_num */
	REFUSED(10, SIZE + 100);
	if (packed) {
		REFUSED(12, SIZE + 1);	/* free_head */
		REFUSED(14, SIZE + 1);
		REFUSED(16, SIZE);	/* used_idx */
		REFUSED(18, SIZE);
		REFUSED(20, 2);		/* wrap */
		REFUSED(14, 2);		/* free list starts inside a chain: leads into it, entries lost or doubled */
		REFUSED(32 + 2 * 32 + 6, 0);	/* num */
		REFUSED(32 + 2 * 32 + 6, 3);
		REFUSED(32 + 2 * 32 + 6, 9);
		REFUSED(32 + 2 * 32 + 2, 2);	/* next: itself */
		REFUSED(32 + 2 * 32 + 4, 4);	/* last */
		REFUSED(32 + 1 * 32 + 2, 0);	/* free list in a circle */
	} else {
		REFUSED(14, 9);		/* used_idx: a batch of 65528 */
		memcpy(w.mem, good, TOTAL);
		shm_store16(rec + 14, 0);
		shm_store16(rec + 12, SIZE);
		CHECK_EQ(start_with(&w), -RING_E_INFLIGHT);	/* last_batch_head */
	}
#undef REFUSED
	for (i = 0; i < 3000; i++) {	/* anything else: refused or harmless */
		memcpy(w.mem, good, TOTAL);
		for (int k = 0; k < 3; k++)
			rec[rig_rnd(&rnd) % w.cfg.inflight_bytes] = (uint8_t)(rig_rnd(&rnd) % 10);
		refused += start_with(&w) != 0;
	}
	CHECK(refused > 0 && refused < 3000);
	ring_drv_free(drv);
	world_close(&w);
}

/* ---- a crash after every store ---- */

enum { REQUESTS = 6 };

static void child_device(struct world *w)
{
	struct ring_vq *vq = ring_vq_new(w->table, 0);
	struct ring_chain *c[REQUESTS];

	CHECK_EQ(ring_vq_start(vq, &w->cfg), 0);
	raise(SIGSTOP);
	CHECK_EQ(ring_vq_pop(vq, c, 3), 3);
	ring_vq_push(vq, c[2], 0);
	ring_vq_push(vq, c[0], 0);
	CHECK_EQ(ring_vq_pop(vq, c + 3, 8), 2);	/* before the flush, on purpose */
	CHECK_EQ(ring_vq_unpop(vq, 1), 1);
	ring_vq_flush(vq);
	CHECK_EQ(ring_vq_pop(vq, c + 4, 8), 1);
	ring_vq_push(vq, c[4], 0);
	ring_vq_flush(vq);
	ring_vq_push(vq, c[1], 0);
	ring_vq_push(vq, c[3], 0);
	ring_vq_flush(vq);
	_exit(0);
}

/* The ring before the child ran, with the driver's private state to read completions by. */
static void fill(struct ring_drv *drv, uint64_t features)
{
	/* 5 requests, 7 descriptors: in a packed ring they run across the end (see crash_world()) */
	for (uint32_t i = 0; i < 5; i++)
		add(drv, i, features & RIG_PACKED ? 1 + i % 2 : 1);
	ring_drv_publish(drv);
}

static void crash_world(struct world *w, uint64_t features, int shared)
{
	world_open(w, features, shared);
	if (features & RIG_PACKED)
		w->cfg.base = 0x80008000 | 3 | 3u << 16;
}

/* Recover from the copy of a crash site: nothing lost, nothing twice. */
static void check_site(struct world *w, const uint8_t *site, uint64_t features)
{
	struct ring_drv_used used[8];
	struct ring_chain *c[8];
	struct ring_drv *drv = driver(w);
	struct ring_vq *vq;
	uint32_t seen[REQUESTS] = { 0 };
	int n, i, before, more = 0;

	fill(drv, features);	/* brings the driver's private state to where it was; memory comes next */
	memcpy(w->mem, site, TOTAL);
	before = ring_drv_poll(drv, used, 8);
	CHECK(before >= 0);
	for (i = 0; i < before; i++)
		seen[used[i].token] += 1;
	vq = ring_vq_new(w->table, 0);
	CHECK_EQ(ring_vq_start(vq, &w->cfg), 0);
	CHECK_EQ(ring_drv_poll(drv, used, 8), 0);	/* recovery completes nothing */
	while ((n = ring_vq_pop(vq, c, 1)) > 0) {	/* one at a time, so that what looks used shows */
		seen[token_of(w, c[0])] += 1;
		ring_vq_push(vq, c[0], 0);
		ring_vq_flush(vq);
		CHECK_EQ(ring_drv_poll(drv, used, 8), 1);
		CHECK_EQ(used[0].token, token_of(w, c[0]));
		more++;
	}
	CHECK_EQ(n, 0);
	CHECK_EQ(before + more, 5);
	for (i = 0; i < 5; i++)
		CHECK_EQ(seen[i], 1);
	ring_vq_free(vq);
	ring_drv_free(drv);
}

static void test_crash(uint64_t features)
{
	static uint8_t last[TOTAL];
	struct world live, copy;
	struct ring_drv *drv;
	int status, sites = 0;
	long steps = 0;
	pid_t pid;

	crash_world(&live, features, 1);
	crash_world(&copy, features, 0);
	drv = driver(&live);
	fill(drv, features);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL))
			_exit(77);
		child_device(&live);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
		fprintf(stderr, "inflight_unit: ptrace is not allowed here, crash test left out\n");
		goto out;
	}
	CHECK(WIFSTOPPED(status));
	memcpy(last, live.mem, TOTAL);
	check_site(&copy, last, features);
	while (WIFSTOPPED(status)) {
		CHECK(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) == 0);
		CHECK(waitpid(pid, &status, 0) == pid);
		steps++;
		if (memcmp(last, live.mem, 4096) == 0 && memcmp(last + TOTAL - 4096, record(&live), 4096) == 0)
			continue;
		memcpy(last, live.mem, TOTAL);
		check_site(&copy, last, features);
		sites++;
	}
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	CHECK(sites > 20);
out:
	ring_drv_free(drv);
	world_close(&live);
	world_close(&copy);
}

int main(void)
{
	static const uint64_t layouts[] = { RIG_VERSION_1, RIG_VERSION_1 | RIG_PACKED };

	test_split_layout();
	test_packed_layout();
	for (size_t i = 0; i < 2; i++) {
		test_resubmit(layouts[i]);
		test_resubmit(layouts[i] | RIG_IN_ORDER);
		test_hostile(layouts[i]);
		test_crash(layouts[i]);
	}
	return 0;
}
