/* SPDX-License-Identifier: Apache-2.0 */
/*
 * server.c - what all servers have, and one for tests.
 */
#include <stdlib.h>
#include <string.h>

#include "devices/fs/csrc/fs_int.h"

int fs_server_init(struct fs_server *server, const struct fs_server_ops *ops, uint64_t can)
{
	server->ops = ops;
	server->can = can;
	server->cannot = 0;
	server->minor = 0;
	server->flags = 0;
	server->queues = NULL;
	atomic_store(&server->holder, NULL);
	server->pool = fs_pool_new();
	if (!server->pool)
		return -ENOMEM;
	pthread_mutex_init(&server->lock, NULL);
	return 0;
}

void fs_server_exit(struct fs_server *server)
{
	fs_pool_free(server->pool);
	pthread_mutex_destroy(&server->lock);
}

void fs_server_session(struct fs_server *server, struct fs_session *out)
{
	memset(out, 0, sizeof(*out));
	out->minor = __atomic_load_n(&server->minor, __ATOMIC_RELAXED);
	out->max_write = __atomic_load_n(&server->max_write, __ATOMIC_RELAXED);
	out->flags = __atomic_load_n(&server->flags, __ATOMIC_RELAXED);
	out->offered = __atomic_load_n(&server->offered, __ATOMIC_RELAXED);
	out->driver_minor = __atomic_load_n(&server->driver_minor, __ATOMIC_RELAXED);
	fs_pool_counts(server->pool, &out->threads, &out->waiting, &out->threads_max);
}

int fs_server_set_session(struct fs_server *server, const struct fs_session *session)
{
	if (session->minor && (session->minor < FS_FUSE_MINOR_MIN || session->minor > FS_FUSE_MINOR))
		return -EPROTO;
	if (session->flags & ~(fs_flags(server) & session->offered) || session->max_write > FS_WRITE_MAX)
		return -EOPNOTSUPP;
	server->minor = session->minor;
	server->driver_minor = session->driver_minor;
	server->max_write = session->max_write;
	server->flags = session->flags;
	server->offered = session->offered;
	fs_server_settled(server);
	return 0;
}

void fs_server_set_threads(struct fs_server *server, uint32_t max)
{
	fs_pool_set_max(server->pool, max);
}

void fs_server_reset(struct fs_server *server)
{
	if (!server->minor)
		return;
	server->minor = 0;
	server->flags = 0;
	fs_server_settled(server);
	server->ops->reset(server);
}

void fs_server_free(struct fs_server *server)
{
	if (server)
		server->ops->free(server);
}

/* --- for tests -------------------------------------------------------------------------------------------------- */

enum { NULL_PAUSE_NS = 1000000, NULL_PAUSES = 5000 };

static int null_read(const struct fs_req *req)
{
	static const uint8_t zeros[4096];
	uint32_t i;

	for (i = 0; i < req->nr_room; i++) {
		SHM uint8_t *to = req->room[i].base;
		size_t left = req->room[i].len;

		while (left) {
			size_t n = left < sizeof(zeros) ? left : sizeof(zeros);

			shm_copy_out(to, zeros, n);
			to += n;
			left -= n;
		}
	}
	return (int)req->room_len;
}

static int null_lookup(struct fs_req *req, bool pool)
{
	struct timespec nap = { .tv_nsec = NULL_PAUSE_NS };
	int i;

	if (!strcmp(req->name, "wait")) {
		req->again_ns = ring_now_ns() + NULL_PAUSE_NS;
		return FS_AGAIN;
	}
	if (!strcmp(req->name, "stuck")) {
		if (!pool)
			return FS_SLOW;
		for (i = 0; i < NULL_PAUSES && !fs_cancelled(req); i++)
			nanosleep(&nap, NULL);
		return -EINTR;
	}
	return !strcmp(req->name, "slow") && !pool ? FS_SLOW : -ENOENT;
}

/* What was decoded, as attributes. */
static int null_entry(struct fs_req *req)
{
	struct fuse_entry_out *out = FS_OUT(req, fuse_entry_out);
	uint32_t i;

	memset(out, 0, sizeof(*out) + sizeof(struct fuse_open_out));
	out->nodeid = 2;
	out->attr.ino = req->name_len;
	out->attr.size = req->name2_len;
	out->attr.blocks = req->secctx_len;
	out->attr.nlink = req->nr_groups;
	for (i = 0; i < req->nr_groups; i++)
		out->attr.gid += req->groups[i];
	for (i = 0; i < req->secctx_len; i++)
		out->attr.uid += req->secctx_value[i];
	out->attr.mode = req->secctx ? (uint32_t)strlen(req->secctx_name) : 0;
	out->attr.rdev = (uint32_t)strlen(req->name);
	return (int)sizeof(*out) +
	       (req->in.opcode == FUSE_CREATE || req->in.opcode == FUSE_TMPFILE ? (int)sizeof(struct fuse_open_out) : 0);
}

static int null_handle(struct fs_server *server, struct fs_req *req, bool pool)
{
	struct fuse_write_out *count;

	(void)server;
	switch (req->in.opcode) {
	case FUSE_LOOKUP:
		return null_lookup(req, pool);
	case FUSE_SYMLINK:
	case FUSE_MKNOD:
	case FUSE_MKDIR:
	case FUSE_CREATE:
	case FUSE_TMPFILE:
		return null_entry(req);
	case FUSE_READ:
		req->in_place = true;
		return null_read(req);
	case FUSE_WRITE:
	case FUSE_SETXATTR:
		count = FS_OUT(req, fuse_write_out);
		count->size = req->data_len;
		count->padding = req->name_len;
		return req->in.opcode == FUSE_WRITE || req->room_len >= sizeof(*count) ? (int)sizeof(*count) : 0;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_NOTIFY_REPLY:
		return FS_NONE;
	default:
		return -ENOSYS;
	}
}

static void null_reset(struct fs_server *server)
{
	(void)server;
}

static void null_free(struct fs_server *server)
{
	fs_server_exit(server);
	free(server);
}

struct fs_server *fs_null_new(uint64_t can)
{
	static const struct fs_server_ops ops = { .handle = null_handle, .reset = null_reset, .free = null_free };
	struct fs_server *server = calloc(1, sizeof(*server));

	if (server && fs_server_init(server, &ops, can) < 0) {
		free(server);
		server = NULL;
	}
	return server;
}
