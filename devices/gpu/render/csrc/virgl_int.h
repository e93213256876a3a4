/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virgl_int.h - libvirglrenderer for the renderer that draws with it. Its interface for Venus is called unstable up to 0.10,
 * whose headers hide it, and has stayed the same since.
 */
#ifndef GPU_RENDER_VIRGL_INT_H
#define GPU_RENDER_VIRGL_INT_H

#define VIRGL_RENDERER_UNSTABLE_APIS 1
#include <virglrenderer.h>

#include "devices/gpu/render/csrc/render_int.h"

/* venus.c: as render_draw's. */
uint32_t venus_bytes(void);
bool venus_fence(uint32_t context, uint32_t ring, uint32_t slot);
uint32_t venus_blob(struct render_resource *res, const struct wire_blob *what, const struct render_context *of);
int venus_export(struct render_resource *res, struct wire_exported *out);
/* Let @callbacks have it; what virgl_renderer_init() is told more. @server becomes the library's. */
int venus_begin(struct virgl_renderer_callbacks *callbacks, int server);

#endif
