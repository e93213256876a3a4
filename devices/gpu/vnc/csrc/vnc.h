/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vnc.h - one VNC client: a thread of its own, in which libvncserver speaks to it. RFC 6143.
 */
#ifndef GPU_VNC_H
#define GPU_VNC_H

#include <stdint.h>

/* cffi:begin */
enum {
	VNC_SIDE_MAX = 16384,		/* pixels */
	VNC_CURSOR_SIDE = 64,		/* pixels */
	VNC_CHALLENGE = 16,		/* bytes */
	VNC_NAME_MAX = 127,		/* bytes */

	/* vnc_state(), bits */
	VNC_ENDED = 1,			/* the client has gone; only vnc_free() is left to do */
	VNC_ASKS = 2,			/* told once: it waits until it hears whether anything is new, by vnc_post() */
	VNC_WAITS = 4,			/* it takes what is new when it is there */
	VNC_ROOM = 8,			/* what was posted has been taken */

	/* kinds of events */
	VNC_KEY = 1,			/* a: keysym, b: whether down, c: its place, an XT scancode; 0: the client does not say */
	VNC_POINTER = 2,		/* a, b: place, pixels; c: buttons */
	VNC_RESIZE = 3,			/* a, b: size that is wanted, pixels */
};

struct vnc;

struct vnc_event {
	uint32_t kind;
	uint32_t a, b, c;
};

struct vnc_cursor {
	uint32_t shown;
	int32_t x, y;			/* of the picture's upper left corner, pixels */
	uint32_t hot_x, hot_y;
	uint8_t image[16384];		/* VNC_CURSOR_SIDE squared: blue, green, red (multiplied by alpha), alpha */
};

/*
 * A client at the end of its handshake (security is done; ClientInit comes next), and a black picture of such a size.
 *
 * @fd: a connected stream socket. Ours, also where this fails.
 * @news: an eventfd, not owned, outlives the client: written when vnc_state() has changed or events have come.
 * @minor: the protocol's minor version, 3, 7 or 8.
 * @resize: the client may ask for another size.
 *
 * NULL: no memory, no thread, or @fd is too large a number for select() (errno: EMFILE).
 */
struct vnc *vnc_new(int fd, int news, uint32_t minor, uint32_t width, uint32_t height, const char *name, int resize);
/* End it. Waits for its thread, which may be encoding: call it from a thread that may wait. */
void vnc_free(struct vnc *vnc);

/* The rest is for one thread, and does not wait. */

uint32_t vnc_state(struct vnc *vnc);
/* Up to @max events, oldest first. */
uint32_t vnc_events(struct vnc *vnc, struct vnc_event *out, uint32_t max);
/* Where to put @width by @height pixels, rows without gaps: blue, green, red, any. With VNC_ROOM. NULL: no memory. */
uint8_t *vnc_room(struct vnc *vnc, uint32_t width, uint32_t height);
/*
 * What is new: the picture is @screen_width by @screen_height, and pixels are in the room for that rectangle of it (@width 0:
 * none). With VNC_ROOM. @cursor: where it has changed, else NULL. Another size takes a rectangle of all of it.
 */
void vnc_post(struct vnc *vnc, uint32_t screen_width, uint32_t screen_height, uint32_t x, uint32_t y, uint32_t width,
	      uint32_t height, const struct vnc_cursor *cursor);

/* What a client that knows @password (8 bytes, padded by zeros) answers to a challenge; it takes the challenge's place. */
void vnc_answer(uint8_t *challenge, const char *password);
/* cffi:end */

#endif
