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
#include "devices/gpu/render/csrc/wire.h"
#include "ring/csrc/shm.h"
#include "ring/csrc/stats.h"

enum {
	GPU_BATCH = 32,
	GPU_BUCKETS = 1024,		/* of the table of resources, a power of two */
	GPU_PIXEL = 4,			/* bytes */
	GPU_CAPSET_BYTES = 4096,	/* of the largest, as wire.h has it */
	GPU_SIDE_MIN = 16,		/* of a scanout, as QEMU has it */
};

/* What a command may come to besides a reply's type. */
enum {
	GPU_HELD = 1,			/* the reply comes later */
	GPU_AGAIN = 2,			/* it cannot be done now */
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

/* A resource of the renderer's as a descriptor. */
struct gpu_exported {
	enum { GPU_NOT_ASKED, GPU_ASKED, GPU_EXPORTED, GPU_NOT_EXPORTED } state;
	int fd;				/* if GPU_EXPORTED */
	struct wire_exported what;
};

struct gpu_resource {
	struct gpu_resource *next;	/* in its bucket */
	uint32_t id;
	uint32_t format;
	uint32_t width, height;		/* 0: a blob */
	uint8_t *image;			/* width * height pixels; NULL: a blob, or 3D that nobody has looked at */
	uint64_t size;			/* bytes of image or blob */
	uint64_t cost;			/* bytes counted against the limit */
	uint32_t shown;			/* scanouts, a bit each */
	uint64_t serial;		/* no two of a display have the same */
	bool blob;
	bool remote;			/* the renderer has it, too */
	bool is_3d;			/* the renderer alone has its pixels; the image is what was read back */
	bool flat;			/* 3D: one layer, one sample */
	struct gpu_rect stale;		/* 3D: what of the image is older than the last flush; width 0: nothing */
	uint32_t reads;			/* 3D: of it, under way */
	struct gpu_exported exported;	/* 3D */
	bool hosted;			/* a blob in the renderer's memory */
	bool mappable;			/* hosted: the guest may map it */
	bool mapped;			/* hosted: it is, or is about to be */
	uint64_t window_at;		/* mapped: bytes from the window's beginning */
	uint64_t mapping;		/* mapped: no two have the same */
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

struct gpu_remote;
struct gpu_queue;
struct gpu_pending;

struct gpu {
	uint32_t nr_scanouts;
	uint64_t features;
	struct gpu_limits limits;
	struct ring_mem *mem;		/* of its guest; NULL: no queue */
	uint32_t nr_queues;
	uint32_t hint;			/* region that was found last */
	uint32_t nr_resources;
	uint64_t serial;		/* of the newest resource */
	uint64_t bytes;
	struct gpu_remote *remote;	/* NULL: 2D only */
	struct gpu_queue *control;	/* NULL: not there */
	struct {
		uint64_t bytes;		/* 0: nothing can be mapped */
		int news;		/* written when there is an errand */
		uint64_t mappings;	/* ever */
		struct gpu_pending *first, **last;
	} window;
	struct gpu_resource *buckets[GPU_BUCKETS];
	struct gpu_scanout scanouts[GPU_SCANOUTS_MAX];
	int watcher;
	_Atomic bool watched;
	bool looked;			/* somebody wants pixels */
	int asked;			/* who knows the modes; -1: we do */
	bool answered;			/* what was asked last */
	struct gpu_stats stats;		/* __atomic, relaxed */
};

struct gpu_queue {
	struct ring_source source;
	struct gpu *gpu;
	bool cursor;
	bool waiting;			/* the next chain, for an answer or for the renderer */
	bool asked;			/* the next chain, and whoever knows the modes was told */
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
		struct virtio_gpu_get_capset_info get_capset_info;
		struct virtio_gpu_get_capset get_capset;
		struct virtio_gpu_ctx_create context_create;
		struct virtio_gpu_ctx_resource context_resource;
		struct virtio_gpu_resource_create_3d create_3d;
		struct virtio_gpu_transfer_host_3d transfer_3d;
		struct virtio_gpu_cmd_submit submit;
		struct virtio_gpu_resource_map_blob map_blob;
		struct virtio_gpu_resource_unmap_blob unmap_blob;
	} in;
	uint32_t in_len;		/* of the fixed part, bytes */
	union {
		struct virtio_gpu_ctrl_hdr hdr;
		struct virtio_gpu_resp_display_info display_info;
		struct virtio_gpu_resp_edid edid;
		struct virtio_gpu_resp_resource_uuid uuid;
		struct virtio_gpu_resp_capset_info capset_info;
		struct {
			struct virtio_gpu_ctrl_hdr hdr;
			uint8_t data[GPU_CAPSET_BYTES];
		} capset;
	} out;
	uint32_t out_len;		/* bytes of the reply */
};

static inline bool gpu_rect_inside(const struct virtio_gpu_rect *r, uint32_t width, uint32_t height)
{
	return r->width && r->height && r->x <= width && r->width <= width - r->x && r->y <= height &&
	       r->height <= height - r->y;
}

/* command.c: does @cmd; the reply's type, GPU_HELD or GPU_AGAIN. */
uint32_t gpu_command(struct gpu *gpu, struct gpu_cmd *cmd);
void gpu_cursor_command(struct gpu *gpu, const struct gpu_cmd *cmd);
/* The cursor of @scanout looks like @res. */
void gpu_cursor_image(struct gpu *gpu, uint32_t scanout, const struct gpu_resource *res);
/* Bytes of the fixed part of commands of @type; 0: unknown. */
uint32_t gpu_command_len(uint32_t type);

/* queue.c: write the reply to what was @asked, @out of @len bytes, which begins with its header. Bytes written. */
uint32_t gpu_reply(struct gpu *gpu, struct ring_chain *chain, const struct virtio_gpu_ctrl_hdr *asked, uint32_t type, void *out,
		   uint32_t len);
/* Answers came: chains were pushed, and what waits for the renderer is tried again. On the worker. */
void gpu_queue_went_on(struct gpu *gpu);

/* resource.c: the replies' types are returned, VIRTIO_GPU_RESP_OK_NODATA where all went well. */
struct gpu_resource *gpu_resource_find(struct gpu *gpu, uint32_t id);
uint32_t gpu_resource_make(struct gpu *gpu, uint32_t id, uint64_t image, struct gpu_resource **out);
void gpu_resource_drop(struct gpu *gpu, struct gpu_resource *res);
/* @cost more bytes of the guest's: false where that is too much. */
bool gpu_resource_charge(struct gpu *gpu, struct gpu_resource *res, uint64_t cost);
void gpu_resource_refund(struct gpu *gpu, struct gpu_resource *res, uint64_t cost);
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
/* One whose pixels are @bytes of @fd, shared with the renderer. */
uint8_t *gpu_image_map(int fd, uint64_t bytes);

/* scanout.c */
bool gpu_format_known(uint32_t format);
/* Its pixels are blue, green, red and something. */
bool gpu_format_plain(uint32_t format);
void gpu_scanout_off(struct gpu *gpu, uint32_t scanout);
void gpu_scanout_show(struct gpu *gpu, uint32_t scanout, struct gpu_resource *res, const struct virtio_gpu_rect *rect);
/* @rect of it has changed: once more, or (@counted false) it was said before and is only here now. */
void gpu_flushed(struct gpu *gpu, struct gpu_resource *res, const struct gpu_rect *rect, bool counted);
/* The smallest one that holds both; @to of width 0 is none. */
void gpu_rect_join(struct gpu_rect *to, const struct gpu_rect *more);
void gpu_changed(struct gpu *gpu);

#endif
