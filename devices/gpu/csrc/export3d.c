// SPDX-License-Identifier: Apache-2.0
/*
 * export3d.c - what the renderer has, as descriptors: asked for once for each resource, kept as long as that.
 */
#include <unistd.h>

#include "devices/gpu/csrc/remote.h"

enum { OK = VIRTIO_GPU_RESP_OK_NODATA };

void gpu_3d_exported(struct gpu_remote *rm, struct gpu_resource *res, uint32_t id, bool ok)
{
	struct gpu_exported got;
	bool have = ok && gpu_remote_take(rm, id, &got);

	if (!res) {
		if (have)
			close(got.fd);
		return;
	}
	res->exported.state = GPU_NOT_EXPORTED;
	if (have)
		res->exported = got;
	gpu_changed(rm->gpu);
}

/* Ask for it: -EAGAIN, -ENOTSUP. */
static int ask(struct gpu *gpu, struct gpu_resource *res)
{
	const struct wire_use use = {.resource = res->id};
	uint32_t reply = gpu_3d_gate(gpu, 1, sizeof(use));
	struct gpu_slot *slot;

	if (reply != OK)
		return reply == GPU_AGAIN ? -EAGAIN : -ENOTSUP;
	slot = gpu_remote_slot(gpu->remote, NULL, GPU_AFTER_EXPORT);
	slot->id = res->id;
	slot->serial = res->serial;
	gpu_remote_put(gpu->remote, WIRE_EXPORT, &use, sizeof(use), slot);
	res->exported.state = GPU_ASKED;
	return -EAGAIN;
}

int gpu_3d_export(struct gpu *gpu, struct gpu_resource *res)
{
	switch (res->exported.state) {
	case GPU_NOT_ASKED:
		return ask(gpu, res);
	case GPU_ASKED:
		return -EAGAIN;
	case GPU_EXPORTED:
		return 0;
	default:
		return -ENOTSUP;
	}
}

int gpu_dmabuf(struct gpu *gpu, uint32_t scanout, struct gpu_dmabuf *out)
{
	const struct gpu_scanout *s = &gpu->scanouts[scanout];
	struct gpu_resource *res = s->resource;
	const struct wire_exported *what;
	int rc;

	if (!res || !res->is_3d)
		return -ENOENT;
	rc = gpu_3d_export(gpu, res);
	if (rc)
		return rc;
	what = &res->exported.what;
	*out = (struct gpu_dmabuf){
		.fd = res->exported.fd,
		.serial = res->serial,
		.rect = s->rect,
		.width = res->width,
		.height = res->height,
		.stride = what->stride,
		.offset = what->offset,
		.fourcc = what->fourcc,
		.flags = what->flags,
		.modifier = what->modifier,
		.modified = what->modifier != WIRE_NO_MODIFIER,
	};
	return 0;
}
