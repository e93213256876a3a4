// SPDX-License-Identifier: Apache-2.0
/*
 * null.c - a renderer that draws nothing, without any library: resources are plain memory of 4 bytes a pixel, transfers copy, and the
 * commands of a guest are a few of its own. For tests of everything around a renderer.
 *
 *	1, resource, colour	fill it
 *	2			end by abort()
 *	3			never come back
 *	4			hold fences, from here on
 *	5			release the oldest
 *	6, ring			release those of a ring
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "devices/gpu/render/csrc/render_int.h"

enum { OK = VIRTIO_GPU_RESP_OK_NODATA, BAD_PARAMETER = VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER };

enum { BLOB_MAX = 64 << 20 };

enum null_command { FILL = 1, CRASH, HANG, HOLD, RELEASE, RELEASE_RING };

static struct render *owner;
static uint32_t released;
static bool held;
static uint32_t ring_of[WIRE_SLOTS];	/* and one; 0: no fence of a ring */

static uint64_t bytes_of(const struct render_resource *res)
{
	return res->blob_bytes ? res->blob_bytes : (uint64_t)res->what.width * res->what.height * RENDER_PIXEL;
}

static int init(struct render *r, const struct render_options *options, struct wire_ready *ready, const char **words)
{
	(void)options;
	(void)words;
	owner = r;
	ready->nr_capsets = 1;
	ready->blobs = 1;
	ready->capsets[0].id = VIRTIO_GPU_CAPSET_VIRGL;
	ready->capsets[0].version = 1;
	ready->capsets[0].bytes = 64;
	memset(ready->capsets[0].data, 0x5a, 64);
	return 0;
}

static int look_fd(void)
{
	return -1;
}

static void fence(uint32_t number)
{
	if (!held)
		render_fenced(released = number);
}

static bool ring_fence(uint32_t context, uint32_t ring, uint32_t slot)
{
	(void)context;
	if (held)
		ring_of[slot] = ring + 1;
	else
		render_ring_fenced(slot);
	return true;
}

static void release_ring(uint32_t ring)
{
	for (uint32_t slot = 0; slot < WIRE_SLOTS; slot++) {
		if (ring_of[slot] != ring + 1)
			continue;
		ring_of[slot] = 0;
		render_ring_fenced(slot);
	}
}

static void look(void)
{
}

static uint32_t context_create(const struct wire_context *what)
{
	(void)what;
	return OK;
}

static void context_destroy(uint32_t id)
{
	(void)id;
}

static void attach(uint32_t context, const struct render_resource *res, bool on)
{
	(void)context;
	(void)res;
	(void)on;
}

/* What a resource holds: memory of ours alone, until it is exported. */
struct drawn {
	uint8_t *pixels;
	int fd;			/* -1: not exported */
};

static uint8_t *pixels_of(const struct render_resource *res)
{
	return ((struct drawn *)res->drawn)->pixels;
}

static uint32_t resource_create(struct render_resource *res)
{
	struct drawn *d = malloc(sizeof(*d));

	if (!d)
		return VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY;
	d->pixels = calloc(1, bytes_of(res) ? bytes_of(res) : 1);
	d->fd = -1;
	if (!d->pixels) {
		free(d);
		return VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY;
	}
	res->drawn = d;
	return OK;
}

static void resource_unref(struct render_resource *res)
{
	struct drawn *d = res->drawn;

	if (d->fd >= 0) {
		munmap(d->pixels, bytes_of(res));
		close(d->fd);
	} else {
		free(d->pixels);
	}
	free(d);
}

/* Number 0 is what no context has. */
static uint32_t blob_create(struct render_resource *res, const struct wire_blob *what, const struct render_context *of)
{
	(void)of;
	return what->blob && what->bytes <= BLOB_MAX ? resource_create(res) : BAD_PARAMETER;
}

/* From now on it lies in a memfd. */
static bool share(struct drawn *d, uint64_t bytes)
{
	int fd = memfd_create("null-resource", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	void *at;

	if (fd < 0)
		return false;
	at = ftruncate(fd, (off_t)bytes) < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) < 0 ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED) {
		close(fd);
		return false;
	}
	memcpy(at, d->pixels, bytes);
	free(d->pixels);
	d->pixels = at;
	d->fd = fd;
	return true;
}

static int export(struct render_resource *res, struct wire_exported *out)
{
	struct drawn *d = res->drawn;

	if (!bytes_of(res) || (d->fd < 0 && !share(d, bytes_of(res))))
		return -1;
	out->fourcc = 'X' | 'R' << 8 | '2' << 16 | '4' << 24;
	out->stride = res->what.width * RENDER_PIXEL;
	out->flags = res->what.flags;
	out->bytes = bytes_of(res);
	out->map_info = VIRTIO_GPU_MAP_CACHE_CACHED;
	return dup(d->fd);
}

static uint32_t backing(struct render_resource *res, bool on)
{
	(void)res;
	(void)on;
	return OK;
}

/* A row of pixels to or from [@at, @at + @n) of the pages. */
static bool copy(const struct render_resource *res, uint64_t at, uint8_t *row, uint64_t n, bool to_host)
{
	for (int i = 0; i < res->nr_iov && n; i++) {
		uint64_t len = res->iov[i].iov_len, part;

		if (at >= len) {
			at -= len;
			continue;
		}
		part = n < len - at ? n : len - at;
		if (to_host)
			shm_copy_in(row, (uint8_t *)res->iov[i].iov_base + at, part);
		else
			shm_copy_out((uint8_t *)res->iov[i].iov_base + at, row, part);
		row += part;
		n -= part;
		at = 0;
	}
	return !n;
}

static uint32_t transfer(struct render_resource *res, const struct wire_transfer *t, bool to_host)
{
	uint64_t stride = t->stride ? t->stride : (uint64_t)res->what.width * RENDER_PIXEL;

	if (res->blob_bytes || t->level || t->z || t->depth != 1 || t->x > res->what.width || t->width > res->what.width - t->x ||
	    t->y > res->what.height || t->height > res->what.height - t->y)
		return BAD_PARAMETER;
	for (uint32_t y = 0; y < t->height; y++) {
		uint8_t *row = pixels_of(res) + ((uint64_t)(t->y + y) * res->what.width + t->x) * RENDER_PIXEL;

		if (!copy(res, t->offset + y * stride, row, (uint64_t)t->width * RENDER_PIXEL, to_host))
			return BAD_PARAMETER;
	}
	return OK;
}

static uint32_t read_back(struct render_resource *res, const struct wire_transfer *t)
{
	for (uint32_t y = t->y; y < t->y + t->height; y++) {
		uint64_t at = ((uint64_t)y * res->what.width + t->x) * RENDER_PIXEL;

		memcpy(res->image + at, pixels_of(res) + at, (uint64_t)t->width * RENDER_PIXEL);
	}
	return OK;
}

static struct render_resource *resource_of(uint32_t id)
{
	struct render_resource *res = owner->resources[render_bucket(id)];

	while (res && res->what.id != id)
		res = res->next;
	return res;
}

static uint32_t fill(uint32_t id, uint32_t colour)
{
	struct render_resource *res = resource_of(id);

	if (!res)
		return VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID;
	for (uint64_t at = 0; at < bytes_of(res); at += RENDER_PIXEL)
		memcpy(pixels_of(res) + at, &colour, RENDER_PIXEL);
	return OK;
}

static uint32_t submit(uint32_t context, uint32_t *words, uint32_t nr)
{
	(void)context;
	switch (nr ? words[0] : 0) {
	case FILL:
		return nr == 3 ? fill(words[1], words[2]) : BAD_PARAMETER;
	case CRASH:
		abort();
	case HANG:
		for (;;)
			pause();
	case HOLD:
		held = true;
		return OK;
	case RELEASE:
		render_fenced(++released);
		return OK;
	case RELEASE_RING:
		if (nr != 2)
			return BAD_PARAMETER;
		release_ring(words[1]);
		return OK;
	default:
		return BAD_PARAMETER;
	}
}

const struct render_draw render_draw = {
	.about = "null: draws nothing, for tests",
	.init = init,
	.look_fd = look_fd,
	.fence = fence,
	.ringed = VIRTIO_GPU_CAPSET_VIRGL,
	.ring_fence = ring_fence,
	.look = look,
	.context_create = context_create,
	.context_destroy = context_destroy,
	.attach = attach,
	.resource_create = resource_create,
	.blob_create = blob_create,
	.resource_unref = resource_unref,
	.backing = backing,
	.transfer = transfer,
	.read = read_back,
	.submit = submit,
	.export = export,
};
