/* SPDX-License-Identifier: Apache-2.0 */
/*
 * python.c - requests for file systems written in Python: the arguments of every opcode in one flat struct.
 */
#include <errno.h>
#include <stdlib.h>

#include "devices/fs/csrc/fs_int.h"
#include "devices/fs/csrc/python.h"

#define NS 1000000000ull

struct fs_py_server {
	struct fs_server base;
};

struct fs_py_slot {
	struct fs_py_req py;	/* the first member: Python knows a slot by it too */
	struct fs_req req;
	struct fs_py_server *server;
	uint32_t listed;	/* bytes of a listing so far */
	char text[FS_TEXT_MAX];
};

/* Python handles its requests itself; the operations are only what every server has. */
static int py_handle(struct fs_server *server, struct fs_req *req, bool pool)
{
	(void)server;
	(void)req;
	(void)pool;
	return -EIO;
}

static void py_reset(struct fs_server *server)
{
	(void)server;
}

static void py_free(struct fs_server *server)
{
	fs_server_exit(server);
	free(server);
}

static const struct fs_server_ops py_ops = { .handle = py_handle, .reset = py_reset, .free = py_free };

struct fs_py_server *fs_py_server_new(uint64_t can)
{
	struct fs_py_server *server = calloc(1, sizeof(*server));

	if (server == NULL)
		return NULL;
	if (fs_server_init(&server->base, &py_ops, can)) {
		free(server);
		return NULL;
	}
	return server;
}

void fs_py_server_free(struct fs_py_server *server)
{
	py_free(&server->base);
}

uint64_t fs_py_flags(const struct fs_py_server *server)
{
	return server->base.flags;
}

int fs_py_ready(const struct fs_py_server *server)
{
	return server->base.minor != 0;
}

void fs_py_reset(struct fs_py_server *server)
{
	server->base.minor = 0;
	server->base.flags = 0;
}

struct fs_py_slot *fs_py_slot_new(struct fs_py_server *server)
{
	struct fs_py_slot *slot = calloc(1, sizeof(*slot));

	if (slot == NULL)
		return NULL;
	slot->server = server;
	slot->req.server = &server->base;
	slot->req.text = slot->text;
	return slot;
}

void fs_py_slot_free(struct fs_py_slot *slot)
{
	free(slot);
}

struct fs_py_req *fs_py_req(struct fs_py_slot *slot)
{
	return &slot->py;
}

/* --- requests -------------------------------------------------------------------------------------------------- */

/* The guest's seconds are any number: what nanoseconds in 64 bits cannot hold becomes the nearest that they can. */
static int64_t time_ns(uint64_t g_seconds, uint32_t g_nsec)
{
	const int64_t last = INT64_MAX / (int64_t)NS;
	int64_t seconds = (int64_t)g_seconds;
	int64_t nsec = g_nsec < NS ? (int64_t)g_nsec : (int64_t)NS - 1;

	if (seconds >= last)
		return INT64_MAX;
	if (seconds <= -last)
		return INT64_MIN;
	return seconds * (int64_t)NS + nsec;
}

static uint64_t at_most(uint64_t value, uint32_t limit)
{
	return value < limit ? value : limit;
}

static void flatten_setattr(struct fs_py_req *py, const struct fuse_setattr_in *arg)
{
	py->valid = arg->valid;
	py->fh = arg->fh;
	py->length = arg->size;
	py->owner = arg->lock_owner;
	py->atime_ns = time_ns(arg->atime, arg->atimensec);
	py->mtime_ns = time_ns(arg->mtime, arg->mtimensec);
	py->ctime_ns = time_ns(arg->ctime, arg->ctimensec);
	py->mode = arg->mode;
	py->new_uid = arg->uid;
	py->new_gid = arg->gid;
}

static void flatten_lock(struct fs_py_req *py, const struct fuse_lk_in *arg)
{
	py->fh = arg->fh;
	py->owner = arg->owner;
	py->start = arg->lk.start;
	py->end = arg->lk.end;
	py->lock_type = arg->lk.type;
	py->lock_pid = arg->lk.pid;
	py->fuse_flags = arg->lk_flags;
}

static void flatten_copy(struct fs_py_req *py, const struct fuse_copy_file_range_in *arg)
{
	py->fh = arg->fh_in;
	py->offset = arg->off_in;
	py->nodeid2 = arg->nodeid_out;
	py->fh2 = arg->fh_out;
	py->offset2 = arg->off_out;
	py->length = at_most(arg->len, UINT32_MAX & ~4095u);	/* what the reply can tell */
	py->flags = (uint32_t)arg->flags;
}

/* Opcodes on names. False: not one of them. */
static bool flatten_names(struct fs_py_req *py, const struct fs_req *req)
{
	switch (py->opcode) {
	case FUSE_MKNOD:
		py->mode = FS_ARG(req, fuse_mknod_in)->mode;
		py->rdev = FS_ARG(req, fuse_mknod_in)->rdev;
		py->umask = FS_ARG(req, fuse_mknod_in)->umask;
		return true;
	case FUSE_MKDIR:
		py->mode = FS_ARG(req, fuse_mkdir_in)->mode;
		py->umask = FS_ARG(req, fuse_mkdir_in)->umask;
		return true;
	case FUSE_CREATE:
	case FUSE_TMPFILE:
		py->flags = FS_ARG(req, fuse_create_in)->flags;
		py->mode = FS_ARG(req, fuse_create_in)->mode;
		py->umask = FS_ARG(req, fuse_create_in)->umask;
		py->fuse_flags = FS_ARG(req, fuse_create_in)->open_flags;
		return true;
	case FUSE_RENAME:
		py->nodeid2 = FS_ARG(req, fuse_rename_in)->newdir;
		return true;
	case FUSE_RENAME2:
		py->nodeid2 = FS_ARG(req, fuse_rename2_in)->newdir;
		py->flags = FS_ARG(req, fuse_rename2_in)->flags;
		return true;
	case FUSE_LINK:
		py->nodeid2 = FS_ARG(req, fuse_link_in)->oldnodeid;
		return true;
	case FUSE_SETXATTR:
		py->flags = FS_ARG(req, fuse_setxattr_in)->flags;
		py->length = FS_ARG(req, fuse_setxattr_in)->size;
		py->fuse_flags = FS_ARG(req, fuse_setxattr_in)->setxattr_flags;
		return true;
	case FUSE_GETXATTR:
	case FUSE_LISTXATTR:
		py->length = at_most(FS_ARG(req, fuse_getxattr_in)->size, req->room_len);
		return true;
	default:
		return false;
	}
}

/* Opcodes on open files. */
static void flatten_files(struct fs_py_req *py, const struct fs_req *req)
{
	switch (py->opcode) {
	case FUSE_OPEN:
	case FUSE_OPENDIR:
		py->flags = FS_ARG(req, fuse_open_in)->flags;
		py->fuse_flags = FS_ARG(req, fuse_open_in)->open_flags;
		break;
	case FUSE_READ:
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
		py->fh = FS_ARG(req, fuse_read_in)->fh;
		py->offset = FS_ARG(req, fuse_read_in)->offset;
		/* no driver asks for more than INIT allows */
		py->length = at_most(at_most(FS_ARG(req, fuse_read_in)->size, req->room_len), FS_WRITE_MAX);
		py->owner = FS_ARG(req, fuse_read_in)->lock_owner;
		py->flags = FS_ARG(req, fuse_read_in)->flags;
		py->fuse_flags = FS_ARG(req, fuse_read_in)->read_flags;
		break;
	case FUSE_WRITE:
		py->fh = FS_ARG(req, fuse_write_in)->fh;
		py->offset = FS_ARG(req, fuse_write_in)->offset;
		py->length = req->data_len;
		py->owner = FS_ARG(req, fuse_write_in)->lock_owner;
		py->flags = FS_ARG(req, fuse_write_in)->flags;
		py->fuse_flags = FS_ARG(req, fuse_write_in)->write_flags;
		break;
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
		py->fh = FS_ARG(req, fuse_release_in)->fh;
		py->flags = FS_ARG(req, fuse_release_in)->flags;
		py->fuse_flags = FS_ARG(req, fuse_release_in)->release_flags;
		py->owner = FS_ARG(req, fuse_release_in)->lock_owner;
		break;
	case FUSE_FLUSH:
		py->fh = FS_ARG(req, fuse_flush_in)->fh;
		py->owner = FS_ARG(req, fuse_flush_in)->lock_owner;
		break;
	case FUSE_FSYNC:
	case FUSE_FSYNCDIR:
		py->fh = FS_ARG(req, fuse_fsync_in)->fh;
		py->fuse_flags = FS_ARG(req, fuse_fsync_in)->fsync_flags;
		break;
	case FUSE_FALLOCATE:
		py->fh = FS_ARG(req, fuse_fallocate_in)->fh;
		py->offset = FS_ARG(req, fuse_fallocate_in)->offset;
		py->length = FS_ARG(req, fuse_fallocate_in)->length;
		py->flags = FS_ARG(req, fuse_fallocate_in)->mode;
		break;
	case FUSE_LSEEK:
		py->fh = FS_ARG(req, fuse_lseek_in)->fh;
		py->offset = FS_ARG(req, fuse_lseek_in)->offset;
		py->flags = FS_ARG(req, fuse_lseek_in)->whence;
		break;
	default:
		break;
	}
}

static void flatten(struct fs_py_req *py, const struct fs_req *req)
{
	if (flatten_names(py, req))
		return;
	switch (py->opcode) {
	case FUSE_GETATTR:
		py->fuse_flags = FS_ARG(req, fuse_getattr_in)->getattr_flags;
		py->fh = FS_ARG(req, fuse_getattr_in)->fh;
		break;
	case FUSE_STATX:
		py->fuse_flags = FS_ARG(req, fuse_statx_in)->getattr_flags;
		py->fh = FS_ARG(req, fuse_statx_in)->fh;
		break;
	case FUSE_SETATTR:
		flatten_setattr(py, FS_ARG(req, fuse_setattr_in));
		break;
	case FUSE_GETLK:
	case FUSE_SETLK:
	case FUSE_SETLKW:
		flatten_lock(py, FS_ARG(req, fuse_lk_in));
		break;
	case FUSE_COPY_FILE_RANGE:
	case FUSE_COPY_FILE_RANGE_64:
		flatten_copy(py, FS_ARG(req, fuse_copy_file_range_in));
		break;
	case FUSE_ACCESS:
		py->mode = FS_ARG(req, fuse_access_in)->mask;
		break;
	case FUSE_FORGET:
		py->length = FS_ARG(req, fuse_forget_in)->nlookup;
		break;
	default:
		flatten_files(py, req);
	}
}

int fs_py_decode(struct fs_py_slot *slot, struct ring_chain *chain)
{
	struct fs_py_req *py = &slot->py;
	struct fs_req *req = &slot->req;
	int rc = fs_decode(req, chain);

	*py = (struct fs_py_req){
		.opcode = req->in.opcode,
		.uid = req->in.uid,
		.gid = req->in.gid,
		.pid = req->in.pid,
		.unique = req->in.unique,
		.nodeid = req->in.nodeid,
	};
	slot->listed = 0;
	if (rc)
		return rc;
	if (req->data_len > FS_WRITE_MAX && py->opcode != FUSE_BATCH_FORGET)
		return -EINVAL;	/* Python copies it */
	py->name = req->name;
	py->name2 = req->name2;
	py->name_len = req->name != NULL ? req->name_len : 0;
	py->name2_len = req->name2 != NULL ? req->name2_len : 0;
	py->data_len = req->data_len;
	py->room_len = req->room_len;
	flatten(py, req);
	return 0;
}

uint32_t fs_py_read(const struct fs_py_req *py, uint32_t offset, void *dst, uint32_t len)
{
	const struct fs_req *req = &((const struct fs_py_slot *)(const void *)py)->req;
	uint32_t done = 0;
	uint32_t i;

	if (offset >= req->data_len)
		return 0;
	len = (uint32_t)at_most(len, req->data_len - offset);
	for (i = 0; i < req->nr_data && done < len; i++) {
		const struct ring_iov *piece = &req->data[i];
		size_t n;

		if (offset >= piece->len) {
			offset -= (uint32_t)piece->len;
			continue;
		}
		n = at_most(piece->len - offset, len - done);
		shm_copy_in((char *)dst + done, (const char *)piece->base + offset, n);
		done += (uint32_t)n;
		offset = 0;
	}
	return done;
}

int fs_py_forget(const struct fs_py_req *py, uint32_t index, uint64_t *nodeid, uint64_t *nlookup)
{
	struct fuse_forget_one one;

	if (index >= py->data_len / sizeof(one) ||
	    fs_py_read(py, index * (uint32_t)sizeof(one), &one, sizeof(one)) != sizeof(one))
		return 0;
	*nodeid = one.nodeid;
	*nlookup = one.nlookup;
	return 1;
}

/* --- answers --------------------------------------------------------------------------------------------------- */

uint32_t fs_py_init(struct fs_py_slot *slot)
{
	return fs_reply(&slot->req, fs_init(&slot->server->base, &slot->req));
}

uint32_t fs_py_none(struct fs_py_slot *slot)
{
	return fs_reply(&slot->req, FS_NONE);
}

uint32_t fs_py_fail(struct fs_py_slot *slot, int error)
{
	if (error > 0)
		error = -error;
	/* what the kernel takes for an error number; it drops the connection over others */
	if (error < -511)
		error = -EIO;
	return fs_reply(&slot->req, error);
}

/* Copy @len bytes of ours into the room behind the out header, from @offset on: they fit. */
static void put(struct fs_py_slot *slot, uint32_t offset, const void *src, uint32_t len)
{
	const struct fs_req *req = &slot->req;
	uint32_t done = 0;
	uint32_t i;

	for (i = 0; i < req->nr_room && done < len; i++) {
		const struct ring_iov *piece = &req->room[i];
		size_t n;

		if (offset >= piece->len) {
			offset -= (uint32_t)piece->len;
			continue;
		}
		n = at_most(piece->len - offset, len - done);
		shm_copy_out((char *)piece->base + offset, (const char *)src + done, n);
		done += (uint32_t)n;
		offset = 0;
	}
}

uint32_t fs_py_data(struct fs_py_slot *slot, const void *data, uint32_t len)
{
	if (len > slot->req.room_len || len > INT32_MAX)
		return fs_py_fail(slot, ERANGE);
	put(slot, 0, data, len);
	slot->req.in_place = true;
	return fs_reply(&slot->req, (int)len);
}

/* Seconds and nanoseconds of a time that may lie before 1970. */
static uint64_t split_ns(int64_t ns, uint32_t *nsec)
{
	int64_t seconds = ns / (int64_t)NS;
	int64_t rest = ns % (int64_t)NS;

	if (rest < 0) {
		rest += (int64_t)NS;
		seconds--;
	}
	*nsec = (uint32_t)rest;
	return (uint64_t)seconds;
}

static void put_attr(struct fuse_attr *out, const struct fs_py_attr *attr)
{
	*out = (struct fuse_attr){
		.ino = attr->inode,
		.size = attr->size,
		.blocks = attr->blocks,
		.mode = attr->mode,
		.nlink = attr->nlink,
		.uid = attr->uid,
		.gid = attr->gid,
		.rdev = attr->rdev,
		.blksize = attr->blksize,
	};
	out->atime = split_ns(attr->atime_ns, &out->atimensec);
	out->mtime = split_ns(attr->mtime_ns, &out->mtimensec);
	out->ctime = split_ns(attr->ctime_ns, &out->ctimensec);
}

static void put_entry(struct fuse_entry_out *out, const struct fs_py_attr *attr)
{
	*out = (struct fuse_entry_out){
		.nodeid = attr->inode,
		.generation = attr->generation,
		.entry_valid = attr->entry_ns / NS,
		.entry_valid_nsec = (uint32_t)(attr->entry_ns % NS),
		.attr_valid = attr->attr_ns / NS,
		.attr_valid_nsec = (uint32_t)(attr->attr_ns % NS),
	};
	if (attr->inode)
		put_attr(&out->attr, attr);
}

uint32_t fs_py_entry(struct fs_py_slot *slot, const struct fs_py_attr *attr)
{
	put_entry(FS_OUT(&slot->req, fuse_entry_out), attr);
	return fs_reply(&slot->req, sizeof(struct fuse_entry_out));
}

static void put_statx_time(struct fuse_sx_time *out, int64_t ns)
{
	out->tv_sec = (int64_t)split_ns(ns, &out->tv_nsec);
}

static uint32_t reply_statx(struct fs_py_slot *slot, const struct fs_py_attr *attr)
{
	struct fuse_statx_out *out = FS_OUT(&slot->req, fuse_statx_out);
	struct fuse_statx *st = &out->stat;

	*out = (struct fuse_statx_out){
		.attr_valid = attr->attr_ns / NS,
		.attr_valid_nsec = (uint32_t)(attr->attr_ns % NS),
	};
	st->mask = 0x7ff | (attr->btime_ns ? 0x800 : 0);	/* STATX_BASIC_STATS, STATX_BTIME */
	st->blksize = attr->blksize;
	st->nlink = attr->nlink;
	st->uid = attr->uid;
	st->gid = attr->gid;
	st->mode = (uint16_t)attr->mode;
	st->ino = attr->inode;
	st->size = attr->size;
	st->blocks = attr->blocks;
	st->rdev_major = attr->rdev >> 8 & 0xfff;
	st->rdev_minor = (attr->rdev & 0xff) | (attr->rdev >> 12 & 0xfff00);
	put_statx_time(&st->atime, attr->atime_ns);
	put_statx_time(&st->mtime, attr->mtime_ns);
	put_statx_time(&st->ctime, attr->ctime_ns);
	put_statx_time(&st->btime, attr->btime_ns);
	return fs_reply(&slot->req, sizeof(*out));
}

uint32_t fs_py_attr(struct fs_py_slot *slot, const struct fs_py_attr *attr)
{
	struct fuse_attr_out *out = FS_OUT(&slot->req, fuse_attr_out);

	if (slot->req.in.opcode == FUSE_STATX)
		return reply_statx(slot, attr);
	*out = (struct fuse_attr_out){
		.attr_valid = attr->attr_ns / NS,
		.attr_valid_nsec = (uint32_t)(attr->attr_ns % NS),
	};
	put_attr(&out->attr, attr);
	return fs_reply(&slot->req, sizeof(*out));
}

uint32_t fs_py_opened(struct fs_py_slot *slot, uint64_t fh, uint32_t flags)
{
	*FS_OUT(&slot->req, fuse_open_out) = (struct fuse_open_out){ .fh = fh, .open_flags = flags };
	return fs_reply(&slot->req, sizeof(struct fuse_open_out));
}

uint32_t fs_py_created(struct fs_py_slot *slot, const struct fs_py_attr *attr, uint64_t fh, uint32_t flags)
{
	struct {
		struct fuse_entry_out entry;
		struct fuse_open_out open;
	} *out = (void *)slot->req.out;

	put_entry(&out->entry, attr);
	out->open = (struct fuse_open_out){ .fh = fh, .open_flags = flags };
	return fs_reply(&slot->req, sizeof(*out));
}

uint32_t fs_py_count(struct fs_py_slot *slot, uint32_t bytes)
{
	if (slot->req.in.opcode == FUSE_COPY_FILE_RANGE_64)	/* the same in 64 bits */
		return fs_py_offset(slot, bytes);
	*FS_OUT(&slot->req, fuse_write_out) = (struct fuse_write_out){ .size = bytes };
	return fs_reply(&slot->req, sizeof(struct fuse_write_out));
}

uint32_t fs_py_offset(struct fs_py_slot *slot, uint64_t offset)
{
	*FS_OUT(&slot->req, fuse_lseek_out) = (struct fuse_lseek_out){ .offset = offset };
	return fs_reply(&slot->req, sizeof(struct fuse_lseek_out));
}

uint32_t fs_py_statfs(struct fs_py_slot *slot, const struct fs_py_statfs *st)
{
	*FS_OUT(&slot->req, fuse_statfs_out) = (struct fuse_statfs_out){ .st = {
		.blocks = st->blocks,
		.bfree = st->bfree,
		.bavail = st->bavail,
		.files = st->files,
		.ffree = st->ffree,
		.bsize = st->bsize,
		.frsize = st->frsize,
		.namelen = st->namelen,
	} };
	return fs_reply(&slot->req, sizeof(struct fuse_statfs_out));
}

uint32_t fs_py_lock(struct fs_py_slot *slot, uint64_t start, uint64_t end, uint32_t type, uint32_t pid)
{
	*FS_OUT(&slot->req, fuse_lk_out) = (struct fuse_lk_out){
		.lk = { .start = start, .end = end, .type = type, .pid = pid },
	};
	return fs_reply(&slot->req, sizeof(struct fuse_lk_out));
}

int fs_py_dirent(struct fs_py_slot *slot, uint64_t inode, uint64_t next, uint32_t type, const char *name, uint32_t len,
		 const struct fs_py_attr *attr)
{
	bool plus = slot->req.in.opcode == FUSE_READDIRPLUS;
	struct fuse_dirent dirent = { .ino = inode, .off = next, .namelen = len, .type = type };
	uint32_t head = (plus ? (uint32_t)sizeof(struct fuse_entry_out) : 0) + (uint32_t)FUSE_NAME_OFFSET;
	uint32_t at = slot->listed;
	uint32_t size;

	if (len > FS_NAME_MAX)
		return 0;
	size = (uint32_t)FUSE_REC_ALIGN(head + len);
	if (size > at_most(slot->py.length, slot->req.room_len) - at)
		return 0;
	if (plus) {
		struct fuse_entry_out entry = { 0 };

		if (attr != NULL)
			put_entry(&entry, attr);
		put(slot, at, &entry, sizeof(entry));
		at += (uint32_t)sizeof(entry);
	}
	put(slot, at, &dirent, (uint32_t)FUSE_NAME_OFFSET);
	put(slot, at + (uint32_t)FUSE_NAME_OFFSET, name, len);
	put(slot, slot->listed + head + len, "\0\0\0\0\0\0\0", size - head - len);
	slot->listed += size;
	return 1;
}

uint32_t fs_py_listed(struct fs_py_slot *slot)
{
	slot->req.in_place = true;
	return fs_reply(&slot->req, (int)slot->listed);
}
