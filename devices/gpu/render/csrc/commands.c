// SPDX-License-Identifier: Apache-2.0
/*
 * commands.c - what a renderer does with each command: find what it names, check, let it be drawn.
 */
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "devices/gpu/render/csrc/render_int.h"

enum {
	OK = VIRTIO_GPU_RESP_OK_NODATA,
	BAD_RESOURCE = VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID,
	BAD_CONTEXT = VIRTIO_GPU_RESP_ERR_INVALID_CONTEXT_ID,
	BAD_PARAMETER = VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER,
	NO_MEMORY = VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY,
	UNSPEC = VIRTIO_GPU_RESP_ERR_UNSPEC,
};

int render_take_fd(struct render *r)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	char byte;
	struct iovec iov = {&byte, 1};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	struct cmsghdr *c;
	int fd;

	/* it was sent before the command was */
	if (recvmsg(r->socket, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) != 1)
		return -EPROTO;
	c = CMSG_FIRSTHDR(&msg);
	if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || c->cmsg_len != CMSG_LEN(sizeof(int)))
		return -EPROTO;
	memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	return fd;
}

/* --- tables ----------------------------------------------------------------------------------------------------- */

static struct render_resource *resource_of(const struct render *r, uint32_t id)
{
	struct render_resource *res = r->resources[render_bucket(id)];

	while (res && res->what.id != id)
		res = res->next;
	return res;
}

struct render_context *render_context_of(const struct render *r, uint32_t id)
{
	struct render_context *ctx = r->contexts[render_bucket(id)];

	while (ctx && ctx->id != id)
		ctx = ctx->next;
	return ctx;
}

static void drop_backing(struct render_resource *res)
{
	if (res->iov)
		render_draw.backing(res, false);
	free(res->iov);
	free(res->pages);
	res->iov = NULL;
	res->pages = NULL;
	res->nr_iov = 0;
	res->nr_pages = 0;
}

static void drop_image(struct render_resource *res)
{
	if (res->image)
		munmap(res->image, res->image_bytes);
	res->image = NULL;
	res->image_bytes = 0;
}

/* --- commands ----------------------------------------------------------------------------------------------------- */

/* Regions came or went: pages are where they are now. */
static void resolve_all(struct render *r, bool before)
{
	for (uint32_t i = 0; i < RENDER_BUCKETS; i++) {
		for (struct render_resource *res = r->resources[i]; res; res = res->next) {
			if (before && res->iov)
				render_draw.backing(res, false);
			else if (!before && res->pages && render_resolve(r, res))
				render_draw.backing(res, true);
		}
	}
}

static uint32_t region_add(struct render *r, const void *data, uint32_t bytes)
{
	int fd = render_take_fd(r), rc;

	(void)bytes;
	if (fd < 0)
		return 0;
	resolve_all(r, true);
	rc = render_region_add(r, data, fd);
	resolve_all(r, false);
	close(fd);
	return rc < 0 ? UNSPEC : OK;
}

static uint32_t region_remove(struct render *r, const void *data, uint32_t bytes)
{
	const struct wire_region *what = data;

	(void)bytes;
	resolve_all(r, true);
	render_region_remove(r, what->gpa);
	resolve_all(r, false);
	return OK;
}

static uint32_t context_create(struct render *r, const void *data, uint32_t bytes)
{
	const struct wire_context *what = data;
	struct render_context **bucket = &r->contexts[render_bucket(what->context)], *ctx;
	uint32_t reply;

	(void)bytes;
	if (!what->context || render_context_of(r, what->context) || what->name_bytes > sizeof(what->name))
		return BAD_CONTEXT;
	ctx = calloc(1, sizeof(*ctx));
	if (!ctx)
		return NO_MEMORY;
	reply = render_draw.context_create(what);
	if (reply != OK) {
		free(ctx);
		return reply;
	}
	ctx->id = what->context;
	ctx->init = what->init;
	ctx->next = *bucket;
	*bucket = ctx;
	return OK;
}

static uint32_t context_destroy(struct render *r, const void *data, uint32_t bytes)
{
	const struct wire_context *what = data;
	struct render_context **at = &r->contexts[render_bucket(what->context)], *ctx;

	(void)bytes;
	while (*at && (*at)->id != what->context)
		at = &(*at)->next;
	ctx = *at;
	if (!ctx)
		return BAD_CONTEXT;
	*at = ctx->next;
	free(ctx);
	render_draw.context_destroy(what->context);
	render_rings_gone(what->context);
	return OK;
}

static uint32_t attach(struct render *r, const void *data, bool on)
{
	const struct wire_context *what = data;
	const struct render_resource *res = resource_of(r, what->resource);

	if (!render_context_of(r, what->context))
		return BAD_CONTEXT;
	if (!res)
		return BAD_RESOURCE;
	render_draw.attach(what->context, res, on);
	return OK;
}

static uint32_t context_attach(struct render *r, const void *data, uint32_t bytes)
{
	(void)bytes;
	return attach(r, data, true);
}

static uint32_t context_detach(struct render *r, const void *data, uint32_t bytes)
{
	(void)bytes;
	return attach(r, data, false);
}

static uint32_t resource_create(struct render *r, const void *data, uint32_t bytes)
{
	const struct wire_resource *what = data;
	struct render_resource **bucket = &r->resources[render_bucket(what->id)], *res;
	uint32_t reply;

	(void)bytes;
	if (!what->id || resource_of(r, what->id))
		return BAD_RESOURCE;
	res = calloc(1, sizeof(*res));
	if (!res)
		return NO_MEMORY;
	res->what = *what;
	reply = render_draw.resource_create(res);
	if (reply != OK) {
		free(res);
		return reply;
	}
	res->next = *bucket;
	*bucket = res;
	return OK;
}

static uint32_t blob_create(struct render *r, const void *data, uint32_t bytes)
{
	const struct wire_blob *what = data;
	struct render_resource **bucket = &r->resources[render_bucket(what->resource)], *res;
	const struct render_context *ctx = render_context_of(r, what->context);
	uint32_t reply;

	(void)bytes;
	if (!what->resource || resource_of(r, what->resource))
		return BAD_RESOURCE;
	if (!ctx)
		return BAD_CONTEXT;
	if (!render_draw.blob_create || !what->bytes)
		return BAD_PARAMETER;
	res = calloc(1, sizeof(*res));
	if (!res)
		return NO_MEMORY;
	res->what.id = what->resource;
	res->blob_bytes = what->bytes;
	reply = render_draw.blob_create(res, what, ctx);
	if (reply != OK) {
		free(res);
		return reply;
	}
	res->next = *bucket;
	*bucket = res;
	return OK;
}

static uint32_t resource_unref(struct render *r, const void *data, uint32_t bytes)
{
	const struct wire_use *use = data;
	struct render_resource **at = &r->resources[render_bucket(use->resource)], *res;

	(void)bytes;
	while (*at && (*at)->what.id != use->resource)
		at = &(*at)->next;
	res = *at;
	if (!res)
		return BAD_RESOURCE;
	*at = res->next;
	drop_backing(res);
	drop_image(res);
	render_draw.resource_unref(res);
	free(res);
	return OK;
}

static uint32_t backing_attach(struct render *r, const void *data, uint32_t bytes)
{
	const struct wire_use *use = data;
	struct render_resource *res = resource_of(r, use->resource);
	uint32_t nr = (uint32_t)((bytes - sizeof(*use)) / sizeof(struct wire_page));
	uint32_t reply;

	if (!res)
		return BAD_RESOURCE;
	if (res->pages || !nr)
		return UNSPEC;
	res->pages = malloc(nr * sizeof(*res->pages));
	if (!res->pages)
		return NO_MEMORY;
	memcpy(res->pages, use + 1, nr * sizeof(*res->pages));
	res->nr_pages = nr;
	reply = render_resolve(r, res) ? render_draw.backing(res, true) : BAD_PARAMETER;
	if (reply != OK) {
		free(res->iov);
		res->iov = NULL;
		drop_backing(res);
	}
	return reply;
}

static uint32_t backing_detach(struct render *r, const void *data, uint32_t bytes)
{
	const struct wire_use *use = data;
	struct render_resource *res = resource_of(r, use->resource);

	(void)bytes;
	if (!res)
		return BAD_RESOURCE;
	if (!res->pages)
		return UNSPEC;
	drop_backing(res);
	return OK;
}

static uint32_t transfer(struct render *r, const void *data, bool to_host)
{
	const struct wire_transfer *t = data;
	struct render_resource *res = resource_of(r, t->resource);

	if (!res)
		return BAD_RESOURCE;
	if (t->context && !render_context_of(r, t->context))
		return BAD_CONTEXT;
	if (!res->iov)
		return UNSPEC;
	return render_draw.transfer(res, t, to_host);
}

static uint32_t to_host(struct render *r, const void *data, uint32_t bytes)
{
	(void)bytes;
	return transfer(r, data, true);
}

static uint32_t from_host(struct render *r, const void *data, uint32_t bytes)
{
	(void)bytes;
	return transfer(r, data, false);
}

static uint32_t submit(struct render *r, const void *data, uint32_t bytes)
{
	const struct wire_use *use = data;

	if (!render_context_of(r, use->context))
		return BAD_CONTEXT;
	return render_draw.submit(use->context, (uint32_t *)(uintptr_t)(use + 1), (bytes - (uint32_t)sizeof(*use)) / 4);
}

static uint32_t image(struct render *r, const void *data, uint32_t bytes)
{
	const struct wire_image *what = data;
	struct render_resource *res = resource_of(r, what->resource);
	int fd = render_take_fd(r);
	struct stat st;
	void *base;

	(void)bytes;
	if (fd < 0)
		return 0;
	if (!res || !what->bytes || fstat(fd, &st) < 0 || (uint64_t)st.st_size < what->bytes ||
	    (uint64_t)res->what.width * res->what.height * RENDER_PIXEL > what->bytes) {
		close(fd);
		return BAD_RESOURCE;
	}
	drop_image(res);
	base = mmap(NULL, what->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (base == MAP_FAILED)
		return NO_MEMORY;
	res->image = base;
	res->image_bytes = what->bytes;
	return OK;
}

static uint32_t read_back(struct render *r, const void *data, uint32_t bytes)
{
	const struct wire_transfer *t = data;
	struct render_resource *res = resource_of(r, t->resource);

	(void)bytes;
	if (!res || !res->image)
		return BAD_RESOURCE;
	if (!t->width || !t->height || t->x > res->what.width || t->width > res->what.width - t->x ||
	    t->y > res->what.height || t->height > res->what.height - t->y)
		return BAD_PARAMETER;
	return render_draw.read(res, t);
}

static bool pass(const struct render *r, const struct wire_exported *what, int fd)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct iovec iov = {(void *)(uintptr_t)what, sizeof(*what)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	return sendmsg(r->exports, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)sizeof(*what);
}

static uint32_t export(struct render *r, const void *data, uint32_t bytes)
{
	const struct wire_use *use = data;
	struct render_resource *res = resource_of(r, use->resource);
	struct wire_exported what = {.resource = use->resource};
	bool passed;
	int fd;

	(void)bytes;
	if (!res)
		return BAD_RESOURCE;
	fd = render_draw.export(res, &what);
	if (fd < 0)
		return UNSPEC;
	passed = pass(r, &what, fd);
	close(fd);
	return passed ? OK : NO_MEMORY;
}

static uint32_t nothing(struct render *r, const void *data, uint32_t bytes)
{
	(void)r;
	(void)data;
	(void)bytes;
	return OK;
}

static const struct {
	uint32_t (*run)(struct render *r, const void *data, uint32_t bytes);
	uint32_t bytes;
	bool more;		/* data follows */
} commands[WIRE_OPS] = {
	[WIRE_NOTHING] = {nothing, 0, false},
	[WIRE_REGION_ADD] = {region_add, sizeof(struct wire_region), false},
	[WIRE_REGION_REMOVE] = {region_remove, sizeof(struct wire_region), false},
	[WIRE_CONTEXT_CREATE] = {context_create, sizeof(struct wire_context), false},
	[WIRE_CONTEXT_DESTROY] = {context_destroy, sizeof(struct wire_context), false},
	[WIRE_CONTEXT_ATTACH] = {context_attach, sizeof(struct wire_context), false},
	[WIRE_CONTEXT_DETACH] = {context_detach, sizeof(struct wire_context), false},
	[WIRE_RESOURCE_CREATE] = {resource_create, sizeof(struct wire_resource), false},
	[WIRE_RESOURCE_UNREF] = {resource_unref, sizeof(struct wire_use), false},
	[WIRE_BACKING_ATTACH] = {backing_attach, sizeof(struct wire_use), true},
	[WIRE_BACKING_DETACH] = {backing_detach, sizeof(struct wire_use), false},
	[WIRE_TO_HOST] = {to_host, sizeof(struct wire_transfer), false},
	[WIRE_FROM_HOST] = {from_host, sizeof(struct wire_transfer), false},
	[WIRE_SUBMIT] = {submit, sizeof(struct wire_use), true},
	[WIRE_IMAGE] = {image, sizeof(struct wire_image), false},
	[WIRE_READ] = {read_back, sizeof(struct wire_transfer), false},
	[WIRE_BLOB_CREATE] = {blob_create, sizeof(struct wire_blob), false},
	[WIRE_EXPORT] = {export, sizeof(struct wire_use), false},
};

uint32_t render_command(struct render *r, uint32_t op, uint8_t *data, uint32_t bytes)
{
	if (op >= WIRE_OPS || !commands[op].run || (commands[op].more ? bytes < commands[op].bytes : bytes != commands[op].bytes))
		return 0;
	return commands[op].run(r, data, bytes);
}
