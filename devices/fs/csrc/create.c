// SPDX-License-Identifier: Apache-2.0
/*
 * create.c - new files: CREATE, TMPFILE, MKNOD, MKDIR, SYMLINK.
 *
 * They are made as the guest's user, group and groups, with its umask, so that owners, SGID folders and default ACLs come
 * out as on the host. What is there already is never opened by its name: a device or FIFO would be opened by that.
 */
#include "devices/fs/csrc/pass_int.h"

#include <string.h>

#define CREATE_OUT (sizeof(struct fuse_entry_out) + sizeof(struct fuse_open_out))

/* The guest leaves its umask to us where we asked for that: a default ACL takes its place. */
static mode_t umask_of(const struct pass *fs, uint32_t g_umask)
{
	return fs->server.flags & FUSE_DONT_MASK ? (mode_t)(g_umask & 0777) : 0;
}

/* The folder's fd, with this thread acting for the guest; -errno. */
static int begin(struct pass *fs, const struct fs_req *req, struct pass_inode *parent, uint32_t g_umask,
		 struct pass_cred *cred)
{
	int fd, err;

	if (fs_unlikely(pass_inode_type(parent) != S_IFDIR))
		return -ENOTDIR;
	if (fs_unlikely(req->in.opcode != FUSE_TMPFILE && !pass_name_ok(req->name, req->name_len)))
		return -EINVAL;
	fd = pass_inode_fd(fs, parent);
	if (fd < 0)
		return fd;
	err = pass_cred_enter(fs, req, umask_of(fs, g_umask), false, cred);
	if (err < 0)
		pass_inode_fd_put(fs, parent, fd);
	return err < 0 ? err : fd;
}

/* The security context that the guest wants it to have from its first moment on; @fd: it, or -1: by its name. */
static int label(struct pass *fs, const struct fs_req *req, int dir_fd, int fd)
{
	struct pass_where where = {.dir_fd = dir_fd, .name = req->name};
	int mine = -1, err;

	if (fs_likely(!req->secctx))
		return 0;
	if (fd < 0) {
		fd = mine = pass_open_path(fs, where);
		if (fd < 0)
			return fd;
	}
	err = pass_xattr_set(fs, fd, req->secctx_name, req->secctx_value, req->secctx_len);
	if (mine >= 0)
		close(mine);
	return err;
}

/* It was made, by its name: let the guest know it, or take it away again. */
static int finish(struct pass *fs, struct fs_req *req, struct pass_inode *parent, int dir_fd, int unlink_flags)
{
	struct fuse_entry_out *out = FS_OUT(req, fuse_entry_out);
	int err = label(fs, req, dir_fd, -1);

	if (err < 0)
		unlinkat(dir_fd, req->name, unlink_flags);
	else
		err = pass_lookup_at(fs, parent, dir_fd, req->name, out);
	return err < 0 ? err : (int)sizeof(*out);
}

/*
 * -EEXIST where the request may have been carried out by an earlier run: 0, if what is there is of the kind that it makes.
 * @target: of a symbolic link.
 */
static int made_before(const struct fs_req *req, int dir_fd, mode_t type, const char *target)
{
	char there[FS_PATH_MAX];
	struct stat st;
	ssize_t n;

	if (!req->replay || fstatat(dir_fd, req->name, &st, AT_SYMLINK_NOFOLLOW) < 0 || (st.st_mode & S_IFMT) != type)
		return -EEXIST;
	if (target == NULL)
		return 0;
	n = readlinkat(dir_fd, req->name, there, sizeof(there));
	return n == (ssize_t)strlen(target) && memcmp(there, target, (size_t)n) == 0 ? 0 : -EEXIST;
}

int pass_mknod(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	const struct fuse_mknod_in *in = FS_ARG(req, fuse_mknod_in);
	struct pass_cred cred;
	dev_t dev = in->rdev;		/* both are made of 12 and 20 bits alike */
	int err, fd = begin(fs, req, inode, in->umask, &cred);

	(void)pool;
	if (fd < 0)
		return fd;
	err = mknodat(fd, req->name, in->mode & (S_IFMT | 07777), dev) < 0 ? -errno : 0;
	pass_cred_leave(fs, &cred);
	if (fs_unlikely(err == -EEXIST))
		err = made_before(req, fd, in->mode & S_IFMT ? in->mode & S_IFMT : S_IFREG, NULL);
	if (err == 0)
		err = finish(fs, req, inode, fd, 0);
	pass_inode_fd_put(fs, inode, fd);
	return err;
}

int pass_mkdir(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	const struct fuse_mkdir_in *in = FS_ARG(req, fuse_mkdir_in);
	struct pass_cred cred;
	int err, fd = begin(fs, req, inode, in->umask, &cred);

	(void)pool;
	if (fd < 0)
		return fd;
	err = mkdirat(fd, req->name, in->mode & 07777) < 0 ? -errno : 0;
	pass_cred_leave(fs, &cred);
	if (fs_unlikely(err == -EEXIST))
		err = made_before(req, fd, S_IFDIR, NULL);
	if (err == 0)
		err = finish(fs, req, inode, fd, AT_REMOVEDIR);
	pass_inode_fd_put(fs, inode, fd);
	return err;
}

int pass_symlink(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	struct pass_cred cred;
	int err, fd = begin(fs, req, inode, 0, &cred);

	(void)pool;
	if (fd < 0)
		return fd;
	err = symlinkat(req->name2, fd, req->name) < 0 ? -errno : 0;
	pass_cred_leave(fs, &cred);
	if (fs_unlikely(err == -EEXIST))
		err = made_before(req, fd, S_IFLNK, req->name2);
	if (err == 0)
		err = finish(fs, req, inode, fd, 0);
	pass_inode_fd_put(fs, inode, fd);
	return err;
}

/* --- files that are open from the start ------------------------------------------------------------------------ */

/* The reply to a file that is open as @fd, which is taken over. @flags: it was opened with; O_CREAT: that made it. */
static int answer_open(struct pass *fs, struct fs_req *req, struct pass_inode *parent, int fd, int flags)
{
	struct fuse_entry_out *entry = FS_OUT(req, fuse_entry_out);
	struct fuse_open_out *open = (struct fuse_open_out *)(void *)(entry + 1);
	const char *called = req->in.opcode != FUSE_TMPFILE ? req->name : NULL;
	struct pass_inode *inode;
	bool waits = false;
	int err = pass_entry_of_fd(fs, parent, fd, called, entry, &inode);

	if (err == 0) {
		waits = pass_inode_mount(fs, inode)->waits;
		err = pass_file_new(fs, inode, fd, flags, &open->fh);
		if (err < 0)
			pass_inode_forget(fs, inode, 1);
		pass_inode_put(fs, inode);
	}
	if (err < 0) {
		close(fd);
		return err;
	}
	if (called != NULL && flags & O_CREAT)
		pass_small_name(fs, parent, called, req->name_len);
	*open = (struct fuse_open_out){.fh = open->fh, .open_flags = pass_open_answer(fs, flags, waits)};
	return (int)CREATE_OUT;
}

/* O_DIRECT only now: where there is none, a file would be made and the call fail. */
static int make_direct(int fd, int flags)
{
	if (!(flags & O_DIRECT))
		return flags;
	return fcntl(fd, F_SETFL, flags & (O_DIRECT | O_APPEND)) < 0 ? flags & ~O_DIRECT : flags;
}

/* Somebody else made it first. The guest's kernel did not check whether its process may open that. */
static int open_existing(struct pass *fs, struct fs_req *req, struct pass_inode *parent, int dir_fd, int flags)
{
	struct fuse_entry_out *entry = FS_OUT(req, fuse_entry_out);
	struct pass_inode *inode;
	struct pass_cred cred;
	int path, fd = -1, err = pass_lookup_at(fs, parent, dir_fd, req->name, entry);

	if (err < 0)
		return err;
	inode = pass_inode_get(fs, entry->nodeid);
	if (inode == NULL)
		return -ESTALE;
	path = pass_inode_fd(fs, inode);
	err = path;
	if (path >= 0) {
		err = S_ISREG(pass_inode_type(inode)) ? 0 : S_ISDIR(pass_inode_type(inode)) ? -EISDIR : -EACCES;
		if (err == 0)
			err = pass_cred_enter(fs, req, 0, true, &cred);
		if (err == 0) {
			err = fd = pass_fd_reopen(fs, path, flags);
			pass_cred_leave(fs, &cred);
		}
		pass_inode_fd_put(fs, inode, path);
	}
	if (err >= 0)
		err = answer_open(fs, req, parent, fd, flags);
	pass_inode_forget(fs, inode, 1);	/* the other lookup is answer_open()'s */
	pass_inode_put(fs, inode);
	return err;
}

static int create_at(struct pass *fs, struct fs_req *req, int dir_fd, int flags)
{
	const struct fuse_create_in *in = FS_ARG(req, fuse_create_in);
	int fd;

	do {
		if (req->in.opcode == FUSE_TMPFILE)
			fd = openat(dir_fd, ".", (flags & ~O_DIRECT) | O_TMPFILE | ((int)in->flags & O_EXCL),
				    in->mode & 07777);
		else
			fd = pass_open_below(dir_fd, req->name, (flags & ~O_DIRECT) | O_CREAT | O_EXCL | O_NOFOLLOW,
					     in->mode & 07777);
	} while (fd < 0 && pass_fds_relieve(fs, -errno));
	return fd < 0 ? -errno : fd;
}

static int create(struct pass *fs, struct fs_req *req, struct pass_inode *parent, int flags)
{
	const struct fuse_create_in *in = FS_ARG(req, fuse_create_in);
	bool named = req->in.opcode != FUSE_TMPFILE;
	struct pass_cred cred;
	int err, fd, dir_fd = begin(fs, req, parent, in->umask, &cred);

	if (dir_fd < 0)
		return dir_fd;
	err = fd = create_at(fs, req, dir_fd, flags);
	pass_cred_leave(fs, &cred);
	if (fd == -EEXIST && named && (!(in->flags & O_EXCL) || req->replay)) {
		err = open_existing(fs, req, parent, dir_fd, flags);
	} else if (fd >= 0) {
		err = label(fs, req, dir_fd, fd);
		if (err == 0) {
			err = answer_open(fs, req, parent, fd, make_direct(fd, flags) | O_CREAT);
		} else {
			close(fd);
			if (named)
				unlinkat(dir_fd, req->name, 0);
		}
	}
	pass_inode_fd_put(fs, parent, dir_fd);
	return err;
}

int pass_create(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	int flags = pass_open_flags(fs, FS_ARG(req, fuse_create_in)->flags);

	(void)pool;
	if ((flags & O_ACCMODE) == O_ACCMODE)
		return -EINVAL;
	return create(fs, req, inode, flags);
}

int pass_tmpfile(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	int flags = pass_open_flags(fs, FS_ARG(req, fuse_create_in)->flags);

	(void)pool;
	if ((flags & O_ACCMODE) == O_ACCMODE || (flags & O_ACCMODE) == O_RDONLY)
		return -EINVAL;
	return create(fs, req, inode, flags & ~O_TRUNC);
}
