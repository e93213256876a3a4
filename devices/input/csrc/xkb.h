/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xkb.h - what the keys of a keyboard layout write, as libxkbcommon knows it.
 */
#ifndef INPUT_XKB_H
#define INPUT_XKB_H

#include <stdint.h>

/* cffi:begin */
enum {
	STROKE_SHIFT = 1,
	STROKE_ALT_GR = 2,
};

struct stroke {
	uint32_t code;		/* Linux's number of the key */
	uint32_t held;		/* STROKE_ bits: what is held meanwhile */
	uint32_t keysym;	/* what it writes, as X11 numbers it */
	uint32_t text;		/* the same, Unicode; 0: none */
	uint32_t alias;		/* the keysym that X11 prefers for @text */
};

/*
 * Fill in what the keys of a layout (and its variant, "": none) write without and with Shift and AltGr.
 *
 * The number that there are, of which @max at most are filled in; -1: there is no such layout, or no data of any.
 */
int32_t xkb_strokes(const char *layout, const char *variant, struct stroke *out, uint32_t max);
/* cffi:end */

#endif
