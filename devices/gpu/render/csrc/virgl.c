// SPDX-License-Identifier: Apache-2.0
/*
 * virgl.c - a renderer by libvirglrenderer: OpenGL of the host, on a GPU or by Mesa's software renderer; Vulkan by venus.c.
 *
 * Fences are waited for by a thread of the library, which tells the display itself; what the CPU draws is over before that
 * thread would have been woken, as often as not: so OpenGL is asked first. What the library says of a guest's mistakes goes
 * nowhere but for the first few lines: a guest can make any number of them.
 */
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "devices/gpu/render/csrc/virgl_int.h"

enum { OK = VIRTIO_GPU_RESP_OK_NODATA, UNSPEC = VIRTIO_GPU_RESP_ERR_UNSPEC, BAD_PARAMETER = VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER };

enum {
	LINES = 16,			/* of the library's words */
	LINE_BYTES = 512,
	FENCES_BY_THREAD = 1 << 8,	/* VIRGL_RENDERER_ASYNC_FENCE_CB, which older headers hide */
};

struct virgl_box {
	uint32_t x, y, z, w, h, d;
};

/* of OpenGL */
enum { GPU_COMMANDS_COMPLETE = 0x9117, SYNC_FLUSH = 1, ALREADY_SIGNALED = 0x911a };

static struct {
	void *(*fence)(unsigned int condition, unsigned int flags);
	unsigned int (*wait)(void *sync, unsigned int flags, uint64_t nanoseconds);
	void (*drop)(void *sync);
} gl;

static int node = -1;
static bool started;		/* what it says of itself at its start is of no use */

static void fenced(void *cookie, uint32_t number)
{
	(void)cookie;
	render_fenced(number);
}

static int drm_fd(void *cookie)
{
	(void)cookie;
	return node < 0 ? -1 : dup(node);
}

/* A guest has named its contexts: what it writes is no more than text, on a line of ours. */
static void say(const char *words, va_list args)
{
	static _Atomic unsigned int said;
	char line[LINE_BYTES];
	int n;

	if (!started || said >= LINES)
		return;
	said++;
	n = vsnprintf(line, sizeof(line), words, args);
	if (n >= (int)sizeof(line))
		n = (int)sizeof(line) - 1;
	while (n > 0 && line[n - 1] == '\n')
		n--;
	for (int i = 0; i < n; i++) {
		if (line[i] < ' ' || line[i] > '~')
			line[i] = '?';
	}
	if (n > 0)
		fprintf(stderr, "renderer: %.*s\n", n, line);
}

/* The functions of the OpenGL that the library uses; without them its thread does. */
static void find_gl(void)
{
	void *egl = dlopen("libEGL.so.1", RTLD_LAZY | RTLD_NOLOAD);
	void *(*find)(const char *name) = NULL;

	if (egl)
		*(void **)&find = dlsym(egl, "eglGetProcAddress");
	if (!find)
		return;
	*(void **)&gl.fence = find("glFenceSync");
	*(void **)&gl.wait = find("glClientWaitSync");
	*(void **)&gl.drop = find("glDeleteSync");
	if (!gl.wait || !gl.drop)
		gl.fence = NULL;
}

static void take_capset(struct wire_ready *ready, uint32_t id)
{
	uint32_t version = 0, bytes = 0, at = ready->nr_capsets;

	virgl_renderer_get_cap_set(id, &version, &bytes);
	if (!bytes || bytes > WIRE_CAPSET_BYTES)
		return;
	virgl_renderer_fill_caps(id, version, ready->capsets[at].data);
	ready->capsets[at].id = id;
	ready->capsets[at].version = version;
	ready->capsets[at].bytes = bytes;
	ready->nr_capsets++;
}

static int init(struct render *r, const struct render_options *options, struct wire_ready *ready, const char **words)
{
	static struct virgl_renderer_callbacks callbacks = {.version = 2, .write_fence = fenced, .get_drm_fd = drm_fd};
	bool vulkan = options->server >= 0;
	int flags = VIRGL_RENDERER_THREAD_SYNC | FENCES_BY_THREAD;

	node = options->node;
	flags |= options->opengl ? VIRGL_RENDERER_USE_EGL : VIRGL_RENDERER_NO_VIRGL;
	if (node < 0)
		flags |= VIRGL_RENDERER_USE_SURFACELESS;
	if (vulkan)
		flags |= venus_begin(&callbacks, options->server);
	virgl_set_debug_callback(say);
	if (virgl_renderer_init(r, flags, &callbacks)) {
		*words = options->opengl ? "no OpenGL to be had by EGL; install libegl-mesa0 and libgl1-mesa-dri" :
					   "the library's render server does not answer";
		return -ENODEV;
	}
	if (options->opengl) {
		take_capset(ready, VIRTIO_GPU_CAPSET_VIRGL);
		take_capset(ready, VIRTIO_GPU_CAPSET_VIRGL2);
	}
	if (vulkan)
		take_capset(ready, WIRE_CAPSET_VENUS);
	ready->blobs = vulkan;
	if (options->opengl && node < 0)
		find_gl();
	started = true;
	return 0;
}

static int look_fd(void)
{
	return virgl_renderer_get_poll_fd();
}

/* All that was drawn is there. It does not wait. */
static bool drawn(void)
{
	void *sync = gl.fence ? gl.fence(GPU_COMMANDS_COMPLETE, 0) : NULL;
	bool over = sync && gl.wait(sync, SYNC_FLUSH, 0) == ALREADY_SIGNALED;

	if (sync)
		gl.drop(sync);
	return over;
}

static void fence(uint32_t number)
{
	/* one line of time: the library's context 0 */
	if ((render_no_fences_before(number) && drawn()) || virgl_renderer_create_fence((int)number, 0))
		render_fenced(number);
}

static void look(void)
{
	virgl_renderer_poll();
}

static uint32_t context_create(const struct wire_context *what)
{
	char name[sizeof(what->name) + 1] = {0};

	memcpy(name, what->name, what->name_bytes);
	if (!what->init)
		return virgl_renderer_context_create(what->context, what->name_bytes, name) ? UNSPEC : OK;
	return virgl_renderer_context_create_with_flags(what->context, what->init, what->name_bytes, name) ? UNSPEC : OK;
}

static void context_destroy(uint32_t id)
{
	virgl_renderer_context_destroy(id);
}

static void attach(uint32_t context, const struct render_resource *res, bool on)
{
	if (on)
		virgl_renderer_ctx_attach_resource((int)context, (int)res->what.id);
	else
		virgl_renderer_ctx_detach_resource((int)context, (int)res->what.id);
}

static uint32_t resource_create(struct render_resource *res)
{
	const struct wire_resource *what = &res->what;
	struct virgl_renderer_resource_create_args args = {
		.handle = what->id,
		.target = what->target,
		.format = what->format,
		.bind = what->bind,
		.width = what->width,
		.height = what->height,
		.depth = what->depth,
		.array_size = what->array_size,
		.last_level = what->last_level,
		.nr_samples = what->nr_samples,
		.flags = what->flags,
	};

	return virgl_renderer_resource_create(&args, NULL, 0) ? BAD_PARAMETER : OK;
}

static void resource_unref(struct render_resource *res)
{
	virgl_renderer_resource_unref(res->what.id);
}

static uint32_t backing(struct render_resource *res, bool on)
{
	struct iovec *iov;
	int nr;

	if (on)
		return virgl_renderer_resource_attach_iov((int)res->what.id, res->iov, res->nr_iov) ? UNSPEC : OK;
	virgl_renderer_resource_detach_iov((int)res->what.id, &iov, &nr);
	return OK;
}

static uint32_t transfer(struct render_resource *res, const struct wire_transfer *t, bool to_host)
{
	struct virgl_box box = {t->x, t->y, t->z, t->width, t->height, t->depth};
	int rc = to_host ? virgl_renderer_transfer_write_iov(res->what.id, t->context, (int)t->level, t->stride,
							     t->layer_stride, &box, t->offset, NULL, 0) :
			   virgl_renderer_transfer_read_iov(res->what.id, t->context, t->level, t->stride, t->layer_stride,
							    &box, t->offset, NULL, 0);

	return rc ? BAD_PARAMETER : OK;
}

/* Rows are the guest's: what a resource is made for (Y_0_TOP) is the library's to know. */
static uint32_t read_back(struct render_resource *res, const struct wire_transfer *t)
{
	uint32_t stride = res->what.width * RENDER_PIXEL;
	struct virgl_box box = {t->x, t->y, 0, t->width, t->height, 1};
	struct iovec iov = {res->image, res->image_bytes};
	uint64_t at = (uint64_t)t->y * stride + (uint64_t)t->x * RENDER_PIXEL;

	return virgl_renderer_transfer_read_iov(res->what.id, 0, 0, stride, 0, &box, at, &iov, 1) ? UNSPEC : OK;
}

static uint32_t submit(uint32_t context, uint32_t *words, uint32_t nr)
{
	return virgl_renderer_submit_cmd(words, (int)context, (int)nr) ? BAD_PARAMETER : OK;
}

/* Takes a GPU whose driver exports textures. */
static int export(struct render_resource *res, struct wire_exported *out)
{
#ifdef VIRGL_RENDERER_RESOURCE_INFO_EXT_VERSION
	struct virgl_renderer_resource_info_ext ext = {.version = VIRGL_RENDERER_RESOURCE_INFO_EXT_VERSION};
	struct virgl_renderer_resource_info *info = &ext.base;
	bool found = !virgl_renderer_resource_get_info_ext((int)res->what.id, &ext);
#else
	struct virgl_renderer_resource_info plain = {0}, *info = &plain;
	bool found = !virgl_renderer_resource_get_info((int)res->what.id, info);
#endif
	int fd = -1, stride = 0, offset = 0;

	if (res->blob_bytes)
		return venus_export(res, out);
	if (!found || virgl_renderer_get_fd_for_texture2(info->tex_id, &fd, &stride, &offset))
		return -1;
	out->fourcc = (uint32_t)info->drm_fourcc;
	out->stride = (uint32_t)stride;
	out->offset = (uint32_t)offset;
	out->flags = info->flags;
#ifdef VIRGL_RENDERER_RESOURCE_INFO_EXT_VERSION
	out->modifier = ext.modifiers;
#else
	out->modifier = WIRE_NO_MODIFIER;
#endif
	return fd;
}

const struct render_draw render_draw = {
	.about = "virgl and venus, by libvirglrenderer",
	.vulkan = venus_bytes,
	.init = init,
	.look_fd = look_fd,
	.fence = fence,
	.ringed = WIRE_CAPSET_VENUS,
	.ring_fence = venus_fence,
	.look = look,
	.context_create = context_create,
	.context_destroy = context_destroy,
	.attach = attach,
	.resource_create = resource_create,
	.blob_create = venus_blob,
	.resource_unref = resource_unref,
	.backing = backing,
	.transfer = transfer,
	.read = read_back,
	.submit = submit,
	.export = export,
};
