// SPDX-License-Identifier: Apache-2.0
/*
 * scanout.c - what is shown: which resource, what of it has changed, and how it looks.
 */
#include <unistd.h>

#include "devices/gpu/csrc/gpu_int.h"

/* Where blue, green and red are in a pixel, for each format. */
struct order {
	uint32_t format;
	uint8_t blue, green, red;
};

static const struct order orders[] = {
	{VIRTIO_GPU_FORMAT_B8G8R8A8_UNORM, 0, 1, 2}, {VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM, 0, 1, 2},
	{VIRTIO_GPU_FORMAT_A8R8G8B8_UNORM, 3, 2, 1}, {VIRTIO_GPU_FORMAT_X8R8G8B8_UNORM, 3, 2, 1},
	{VIRTIO_GPU_FORMAT_R8G8B8A8_UNORM, 2, 1, 0}, {VIRTIO_GPU_FORMAT_R8G8B8X8_UNORM, 2, 1, 0},
	{VIRTIO_GPU_FORMAT_A8B8G8R8_UNORM, 1, 2, 3}, {VIRTIO_GPU_FORMAT_X8B8G8R8_UNORM, 1, 2, 3},
};

static const struct order *order_of(uint32_t format)
{
	for (size_t i = 0; i < sizeof(orders) / sizeof(orders[0]); i++) {
		if (orders[i].format == format)
			return &orders[i];
	}
	return NULL;
}

bool gpu_format_known(uint32_t format)
{
	return order_of(format) != NULL;
}

bool gpu_format_plain(uint32_t format)
{
	return format == VIRTIO_GPU_FORMAT_B8G8R8A8_UNORM || format == VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM;
}

/* --- what is shown ---------------------------------------------------------------------------------------------- */

/* Somebody who waits is told, once. */
void gpu_changed(struct gpu *gpu)
{
	const uint64_t one = 1;

	if (atomic_load_explicit(&gpu->watched, memory_order_relaxed) && atomic_exchange(&gpu->watched, false) &&
	    gpu->watcher >= 0 && write(gpu->watcher, &one, sizeof(one)) < 0)
		return;	/* a full counter wakes as well */
}

void gpu_rect_join(struct gpu_rect *to, const struct gpu_rect *more)
{
	uint32_t x = more->x, y = more->y, right = x + more->width, bottom = y + more->height;

	if (to->width) {
		right = right > to->x + to->width ? right : to->x + to->width;
		bottom = bottom > to->y + to->height ? bottom : to->y + to->height;
		x = x < to->x ? x : to->x;
		y = y < to->y ? y : to->y;
	}
	*to = (struct gpu_rect){x, y, right - x, bottom - y};
}

void gpu_scanout_off(struct gpu *gpu, uint32_t scanout)
{
	struct gpu_scanout *s = &gpu->scanouts[scanout];

	if (!s->resource)
		return;
	s->resource->shown &= ~(1u << scanout);
	s->resource = NULL;
	s->rect = (struct gpu_rect){0};
	s->damage = (struct gpu_rect){0};
	s->flushes++;
	gpu_changed(gpu);
}

void gpu_scanout_show(struct gpu *gpu, uint32_t scanout, struct gpu_resource *res, const struct virtio_gpu_rect *rect)
{
	struct gpu_scanout *s = &gpu->scanouts[scanout];

	if (s->resource)
		s->resource->shown &= ~(1u << scanout);
	s->resource = res;
	res->shown |= 1u << scanout;
	s->rect = (struct gpu_rect){rect->x, rect->y, rect->width, rect->height};
	s->damage = (struct gpu_rect){0, 0, rect->width, rect->height};
	s->flushes++;
	gpu_changed(gpu);
}

void gpu_flushed(struct gpu *gpu, struct gpu_resource *res, const struct gpu_rect *rect, bool counted)
{
	uint32_t shown = res->shown;

	while (shown) {
		struct gpu_scanout *s = &gpu->scanouts[__builtin_ctz(shown)];
		const struct gpu_rect *r = &s->rect;
		uint32_t left = rect->x > r->x ? rect->x : r->x, top = rect->y > r->y ? rect->y : r->y;
		uint32_t right = rect->x + rect->width, bottom = rect->y + rect->height;

		shown &= shown - 1;
		right = right < r->x + r->width ? right : r->x + r->width;
		bottom = bottom < r->y + r->height ? bottom : r->y + r->height;
		if (left >= right || top >= bottom)
			continue;
		gpu_rect_join(&s->damage, &(struct gpu_rect){left - r->x, top - r->y, right - left, bottom - top});
		s->flushes += counted;
	}
	if (res->shown)
		gpu_changed(gpu);
}

/* --- for whoever looks ------------------------------------------------------------------------------------------ */

void gpu_set_mode(struct gpu *gpu, uint32_t scanout, const struct gpu_mode *mode)
{
	gpu->scanouts[scanout].mode = *mode;
}

void gpu_picture(const struct gpu *gpu, uint32_t scanout, struct gpu_picture *out)
{
	const struct gpu_scanout *s = &gpu->scanouts[scanout];

	*out = (struct gpu_picture){
		.width = s->rect.width,
		.height = s->rect.height,
		.flushes = s->flushes,
		.damage = s->damage,
		.cursor_x = s->cursor.x,
		.cursor_y = s->cursor.y,
		.cursor_shown = s->cursor.shown,
		.cursor_hot_x = s->cursor.hot_x,
		.cursor_hot_y = s->cursor.hot_y,
		.cursor_changes = s->cursor.changes,
		.cursor_shapes = s->cursor.shapes,
	};
}

void gpu_take_damage(struct gpu *gpu, uint32_t scanout)
{
	gpu->scanouts[scanout].damage = (struct gpu_rect){0};
}

/* @n pixels at @at to blue, green, red, 255. */
static void to_bgrx(uint8_t *at, uint32_t n, const struct order *o)
{
	for (uint32_t i = 0; i < n; i++, at += GPU_PIXEL) {
		uint8_t blue = at[o->blue], green = at[o->green], red = at[o->red];

		at[0] = blue;
		at[1] = green;
		at[2] = red;
		at[3] = 255;
	}
}

static uint8_t blend(uint8_t over, uint8_t under, uint8_t alpha)
{
	uint32_t sum = over + under * (255u - alpha) / 255u;	/* colours come multiplied by alpha */

	return (uint8_t)(sum > 255 ? 255 : sum);
}

/* The part of the cursor that lies in @rect. */
static void draw_cursor(const struct gpu_scanout *s, const struct gpu_rect *rect, uint8_t *to, uint64_t stride)
{
	for (int64_t row = 0; row < GPU_CURSOR_SIDE; row++) {
		int64_t y = (int64_t)s->cursor.y + row - rect->y;

		if (y < 0 || y >= rect->height)
			continue;
		for (int64_t column = 0; column < GPU_CURSOR_SIDE; column++) {
			int64_t x = (int64_t)s->cursor.x + column - rect->x;
			const uint8_t *from = &s->cursor.image[(row * GPU_CURSOR_SIDE + column) * GPU_PIXEL];
			uint8_t *at;

			if (x < 0 || x >= rect->width || !from[3])
				continue;
			at = to + (uint64_t)y * stride + (uint64_t)x * GPU_PIXEL;
			for (int i = 0; i < 3; i++)
				at[i] = blend(from[i], at[i], from[3]);
		}
	}
}

int gpu_read(struct gpu *gpu, uint32_t scanout, const struct gpu_rect *rect, uint8_t *to, uint64_t stride, int cursor)
{
	struct gpu_scanout *s = &gpu->scanouts[scanout];
	const struct gpu_resource *res = s->resource;
	const struct virtio_gpu_rect want = {rect->x, rect->y, rect->width, rect->height};
	const struct order *o;
	uint64_t row_bytes = (uint64_t)rect->width * GPU_PIXEL;

	if (!res || !gpu_rect_inside(&want, s->rect.width, s->rect.height) || stride < row_bytes)
		return -EINVAL;
	o = order_of(s->format);
	for (uint32_t y = 0; y < rect->height; y++) {
		uint64_t from = s->offset + (uint64_t)(s->rect.y + rect->y + y) * s->stride +
				(uint64_t)(s->rect.x + rect->x) * GPU_PIXEL;
		uint8_t *row = to + y * stride;

		if (res->image)
			memcpy(row, res->image + from, row_bytes);
		else if (!gpu_backing_copy(gpu, res, from, row, row_bytes))
			return -EFAULT;
		to_bgrx(row, rect->width, o);
	}
	if (cursor && s->cursor.shown)
		draw_cursor(s, rect, to, stride);
	return 0;
}

void gpu_read_cursor(const struct gpu *gpu, uint32_t scanout, uint8_t *to)
{
	memcpy(to, gpu->scanouts[scanout].cursor.image, sizeof(gpu->scanouts[scanout].cursor.image));
}
