/* SPDX-License-Identifier: Apache-2.0 */
/*
 * space.c - what files take: FALLOCATE, COPY_FILE_RANGE, LSEEK, STATFS, SYNCFS; and the few IOCTLs that make sense.
 */
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/statfs.h>

#include "devices/fs/csrc/data_int.h"

enum {
	SPACE_COPY_MAX = 256 << 20,	/* bytes of one COPY_FILE_RANGE: a queue that stops waits for it */
};

int pass_fallocate(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	const struct fuse_fallocate_in *in = FS_ARG(req, fuse_fallocate_in);
	struct pass_file *file;
	int rc;

	(void)inode;
	if (!pool)
		return FS_SLOW;
	if (in->offset > INT64_MAX || in->length > INT64_MAX)
		return -EINVAL;
	file = pass_file_get(fs, in->fh);
	if (!file)
		return -EBADF;
	pass_grows(fs, in->offset + in->length);
	rc = fallocate(file->fd, (int)in->mode, (off_t)in->offset, (off_t)in->length) < 0 ? -errno : 0;
	if (!rc)
		pass_xattr_drop_caps(fs, file->fd);
	pass_file_put(fs, file);
	return rc;
}

/* COPY_FILE_RANGE_64 too. */
int pass_copy_file_range(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	const struct fuse_copy_file_range_in *in = FS_ARG(req, fuse_copy_file_range_in);
	struct pass_file *from, *to;
	off_t from_at = (off_t)in->off_in, to_at = (off_t)in->off_out;
	ssize_t n = -EBADF;

	(void)inode;
	if (!pool)
		return FS_SLOW;
	if (in->flags || in->off_in > INT64_MAX || in->off_out > INT64_MAX)
		return -EINVAL;
	from = pass_file_get(fs, in->fh_in);
	to = pass_file_get(fs, in->fh_out);
	if (from && to) {
		size_t len = in->len < SPACE_COPY_MAX ? (size_t)in->len : SPACE_COPY_MAX;

		pass_grows(fs, in->off_out + len);
		n = copy_file_range(from->fd, &from_at, to->fd, &to_at, len, 0);
		n = n < 0 ? -errno : n;
		if (n > 0)
			pass_xattr_drop_caps(fs, to->fd);
	}
	if (from)
		pass_file_put(fs, from);
	if (to)
		pass_file_put(fs, to);
	if (n < 0)
		return (int)n;
	if (req->in.opcode == FUSE_COPY_FILE_RANGE_64) {
		*FS_OUT(req, fuse_copy_file_range_out) = (struct fuse_copy_file_range_out){ .bytes_copied = (uint64_t)n };
		return sizeof(struct fuse_copy_file_range_out);
	}
	*FS_OUT(req, fuse_write_out) = (struct fuse_write_out){ .size = (uint32_t)n };
	return sizeof(struct fuse_write_out);
}

/* Only what the guest's kernel cannot know: where there are data and holes. */
int pass_lseek(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	const struct fuse_lseek_in *in = FS_ARG(req, fuse_lseek_in);
	struct pass_file *file;
	off_t at;

	if (in->whence != SEEK_DATA && in->whence != SEEK_HOLE)
		return -EINVAL;
	if (in->offset > INT64_MAX)
		return -ENXIO;
	if (!pool)
		return FS_SLOW;	/* the map of the file may have to be read */
	file = pass_file_at(fs, inode, in->fh);
	if (!file)
		return -EBADF;
	/* nothing else uses the position of a regular file's descriptor */
	at = file->is_dir ? -1 : lseek(file->fd, (off_t)in->offset, (int)in->whence);
	if (at < 0)
		at = file->is_dir ? -EISDIR : -errno;
	pass_file_put(fs, file);
	if (at < 0)
		return (int)at;
	*FS_OUT(req, fuse_lseek_out) = (struct fuse_lseek_out){ .offset = (uint64_t)at };
	return sizeof(struct fuse_lseek_out);
}

int pass_statfs(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	struct fuse_statfs_out *out = FS_OUT(req, fuse_statfs_out);
	struct statfs sb;
	int fd = pass_inode_fd(fs, inode);
	int rc;

	(void)pool;
	if (fd < 0)
		return fd;
	rc = fstatfs(fd, &sb) < 0 ? -errno : 0;
	pass_inode_fd_put(fs, inode, fd);
	if (rc)
		return rc;
	memset(out, 0, sizeof(*out));
	out->st.blocks = sb.f_blocks;
	out->st.bfree = sb.f_bfree;
	out->st.bavail = sb.f_bavail;
	out->st.files = sb.f_files;
	out->st.ffree = sb.f_ffree;
	out->st.bsize = (uint32_t)sb.f_bsize;
	out->st.frsize = (uint32_t)(sb.f_frsize ? sb.f_frsize : sb.f_bsize);
	out->st.namelen = (uint32_t)sb.f_namelen;
	return sizeof(*out);
}

int pass_syncfs(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	int fd, rc;

	(void)req;
	if (!pool)
		return FS_SLOW;
	fd = pass_inode_open(fs, inode, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return fd;
	rc = syncfs(fd) < 0 ? -errno : 0;
	close(fd);
	return rc;
}

/* --- ioctls ---------------------------------------------------------------------------------------------------- */

/* What lsattr shows and chattr may change; not how the file system journals or encrypts it. */
#define SPACE_FLAGS (FS_SECRM_FL | FS_UNRM_FL | FS_COMPR_FL | FS_SYNC_FL | FS_IMMUTABLE_FL | FS_APPEND_FL | FS_NODUMP_FL | \
		     FS_NOATIME_FL | FS_NOCOMP_FL | FS_DIRSYNC_FL | FS_TOPDIR_FL | FS_NOCOW_FL | FS_PROJINHERIT_FL)

static int set_flags(int fd, uint32_t want)
{
	uint32_t have = 0;

	if (ioctl(fd, FS_IOC_GETFLAGS, &have) < 0)
		return -errno;
	if ((have ^ want) & ~(uint32_t)SPACE_FLAGS)
		return -EOPNOTSUPP;
	return ioctl(fd, FS_IOC_SETFLAGS, &want) < 0 ? -errno : 0;
}

/* Bytes of the answer in @value, or -errno. */
static int do_ioctl(const struct pass *fs, struct fs_req *req, int fd, uint8_t *value, uint32_t max)
{
	const struct fuse_ioctl_in *in = FS_ARG(req, fuse_ioctl_in);
	struct fsxattr attr;
	uint32_t flags = 0;

	switch (in->cmd) {
	case FS_IOC_GETFLAGS:
		if (ioctl(fd, FS_IOC_GETFLAGS, &flags) < 0)
			return -errno;
		memcpy(value, &flags, sizeof(flags));
		return sizeof(flags);
	case FS_IOC_FSGETXATTR:
		memset(&attr, 0, sizeof(attr));
		if (max < sizeof(attr))
			return -EINVAL;
		if (ioctl(fd, FS_IOC_FSGETXATTR, &attr) < 0)
			return -errno;
		memcpy(value, &attr, sizeof(attr));
		return sizeof(attr);
	case FS_IOC_SETFLAGS:
		if (fs->opt.read_only)
			return -EROFS;
		if (req->nr_data != 1 || req->data_len < sizeof(flags))
			return -EINVAL;
		shm_copy_in(&flags, req->data[0].base, sizeof(flags));
		return set_flags(fd, flags);
	default:
		return -ENOTTY;
	}
}

int pass_ioctl(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	const struct fuse_ioctl_in *in = FS_ARG(req, fuse_ioctl_in);
	struct fuse_ioctl_out *out = FS_OUT(req, fuse_ioctl_out);
	struct pass_file *file;
	int n;

	(void)inode;
	if (!pool)
		return FS_SLOW;
	file = pass_file_get(fs, in->fh);
	if (!file)
		return -EBADF;
	memset(out, 0, sizeof(*out));
	n = do_ioctl(fs, req, file->fd, req->out + sizeof(*out), FS_OUT_MAX - sizeof(*out));
	pass_file_put(fs, file);
	if (n < 0)
		return n;
	if ((uint32_t)n > in->out_size)
		n = (int)in->out_size;
	return (int)sizeof(*out) + n;
}

/* Regular files and folders are always ready. */
int pass_poll(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	(void)fs;
	(void)req;
	(void)inode;
	(void)pool;
	return -ENOSYS;
}
