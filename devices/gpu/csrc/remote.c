// SPDX-License-Identifier: Apache-2.0
/*
 * remote.c - commands to the renderer and its answers.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "devices/gpu/csrc/remote.h"

enum { NONE = WIRE_SLOTS };	/* no free slot */

static struct gpu_remote *remote_of(struct ring_source *source)
{
	return (struct gpu_remote *)(void *)source;	/* its first member */
}

/* It does not do what it should: its end comes, and Python hears of it. */
static void disown(struct gpu_remote *rm)
{
	if (rm->socket >= 0)
		shutdown(rm->socket, SHUT_RDWR);
	gpu_3d_lost(rm->gpu);
}

/* --- out ---------------------------------------------------------------------------------------------------------- */

static uint32_t message_bytes(uint32_t data)
{
	return (uint32_t)sizeof(struct wire_command) + wire_round(data);
}

bool gpu_remote_up(struct gpu_remote *rm)
{
	if (rm->state != GPU_3D_UP)
		return false;
	if (rm->head - wire_load_acquire(&rm->wire->tail) <= WIRE_COMMANDS)
		return true;
	disown(rm);
	return false;
}

bool gpu_remote_room(const struct gpu_remote *rm, uint32_t messages, uint64_t bytes)
{
	uint32_t used = rm->head - wire_load_acquire(&rm->wire->tail);
	uint64_t want = messages * (sizeof(struct wire_command) + WIRE_ALIGN) + bytes;

	/* twice: what does not fit before the end begins anew */
	return rm->free != NONE && used <= WIRE_COMMANDS && 2 * want <= WIRE_COMMANDS - used;
}

/* Of the answer to @slot: as soon as it is done, or where a line of time has come that far. */
static uint16_t flags_of(const struct gpu_slot *slot)
{
	uint32_t flags = WIRE_FENCE | WIRE_RING;

	if (!slot || !slot->fenced)
		return 0;
	return (uint16_t)(slot->ring ? flags | (uint32_t)slot->asked.ring_idx << WIRE_RING_SHIFT : WIRE_FENCE);
}

void *gpu_remote_begin(struct gpu_remote *rm, enum wire_op op, uint32_t bytes, struct gpu_slot *slot)
{
	uint32_t at = rm->head % WIRE_COMMANDS, len = message_bytes(bytes);
	struct wire_command c = {.op = WIRE_PAD, .slot = WIRE_NO_SLOT, .bytes = WIRE_COMMANDS - at};

	/* there is always room for a head before the end: everything is a multiple of it, or of what is left then */
	if (len > WIRE_COMMANDS - at || (WIRE_COMMANDS - at - len && WIRE_COMMANDS - at - len < sizeof(c))) {
		shm_copy_out(&rm->wire->commands[at], &c, sizeof(c));
		rm->head += c.bytes;
		at = 0;
	}
	c = (struct wire_command){
		.bytes = len,
		.op = (uint16_t)op,
		.flags = flags_of(slot),
		.slot = slot ? (int32_t)(slot - rm->slots) : WIRE_NO_SLOT,
		.data = bytes,
	};
	shm_copy_out(&rm->wire->commands[at], &c, sizeof(c));
	rm->head += len;
	return &rm->wire->commands[at + sizeof(c)];
}

void gpu_remote_send(struct gpu_remote *rm)
{
	const uint64_t one = 1;

	wire_store_release(&rm->wire->head, rm->head);
	if (wire_sleeps(&rm->wire->renderer_sleeps) && write(rm->commands, &one, sizeof(one)) < 0)
		return;		/* a full counter wakes as well */
}

void gpu_remote_put(struct gpu_remote *rm, enum wire_op op, const void *data, uint32_t bytes, struct gpu_slot *slot)
{
	shm_copy_out(gpu_remote_begin(rm, op, bytes, slot), data, bytes);
	gpu_remote_send(rm);
}

bool gpu_remote_pass(struct gpu_remote *rm, int fd)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	char byte = 0;
	struct iovec iov = {&byte, 1};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	return sendmsg(rm->socket, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) == 1;
}

bool gpu_remote_take(struct gpu_remote *rm, uint32_t resource, struct gpu_exported *to)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct wire_exported what;
	struct iovec iov = {&what, sizeof(what)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	ssize_t n = rm->exports < 0 ? -1 : recvmsg(rm->exports, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	struct cmsghdr *c = n < 0 ? NULL : CMSG_FIRSTHDR(&msg);
	int fd;

	if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || c->cmsg_len != CMSG_LEN(sizeof(int)))
		return false;
	memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	if (n != (ssize_t)sizeof(what) || what.resource != resource || msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
		close(fd);
		return false;
	}
	*to = (struct gpu_exported){GPU_EXPORTED, fd, what};
	return true;
}

/* --- slots -------------------------------------------------------------------------------------------------------- */

struct gpu_slot *gpu_remote_slot(struct gpu_remote *rm, const struct gpu_cmd *cmd, enum gpu_after after)
{
	struct gpu_slot *slot = &rm->slots[rm->free];

	rm->free = slot->next;
	*slot = (struct gpu_slot){.used = true, .after = (uint8_t)after};
	if (cmd) {
		slot->chain = cmd->chain;
		slot->asked = cmd->in.hdr;
		slot->fenced = cmd->in.hdr.flags & VIRTIO_GPU_FLAG_FENCE;
	}
	rm->fences += slot->fenced;
	rm->under_way++;
	return slot;
}

static void release(struct gpu_remote *rm, struct gpu_slot *slot)
{
	rm->fences -= slot->fenced;
	rm->rings -= slot->ring;
	rm->under_way--;
	slot->used = false;
	slot->next = rm->free;
	rm->free = (uint16_t)(slot - rm->slots);
}

static void all_free(struct gpu_remote *rm)
{
	for (uint16_t i = 0; i < WIRE_SLOTS; i++)
		rm->slots[i] = (struct gpu_slot){.next = (uint16_t)(i + 1)};	/* the last one's is NONE */
	rm->free = 0;
}

/* The resource that it was sent for, if it is still that one. */
static struct gpu_resource *resource_of(struct gpu *gpu, const struct gpu_slot *slot)
{
	struct gpu_resource *res = gpu_resource_find(gpu, slot->id);

	return res && res->serial == slot->serial ? res : NULL;
}

static void follow(struct gpu_remote *rm, const struct gpu_slot *slot, bool ok)
{
	struct gpu *gpu = rm->gpu;
	struct gpu_resource *res;

	switch (slot->after) {
	case GPU_AFTER_CONTEXT:
		if (!ok)
			gpu_context_forget(rm, slot->id);
		break;
	case GPU_AFTER_RESOURCE:
		res = resource_of(gpu, slot);
		if (!ok && res)
			gpu_resource_drop(gpu, res);
		break;
	case GPU_AFTER_FLUSH:
		res = resource_of(gpu, slot);
		if (ok && res)
			gpu_flushed(gpu, res, &slot->rect, true);
		break;
	case GPU_AFTER_READ:
	case GPU_AFTER_CATCHING_UP:
		res = resource_of(gpu, slot);
		if (!res)
			break;
		res->reads--;
		if (ok)
			gpu_flushed(gpu, res, &slot->rect, slot->after == GPU_AFTER_READ);
		else
			gpu_changed(gpu);	/* that is all that comes */
		break;
	case GPU_AFTER_CURSOR:
		res = resource_of(gpu, slot);
		if (ok && res)
			gpu_cursor_image(gpu, slot->scanout, res);
		break;
	case GPU_AFTER_EXPORT:
		gpu_3d_exported(rm, resource_of(gpu, slot), slot->id, ok);
		break;
	default:
		break;
	}
}

static void finish(struct gpu_remote *rm, struct gpu_slot *slot, uint32_t type)
{
	struct gpu *gpu = rm->gpu;
	struct virtio_gpu_ctrl_hdr reply;
	uint32_t written = slot->written;

	if (type != VIRTIO_GPU_RESP_OK_NODATA &&
	    (type < VIRTIO_GPU_RESP_ERR_UNSPEC || type > VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER))
		type = VIRTIO_GPU_RESP_ERR_UNSPEC;
	follow(rm, slot, type == VIRTIO_GPU_RESP_OK_NODATA);
	if (slot->chain) {
		if (slot->after != GPU_AFTER_FENCE)
			written = gpu_reply(gpu, slot->chain, &slot->asked, type, &reply, sizeof(reply));
		ring_vq_push(gpu->control->source.vq, slot->chain, written);
	}
	release(rm, slot);
}

void gpu_remote_fail(struct gpu_remote *rm)
{
	bool any = rm->under_way;

	for (uint32_t i = 0; i < WIRE_SLOTS; i++) {
		if (rm->slots[i].used)
			finish(rm, &rm->slots[i], VIRTIO_GPU_RESP_ERR_UNSPEC);
	}
	if (any && rm->gpu->control)
		ring_vq_flush(rm->gpu->control->source.vq);
}

/* --- answers ------------------------------------------------------------------------------------------------------ */

static int answers_poll(struct ring_source *source, int budget)
{
	struct gpu_remote *rm = remote_of(source);
	uint32_t nr, answered;

	(void)budget;
	if (!rm->wire)
		return 0;
	answered = wire_load_acquire(&rm->wire->answered);
	nr = answered - rm->answered;
	if (nr > WIRE_SLOTS) {
		disown(rm);
		gpu_queue_went_on(rm->gpu);
		return 0;
	}
	for (uint32_t i = 0; i < nr; i++) {
		const struct wire_answer *at = &rm->wire->answers[rm->answered++ % WIRE_SLOTS];
		uint32_t g_slot = shm_load32(&at->slot), type = shm_load32(&at->type);

		if (g_slot >= WIRE_SLOTS || !rm->slots[g_slot].used) {
			disown(rm);
			break;
		}
		finish(rm, &rm->slots[g_slot], type);
	}
	if (nr) {
		__atomic_store_n(&rm->done, rm->done + nr, __ATOMIC_RELAXED);
		gpu_queue_went_on(rm->gpu);
		gpu_3d_catch_up(rm->gpu);
	}
	return (int)nr;
}

static int answers_arm(struct ring_source *source)
{
	struct gpu_remote *rm = remote_of(source);

	if (!rm->wire)
		return 0;
	shm_store32(&rm->wire->display_sleeps, 1);
	shm_mb();
	return wire_load_acquire(&rm->wire->answered) != rm->answered;
}

static void answers_disarm(struct ring_source *source)
{
	struct gpu_remote *rm = remote_of(source);

	if (rm->wire)
		shm_store32(&rm->wire->display_sleeps, 0);
}

static void answers_flush(struct ring_source *source)
{
	(void)source;
}

static const struct ring_source_ops answers_ops = {
	.poll = answers_poll,
	.flush = answers_flush,
	.arm = answers_arm,
	.disarm = answers_disarm,
};

/* --- its life ----------------------------------------------------------------------------------------------------- */

int gpu_3d_enable(struct gpu *gpu, uint32_t contexts)
{
	struct gpu_remote *rm = calloc(1, sizeof(*rm));

	if (!rm)
		return -ENOMEM;
	rm->contexts = calloc(contexts, sizeof(*rm->contexts));
	if (!rm->contexts) {
		free(rm);
		return -ENOMEM;
	}
	rm->source.ops = &answers_ops;
	rm->source.kick_fd = -1;
	rm->source.news_fd = -1;
	rm->gpu = gpu;
	rm->state = GPU_3D_STARTING;
	rm->commands = rm->socket = rm->exports = -1;
	rm->max_contexts = contexts;
	all_free(rm);
	gpu->remote = rm;
	return 0;
}

void gpu_remote_free(struct gpu_remote *rm)
{
	if (!rm)
		return;
	if (rm->wire)
		munmap(rm->wire, sizeof(*rm->wire));
	for (uint32_t i = 0; i < rm->nr_capsets; i++)
		free(rm->capsets[i].data);
	free(rm->contexts);
	free(rm);
}

int gpu_3d_memory(void)
{
	int fd = memfd_create("gpu-renderer", MFD_CLOEXEC | MFD_ALLOW_SEALING), rc;

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, sizeof(struct wire)) < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
		rc = -errno;
		close(fd);
		return rc;
	}
	return fd;
}

int gpu_3d_ready(struct gpu *gpu, const void *data, uint64_t bytes)
{
	struct gpu_remote *rm = gpu->remote;
	const struct wire_ready *ready = data;

	if (bytes != sizeof(*ready) || ready->magic != WIRE_MAGIC || !ready->nr_capsets || ready->nr_capsets > WIRE_CAPSETS)
		return -EPROTO;
	rm->blobs = ready->blobs != 0;
	if (rm->nr_capsets)
		return 0;	/* a later renderer of the same kind: the guest knows the first one's */
	for (uint32_t i = 0; i < ready->nr_capsets; i++) {
		struct gpu_capset *to = &rm->capsets[i];

		if (ready->capsets[i].bytes > WIRE_CAPSET_BYTES)
			return -EPROTO;
		*to = (struct gpu_capset){ready->capsets[i].id, ready->capsets[i].version, ready->capsets[i].bytes, NULL};
		to->data = malloc(to->bytes ? to->bytes : 1);
		if (!to->data)
			return -ENOMEM;
		memcpy(to->data, ready->capsets[i].data, to->bytes);
		rm->nr_capsets = i + 1;
	}
	return 0;
}

int gpu_3d_blobs(const struct gpu *gpu)
{
	return gpu->remote && gpu->remote->blobs;
}

bool gpu_remote_draws(const struct gpu_remote *rm)
{
	return rm->capsets[0].id != WIRE_CAPSET_VENUS;
}

int gpu_3d_capsets(const struct gpu *gpu, int window)
{
	const struct gpu_remote *rm = gpu->remote;
	uint32_t nr = rm ? rm->nr_capsets : 0;

	if (nr && !window && rm->capsets[nr - 1].id == WIRE_CAPSET_VENUS)
		nr--;		/* it is the last one */
	return (int)nr;
}

struct ring_source *gpu_3d_source(struct gpu *gpu)
{
	return &gpu->remote->source;
}

static void unmap(struct gpu_remote *rm)
{
	if (rm->wire)
		munmap(rm->wire, sizeof(*rm->wire));
	rm->wire = NULL;
	rm->commands = rm->socket = rm->exports = -1;
}

int gpu_3d_start(struct gpu *gpu, int memory, int commands, int socket, int exports)
{
	struct gpu_remote *rm = gpu->remote;
	void *wire = mmap(NULL, sizeof(*rm->wire), PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);

	if (wire == MAP_FAILED)
		return -errno;
	unmap(rm);
	rm->wire = wire;
	rm->commands = commands;
	rm->socket = socket;
	rm->exports = exports;
	rm->head = 0;
	rm->answered = 0;
	rm->touched = false;
	rm->state = GPU_3D_UP;
	ring_count(&gpu->stats.renderers, 1);
	shm_store32(&rm->wire->display_sleeps, 1);
	return 0;
}

void gpu_3d_lost(struct gpu *gpu)
{
	struct gpu_remote *rm = gpu->remote;

	rm->state = GPU_3D_LOST;
	unmap(rm);
	gpu_remote_fail(rm);
	for (uint32_t i = 0; i < GPU_BUCKETS; i++) {
		for (struct gpu_resource *res = gpu->buckets[i]; res; res = res->next) {
			res->remote = res->is_3d;	/* 2D goes on */
			res->stale = (struct gpu_rect){0};
		}
	}
	gpu_changed(gpu);
	ring_count(&gpu->stats.renderers_lost, 1);
}

void gpu_remote_reset(struct gpu_remote *rm)
{
	gpu_remote_fail(rm);
	gpu_context_count(rm, 0);
	if (rm->state == GPU_3D_LOST || rm->touched) {
		rm->state = GPU_3D_STARTING;
		unmap(rm);
	}
}

int gpu_3d_state(const struct gpu *gpu)
{
	return gpu->remote ? gpu->remote->state : GPU_3D_NONE;
}

void gpu_3d_fail(struct gpu *gpu)
{
	if (gpu->remote->state == GPU_3D_STARTING)
		gpu->remote->state = GPU_3D_LOST;
}

void gpu_3d_progress(const struct gpu *gpu, uint64_t *done, uint32_t *under_way, uint32_t *draining)
{
	*done = __atomic_load_n(&gpu->remote->done, __ATOMIC_RELAXED);
	*draining = gpu->control && gpu->control->source.paused;
	*under_way = __atomic_load_n(&gpu->remote->under_way, __ATOMIC_RELAXED);
	/* a ring may wait for what the guest does next, as long as that takes */
	if (!*draining)
		*under_way -= gpu->remote->rings;
}

int gpu_3d_region(struct gpu *gpu, int fd, uint64_t gpa, uint64_t len, uint64_t offset, int read_only)
{
	struct gpu_remote *rm = gpu->remote;
	struct wire_region region = {gpa, len, offset, (uint64_t)read_only};

	if (rm->state != GPU_3D_UP)
		return 0;	/* it is told of all when it starts */
	if (!gpu_remote_room(rm, 1, sizeof(region)) || (fd >= 0 && !gpu_remote_pass(rm, fd))) {
		disown(rm);
		return -EAGAIN;
	}
	gpu_remote_put(rm, fd >= 0 ? WIRE_REGION_ADD : WIRE_REGION_REMOVE, &region, sizeof(region), NULL);
	return 0;
}
