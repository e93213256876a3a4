// SPDX-License-Identifier: Apache-2.0
/*
 * load.c - load generator for virtio-gpu.
 *
 * Theory of operation
 *   Every frame in flight has a slot with fixed addresses for two commands and two replies. One loop takes what came
 *   back, sends as many frames again and publishes once a round. A frame is over when its flush is; replies come in the
 *   order of commands or not. The display is read when the ring is silent, and every so often when it is not: a back-end
 *   that sends pixels before it replies waits for its reader, one that does not is not to wait for room in the socket.
 */
#include "devices/gpu/csrc/load.h"

#include <errno.h>
#include <linux/virtio_gpu.h>
#include <stdlib.h>
#include <string.h>

#include "devices/gpu/csrc/load_int.h"
#include "ring/csrc/shm.h"

enum {
	BATCH = 256,
	LOOKS = 64,		/* rounds that found something, after which the display is read */
	PIXEL = 4,
	FLUSH_AT = 64,		/* in a slot; the transfer is at its beginning */
	REPLY_AT = 128,		/* two of them */
	REPLY_STRIDE = 32,
};

_Static_assert(sizeof(struct virtio_gpu_transfer_to_host_2d) <= FLUSH_AT, "");
_Static_assert(FLUSH_AT + sizeof(struct virtio_gpu_resource_flush) <= REPLY_AT, "");
_Static_assert(sizeof(struct virtio_gpu_ctrl_hdr) <= REPLY_STRIDE, "");

struct gpu_load {
	struct gpu_load_config cfg;
	struct gpu_load_stats stats;
	struct load_display display;
	struct ring_drv *drv;
	int kick_fd, call_fd;
	SHM uint8_t *slots;
	uint64_t slots_gpa;
	uint64_t random;
	struct {
		uint64_t gpa;
		uint32_t bytes;		/* 0: frames are of 2D */
		uint32_t context;
		uint64_t fences;	/* ever: they only grow */
	} commands;
	uint64_t start;			/* of this run, ticks */
	double ticks_per_ns;
	uint32_t x, y;			/* of the next rectangle */
	uint32_t dirty;			/* added, not published */
	uint32_t rounds;
	uint32_t nr_free;
	int mode;			/* GEN_RUN, GEN_DRAIN */
	int broken;
	int stop;			/* atomic */
	uint16_t free[GPU_LOAD_DEPTH];
	uint64_t sent[GPU_LOAD_DEPTH];	/* ticks */
	uint8_t left[GPU_LOAD_DEPTH];	/* replies of the frame */
};

struct gpu_load *gpu_load_new(const struct gpu_load_config *c)
{
	struct gpu_load *load;

	if (c->depth == 0 || c->depth > GPU_LOAD_DEPTH || !c->rect_width || !c->rect_height || c->rect_width > c->width ||
	    c->rect_height > c->height || c->width > 16384 || c->height > 16384)
		return NULL;
	load = calloc(1, sizeof(*load));
	if (!load)
		return NULL;
	load->cfg = *c;
	load->display.fd = -1;
	load->random = measure_mix(c->seed) | 1;
	for (; load->nr_free < c->depth; load->nr_free++)
		load->free[load->nr_free] = (uint16_t)(c->depth - 1 - load->nr_free);
	return load;
}

void gpu_load_free(struct gpu_load *load)
{
	if (!load)
		return;
	load_display_close(&load->display);
	free(load);
}

int gpu_load_set_queue(struct gpu_load *load, struct ring_drv *drv, int kick_fd, int call_fd, void *slots,
		       uint64_t slots_gpa)
{
	if (ring_drv_remember(drv) < 0)
		return -ENOMEM;
	load->drv = drv;
	load->kick_fd = kick_fd;
	load->call_fd = call_fd;
	load->slots = slots;
	load->slots_gpa = slots_gpa;
	return 0;
}

void gpu_load_set_commands(struct gpu_load *load, uint32_t context, uint64_t gpa, uint32_t bytes)
{
	load->commands.context = context;
	load->commands.gpa = gpa;
	load->commands.bytes = bytes;
}

int gpu_load_set_display(struct gpu_load *load, int fd, int keep)
{
	return load_display_open(&load->display, fd, load->cfg.width, load->cfg.height, keep != 0);
}

int gpu_load_read_display(struct gpu_load *load)
{
	int rc;

	do
		rc = load_display_read(&load->display);
	while (rc > 0);
	return rc;
}

const uint8_t *gpu_load_shown(const struct gpu_load *load)
{
	const struct load_display *d = &load->display;

	return d->shown_width == d->width && d->shown_height == d->height ? d->surface : NULL;
}

void gpu_load_stop(struct gpu_load *load)
{
	__atomic_store_n(&load->stop, 1, __ATOMIC_RELAXED);
}

const struct gpu_load_stats *gpu_load_stats(const struct gpu_load *load)
{
	return &load->stats;
}

/* --- frames ------------------------------------------------------------------------------------------------------ */

static void choose(struct gpu_load *load, struct virtio_gpu_rect *rect)
{
	const struct gpu_load_config *c = &load->cfg;

	rect->width = c->rect_width;
	rect->height = c->rect_height;
	if (c->random) {
		rect->x = (uint32_t)measure_draw_below(&load->random, c->width - c->rect_width + 1);
		rect->y = (uint32_t)measure_draw_below(&load->random, c->height - c->rect_height + 1);
		return;
	}
	rect->x = load->x;
	rect->y = load->y;
	load->x += c->rect_width;
	if (load->x + c->rect_width > c->width) {
		load->x = 0;
		load->y += c->rect_height;
		if (load->y + c->rect_height > c->height)
			load->y = 0;
	}
}

/* @bytes of the slot at @at, and @more of the 3D commands. */
static bool add(struct gpu_load *load, uint16_t nr, uint32_t which, uint32_t at, uint32_t bytes, uint32_t more)
{
	const uint64_t slot = load->slots_gpa + (uint64_t)nr * GPU_LOAD_SLOT_BYTES;
	const struct ring_drv_buf reply = { slot + REPLY_AT + which * REPLY_STRIDE, sizeof(struct virtio_gpu_ctrl_hdr) };
	const struct ring_drv_buf bufs[3] = {
		{ .addr = slot + at, .len = bytes },
		more ? (struct ring_drv_buf){ .addr = load->commands.gpa, .len = more } : reply,
		reply,
	};

	if (ring_drv_add(load->drv, bufs, more ? 2 : 1, 1, (uint64_t)nr << 1 | which, (int)load->cfg.indirect) < 0) {
		load->broken = -ENOSPC;
		return false;
	}
	load->dirty++;
	return true;
}

static void send_3d(struct gpu_load *load, uint16_t nr, SHM uint8_t *slot)
{
	struct virtio_gpu_cmd_submit s = { .size = load->commands.bytes };

	s.hdr.type = VIRTIO_GPU_CMD_SUBMIT_3D;
	s.hdr.flags = VIRTIO_GPU_FLAG_FENCE;
	s.hdr.fence_id = ++load->commands.fences;
	s.hdr.ctx_id = load->commands.context;
	shm_copy_out(slot, &s, sizeof(s));
	load->left[nr] = 1;
	add(load, nr, 0, 0, sizeof(s), s.size);
}

static void send_2d(struct gpu_load *load, uint16_t nr, SHM uint8_t *slot)
{
	struct virtio_gpu_transfer_to_host_2d t = { .resource_id = load->cfg.resource };
	struct virtio_gpu_resource_flush f = { .resource_id = load->cfg.resource };

	choose(load, &t.r);
	f.r = t.r;
	t.hdr.type = VIRTIO_GPU_CMD_TRANSFER_TO_HOST_2D;
	t.offset = ((uint64_t)t.r.y * load->cfg.width + t.r.x) * PIXEL;
	f.hdr.type = VIRTIO_GPU_CMD_RESOURCE_FLUSH;
	f.hdr.flags = VIRTIO_GPU_FLAG_FENCE;
	f.hdr.fence_id = nr;
	shm_copy_out(slot, &t, sizeof(t));
	shm_copy_out(slot + FLUSH_AT, &f, sizeof(f));
	load->left[nr] = 2;
	if (add(load, nr, 0, 0, sizeof(t), 0))
		add(load, nr, 1, FLUSH_AT, sizeof(f), 0);
}

/* One more frame, from @now on. */
static void send_frame(struct gpu_load *load, uint64_t now)
{
	uint16_t nr = load->free[--load->nr_free];
	SHM uint8_t *slot = load->slots + (size_t)nr * GPU_LOAD_SLOT_BYTES;

	load->sent[nr] = now;
	if (load->commands.bytes)
		send_3d(load, nr, slot);
	else
		send_2d(load, nr, slot);
}

static void check_reply(struct gpu_load *load, uint16_t nr, uint32_t which, uint32_t len)
{
	struct virtio_gpu_ctrl_hdr reply;

	if (len < sizeof(reply)) {
		gen_fail(&load->stats.run, GEN_E_LENGTH, len);
		return;
	}
	shm_copy_in(&reply, load->slots + (size_t)nr * GPU_LOAD_SLOT_BYTES + REPLY_AT + (size_t)which * REPLY_STRIDE,
		    sizeof(reply));
	if (reply.type != VIRTIO_GPU_RESP_OK_NODATA)
		gen_fail(&load->stats.run, GPU_LOAD_E_REPLY, reply.type);
}

static void end_frame(struct gpu_load *load, uint16_t nr, uint64_t now)
{
	load->stats.run.done++;
	if (load->sent[nr] >= load->start)
		gen_note_latency(&load->stats.run, load->sent[nr], now);
	load->free[load->nr_free++] = nr;
}

static void kick(struct gpu_load *load)
{
	if (!load->dirty)
		return;
	load->dirty = 0;
	if (gen_publish(&load->stats.run, load->drv, load->kick_fd) < 0)
		load->broken = -EIO;
}

static void send_all(struct gpu_load *load, uint64_t now)
{
	while (load->mode != GEN_DRAIN && load->nr_free && !load->broken)
		send_frame(load, now);
	kick(load);
}

/* Take what came back, and send as much again. Returns how many. */
static int round_of(struct gpu_load *load)
{
	struct ring_drv_used used[BATCH];
	int n = ring_drv_poll(load->drv, used, BATCH);
	uint64_t now;

	if (n < 0) {
		gen_fail(&load->stats.run, GEN_E_RING, (uint64_t)-n);
		load->broken = -EIO;
		return 0;
	}
	if (n == 0)
		return 0;
	now = measure_ticks();
	load->stats.run.batches++;
	if ((uint64_t)n > load->stats.run.max_batch)
		load->stats.run.max_batch = (uint64_t)n;
	load->stats.replies += (uint64_t)n;
	for (int i = 0; i < n; i++) {
		uint16_t nr = (uint16_t)(used[i].token >> 1);

		check_reply(load, nr, used[i].token & 1, used[i].len);
		if (--load->left[nr] == 0)
			end_frame(load, nr, now);
	}
	send_all(load, now);
	return n;
}

/* --- runs -------------------------------------------------------------------------------------------------------- */

/* Sleep until the queue calls or the display has something, at most @limit_ns. */
static void sleep_on(struct gpu_load *load, uint64_t limit_ns)
{
	struct pollfd fds[2] = {
		{ .fd = load->call_fd, .events = POLLIN },
		{ .fd = load->display.fd, .events = POLLIN },
	};

	if (!ring_drv_calls_on(load->drv)) {
		gen_sleep(&load->stats.run, fds, 2, limit_ns);
		if (fds[0].revents)
			gen_drain_calls(&load->stats.run, load->call_fd);
	}
	ring_drv_calls_off(load->drv);
}

/* Bytes that came to the display. */
static int look(struct gpu_load *load, int replies)
{
	int rc;

	if (load->display.fd < 0 || (replies && ++load->rounds % LOOKS))
		return 0;
	rc = load_display_read(&load->display);
	if (rc < 0)
		load->broken = rc;
	return rc;
}

static void loop(struct gpu_load *load, uint64_t end)
{
	while (!load->broken && !__atomic_load_n(&load->stop, __ATOMIC_RELAXED)) {
		int n = round_of(load), bytes = look(load, n);
		uint64_t now = measure_ticks();

		if (now >= end || (load->mode == GEN_DRAIN && load->nr_free == load->cfg.depth))
			return;
		if (n || bytes > 0)
			continue;
		if (!load->cfg.poll)
			sleep_on(load, (uint64_t)((double)(end - now) / load->ticks_per_ns));
		else
			measure_relax();
	}
}

int gpu_load_run(struct gpu_load *load, uint64_t duration_ns, int mode)
{
	uint64_t count, updates = load->display.updates, bytes = load->display.bytes;
	struct gen_account account;

	if (!load->drv)
		return -EINVAL;
	if (load->ticks_per_ns == 0)
		load->ticks_per_ns = measure_ticks_per_ns();
	memset(&load->stats, 0, sizeof(load->stats));
	__atomic_store_n(&load->stop, 0, __ATOMIC_RELAXED);
	load->mode = mode;
	ring_drv_calls_off(load->drv);
	if (read(load->call_fd, &count, sizeof(count)) < 0)
		count = 0;	/* nothing was left from before */
	gen_account_begin(&account);
	load->start = account.ticks;
	send_all(load, load->start);
	loop(load, load->start + (uint64_t)((double)duration_ns * load->ticks_per_ns));
	gen_account_end(&account, &load->stats.run);
	load->stats.updates = load->display.updates - updates;
	load->stats.shown_bytes = load->display.bytes - bytes;
	gen_drain_calls(&load->stats.run, load->call_fd);
	if (load->broken)
		return load->broken;
	return mode == GEN_DRAIN && load->nr_free != load->cfg.depth ? -ETIME : 0;
}
