// SPDX-License-Identifier: Apache-2.0
/*
 * command3d.c - 3D commands: checked here, done by the renderer. What 2D commands mean for resources that it has, too.
 *
 * A 2D resource that a context is to use (Linux attaches each one to every context that opens it) is made in the renderer
 * as well: it has the same pages, and a transfer goes to both.
 */
#include "devices/gpu/csrc/remote.h"

enum {
	OK = VIRTIO_GPU_RESP_OK_NODATA,
	UNSPEC = VIRTIO_GPU_RESP_ERR_UNSPEC,
	NO_MEMORY = VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY,
	BAD_CONTEXT = VIRTIO_GPU_RESP_ERR_INVALID_CONTEXT_ID,
	BAD_RESOURCE = VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID,
	BAD_PARAMETER = VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER,
};

/* As gallium has them. */
enum {
	TARGET_BUFFER = 0,
	TARGET_2D = 2,
	TARGETS = 9,
	BIND_RENDER_TARGET = 1 << 1,
	LEVELS_MAX = 15,
	SAMPLES_MAX = 32,
	PAGES_MAX = (WIRE_DATA_MAX - (int)sizeof(struct wire_use)) / (int)sizeof(struct wire_page),
};

uint32_t gpu_3d_gate(struct gpu *gpu, uint32_t messages, uint64_t bytes)
{
	struct gpu_remote *rm = gpu->remote;

	if (!rm || !(gpu->features >> VIRTIO_GPU_F_VIRGL & 1))
		return UNSPEC;
	if (!gpu_remote_up(rm))
		return rm->state == GPU_3D_STARTING ? GPU_AGAIN : UNSPEC;
	if (!gpu_remote_room(rm, messages, bytes))
		return rm->under_way ? GPU_AGAIN : NO_MEMORY;
	rm->touched = true;
	return OK;
}

static uint32_t send(struct gpu *gpu, const struct gpu_cmd *cmd, enum wire_op op, const void *data, uint32_t bytes)
{
	gpu_remote_put(gpu->remote, op, data, bytes, gpu_remote_slot(gpu->remote, cmd, GPU_AFTER_NOTHING));
	return GPU_HELD;
}

/* --- capsets ------------------------------------------------------------------------------------------------------ */

static bool offered(const struct gpu *gpu)
{
	return gpu->remote && gpu->features >> VIRTIO_GPU_F_VIRGL & 1;
}

/* Those that it can use. */
static uint32_t nr_capsets(const struct gpu *gpu)
{
	return (uint32_t)gpu_3d_capsets(gpu, gpu->window.bytes != 0);
}

uint32_t gpu_get_capset_info(struct gpu *gpu, struct gpu_cmd *cmd)
{
	uint32_t i = cmd->in.get_capset_info.capset_index;
	const struct gpu_capset *set;

	if (!offered(gpu))
		return UNSPEC;
	if (i >= nr_capsets(gpu))
		return BAD_PARAMETER;
	set = &gpu->remote->capsets[i];
	cmd->out.capset_info.capset_id = set->id;
	cmd->out.capset_info.capset_max_version = set->version;
	cmd->out.capset_info.capset_max_size = set->bytes;
	cmd->out.capset_info.padding = 0;
	cmd->out_len = sizeof(cmd->out.capset_info);
	return VIRTIO_GPU_RESP_OK_CAPSET_INFO;
}

uint32_t gpu_get_capset(struct gpu *gpu, struct gpu_cmd *cmd)
{
	const struct virtio_gpu_get_capset *in = &cmd->in.get_capset;

	if (!offered(gpu))
		return UNSPEC;
	for (uint32_t i = 0; i < nr_capsets(gpu); i++) {
		const struct gpu_capset *set = &gpu->remote->capsets[i];

		if (set->id != in->capset_id || in->capset_version > set->version)
			continue;
		memcpy(cmd->out.capset.data, set->data, set->bytes);
		cmd->out_len = (uint32_t)(sizeof(struct virtio_gpu_ctrl_hdr) + set->bytes);
		return VIRTIO_GPU_RESP_OK_CAPSET;
	}
	return BAD_PARAMETER;
}

/* --- contexts ----------------------------------------------------------------------------------------------------- */

static uint32_t *find_context(const struct gpu_remote *rm, uint32_t id)
{
	for (uint32_t i = 0; i < rm->nr_contexts; i++) {
		if (rm->contexts[i] == id)
			return &rm->contexts[i];
	}
	return NULL;
}

bool gpu_context_known(const struct gpu_remote *rm, uint32_t id)
{
	return find_context(rm, id) != NULL;
}

void gpu_context_count(struct gpu_remote *rm, uint32_t nr)
{
	rm->nr_contexts = nr;
	__atomic_store_n(&rm->gpu->stats.contexts, nr, __ATOMIC_RELAXED);
}

void gpu_context_forget(struct gpu_remote *rm, uint32_t id)
{
	uint32_t *at = find_context(rm, id);

	if (!at)
		return;
	*at = rm->contexts[rm->nr_contexts - 1];
	gpu_context_count(rm, rm->nr_contexts - 1);
}

/* What a context is for: any of what is offered, or the capset that it names. */
static bool is_init(const struct gpu *gpu, uint32_t init)
{
	for (uint32_t i = 0; i < nr_capsets(gpu); i++) {
		if (gpu->remote->capsets[i].id == init)
			return true;
	}
	return !init;
}

uint32_t gpu_context_create(struct gpu *gpu, struct gpu_cmd *cmd)
{
	const struct virtio_gpu_ctx_create *in = &cmd->in.context_create;
	bool has_init = gpu->features >> VIRTIO_GPU_F_CONTEXT_INIT & 1;
	struct wire_context what = {
		.context = in->hdr.ctx_id,
		.name_bytes = in->nlen,
		.init = has_init ? in->context_init : 0,
	};
	uint32_t reply = gpu_3d_gate(gpu, 1, sizeof(what));
	struct gpu_remote *rm = gpu->remote;
	struct gpu_slot *slot;

	if (reply != OK)
		return reply;
	if (!in->hdr.ctx_id || gpu_context_known(rm, in->hdr.ctx_id))
		return BAD_CONTEXT;
	if (in->nlen > sizeof(what.name) || !is_init(gpu, what.init))
		return BAD_PARAMETER;
	if (rm->nr_contexts == rm->max_contexts)
		return NO_MEMORY;
	memcpy(what.name, in->debug_name, in->nlen);
	rm->contexts[rm->nr_contexts] = in->hdr.ctx_id;
	gpu_context_count(rm, rm->nr_contexts + 1);
	slot = gpu_remote_slot(rm, cmd, GPU_AFTER_CONTEXT);
	slot->id = in->hdr.ctx_id;
	gpu_remote_put(rm, WIRE_CONTEXT_CREATE, &what, sizeof(what), slot);
	return GPU_HELD;
}

uint32_t gpu_context_destroy(struct gpu *gpu, struct gpu_cmd *cmd)
{
	struct wire_context what = {.context = cmd->in.hdr.ctx_id};
	uint32_t reply = gpu_3d_gate(gpu, 1, sizeof(what));

	if (reply != OK)
		return reply;
	if (!gpu_context_known(gpu->remote, what.context))
		return BAD_CONTEXT;
	gpu_context_forget(gpu->remote, what.context);
	return send(gpu, cmd, WIRE_CONTEXT_DESTROY, &what, sizeof(what));
}

/* The pages of @res as the renderer is told of them. */
static void send_pages(struct gpu *gpu, const struct gpu_resource *res, struct gpu_slot *slot)
{
	struct wire_use use = {.resource = res->id};
	uint32_t bytes = (uint32_t)(sizeof(use) + res->backing.nr * sizeof(struct wire_page));
	uint8_t *to = gpu_remote_begin(gpu->remote, WIRE_BACKING_ATTACH, bytes, slot);

	shm_copy_out(to, &use, sizeof(use));
	to += sizeof(use);
	for (uint32_t i = 0; i < res->backing.nr; i++, to += sizeof(struct wire_page)) {
		struct wire_page page = {res->backing.pages[i].gpa, res->backing.pages[i].len};

		shm_copy_out(to, &page, sizeof(page));
	}
	gpu_remote_send(gpu->remote);
}

static uint64_t pages_bytes(const struct gpu_resource *res)
{
	return sizeof(struct wire_use) + (uint64_t)res->backing.nr * sizeof(struct wire_page);
}

/* A 2D resource, from now on in the renderer, too. */
static void adopt(struct gpu *gpu, struct gpu_resource *res)
{
	struct wire_resource what = {
		.id = res->id,
		.target = TARGET_2D,
		.format = res->format,
		.bind = BIND_RENDER_TARGET,
		.width = res->width,
		.height = res->height,
		.depth = 1,
		.array_size = 1,
		.flags = VIRTIO_GPU_RESOURCE_FLAG_Y_0_TOP,
	};
	struct wire_transfer all = {.resource = res->id, .width = res->width, .height = res->height, .depth = 1};

	gpu_remote_put(gpu->remote, WIRE_RESOURCE_CREATE, &what, sizeof(what), NULL);
	res->remote = true;
	if (res->backing.pages) {
		send_pages(gpu, res, NULL);
		gpu_remote_put(gpu->remote, WIRE_TO_HOST, &all, sizeof(all), NULL);
	}
}

uint32_t gpu_context_attach(struct gpu *gpu, struct gpu_cmd *cmd)
{
	struct wire_context what = {.context = cmd->in.hdr.ctx_id, .resource = cmd->in.context_resource.resource_id};
	struct gpu_resource *res = gpu_resource_find(gpu, what.resource);
	bool adopts = res && !res->remote && !res->blob && gpu->remote && gpu_remote_draws(gpu->remote);
	uint64_t more = adopts ? sizeof(struct wire_resource) + sizeof(struct wire_transfer) + pages_bytes(res) : 0;
	uint32_t reply = gpu_3d_gate(gpu, adopts ? 4 : 1, sizeof(what) + more);

	if (reply != OK)
		return reply;
	if (!gpu_context_known(gpu->remote, what.context))
		return BAD_CONTEXT;
	if (!res || (res->blob && !res->hosted))
		return BAD_RESOURCE;
	if (adopts && res->backing.nr > PAGES_MAX)
		return NO_MEMORY;
	if (adopts)
		adopt(gpu, res);
	if (!res->remote)
		return OK;	/* Vulkan has no use for it */
	return send(gpu, cmd, WIRE_CONTEXT_ATTACH, &what, sizeof(what));
}

uint32_t gpu_context_detach(struct gpu *gpu, struct gpu_cmd *cmd)
{
	struct wire_context what = {.context = cmd->in.hdr.ctx_id, .resource = cmd->in.context_resource.resource_id};
	const struct gpu_resource *res = gpu_resource_find(gpu, what.resource);
	uint32_t reply = gpu_3d_gate(gpu, 1, sizeof(what));

	if (reply != OK)
		return reply;
	if (!gpu_context_known(gpu->remote, what.context))
		return BAD_CONTEXT;
	if (res && !res->remote && !gpu_remote_draws(gpu->remote))
		return OK;
	if (!res || !res->remote)
		return BAD_RESOURCE;
	return send(gpu, cmd, WIRE_CONTEXT_DETACH, &what, sizeof(what));
}

/* --- resources ---------------------------------------------------------------------------------------------------- */

/* Bytes of a texel, for the limit: formats (numbers of gallium's, as virgl has them) that are not known count as the largest. */
static uint32_t texel_bytes(uint32_t format)
{
	if (format == 9 || format == 10 || format == 11 || format == 23 || format == 64 || format == 74)
		return 1;	/* L8 A8 I8 S8 R8 */
	if ((format >= 1 && format <= 8) || (format >= 12 && format <= 21) || format == 28 || format == 48 || format == 49 ||
	    (format >= 65 && format <= 68) || format == 91 || format == 92 || (format >= 95 && format <= 104) ||
	    format == 121 || format == 124 || format == 134)
		return 4;	/* RGBA8 and its kin, 16-bit ones, depth, R32F, RG16 */
	if (format == 29 || format == 51 || format == 94)
		return 8;	/* RG32F RGBA16 RGBA16F */
	return 16;
}

/* What @in costs the host, about; false: more than can be. */
static bool cost_of(const struct virtio_gpu_resource_create_3d *in, uint64_t *cost)
{
	uint64_t bytes = in->width;

	if (in->target == TARGET_BUFFER)
		return *cost = bytes, true;
	if (__builtin_mul_overflow(bytes, in->height, &bytes) || __builtin_mul_overflow(bytes, in->depth, &bytes) ||
	    __builtin_mul_overflow(bytes, in->array_size, &bytes) ||
	    __builtin_mul_overflow(bytes, in->nr_samples ? in->nr_samples : 1, &bytes) ||
	    __builtin_mul_overflow(bytes, texel_bytes(in->format), &bytes) ||
	    __builtin_mul_overflow(bytes, in->last_level ? 2 : 1, &bytes))
		return false;
	*cost = bytes;
	return true;
}

static bool is_possible(const struct virtio_gpu_resource_create_3d *in)
{
	bool buffer = in->target == TARGET_BUFFER;

	return in->target < TARGETS && in->width && in->height && in->depth && in->array_size && in->last_level <= LEVELS_MAX &&
	       in->nr_samples <= SAMPLES_MAX && in->height <= GPU_SIDE_MAX && in->depth <= GPU_SIDE_MAX &&
	       in->array_size <= GPU_SIDE_MAX && (buffer ? in->height == 1 && in->depth == 1 : in->width <= GPU_SIDE_MAX);
}

uint32_t gpu_create_3d(struct gpu *gpu, struct gpu_cmd *cmd)
{
	const struct virtio_gpu_resource_create_3d *in = &cmd->in.create_3d;
	const struct wire_resource what = {
		.id = in->resource_id, .target = in->target, .format = in->format, .bind = in->bind, .width = in->width,
		.height = in->height, .depth = in->depth, .array_size = in->array_size, .last_level = in->last_level,
		.nr_samples = in->nr_samples, .flags = in->flags,
	};
	uint32_t reply = gpu_3d_gate(gpu, 1, sizeof(what));
	struct gpu_resource *res;
	struct gpu_slot *slot;
	uint64_t cost;

	if (reply != OK)
		return reply;
	if (!is_possible(in))
		return BAD_PARAMETER;
	if (!cost_of(in, &cost))
		return NO_MEMORY;
	reply = gpu_resource_make(gpu, in->resource_id, 0, &res);
	if (reply != OK)
		return reply;
	if (!gpu_resource_charge(gpu, res, cost)) {
		gpu_resource_drop(gpu, res);
		return NO_MEMORY;
	}
	res->remote = true;
	res->is_3d = true;
	res->flat = in->target == TARGET_2D && in->nr_samples <= 1;
	res->format = in->format;
	res->width = in->width;
	res->height = in->height;
	slot = gpu_remote_slot(gpu->remote, cmd, GPU_AFTER_RESOURCE);
	slot->id = res->id;
	slot->serial = res->serial;
	gpu_remote_put(gpu->remote, WIRE_RESOURCE_CREATE, &what, sizeof(what), slot);
	return GPU_HELD;
}

static uint32_t transfer(struct gpu *gpu, struct gpu_cmd *cmd, enum wire_op op)
{
	const struct virtio_gpu_transfer_host_3d *in = &cmd->in.transfer_3d;
	const struct gpu_resource *res = gpu_resource_find(gpu, in->resource_id);
	const struct wire_transfer what = {
		.resource = in->resource_id, .context = in->hdr.ctx_id, .level = in->level, .stride = in->stride,
		.layer_stride = in->layer_stride, .x = in->box.x, .y = in->box.y, .z = in->box.z, .width = in->box.w,
		.height = in->box.h, .depth = in->box.d, .offset = in->offset,
	};
	uint32_t reply = gpu_3d_gate(gpu, 1, sizeof(what));

	if (reply != OK)
		return reply;
	if (!res || !res->remote || res->hosted)
		return BAD_RESOURCE;
	if (in->hdr.ctx_id && !gpu_context_known(gpu->remote, in->hdr.ctx_id))
		return BAD_CONTEXT;
	if (in->level > LEVELS_MAX || !res->backing.pages || in->offset > res->backing.len)
		return BAD_PARAMETER;
	ring_count(&gpu->stats.transfers_3d, 1);
	return send(gpu, cmd, op, &what, sizeof(what));
}

uint32_t gpu_to_host_3d(struct gpu *gpu, struct gpu_cmd *cmd)
{
	return transfer(gpu, cmd, WIRE_TO_HOST);
}

uint32_t gpu_from_host_3d(struct gpu *gpu, struct gpu_cmd *cmd)
{
	return transfer(gpu, cmd, WIRE_FROM_HOST);
}

uint32_t gpu_submit(struct gpu *gpu, struct gpu_cmd *cmd)
{
	const struct virtio_gpu_cmd_submit *in = &cmd->in.submit;
	struct wire_use use = {.context = in->hdr.ctx_id};
	uint32_t room = cmd->chain->out_bytes - (uint32_t)sizeof(*in), reply;
	struct gpu_slot *slot;
	uint8_t *to;

	if (in->size > WIRE_DATA_MAX - sizeof(use))
		return offered(gpu) ? NO_MEMORY : UNSPEC;
	reply = gpu_3d_gate(gpu, 1, sizeof(use) + in->size);
	if (reply != OK)
		return reply;
	if (!gpu_context_known(gpu->remote, use.context))
		return BAD_CONTEXT;
	if (in->size > room || in->size % 4)
		return BAD_PARAMETER;
	slot = gpu_remote_slot(gpu->remote, cmd, GPU_AFTER_NOTHING);
	slot->ring = slot->fenced && in->hdr.flags & VIRTIO_GPU_FLAG_INFO_RING_IDX;
	gpu->remote->rings += slot->ring;
	to = gpu_remote_begin(gpu->remote, WIRE_SUBMIT, (uint32_t)sizeof(use) + in->size, slot);
	shm_copy_out(to, &use, sizeof(use));
	ring_chain_read(cmd->chain, sizeof(*in), to + sizeof(use), in->size);
	gpu_remote_send(gpu->remote);
	ring_count(&gpu->stats.submissions, 1);
	ring_count(&gpu->stats.submission_bytes, in->size);
	return GPU_HELD;
}

/* --- what 2D commands do ------------------------------------------------------------------------------------------ */

uint32_t gpu_3d_attach(struct gpu *gpu, struct gpu_resource *res, const struct gpu_cmd *cmd)
{
	uint32_t nr = cmd->in.attach.nr_entries;
	uint32_t reply = gpu_3d_gate(gpu, 1, sizeof(struct wire_use) + (uint64_t)nr * sizeof(struct wire_page));

	if (nr > PAGES_MAX)
		return NO_MEMORY;
	if (reply != OK)
		return reply;
	reply = gpu_backing_take(gpu, res, cmd->chain, sizeof(cmd->in.attach), nr);
	if (reply != OK)
		return reply;
	send_pages(gpu, res, gpu_remote_slot(gpu->remote, cmd, GPU_AFTER_NOTHING));
	return GPU_HELD;
}

uint32_t gpu_3d_detach(struct gpu *gpu, struct gpu_resource *res, const struct gpu_cmd *cmd)
{
	struct wire_use use = {.resource = res->id};
	uint32_t reply = gpu_3d_gate(gpu, 1, sizeof(use));

	if (reply != OK)
		return reply;
	gpu_backing_drop(gpu, res);
	return send(gpu, cmd, WIRE_BACKING_DETACH, &use, sizeof(use));
}

uint32_t gpu_3d_unref(struct gpu *gpu, struct gpu_resource *res, const struct gpu_cmd *cmd)
{
	struct wire_use use = {.resource = res->id};
	uint32_t reply = gpu_3d_gate(gpu, 1, sizeof(use));

	if (reply == GPU_AGAIN)
		return reply;
	gpu_resource_drop(gpu, res);
	return reply == OK ? send(gpu, cmd, WIRE_RESOURCE_UNREF, &use, sizeof(use)) : OK;
}

uint32_t gpu_3d_transfer(struct gpu *gpu, struct gpu_resource *res, const struct gpu_cmd *cmd)
{
	const struct virtio_gpu_transfer_to_host_2d *in = &cmd->in.transfer;
	const struct wire_transfer what = {
		.resource = res->id, .x = in->r.x, .y = in->r.y, .width = in->r.width, .height = in->r.height, .depth = 1,
		.offset = in->offset,
	};
	uint32_t reply = gpu_3d_gate(gpu, 1, sizeof(what));

	return reply == OK ? send(gpu, cmd, WIRE_TO_HOST, &what, sizeof(what)) : reply;
}
