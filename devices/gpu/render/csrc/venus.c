// SPDX-License-Identifier: Apache-2.0
/*
 * venus.c - Vulkan by libvirglrenderer: contexts of Venus. The library passes their commands on to its render server, which
 * runs a process for each of them; here is no Vulkan.
 */
#include <unistd.h>

#include "devices/gpu/render/csrc/virgl_int.h"

enum { OK = VIRTIO_GPU_RESP_OK_NODATA, BAD_PARAMETER = VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER };

static int to_server = -1;

uint32_t venus_bytes(void)
{
	uint32_t version = 0, bytes = 0;

	/* may be asked before the library is initialised */
	virgl_renderer_get_cap_set(WIRE_CAPSET_VENUS, &version, &bytes);
	return bytes;
}

static void fenced(void *cookie, uint32_t context, uint32_t ring, uint64_t slot)
{
	(void)cookie;
	(void)context;
	(void)ring;
	render_ring_fenced((uint32_t)slot);
}

static int server_fd(void *cookie, uint32_t version)
{
	int fd = version ? -1 : to_server;

	(void)cookie;
	to_server = -1;		/* it is asked once */
	return fd;
}

int venus_begin(struct virgl_renderer_callbacks *callbacks, int server)
{
	to_server = server;
	callbacks->version = 3;
	callbacks->write_context_fence = fenced;
	callbacks->get_server_fd = server_fd;
	return VIRGL_RENDERER_VENUS | VIRGL_RENDERER_RENDER_SERVER | VIRGL_RENDERER_USE_EXTERNAL_BLOB;
}

bool venus_fence(uint32_t context, uint32_t ring, uint32_t slot)
{
	return !virgl_renderer_context_create_fence(context, 0, ring, slot);
}

uint32_t venus_blob(struct render_resource *res, const struct wire_blob *what, const struct render_context *of)
{
	struct virgl_renderer_resource_create_blob_args args = {
		.res_handle = res->what.id,
		.ctx_id = what->context,
		.blob_mem = VIRGL_RENDERER_BLOB_MEM_HOST3D,
		.blob_flags = what->flags,
		.blob_id = what->blob,
		.size = what->bytes,
	};

	if (of->init != WIRE_CAPSET_VENUS)
		return BAD_PARAMETER;	/* OpenGL's is the renderer's alone */
	return virgl_renderer_resource_create_blob(&args) ? BAD_PARAMETER : OK;
}

/* Memory of a driver's that only knows it itself (opaque) cannot be mapped by others. */
int venus_export(struct render_resource *res, struct wire_exported *out)
{
	uint32_t type = 0;
	int fd = -1;

	if (virgl_renderer_resource_get_map_info(res->what.id, &out->map_info) ||
	    virgl_renderer_resource_export_blob(res->what.id, &type, &fd))
		return -1;
	if (type != VIRGL_RENDERER_BLOB_FD_TYPE_DMABUF && type != VIRGL_RENDERER_BLOB_FD_TYPE_SHM) {
		close(fd);
		return -1;
	}
	out->bytes = res->blob_bytes;
	return fd;
}
