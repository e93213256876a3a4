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
	int server;		/* to the process that does Vulkan, render_fork_apart()'s; -1: there is none */
	uint32_t software;	/* draw with the CPU */
	uint32_t opengl;
};

/* All of it, until the socket's other end is closed. 0 or -errno; @words gets what is wrong, one line. */
int render_run(const struct render_options *options, char *words, uint32_t bytes);
/* What this renderer is, one line. */
const char *render_about(void);
/* Bytes that tell a guest of its Vulkan; 0: the library that is there has none. */
uint32_t render_vulkan(void);
/*
 * As fork(), of a process with one thread: a child that sees itself and its own children only, and takes them with it when
 * it ends. Without privileges it is a user namespace's. Its pid, 0 in the child, or -errno.
 */
int render_fork_apart(void);
/* cffi:end */

#endif
