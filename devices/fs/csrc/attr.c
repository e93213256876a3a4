// SPDX-License-Identifier: Apache-2.0
/*
 * attr.c - what files are: GETATTR, STATX, SETATTR, ACCESS.
 */
#include "devices/fs/csrc/pass_int.h"

#include <string.h>

enum {
	ATTR_TRUNC_INLINE = 1 << 20,	/* bytes that are cut off without a thread */
};

int pass_statx(int fd, const char *name, struct statx *stx)
{
	int flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | (name == NULL ? AT_EMPTY_PATH : 0);

	return statx(fd, name != NULL ? name : "", flags, PASS_STATX_MASK, stx) < 0 ? -errno : 0;
}

/* As the kernel's new_encode_dev(). */
static uint32_t encode_dev(uint32_t major, uint32_t minor)
{
	return (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xfff00) << 12;
}

void pass_attr(const struct pass *fs, const struct statx *stx, struct fuse_attr *attr)
{
	attr->ino = stx->stx_ino;
	attr->size = stx->stx_size;
	attr->blocks = stx->stx_blocks;
	attr->atime = (uint64_t)stx->stx_atime.tv_sec;
	attr->mtime = (uint64_t)stx->stx_mtime.tv_sec;
	attr->ctime = (uint64_t)stx->stx_ctime.tv_sec;
	attr->atimensec = stx->stx_atime.tv_nsec;
	attr->mtimensec = stx->stx_mtime.tv_nsec;
	attr->ctimensec = stx->stx_ctime.tv_nsec;
	attr->mode = stx->stx_mode;
	attr->nlink = stx->stx_nlink;
	attr->uid = pass_uid_to_guest(fs, stx->stx_uid);
	attr->gid = pass_gid_to_guest(fs, stx->stx_gid);
	attr->rdev = encode_dev(stx->stx_rdev_major, stx->stx_rdev_minor);
	attr->blksize = stx->stx_blksize;
	attr->flags = 0;
	if (fs_unlikely(fs->server.flags & FUSE_HAS_INODE_DAX) && S_ISREG(stx->stx_mode) && stx->stx_size >= fs->opt.dax_from)
		attr->flags = FUSE_ATTR_DAX;
}

/* The open file @fh if it is one of @inode: a reference, or NULL. */
static struct pass_file *file_of(struct pass *fs, const struct pass_inode *inode, uint64_t fh)
{
	struct pass_file *file = pass_file_get(fs, fh);

	if (file != NULL && file->inode != inode) {
		pass_file_put(fs, file);
		file = NULL;
	}
	return file;
}

/* By the open file @fh, where there is one: a deleted file is found by nothing else. */
static int inode_statx(struct pass *fs, struct pass_inode *inode, bool has_fh, uint64_t fh, struct statx *stx)
{
	struct pass_file *file = has_fh ? file_of(fs, inode, fh) : NULL;
	int fd, err;

	if (file != NULL) {
		err = pass_statx(file->fd, NULL, stx);
		pass_file_put(fs, file);
		return err;
	}
	fd = pass_inode_fd(fs, inode);
	if (fd < 0)
		return fd;
	err = pass_statx(fd, NULL, stx);
	pass_inode_fd_put(fs, inode, fd);
	return err;
}

static int answer(const struct pass *fs, struct fs_req *req, const struct statx *stx)
{
	struct fuse_attr_out *out = FS_OUT(req, fuse_attr_out);

	pass_time(fs->opt.attr_ns, &out->attr_valid, &out->attr_valid_nsec);
	out->dummy = 0;
	pass_attr(fs, stx, &out->attr);
	return sizeof(*out);
}

int pass_getattr(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	const struct fuse_getattr_in *in = FS_ARG(req, fuse_getattr_in);
	struct statx stx;
	int err = inode_statx(fs, inode, in->getattr_flags & FUSE_GETATTR_FH, in->fh, &stx);

	(void)pool;
	return err < 0 ? err : answer(fs, req, &stx);
}

static struct fuse_sx_time sx_time(const struct statx_timestamp *t)
{
	return (struct fuse_sx_time){.tv_sec = t->tv_sec, .tv_nsec = t->tv_nsec};
}

int pass_statx_op(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	const struct fuse_statx_in *in = FS_ARG(req, fuse_statx_in);
	struct fuse_statx_out *out = FS_OUT(req, fuse_statx_out);
	struct fuse_statx *to = &out->stat;
	struct statx stx;
	int err = inode_statx(fs, inode, in->getattr_flags & FUSE_GETATTR_FH, in->fh, &stx);

	(void)pool;
	if (err < 0)
		return err;
	memset(out, 0, sizeof(*out));
	pass_time(fs->opt.attr_ns, &out->attr_valid, &out->attr_valid_nsec);
	to->mask = stx.stx_mask & (STATX_BASIC_STATS | STATX_BTIME);
	to->blksize = stx.stx_blksize;
	to->attributes = stx.stx_attributes;
	to->attributes_mask = stx.stx_attributes_mask;
	to->nlink = stx.stx_nlink;
	to->uid = pass_uid_to_guest(fs, stx.stx_uid);
	to->gid = pass_gid_to_guest(fs, stx.stx_gid);
	to->mode = stx.stx_mode;
	to->ino = stx.stx_ino;
	to->size = stx.stx_size;
	to->blocks = stx.stx_blocks;
	to->atime = sx_time(&stx.stx_atime);
	to->btime = sx_time(&stx.stx_btime);
	to->ctime = sx_time(&stx.stx_ctime);
	to->mtime = sx_time(&stx.stx_mtime);
	to->rdev_major = stx.stx_rdev_major;
	to->rdev_minor = stx.stx_rdev_minor;
	return sizeof(*out);
}

/* --- SETATTR --------------------------------------------------------------------------------------------------- */

struct change {
	const struct fuse_setattr_in *in;
	struct pass_inode *inode;
	struct pass_file *file;		/* NULL: by @fd alone */
	int fd;				/* O_PATH, or that of @file */
	char name[16];			/* of @fd, below proc_fd */
	const char *path;
};

static int set_owner(struct pass *fs, const struct change *c)
{
	uid_t uid = (uid_t)-1;
	gid_t gid = (gid_t)-1;
	int err = 0;

	if (c->in->valid & FATTR_UID)
		err = pass_uid_to_host(fs, c->in->uid, &uid);
	if (err == 0 && c->in->valid & FATTR_GID)
		err = pass_gid_to_host(fs, c->in->gid, &gid);
	if (err == 0 && fchownat(c->fd, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0)
		err = -errno;
	if (err == 0)
		pass_xattr_drop_caps(fs, c->fd);
	return err;
}

static int set_size(struct pass *fs, const struct change *c)
{
	struct pass_cred cred = {0};
	bool kill = c->in->valid & FATTR_KILL_SUIDGID;
	int err = kill ? pass_cred_no_fsetid(fs, &cred) : 0;
	int fd = -1;

	if (err < 0)
		return err;
	pass_grows(fs, c->in->size);
	if (c->file != NULL && (c->file->flags & O_ACCMODE) != O_RDONLY)
		err = ftruncate(c->file->fd, (off_t)c->in->size) < 0 ? -errno : 0;
	else
		err = fd = pass_inode_open(fs, c->inode, O_WRONLY | O_NONBLOCK);
	if (fd >= 0) {
		err = ftruncate(fd, (off_t)c->in->size) < 0 ? -errno : 0;
		close(fd);
	}
	pass_cred_leave(fs, &cred);
	if (err == 0)
		pass_xattr_drop_caps(fs, c->fd);
	return err;
}

static int set_times(struct pass *fs, const struct change *c)
{
	const struct fuse_setattr_in *in = c->in;
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_OMIT}};

	if (in->valid & FATTR_ATIME_NOW)
		times[0].tv_nsec = UTIME_NOW;
	else if (in->valid & FATTR_ATIME)
		times[0] = (struct timespec){.tv_sec = (time_t)in->atime, .tv_nsec = in->atimensec};
	if (in->valid & FATTR_MTIME_NOW)
		times[1].tv_nsec = UTIME_NOW;
	else if (in->valid & FATTR_MTIME)
		times[1] = (struct timespec){.tv_sec = (time_t)in->mtime, .tv_nsec = in->mtimensec};
	if ((in->valid & FATTR_ATIME && in->atimensec > 999999999) ||
	    (in->valid & FATTR_MTIME && in->mtimensec > 999999999))
		return -EINVAL;
	return utimensat(fs->proc_fd, c->path, times, 0) < 0 ? -errno : 0;
}

/* The owner first: a change of it takes SUID and SGID away, which may be what is set. */
static int set_all(struct pass *fs, const struct change *c)
{
	uint32_t valid = c->in->valid;
	int err = 0;

	if (valid & (FATTR_UID | FATTR_GID))
		err = set_owner(fs, c);
	if (err == 0 && valid & FATTR_MODE)
		err = fchmodat(fs->proc_fd, c->path, c->in->mode & 07777, 0) < 0 ? -errno : 0;
	if (err == 0 && valid & FATTR_SIZE)
		err = set_size(fs, c);
	if (err == 0 && valid & (FATTR_ATIME | FATTR_MTIME))
		err = set_times(fs, c);
	return err;
}

/* Would it take long to cut it? */
static bool cuts_much(const struct change *c)
{
	struct stat st;

	return fstat(c->fd, &st) == 0 && st.st_size > ATTR_TRUNC_INLINE &&
	       (uint64_t)st.st_size - ATTR_TRUNC_INLINE > c->in->size;
}

int pass_setattr(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	struct change c = {.in = FS_ARG(req, fuse_setattr_in), .inode = inode};
	struct statx stx;
	int err;

	if (c.in->valid & FATTR_SIZE && (pass_inode_type(inode) != S_IFREG || c.in->size > INT64_MAX))
		return pass_inode_type(inode) == S_IFDIR ? -EISDIR : -EINVAL;
	if (c.in->valid & FATTR_FH)
		c.file = file_of(fs, inode, c.in->fh);
	c.fd = c.file != NULL ? c.file->fd : pass_inode_fd(fs, inode);
	if (c.fd < 0)
		return c.fd;
	c.path = pass_fd_name(c.fd, c.name);
	if (!pool && c.in->valid & FATTR_SIZE && cuts_much(&c)) {
		err = FS_SLOW;
	} else {
		err = set_all(fs, &c);
		if (err == -EWOULDBLOCK && !pool)
			err = FS_SLOW;		/* a lease is to be waited for; all of it again does no harm */
	}
	if (err == 0)
		err = pass_statx(c.fd, NULL, &stx);
	if (c.file != NULL)
		pass_file_put(fs, c.file);
	else
		pass_inode_fd_put(fs, inode, c.fd);
	return err < 0 ? err : answer(fs, req, &stx);
}

/* --- ACCESS ---------------------------------------------------------------------------------------------------- */

/* Linux asks only where it leaves permissions to the file system, which virtio-fs never does: mode bits will do. */
int pass_access(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	uint32_t mask = FS_ARG(req, fuse_access_in)->mask, mode;
	struct statx stx;
	int err = inode_statx(fs, inode, false, 0, &stx);

	(void)pool;
	if (err < 0)
		return err;
	if (mask & ~(uint32_t)(R_OK | W_OK | X_OK))
		return -EINVAL;
	mode = stx.stx_mode;
	if (mask & W_OK && fs->opt.read_only && !S_ISFIFO(mode) && !S_ISSOCK(mode) && !S_ISCHR(mode) && !S_ISBLK(mode))
		return -EROFS;
	if (req->in.uid == 0)
		return mask & X_OK && !S_ISDIR(mode) && !(mode & 0111) ? -EACCES : 0;
	if (req->in.uid == pass_uid_to_guest(fs, stx.stx_uid))
		mode >>= 6;
	else if (req->in.gid == pass_gid_to_guest(fs, stx.stx_gid))
		mode >>= 3;
	return (mode & mask) == mask ? 0 : -EACCES;
}
