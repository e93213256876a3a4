/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu_int.h - inside of virtio-gpu: resources, scanouts, one function per command.
 *
 * The way of a command
 *   poll pops a batch; what has a fixed size is copied once into struct gpu_cmd; the function of its type checks and does
 *   it and says what the reply is; replies are in order. Pixels go from the guest's pages to the resource's image in a
 *   transfer, rows of the rectangle alone; a flush only says what has changed. Of a blob there is no image: it is read
 *   where it lies, when somebody looks.
 *
 * Threads: both queues are on one worker, and all that is here belongs to it. Whoever looks parks it.
 *
 * Rules
 * - Sizes are computed in 64 bits from values that were checked against GPU_SIDE_MAX.
 * - A guest's pages are remembered by their guest address and found anew at each use: memory comes and goes.
 */
#ifndef GPU_INT_H
#define GPU_INT_H

#include <errno.h>
#include <linux/virtio_gpu.h>
#include <stdbool.h>
#include <string.h>

#include "devices/gpu/csrc/gpu.h"
#include "ring/csrc/shm.h"
#include "ring/csrc/stats.h"

enum {
	GPU_BATCH = 32,
	GPU_BUCKETS = 1024,		/* of the table of resources, a power of two */
	GPU_PIXEL = 4,			/* bytes */
	GPU_SIDE_MIN = 16,		/* of a scanout, as QEMU has it */
};

/* A piece of a guest's memory. */
struct gpu_page {
	uint64_t gpa;
	uint64_t start;			/* bytes of the backing before it */
	uint32_t len;
};

struct gpu_backing {
	struct gpu_page *pages;		/* NULL: none */
	uint32_t nr;
	uint64_t len;			/* bytes */
};

struct gpu_resource {
	struct gpu_resource *next;	/* in its bucket */
	uint32_t id;
	uint32_t format;
	uint32_t width, height;		/* 0: a blob */
	uint8_t *image;			/* width * height pixels; NULL: a blob */
	uint64_t size;			/* bytes of image or blob */
	uint64_t cost;			/* bytes counted against the limit */
	uint32_t shown;			/* scanouts, a bit each */
	bool blob;
	bool has_uuid;
	uint8_t uuid[16];
	struct gpu_backing backing;
};

struct gpu_scanout {
	struct gpu_mode mode;
	struct gpu_resource *resource;	/* NULL: dark */
	struct gpu_rect rect;		/* of the resource */
	uint32_t format;
	uint64_t offset;		/* of blobs: of the first pixel, bytes */
	uint32_t stride;		/* bytes */
	struct gpu_rect damage;		/* width 0: none */
	uint64_t flushes;
	struct {
		uint32_t x, y, hot_x, hot_y;
		bool shown;
		uint64_t changes, shapes;
		uint8_t image[GPU_CURSOR_SIDE * GPU_CURSOR_SIDE * GPU_PIXEL];
	} cursor;
};

struct gpu {
	uint32_t nr_scanouts;
	uint64_t features;
	struct gpu_limits limits;
	struct ring_mem *mem;		/* of its guest; NULL: no queue */
	uint32_t nr_queues;
	uint32_t hint;			/* region that was found last */
	uint32_t nr_resources;
	uint64_t bytes;
	struct gpu_resource *buckets[GPU_BUCKETS];
	struct gpu_scanout scanouts[GPU_SCANOUTS_MAX];
	int watcher;
	_Atomic bool watched;
	int asked;			/* who knows the modes; -1: we do */
	bool answered;			/* what was asked last */
	struct gpu_stats stats;		/* __atomic, relaxed */
};

struct gpu_queue {
	struct ring_source source;
	struct gpu *gpu;
	bool cursor;
	bool waiting;			/* the next chain, for an answer */
	int nr, at;			/* chains that were taken, the next of them */
	struct ring_chain *chains[GPU_BATCH];
};

/* A command: a private copy of its fixed part. */
struct gpu_cmd {
	struct ring_chain *chain;
	union {
		struct virtio_gpu_ctrl_hdr hdr;
		struct virtio_gpu_resource_create_2d create_2d;
		struct virtio_gpu_resource_unref unref;
		struct virtio_gpu_set_scanout set_scanout;
		struct virtio_gpu_resource_flush flush;
		struct virtio_gpu_transfer_to_host_2d transfer;
		struct virtio_gpu_resource_attach_backing attach;
		struct virtio_gpu_resource_detach_backing detach;
		struct virtio_gpu_cmd_get_edid get_edid;
		struct virtio_gpu_resource_assign_uuid assign_uuid;
		struct virtio_gpu_resource_create_blob create_blob;
		struct virtio_gpu_set_scanout_blob set_scanout_blob;
		struct virtio_gpu_update_cursor cursor;
	} in;
	uint32_t in_len;		/* of the fixed part, bytes */
	union {
		struct virtio_gpu_ctrl_hdr hdr;
		struct virtio_gpu_resp_display_info display_info;
		struct virtio_gpu_resp_edid edid;
		struct virtio_gpu_resp_resource_uuid uuid;
	} out;
	uint32_t out_len;		/* bytes of the reply */
};

static inline bool gpu_rect_inside(const struct virtio_gpu_rect *r, uint32_t width, uint32_t height)
{
	return r->width && r->height && r->x <= width && r->width <= width - r->x && r->y <= height &&
	       r->height <= height - r->y;
}

/* command.c: does @cmd; the reply's type. */
uint32_t gpu_command(struct gpu *gpu, struct gpu_cmd *cmd);
void gpu_cursor_command(struct gpu *gpu, const struct gpu_cmd *cmd);
/* Bytes of the fixed part of commands of @type; 0: unknown. */
uint32_t gpu_command_len(uint32_t type);

/* resource.c: the replies' types are returned, VIRTIO_GPU_RESP_OK_NODATA where all went well. */
struct gpu_resource *gpu_resource_find(struct gpu *gpu, uint32_t id);
uint32_t gpu_resource_make(struct gpu *gpu, uint32_t id, uint64_t image, struct gpu_resource **out);
void gpu_resource_drop(struct gpu *gpu, struct gpu_resource *res);
/* Its pages are the @nr entries at @at of the command. */
uint32_t gpu_backing_take(struct gpu *gpu, struct gpu_resource *res, const struct ring_chain *chain, uint32_t at,
			  uint32_t nr);
void gpu_backing_drop(struct gpu *gpu, struct gpu_resource *res);
/* Copy [@from, @from + @len) of its pages. False: some of them are not there. */
bool gpu_backing_copy(struct gpu *gpu, const struct gpu_resource *res, uint64_t from, uint8_t *to, uint64_t len);

/* Images of resources: zeroes, freed when nobody holds them any more; any thread. NULL: no memory. */
uint8_t *gpu_image_new(uint64_t bytes);
uint8_t *gpu_image_hold(uint8_t *image);
void gpu_image_drop(uint8_t *image);

/* scanout.c */
bool gpu_format_known(uint32_t format);
/* Its pixels are blue, green, red and something. */
bool gpu_format_plain(uint32_t format);
void gpu_scanout_off(struct gpu *gpu, uint32_t scanout);
void gpu_scanout_show(struct gpu *gpu, uint32_t scanout, struct gpu_resource *res, const struct virtio_gpu_rect *rect);
void gpu_flushed(struct gpu *gpu, struct gpu_resource *res, const struct virtio_gpu_rect *rect);
void gpu_changed(struct gpu *gpu);

#endif
