// SPDX-License-Identifier: Apache-2.0
/*
 * surfaceless.c - preloaded to QEMU's contrib vhost-user-gpu: it asks virglrenderer for an OpenGL of the desktop or of a
 * render node, and ends on a machine that has neither. Here it gets one without surfaces, as `vhost gpu` does.
 */
#define _GNU_SOURCE
#include <dlfcn.h>

enum { USE_SURFACELESS = 1 << 3 };

int virgl_renderer_init(void *cookie, int flags, void *callbacks);

int virgl_renderer_init(void *cookie, int flags, void *callbacks)
{
	int (*init)(void *, int, void *);

	*(void **)&init = dlsym(RTLD_NEXT, "virgl_renderer_init");
	return init ? init(cookie, flags | USE_SURFACELESS, callbacks) : -1;
}
