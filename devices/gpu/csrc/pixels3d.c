// SPDX-License-Identifier: Apache-2.0
/*
 * pixels3d.c - pixels of what the renderer has drawn. They come back into the resource's image, in memory that both have:
 * with a flush while somebody wants them; while nobody does it is remembered what is stale, and read when somebody comes.
 */
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "devices/gpu/csrc/remote.h"

enum {
	OK = VIRTIO_GPU_RESP_OK_NODATA,
	UNSPEC = VIRTIO_GPU_RESP_ERR_UNSPEC,
	NO_MEMORY = VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY,
	BAD_PARAMETER = VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER,
};

/* Its image, in memory that the renderer writes to. */
static uint32_t make_image(struct gpu *gpu, struct gpu_resource *res)
{
	struct wire_image what = {.resource = res->id, .bytes = (uint64_t)res->width * res->height * GPU_PIXEL};
	int fd;

	if (res->image)
		return OK;
	if (!gpu_resource_charge(gpu, res, what.bytes))
		return NO_MEMORY;
	fd = memfd_create("gpu-image", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd >= 0 && !ftruncate(fd, (off_t)what.bytes) && !fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		res->image = gpu_image_map(fd, what.bytes);
	if (res->image && !gpu_remote_pass(gpu->remote, fd)) {
		gpu_image_drop(res->image);
		res->image = NULL;
	}
	if (fd >= 0)
		close(fd);
	if (!res->image) {
		gpu_resource_refund(gpu, res, what.bytes);
		return NO_MEMORY;
	}
	res->size = what.bytes;
	gpu_remote_put(gpu->remote, WIRE_IMAGE, &what, sizeof(what), NULL);
	return OK;
}

/* Can it be shown, and could it be read back now? It has an image then. */
static uint32_t ready(struct gpu *gpu, struct gpu_resource *res)
{
	uint32_t reply = gpu_3d_gate(gpu, 2, sizeof(struct wire_transfer) + sizeof(struct wire_image));

	if (reply != OK)
		return reply;
	if (!res->flat || !gpu_format_known(res->format) || res->width > GPU_SIDE_MAX)
		return BAD_PARAMETER;
	return make_image(gpu, res);
}

/* Read @rect of it, which is ready; @cmd NULL: nobody waits for it. */
static uint32_t read_back(struct gpu *gpu, struct gpu_resource *res, const struct gpu_rect *rect, const struct gpu_cmd *cmd,
			  enum gpu_after after, uint32_t scanout)
{
	const struct wire_transfer what = {
		.resource = res->id, .x = rect->x, .y = rect->y, .width = rect->width, .height = rect->height, .depth = 1,
	};
	struct gpu_slot *slot = gpu_remote_slot(gpu->remote, cmd, after);

	slot->id = res->id;
	slot->serial = res->serial;
	slot->rect = *rect;
	slot->scanout = scanout;
	gpu_remote_put(gpu->remote, WIRE_READ, &what, sizeof(what), slot);
	ring_count(&gpu->stats.reads, 1);
	ring_count(&gpu->stats.read_bytes, (uint64_t)rect->width * rect->height * GPU_PIXEL);
	return GPU_HELD;
}

/* @rect, and with it all that is stale. */
static uint32_t read_all(struct gpu *gpu, struct gpu_resource *res, const struct gpu_rect *rect, const struct gpu_cmd *cmd,
			 enum gpu_after after)
{
	struct gpu_rect all = *rect;

	if (res->stale.width)
		gpu_rect_join(&all, &res->stale);
	res->stale = (struct gpu_rect){0};
	res->reads++;
	return read_back(gpu, res, &all, cmd, after, 0);
}

uint32_t gpu_3d_show(struct gpu *gpu, struct gpu_resource *res, const struct gpu_rect *rect, const struct gpu_cmd *cmd)
{
	uint32_t reply = ready(gpu, res);

	if (reply != OK)
		return reply;
	if (gpu->looked)
		return read_all(gpu, res, rect, cmd, GPU_AFTER_READ);
	gpu_rect_join(&res->stale, rect);
	return OK;
}

uint32_t gpu_3d_flush(struct gpu *gpu, struct gpu_resource *res, const struct gpu_rect *rect, const struct gpu_cmd *cmd)
{
	struct gpu_slot *slot;
	uint32_t reply;

	if (gpu->looked) {
		reply = ready(gpu, res);
		return reply == OK ? read_all(gpu, res, rect, cmd, GPU_AFTER_READ) : reply;
	}
	if (gpu->watcher < 0) {
		gpu_rect_join(&res->stale, rect);
		gpu_flushed(gpu, res, rect, true);
		return OK;
	}
	/* whoever watches looks where the renderer draws: told when it has come so far */
	reply = gpu_3d_gate(gpu, 1, 0);
	if (reply != OK)
		return reply;
	gpu_rect_join(&res->stale, rect);
	slot = gpu_remote_slot(gpu->remote, cmd, GPU_AFTER_FLUSH);
	slot->id = res->id;
	slot->serial = res->serial;
	slot->rect = *rect;
	gpu_remote_begin(gpu->remote, WIRE_NOTHING, 0, slot);
	gpu_remote_send(gpu->remote);
	return GPU_HELD;
}

/* Cursors are small, and sent to whoever comes: always read. */
void gpu_3d_cursor(struct gpu *gpu, struct gpu_resource *res, uint32_t scanout)
{
	const struct gpu_rect all = {0, 0, GPU_CURSOR_SIDE, GPU_CURSOR_SIDE};

	if (ready(gpu, res) == OK)
		read_back(gpu, res, &all, NULL, GPU_AFTER_CURSOR, scanout);
}

void gpu_3d_catch_up(struct gpu *gpu)
{
	if (!gpu->remote || !gpu->looked)
		return;
	for (uint32_t i = 0; i < gpu->nr_scanouts; i++) {
		struct gpu_resource *res = gpu->scanouts[i].resource;

		if (res && res->stale.width && ready(gpu, res) == OK)
			read_all(gpu, res, &res->stale, NULL, GPU_AFTER_CATCHING_UP);
	}
}

void gpu_set_looked(struct gpu *gpu, int looked)
{
	gpu->looked = looked != 0;
	gpu_3d_catch_up(gpu);
}

int gpu_3d_behind(const struct gpu *gpu, uint32_t scanout)
{
	const struct gpu_resource *res = gpu->scanouts[scanout].resource;

	return res && (res->stale.width || res->reads);
}
