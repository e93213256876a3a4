/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu.h - virtio-gpu: control and cursor queue as sources of a worker, and what its guest shows. VIRTIO 1.3, 5.7.
 */
#ifndef GPU_GPU_H
#define GPU_GPU_H

#include "ring/csrc/worker.h"

/* cffi:begin */
enum {
	GPU_SCANOUTS_MAX = 16,
	GPU_EDID_BYTES_MAX = 1024,
	GPU_SIDE_MAX = 16384,		/* pixels, width and height of a resource or a mode */
	GPU_CURSOR_SIDE = 64,		/* pixels */

	/* of the renderer; UP is for commands, STARTING holds them, LOST answers them with an error */
	GPU_3D_NONE = 0,
	GPU_3D_STARTING = 1,
	GPU_3D_UP = 2,
	GPU_3D_LOST = 3,

	/* kinds of errors that are counted: the reply's type less 0x1200 */
	GPU_ERRORS = 6,
};

struct gpu;
struct gpu_shot;

struct gpu_limits {
	uint32_t resources;		/* most of a guest's */
	uint64_t bytes;			/* most host memory of a guest's resources, descriptions of their pages included */
};

/* A scanout as the guest is told of it. */
struct gpu_mode {
	uint32_t x, y;			/* place among the others, pixels */
	uint32_t width, height;		/* pixels; 0: nothing is plugged in */
	uint32_t edid_bytes;
	uint8_t edid[1024];		/* GPU_EDID_BYTES_MAX */
};

struct gpu_rect {
	uint32_t x, y, width, height;
};

/* What a scanout shows now. */
struct gpu_picture {
	uint32_t width, height;		/* pixels; 0: nothing */
	uint64_t flushes;		/* that changed it, since the start */
	struct gpu_rect damage;		/* since it was taken last; width 0: none */
	uint32_t cursor_x, cursor_y;
	uint32_t cursor_shown;
	uint32_t cursor_hot_x, cursor_hot_y;
	uint64_t cursor_changes;	/* of shape or place */
	uint64_t cursor_shapes;		/* that were set */
};

enum {
	GPU_ERRAND_MAP,
	GPU_ERRAND_UNMAP,
	GPU_ERRAND_CLEAR,		/* nothing is mapped any more */
};

struct gpu_errand {
	uint32_t what;			/* GPU_ERRAND_* */
	int fd;				/* MAP; otherwise -1 */
	uint64_t at, bytes;		/* of the window */
};

/* What a scanout shows, as DRM has it. */
struct gpu_dmabuf {
	int fd;				/* the resource's, as long as it is there */
	uint64_t serial;		/* no two resources have the same */
	struct gpu_rect rect;		/* what of it is shown */
	uint32_t width, height;		/* all of it, pixels */
	uint32_t stride, offset, fourcc, flags;
	uint64_t modifier;
	int modified;			/* the modifier is known */
};

struct gpu_stats {
	uint64_t commands;
	uint64_t errors[6];		/* GPU_ERRORS */
	uint64_t transfers, transfer_bytes;
	uint64_t flushes;
	uint64_t cursor_commands;
	uint64_t resources;		/* now */
	uint64_t bytes;			/* of them, now */
	/* 3D */
	uint64_t contexts;		/* now */
	uint64_t submissions, submission_bytes;
	uint64_t transfers_3d;		/* either way */
	uint64_t reads, read_bytes;	/* pixels that came back for whoever looks */
	uint64_t renderers, renderers_lost;	/* that were started; that ended unasked */
};

/* @scanouts 1 to GPU_SCANOUTS_MAX. NULL: no memory. Freed when its queues are. */
struct gpu *gpu_new(uint32_t scanouts, const struct gpu_limits *limits);
void gpu_free(struct gpu *gpu);
/* A queue of it; all run on one worker. @mem: where the guest's pages are, must live as long. NULL: no memory. */
struct ring_source *gpu_queue_new(struct gpu *gpu, struct ring_vq *vq, struct ring_mem *mem, int cursor);
void gpu_queue_free(struct ring_source *source);	/* removed from its worker */

/* The worker is parked for all of these, or there is none. */

/* What the driver acked. */
void gpu_set_features(struct gpu *gpu, uint64_t features);
/* Forget what the guest made. */
void gpu_reset(struct gpu *gpu);
void gpu_set_mode(struct gpu *gpu, uint32_t scanout, const struct gpu_mode *mode);
void gpu_picture(const struct gpu *gpu, uint32_t scanout, struct gpu_picture *out);
/* Forget what was damaged: whoever calls it has seen it in gpu_picture(). */
void gpu_take_damage(struct gpu *gpu, uint32_t scanout);
/*
 * Copy @rect, which lies in the picture, to @to as 4 bytes a pixel: blue, green, red, 255. @stride bytes from row to row.
 * With @cursor it is drawn in. 0, -EINVAL; -EFAULT: pages of it are not there.
 */
int gpu_read(struct gpu *gpu, uint32_t scanout, const struct gpu_rect *rect, uint8_t *to, uint64_t stride, int cursor);
/*
 * A message for QEMU's display that updates @rect, which lies in the picture. It holds on to the image, so that what is
 * drawn meanwhile may be in it; where the image is not as QEMU wants it, or is the guest's memory, it has a copy.
 * NULL: @rect is not in the picture, its pages are not there, no memory.
 */
struct gpu_shot *gpu_shot_new(struct gpu *gpu, uint32_t scanout, const struct gpu_rect *rect);
/* The cursor's picture, GPU_CURSOR_SIDE squared: blue, green, red, alpha. */
void gpu_read_cursor(const struct gpu *gpu, uint32_t scanout, uint8_t *to);
/*
 * Somebody else knows the modes: with @fd (an eventfd, not owned) a driver that asks for them waits, and @fd is written.
 * It goes on, with the modes as they are then, at gpu_answer(), without an @fd (-1), and when its queue is to be drained.
 * Wake the control queue's source after both.
 */
void gpu_set_asked(struct gpu *gpu, int fd);
void gpu_answer(struct gpu *gpu);

/*
 * 3D, by a renderer: another process, which has the memory of gpu_3d_memory() (a memfd or -errno), an eventfd for commands, one for
 * answers, and the other ends of two SOCK_SEQPACKET sockets: @exports is for descriptors that are asked for. The descriptors are the caller's. gpu_reset() of a guest that used it
 * goes to STARTING: the caller ends the renderer and starts another. Wake the control queue's source after a change of state.
 */
int gpu_3d_memory(void);
/* Once, before all else: state STARTING; a guest may have so many @contexts. 0 or -ENOMEM. */
int gpu_3d_enable(struct gpu *gpu, uint32_t contexts);
/* What the renderer sent first. 0, -EPROTO, -ENOMEM. */
int gpu_3d_ready(struct gpu *gpu, const void *data, uint64_t bytes);
/* How many there are; Vulkan's takes a @window, through which the guest maps the renderer's memory. */
int gpu_3d_capsets(const struct gpu *gpu, int window);
/* Takes answers: a source for the worker of the queues; its kick is the eventfd of answers. */
struct ring_source *gpu_3d_source(struct gpu *gpu);
/* To UP, 0 or -errno. gpu_3d_region() comes next, for each. */
int gpu_3d_start(struct gpu *gpu, int memory, int commands, int socket, int exports);
/* It has ended, or is to: to LOST. */
void gpu_3d_lost(struct gpu *gpu);
/* It could not be started: STARTING to LOST. */
void gpu_3d_fail(struct gpu *gpu);
int gpu_3d_state(const struct gpu *gpu);
/* Memory of the guest has come, or (@fd -1) goes. 0 or -EAGAIN: the renderer does not keep up, and is lost. */
int gpu_3d_region(struct gpu *gpu, int fd, uint64_t gpa, uint64_t len, uint64_t offset, int read_only);

/* Answers of the renderer, ever; commands it has now; is their end waited for? */
void gpu_3d_progress(const struct gpu *gpu, uint64_t *done, uint32_t *under_way, uint32_t *draining);

/*
 * Does anybody want pixels? Of 3D they are read back only then: at each flush, and what was flushed before when somebody
 * comes. gpu_3d_behind(): not all of it is here yet; gpu_watch() tells of more.
 */
void gpu_set_looked(struct gpu *gpu, int looked);
int gpu_3d_behind(const struct gpu *gpu, uint32_t scanout);

/*
 * Where the renderer draws what is shown. 0; -ENOENT: nothing that a renderer draws is; -EAGAIN: it is being asked,
 * gpu_watch() tells when it has answered, or it cannot be asked yet; -ENOTSUP: it cannot say.
 */
int gpu_dmabuf(struct gpu *gpu, uint32_t scanout, struct gpu_dmabuf *out);

/*
 * The guest's window into memory of the renderer's: the front-end maps it, so that commands become errands for Python.
 * @bytes: of the window, 0: the front-end cannot map; @news (an eventfd, not owned) is written when there is an errand.
 */
void gpu_set_window(struct gpu *gpu, uint64_t bytes, int news);
/* The first of them: 1, out->fd is the caller's; 0: there is none. It is done at gpu_errand_done(). */
int gpu_errand_next(struct gpu *gpu, struct gpu_errand *out);
void gpu_errand_done(struct gpu *gpu, int ok);
/* Does the renderer have such memory? */
int gpu_3d_blobs(const struct gpu *gpu);

/* Any time, any thread. */

/* Written (an eventfd; -1: none) by a flush after gpu_watch() was called, once. Not owned. Parked. */
void gpu_set_watcher(struct gpu *gpu, int fd);
void gpu_watch(struct gpu *gpu);
void gpu_stats(const struct gpu *gpu, struct gpu_stats *out);
/*
 * Send it, or what is left of it, to @fd, a stream socket. When that is full: wait until it is not, or until @stop (an
 * eventfd) is readable. 0, -ECANCELED; -EAGAIN: it is full, and @stop is -1; -EPIPE.
 */
int gpu_shot_send(struct gpu_shot *shot, int fd, int stop);
void gpu_shot_free(struct gpu_shot *shot);
/* cffi:end */

#endif
