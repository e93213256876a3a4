// SPDX-License-Identifier: Apache-2.0
/*
 * pass.c - passthrough: the table of opcodes, beginning and end.
 */
#include "devices/fs/csrc/pass_int.h"

#include <stdlib.h>
#include <string.h>

enum {
	OP_CHANGES = 1,		/* refused where the file system is read-only */
	OP_NO_INODE = 2,	/* has nodeids of its own */
	OP_BY_FH = 4,		/* the fh says all */
};

static const struct {
	pass_op *op;
	uint8_t is;
} ops[] = {
	[FUSE_LOOKUP] = {pass_lookup, 0},
	[FUSE_FORGET] = {pass_forget, OP_NO_INODE},
	[FUSE_GETATTR] = {pass_getattr, 0},
	[FUSE_SETATTR] = {pass_setattr, OP_CHANGES},
	[FUSE_READLINK] = {pass_readlink, 0},
	[FUSE_SYMLINK] = {pass_symlink, OP_CHANGES},
	[FUSE_MKNOD] = {pass_mknod, OP_CHANGES},
	[FUSE_MKDIR] = {pass_mkdir, OP_CHANGES},
	[FUSE_UNLINK] = {pass_unlink, OP_CHANGES},
	[FUSE_RMDIR] = {pass_rmdir, OP_CHANGES},
	[FUSE_RENAME] = {pass_rename, OP_CHANGES},
	[FUSE_LINK] = {pass_link, OP_CHANGES},
	[FUSE_OPEN] = {pass_open, 0},
	[FUSE_READ] = {pass_read, 0},
	[FUSE_WRITE] = {pass_write, OP_CHANGES | OP_BY_FH},
	[FUSE_STATFS] = {pass_statfs, 0},
	[FUSE_RELEASE] = {pass_release, OP_BY_FH},
	[FUSE_FSYNC] = {pass_fsync, 0},
	[FUSE_SETXATTR] = {pass_setxattr, OP_CHANGES},
	[FUSE_GETXATTR] = {pass_getxattr, 0},
	[FUSE_LISTXATTR] = {pass_listxattr, 0},
	[FUSE_REMOVEXATTR] = {pass_removexattr, OP_CHANGES},
	[FUSE_FLUSH] = {pass_flush, OP_BY_FH},
	[FUSE_OPENDIR] = {pass_opendir, 0},
	[FUSE_READDIR] = {pass_readdir, 0},
	[FUSE_RELEASEDIR] = {pass_releasedir, 0},
	[FUSE_FSYNCDIR] = {pass_fsyncdir, 0},
	[FUSE_GETLK] = {pass_getlk, 0},
	[FUSE_SETLK] = {pass_setlk, 0},
	[FUSE_SETLKW] = {pass_setlkw, 0},
	[FUSE_ACCESS] = {pass_access, 0},
	[FUSE_CREATE] = {pass_create, OP_CHANGES},
	[FUSE_IOCTL] = {pass_ioctl, 0},
	[FUSE_POLL] = {pass_poll, 0},
	[FUSE_BATCH_FORGET] = {pass_batch_forget, OP_NO_INODE},
	[FUSE_FALLOCATE] = {pass_fallocate, OP_CHANGES},
	[FUSE_READDIRPLUS] = {pass_readdirplus, 0},
	[FUSE_RENAME2] = {pass_rename2, OP_CHANGES},
	[FUSE_LSEEK] = {pass_lseek, 0},
	[FUSE_COPY_FILE_RANGE] = {pass_copy_file_range, OP_CHANGES},
	[FUSE_SETUPMAPPING] = {pass_setupmapping, 0},
	[FUSE_REMOVEMAPPING] = {pass_removemapping, OP_NO_INODE},
	[FUSE_SYNCFS] = {pass_syncfs, 0},
	[FUSE_TMPFILE] = {pass_tmpfile, OP_CHANGES},
	[FUSE_STATX] = {pass_statx_op, 0},
	[FUSE_COPY_FILE_RANGE_64] = {pass_copy_file_range, OP_CHANGES},
};

/* Does the guest not know the inode either? */
static int bad_fh(struct pass *fs, const struct fs_req *req)
{
	struct pass_inode *inode = pass_inode_get(fs, req->in.nodeid);

	if (inode == NULL)
		return -ESTALE;
	pass_inode_put(fs, inode);
	return -EBADF;
}

static int handle(struct fs_server *server, struct fs_req *req, bool pool)
{
	struct pass *fs = pass_of(server);
	uint32_t opcode = req->in.opcode;
	struct pass_inode *inode;
	int rc;

	if (fs_unlikely(opcode >= sizeof(ops) / sizeof(ops[0]) || ops[opcode].op == NULL))
		return -ENOSYS;
	if (fs_unlikely(fs->opt.read_only && ops[opcode].is & OP_CHANGES))
		return -EROFS;
	if (fs_unlikely(ops[opcode].is & OP_NO_INODE))
		return ops[opcode].op(fs, req, NULL, pool);
	if (ops[opcode].is & OP_BY_FH) {
		rc = ops[opcode].op(fs, req, NULL, pool);
		return fs_unlikely(rc == -EBADF) ? bad_fh(fs, req) : rc;
	}
	inode = pass_inode_get(fs, req->in.nodeid);
	if (fs_unlikely(inode == NULL))
		return -ESTALE;
	if (fs_unlikely(!pool && pass_inode_mount(fs, inode)->waits))
		rc = FS_SLOW;
	else
		rc = ops[opcode].op(fs, req, inode, pool);
	pass_inode_put(fs, inode);
	return rc;
}

static void reset(struct fs_server *server)
{
	struct pass *fs = pass_of(server);

	pass_files_reset(fs);
	pass_inodes_reset(fs);
	pass_window_reset(fs);
}

static void options_free(struct pass_options *opt)
{
	for (uint32_t i = 0; opt->xattr_rules != NULL && i < opt->nr_xattr_rules; i++) {
		free((void *)(uintptr_t)opt->xattr_rules[i].key);
		free((void *)(uintptr_t)opt->xattr_rules[i].prepend);
	}
	free((void *)(uintptr_t)opt->xattr_rules);
	free((void *)(uintptr_t)opt->uid_to_host);
	free((void *)(uintptr_t)opt->uid_to_guest);
	free((void *)(uintptr_t)opt->gid_to_host);
	free((void *)(uintptr_t)opt->gid_to_guest);
}

static void *copy_of(const void *from, size_t bytes)
{
	void *to = calloc(1, bytes > 0 ? bytes : 1);

	if (to != NULL && bytes > 0)
		memcpy(to, from, bytes);
	return to;
}

static int ranges_copy(const struct pass_range **ranges, uint32_t nr)
{
	*ranges = copy_of(*ranges, nr * sizeof(**ranges));
	return *ranges != NULL ? 0 : -ENOMEM;
}

static int options_copy(struct pass_options *to, const struct pass_options *from)
{
	struct pass_xattr_rule *rules = calloc(from->nr_xattr_rules + 1, sizeof(*rules));
	int err = rules != NULL ? 0 : -ENOMEM;

	*to = *from;
	to->xattr_rules = rules;
	for (uint32_t i = 0; rules != NULL && i < from->nr_xattr_rules; i++) {
		rules[i] = from->xattr_rules[i];
		rules[i].key = strdup(from->xattr_rules[i].key);
		rules[i].prepend = strdup(from->xattr_rules[i].prepend);
		if (rules[i].key == NULL || rules[i].prepend == NULL)
			err = -ENOMEM;
	}
	err |= ranges_copy(&to->uid_to_host, to->nr_uid_to_host);
	err |= ranges_copy(&to->uid_to_guest, to->nr_uid_to_guest);
	err |= ranges_copy(&to->gid_to_host, to->nr_gid_to_host);
	err |= ranges_copy(&to->gid_to_guest, to->nr_gid_to_guest);
	if (to->max_fds == 0)
		to->max_fds = 1;
	return err < 0 ? -ENOMEM : 0;
}

static uint64_t what_we_can(const struct pass_options *opt)
{
	uint64_t can = FUSE_ATOMIC_O_TRUNC | FUSE_EXPORT_SUPPORT | FUSE_DONT_MASK | FUSE_AUTO_INVAL_DATA | FUSE_ASYNC_DIO |
		       FUSE_SETXATTR_EXT | FUSE_CREATE_SUPP_GROUP | FUSE_DIRECT_IO_ALLOW_MMAP;

	if (opt->entry_ns > 0)
		can |= FUSE_CACHE_SYMLINKS;
	if (opt->readdirplus)
		can |= FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO;
	if (opt->submounts)
		can |= FUSE_SUBMOUNTS;
	if (opt->writeback && !opt->read_only)
		can |= FUSE_WRITEBACK_CACHE;
	if (opt->killpriv_v2)
		can |= FUSE_HANDLE_KILLPRIV_V2;
	if (opt->posix_lock)
		can |= FUSE_POSIX_LOCKS;
	if (opt->flock)
		can |= FUSE_FLOCK_LOCKS;
	if (opt->posix_acl)
		can |= FUSE_POSIX_ACL;
	if (opt->no_open)
		can |= FUSE_NO_OPEN_SUPPORT | FUSE_NO_OPENDIR_SUPPORT;
	if (opt->dax)
		can |= FUSE_MAP_ALIGNMENT | FUSE_HAS_INODE_DAX;
	if (opt->security_label)
		can |= FUSE_SECURITY_CTX;
	return can;
}

static void pass_free(struct fs_server *server)
{
	struct pass *fs = pass_of(server);

	pass_files_free(fs);
	pass_inodes_free(fs);
	pass_locks_exit(fs);
	pass_keep_free(fs);
	pass_window_free(fs);
	pass_mounts_free(fs);
	pass_fds_free(fs);
	free(fs->mounts);
	free(fs->listed);
	if (fs->root_fd >= 0)
		close(fs->root_fd);
	if (fs->proc_fd >= 0)
		close(fs->proc_fd);
	pthread_mutex_destroy(&fs->mount_lock);
	options_free(&fs->opt);
	fs_server_exit(server);
	free(fs);
}

static const struct fs_server_ops pass_ops = {.handle = handle, .reset = reset, .free = pass_free, .settled = pass_keep_session};

struct fs_server *pass_new(const struct pass_options *options, int *error)
{
	struct pass *fs = aligned_alloc(64, (sizeof(*fs) + 63) / 64 * 64);
	int err = -ENOMEM;

	*error = -ENOMEM;
	if (fs == NULL)
		return NULL;
	memset(fs, 0, sizeof(*fs));
	fs->root_fd = fs->proc_fd = -1;
	if (fs_server_init(&fs->server, &pass_ops, what_we_can(options)) < 0) {
		free(fs);
		return NULL;
	}
	fs->server.map_align = PASS_WINDOW_SHIFT;
	pthread_mutex_init(&fs->mount_lock, NULL);
	pthread_mutex_init(&fs->fds.lock, NULL);
	atomic_store(&fs->small.growth, 1);
	pass_cred_init(fs);
	fs->mounts = calloc(PASS_MOUNTS, sizeof(*fs->mounts));
	if (options->relist)
		fs->listed = calloc(1 << PASS_LISTED_SHIFT, sizeof(*fs->listed));
	if (fs->mounts == NULL || (options->relist && fs->listed == NULL) || options_copy(&fs->opt, options) < 0)
		goto failed;
	fs->root_fd = fcntl(options->root_fd, F_DUPFD_CLOEXEC, 0);
	fs->proc_fd = fcntl(options->proc_fd, F_DUPFD_CLOEXEC, 0);
	err = fs->root_fd < 0 || fs->proc_fd < 0 ? -errno : pass_fds_init(fs);
	if (err == 0 && options->dax)
		err = pass_window_init(fs);
	if (err == 0 && options->keep)
		err = pass_keep_open(fs);
	if (err == 0)
		err = pass_files_init(fs);
	if (err == 0)
		err = pass_locks_init(fs);
	if (err == 0)
		err = pass_inodes_init(fs);
	if (err < 0)
		goto failed;
	if (fs->keep != NULL)
		pass_keep_root(fs);
	*error = 0;
	return &fs->server;
failed:
	*error = err;
	pass_free(&fs->server);
	return NULL;
}

void pass_get_stats(const struct fs_server *server, struct pass_stats *out)
{
	const struct pass *fs = (const struct pass *)(const void *)server;
	const struct pass_fds *fds = &fs->fds;

	*out = (struct pass_stats){
		.inodes = atomic_load(&fs->inodes.live),
		.inode_bytes = pass_inodes_bytes(fs),
		.files = atomic_load(&fs->files.live),
		.fds = atomic_load(&fds->kept) + atomic_load(&fds->pinned),
		.fds_opened = atomic_load(&fds->opened),
		.fds_evicted = atomic_load(&fds->evicted),
		.fds_short = atomic_load(&fds->scarce),
		.stale = atomic_load(&fs->stale),
		.locks = atomic_load(&fs->nr_locks),
	};
	for (uint32_t i = 0; i < PASS_MOUNTS; i++) {
		if (!atomic_load_explicit(&fs->mounts[i].used, memory_order_acquire))
			continue;
		out->mounts++;
		out->mounts_without_handles += atomic_load(&fs->mounts[i].handles) < 0;
	}
}
