/* SPDX-License-Identifier: Apache-2.0 */
/*
 * load.h - load generator for virtio-gpu: a guest's frames at full speed, in one thread, without the GIL.
 *
 * A frame is a TRANSFER_TO_HOST_2D and the RESOURCE_FLUSH of the same rectangle, made visible together, as Linux does;
 * or, of 3D, a SUBMIT_3D with its fence, always of the same commands.
 * It owns neither ring nor memory; the resource is made and shown by somebody else. The same thread is QEMU at the other
 * end of the display socket, where there is one: it reads what the back-end shows, and answers what it asks.
 */
#ifndef GPU_LOAD_H
#define GPU_LOAD_H

#include "ring/csrc/loadgen.h"

/* cffi:begin */
enum {
	GPU_LOAD_DEPTH = 256,		/* frames in flight */
	GPU_LOAD_SLOT_BYTES = 256,	/* of a frame's commands and replies */

	GPU_LOAD_E_REPLY = 16,		/* a kind of error, for first_error: type of a reply */
};

struct gpu_load;

struct gpu_load_config {
	uint32_t width, height;			/* of the resource, pixels */
	uint32_t rect_width, rect_height;	/* of what a frame changes */
	uint32_t depth;
	uint32_t resource;
	uint32_t random;	/* rectangles at random; 0: side by side, row by row */
	uint32_t poll;		/* 1: never sleep, no notifications */
	uint32_t indirect;
	uint32_t pad;
	uint64_t seed;
};

struct gpu_load_stats {
	struct gen_stats run;	/* of frames */
	uint64_t replies;
	uint64_t updates;	/* that came to the display */
	uint64_t shown_bytes;	/* pixels of them */
};

/* NULL without memory or if the configuration makes no sense. */
struct gpu_load *gpu_load_new(const struct gpu_load_config *config);
void gpu_load_free(struct gpu_load *load);
/*
 * The control queue, and @depth pieces of GPU_LOAD_SLOT_BYTES of guest memory. The caller keeps both. 0, -ENOMEM.
 */
int gpu_load_set_queue(struct gpu_load *load, struct ring_drv *drv, int kick_fd, int call_fd, void *slots,
		       uint64_t slots_gpa);
/* Frames are of 3D: @bytes of commands for @context, at a guest's address. */
void gpu_load_set_commands(struct gpu_load *load, uint32_t context, uint64_t gpa, uint32_t bytes);
/* Be QEMU on @fd, non-blocking and not owned; pixels are kept with @keep. 0, -ENOMEM. */
int gpu_load_set_display(struct gpu_load *load, int fd, int keep);
/* Read what came on it and answer. 0; -EPIPE: the other side closed it, -EPROTO: it sent nonsense. */
int gpu_load_read_display(struct gpu_load *load);
/* What the display shows, @width x @height pixels; NULL: another size, or nothing was kept. */
const uint8_t *gpu_load_shown(const struct gpu_load *load);
/*
 * Send frames for @duration_ns, or until gpu_load_stop(): GEN_RUN. Those in flight stay so; GEN_DRAIN sends none, and
 * returns when none is. Statistics start anew. 0, -ETIME if a drain did not end in time, -EIO once the device broke the
 * ring, -EPIPE and -EPROTO as above.
 */
int gpu_load_run(struct gpu_load *load, uint64_t duration_ns, int mode);
/* From any thread. */
void gpu_load_stop(struct gpu_load *load);
/* Of the last run; the pointer stays valid until gpu_load_free(). */
const struct gpu_load_stats *gpu_load_stats(const struct gpu_load *load);
/* cffi:end */

#endif
