/* SPDX-License-Identifier: Apache-2.0 */
/*
 * io.c - open files and their data: OPEN, READ, WRITE, FLUSH, FSYNC, RELEASE.
 *
 * Data goes straight between the file and the guest's pages. What the page cache holds is read on the worker, by a call
 * that says so where it would have to wait; a thread of the pool does the rest. Writes go into the page cache, which
 * waits only where the host is short of memory for them; what must reach the disk first is for the pool.
 */
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "devices/fs/csrc/data_int.h"

#ifndef RWF_NOAPPEND
#define RWF_NOAPPEND 0x20	/* Linux 6.9 */
#endif

enum {
	IO_TRUNC_INLINE = 1 << 20,	/* bytes of a file that is emptied without a thread */
};

/* --- opening and closing --------------------------------------------------------------------------------------- */

int pass_open_flags(const struct pass *fs, uint32_t flags)
{
	int keep = O_ACCMODE | O_APPEND | O_TRUNC | O_DSYNC | O_SYNC | O_NOATIME;
	int host = (int)flags & keep;

	if (fs->opt.allow_direct_io)
		host |= (int)flags & O_DIRECT;
	if (fs->server.flags & FUSE_WRITEBACK_CACHE) {
		/* the guest's kernel fills up pages that it writes in part, and knows where the end is */
		if ((host & O_ACCMODE) == O_WRONLY)
			host = (host & ~O_ACCMODE) | O_RDWR;
		host &= ~O_APPEND;
	}
	return host | O_CLOEXEC | O_NOCTTY;
}

uint32_t pass_open_answer(const struct pass *fs, int flags, bool waits)
{
	uint32_t answer = fs->opt.file_flags;

	/* without the guest's cache nothing keeps its writers apart but the host, which does it better */
	if ((flags & O_DIRECT) || (answer & FOPEN_DIRECT_IO))
		answer |= FOPEN_PARALLEL_DIRECT_WRITES;
	if (fs->server.minor >= 35 && !(fs->server.flags & (FUSE_POSIX_LOCKS | FUSE_WRITEBACK_CACHE)) && !waits)
		answer |= FOPEN_NOFLUSH;	/* neither locks nor data wait for it, nor has the host something to say */
	return answer;
}

/* Would it take long to empty the file? */
static bool is_big(struct pass *fs, struct pass_inode *inode)
{
	int fd = pass_inode_fd(fs, inode);
	struct stat st;
	bool big;

	if (fd < 0)
		return false;	/* the open will say why */
	big = fstat(fd, &st) < 0 || st.st_size > IO_TRUNC_INLINE;
	pass_inode_fd_put(fs, inode, fd);
	return big;
}

/* The guest's kernel has checked that it may be opened so; we may be less than root, and get by with less. */
static int open_inode(struct pass *fs, struct fs_req *req, struct pass_inode *inode, int *flags)
{
	uint32_t asked = FS_ARG(req, fuse_open_in)->flags;
	int fd = pass_inode_open(fs, inode, *flags | O_NONBLOCK);

	if (fd == -EACCES && (asked & O_ACCMODE) == O_WRONLY && (*flags & O_ACCMODE) == O_RDWR) {
		*flags = (*flags & ~O_ACCMODE) | O_WRONLY;
		fd = pass_inode_open(fs, inode, *flags | O_NONBLOCK);
	}
	if (fd == -EPERM && (*flags & O_NOATIME)) {	/* for owners only */
		*flags &= ~O_NOATIME;
		fd = pass_inode_open(fs, inode, *flags | O_NONBLOCK);
	}
	if (fd == -EINVAL && (*flags & O_DIRECT)) {	/* the file system has none: the page cache does it */
		*flags &= ~O_DIRECT;
		fd = pass_inode_open(fs, inode, *flags | O_NONBLOCK);
	}
	/* whoever has a lease on it is told, and given time to let go */
	return fd == -EWOULDBLOCK ? pass_again(req) : fd;
}

int pass_open(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	const struct fuse_open_in *in = FS_ARG(req, fuse_open_in);
	struct fuse_open_out *out = FS_OUT(req, fuse_open_out);
	struct pass_cred cred;	/* large, and hardly ever used */
	int flags = pass_open_flags(fs, in->flags);
	bool kill = (flags & O_TRUNC) && (in->open_flags & FUSE_OPEN_KILL_SUIDGID);
	int fd, rc;

	if (pass_no_open(fs, FUSE_NO_OPEN_SUPPORT))
		return -ENOSYS;
	if ((flags & O_ACCMODE) == O_ACCMODE)
		return -EINVAL;
	if (fs->opt.read_only && flags & (O_ACCMODE | O_TRUNC))
		return -EROFS;
	if (!S_ISREG(pass_inode_type(inode)))
		return S_ISDIR(pass_inode_type(inode)) ? -EISDIR : S_ISLNK(pass_inode_type(inode)) ? -ELOOP : -EACCES;
	if ((flags & O_TRUNC) && !pool && is_big(fs, inode))
		return FS_SLOW;
	if (kill) {
		rc = pass_cred_no_fsetid(fs, &cred);
		if (rc)
			return rc;
	}
	fd = open_inode(fs, req, inode, &flags);
	if (kill)
		pass_cred_leave(fs, &cred);
	if (fd < 0)
		return fd;
	if (flags & O_TRUNC)
		pass_xattr_drop_caps(fs, fd);
	memset(out, 0, sizeof(*out));
	rc = pass_file_new(fs, inode, fd, flags, &out->fh);
	if (rc) {
		close(fd);
		return rc;
	}
	out->open_flags = pass_open_answer(fs, flags, pass_inode_mount(fs, inode)->waits);
	return sizeof(*out);
}

/* The last close of a deleted file is what deletes it: would that take long? */
static bool frees_much(const struct pass *fs, const struct pass_file *file)
{
	struct stat st;

	return !pass_file_is_small(fs, file) && fstat(file->fd, &st) == 0 && !st.st_nlink && st.st_size > PASS_SMALL;
}

int pass_release(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	const struct fuse_release_in *in = FS_ARG(req, fuse_release_in);
	struct pass_file *file = pass_file_get(fs, in->fh);

	(void)inode;
	if (!file)
		return -EBADF;
	if (!pool && (pass_file_waits(fs, file) || frees_much(fs, file))) {
		pass_file_put(fs, file);
		return FS_SLOW;
	}
	if (in->release_flags & FUSE_RELEASE_FLUSH)
		pass_locks_release(fs, file->inode, in->lock_owner);
	pass_file_release(fs, file);
	pass_file_put(fs, file);
	return 0;
}

int pass_flush(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	const struct fuse_flush_in *in = FS_ARG(req, fuse_flush_in);
	struct pass_file *file = pass_file_get(fs, in->fh);
	int rc = 0;

	(void)inode;
	if (!file)
		return pass_no_open(fs, FUSE_NO_OPEN_SUPPORT) ? -ENOSYS : -EBADF;
	if (pass_file_waits(fs, file)) {
		int copy;

		if (!pool) {
			pass_file_put(fs, file);
			return FS_SLOW;
		}
		/* a network file system says at close what became of the writes */
		copy = fcntl(file->fd, F_DUPFD_CLOEXEC, 0);
		if (copy < 0 || close(copy) < 0)
			rc = -errno;
	}
	pass_locks_release(fs, file->inode, in->lock_owner);
	pass_file_put(fs, file);
	return rc;
}

int pass_fsync(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	const struct fuse_fsync_in *in = FS_ARG(req, fuse_fsync_in);
	struct pass_file *file;
	int rc;

	(void)inode;
	if (!pool)
		return FS_SLOW;
	file = pass_file_get(fs, in->fh);
	if (!file)
		return -EBADF;
	if (in->fsync_flags & FUSE_FSYNC_FDATASYNC)
		rc = fdatasync(file->fd);
	else
		rc = fsync(file->fd);
	rc = rc < 0 ? -errno : 0;
	pass_file_put(fs, file);
	return rc;
}

/* --- data ------------------------------------------------------------------------------------------------------ */

/* A transfer between a file and pieces of guest memory. */
struct xfer {
	const struct ring_iov *iov;
	uint32_t nr;
	uint32_t len;		/* bytes wanted, at most what the pieces hold */
	uint64_t offset;
	int fd;
	int flags;		/* RWF_* */
	bool write;
};

/*
 * By number: as points where a thread may be cancelled libc's cost two atomic operations. One piece without flags is a
 * shorter way through the kernel.
 */
static ssize_t move(const struct xfer *x, const struct iovec *iov, int nr, uint32_t done)
{
	off_t at = (off_t)(x->offset + done);
	ssize_t n;

	if (nr == 1 && !x->flags)
		n = syscall(x->write ? SYS_pwrite64 : SYS_pread64, x->fd, iov->iov_base, iov->iov_len, at);
	else	/* the upper half of the offset is for 32-bit machines */
		n = syscall(x->write ? SYS_pwritev2 : SYS_preadv2, x->fd, iov, nr, at, 0, x->flags);
	return n < 0 ? -errno : n;
}

/* The pieces without the first @done bytes, and none after the last byte wanted. */
static ssize_t move_rest(const struct xfer *x, uint32_t done)
{
	struct iovec rest[RING_IOV_MAX];
	uint32_t skip = done, left = x->len - done, i;
	int n = 0;

	for (i = 0; i < x->nr && left && n < RING_IOV_MAX; i++) {
		size_t len = x->iov[i].len;

		if (skip >= len) {
			skip -= (uint32_t)len;
			continue;
		}
		len -= skip;
		if (len > left)
			len = left;
		rest[n].iov_base = (char *)x->iov[i].base + skip;
		rest[n++].iov_len = len;
		left -= (uint32_t)len;
		skip = 0;
	}
	return move(x, rest, n, done);
}

/*
 * All of it, or up to the end of the file: to a guest a short answer is the end. Bytes moved, or -errno if there are
 * none; *@error: why it stopped.
 */
static ssize_t transfer(const struct xfer *x, uint32_t room, int *error)
{
	uint32_t done = 0;
	ssize_t n;

	*error = 0;
	if (room == x->len)
		n = move(x, (const struct iovec *)(const void *)x->iov, (int)x->nr, 0);
	else
		n = move_rest(x, 0);
	for (;;) {
		if (fs_unlikely(n == -EINTR)) {
			n = move_rest(x, done);
			continue;
		}
		if (fs_unlikely(n < 0)) {
			*error = (int)n;
			return done ? (ssize_t)done : n;
		}
		done += (uint32_t)n;
		if (n == 0 || done >= x->len)
			return done;
		n = move_rest(x, done);
	}
}

/* A file of the page cache where O_DIRECT does not fit: lengths and places that the disk cannot do. */
static ssize_t transfer_buffered(struct pass *fs, struct pass_file *file, struct xfer *x, uint32_t room, int *error)
{
	int fd = pass_inode_open(fs, file->inode, (file->flags & ~(O_DIRECT | O_TRUNC)) | O_CLOEXEC);
	ssize_t n;

	if (fd < 0) {
		*error = fd;
		return fd;
	}
	x->fd = fd;
	if (x->write)
		x->flags |= RWF_DSYNC;	/* next to others that bypass the cache it must not stay there */
	n = transfer(x, room, error);
	close(fd);
	return n;
}

/* Files in memory need not be waited for, and their file system may not know how to. */
static int read_inline(struct xfer *x, uint32_t room, bool memory)
{
	ssize_t n;
	int error;

	x->flags = memory ? 0 : RWF_NOWAIT;
	n = transfer(x, room, &error);
	if (fs_unlikely(error == -EAGAIN || error == -EOPNOTSUPP))
		return FS_SLOW;
	return (int)n;
}

int pass_read(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	const struct fuse_read_in *in = FS_ARG(req, fuse_read_in);
	struct pass_file *file = pass_file_at(fs, inode, in->fh);
	struct xfer x = {
		.iov = req->room,
		.nr = req->nr_room,
		.len = in->size < req->room_len ? in->size : req->room_len,
		.offset = in->offset,
	};
	int error;
	int rc;

	if (fs_unlikely(!file))
		return -EBADF;
	x.fd = file->fd;
	if (fs_unlikely(in->offset > (uint64_t)INT64_MAX - x.len))
		rc = in->offset > INT64_MAX ? -EINVAL : 0;
	else if (fs_unlikely(!x.len))
		rc = 0;
	else if (pool)
		rc = (int)transfer(&x, req->room_len, &error);
	else if (fs_unlikely(file->flags & O_DIRECT || pass_file_waits(fs, file)))
		rc = FS_SLOW;
	else
		rc = read_inline(&x, req->room_len, pass_inode_mount(fs, file->inode)->memory);
	if (fs_unlikely(rc == -EINVAL && pool && (file->flags & O_DIRECT)))
		rc = (int)transfer_buffered(fs, file, &x, req->room_len, &error);
	pass_file_put(fs, file);
	if (fs_likely(rc > 0))
		req->in_place = true;
	return rc;
}

/* Does writing take SUID and SGID away from it? Asked, as it hardly ever does. */
static bool has_suid(int fd)
{
	struct stat st;

	return fstat(fd, &st) < 0 || (st.st_mode & (S_ISUID | S_ISGID));
}

/*
 * A descriptor that appends is of no use for pages that have their place. The guest's kernel takes any open file for
 * those, and a guest's program may change O_APPEND of an open file.
 */
static int append_flags(const struct fuse_write_in *in, const struct pass_file *file)
{
	bool want = in->flags & O_APPEND;
	bool have = file->flags & O_APPEND;

	if (in->write_flags & FUSE_WRITE_CACHE)
		want = false;
	else if (!in->flags)
		want = have;	/* a driver that does not say */
	if (want == have)
		return 0;
	return want ? RWF_APPEND : RWF_NOAPPEND;
}

static ssize_t write_placed(struct pass *fs, struct pass_file *file, struct xfer *x, uint32_t room, int *error)
{
	int fd;
	ssize_t n;

	/* a host before 6.9 does not know the flag */
	fd = pass_inode_open(fs, file->inode, (file->flags & ~(O_APPEND | O_TRUNC)) | O_CLOEXEC);
	if (fd < 0) {
		*error = fd;
		return fd;
	}
	x->fd = fd;
	x->flags &= ~RWF_NOAPPEND;
	n = transfer(x, room, error);
	close(fd);
	return n;
}

static int write_file(struct pass *fs, struct fs_req *req, struct pass_file *file)
{
	const struct fuse_write_in *in = FS_ARG(req, fuse_write_in);
	struct fuse_write_out *out = FS_OUT(req, fuse_write_out);
	struct pass_cred cred;	/* large, and hardly ever used */
	struct xfer x = {
		.iov = req->data,
		.nr = req->nr_data,
		.len = req->data_len,
		.offset = in->offset,
		.fd = file->fd,
		.flags = append_flags(in, file),
		.write = true,
	};
	bool kill = (in->write_flags & FUSE_WRITE_KILL_SUIDGID) && has_suid(file->fd);
	int error, rc;
	ssize_t n;

	if (fs_unlikely(kill)) {
		rc = pass_cred_no_fsetid(fs, &cred);
		if (rc)
			return rc;
	}
	/* where it appends its place says nothing */
	pass_grows(fs, (file->flags & O_APPEND) || (x.flags & RWF_APPEND) ? UINT64_MAX : in->offset + req->data_len);
	n = transfer(&x, req->data_len, &error);
	if (fs_unlikely(n == -EOPNOTSUPP && (x.flags & RWF_NOAPPEND)))
		n = write_placed(fs, file, &x, req->data_len, &error);
	if (fs_unlikely(n == -EINVAL && (file->flags & O_DIRECT)))
		n = transfer_buffered(fs, file, &x, req->data_len, &error);
	if (fs_unlikely(kill))
		pass_cred_leave(fs, &cred);
	if (n < 0)
		return (int)n;
	/* of pages that were cached nobody looks at how much was written */
	if (fs_unlikely(error && (in->write_flags & FUSE_WRITE_CACHE)))
		return error;
	pass_xattr_drop_caps(fs, file->fd);
	*out = (struct fuse_write_out){ .size = (uint32_t)n };
	return sizeof(*out);
}

int pass_write(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	const struct fuse_write_in *in = FS_ARG(req, fuse_write_in);
	struct pass_file *file = pass_file_get(fs, in->fh);
	int rc;

	(void)inode;
	if (fs_unlikely(!file))
		return -EBADF;
	if (fs_unlikely(in->offset > INT64_MAX))
		rc = -EINVAL;
	else if (fs_unlikely(in->offset > (uint64_t)INT64_MAX - req->data_len))
		rc = -EFBIG;
	else if (fs_unlikely(!pool && ((file->flags & (O_DIRECT | O_DSYNC)) || pass_file_waits(fs, file))))
		rc = FS_SLOW;
	else
		rc = write_file(fs, req, file);
	pass_file_put(fs, file);
	return rc;
}
