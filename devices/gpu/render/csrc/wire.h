/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wire.h - what a display and its renderer, another process, have in common: a page, a ring of commands, a ring of answers.
 *
 * The memory is a memfd that can neither shrink nor grow. The display writes commands, one after the other, each in one
 * piece; a command that does not fit before the end is preceded by WIRE_PAD. The renderer does them in their order and
 * answers each that has a slot: at once, or, with WIRE_FENCE, when the GPU has come that far; answers of fences are in
 * their order, those of a context's ring (WIRE_RING) among themselves. Descriptors (of guest memory, of images) come by a socket beside, one with each command that needs one;
 * those that the display asks for go by another, each before its answer. Whoever sleeps says so, and is woken by an eventfd.
 *
 * Neither side trusts the other: each number is read once and checked.
 */
#ifndef GPU_WIRE_H
#define GPU_WIRE_H

#include <stdbool.h>
#include <stdint.h>

#include "ring/csrc/shm.h"

enum {
	WIRE_COMMANDS = 4 << 20,	/* bytes of the ring, a power of two */
	WIRE_DATA_MAX = 1 << 20,	/* bytes that follow a command */
	WIRE_SLOTS = 2048,		/* a power of two; answers under way at most */
	WIRE_NO_SLOT = -1,
	WIRE_CAPSETS = 4,
	WIRE_CAPSET_BYTES = 4096,
	WIRE_ALIGN = 8,
};

enum wire_op {
	WIRE_PAD = 0,
	WIRE_NOTHING,			/* for its fence */
	WIRE_REGION_ADD,		/* wire_region and a descriptor */
	WIRE_REGION_REMOVE,		/* wire_region: gpa alone */
	WIRE_CONTEXT_CREATE,		/* wire_context */
	WIRE_CONTEXT_DESTROY,		/* wire_context */
	WIRE_CONTEXT_ATTACH,		/* wire_context */
	WIRE_CONTEXT_DETACH,		/* wire_context */
	WIRE_RESOURCE_CREATE,		/* wire_resource */
	WIRE_RESOURCE_UNREF,		/* wire_use */
	WIRE_BACKING_ATTACH,		/* wire_use, then wire_page: as many as there are */
	WIRE_BACKING_DETACH,		/* wire_use */
	WIRE_TO_HOST,			/* wire_transfer */
	WIRE_FROM_HOST,			/* wire_transfer */
	WIRE_SUBMIT,			/* wire_use, then the commands */
	WIRE_IMAGE,			/* wire_image and a descriptor: where the resource is read back to */
	WIRE_READ,			/* wire_transfer: x, y, width, height: into the image */
	WIRE_BLOB_CREATE,		/* wire_blob */
	WIRE_EXPORT,			/* wire_use; its answer comes after a wire_exported with a descriptor */
	WIRE_OPS,
};

enum {
	WIRE_FENCE = 1,
	WIRE_RING = 2,		/* of a WIRE_SUBMIT's fence: of ring flags >> WIRE_RING_SHIFT, where its context has rings */
	WIRE_RING_SHIFT = 8,
};

/* Vulkan, by the protocol of Mesa's Venus; older headers do not name it. */
enum { WIRE_CAPSET_VENUS = 4 };

struct wire_command {
	uint32_t bytes;		/* all of it, a multiple of WIRE_ALIGN */
	uint16_t op;
	uint16_t flags;
	int32_t slot;		/* WIRE_NO_SLOT: nobody waits */
	uint32_t data;		/* bytes that follow, before rounding */
};

struct wire_region {
	uint64_t gpa, len, offset;
	uint64_t read_only;
};

struct wire_context {
	uint32_t context, resource;
	uint32_t init;		/* capset, 0: any */
	uint32_t name_bytes;
	char name[64];
};

struct wire_resource {
	uint32_t id, target, format, bind, width, height, depth, array_size, last_level, nr_samples, flags;
	uint32_t pad;
};

struct wire_use {
	uint32_t context, resource;
};

struct wire_page {
	uint64_t gpa, len;
};

struct wire_image {
	uint32_t resource, pad;
	uint64_t bytes;
};

/* Memory of the renderer's that a guest may map. */
struct wire_blob {
	uint32_t resource, context;
	uint64_t blob;			/* what of the context's it is */
	uint64_t bytes;
	uint32_t flags, pad;		/* VIRTIO_GPU_BLOB_FLAG_* */
};

/* A resource as a descriptor. */
struct wire_exported {
	uint32_t resource;
	uint32_t fourcc, stride, offset;	/* of its pixels, as DRM has them */
	uint32_t flags;			/* VIRTIO_GPU_RESOURCE_FLAG_* */
	uint32_t map_info;		/* of a blob: VIRTIO_GPU_MAP_CACHE_* */
	uint64_t modifier;		/* WIRE_NO_MODIFIER: not known */
	uint64_t bytes;
};

#define WIRE_NO_MODIFIER 0x00ffffffffffffffull

struct wire_transfer {
	uint32_t resource, context, level, stride, layer_stride;
	uint32_t x, y, z, width, height, depth;
	uint32_t pad;
	uint64_t offset;
};

struct wire_answer {
	uint32_t slot;
	uint32_t type;		/* as the guest gets it */
};

/* One writer for each line. */
struct wire {
	uint32_t head;		/* bytes of commands written, ever; display */
	uint32_t display_sleeps;
	uint8_t pad0[56];
	uint32_t tail;		/* bytes of commands taken, ever; renderer */
	uint32_t answered;	/* answers, ever */
	uint32_t renderer_sleeps;
	uint8_t pad1[52];
	uint8_t pad2[4096 - 128];
	struct wire_answer answers[WIRE_SLOTS];
	uint8_t commands[WIRE_COMMANDS];
};

/* The first message on the socket, from the renderer: it is ready. */
struct wire_ready {
	uint32_t magic;		/* WIRE_MAGIC */
	uint32_t nr_capsets;
	uint32_t blobs;		/* it has memory that guests can map: WIRE_BLOB_CREATE */
	uint32_t pad;
	struct {
		uint32_t id, version, bytes;
		uint8_t data[WIRE_CAPSET_BYTES];
	} capsets[WIRE_CAPSETS];
};

enum { WIRE_MAGIC = 0x44334756 };

static inline uint32_t wire_round(uint32_t bytes)
{
	return (bytes + WIRE_ALIGN - 1) & ~(uint32_t)(WIRE_ALIGN - 1);
}

static inline uint32_t wire_load_acquire(const uint32_t *p)
{
	return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static inline void wire_store_release(uint32_t *p, uint32_t v)
{
	__atomic_store_n(p, v, __ATOMIC_RELEASE);
}

/* After something was published: does the other side sleep? It looks again once it has said so. */
static inline bool wire_sleeps(uint32_t *sleeps)
{
	shm_mb();
	return shm_load32(sleeps) != 0;
}

#endif
