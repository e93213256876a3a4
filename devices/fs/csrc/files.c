// SPDX-License-Identifier: Apache-2.0
/*
 * files.c - open files and folders: what an fh of the guest stands for.
 */
#include "devices/fs/csrc/pass_int.h"

struct pass_file *pass_file_get(struct pass *fs, uint64_t fh)
{
	return pass_table_get(&fs->files, fh);
}

void pass_file_put(struct pass *fs, struct pass_file *file)
{
	uint64_t was = atomic_fetch_sub_explicit(&file->word, 1, memory_order_acq_rel);

	if (fs_likely((uint32_t)was != 1))
		return;
	close(file->fd);
	if (file->is_dir)
		pass_dir_free(file);
	pass_inode_put(fs, file->inode);
	pass_table_release(&fs->files, file);
}

static void file_fill(struct pass *fs, struct pass_file *file, struct pass_inode *inode, int fd, int flags)
{
	file->fd = fd;
	file->flags = flags & ~O_CREAT;
	file->is_dir = pass_inode_type(inode) == S_IFDIR;
	file->direct = flags & O_DIRECT;
	file->small = flags & O_CREAT ? pass_small_now(fs) : 0;
	atomic_store_explicit(&file->dir, NULL, memory_order_relaxed);
	file->inode = inode;
	file->nodeid = pass_inode_id(inode);
	pass_inode_hold(inode);
	atomic_store_explicit(&file->flock, 0, memory_order_relaxed);
	atomic_store_explicit(&file->open, true, memory_order_relaxed);
}

int pass_file_new(struct pass *fs, struct pass_inode *inode, int fd, int flags, uint64_t *fh)
{
	struct pass_file *file = pass_table_alloc(&fs->files);
	uint64_t word;

	if (file == NULL)
		return -ENFILE;
	file_fill(fs, file, inode, fd, flags);
	word = atomic_load_explicit(&file->word, memory_order_relaxed);
	*fh = word | file->index;	/* no references yet: the lower half is free */
	atomic_store_explicit(&file->word, word + 1, memory_order_release);
	return 0;
}

struct pass_file *pass_file_at(struct pass *fs, struct pass_inode *inode, uint64_t fh)
{
	struct pass_file *file = pass_file_get(fs, fh);
	int fd;

	if (fs_likely(file != NULL) || fh != 0 || !fs->opt.no_open)
		return file;
	fd = pass_inode_open(fs, inode, O_RDONLY | O_NONBLOCK);
	if (fd < 0)
		return NULL;
	if (pass_file_new(fs, inode, fd, O_RDONLY, &fh) < 0) {
		close(fd);
		return NULL;
	}
	file = pass_file_get(fs, fh);
	if (file != NULL)
		pass_file_release(fs, file);	/* it is open as long as it is used */
	return file;
}

int pass_file_restore(struct pass *fs, struct pass_inode *inode, int fd, int flags, uint64_t fh)
{
	struct pass_file *file = pass_table_place(&fs->files, fh);

	if (file == NULL)
		return -EINVAL;
	if (fd < 0) {
		atomic_store(&file->word, ((fh >> 32) + 1) << 32);
		return -EBADF;
	}
	file_fill(fs, file, inode, fd, flags);
	atomic_store(&file->word, (fh & ~(uint64_t)UINT32_MAX) | 1);
	return 0;
}

bool pass_file_release(struct pass *fs, struct pass_file *file)
{
	if (!atomic_exchange(&file->open, false))
		return false;
	pass_file_put(fs, file);
	return true;
}

int pass_files_init(struct pass *fs)
{
	return pass_table_init(&fs->files, sizeof(struct pass_file), offsetof(struct pass_file, index),
			       offsetof(struct pass_file, next), fs->opt.max_files);
}

void pass_files_reset(struct pass *fs)
{
	for (uint32_t i = pass_table_next(&fs->files, 1); i != 0; i = pass_table_next(&fs->files, i + 1))
		pass_file_release(fs, pass_table_slot(&fs->files, i));
}

void pass_files_free(struct pass *fs)
{
	if (fs->files.chunks == NULL)
		return;
	pass_files_reset(fs);
	pass_table_free(&fs->files);
}
