/* SPDX-License-Identifier: Apache-2.0 */
/* load_int.h - the other end of a display socket, as the load generator has it: a stream, read in pieces. */
#ifndef GPU_LOAD_INT_H
#define GPU_LOAD_INT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { LOAD_FIXED = 20, LOAD_PIECE = 1 << 18 };

struct load_display {
	int fd;			/* -1: none */
	bool keep;
	uint32_t width, height;	/* that the display is to have */
	uint32_t shown_width, shown_height;
	uint8_t *surface;	/* width * height pixels; NULL: not kept */
	uint8_t *piece;		/* LOAD_PIECE bytes */
	/* the message under way: header and, of those that have them, its first LOAD_FIXED bytes */
	uint32_t head[3 + LOAD_FIXED / 4];
	size_t have;		/* bytes of them */
	size_t left;		/* bytes of the payload that are still to come */
	size_t at;		/* bytes of pixels that came */
	uint64_t updates, bytes;
};

int load_display_open(struct load_display *d, int fd, uint32_t width, uint32_t height, bool keep);
void load_display_close(struct load_display *d);
/* Read once. Bytes; 0: there are none now; -EPIPE, -EPROTO. */
int load_display_read(struct load_display *d);

#endif
