/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kmsio - draws through KMS, without a library: dumb buffers with a pattern that a test can compute. In guests, linked
 * statically. It runs until its input ends, since what is shown is gone with the program that shows it. Each line of
 * input is a command; it is answered by a line "ok ..." or by what was wrong.
 *
 *	show HEAD WIDTH HEIGHT SEED	a mode of connector HEAD with a fresh picture
 *	draw HEAD X Y WIDTH HEIGHT SEED	a rectangle of it, as the pattern of that seed has it
 *	off HEAD			nothing is shown
 *	cursor HEAD X Y SEED		a cursor of 64x64 pixels, all opaque
 *	move HEAD X Y
 *	hide HEAD
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { HEADS = 4, MODES = 64, CURSOR = 64 };

/* The kernel's include/uapi/drm/drm_mode.h, as far as needed: not every system has it. */
struct mode {
	uint32_t clock;
	uint16_t h[5], v[5];
	uint32_t vrefresh, flags, type;
	char name[32];
};
struct card_res {
	uint64_t fbs, crtcs, connectors, encoders;
	uint32_t nr_fbs, nr_crtcs, nr_connectors, nr_encoders, min_width, max_width, min_height, max_height;
};
struct get_connector {
	uint64_t encoders, modes, props, values;
	uint32_t nr_modes, nr_props, nr_encoders, encoder, id, type, type_id, connection, mm_width, mm_height, subpixel, pad;
};
struct crtc {
	uint64_t connectors;
	uint32_t nr_connectors, id, fb, x, y, gamma_size, mode_valid;
	struct mode mode;
};
struct create_dumb { uint32_t height, width, bpp, flags, handle, pitch; uint64_t size; };
struct map_dumb { uint32_t handle, pad; uint64_t offset; };
struct fb { uint32_t id, width, height, pitch, bpp, depth, handle; };
struct cursor2 { uint32_t flags, crtc, x, y, width, height, handle, hot_x, hot_y; };
struct clip { uint16_t x1, y1, x2, y2; };
struct dirty { uint32_t fb, flags, color, nr_clips; uint64_t clips; };

#define DRM(nr, type) _IOWR('d', nr, type)

struct head {
	uint32_t crtc, connector, fb, width, height, pitch;
	uint8_t *pixels;
};

static int card;
static struct head heads[HEADS];
static uint32_t nr_heads;

static int wrong(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	return -1;
}

static uint32_t pixel(uint32_t x, uint32_t y, uint32_t seed)
{
	return ((x * 7 + seed * 31) & 255) | ((y * 5 + seed) & 255) << 8 | ((x ^ y) & 255) << 16 | 255u << 24;
}

static void paint(uint8_t *pixels, uint32_t pitch, const struct clip *c, uint32_t seed)
{
	for (uint32_t y = c->y1; y < c->y2; y++) {
		uint32_t *row = (uint32_t *)(void *)(pixels + (size_t)y * pitch);

		for (uint32_t x = c->x1; x < c->x2; x++)
			row[x] = pixel(x, y, seed);
	}
}

static uint8_t *dumb(uint32_t width, uint32_t height, struct create_dumb *made)
{
	struct map_dumb map = { 0 };
	void *pixels;

	*made = (struct create_dumb){ .width = width, .height = height, .bpp = 32 };
	if (ioctl(card, DRM(0xB2, struct create_dumb), made) < 0)
		return NULL;
	map.handle = made->handle;
	if (ioctl(card, DRM(0xB3, struct map_dumb), &map) < 0)
		return NULL;
	pixels = mmap(NULL, made->size, PROT_READ | PROT_WRITE, MAP_SHARED, card, (off_t)map.offset);
	return pixels == MAP_FAILED ? NULL : pixels;
}

static int find_heads(void)
{
	uint32_t crtcs[HEADS * 4], connectors[HEADS * 4];
	struct card_res res = { 0 };

	if (ioctl(card, DRM(0xA0, struct card_res), &res) < 0)
		return wrong("resources");
	if (res.nr_crtcs > HEADS * 4 || res.nr_connectors > HEADS * 4)
		return wrong("too many heads");
	res.crtcs = (uintptr_t)crtcs;
	res.connectors = (uintptr_t)connectors;
	res.nr_fbs = res.nr_encoders = 0;
	if (ioctl(card, DRM(0xA0, struct card_res), &res) < 0)
		return wrong("resources");
	for (; nr_heads < res.nr_crtcs && nr_heads < res.nr_connectors && nr_heads < HEADS; nr_heads++) {
		heads[nr_heads].crtc = crtcs[nr_heads];
		heads[nr_heads].connector = connectors[nr_heads];
	}
	return 0;
}

static int find_mode(const struct head *h, uint32_t width, uint32_t height, struct mode *found)
{
	static struct mode modes[MODES];
	struct get_connector get = { .id = h->connector };

	if (ioctl(card, DRM(0xA7, struct get_connector), &get) < 0)
		return wrong("connector");
	get.nr_modes = get.nr_modes < MODES ? get.nr_modes : MODES;
	get.modes = (uintptr_t)modes;
	get.nr_props = get.nr_encoders = 0;
	if (ioctl(card, DRM(0xA7, struct get_connector), &get) < 0)
		return wrong("connector");
	for (uint32_t i = 0; i < get.nr_modes && i < MODES; i++) {
		if (modes[i].h[0] == width && modes[i].v[0] == height) {
			*found = modes[i];
			return 0;
		}
	}
	errno = ENOENT;
	return wrong("no such mode");
}

static int show(struct head *h, uint32_t width, uint32_t height, uint32_t seed)
{
	struct crtc set = { .connectors = (uintptr_t)&h->connector, .nr_connectors = 1, .id = h->crtc, .mode_valid = 1 };
	struct fb fb = { .width = width, .height = height, .bpp = 32, .depth = 24 };
	struct create_dumb made;

	if (find_mode(h, width, height, &set.mode) < 0)
		return -1;
	h->pixels = dumb(width, height, &made);
	if (!h->pixels)
		return wrong("dumb buffer");
	paint(h->pixels, made.pitch, &(struct clip){ 0, 0, (uint16_t)width, (uint16_t)height }, seed);
	fb.pitch = made.pitch;
	fb.handle = made.handle;
	if (ioctl(card, DRM(0xAE, struct fb), &fb) < 0)
		return wrong("frame buffer");
	set.fb = fb.id;
	if (ioctl(card, DRM(0xA2, struct crtc), &set) < 0)
		return wrong("mode");
	*h = (struct head){ h->crtc, h->connector, fb.id, width, height, made.pitch, h->pixels };
	return 0;
}

static int draw(const struct head *h, struct clip clip, uint32_t seed)
{
	struct dirty dirty = { .fb = h->fb, .nr_clips = 1, .clips = (uintptr_t)&clip };

	paint(h->pixels, h->pitch, &clip, seed);
	return ioctl(card, DRM(0xB1, struct dirty), &dirty) < 0 ? wrong("dirty") : 0;
}

static int off(const struct head *h)
{
	struct crtc set = { .id = h->crtc };

	return ioctl(card, DRM(0xA2, struct crtc), &set) < 0 ? wrong("off") : 0;
}

static int cursor(const struct head *h, uint32_t flags, uint32_t x, uint32_t y, int64_t seed)
{
	struct cursor2 set = { .flags = flags, .crtc = h->crtc, .x = x, .y = y };
	struct create_dumb made;
	uint8_t *pixels;

	if (seed >= 0) {
		pixels = dumb(CURSOR, CURSOR, &made);
		if (!pixels)
			return wrong("dumb buffer");
		paint(pixels, made.pitch, &(struct clip){ 0, 0, CURSOR, CURSOR }, (uint32_t)seed);
		set.width = set.height = CURSOR;
		set.handle = made.handle;
		set.hot_x = set.hot_y = 2;
	}
	return ioctl(card, DRM(0xBB, struct cursor2), &set) < 0 ? wrong("cursor") : 0;
}

static int run(const char *line)
{
	unsigned int n, a = 0, b = 0, c = 0, d = 0, e = 0;
	char what[16];
	struct head *h;

	if (sscanf(line, "%15s %u %u %u %u %u %u", what, &n, &a, &b, &c, &d, &e) < 2 || n >= nr_heads) {
		errno = EINVAL;
		return wrong("no such command, or head");
	}
	h = &heads[n];
	if (!strcmp(what, "show"))
		return show(h, a, b, c);
	if (!strcmp(what, "draw"))
		return draw(h, (struct clip){ (uint16_t)a, (uint16_t)b, (uint16_t)(a + c), (uint16_t)(b + d) }, e);
	if (!strcmp(what, "off"))
		return off(h);
	if (!strcmp(what, "cursor"))
		return cursor(h, 3, a, b, c);
	if (!strcmp(what, "move"))
		return cursor(h, 2, a, b, -1);
	if (!strcmp(what, "hide"))
		return cursor(h, 1, 0, 0, -1);
	errno = EINVAL;
	return wrong(what);
}

int main(void)
{
	char line[128];

	setvbuf(stdout, NULL, _IOLBF, 0);
	card = open("/dev/dri/card0", O_RDWR | O_CLOEXEC);
	if (card < 0 || find_heads() < 0)
		return 1;
	printf("ok %u heads\n", nr_heads);
	while (fgets(line, sizeof(line), stdin)) {
		if (run(line) == 0)
			printf("ok %s", line);
	}
	return 0;
}
