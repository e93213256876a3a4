// SPDX-License-Identifier: Apache-2.0
/*
 * load_display.c - what QEMU does at the other end of the display socket: answers, and takes pixels.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "devices/gpu/csrc/load_int.h"

enum {
	GET_PROTOCOL_FEATURES = 1,
	SET_PROTOCOL_FEATURES = 2,
	GET_DISPLAY_INFO = 3,
	SCANOUT = 7,
	UPDATE = 8,
	GET_EDID = 11,
	REPLY = 4,		/* flag */
	HEADER = 12,		/* bytes */
	PIXEL = 4,
	INFO = 24 + 16 * 24,	/* header of a virtio-gpu command, modes */
	SIZE_MAX_BYTES = 1 << 30,
};

int load_display_open(struct load_display *d, int fd, uint32_t width, uint32_t height, bool keep)
{
	d->piece = malloc(LOAD_PIECE);
	d->surface = keep ? calloc(height, (size_t)width * PIXEL) : NULL;
	if (!d->piece || (keep && !d->surface)) {
		load_display_close(d);
		return -ENOMEM;
	}
	d->fd = fd;
	d->keep = keep;
	d->width = width;
	d->height = height;
	return 0;
}

void load_display_close(struct load_display *d)
{
	free(d->piece);
	free(d->surface);
	*d = (struct load_display){ .fd = -1 };
}

/* Answers are small and few: there is always room for them in the socket. */
static int answer(const struct load_display *d, const void *payload, uint32_t size)
{
	uint8_t message[HEADER + INFO];
	const uint32_t head[3] = { d->head[0], REPLY, size };

	memcpy(message, head, HEADER);
	memcpy(message + HEADER, payload, size);
	return send(d->fd, message, HEADER + size, MSG_NOSIGNAL) == (ssize_t)(HEADER + size) ? 0 : -EPIPE;
}

static int tell_modes(const struct load_display *d)
{
	uint8_t info[INFO] = { 0 };
	const uint32_t mode[6] = { 0, 0, d->width, d->height, 1, 0 };

	memcpy(info + 24, mode, sizeof(mode));
	return answer(d, info, sizeof(info));
}

/* The message's header is there and, with them, its first bytes. */
static int begin(struct load_display *d)
{
	const uint32_t *fixed = d->head + 3;
	const uint64_t none = 0;

	switch (d->head[0]) {
	case GET_PROTOCOL_FEATURES:
		return answer(d, &none, sizeof(none));
	case GET_DISPLAY_INFO:
		return tell_modes(d);
	case GET_EDID:
		return -EPROTO;		/* was not offered */
	case SCANOUT:
		if (d->head[2] < 12)
			return -EPROTO;
		d->shown_width = fixed[1];
		d->shown_height = fixed[2];
		return 0;
	case UPDATE:
		if (d->head[2] < LOAD_FIXED || !fixed[3] || fixed[1] > d->shown_width ||
		    fixed[3] > d->shown_width - fixed[1] || fixed[2] > d->shown_height ||
		    fixed[4] > d->shown_height - fixed[2] ||
		    (uint64_t)fixed[3] * fixed[4] * PIXEL != d->head[2] - LOAD_FIXED)
			return -EPROTO;
		d->updates++;
		d->at = 0;
		return 0;
	default:
		return 0;
	}
}

/* @n bytes of pixels of the update under way. */
static void take_pixels(struct load_display *d, const uint8_t *from, size_t n)
{
	const uint32_t *rect = d->head + 4;
	const size_t row = (size_t)rect[2] * PIXEL;

	d->bytes += n;
	if (!d->surface || d->shown_width != d->width || d->shown_height != d->height)
		return;
	while (n) {
		size_t y = d->at / row, x = d->at % row, some = row - x < n ? row - x : n;

		memcpy(d->surface + ((rect[1] + y) * d->width + rect[0]) * PIXEL + x, from, some);
		d->at += some;
		from += some;
		n -= some;
	}
}

/* Bytes of the message's head: what follows is data. */
static size_t head_of(const struct load_display *d)
{
	size_t size = d->have < HEADER ? 0 : d->head[2];

	return HEADER + (size < LOAD_FIXED ? size : LOAD_FIXED);
}

static int feed(struct load_display *d, const uint8_t *from, size_t n)
{
	while (n) {
		size_t some = d->left < n ? d->left : n;
		int rc;

		if (some) {
			if (d->head[0] == UPDATE)
				take_pixels(d, from, some);
			d->left -= some;
			from += some;
			n -= some;
			continue;
		}
		some = head_of(d) - d->have;
		some = some < n ? some : n;
		memcpy((uint8_t *)d->head + d->have, from, some);
		d->have += some;
		from += some;
		n -= some;
		if (d->have < HEADER || d->have < head_of(d))
			continue;
		if (d->head[2] > SIZE_MAX_BYTES)
			return -EPROTO;
		rc = begin(d);
		if (rc < 0)
			return rc;
		d->left = d->head[2] - (head_of(d) - HEADER);
		d->have = 0;
	}
	return 0;
}

int load_display_read(struct load_display *d)
{
	ssize_t n = recv(d->fd, d->piece, LOAD_PIECE, MSG_DONTWAIT);
	int rc;

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -EPIPE;
	if (n == 0)
		return -EPIPE;
	rc = feed(d, d->piece, (size_t)n);
	return rc < 0 ? rc : (int)n;
}
