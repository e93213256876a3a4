/* SPDX-License-Identifier: Apache-2.0 */
/*
 * state.c - what a guest knows of a folder, for another process: inodes, open files, locks.
 *
 * Files are found by their path below the folder, where nothing leads out of it; where both sides look at one file system
 * the inode number has to be the same as well. What has no path any more (deleted, but open) is found by its file handle
 * if that is allowed: a handle is a number that opens any file of the file system, and the bytes come from outside.
 * What is not found is forgotten: the guest is told ESTALE when it asks for it.
 */
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/statfs.h>
#include <sys/syscall.h>

#include "devices/fs/csrc/state_int.h"

#define for_each(i, table) \
	for ((i) = pass_table_next((table), 1); (i); (i) = pass_table_next((table), (i) + 1))

/* --- writing --------------------------------------------------------------------------------------------------- */

struct writer {
	struct state_bytes to;
	struct pass *fs;
	struct pass_state *out;
	char base[STATE_PATH_MAX];	/* what paths of ours begin with */
	size_t base_len;
};

void state_put(struct state_bytes *to, const void *from, size_t len)
{
	if (to->failed || !len)
		return;
	if (to->room - to->len < len) {
		size_t room = (to->room ? to->room : 65536) * 2;
		uint8_t *more;

		while (room - to->len < len)
			room *= 2;
		more = realloc(to->bytes, room);
		if (!more) {
			to->failed = true;
			return;
		}
		to->bytes = more;
		to->room = room;
	}
	memcpy(to->bytes + to->len, from, len);
	to->len += len;
}

void state_put_record(struct state_bytes *to, uint32_t kind, size_t len)
{
	struct record record = { kind, (uint32_t)((len + 7) & ~(size_t)7) };

	state_put(to, &record, sizeof(record));
}

void state_put_padding(struct state_bytes *to)
{
	static const uint8_t zeros[8];

	state_put(to, zeros, -to->len & 7);
}

/* Where the inode is below the folder: bytes of @path, 0 where that cannot be said. */
static size_t find_path(struct writer *w, struct pass_inode *inode, char path[STATE_PATH_MAX])
{
	struct pass *fs = w->fs;
	struct statx stx;
	char number[16];
	ssize_t n;
	int fd = pass_inode_fd(fs, inode);

	if (fd < 0)
		return 0;
	n = readlinkat(fs->proc_fd, pass_fd_name(fd, number), path, STATE_PATH_MAX - 1);
	pass_inode_fd_put(fs, inode, fd);
	if (n <= (ssize_t)w->base_len || memcmp(path, w->base, w->base_len) != 0 || path[w->base_len] != '/')
		return 0;
	path[n] = '\0';
	n -= (ssize_t)w->base_len + 1;
	memmove(path, path + w->base_len + 1, (size_t)n + 1);
	/* the kernel's word for where it is may be out of date, or made up where it does not know */
	if (!n || pass_statx(fs->root_fd, path, &stx) < 0 || stx.stx_ino != inode->ino ||
	    stx.stx_mode >> 12 != inode->type)
		return 0;
	return (size_t)n;
}

static void put_inode(struct writer *w, struct pass_inode *inode)
{
	struct pass *fs = w->fs;
	char path[STATE_PATH_MAX];
	struct inode_record r = {
		.nodeid = pass_inode_id(inode),
		.nlookup = inode->nlookup,
		.ino = inode->ino,
		.btime = inode->btime,
		.type = inode->type,
		.handle_type = inode->handle_type,
		.handle_len = inode->handle_len == PASS_BY_NAME ? 0 : inode->handle_len,
		.in_root = inode->mount == fs->root_mount,
	};

	r.path_len = (uint16_t)find_path(w, inode, path);
	if (!r.path_len)
		w->out->inodes_lost++;
	w->out->inodes++;
	state_put_record(&w->to, RECORD_INODE, sizeof(r) + r.handle_len + r.path_len);
	state_put(&w->to, &r, sizeof(r));
	state_put(&w->to, r.handle_len > PASS_HANDLE_INLINE ? inode->handle_far : inode->handle, r.handle_len);
	state_put(&w->to, path, r.path_len);
	state_put_padding(&w->to);
}

static void put_file(struct writer *w, const struct pass_file *file)
{
	struct file_record r = {
		.fh = (atomic_load(&file->word) & ~(uint64_t)UINT32_MAX) | file->index,
		.nodeid = pass_inode_id(file->inode),
		.flags = (uint32_t)file->flags,
		.flock = atomic_load(&file->flock),
	};

	state_put_record(&w->to, RECORD_FILE, sizeof(r));
	state_put(&w->to, &r, sizeof(r));
	w->out->files++;
	if (r.flock) {
		w->out->locks++;
		flock(file->fd, LOCK_UN);
	}
}

/* Of one inode. The kernel's locks go, our record of them stays. */
static void put_locks(struct writer *w, const struct pass_inode *inode, const struct pass_locks *locks)
{
	const struct lock_owner *owner;
	uint32_t i;

	for (owner = locks->owners; owner; owner = owner->next) {
		struct locks_record r = { pass_inode_id(inode), owner->owner, owner->pid, owner->nr };
		struct flock all = { .l_type = F_UNLCK, .l_whence = SEEK_SET };

		if (!owner->nr)
			continue;
		state_put_record(&w->to, RECORD_LOCKS, sizeof(r) + owner->nr * sizeof(struct range_record));
		state_put(&w->to, &r, sizeof(r));
		for (i = 0; i < owner->nr; i++) {
			const struct lock_range *range = &owner->ranges[i];
			struct range_record out = { range->start, range->end, range->type };

			state_put(&w->to, &out, sizeof(out));
		}
		w->out->locks += owner->nr;
		fcntl(owner->fd, F_OFD_SETLK, &all);
	}
}

static void put_header(struct writer *w)
{
	struct pass *fs = w->fs;
	struct state_header h = {
		.magic = STATE_MAGIC,
		.bytes = sizeof(h),
		.minor = fs->server.minor,
		.flags = fs->server.flags,
		.offered = fs->server.offered,
		.driver_minor = fs->server.driver_minor,
		.max_write = fs->server.max_write,
	};
	struct statfs sb;
	char number[16];
	ssize_t n;

	if (fstatfs(fs->root_fd, &sb) == 0) {
		h.fs_type = (uint64_t)sb.f_type;
		memcpy(&h.fs_id, &sb.f_fsid, sizeof(h.fs_id));
	}
	state_put(&w->to, &h, sizeof(h));
	n = readlinkat(fs->proc_fd, pass_fd_name(fs->root_fd, number), w->base, sizeof(w->base));
	/* a root of its own shows as "/" */
	w->base_len = n > 1 && n < (ssize_t)sizeof(w->base) ? (size_t)n : 0;
}

int pass_state_save(struct fs_server *server, struct pass_state *out)
{
	struct writer *w = calloc(1, sizeof(*w));
	struct pass *fs = pass_of(server);
	uint32_t i;

	memset(out, 0, sizeof(*out));
	if (!w)
		return -ENOMEM;
	w->fs = fs;
	w->out = out;
	put_header(w);
	for_each(i, &fs->inodes) {
		struct pass_inode *inode = pass_table_slot(&fs->inodes, i);

		if (inode != fs->root)
			put_inode(w, inode);
	}
	for_each(i, &fs->files)
		put_file(w, pass_table_slot(&fs->files, i));
	for_each(i, &fs->inodes) {
		struct pass_inode *inode = pass_table_slot(&fs->inodes, i);
		struct pass_locks *locks = atomic_load(&inode->locks);

		if (locks)
			put_locks(w, inode, locks);
	}
	state_put_record(&w->to, RECORD_END, 0);
	out->bytes = w->to.bytes;
	out->len = w->to.len;
	if (w->to.failed) {
		pass_state_free(out);
		pass_state_resume(server);
	}
	i = w->to.failed;
	free(w);
	return i ? -ENOMEM : 0;
}

void pass_state_free(struct pass_state *state)
{
	free(state->bytes);
	state->bytes = NULL;
	state->len = 0;
}

uint64_t pass_state_resume(struct fs_server *server)
{
	struct pass *fs = pass_of(server);
	uint64_t lost = 0;
	uint32_t i;

	for_each(i, &fs->files) {
		struct pass_file *file = pass_table_slot(&fs->files, i);

		if (!atomic_load(&file->flock))
			continue;
		if (flock(file->fd, atomic_load(&file->flock) | LOCK_NB) < 0)
			lost++;
	}
	for_each(i, &fs->inodes) {
		struct pass_inode *inode = pass_table_slot(&fs->inodes, i);
		struct pass_locks *locks = atomic_load(&inode->locks);

		if (locks)
			lost += pass_locks_again(locks);
	}
	return lost;
}

/* --- reading --------------------------------------------------------------------------------------------------- */

struct reader {
	struct pass *fs;
	const uint8_t *bytes;
	size_t len, at;
	const struct state_means *means;
	bool same_fs;			/* both sides look at one file system: inode numbers mean the same */
	struct pass_state *report;
};

static bool get(struct reader *r, void *to, size_t len)
{
	if (r->len - r->at < len)
		return false;
	memcpy(to, r->bytes + r->at, len);
	r->at += len;
	return true;
}

static bool same_inode(const struct reader *r, const struct inode_record *in, const struct statx *stx)
{
	uint64_t btime = (uint64_t)stx->stx_btime.tv_sec * 1000000000 + stx->stx_btime.tv_nsec;

	if (stx->stx_mode >> 12 != in->type)
		return false;
	if (!r->same_fs || !in->in_root)
		return true;
	return stx->stx_ino == in->ino && (!in->btime || !(stx->stx_mask & STATX_BTIME) || btime == in->btime);
}

/* Never out of the folder, never by a link. */
static int open_by_path(const struct reader *r, const char *path)
{
	struct open_how how = {
		.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
	};
	int fd;

	do
		fd = (int)syscall(SYS_openat2, r->fs->root_fd, path, &how, sizeof(how));
	while (fd < 0 && (errno == EAGAIN || pass_fds_relieve(r->fs, -errno)));
	return fd;
}

static int open_by_handle(const struct reader *r, const struct inode_record *in, const uint8_t *handle)
{
	union {
		struct file_handle h;
		uint8_t room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} u;
	const struct pass_mount *mount = &r->fs->mounts[r->fs->root_mount];

	if (!r->means->handles || !r->same_fs || !in->in_root || !in->handle_len || mount->fd < 0)
		return -1;
	u.h.handle_bytes = in->handle_len;
	u.h.handle_type = in->handle_type;
	memcpy(u.h.f_handle, handle, in->handle_len);
	return open_by_handle_at(mount->fd, &u.h, O_PATH | O_NOFOLLOW | O_CLOEXEC);
}

/* A copy of a descriptor that somebody kept for us; -1: none is of that file. */
static int find_kept(const struct reader *r, const struct inode_record *in, struct statx *stx)
{
	uint64_t dev = r->fs->mounts[r->fs->root_mount].dev;
	uint32_t i;

	if (!r->same_fs || !in->in_root)
		return -1;
	/* another process had another mount of the same file system */
	for (i = 0; i < r->means->nr; i++)
		if (pass_statx(r->means->fds[i], NULL, stx) == 0 && same_inode(r, in, stx) &&
		    dev == ((uint64_t)stx->stx_dev_major << 32 | stx->stx_dev_minor))
			return fcntl(r->means->fds[i], F_DUPFD_CLOEXEC, 0);
	return -1;
}

/* The inode where it is now; -1: it is not. */
static int find_inode(const struct reader *r, const struct inode_record *in, const uint8_t *handle, const char *path,
		      struct statx *stx)
{
	int fd = path[0] ? open_by_path(r, path) : -1;

	if (fd >= 0) {
		if (pass_statx(fd, NULL, stx) == 0 && same_inode(r, in, stx))
			return fd;
		close(fd);
	}
	fd = open_by_handle(r, in, handle);
	if (fd >= 0) {
		if (pass_statx(fd, NULL, stx) == 0 && same_inode(r, in, stx))
			return fd;
		close(fd);
	}
	return find_kept(r, in, stx);
}

static int read_inode(struct reader *r, uint32_t len)
{
	uint8_t handle[MAX_HANDLE_SZ];
	char path[STATE_PATH_MAX];
	struct inode_record in;
	struct statx stx;
	int fd, rc;

	if (len < sizeof(in) || !get(r, &in, sizeof(in)))
		return -EINVAL;
	if (in.handle_len > sizeof(handle) || in.path_len >= sizeof(path) ||
	    len - sizeof(in) < (size_t)in.handle_len + in.path_len)
		return -EINVAL;
	if (!in.nlookup || !get(r, handle, in.handle_len) || !get(r, path, in.path_len))
		return -EINVAL;
	path[in.path_len] = '\0';
	if (strlen(path) != in.path_len || (uint32_t)in.nodeid == r->fs->root->index)
		return -EINVAL;
	r->report->inodes++;
	fd = find_inode(r, &in, handle, path, &stx);
	rc = pass_inode_restore(r->fs, in.nodeid, in.nlookup, fd < 0 ? NULL : &stx, fd);
	if (rc == -ESTALE) {
		r->report->inodes_lost++;
		rc = 0;
	}
	if (fd >= 0)
		close(fd);
	return rc;
}

static int read_file(struct reader *r, uint32_t len)
{
	struct pass *fs = r->fs;
	struct pass_inode *inode;
	struct file_record in;
	int flags, fd, rc;

	if (len != sizeof(in) || !get(r, &in, sizeof(in)))
		return -EINVAL;
	if (in.flock & ~(uint32_t)(LOCK_SH | LOCK_EX))
		return -EINVAL;
	flags = pass_open_flags(fs, in.flags & ~(uint32_t)O_TRUNC);
	if (fs->opt.read_only && (flags & O_ACCMODE) != O_RDONLY)
		return -EINVAL;
	r->report->files++;
	inode = pass_inode_get(fs, in.nodeid);
	fd = -1;
	if (inode)
		fd = pass_inode_open(fs, inode, pass_inode_type(inode) == S_IFDIR ? O_RDONLY | O_DIRECTORY : flags);
	rc = pass_file_restore(fs, inode, fd, flags, in.fh);
	if (rc && fd >= 0)
		close(fd);
	if (rc == -EBADF) {
		r->report->files_lost++;
		rc = 0;
	} else if (!rc && in.flock) {
		struct pass_file *file = pass_file_get(fs, in.fh);

		r->report->locks++;
		if (flock(fd, (int)in.flock | LOCK_NB) < 0)
			r->report->locks_lost++;
		else
			atomic_store(&file->flock, (uint8_t)in.flock);
		pass_file_put(fs, file);
	}
	if (inode)
		pass_inode_put(fs, inode);
	return rc;
}

static int read_locks(struct reader *r, uint32_t len)
{
	struct pass *fs = r->fs;
	struct pass_inode *inode;
	struct locks_record in;
	uint32_t i;
	int rc = 0;

	if (len < sizeof(in) || !get(r, &in, sizeof(in)))
		return -EINVAL;
	if ((len - sizeof(in)) / sizeof(struct range_record) < in.nr)
		return -EINVAL;
	inode = pass_inode_get(fs, in.nodeid);
	for (i = 0; i < in.nr && !rc; i++) {
		struct range_record range;
		struct lock_range want;

		get(r, &range, sizeof(range));
		want = (struct lock_range){ range.start, range.end, (uint32_t)range.type };
		if ((want.type != F_RDLCK && want.type != F_WRLCK) || want.end > INT64_MAX || want.start > want.end)
			rc = -EINVAL;
		r->report->locks++;
		if (!rc && (!inode || pass_locks_set(fs, inode, in.owner, &want, in.pid) < 0))
			r->report->locks_lost++;
	}
	if (inode)
		pass_inode_put(fs, inode);
	return rc;
}

static int read_header(struct reader *r)
{
	struct fs_server *server = &r->fs->server;
	struct state_header h;
	struct statfs sb;
	uint64_t fs_id = 0;

	if (!get(r, &h, sizeof(h)) || h.magic != STATE_MAGIC || h.bytes != sizeof(h))
		return -EINVAL;
	if (h.minor) {
		struct fs_session session = {
			.minor = h.minor, .max_write = h.max_write, .flags = h.flags, .offered = h.offered,
			.driver_minor = h.driver_minor,
		};
		int rc = fs_server_set_session(server, &session);

		if (rc)
			return rc;
	}
	if (fstatfs(r->fs->root_fd, &sb) == 0)
		memcpy(&fs_id, &sb.f_fsid, sizeof(fs_id));
	r->same_fs = fs_id && fs_id == h.fs_id && (uint64_t)sb.f_type == h.fs_type;
	return 0;
}

static int read_records(struct reader *r)
{
	struct record record;
	size_t next;
	int rc;

	for (;;) {
		if (!get(r, &record, sizeof(record)) || record.len % 8 || r->len - r->at < record.len)
			return -EINVAL;
		next = r->at + record.len;
		switch (record.kind) {
		case RECORD_INODE:
			rc = read_inode(r, record.len);
			break;
		case RECORD_FILE:
			rc = read_file(r, record.len);
			break;
		case RECORD_LOCKS:
			rc = read_locks(r, record.len);
			break;
		case RECORD_END:
			return 0;
		default:
			return -EINVAL;
		}
		if (rc)
			return rc;
		r->at = next;
	}
}

int pass_state_load(struct fs_server *server, const uint8_t *bytes, uint64_t len, int handles,
		    struct pass_state *report)
{
	struct state_means means = { .handles = handles != 0 };

	return state_load(server, bytes, len, &means, report);
}

int state_load(struct fs_server *server, const uint8_t *bytes, uint64_t len, const struct state_means *means,
	       struct pass_state *report)
{
	struct reader r = {
		.fs = pass_of(server), .bytes = bytes, .len = len, .means = means, .report = report,
	};
	int rc;

	memset(report, 0, sizeof(*report));
	server->minor = 0;
	server->flags = 0;
	fs_server_settled(server);
	server->ops->reset(server);
	rc = read_header(&r);
	if (!rc)
		rc = read_records(&r);
	pass_table_settle(&r.fs->inodes);
	pass_table_settle(&r.fs->files);
	report->len = r.at;
	if (rc) {
		server->minor = 0;
		server->flags = 0;
		fs_server_settled(server);
		server->ops->reset(server);
	}
	return rc;
}
