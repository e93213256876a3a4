/* SPDX-License-Identifier: Apache-2.0 */
/*
 * render_int.h - inside of a renderer: the loop that takes commands, the guest's memory, and what does the drawing.
 *
 * One thread; another one may tell of fences. A command is copied out of the ring before it is looked at; each id, box and length is checked here, and what
 * draws (render_draw) only sees contexts and resources that are there.
 */
#ifndef GPU_RENDER_INT_H
#define GPU_RENDER_INT_H

#include <errno.h>
#include <linux/virtio_gpu.h>
#include <string.h>
#include <sys/uio.h>

#include "devices/gpu/render/csrc/render.h"
#include "devices/gpu/render/csrc/wire.h"

enum {
	RENDER_REGIONS = 512,
	RENDER_BUCKETS = 1024,
	RENDER_PIXEL = 4,
};

struct render_region {
	uint64_t gpa, len;
	uint8_t *base;		/* of the mapping */
	uint64_t skip;		/* bytes before the region in it */
	uint64_t mapped;
	bool read_only;
};

struct render_resource {
	struct render_resource *next;
	struct wire_resource what;
	uint64_t blob_bytes;	/* 0: it is none */
	struct wire_page *pages;	/* NULL: none */
	uint32_t nr_pages;
	struct iovec *iov;		/* NULL: none of it is there */
	int nr_iov;
	uint8_t *image;
	uint64_t image_bytes;
	void *drawn;			/* the drawer's own */
};

struct render_context {
	struct render_context *next;
	uint32_t id;
	uint32_t init;		/* capset, 0: any */
};

struct render;

/* What draws: one for each kind of renderer, linked in. All but init return what the guest is told. */
extern const struct render_draw {
	const char *about;
	/* NULL, or as render_vulkan(). */
	uint32_t (*vulkan)(void);
	/* @ready: fill in the capsets. 0 or -errno, and why. */
	int (*init)(struct render *r, const struct render_options *options, struct wire_ready *ready, const char **words);
	/* render_fenced() is called when all up to @number are over; by any thread. */
	void (*fence)(uint32_t number);
	/* Contexts of this capset have fences for each of their rings; 0: none have. */
	uint32_t ringed;
	/* render_ring_fenced() is called when the ring has come that far; false: it never will. */
	bool (*ring_fence)(uint32_t context, uint32_t ring, uint32_t slot);
	/* Readable when look() is to be called; -1: never. */
	int (*look_fd)(void);
	void (*look)(void);
	uint32_t (*context_create)(const struct wire_context *what);
	void (*context_destroy)(uint32_t id);
	void (*attach)(uint32_t context, const struct render_resource *res, bool on);
	uint32_t (*resource_create)(struct render_resource *res);
	/* NULL: it has no such memory. */
	uint32_t (*blob_create)(struct render_resource *res, const struct wire_blob *what, const struct render_context *of);
	void (*resource_unref)(struct render_resource *res);
	/* @res->iov has come, or is to go. */
	uint32_t (*backing)(struct render_resource *res, bool on);
	uint32_t (*transfer)(struct render_resource *res, const struct wire_transfer *t, bool to_host);
	/* @res to its image; the rectangle lies in both. */
	uint32_t (*read)(struct render_resource *res, const struct wire_transfer *t);
	uint32_t (*submit)(uint32_t context, uint32_t *words, uint32_t nr);
	/* A descriptor of its memory, the caller's, and what lies in it; -1: it has none. */
	int (*export)(struct render_resource *res, struct wire_exported *out);
} render_draw;

struct render {
	struct wire *wire;
	int commands, answers, socket, exports;
	uint32_t tail, answered;
	uint8_t *copy;			/* of the command at hand */
	struct render_region regions[RENDER_REGIONS];
	uint32_t nr_regions;
	struct render_resource *resources[RENDER_BUCKETS];
	struct render_context *contexts[RENDER_BUCKETS];
	/* fences under way: number n is at n % WIRE_SLOTS */
	struct wire_answer fences[WIRE_SLOTS];
	uint32_t fences_made, fences_over;
};

/* loop.c: all fences up to @number are over. Any thread. */
void render_fenced(uint32_t number);
/* All before @number are over. */
bool render_no_fences_before(uint32_t number);

/* Answer. Any thread. */
void render_tell(uint32_t slot, uint32_t type);

/* rings.c: fences of contexts' rings. Until they are over they are known by their slots. */
void render_ring_begin(uint32_t context, uint32_t ring, uint32_t slot, uint32_t type);
/* That one is over. Any thread. */
void render_ring_fenced(uint32_t slot);
/* All of @context, which is gone. */
void render_rings_gone(uint32_t context);

/* guest.c */
int render_region_add(struct render *r, const struct wire_region *what, int fd);
void render_region_remove(struct render *r, uint64_t gpa);
/* Find the pages of @res anew: @res->iov. False: they are not all there. */
bool render_resolve(const struct render *r, struct render_resource *res);

/* commands.c: does one; what the guest is told, 0: the display does not keep to wire.h. */
uint32_t render_command(struct render *r, uint32_t op, uint8_t *data, uint32_t bytes);
struct render_context *render_context_of(const struct render *r, uint32_t id);
/* One descriptor from the socket, or -errno. */
int render_take_fd(struct render *r);

static inline uint32_t render_bucket(uint32_t id)
{
	return (id * 2654435761u >> 16) & (RENDER_BUCKETS - 1);
}

#endif
