// SPDX-License-Identifier: Apache-2.0
/*
 * shot.c - pixels on their way to QEMU's display socket: a header and rows, sent from where they lie.
 */
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "devices/gpu/csrc/gpu_int.h"

enum {
	UPDATE = 8,		/* VHOST_USER_GPU_UPDATE */
	HEADER = 12,		/* request, flags, bytes that follow */
	PIECES = 256,		/* rows of one system call */
};

struct gpu_shot {
	uint32_t head[8];	/* header; scanout, x, y, width, height */
	uint8_t *image;		/* held; a copy is nobody else's */
	const uint8_t *from;	/* the first row */
	size_t stride, row;	/* bytes */
	uint32_t rows;
	size_t sent;		/* bytes, header included */
};

static bool point(struct gpu *gpu, struct gpu_shot *shot, uint32_t scanout, const struct gpu_rect *rect)
{
	const struct gpu_scanout *s = &gpu->scanouts[scanout];
	const struct virtio_gpu_rect want = {rect->x, rect->y, rect->width, rect->height};

	if (!s->resource || !gpu_rect_inside(&want, s->rect.width, s->rect.height))
		return false;
	shot->row = (size_t)rect->width * GPU_PIXEL;
	shot->rows = rect->height;
	if (s->resource->image && gpu_format_plain(s->format)) {
		shot->image = gpu_image_hold(s->resource->image);
		shot->stride = s->stride;
		shot->from = shot->image + s->offset + (size_t)(s->rect.y + rect->y) * s->stride +
			     (size_t)(s->rect.x + rect->x) * GPU_PIXEL;
	} else {
		shot->image = gpu_image_new(shot->row * shot->rows);
		if (!shot->image || gpu_read(gpu, scanout, rect, shot->image, shot->row, 0) < 0)
			return false;
		shot->stride = shot->row;
		shot->from = shot->image;
	}
	if (shot->stride == shot->row) {	/* one piece */
		shot->row *= shot->rows;
		shot->rows = 1;
	}
	return true;
}

struct gpu_shot *gpu_shot_new(struct gpu *gpu, uint32_t scanout, const struct gpu_rect *rect)
{
	struct gpu_shot *shot = calloc(1, sizeof(*shot));
	const uint64_t bytes = (uint64_t)rect->width * rect->height * GPU_PIXEL;

	if (!shot)
		return NULL;
	if (bytes > INT32_MAX || !point(gpu, shot, scanout, rect)) {
		gpu_shot_free(shot);
		return NULL;
	}
	shot->head[0] = UPDATE;
	shot->head[2] = (uint32_t)(sizeof(shot->head) - HEADER + bytes);
	shot->head[3] = scanout;
	memcpy(&shot->head[4], rect, sizeof(*rect));
	return shot;
}

void gpu_shot_free(struct gpu_shot *shot)
{
	gpu_image_drop(shot->image);
	free(shot);
}

/* What is left, as far as @iov holds it. Returns how many pieces. */
static uint32_t pieces_of(struct gpu_shot *shot, struct iovec *iov)
{
	uint32_t n = 0;
	size_t at = shot->sent, row, skip;

	if (at < sizeof(shot->head)) {
		iov[n++] = (struct iovec){(uint8_t *)shot->head + at, sizeof(shot->head) - at};
		at = sizeof(shot->head);
	}
	row = (at - sizeof(shot->head)) / shot->row;
	skip = (at - sizeof(shot->head)) % shot->row;
	for (; n < PIECES && row < shot->rows; row++, skip = 0)
		iov[n++] = (struct iovec){(uint8_t *)shot->from + row * shot->stride + skip, shot->row - skip};
	return n;
}

/* 0: there is room. */
static int wait_for_room(int fd, int stop)
{
	struct pollfd fds[2] = {{.fd = fd, .events = POLLOUT}, {.fd = stop, .events = POLLIN}};

	if (stop < 0)
		return -EAGAIN;
	if (poll(fds, 2, -1) < 0)
		return errno == EINTR ? 0 : -errno;
	return fds[1].revents ? -ECANCELED : 0;
}

int gpu_shot_send(struct gpu_shot *shot, int fd, int stop)
{
	const size_t all = sizeof(shot->head) + shot->row * shot->rows;
	struct iovec iov[PIECES];

	while (shot->sent < all) {
		struct msghdr message = {.msg_iov = iov, .msg_iovlen = pieces_of(shot, iov)};
		ssize_t n = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
		int rc = 0;

		if (n >= 0)
			shot->sent += (size_t)n;
		else if (errno == EAGAIN)
			rc = wait_for_room(fd, stop);
		else if (errno != EINTR)
			rc = -EPIPE;
		if (rc < 0)
			return rc;
	}
	return 0;
}
