// SPDX-License-Identifier: Apache-2.0
/*
 * onemode.c - preloaded to glmark2 on a display: there is one mode, 800x600, for which it knows the pixels of its scenes.
 * A line more until it has made its window: it takes one of the size that it asks for as made already.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <gbm.h>
#include <stdlib.h>
#include <xf86drmMode.h>

enum { WIDTH = 800, HEIGHT = 600 };

static drmModeModeInfo *mode;

drmModeConnectorPtr drmModeGetConnector(int fd, uint32_t id)
{
	drmModeConnectorPtr (*get)(int, uint32_t), connector;

	*(void **)&get = dlsym(RTLD_NEXT, "drmModeGetConnector");
	connector = get(fd, id);
	for (int i = 0; connector && i < connector->count_modes; i++) {
		if (connector->modes[i].hdisplay != WIDTH || connector->modes[i].vdisplay != HEIGHT)
			continue;
		mode = &connector->modes[0];
		*mode = connector->modes[i];
		mode->vdisplay++;
		connector->count_modes = 1;
	}
	return connector;
}

struct gbm_surface *gbm_surface_create(struct gbm_device *gbm, uint32_t width, uint32_t height, uint32_t format, uint32_t flags)
{
	struct gbm_surface *(*create)(struct gbm_device *, uint32_t, uint32_t, uint32_t, uint32_t);

	*(void **)&create = dlsym(RTLD_NEXT, "gbm_surface_create");
	if (mode)
		mode->vdisplay = HEIGHT;
	return create(gbm, width, height, format, flags);
}
