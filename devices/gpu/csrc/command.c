// SPDX-License-Identifier: Apache-2.0
/*
 * command.c - the commands of VIRTIO 1.3, 5.7.6: what each one checks, does and answers.
 */
#include <sys/random.h>

#include "devices/gpu/csrc/remote.h"

enum { OK = VIRTIO_GPU_RESP_OK_NODATA };

static bool has(const struct gpu *gpu, int feature)
{
	return gpu->features >> feature & 1;
}

static uint32_t get_display_info(struct gpu *gpu, struct gpu_cmd *cmd)
{
	struct virtio_gpu_resp_display_info *out = &cmd->out.display_info;

	memset(out->pmodes, 0, sizeof(out->pmodes));
	for (uint32_t i = 0; i < gpu->nr_scanouts; i++) {
		const struct gpu_mode *mode = &gpu->scanouts[i].mode;

		out->pmodes[i].r = (struct virtio_gpu_rect){mode->x, mode->y, mode->width, mode->height};
		out->pmodes[i].enabled = mode->width != 0;
	}
	cmd->out_len = sizeof(*out);
	return VIRTIO_GPU_RESP_OK_DISPLAY_INFO;
}

static uint32_t get_edid(struct gpu *gpu, struct gpu_cmd *cmd)
{
	struct virtio_gpu_resp_edid *out = &cmd->out.edid;
	const struct gpu_mode *mode;

	if (!has(gpu, VIRTIO_GPU_F_EDID))
		return VIRTIO_GPU_RESP_ERR_UNSPEC;
	if (cmd->in.get_edid.scanout >= gpu->nr_scanouts)
		return VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
	mode = &gpu->scanouts[cmd->in.get_edid.scanout].mode;
	memset(out->edid, 0, sizeof(out->edid));
	memcpy(out->edid, mode->edid, mode->edid_bytes);
	out->size = mode->edid_bytes;
	out->padding = 0;
	cmd->out_len = sizeof(*out);
	return VIRTIO_GPU_RESP_OK_EDID;
}

static uint32_t create_2d(struct gpu *gpu, struct gpu_cmd *cmd)
{
	const struct virtio_gpu_resource_create_2d *in = &cmd->in.create_2d;
	struct gpu_resource *res;
	uint32_t reply;

	if (!gpu_format_known(in->format) || !in->width || !in->height || in->width > GPU_SIDE_MAX ||
	    in->height > GPU_SIDE_MAX)
		return VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
	reply = gpu_resource_make(gpu, in->resource_id, (uint64_t)in->width * in->height * GPU_PIXEL, &res);
	if (reply != OK)
		return reply;
	res->format = in->format;
	res->width = in->width;
	res->height = in->height;
	return OK;
}

static uint32_t create_blob(struct gpu *gpu, struct gpu_cmd *cmd)
{
	const struct virtio_gpu_resource_create_blob *in = &cmd->in.create_blob;
	const uint32_t flags = VIRTIO_GPU_BLOB_FLAG_USE_MAPPABLE | VIRTIO_GPU_BLOB_FLAG_USE_SHAREABLE |
			       VIRTIO_GPU_BLOB_FLAG_USE_CROSS_DEVICE;
	struct gpu_resource *res;
	uint32_t reply;

	if (!has(gpu, VIRTIO_GPU_F_RESOURCE_BLOB))
		return VIRTIO_GPU_RESP_ERR_UNSPEC;
	if (in->blob_flags & ~flags || !in->size)
		return VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
	if (in->blob_mem == VIRTIO_GPU_BLOB_MEM_HOST3D && gpu_3d_blobs(gpu))
		return gpu_3d_create_blob(gpu, cmd);
	if (in->blob_mem != VIRTIO_GPU_BLOB_MEM_GUEST)
		return VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
	reply = gpu_resource_make(gpu, in->resource_id, 0, &res);
	if (reply != OK)
		return reply;
	reply = gpu_backing_take(gpu, res, cmd->chain, sizeof(*in), in->nr_entries);
	if (reply == OK && res->backing.len < in->size)
		reply = VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
	if (reply != OK) {
		gpu_resource_drop(gpu, res);
		return reply;
	}
	res->blob = true;
	res->size = in->size;
	return OK;
}

static uint32_t unref(struct gpu *gpu, struct gpu_cmd *cmd)
{
	struct gpu_resource *res = gpu_resource_find(gpu, cmd->in.unref.resource_id);

	if (!res)
		return VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID;
	if (res->remote)
		return gpu_3d_unref(gpu, res, cmd);
	gpu_resource_drop(gpu, res);
	return OK;
}

static uint32_t set_scanout(struct gpu *gpu, struct gpu_cmd *cmd)
{
	const struct virtio_gpu_set_scanout *in = &cmd->in.set_scanout;
	const struct gpu_rect area = {in->r.x, in->r.y, in->r.width, in->r.height};
	struct gpu_resource *res;
	struct gpu_scanout *s;
	uint32_t reply = OK;

	if (in->scanout_id >= gpu->nr_scanouts)
		return VIRTIO_GPU_RESP_ERR_INVALID_SCANOUT_ID;
	if (!in->resource_id) {
		gpu_scanout_off(gpu, in->scanout_id);
		return OK;
	}
	res = gpu_resource_find(gpu, in->resource_id);
	if (!res || res->blob)
		return VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID;
	if (in->r.width < GPU_SIDE_MIN || in->r.height < GPU_SIDE_MIN ||
	    !gpu_rect_inside(&in->r, res->width, res->height))
		return VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
	if (res->is_3d) {
		reply = gpu_3d_show(gpu, res, &area, cmd);
		if (reply != OK && reply != GPU_HELD)
			return reply;
	}
	s = &gpu->scanouts[in->scanout_id];
	gpu_scanout_show(gpu, in->scanout_id, res, &in->r);
	s->format = res->format;
	s->offset = 0;
	s->stride = res->width * GPU_PIXEL;
	return reply;
}

static uint32_t set_scanout_blob(struct gpu *gpu, struct gpu_cmd *cmd)
{
	const struct virtio_gpu_set_scanout_blob *in = &cmd->in.set_scanout_blob;
	struct gpu_resource *res;
	struct gpu_scanout *s;
	uint32_t reply;
	uint64_t end;

	if (!has(gpu, VIRTIO_GPU_F_RESOURCE_BLOB))
		return VIRTIO_GPU_RESP_ERR_UNSPEC;
	if (in->scanout_id >= gpu->nr_scanouts)
		return VIRTIO_GPU_RESP_ERR_INVALID_SCANOUT_ID;
	if (!in->resource_id) {
		gpu_scanout_off(gpu, in->scanout_id);
		return OK;
	}
	res = gpu_resource_find(gpu, in->resource_id);
	if (!res || !res->blob)
		return VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID;
	if (!gpu_format_known(in->format) || in->width > GPU_SIDE_MAX || in->height > GPU_SIDE_MAX ||
	    in->r.width < GPU_SIDE_MIN || in->r.height < GPU_SIDE_MIN || !gpu_rect_inside(&in->r, in->width, in->height) ||
	    in->strides[0] < in->width * GPU_PIXEL)
		return VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
	end = in->offsets[0] + (uint64_t)(in->height - 1) * in->strides[0] + (uint64_t)in->width * GPU_PIXEL;
	if (end > res->size)
		return VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
	reply = res->hosted ? gpu_3d_show_blob(gpu, res) : OK;
	if (reply != OK)
		return reply;
	s = &gpu->scanouts[in->scanout_id];
	gpu_scanout_show(gpu, in->scanout_id, res, &in->r);
	s->format = in->format;
	s->offset = in->offsets[0];
	s->stride = in->strides[0];
	return OK;
}

static uint32_t transfer(struct gpu *gpu, struct gpu_cmd *cmd)
{
	const struct virtio_gpu_transfer_to_host_2d *in = &cmd->in.transfer;
	struct gpu_resource *res = gpu_resource_find(gpu, in->resource_id);
	uint64_t stride, at, row, rows, bytes;
	uint32_t reply = OK;
	uint8_t *to;

	if (!res)
		return VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID;
	if (res->blob)
		return OK;	/* there is only the guest's memory */
	if (!gpu_rect_inside(&in->r, res->width, res->height))
		return VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
	if (!res->backing.pages)
		return VIRTIO_GPU_RESP_ERR_UNSPEC;
	stride = (uint64_t)res->width * GPU_PIXEL;
	to = res->image + in->r.y * stride + (uint64_t)in->r.x * GPU_PIXEL;
	row = (uint64_t)in->r.width * GPU_PIXEL;
	rows = in->r.height;
	if (row == stride) {	/* whole rows are one piece */
		row *= rows;
		rows = 1;
	}
	if (in->offset > res->backing.len)
		return VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
	if (res->remote)
		reply = gpu_3d_transfer(gpu, res, cmd);
	if (res->is_3d || reply == GPU_AGAIN)
		return reply;
	at = in->offset;
	for (uint64_t i = 0; i < rows; i++, at += stride, to += stride) {
		if (!gpu_backing_copy(gpu, res, at, to, row))
			return reply == GPU_HELD ? reply : VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
	}
	bytes = row * rows;
	ring_count(&gpu->stats.transfers, 1);
	ring_count(&gpu->stats.transfer_bytes, bytes);
	return reply == GPU_HELD ? reply : OK;	/* 2D goes on where 3D does not */
}

static uint32_t flush(struct gpu *gpu, struct gpu_cmd *cmd)
{
	const struct virtio_gpu_resource_flush *in = &cmd->in.flush;
	const struct gpu_rect area = {in->r.x, in->r.y, in->r.width, in->r.height};
	struct gpu_resource *res = gpu_resource_find(gpu, in->resource_id);
	uint32_t reply = OK;

	if (!res)
		return VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID;
	if (res->blob ? in->r.width > GPU_SIDE_MAX || in->r.height > GPU_SIDE_MAX || in->r.x > GPU_SIDE_MAX ||
				in->r.y > GPU_SIDE_MAX :
			!gpu_rect_inside(&in->r, res->width, res->height))
		return VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
	if (res->is_3d && res->shown) {
		reply = gpu_3d_flush(gpu, res, &area, cmd);
		if (reply != OK && reply != GPU_HELD)
			return reply;
	} else {
		gpu_flushed(gpu, res, &area, true);
	}
	ring_count(&gpu->stats.flushes, 1);
	return reply;
}

static uint32_t attach(struct gpu *gpu, struct gpu_cmd *cmd)
{
	struct gpu_resource *res = gpu_resource_find(gpu, cmd->in.attach.resource_id);

	if (!res || res->blob)
		return VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID;
	if (res->remote)
		return gpu_3d_attach(gpu, res, cmd);
	return gpu_backing_take(gpu, res, cmd->chain, sizeof(cmd->in.attach), cmd->in.attach.nr_entries);
}

static uint32_t detach(struct gpu *gpu, struct gpu_cmd *cmd)
{
	struct gpu_resource *res = gpu_resource_find(gpu, cmd->in.detach.resource_id);

	if (!res || res->blob)
		return VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID;
	if (!res->backing.pages)
		return VIRTIO_GPU_RESP_ERR_UNSPEC;
	if (res->remote)
		return gpu_3d_detach(gpu, res, cmd);
	gpu_backing_drop(gpu, res);
	return OK;
}

static uint32_t assign_uuid(struct gpu *gpu, struct gpu_cmd *cmd)
{
	struct gpu_resource *res = gpu_resource_find(gpu, cmd->in.assign_uuid.resource_id);

	if (!has(gpu, VIRTIO_GPU_F_RESOURCE_UUID))
		return VIRTIO_GPU_RESP_ERR_UNSPEC;
	if (!res)
		return VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID;
	if (!res->has_uuid) {
		if (getrandom(res->uuid, sizeof(res->uuid), GRND_NONBLOCK) != sizeof(res->uuid))
			return VIRTIO_GPU_RESP_ERR_UNSPEC;
		res->uuid[6] = (uint8_t)((res->uuid[6] & 0x0f) | 0x40);	/* RFC 9562, 5.4 */
		res->uuid[8] = (uint8_t)((res->uuid[8] & 0x3f) | 0x80);
		res->has_uuid = true;
	}
	memcpy(cmd->out.uuid.uuid, res->uuid, sizeof(res->uuid));
	cmd->out_len = sizeof(cmd->out.uuid);
	return VIRTIO_GPU_RESP_OK_RESOURCE_UUID;
}

struct command {
	uint32_t (*run)(struct gpu *gpu, struct gpu_cmd *cmd);
	uint32_t len;
};

#define FIRST VIRTIO_GPU_CMD_GET_DISPLAY_INFO
#define FIRST_3D VIRTIO_GPU_CMD_CTX_CREATE

static const struct command commands_3d[] = {
	[VIRTIO_GPU_CMD_CTX_CREATE - FIRST_3D] = {gpu_context_create, sizeof(struct virtio_gpu_ctx_create)},
	[VIRTIO_GPU_CMD_CTX_DESTROY - FIRST_3D] = {gpu_context_destroy, sizeof(struct virtio_gpu_ctrl_hdr)},
	[VIRTIO_GPU_CMD_CTX_ATTACH_RESOURCE - FIRST_3D] = {gpu_context_attach, sizeof(struct virtio_gpu_ctx_resource)},
	[VIRTIO_GPU_CMD_CTX_DETACH_RESOURCE - FIRST_3D] = {gpu_context_detach, sizeof(struct virtio_gpu_ctx_resource)},
	[VIRTIO_GPU_CMD_RESOURCE_CREATE_3D - FIRST_3D] = {gpu_create_3d, sizeof(struct virtio_gpu_resource_create_3d)},
	[VIRTIO_GPU_CMD_TRANSFER_TO_HOST_3D - FIRST_3D] = {gpu_to_host_3d, sizeof(struct virtio_gpu_transfer_host_3d)},
	[VIRTIO_GPU_CMD_TRANSFER_FROM_HOST_3D - FIRST_3D] = {gpu_from_host_3d, sizeof(struct virtio_gpu_transfer_host_3d)},
	[VIRTIO_GPU_CMD_SUBMIT_3D - FIRST_3D] = {gpu_submit, sizeof(struct virtio_gpu_cmd_submit)},
	[VIRTIO_GPU_CMD_RESOURCE_MAP_BLOB - FIRST_3D] = {gpu_map_blob, sizeof(struct virtio_gpu_resource_map_blob)},
	[VIRTIO_GPU_CMD_RESOURCE_UNMAP_BLOB - FIRST_3D] = {gpu_unmap_blob, sizeof(struct virtio_gpu_resource_unmap_blob)},
};

static const struct command commands[] = {
	[VIRTIO_GPU_CMD_GET_CAPSET_INFO - FIRST] = {gpu_get_capset_info, sizeof(struct virtio_gpu_get_capset_info)},
	[VIRTIO_GPU_CMD_GET_CAPSET - FIRST] = {gpu_get_capset, sizeof(struct virtio_gpu_get_capset)},
	[VIRTIO_GPU_CMD_GET_DISPLAY_INFO - FIRST] = {get_display_info, sizeof(struct virtio_gpu_ctrl_hdr)},
	[VIRTIO_GPU_CMD_RESOURCE_CREATE_2D - FIRST] = {create_2d, sizeof(struct virtio_gpu_resource_create_2d)},
	[VIRTIO_GPU_CMD_RESOURCE_UNREF - FIRST] = {unref, sizeof(struct virtio_gpu_resource_unref)},
	[VIRTIO_GPU_CMD_SET_SCANOUT - FIRST] = {set_scanout, sizeof(struct virtio_gpu_set_scanout)},
	[VIRTIO_GPU_CMD_RESOURCE_FLUSH - FIRST] = {flush, sizeof(struct virtio_gpu_resource_flush)},
	[VIRTIO_GPU_CMD_TRANSFER_TO_HOST_2D - FIRST] = {transfer, sizeof(struct virtio_gpu_transfer_to_host_2d)},
	[VIRTIO_GPU_CMD_RESOURCE_ATTACH_BACKING - FIRST] = {attach, sizeof(struct virtio_gpu_resource_attach_backing)},
	[VIRTIO_GPU_CMD_RESOURCE_DETACH_BACKING - FIRST] = {detach, sizeof(struct virtio_gpu_resource_detach_backing)},
	[VIRTIO_GPU_CMD_GET_EDID - FIRST] = {get_edid, sizeof(struct virtio_gpu_cmd_get_edid)},
	[VIRTIO_GPU_CMD_RESOURCE_ASSIGN_UUID - FIRST] = {assign_uuid, sizeof(struct virtio_gpu_resource_assign_uuid)},
	[VIRTIO_GPU_CMD_RESOURCE_CREATE_BLOB - FIRST] = {create_blob, sizeof(struct virtio_gpu_resource_create_blob)},
	[VIRTIO_GPU_CMD_SET_SCANOUT_BLOB - FIRST] = {set_scanout_blob, sizeof(struct virtio_gpu_set_scanout_blob)},
};

static const struct command *command_of(uint32_t type)
{
	uint32_t i = type - FIRST, j = type - FIRST_3D;

	if (j < sizeof(commands_3d) / sizeof(commands_3d[0]))
		return &commands_3d[j];
	return i < sizeof(commands) / sizeof(commands[0]) && commands[i].run ? &commands[i] : NULL;
}

uint32_t gpu_command_len(uint32_t type)
{
	const struct command *c = command_of(type);

	return c ? c->len : 0;
}

uint32_t gpu_command(struct gpu *gpu, struct gpu_cmd *cmd)
{
	const struct command *c = command_of(cmd->in.hdr.type);

	if (!c || cmd->in_len < c->len)
		return VIRTIO_GPU_RESP_ERR_UNSPEC;
	return c->run(gpu, cmd);
}

/* --- cursor ------------------------------------------------------------------------------------------------------ */

/* The picture of the cursor: a resource of exactly its size, otherwise it is blank. */
void gpu_cursor_image(struct gpu *gpu, uint32_t scanout, const struct gpu_resource *res)
{
	struct gpu_scanout *s = &gpu->scanouts[scanout];

	memset(s->cursor.image, 0, sizeof(s->cursor.image));
	if (res->blob && !res->hosted)
		gpu_backing_copy(gpu, res, 0, s->cursor.image,
				 res->size < sizeof(s->cursor.image) ? res->size : sizeof(s->cursor.image));
	else if (res->width == GPU_CURSOR_SIDE && res->height == GPU_CURSOR_SIDE && res->image)
		memcpy(s->cursor.image, res->image, sizeof(s->cursor.image));
	gpu_changed(gpu);
}

void gpu_cursor_command(struct gpu *gpu, const struct gpu_cmd *cmd)
{
	const struct virtio_gpu_update_cursor *in = &cmd->in.cursor;
	struct gpu_resource *res;
	struct gpu_scanout *s;

	if (cmd->in_len < sizeof(*in) || in->pos.scanout_id >= gpu->nr_scanouts ||
	    (in->hdr.type != VIRTIO_GPU_CMD_UPDATE_CURSOR && in->hdr.type != VIRTIO_GPU_CMD_MOVE_CURSOR)) {
		ring_count(&gpu->stats.errors[0], 1);
		return;
	}
	s = &gpu->scanouts[in->pos.scanout_id];
	if (in->hdr.type == VIRTIO_GPU_CMD_UPDATE_CURSOR) {
		res = in->resource_id ? gpu_resource_find(gpu, in->resource_id) : NULL;
		s->cursor.shown = res != NULL;
		s->cursor.hot_x = in->hot_x;
		s->cursor.hot_y = in->hot_y;
		s->cursor.shapes++;
		if (res)
			gpu_cursor_image(gpu, in->pos.scanout_id, res);
		if (res && res->is_3d)
			gpu_3d_cursor(gpu, res, in->pos.scanout_id);
	}
	s->cursor.x = in->pos.x;
	s->cursor.y = in->pos.y;
	s->cursor.changes++;
	ring_count(&gpu->stats.cursor_commands, 1);
	gpu_changed(gpu);
}
