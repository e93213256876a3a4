/* SPDX-License-Identifier: Apache-2.0 */
/*
 * load.c - load generator for virtio-blk queues.
 *
 * Theory of operation
 *   Every request has a slot with fixed addresses for header, data and status; only the sector changes. One loop takes
 *   what came back, sends as much again and publishes once per queue and round. The clock is read once per round that
 *   found something: a round's completions share one time, which is also the send time of what replaces them.
 *
 *   Closed loop (rate 0): a slot is sent again at once. Open loop: requests are due at fixed times whatever the device
 *   does, and latency counts from the time due, so that a stalled device is not flattered.
 *
 *   Sleeping follows a Linux driver: notifications off while working, on when nothing is left, one more look, poll().
 */
#include "devices/blk/csrc/load.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define NS 1000000000ULL

enum {
	SECTOR = 512,
	T_IN = 0,
	T_OUT = 1,
	STATUS_AT = 16,
	BATCH = 256,
	NR_BUFS = 3,
	STATUS_UNSET = 0xff,
};

struct slot {
	uint64_t sent;		/* ticks; 0: before this run */
	uint64_t sector;
	uint32_t write;
	uint32_t pad;
};

struct queue {
	struct ring_drv *drv;
	int kick_fd, call_fd;
	SHM uint8_t *slots;
	SHM uint8_t *data;
	uint64_t slots_gpa, data_gpa;
	uint64_t first, end;	/* sequential: this queue's blocks */
	uint64_t next_block;
	bool over;		/* LOAD_ONCE: went through them */
	uint32_t nr_free;
	uint32_t dirty;		/* added, not published */
	uint16_t free[LOAD_DEPTH];
	struct slot slot[LOAD_DEPTH];
};

struct load {
	struct load_config cfg;
	struct load_stats stats;
	uint64_t blocks;	/* of the disk */
	uint64_t random;	/* state of the generator */
	uint64_t start;		/* of this run, ticks */
	int mode;		/* LOAD_RUN, ... */
	uint32_t random_now;	/* blocks at random in this run */
	uint64_t in_flight;
	double ticks_per_ns;
	/* open loop */
	double interval;	/* ticks between requests */
	double due;		/* of the next one */
	uint32_t turn;		/* queue it goes to */
	uint32_t nr_queues;
	int broken;
	int stop;		/* atomic */
	struct queue *queues[LOAD_QUEUES];
};

static uint64_t now_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * NS + (uint64_t)ts.tv_nsec;
}

/* A clock that costs a few ns; its rate is measured against CLOCK_MONOTONIC. */
static inline uint64_t ticks(void)
{
#if defined(__x86_64__)
	return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
	uint64_t v;

	__asm__ __volatile__("mrs %0, cntvct_el0" : "=r"(v));
	return v;
#else
	return now_ns(CLOCK_MONOTONIC);
#endif
}

static inline uint64_t mix(uint64_t x)
{
	/* splitmix64 */
	x += 0x9e3779b97f4a7c15ULL;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

static inline uint64_t draw(struct load *load)
{
	/* xorshift64*: one multiplication, good enough to scatter blocks */
	uint64_t x = load->random;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	load->random = x;
	return x * 0x2545f4914f6cdd1dULL;
}

/* A number below @bound, without division. */
static inline uint64_t draw_below(struct load *load, uint64_t bound)
{
	return (uint64_t)(((unsigned __int128)draw(load) * bound) >> 64);
}

static uint32_t hist_bucket(uint64_t v)
{
	unsigned int exp;

	if (v < LOAD_HIST_SUB)
		return (uint32_t)v;
	exp = 63U - (unsigned int)__builtin_clzll(v);
	/* six bits below the leading one */
	return (exp - 5) * LOAD_HIST_SUB + (uint32_t)((v >> (exp - 6)) & (LOAD_HIST_SUB - 1));
}

uint64_t load_hist_value(uint32_t bucket)
{
	uint32_t exp = bucket / LOAD_HIST_SUB;
	uint64_t low;

	if (exp == 0)
		return bucket;
	low = (uint64_t)(LOAD_HIST_SUB + bucket % LOAD_HIST_SUB) << (exp - 1);
	return low + ((1ULL << (exp - 1)) >> 1);
}

struct load *load_new(const struct load_config *config)
{
	struct load *load;

	if (config->block_bytes == 0 || config->block_bytes % SECTOR || config->depth == 0 ||
	    config->depth > LOAD_DEPTH || config->disk_bytes < config->block_bytes || config->read_percent > 100)
		return NULL;
	load = calloc(1, sizeof(*load));
	if (load == NULL)
		return NULL;
	load->cfg = *config;
	load->blocks = config->disk_bytes / config->block_bytes;
	load->random = mix(config->seed) | 1;
	return load;
}

void load_free(struct load *load)
{
	if (load == NULL)
		return;
	for (uint32_t i = 0; i < load->nr_queues; i++)
		free(load->queues[i]);
	free(load);
}

int load_add_queue(struct load *load, struct ring_drv *drv, int kick_fd, int call_fd, void *slots,
		   uint64_t slots_gpa, void *data, uint64_t data_gpa)
{
	struct queue *q;

	if (load->nr_queues == LOAD_QUEUES)
		return -ENOSPC;
	q = calloc(1, sizeof(*q));
	if (q == NULL)
		return -ENOMEM;
	if (ring_drv_remember(drv) < 0) {
		free(q);
		return -ENOMEM;
	}
	q->drv = drv;
	q->kick_fd = kick_fd;
	q->call_fd = call_fd;
	q->slots = slots;
	q->slots_gpa = slots_gpa;
	q->data = data;
	q->data_gpa = data_gpa;
	q->nr_free = load->cfg.depth;
	for (uint32_t i = 0; i < load->cfg.depth; i++)
		q->free[i] = (uint16_t)(load->cfg.depth - 1 - i);
	load->queues[load->nr_queues++] = q;
	return 0;
}

void load_stop(struct load *load)
{
	__atomic_store_n(&load->stop, 1, __ATOMIC_RELAXED);
}

const struct load_stats *load_stats(const struct load *load)
{
	return &load->stats;
}

uint64_t load_in_flight(const struct load *load)
{
	return load->in_flight;
}

void load_set_mode(struct load *load, uint32_t read_percent, uint32_t random, uint32_t verify)
{
	load->cfg.read_percent = read_percent > 100 ? 100 : read_percent;
	load->cfg.random = random;
	load->cfg.verify = verify;
}

static void fail(struct load *load, uint64_t kind, uint64_t info)
{
	if (load->stats.errors++ == 0) {
		load->stats.first_error = kind;
		load->stats.first_error_info = info;
	}
}

static void fill(const struct load *load, SHM uint8_t *data, uint64_t sector)
{
	uint64_t words = load->cfg.block_bytes / 8;

	for (uint64_t i = 0; i < words; i++)
		shm_store64(data + 8 * i, mix(load->cfg.seed ^ (sector * (SECTOR / 8) + i)));
}

static bool matches(const struct load *load, const SHM uint8_t *data, uint64_t sector)
{
	uint64_t words = load->cfg.block_bytes / 8;

	for (uint64_t i = 0; i < words; i++)
		if (shm_load64(data + 8 * i) != mix(load->cfg.seed ^ (sector * (SECTOR / 8) + i)))
			return false;
	return true;
}

/* Send one request of @q; its latency counts from @when. False if it cannot. */
static bool submit(struct load *load, struct queue *q, uint64_t when)
{
	uint16_t nr = q->free[q->nr_free - 1];
	struct slot *slot = &q->slot[nr];
	uint64_t head = q->slots_gpa + (uint64_t)nr * LOAD_SLOT_BYTES;
	SHM uint8_t *hdr = q->slots + (size_t)nr * LOAD_SLOT_BYTES;
	SHM uint8_t *data = q->data + (size_t)nr * load->cfg.block_bytes;
	bool write = load->cfg.read_percent < 100 &&
		     (load->cfg.read_percent == 0 || draw_below(load, 100) >= load->cfg.read_percent);
	uint64_t block = load->random_now ? draw_below(load, load->blocks) : q->next_block;
	struct ring_drv_buf bufs[NR_BUFS] = {
		{ .addr = head, .len = 16 },
		{ .addr = q->data_gpa + (uint64_t)nr * load->cfg.block_bytes, .len = load->cfg.block_bytes },
		{ .addr = head + STATUS_AT, .len = 1 },
	};

	slot->sector = load->cfg.disk_start / SECTOR + block * (load->cfg.block_bytes / SECTOR);
	slot->write = write;
	slot->sent = when;
	shm_store64(hdr, write ? T_OUT : T_IN);
	shm_store64(hdr + 8, slot->sector);
	shm_store8(hdr + STATUS_AT, STATUS_UNSET);
	if (load->cfg.verify) {
		if (write)
			fill(load, data, slot->sector);
		else
			shm_store64(data, ~mix(load->cfg.seed ^ (slot->sector * (SECTOR / 8))));
	}
	if (ring_drv_add(q->drv, bufs, write ? 2 : 1, write ? 1 : 2, nr, (int)load->cfg.indirect) < 0)
		return false;
	if (!load->random_now && ++q->next_block == q->end) {
		q->next_block = q->first;
		q->over = load->mode == LOAD_ONCE;
	}
	q->nr_free--;
	q->dirty++;
	load->in_flight++;
	return true;
}

static void kick(struct load *load, struct queue *q)
{
	uint64_t one = 1;

	if (q->dirty == 0)
		return;
	q->dirty = 0;
	if (!ring_drv_publish(q->drv))
		return;
	load->stats.kicks++;
	/* EAGAIN: the counter is full, so the other side will look */
	if (write(q->kick_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		load->broken = -EIO;
}

static void finish(struct load *load, struct queue *q, const struct ring_drv_used *used, uint64_t now)
{
	uint16_t nr = (uint16_t)used->token;
	struct slot *slot = &q->slot[nr];
	uint8_t g_status = shm_load8(q->slots + (size_t)nr * LOAD_SLOT_BYTES + STATUS_AT);
	uint32_t want = slot->write ? 1 : load->cfg.block_bytes + 1;

	if (g_status != 0)
		fail(load, LOAD_E_STATUS, g_status);
	else if (used->len != want)
		fail(load, LOAD_E_LENGTH, used->len);
	else if (load->cfg.verify && !slot->write &&
		 !matches(load, q->data + (size_t)nr * load->cfg.block_bytes, slot->sector))
		fail(load, LOAD_E_DATA, slot->sector);
	load->stats.done++;
	if (slot->write)
		load->stats.writes++;
	else
		load->stats.reads++;
	if (slot->sent >= load->start) {
		uint64_t took = now > slot->sent ? now - slot->sent : 0;

		load->stats.hist[hist_bucket(took)]++;
		load->stats.samples++;
		if (took > load->stats.max_ticks)
			load->stats.max_ticks = took;
	}
	q->free[q->nr_free++] = nr;
	load->in_flight--;
}

/* Take what came back on @q, and in a closed loop send as much again. Returns how many. */
static int round_of(struct load *load, struct queue *q)
{
	struct ring_drv_used used[BATCH];
	int n = ring_drv_poll(q->drv, used, BATCH);
	uint64_t now;

	if (n < 0) {
		fail(load, LOAD_E_RING, (uint64_t)-n);
		load->broken = -EIO;
		return 0;
	}
	if (n == 0)
		return 0;
	now = ticks();
	load->stats.batches++;
	if ((uint64_t)n > load->stats.max_batch)
		load->stats.max_batch = (uint64_t)n;
	for (int i = 0; i < n; i++) {
		finish(load, q, &used[i], now);
		if (load->mode != LOAD_DRAIN && load->interval == 0 && !q->over)
			submit(load, q, now);
	}
	kick(load, q);
	return n;
}

/* Open loop: send all that is due at @now. Returns ticks until the next one is. */
static uint64_t send_due(struct load *load, uint64_t now)
{
	while (load->due <= (double)now) {
		struct queue *q = load->queues[load->turn];

		if (q->nr_free == 0 || !submit(load, q, (uint64_t)load->due))
			break;	/* stays due: its latency grows meanwhile */
		if ((double)now - load->due > load->interval)
			load->stats.late++;
		load->due += load->interval;
		load->turn = load->turn + 1 == load->nr_queues ? 0 : load->turn + 1;
	}
	for (uint32_t i = 0; i < load->nr_queues; i++)
		kick(load, load->queues[i]);
	return load->due > (double)now ? (uint64_t)(load->due - (double)now) : 0;
}

static void drain_calls(struct load *load, struct queue *q)
{
	uint64_t count;

	/* non-blocking: ppoll() may have woken for another queue */
	if (read(q->call_fd, &count, sizeof(count)) == sizeof(count))
		load->stats.calls += count;
}

/* Sleep until a queue calls, at most @limit_ns. */
static void sleep_on_calls(struct load *load, uint64_t limit_ns)
{
	struct pollfd fds[LOAD_QUEUES];
	struct timespec ts = { .tv_sec = (time_t)(limit_ns / NS), .tv_nsec = (long)(limit_ns % NS) };
	bool there = false;

	for (uint32_t i = 0; i < load->nr_queues; i++) {
		fds[i] = (struct pollfd){ .fd = load->queues[i]->call_fd, .events = POLLIN };
		if (ring_drv_calls_on(load->queues[i]->drv))
			there = true;
	}
	if (!there) {
		load->stats.sleeps++;
		if (ppoll(fds, load->nr_queues, &ts, NULL) < 0)
			memset(fds, 0, sizeof(fds));
		for (uint32_t i = 0; i < load->nr_queues; i++)
			if (fds[i].revents)
				drain_calls(load, load->queues[i]);
	}
	for (uint32_t i = 0; i < load->nr_queues; i++)
		ring_drv_calls_off(load->queues[i]->drv);
}

static void calibrate(struct load *load)
{
	uint64_t ns = now_ns(CLOCK_MONOTONIC), t = ticks(), end_ns;

	do
		end_ns = now_ns(CLOCK_MONOTONIC);
	while (end_ns - ns < 2 * NS / 1000);
	load->ticks_per_ns = (double)(ticks() - t) / (double)(end_ns - ns);
}

static bool all_over(const struct load *load)
{
	for (uint32_t i = 0; i < load->nr_queues; i++)
		if (load->mode != LOAD_DRAIN && !load->queues[i]->over)
			return false;
	return load->in_flight == 0;
}

static void loop(struct load *load, uint64_t end)
{
	while (!load->broken && !__atomic_load_n(&load->stop, __ATOMIC_RELAXED)) {
		uint64_t now, wait;
		int n = 0;

		for (uint32_t i = 0; i < load->nr_queues; i++)
			n += round_of(load, load->queues[i]);
		now = ticks();
		if (now >= end || (load->in_flight == 0 && all_over(load)))
			return;
		wait = end - now;
		if (load->mode == LOAD_RUN && load->interval > 0) {
			uint64_t due = send_due(load, now);

			/* due already but no slot free: only a completion helps */
			if (due > 0 && due < wait)
				wait = due;
		}
		if (n == 0 && !load->cfg.poll)
			sleep_on_calls(load, (uint64_t)((double)wait / load->ticks_per_ns));
	}
}

/* Send what the first round of a closed loop sends: all free slots. */
static void begin(struct load *load)
{
	for (uint32_t i = 0; i < load->nr_queues; i++) {
		struct queue *q = load->queues[i];
		uint64_t count;

		ring_drv_calls_off(q->drv);
		if (q->call_fd >= 0 && read(q->call_fd, &count, sizeof(count)) < 0)
			count = 0;	/* nothing was left from before */
		q->first = load->blocks * i / load->nr_queues;
		q->end = load->blocks * (i + 1) / load->nr_queues;
		q->over = load->mode == LOAD_ONCE && q->first == q->end;
		if (load->mode == LOAD_ONCE || q->next_block < q->first || q->next_block >= q->end)
			q->next_block = q->first < q->end ? q->first : 0;
	}
	if (load->mode == LOAD_DRAIN || load->interval > 0)
		return;
	for (uint32_t i = 0; i < load->nr_queues; i++) {
		struct queue *q = load->queues[i];

		while (q->nr_free > 0 && !q->over && submit(load, q, load->start))
			;
		kick(load, q);
	}
}

int load_run(struct load *load, uint64_t duration_ns, int mode)
{
	struct rusage before, after;
	uint64_t begin_ns, cpu;

	if (load->nr_queues == 0)
		return -EINVAL;
	if (load->ticks_per_ns == 0)
		calibrate(load);
	prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
	memset(&load->stats, 0, sizeof(load->stats));
	__atomic_store_n(&load->stop, 0, __ATOMIC_RELAXED);
	load->mode = mode;
	load->random_now = load->cfg.random && mode == LOAD_RUN;
	load->interval = load->cfg.rate && mode == LOAD_RUN ? load->ticks_per_ns * 1e9 / (double)load->cfg.rate : 0;
	getrusage(RUSAGE_THREAD, &before);
	cpu = now_ns(CLOCK_THREAD_CPUTIME_ID);
	begin_ns = now_ns(CLOCK_MONOTONIC);
	load->start = ticks();
	load->due = (double)load->start;
	begin(load);
	loop(load, load->start + (uint64_t)((double)duration_ns * load->ticks_per_ns));
	load->stats.ticks = ticks() - load->start;
	load->stats.ns = now_ns(CLOCK_MONOTONIC) - begin_ns;
	load->stats.cpu_ns = now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
	getrusage(RUSAGE_THREAD, &after);
	load->stats.voluntary = (uint64_t)(after.ru_nvcsw - before.ru_nvcsw);
	load->stats.involuntary = (uint64_t)(after.ru_nivcsw - before.ru_nivcsw);
	load->stats.bytes = load->stats.done * load->cfg.block_bytes;
	for (uint32_t i = 0; i < load->nr_queues; i++)
		if (load->queues[i]->call_fd >= 0)
			drain_calls(load, load->queues[i]);
	if (load->broken)
		return load->broken;
	return mode != LOAD_RUN && !all_over(load) ? -ETIME : 0;
}
