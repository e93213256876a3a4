/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remote.h - the renderer as the display sees it: commands that are under way there, and what follows their answers.
 *
 * The renderer is another process (devices/gpu/render), started and ended by Python. Its memory is believed as little as a
 * guest's: an answer that cannot be makes the renderer lost, as its death does. Then everything under way is answered with
 * an error, and 3D commands are, until the guest resets the device.
 */
#ifndef GPU_REMOTE_H
#define GPU_REMOTE_H

#include "devices/gpu/csrc/gpu_int.h"
#include "devices/gpu/render/csrc/wire.h"

/* What is done when an answer comes, besides passing it on. */
enum gpu_after {
	GPU_AFTER_NOTHING,
	GPU_AFTER_FENCE,		/* the reply is in the chain already */
	GPU_AFTER_CONTEXT,		/* was made: or not, then it is forgotten */
	GPU_AFTER_RESOURCE,		/* likewise */
	GPU_AFTER_FLUSH,		/* of what nobody wants pixels of: damage */
	GPU_AFTER_READ,			/* the image has changed: damage */
	GPU_AFTER_CATCHING_UP,		/* likewise, with what was flushed before */
	GPU_AFTER_CURSOR,		/* likewise: the cursor of a scanout */
	GPU_AFTER_EXPORT,		/* a descriptor has come, or none will */
};

/* A command under way. */
struct gpu_slot {
	struct ring_chain *chain;	/* NULL: no guest waits */
	struct virtio_gpu_ctrl_hdr asked;
	uint32_t written;		/* of the reply, for GPU_AFTER_FENCE */
	uint32_t id;			/* of the context, the resource */
	uint64_t serial;		/* of the resource */
	uint32_t scanout;
	struct gpu_rect rect;
	uint16_t next;			/* free one */
	uint8_t after;
	bool used, fenced;
	bool ring;			/* its fence is of a context's ring */
};

struct gpu_remote {
	struct ring_source source;	/* answers; first */
	struct gpu *gpu;
	int state;			/* GPU_3D_* */
	bool touched;			/* a guest has used it since it was started */
	struct wire *wire;		/* NULL unless up */
	int commands, socket, exports;	/* not owned */
	uint32_t head, answered;
	uint32_t fences;		/* under way */
	uint32_t rings;			/* of them those of contexts' rings */
	uint32_t under_way;
	uint16_t free;			/* first of the free slots */
	struct gpu_slot slots[WIRE_SLOTS];
	uint64_t done;			/* answers, __atomic */
	uint32_t max_contexts, nr_contexts;
	uint32_t *contexts;
	bool blobs;
	uint32_t nr_capsets;
	struct gpu_capset {
		uint32_t id, version, bytes;
		uint8_t *data;
	} capsets[WIRE_CAPSETS];
};

/* Is it there, and its side of the ring as it can be? */
bool gpu_remote_up(struct gpu_remote *rm);
/* Room for @messages with @bytes of data in all, and a slot? */
bool gpu_remote_room(const struct gpu_remote *rm, uint32_t messages, uint64_t bytes);
/*
 * A message of @bytes, after gpu_remote_room(): where its data goes. @slot: NULL, or its answer's. gpu_remote_send() sends
 * it, and whatever was begun before.
 */
void *gpu_remote_begin(struct gpu_remote *rm, enum wire_op op, uint32_t bytes, struct gpu_slot *slot);
void gpu_remote_send(struct gpu_remote *rm);
/* begin and send */
void gpu_remote_put(struct gpu_remote *rm, enum wire_op op, const void *data, uint32_t bytes, struct gpu_slot *slot);
/* A slot for @cmd (NULL: no guest waits), after gpu_remote_room(). */
struct gpu_slot *gpu_remote_slot(struct gpu_remote *rm, const struct gpu_cmd *cmd, enum gpu_after after);
/* Pass a descriptor to the renderer, whose next message tells what for. False: it takes none. */
bool gpu_remote_pass(struct gpu_remote *rm, int fd);
/* What the renderer passed before it answered: false: nothing, or not what was asked. */
bool gpu_remote_take(struct gpu_remote *rm, uint32_t resource, struct gpu_exported *to);
/* It has OpenGL. */
bool gpu_remote_draws(const struct gpu_remote *rm);
/* Everything under way is answered with an error. */
void gpu_remote_fail(struct gpu_remote *rm);
void gpu_remote_reset(struct gpu_remote *rm);
void gpu_remote_free(struct gpu_remote *rm);

bool gpu_context_known(const struct gpu_remote *rm, uint32_t id);
void gpu_context_forget(struct gpu_remote *rm, uint32_t id);
void gpu_context_count(struct gpu_remote *rm, uint32_t nr);

/* May the guest send 3D commands, and can the renderer take so many messages with so much data now? OK_NODATA: yes. */
uint32_t gpu_3d_gate(struct gpu *gpu, uint32_t messages, uint64_t bytes);
/* command3d.c: as command.c's. */
uint32_t gpu_get_capset_info(struct gpu *gpu, struct gpu_cmd *cmd);
uint32_t gpu_get_capset(struct gpu *gpu, struct gpu_cmd *cmd);
uint32_t gpu_context_create(struct gpu *gpu, struct gpu_cmd *cmd);
uint32_t gpu_context_destroy(struct gpu *gpu, struct gpu_cmd *cmd);
uint32_t gpu_context_attach(struct gpu *gpu, struct gpu_cmd *cmd);
uint32_t gpu_context_detach(struct gpu *gpu, struct gpu_cmd *cmd);
uint32_t gpu_create_3d(struct gpu *gpu, struct gpu_cmd *cmd);
uint32_t gpu_to_host_3d(struct gpu *gpu, struct gpu_cmd *cmd);
uint32_t gpu_from_host_3d(struct gpu *gpu, struct gpu_cmd *cmd);
uint32_t gpu_submit(struct gpu *gpu, struct gpu_cmd *cmd);
/* What 2D commands do with resources that the renderer has, too. GPU_HELD, GPU_AGAIN, or the reply's type. */
uint32_t gpu_3d_attach(struct gpu *gpu, struct gpu_resource *res, const struct gpu_cmd *cmd);
uint32_t gpu_3d_detach(struct gpu *gpu, struct gpu_resource *res, const struct gpu_cmd *cmd);
uint32_t gpu_3d_unref(struct gpu *gpu, struct gpu_resource *res, const struct gpu_cmd *cmd);
uint32_t gpu_3d_transfer(struct gpu *gpu, struct gpu_resource *res, const struct gpu_cmd *cmd);
uint32_t gpu_3d_show(struct gpu *gpu, struct gpu_resource *res, const struct gpu_rect *rect, const struct gpu_cmd *cmd);
uint32_t gpu_3d_flush(struct gpu *gpu, struct gpu_resource *res, const struct gpu_rect *rect, const struct gpu_cmd *cmd);
void gpu_3d_cursor(struct gpu *gpu, struct gpu_resource *res, uint32_t scanout);
/* The answer to WIRE_EXPORT of @id; @res NULL: it is gone. */
/* Have its descriptor: 0; -EAGAIN: it is being asked for, or cannot be yet; -ENOTSUP. */
int gpu_3d_export(struct gpu *gpu, struct gpu_resource *res);
/* blob3d.c */
uint32_t gpu_3d_create_blob(struct gpu *gpu, struct gpu_cmd *cmd);
uint32_t gpu_3d_show_blob(struct gpu *gpu, struct gpu_resource *res);
uint32_t gpu_map_blob(struct gpu *gpu, struct gpu_cmd *cmd);
uint32_t gpu_unmap_blob(struct gpu *gpu, struct gpu_cmd *cmd);
/* It goes: what is mapped of it does, too. */
void gpu_3d_unmap(struct gpu *gpu, struct gpu_resource *res);
/* Nothing is mapped any more; who waits is answered with an error. */
void gpu_window_reset(struct gpu *gpu);
void gpu_window_free(struct gpu *gpu);
void gpu_3d_exported(struct gpu_remote *rm, struct gpu_resource *res, uint32_t id, bool ok);
/* Read back what is shown, stale, and not under way yet. */
void gpu_3d_catch_up(struct gpu *gpu);

#endif
