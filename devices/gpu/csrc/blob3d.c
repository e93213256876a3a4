// SPDX-License-Identifier: Apache-2.0
/*
 * blob3d.c - blobs in memory of the renderer's, and the guest's window into them [VIRTIO 1.3, 5.7.6.8].
 *
 * The front-end maps them for the guest; Python asks it to (devices/gpu/window.py). So a command that maps or unmaps becomes
 * an errand, and is answered when that is done. Errands are done one after the other: what is mapped where another one was
 * comes after that one has gone.
 */
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "devices/gpu/csrc/remote.h"

enum {
	OK = VIRTIO_GPU_RESP_OK_NODATA,
	UNSPEC = VIRTIO_GPU_RESP_ERR_UNSPEC,
	NO_MEMORY = VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY,
	BAD_CONTEXT = VIRTIO_GPU_RESP_ERR_INVALID_CONTEXT_ID,
	BAD_RESOURCE = VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID,
	BAD_PARAMETER = VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER,
	PAGE = 4096,
};

/* An errand; the first one is perhaps being done. */
struct gpu_pending {
	struct gpu_pending *next;
	struct gpu_errand errand;
	struct ring_chain *chain;	/* NULL: no guest waits */
	struct virtio_gpu_ctrl_hdr asked;
	uint32_t id, map_info;
	uint64_t mapping;
};

uint32_t gpu_3d_create_blob(struct gpu *gpu, struct gpu_cmd *cmd)
{
	const struct virtio_gpu_resource_create_blob *in = &cmd->in.create_blob;
	const struct wire_blob what = {in->resource_id, in->hdr.ctx_id, in->blob_id, in->size, in->blob_flags, 0};
	uint32_t reply = gpu_3d_gate(gpu, 1, sizeof(what));
	struct gpu_resource *res;
	struct gpu_slot *slot;

	if (reply != OK)
		return reply;
	if (in->nr_entries || in->size % PAGE)
		return BAD_PARAMETER;
	if (!gpu_context_known(gpu->remote, in->hdr.ctx_id))
		return BAD_CONTEXT;
	reply = gpu_resource_make(gpu, in->resource_id, 0, &res);
	if (reply != OK)
		return reply;
	if (!gpu_resource_charge(gpu, res, in->size)) {
		gpu_resource_drop(gpu, res);
		return NO_MEMORY;
	}
	res->blob = res->remote = res->hosted = true;
	res->mappable = in->blob_flags & VIRTIO_GPU_BLOB_FLAG_USE_MAPPABLE;
	res->size = in->size;
	slot = gpu_remote_slot(gpu->remote, cmd, GPU_AFTER_RESOURCE);
	slot->id = res->id;
	slot->serial = res->serial;
	gpu_remote_put(gpu->remote, WIRE_BLOB_CREATE, &what, sizeof(what), slot);
	return GPU_HELD;
}

/* So long, and its maker cannot make it shorter: whoever reads it lives. */
static bool lasts(int fd, uint64_t bytes)
{
	off_t size = lseek(fd, 0, SEEK_END);
	struct statfs fs;
	int seals;

	if (size < 0 || (uint64_t)size < bytes)
		return false;
	if (!fstatfs(fd, &fs) && fs.f_type == DMA_BUF_MAGIC)
		return true;
	seals = fcntl(fd, F_GET_SEALS);
	return seals >= 0 && seals & F_SEAL_SHRINK;
}

/* Its descriptor is here, and good for all of it. */
static uint32_t have(struct gpu *gpu, struct gpu_resource *res)
{
	int rc = gpu_3d_export(gpu, res);

	if (rc)
		return rc == -EAGAIN ? GPU_AGAIN : UNSPEC;
	return lasts(res->exported.fd, res->size) ? OK : UNSPEC;
}

uint32_t gpu_3d_show_blob(struct gpu *gpu, struct gpu_resource *res)
{
	uint32_t reply = res->image ? OK : have(gpu, res);

	if (reply == OK && !res->image)
		res->image = gpu_image_map(res->exported.fd, res->size);
	return reply == OK && !res->image ? NO_MEMORY : reply;
}

/* --- errands ------------------------------------------------------------------------------------------------------ */

void gpu_set_window(struct gpu *gpu, uint64_t bytes, int news)
{
	gpu->window.bytes = bytes;
	gpu->window.news = news;
}

static struct gpu_pending *errand(struct gpu *gpu, uint32_t what, const struct gpu_resource *res, const struct gpu_cmd *cmd)
{
	struct gpu_pending *p = calloc(1, sizeof(*p));
	const uint64_t one = 1;

	if (!p)
		return NULL;
	p->errand = (struct gpu_errand){.what = what, .fd = -1};
	if (res) {
		p->errand.at = res->window_at;
		p->errand.bytes = res->size;
		p->id = res->id;
		p->mapping = res->mapping;
	}
	if (cmd) {
		p->chain = cmd->chain;
		p->asked = cmd->in.hdr;
	}
	*gpu->window.last = p;
	gpu->window.last = &p->next;
	if (write(gpu->window.news, &one, sizeof(one)) < 0)
		return p;	/* a full counter wakes as well */
	return p;
}

int gpu_errand_next(struct gpu *gpu, struct gpu_errand *out)
{
	struct gpu_pending *p = gpu->window.first;

	if (!p)
		return 0;
	*out = p->errand;
	p->errand.fd = -1;
	return 1;
}

/* Tell who waits, if anybody does: once, and nobody any more when the queue is gone. */
static void answer(struct gpu *gpu, struct gpu_pending *p, uint32_t type)
{
	struct virtio_gpu_resp_map_info reply = {.map_info = p->map_info};
	uint32_t len = type == VIRTIO_GPU_RESP_OK_MAP_INFO ? sizeof(reply) : sizeof(reply.hdr);
	struct ring_chain *chain = p->chain;

	p->chain = NULL;
	if (!chain || !gpu->control)
		return;
	ring_vq_push(gpu->control->source.vq, chain, gpu_reply(gpu, chain, &p->asked, type, &reply, len));
	ring_vq_flush(gpu->control->source.vq);
}

void gpu_errand_done(struct gpu *gpu, int ok)
{
	struct gpu_pending *p = gpu->window.first;
	struct gpu_resource *res = gpu_resource_find(gpu, p->id);

	gpu->window.first = p->next;
	if (!p->next)
		gpu->window.last = &gpu->window.first;
	if (p->errand.what == GPU_ERRAND_MAP) {
		if (!ok && res && res->mapped && res->mapping == p->mapping)
			res->mapped = false;
		answer(gpu, p, ok ? VIRTIO_GPU_RESP_OK_MAP_INFO : UNSPEC);
	} else {
		answer(gpu, p, ok ? OK : UNSPEC);
	}
	if (p->errand.fd >= 0)
		close(p->errand.fd);
	free(p);
}

/* --- commands ----------------------------------------------------------------------------------------------------- */

static bool overlaps(struct gpu *gpu, uint64_t at, uint64_t bytes)
{
	for (uint32_t i = 0; i < GPU_BUCKETS; i++) {
		for (const struct gpu_resource *res = gpu->buckets[i]; res; res = res->next) {
			if (res->mapped && at < res->window_at + res->size && res->window_at < at + bytes)
				return true;
		}
	}
	return false;
}

uint32_t gpu_map_blob(struct gpu *gpu, struct gpu_cmd *cmd)
{
	const struct virtio_gpu_resource_map_blob *in = &cmd->in.map_blob;
	struct gpu_resource *res = gpu_resource_find(gpu, in->resource_id);
	struct gpu_pending *p;
	uint32_t reply;

	if (!(gpu->features >> VIRTIO_GPU_F_RESOURCE_BLOB & 1) || !gpu->window.bytes)
		return UNSPEC;
	if (!res || !res->hosted)
		return BAD_RESOURCE;
	if (res->mapped)
		return UNSPEC;
	if (!res->mappable || in->offset % PAGE || res->size > gpu->window.bytes ||
	    in->offset > gpu->window.bytes - res->size || overlaps(gpu, in->offset, res->size))
		return BAD_PARAMETER;
	reply = have(gpu, res);
	if (reply != OK)
		return reply;
	res->window_at = in->offset;
	res->mapping = ++gpu->window.mappings;
	p = errand(gpu, GPU_ERRAND_MAP, res, cmd);
	if (!p)
		return NO_MEMORY;
	p->errand.fd = fcntl(res->exported.fd, F_DUPFD_CLOEXEC, 0);
	p->map_info = res->exported.what.map_info & VIRTIO_GPU_MAP_CACHE_MASK;
	res->mapped = true;
	return GPU_HELD;
}

uint32_t gpu_unmap_blob(struct gpu *gpu, struct gpu_cmd *cmd)
{
	struct gpu_resource *res = gpu_resource_find(gpu, cmd->in.unmap_blob.resource_id);

	if (!(gpu->features >> VIRTIO_GPU_F_RESOURCE_BLOB & 1))
		return UNSPEC;
	if (!res || !res->hosted)
		return BAD_RESOURCE;
	if (!res->mapped)
		return UNSPEC;
	if (!errand(gpu, GPU_ERRAND_UNMAP, res, cmd))
		return NO_MEMORY;
	res->mapped = false;
	return GPU_HELD;
}

void gpu_3d_unmap(struct gpu *gpu, struct gpu_resource *res)
{
	/* without memory for the errand it stays mapped until the next reset: it costs this guest alone */
	if (res->mapped)
		errand(gpu, GPU_ERRAND_UNMAP, res, NULL);
	res->mapped = false;
}

void gpu_window_reset(struct gpu *gpu)
{
	if (!gpu->window.mappings)
		return;		/* nothing ever was */
	for (struct gpu_pending *p = gpu->window.first; p; p = p->next)
		answer(gpu, p, UNSPEC);
	errand(gpu, GPU_ERRAND_CLEAR, NULL, NULL);
}

void gpu_window_free(struct gpu *gpu)
{
	while (gpu->window.first)
		gpu_errand_done(gpu, 0);
}
