// SPDX-License-Identifier: Apache-2.0
/*
 * lookup.c - names to inodes, and back to nothing: LOOKUP, FORGET, BATCH_FORGET.
 */
#include "devices/fs/csrc/pass_int.h"

#include <string.h>

void pass_entry_fill(const struct pass *fs, const struct pass_inode *parent, const struct pass_inode *inode,
		     const struct statx *stx, struct fuse_entry_out *out)
{
	out->nodeid = pass_inode_id(inode);
	out->generation = 0;
	pass_time(fs->opt.entry_ns, &out->entry_valid, &out->entry_valid_nsec);
	pass_time(fs->opt.attr_ns, &out->attr_valid, &out->attr_valid_nsec);
	pass_attr(fs, stx, &out->attr);
	if (fs_unlikely(inode->mount != parent->mount) && fs->server.flags & FUSE_SUBMOUNTS && S_ISDIR(stx->stx_mode))
		out->attr.flags = FUSE_ATTR_SUBMOUNT;
}

int pass_lookup_at(struct pass *fs, const struct pass_inode *parent, int dir_fd, const char *name,
		   struct fuse_entry_out *out)
{
	struct pass_where where = {.dir_fd = dir_fd, .name = name, .called = name, .parent = pass_inode_id(parent)};
	struct pass_inode *inode;
	struct statx stx;
	int err = pass_statx(dir_fd, name, &stx);

	if (err < 0)
		return err;
	err = pass_inode_learn(fs, &stx, where, &inode);
	if (err < 0)
		return err;
	pass_entry_fill(fs, parent, inode, &stx, out);
	pass_inode_put(fs, inode);
	return 0;
}

int pass_entry_of_fd(struct pass *fs, const struct pass_inode *parent, int fd, const char *called,
		     struct fuse_entry_out *out, struct pass_inode **inode)
{
	struct pass_where where = {.dir_fd = fd, .called = called, .parent = pass_inode_id(parent)};
	struct pass_inode *found;
	struct statx stx;
	int err = pass_statx(fd, NULL, &stx);

	if (err < 0)
		return err;
	err = pass_inode_learn(fs, &stx, where, &found);
	if (err < 0)
		return err;
	pass_entry_fill(fs, parent, found, &stx, out);
	if (inode != NULL)
		*inode = found;
	else
		pass_inode_put(fs, found);
	return 0;
}

/* For a guest that exports the file system: itself. */
static int lookup_self(struct pass *fs, struct pass_inode *inode, struct fuse_entry_out *out)
{
	int err, fd = pass_inode_fd(fs, inode);

	if (fd < 0)
		return fd;
	err = pass_entry_of_fd(fs, inode, fd, NULL, out, NULL);
	pass_inode_fd_put(fs, inode, fd);
	return err;
}

/* Likewise: what it lies in, if the guest knows that already. It is never a way up and out. */
static int lookup_parent(struct pass *fs, struct pass_inode *inode, struct fuse_entry_out *out)
{
	struct pass_inode *found;
	struct statx stx;
	int err, fd;

	if (inode == fs->root)
		return lookup_self(fs, inode, out);
	fd = pass_inode_fd(fs, inode);
	if (fd < 0)
		return fd;
	err = pass_statx(fd, "..", &stx);
	pass_inode_fd_put(fs, inode, fd);
	if (err < 0)
		return err;
	found = pass_inode_known(fs, &stx);
	if (found == NULL)
		return -ESTALE;
	pass_entry_fill(fs, inode, found, &stx, out);
	out->attr.flags = 0;
	pass_inode_put(fs, found);
	return 0;
}

static int no_such_name(struct pass *fs, struct fs_req *req)
{
	struct fuse_entry_out *out = FS_OUT(req, fuse_entry_out);

	if (fs->opt.negative_ns == 0)
		return -ENOENT;
	memset(out, 0, sizeof(*out));
	pass_time(fs->opt.negative_ns, &out->entry_valid, &out->entry_valid_nsec);
	return sizeof(*out);
}

int pass_lookup(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	struct fuse_entry_out *out = FS_OUT(req, fuse_entry_out);
	int fd, err;

	(void)pool;
	if (fs_unlikely(!pass_name_ok(req->name, req->name_len))) {
		if (strcmp(req->name, ".") == 0)
			err = lookup_self(fs, inode, out);
		else
			err = strcmp(req->name, "..") == 0 ? lookup_parent(fs, inode, out) : -EINVAL;
		return err < 0 ? err : (int)sizeof(*out);
	}
	if (fs_unlikely(pass_inode_type(inode) != S_IFDIR))
		return -ENOTDIR;
	fd = pass_inode_fd(fs, inode);
	if (fd < 0)
		return fd;
	err = pass_lookup_at(fs, inode, fd, req->name, out);
	pass_inode_fd_put(fs, inode, fd);
	if (err == -ENOENT)
		return no_such_name(fs, req);
	return err < 0 ? err : (int)sizeof(*out);
}

static void forget(struct pass *fs, uint64_t nodeid, uint64_t n)
{
	struct pass_inode *inode = pass_inode_get(fs, nodeid);

	if (inode == NULL)
		return;
	pass_inode_forget(fs, inode, n);
	pass_inode_put(fs, inode);
}

int pass_forget(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	(void)inode;
	(void)pool;
	if (fs_unlikely(req->replay))
		return FS_NONE;		/* twice would be too much: rather know it for longer than the guest does */
	forget(fs, req->in.nodeid, FS_ARG(req, fuse_forget_in)->nlookup);
	return FS_NONE;
}

int pass_batch_forget(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	struct fuse_forget_one one;
	size_t have = 0;

	(void)inode;
	(void)pool;
	if (fs_unlikely(req->replay))
		return FS_NONE;
	/* entries may begin and end anywhere in the pieces */
	for (uint32_t i = 0; i < req->nr_data; i++) {
		const SHM uint8_t *from = req->data[i].base;
		size_t left = req->data[i].len;

		while (left > 0) {
			size_t n = sizeof(one) - have < left ? sizeof(one) - have : left;

			shm_copy_in((uint8_t *)&one + have, from, n);
			have += n;
			from += n;
			left -= n;
			if (have < sizeof(one))
				break;
			have = 0;
			forget(fs, one.nodeid, one.nlookup);
		}
	}
	return FS_NONE;
}
