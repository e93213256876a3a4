// SPDX-License-Identifier: Apache-2.0
/*
 * loop.c - takes commands out of the ring, answers, sleeps when there are none.
 */
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "devices/gpu/render/csrc/render_int.h"

static struct render render;

/* Answers come from a thread that waits for fences, too. */
static pthread_mutex_t answers = PTHREAD_MUTEX_INITIALIZER;

static void tell(struct render *r, uint32_t slot, uint32_t type)
{
	struct wire *w = r->wire;
	struct wire_answer *to = &w->answers[r->answered % WIRE_SLOTS];
	const uint64_t one = 1;

	/* there is room: the display has no more than WIRE_SLOTS under way */
	shm_store32(&to->slot, slot);
	shm_store32(&to->type, type);
	wire_store_release(&w->answered, ++r->answered);
	if (wire_sleeps(&w->display_sleeps) && write(r->answers, &one, sizeof(one)) < 0)
		return;		/* a full counter wakes as well */
}

void render_tell(uint32_t slot, uint32_t type)
{
	pthread_mutex_lock(&answers);
	tell(&render, slot, type);
	pthread_mutex_unlock(&answers);
}

void render_fenced(uint32_t number)
{
	struct render *r = &render;

	pthread_mutex_lock(&answers);
	while (r->fences_over != r->fences_made && (int32_t)(number - (r->fences_over + 1)) >= 0) {
		const struct wire_answer *fence = &r->fences[++r->fences_over % WIRE_SLOTS];

		tell(r, fence->slot, fence->type);
	}
	pthread_mutex_unlock(&answers);
}

bool render_no_fences_before(uint32_t number)
{
	bool none;

	pthread_mutex_lock(&answers);
	none = render.fences_over + 1 == number;
	pthread_mutex_unlock(&answers);
	return none;
}

/* One more: its number, 0: too many. */
static uint32_t fence_made(struct render *r, uint32_t slot, uint32_t type)
{
	uint32_t number = 0;

	pthread_mutex_lock(&answers);
	if (r->fences_made - r->fences_over < WIRE_SLOTS) {
		number = ++r->fences_made;
		r->fences[number % WIRE_SLOTS] = (struct wire_answer){slot, type};
	}
	pthread_mutex_unlock(&answers);
	return number;
}

/* The context whose ring the fence of @c is of; NULL: it is not of one. */
static const struct render_context *ringed(const struct render *r, const struct wire_command *c)
{
	const struct wire_use *use = (const void *)r->copy;
	const struct render_context *ctx;

	if (!render_draw.ringed || !(c->flags & WIRE_RING) || c->op != WIRE_SUBMIT)
		return NULL;
	ctx = render_context_of(r, use->context);
	return ctx && ctx->init == render_draw.ringed ? ctx : NULL;
}

static int answer(struct render *r, const struct wire_command *c, uint32_t type)
{
	const struct render_context *ctx;
	uint32_t slot = (uint32_t)c->slot, number;

	if (c->slot == WIRE_NO_SLOT)
		return 0;
	if (!(c->flags & WIRE_FENCE)) {
		render_tell(slot, type);
		return 0;
	}
	ctx = ringed(r, c);
	if (ctx) {
		render_ring_begin(ctx->id, c->flags >> WIRE_RING_SHIFT, slot, type);
		return 0;
	}
	number = fence_made(r, slot, type);
	if (!number)
		return -EPROTO;
	render_draw.fence(number);
	return 0;
}

/* The next command: 1 done, 0 there is none, or -errno: the display does not keep to wire.h. */
static int step(struct render *r)
{
	uint32_t head = wire_load_acquire(&r->wire->head), ready = head - r->tail;
	uint32_t at = r->tail % WIRE_COMMANDS;
	struct wire_command c;
	uint32_t type;
	int rc;

	if (!ready)
		return 0;
	if (ready > WIRE_COMMANDS || ready < sizeof(c) || WIRE_COMMANDS - at < sizeof(c))
		return -EPROTO;
	shm_copy_in(&c, &r->wire->commands[at], sizeof(c));
	if (c.bytes < sizeof(c) || c.bytes % WIRE_ALIGN || c.bytes > ready || c.bytes > WIRE_COMMANDS - at)
		return -EPROTO;
	if (c.op != WIRE_PAD) {
		if (c.data > c.bytes - sizeof(c) || c.data > WIRE_DATA_MAX)
			return -EPROTO;
		shm_copy_in(r->copy, &r->wire->commands[at + sizeof(c)], c.data);
		type = render_command(r, c.op, r->copy, c.data);
		if (!type)
			return -EPROTO;
		rc = answer(r, &c, type);
		if (rc < 0)
			return rc;
	}
	r->tail += c.bytes;
	wire_store_release(&r->wire->tail, r->tail);
	return 1;
}

/* Until something comes: 0, or -EPIPE: the display is gone. */
static int sleep_until(struct render *r)
{
	struct pollfd fds[3] = {
		{.fd = r->socket, .events = POLLRDHUP},
		{.fd = r->commands, .events = POLLIN},
		{.fd = render_draw.look_fd(), .events = POLLIN},
	};
	uint64_t count;
	int n = 0;

	shm_store32(&r->wire->renderer_sleeps, 1);
	shm_mb();
	if (wire_load_acquire(&r->wire->head) == r->tail)
		n = poll(fds, 3, -1);
	shm_store32(&r->wire->renderer_sleeps, 0);
	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	if (n > 0 && fds[0].revents & (POLLHUP | POLLRDHUP | POLLERR))
		return -EPIPE;
	if (n > 0 && fds[2].revents)
		render_draw.look();
	if (n > 0 && fds[1].revents && read(r->commands, &count, sizeof(count)) < 0 && errno != EAGAIN)
		return -errno;
	return 0;
}

static int serve(struct render *r)
{
	for (;;) {
		int rc = 1, done;

		for (done = 0; done < 64 && rc > 0; done++)
			rc = step(r);
		if (rc < 0)
			return rc;
		if (rc > 0)
			render_draw.look();
		if (rc == 0) {
			rc = sleep_until(r);
			if (rc < 0)
				return rc == -EPIPE ? 0 : rc;
		}
	}
}

static int begin(struct render *r, const struct render_options *options, struct wire_ready *ready, const char **words)
{
	r->commands = options->commands;
	r->answers = options->answers;
	r->socket = options->socket;
	r->exports = options->exports;
	r->copy = aligned_alloc(64, WIRE_DATA_MAX);
	if (!r->copy)
		return -ENOMEM;
	r->wire = mmap(NULL, sizeof(*r->wire), PROT_READ | PROT_WRITE, MAP_SHARED, options->memory, 0);
	if (r->wire == MAP_FAILED) {
		*words = "mapping the memory that is shared with the display";
		return -errno;
	}
	ready->magic = WIRE_MAGIC;
	return render_draw.init(r, options, ready, words);
}

int render_run(const struct render_options *options, char *words, uint32_t bytes)
{
	struct wire_ready *ready = calloc(1, sizeof(*ready));
	const char *why = "memory";
	int rc = ready ? begin(&render, options, ready, &why) : -ENOMEM;

	if (!rc) {
		why = "telling the display";
		if (send(render.socket, ready, sizeof(*ready), MSG_NOSIGNAL) != (ssize_t)sizeof(*ready))
			rc = -errno;
	}
	free(ready);
	if (!rc) {
		why = "commands of the display";
		rc = serve(&render);
	}
	if (rc)
		snprintf(words, bytes, "%s: %s", why, strerror(-rc));
	return rc;
}

uint32_t render_vulkan(void)
{
	return render_draw.vulkan ? render_draw.vulkan() : 0;
}

const char *render_about(void)
{
	return render_draw.about;
}
