// SPDX-License-Identifier: Apache-2.0
/*
 * queue.c - the two queues: chains in, commands done in their order, replies out. A fence of a 2D command is over when the
 * command is; while the renderer has fences under way it joins them, since a guest takes fences to end in their order.
 */
#include <stdlib.h>
#include <unistd.h>

#include "devices/gpu/csrc/remote.h"

static struct gpu_queue *queue_of(struct ring_source *source)
{
	return (struct gpu_queue *)(void *)source;	/* its first member */
}

static void read_command(struct gpu_cmd *cmd, struct ring_chain *chain)
{
	cmd->chain = chain;
	memset(&cmd->in.hdr, 0, sizeof(cmd->in.hdr));
	cmd->in_len = ring_chain_read(chain, 0, &cmd->in, sizeof(cmd->in));
}

uint32_t gpu_reply(struct gpu *gpu, struct ring_chain *chain, const struct virtio_gpu_ctrl_hdr *asked, uint32_t type, void *out,
		   uint32_t len)
{
	struct virtio_gpu_ctrl_hdr *hdr = out;

	memset(hdr, 0, sizeof(*hdr));
	hdr->type = type;
	if (type >= VIRTIO_GPU_RESP_ERR_UNSPEC) {
		len = sizeof(*hdr);
		if (type - VIRTIO_GPU_RESP_ERR_UNSPEC < GPU_ERRORS)
			ring_count(&gpu->stats.errors[type - VIRTIO_GPU_RESP_ERR_UNSPEC], 1);
	}
	if (asked->flags & VIRTIO_GPU_FLAG_FENCE) {
		hdr->flags = asked->flags & (VIRTIO_GPU_FLAG_FENCE | VIRTIO_GPU_FLAG_INFO_RING_IDX);
		hdr->fence_id = asked->fence_id;
		hdr->ctx_id = asked->ctx_id;
		hdr->ring_idx = asked->ring_idx;
	}
	ring_count(&gpu->stats.commands, 1);
	return chain->in_bytes < sizeof(*hdr) ? 0 : ring_chain_write(chain, 0, out, len);
}

/* Its fence has to wait for those that the renderer has. */
static bool joins(const struct gpu *gpu, const struct gpu_cmd *cmd)
{
	return cmd->in.hdr.flags & VIRTIO_GPU_FLAG_FENCE && gpu->remote && gpu_remote_up(gpu->remote) &&
	       gpu->remote->fences != gpu->remote->rings;
}

/* Do it. GPU_HELD and GPU_AGAIN as gpu_command(); all else: it was done, the reply is written. */
static uint32_t control(struct gpu *gpu, struct gpu_cmd *cmd, uint32_t *written)
{
	struct gpu_remote *rm = gpu->remote;
	uint32_t type = VIRTIO_GPU_RESP_ERR_UNSPEC;
	struct gpu_slot *slot;

	cmd->out_len = sizeof(cmd->out.hdr);
	if (cmd->in_len < sizeof(cmd->in.hdr))
		memset(&cmd->in.hdr, 0, sizeof(cmd->in.hdr));
	if (joins(gpu, cmd) && !gpu_remote_room(rm, 1, 0))
		return GPU_AGAIN;
	if (cmd->in_len >= sizeof(cmd->in.hdr))
		type = gpu_command(gpu, cmd);
	if (type == GPU_HELD || type == GPU_AGAIN)
		return type;
	*written = gpu_reply(gpu, cmd->chain, &cmd->in.hdr, type, &cmd->out, cmd->out_len);
	if (!joins(gpu, cmd))
		return type;
	slot = gpu_remote_slot(rm, cmd, GPU_AFTER_FENCE);
	slot->written = *written;
	gpu_remote_begin(rm, WIRE_NOTHING, 0, slot);
	gpu_remote_send(rm);
	return GPU_HELD;
}

/* What a monitor is: Linux asks for its EDID first, then for its mode. */
static bool asks_modes(const struct gpu_cmd *cmd)
{
	return cmd->in_len >= sizeof(cmd->in.hdr) && (cmd->in.hdr.type == VIRTIO_GPU_CMD_GET_DISPLAY_INFO ||
						      cmd->in.hdr.type == VIRTIO_GPU_CMD_GET_EDID);
}

/* Has the driver to wait for the modes? Whoever knows them is asked, once for each command. */
static bool must_wait(struct gpu_queue *q, const struct gpu_cmd *cmd, int budget)
{
	struct gpu *gpu = q->gpu;
	const uint64_t one = 1;

	if (q->cursor || gpu->asked < 0 || !asks_modes(cmd))
		return false;
	if (!q->asked) {
		gpu->answered = false;
		if (write(gpu->asked, &one, sizeof(one)) < 0)
			return false;
	}
	return !gpu->answered && budget;	/* no budget: whoever drains it may be whom we ask */
}

static int queue_poll(struct ring_source *source, int budget)
{
	struct gpu_queue *q = queue_of(source);
	struct gpu_cmd cmd;
	int n = 0, done = 0;

	if (q->at == q->nr && budget) {
		n = ring_vq_pop(source->vq, q->chains, budget < GPU_BATCH ? budget : GPU_BATCH);
		q->at = 0;
		q->nr = n > 0 ? n : 0;
	}
	for (; q->at < q->nr; q->at++, done++) {
		struct ring_chain *chain = q->chains[q->at];
		uint32_t written = 0, type = 0;

		read_command(&cmd, chain);
		q->waiting = q->asked = must_wait(q, &cmd, budget);
		if (q->waiting)
			break;
		if (q->cursor)
			gpu_cursor_command(q->gpu, &cmd);
		else
			type = control(q->gpu, &cmd, &written);
		q->waiting = type == GPU_AGAIN;
		if (q->waiting)
			break;
		if (type != GPU_HELD)
			ring_vq_push(source->vq, chain, written);
	}
	if (done)
		ring_vq_flush(source->vq);
	return n;
}

/* One that waits for an answer can take nothing, whatever the driver has for it. */
static int queue_arm(struct ring_source *source)
{
	int more = ring_vq_kicks_on(source->vq);

	return queue_of(source)->waiting ? 0 : more;
}

static void queue_flush(struct ring_source *source)
{
	ring_vq_flush(source->vq);
}

void gpu_queue_went_on(struct gpu *gpu)
{
	struct gpu_queue *q = gpu->control;

	if (!q)
		return;
	if (q->waiting) {
		queue_poll(&q->source, 0);	/* what it has taken; paused, nobody else would */
		q->source.stalled = true;
	}
	ring_source_completed(&q->source);
}

static const struct ring_source_ops queue_ops = {
	.poll = queue_poll,
	.flush = queue_flush,
	.arm = queue_arm,
};

struct ring_source *gpu_queue_new(struct gpu *gpu, struct ring_vq *vq, struct ring_mem *mem, int cursor)
{
	struct gpu_queue *q = ring_source_new(sizeof(*q), &queue_ops, vq);

	if (!q)
		return NULL;
	q->gpu = gpu;
	q->cursor = cursor != 0;
	gpu->mem = mem;
	gpu->nr_queues++;
	if (!cursor)
		gpu->control = q;
	return &q->source;
}

void gpu_queue_free(struct ring_source *source)
{
	struct gpu *gpu = queue_of(source)->gpu;

	if (gpu->control == queue_of(source))
		gpu->control = NULL;
	if (--gpu->nr_queues == 0)
		gpu->mem = NULL;	/* may be gone from now on */
	free(source);
}

/* --- the device -------------------------------------------------------------------------------------------------- */

struct gpu *gpu_new(uint32_t scanouts, const struct gpu_limits *limits)
{
	struct gpu *gpu = calloc(1, sizeof(*gpu));

	if (!gpu)
		return NULL;
	gpu->nr_scanouts = scanouts;
	gpu->limits = *limits;
	gpu->watcher = -1;
	gpu->asked = -1;
	gpu->window.news = -1;
	gpu->window.last = &gpu->window.first;
	return gpu;
}

void gpu_free(struct gpu *gpu)
{
	if (!gpu)
		return;
	gpu_reset(gpu);
	gpu_window_free(gpu);
	gpu_remote_free(gpu->remote);
	free(gpu);
}

void gpu_set_features(struct gpu *gpu, uint64_t features)
{
	gpu->features = features;
}

void gpu_reset(struct gpu *gpu)
{
	if (gpu->remote)
		gpu_remote_reset(gpu->remote);
	for (uint32_t i = 0; i < gpu->nr_scanouts; i++) {
		gpu_scanout_off(gpu, i);
		gpu->scanouts[i].cursor.shown = false;
	}
	for (uint32_t i = 0; i < GPU_BUCKETS; i++) {
		while (gpu->buckets[i])
			gpu_resource_drop(gpu, gpu->buckets[i]);
	}
	gpu_window_reset(gpu);
}

void gpu_set_watcher(struct gpu *gpu, int fd)
{
	gpu->watcher = fd;
}

void gpu_watch(struct gpu *gpu)
{
	atomic_store(&gpu->watched, true);
}

void gpu_set_asked(struct gpu *gpu, int fd)
{
	gpu->asked = fd;
}

void gpu_answer(struct gpu *gpu)
{
	gpu->answered = true;
}

void gpu_stats(const struct gpu *gpu, struct gpu_stats *out)
{
	ring_stats_copy(out, &gpu->stats, sizeof(*out));
}
