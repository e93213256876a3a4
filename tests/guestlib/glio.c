// SPDX-License-Identifier: Apache-2.0
/*
 * glio.c - OpenGL in a guest: draws on the display through KMS, and checks what it has drawn.
 *
 *	glio FRAMES	so many frames, each a colour; then, for as long as its input lasts, the picture:
 *			upper half red, lower half blue, a green triangle on the left whose colours come from a shader
 *
 * Dynamically linked with the machine's Mesa: it runs in the host's root, seen by the guest.
 */
#include <EGL/egl.h>
#include <EGL/eglext.h>
#include <GLES2/gl2.h>
#include <fcntl.h>
#include <gbm.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xf86drm.h>
#include <xf86drmMode.h>

static void need(bool ok, const char *what)
{
	if (ok)
		return;
	printf("failed: %s (EGL %#x, GL %#x)\n", what, eglGetError(), glGetError());
	exit(1);
}

struct screen {
	int fd;
	struct gbm_device *gbm;
	struct gbm_surface *surface;
	EGLDisplay display;
	EGLSurface window;
	uint32_t connector, crtc;
	drmModeModeInfo mode;
};

static void find_screen(struct screen *s)
{
	drmModeRes *res;
	drmModeConnector *connector;

	s->fd = open("/dev/dri/card0", O_RDWR | O_CLOEXEC);
	need(s->fd >= 0, "open /dev/dri/card0");
	res = drmModeGetResources(s->fd);
	need(res && res->count_connectors && res->count_crtcs, "resources of KMS");
	connector = drmModeGetConnector(s->fd, res->connectors[0]);
	need(connector && connector->count_modes, "a mode");
	s->connector = connector->connector_id;
	s->crtc = res->crtcs[0];
	s->mode = connector->modes[0];
}

static void open_gl(struct screen *s)
{
	static const EGLint want[] = {EGL_SURFACE_TYPE, EGL_WINDOW_BIT, EGL_RENDERABLE_TYPE, EGL_OPENGL_ES2_BIT, EGL_NONE};
	static const EGLint version[] = {EGL_CONTEXT_CLIENT_VERSION, 2, EGL_NONE};
	EGLConfig configs[64], config = NULL;
	EGLContext context;
	EGLint nr = 0;

	s->gbm = gbm_create_device(s->fd);
	need(s->gbm, "gbm");
	s->display = eglGetPlatformDisplay(EGL_PLATFORM_GBM_KHR, s->gbm, NULL);
	need(eglInitialize(s->display, NULL, NULL), "EGL");
	eglBindAPI(EGL_OPENGL_ES_API);
	need(eglChooseConfig(s->display, want, configs, 64, &nr), "configurations");
	for (EGLint i = 0; i < nr && !config; i++) {
		EGLint format = 0;

		eglGetConfigAttrib(s->display, configs[i], EGL_NATIVE_VISUAL_ID, &format);
		if (format == GBM_FORMAT_XRGB8888)
			config = configs[i];
	}
	need(config, "a configuration of XRGB8888");
	context = eglCreateContext(s->display, config, EGL_NO_CONTEXT, version);
	need(context, "a context");
	s->surface = gbm_surface_create(s->gbm, s->mode.hdisplay, s->mode.vdisplay, GBM_FORMAT_XRGB8888,
					GBM_BO_USE_SCANOUT | GBM_BO_USE_RENDERING);
	need(s->surface, "a surface");
	s->window = eglCreateWindowSurface(s->display, config, (EGLNativeWindowType)s->surface, NULL);
	need(s->window && eglMakeCurrent(s->display, s->window, s->window, context), "a window");
}

static void show(struct screen *s)
{
	struct gbm_bo *bo;
	uint32_t fb = 0;

	need(eglSwapBuffers(s->display, s->window), "swap");
	bo = gbm_surface_lock_front_buffer(s->surface);
	need(bo, "the front buffer");
	need(!drmModeAddFB(s->fd, s->mode.hdisplay, s->mode.vdisplay, 24, 32, gbm_bo_get_stride(bo), gbm_bo_get_handle(bo).u32,
			   &fb), "a framebuffer");
	need(!drmModeSetCrtc(s->fd, s->crtc, fb, 0, 0, &s->connector, 1, &s->mode), "the mode");
	gbm_surface_release_buffer(s->surface, bo);
}

static void check(const struct screen *s, int x, int y, uint32_t rgb)
{
	uint8_t got[4];
	char what[64];

	glReadPixels(x, s->mode.vdisplay - 1 - y, 1, 1, GL_RGBA, GL_UNSIGNED_BYTE, got);
	snprintf(what, sizeof(what), "pixel %d,%d is %02x%02x%02x, not %06x", x, y, got[0], got[1], got[2], rgb);
	need((uint32_t)(got[0] << 16 | got[1] << 8 | got[2]) == rgb, what);
}

static GLuint shader(GLenum type, const char *text)
{
	GLuint it = glCreateShader(type);
	GLint ok = 0;

	glShaderSource(it, 1, &text, NULL);
	glCompileShader(it);
	glGetShaderiv(it, GL_COMPILE_STATUS, &ok);
	need(ok, "a shader");
	return it;
}

static void picture(const struct screen *s)
{
	static const GLfloat corners[] = {-1, -1, -1, 1, 0, 0};
	int width = s->mode.hdisplay, height = s->mode.vdisplay;
	GLuint program = glCreateProgram();

	glViewport(0, 0, width, height);
	glEnable(GL_SCISSOR_TEST);
	glScissor(0, height / 2, width, height / 2);	/* GL's y goes up */
	glClearColor(1, 0, 0, 1);
	glClear(GL_COLOR_BUFFER_BIT);
	glScissor(0, 0, width, height / 2);
	glClearColor(0, 0, 1, 1);
	glClear(GL_COLOR_BUFFER_BIT);
	glDisable(GL_SCISSOR_TEST);
	glAttachShader(program, shader(GL_VERTEX_SHADER, "attribute vec2 at; void main() { gl_Position = vec4(at, 0, 1); }"));
	glAttachShader(program, shader(GL_FRAGMENT_SHADER, "precision mediump float; uniform float strength;"
							   "void main() { gl_FragColor = vec4(0, strength, 0, 1); }"));
	glBindAttribLocation(program, 0, "at");
	glLinkProgram(program);
	glUseProgram(program);
	glUniform1f(glGetUniformLocation(program, "strength"), 1);
	glVertexAttribPointer(0, 2, GL_FLOAT, GL_FALSE, 0, corners);
	glEnableVertexAttribArray(0);
	glDrawArrays(GL_TRIANGLES, 0, 3);
	check(s, width - 2, 2, 0xff0000);
	check(s, width - 2, height - 3, 0x0000ff);
	check(s, 2, height / 2, 0x00ff00);
}

int main(int argc, char **argv)
{
	struct screen s = {0};
	char byte;

	setvbuf(stdout, NULL, _IOLBF, 0);
	find_screen(&s);
	open_gl(&s);
	for (int i = 0; i < (argc > 1 ? atoi(argv[1]) : 0); i++) {
		glClearColor((GLfloat)(i % 256) / 255, (GLfloat)(i * 7 % 256) / 255, 0, 1);
		glClear(GL_COLOR_BUFFER_BIT);
		check(&s, 5, 5, (uint32_t)(i % 256) << 16 | (uint32_t)(i * 7 % 256) << 8);
		show(&s);
	}
	picture(&s);
	show(&s);
	printf("drawn %dx%d by %s\n", s.mode.hdisplay, s.mode.vdisplay, glGetString(GL_RENDERER));
	while (read(0, &byte, 1) > 0)
		continue;
	return 0;
}
