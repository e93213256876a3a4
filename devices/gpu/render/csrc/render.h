/* SPDX-License-Identifier: Apache-2.0 */
/*
 * render.h - a renderer: does the 3D commands of one guest, in a process of its own.
 */
#ifndef GPU_RENDER_H
#define GPU_RENDER_H

#include <stdint.h>

/* cffi:begin */
struct render_options {
	int memory;		/* wire.h's, a memfd */
	int commands;		/* an eventfd, ours to wait for */
	int answers;		/* an eventfd, the display's */
	int socket;		/* descriptors; its end is the end of the renderer */
	int exports;		/* descriptors for the display */
	int node;		/* the GPU's render node; -1: none */
	uint32_t software;	/* draw with the CPU */
};

/* All of it, until the socket's other end is closed. 0 or -errno; @words gets what is wrong, one line. */
int render_run(const struct render_options *options, char *words, uint32_t bytes);
/* What this renderer is, one line. */
const char *render_about(void);
/* cffi:end */

#endif
