// SPDX-License-Identifier: Apache-2.0
/*
 * names.c - names of what is there: LINK, UNLINK, RMDIR, RENAME, RENAME2, READLINK.
 */
#include "devices/fs/csrc/pass_int.h"

#include <linux/fs.h>
#include <string.h>
#include <sys/syscall.h>

enum {
	NAMES_UNLINK_INLINE = 64 << 20,	/* bytes of a file that goes without a thread */
};

/* The fd of a folder in which @name is to be changed; -errno. */
static int dir_fd(struct pass *fs, struct pass_inode *inode, const char *name, uint32_t len)
{
	if (fs_unlikely(pass_inode_type(inode) != S_IFDIR))
		return -ENOTDIR;
	return fs_likely(pass_name_ok(name, len)) ? pass_inode_fd(fs, inode) : -EINVAL;
}

/* Is @name of the folder another name of @fd? */
static bool is_same(int fd, int dir, const char *name)
{
	struct statx a, b;

	return pass_statx(fd, NULL, &a) == 0 && pass_statx(dir, name, &b) == 0 && a.stx_ino == b.stx_ino &&
	       a.stx_mnt_id == b.stx_mnt_id;
}

int pass_link(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	struct pass_inode *old = pass_inode_get(fs, FS_ARG(req, fuse_link_in)->oldnodeid);
	struct fuse_entry_out *out = FS_OUT(req, fuse_entry_out);
	int err, fd, to;
	char name[16];

	(void)pool;
	if (old == NULL)
		return -ESTALE;
	err = to = dir_fd(fs, inode, req->name, req->name_len);
	if (to >= 0) {
		err = fd = pass_inode_fd(fs, old);
		if (fd >= 0) {
			err = linkat(fs->proc_fd, pass_fd_name(fd, name), to, req->name, AT_SYMLINK_FOLLOW) < 0 ? -errno : 0;
			if (fs_unlikely(err == -EEXIST && req->replay))
				err = is_same(fd, to, req->name) ? 0 : err;
			if (err == 0) {
				pass_small_not(fs, inode, req->name, req->name_len);
				err = pass_entry_of_fd(fs, inode, fd, req->name, out, NULL);
			}
			pass_inode_fd_put(fs, old, fd);
		}
		pass_inode_fd_put(fs, inode, to);
	}
	pass_inode_put(fs, old);
	return err < 0 ? err : (int)sizeof(*out);
}

/* Does a file go with its last name that takes long to free? */
static bool is_big(int fd, const char *name)
{
	struct stat st;

	return fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode) && st.st_nlink == 1 &&
	       st.st_blocks > NAMES_UNLINK_INLINE / 512;
}

static int unlink_at(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool, int flags)
{
	int err, fd = dir_fd(fs, inode, req->name, req->name_len);

	if (fd < 0)
		return fd;
	if (!pool && flags == 0 && !pass_small_is(fs, inode, req->name, req->name_len) && is_big(fd, req->name))
		err = FS_SLOW;
	else
		err = unlinkat(fd, req->name, flags) < 0 ? -errno : 0;
	if (fs_unlikely(err == -ENOENT && req->replay))
		err = 0;		/* it was done already */
	pass_inode_fd_put(fs, inode, fd);
	return err;
}

int pass_unlink(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	return unlink_at(fs, req, inode, pool, 0);
}

int pass_rmdir(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	return unlink_at(fs, req, inode, pool, AT_REMOVEDIR);
}

/* @name of the folder @fd is that of something else. */
static void renamed(struct pass *fs, const struct pass_inode *dir, int fd, const char *name, uint32_t len)
{
	pass_small_not(fs, dir, name, len);
	pass_inode_renamed(fs, dir, fd, name);
}

static int rename_at(struct pass *fs, struct fs_req *req, struct pass_inode *inode, uint64_t g_newdir, uint32_t flags,
		     bool pool)
{
	struct pass_inode *newdir = pass_inode_get(fs, g_newdir);
	int err, from, to;

	if (newdir == NULL)
		return -ESTALE;
	err = from = dir_fd(fs, inode, req->name, req->name_len);
	if (from >= 0) {
		err = to = dir_fd(fs, newdir, req->name2, req->name2_len);
		if (to >= 0) {
			if (!pool && !(flags & (RENAME_NOREPLACE | RENAME_EXCHANGE)) && is_big(to, req->name2))
				err = FS_SLOW;
			else
				err = syscall(SYS_renameat2, from, req->name, to, req->name2, flags) < 0 ? -errno : 0;
			if (fs_unlikely(err == -ENOENT && req->replay) && faccessat(to, req->name2, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
				err = 0;	/* it was done already */
			if (err == 0)
				renamed(fs, newdir, to, req->name2, req->name2_len);
			if (err == 0 && flags & RENAME_EXCHANGE)
				renamed(fs, inode, from, req->name, req->name_len);
			pass_inode_fd_put(fs, newdir, to);
		}
		pass_inode_fd_put(fs, inode, from);
	}
	pass_inode_put(fs, newdir);
	return err;
}

int pass_rename(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	return rename_at(fs, req, inode, FS_ARG(req, fuse_rename_in)->newdir, 0, pool);
}

int pass_rename2(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	const struct fuse_rename2_in *in = FS_ARG(req, fuse_rename2_in);

	if (in->flags & ~(uint32_t)(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT))
		return -EINVAL;
	return rename_at(fs, req, inode, in->newdir, in->flags, pool);
}

int pass_readlink(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	char target[FS_PATH_MAX];
	const char *from = target;
	size_t left;
	ssize_t n;
	int fd;

	(void)pool;
	if (pass_inode_type(inode) != S_IFLNK)
		return -EINVAL;
	fd = pass_inode_fd(fs, inode);
	if (fd < 0)
		return fd;
	n = readlinkat(fd, "", target, sizeof(target));
	if (n < 0)
		n = -errno;
	pass_inode_fd_put(fs, inode, fd);
	if (n < 0)
		return (int)n;
	left = (size_t)n < req->room_len ? (size_t)n : req->room_len;
	n = (ssize_t)left;
	for (uint32_t i = 0; i < req->nr_room && left > 0; i++) {
		size_t part = req->room[i].len < left ? req->room[i].len : left;

		shm_copy_out(req->room[i].base, from, part);
		from += part;
		left -= part;
	}
	req->in_place = true;
	return (int)n;
}
