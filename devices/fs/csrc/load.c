/* SPDX-License-Identifier: Apache-2.0 */
/*
 * load.c - load generator for virtio-fs.
 *
 * Theory of operation
 *   Every operation in flight has a slot with fixed addresses for headers, arguments and data. One loop takes what came
 *   back, sends as much again and publishes once per queue and round. The clock is read once per round that found
 *   something: a round's replies share one time, which is also the send time of what replaces them. An operation is one
 *   request, or several that follow each other; latency is that of the operation.
 *
 *   Closed loop (rate 0): a slot is sent again at once. Open loop: operations are due at fixed times whatever the device
 *   does, and latency counts from the time due, so that a stalled device is not flattered.
 *
 *   Sleeping follows a Linux driver: notifications off while working, on when nothing is left, one more look, poll().
 */
#include "devices/fs/csrc/load.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "devices/fs/csrc/load_int.h"

#define NS MEASURE_NS

enum { BATCH = 256, BLOCK_MAX = 1 << 30 };

struct fs_load *fs_load_new(const struct fs_load_config *config)
{
	struct fs_load *load;
	uint32_t pieces = config->piece_bytes ? (config->block_bytes + config->piece_bytes - 1) / config->piece_bytes : 1;

	if (config->op > FS_LOAD_CREATE || config->depth == 0 || config->depth > FS_LOAD_DEPTH ||
	    config->block_bytes > BLOCK_MAX || config->block_bytes % 8 || config->piece_bytes % 8 ||
	    pieces > FS_LOAD_PIECES)
		return NULL;
	load = calloc(1, sizeof(*load));
	if (load == NULL)
		return NULL;
	load->cfg = *config;
	load->random = measure_mix(config->seed + config->number) | 1;
	load->unique = 1ULL << 32;	/* none of those that set things up */
	return load;
}

void fs_load_free(struct fs_load *load)
{
	if (load == NULL)
		return;
	for (uint32_t i = 0; i < load->nr_queues; i++)
		free(load->queues[i]);
	free(load);
}

void fs_load_set_files(struct fs_load *load, const struct fs_load_file *files, uint32_t nr)
{
	load->files = files;
	load->nr_files = nr;
}

int fs_load_add_queue(struct fs_load *load, struct ring_drv *drv, int kick_fd, int call_fd,
		      const struct fs_load_memory *memory, const uint64_t *listings, uint32_t number, uint32_t total)
{
	struct load_queue *q;

	if (load->nr_queues == FS_LOAD_QUEUES)
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
	q->slots = memory->slots;
	q->slots_gpa = memory->slots_gpa;
	q->data = memory->data;
	q->data_gpa = memory->data_gpa;
	q->data_stride = memory->data_stride;
	q->number = number;
	q->total = total;
	q->file = load->nr_files ? number % load->nr_files : 0;
	q->nr_free = load->cfg.depth;
	for (uint32_t i = 0; i < load->cfg.depth; i++) {
		q->free[i] = (uint16_t)(load->cfg.depth - 1 - i);
		if (listings != NULL)
			q->slot[i].fh = listings[i];
	}
	load->queues[load->nr_queues++] = q;
	return 0;
}

int fs_load_set_hiprio(struct fs_load *load, struct ring_drv *drv, int kick_fd, void *slots, uint64_t slots_gpa)
{
	struct load_hiprio *h = &load->hiprio;

	if (ring_drv_remember(drv) < 0)
		return -ENOMEM;
	h->drv = drv;
	h->kick_fd = kick_fd;
	h->slots = slots;
	h->slots_gpa = slots_gpa;
	for (h->nr_free = 0; h->nr_free < FS_LOAD_FORGETS; h->nr_free++)
		h->free[h->nr_free] = (uint16_t)h->nr_free;
	ring_drv_calls_off(drv);
	return 0;
}

void fs_load_stop(struct fs_load *load)
{
	__atomic_store_n(&load->stop, 1, __ATOMIC_RELAXED);
}

const struct fs_load_stats *fs_load_stats(const struct fs_load *load)
{
	return &load->stats;
}

uint64_t fs_load_hist_value(uint32_t bucket)
{
	return measure_value(bucket);
}

void fs_load_set_op(struct fs_load *load, uint32_t op, uint32_t verify)
{
	load->cfg.op = op;
	load->cfg.verify = verify;
}

void load_fail(struct fs_load *load, uint64_t kind, uint64_t info)
{
	if (load->stats.errors++ == 0) {
		load->stats.first_error = kind;
		load->stats.first_error_info = info;
	}
}

/* Begin an operation on @q; its latency counts from @when. False if it cannot. */
static bool begin_op(struct fs_load *load, struct load_queue *q, uint64_t when)
{
	uint16_t nr = q->free[q->nr_free - 1];

	if (!load_begin_op(load, q, &q->slot[nr]))
		return false;
	if (!load_request(load, q, nr))
		return false;
	q->slot[nr].sent = when;
	q->nr_free--;
	load->in_flight++;
	return true;
}

static void publish(struct fs_load *load, struct ring_drv *drv, int kick_fd, uint32_t *dirty)
{
	uint64_t one = 1;

	if (*dirty == 0)
		return;
	*dirty = 0;
	if (!ring_drv_publish(drv))
		return;
	load->stats.kicks++;
	/* EAGAIN: the counter is full, so the other side will look */
	if (write(kick_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		load->broken = -EIO;
}

static void kick(struct fs_load *load, struct load_queue *q)
{
	publish(load, q->drv, q->kick_fd, &q->dirty);
}

static void end_op(struct fs_load *load, struct load_queue *q, uint16_t nr, uint64_t now)
{
	struct load_slot *slot = &q->slot[nr];

	load->stats.done++;
	if (slot->sent >= load->start) {
		uint64_t took = now > slot->sent ? now - slot->sent : 0;

		load->stats.hist[measure_bucket(took)]++;
		load->stats.samples++;
		if (took > load->stats.max_ticks)
			load->stats.max_ticks = took;
	}
	q->free[q->nr_free++] = nr;
	load->in_flight--;
}

/* Take what came back on @q, and in a closed loop send as much again. Returns how many. */
static int round_of(struct fs_load *load, struct load_queue *q)
{
	struct ring_drv_used used[BATCH];
	int n = ring_drv_poll(q->drv, used, BATCH);
	uint64_t now;

	if (n < 0) {
		load_fail(load, FS_LOAD_E_RING, (uint64_t)-n);
		load->broken = -EIO;
		return 0;
	}
	if (n == 0)
		return 0;
	now = measure_ticks();
	load->stats.batches++;
	if ((uint64_t)n > load->stats.max_batch)
		load->stats.max_batch = (uint64_t)n;
	for (int i = 0; i < n; i++) {
		uint16_t nr = (uint16_t)used[i].token;

		if (!load_reply(load, q, nr, used[i].len)) {
			if (!load_request(load, q, nr))
				load->broken = -ENOSPC;
			continue;
		}
		end_op(load, q, nr, now);
		if (load->mode != FS_LOAD_DRAIN && load->interval == 0)
			begin_op(load, q, now);
	}
	publish(load, load->hiprio.drv, load->hiprio.kick_fd, &load->hiprio.dirty);
	kick(load, q);
	return n;
}

/* Open loop: send all that is due at @now. Returns ticks until the next one is. */
static uint64_t send_due(struct fs_load *load, uint64_t now)
{
	while (load->due <= (double)now) {
		struct load_queue *q = load->queues[load->turn];

		if (q->nr_free == 0 || !begin_op(load, q, (uint64_t)load->due))
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

static void drain_calls(struct fs_load *load, struct load_queue *q)
{
	uint64_t count;

	/* non-blocking: ppoll() may have woken for another queue */
	if (read(q->call_fd, &count, sizeof(count)) == sizeof(count))
		load->stats.calls += count;
}

/* Sleep until a queue calls, at most @limit_ns. */
static void sleep_on_calls(struct fs_load *load, uint64_t limit_ns)
{
	struct pollfd fds[FS_LOAD_QUEUES];
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

static bool all_over(const struct fs_load *load)
{
	for (uint32_t i = 0; i < load->nr_queues; i++)
		if (load->mode != FS_LOAD_DRAIN && !load->queues[i]->over)
			return false;
	return load->in_flight == 0;
}

static void loop(struct fs_load *load, uint64_t end)
{
	while (!load->broken && !__atomic_load_n(&load->stop, __ATOMIC_RELAXED)) {
		uint64_t now, wait;
		int n = 0;

		for (uint32_t i = 0; i < load->nr_queues; i++)
			n += round_of(load, load->queues[i]);
		now = measure_ticks();
		if (now >= end || (load->in_flight == 0 && all_over(load)))
			return;
		wait = end - now;
		if (load->mode == FS_LOAD_RUN && load->interval > 0) {
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
static void begin(struct fs_load *load)
{
	for (uint32_t i = 0; i < load->nr_queues; i++) {
		struct load_queue *q = load->queues[i];
		uint64_t count;

		ring_drv_calls_off(q->drv);
		if (q->call_fd >= 0 && read(q->call_fd, &count, sizeof(count)) < 0)
			count = 0;	/* nothing was left from before */
		q->over = load->mode == FS_LOAD_ONCE && q->number >= load->nr_files;
		if (load->mode == FS_LOAD_ONCE) {
			q->file = load->nr_files ? q->number % load->nr_files : 0;
			q->block = 0;
		}
	}
	if (load->mode == FS_LOAD_DRAIN || load->interval > 0)
		return;
	for (uint32_t i = 0; i < load->nr_queues; i++) {
		struct load_queue *q = load->queues[i];

		while (q->nr_free > 0 && begin_op(load, q, load->start))
			;
		kick(load, q);
	}
}

int fs_load_run(struct fs_load *load, uint64_t duration_ns, int mode)
{
	struct rusage before, after;
	uint64_t begin_ns, cpu;

	if (load->nr_queues == 0 || (load->nr_files == 0 && load->cfg.op < FS_LOAD_LIST))
		return -EINVAL;
	if (load->ticks_per_ns == 0)
		load->ticks_per_ns = measure_ticks_per_ns();
	prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
	memset(&load->stats, 0, sizeof(load->stats));
	__atomic_store_n(&load->stop, 0, __ATOMIC_RELAXED);
	load->mode = mode;
	load->interval =
		load->cfg.rate && mode == FS_LOAD_RUN ? load->ticks_per_ns * 1e9 / (double)load->cfg.rate : 0;
	getrusage(RUSAGE_THREAD, &before);
	cpu = measure_ns(CLOCK_THREAD_CPUTIME_ID);
	begin_ns = measure_ns(CLOCK_MONOTONIC);
	load->start = measure_ticks();
	load->due = (double)load->start;
	begin(load);
	loop(load, load->start + (uint64_t)((double)duration_ns * load->ticks_per_ns));
	load->stats.ticks = measure_ticks() - load->start;
	load->stats.ns = measure_ns(CLOCK_MONOTONIC) - begin_ns;
	load->stats.cpu_ns = measure_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
	getrusage(RUSAGE_THREAD, &after);
	load->stats.voluntary = (uint64_t)(after.ru_nvcsw - before.ru_nvcsw);
	load->stats.involuntary = (uint64_t)(after.ru_nivcsw - before.ru_nivcsw);
	for (uint32_t i = 0; i < load->nr_queues; i++)
		if (load->queues[i]->call_fd >= 0)
			drain_calls(load, load->queues[i]);
	if (load->broken)
		return load->broken;
	return mode != FS_LOAD_RUN && !all_over(load) ? -ETIME : 0;
}
