// SPDX-License-Identifier: Apache-2.0
/*
 * mount.c - the host's file systems below the folder: which have file handles, which may keep a call waiting.
 *
 * Places of the table are filled once and stay: there are few mounts, and finding one takes no lock.
 */
#include "devices/fs/csrc/pass_int.h"

#include <linux/magic.h>
#include <sys/statfs.h>

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif
#define PASS_ZFS_MAGIC 0x2fc12fc1
#define PASS_BCACHEFS_MAGIC 0xca451a4e
#define PASS_CIFS_MAGIC 0xff534d42
#define PASS_SMB2_MAGIC 0xfe534d42
#define PASS_CEPH_MAGIC 0x00c36400
#define PASS_LUSTRE_MAGIC 0x0bd00bd0
#define PASS_GFS2_MAGIC 0x01161970
#define PASS_EXFAT_MAGIC 0x2011bab0

enum {
	MOUNT_WAITS = 1,		/* its calls go over a network or to a process */
	MOUNT_BTIME = 2,		/* times of birth never change */
	MOUNT_NO_HANDLES = 4,		/* gives handles that lead to files only while they are cached */
	MOUNT_MEMORY = 8,		/* files are their pages */
	MOUNT_TELLS = 16,		/* a folder has another ctime whenever names come or go in it */
};

static const struct {
	uint32_t magic;
	uint32_t is;
} kinds[] = {
	{EXT4_SUPER_MAGIC, MOUNT_BTIME | MOUNT_TELLS},
	{XFS_SUPER_MAGIC, MOUNT_BTIME | MOUNT_TELLS},
	{BTRFS_SUPER_MAGIC, MOUNT_BTIME | MOUNT_TELLS},
	{F2FS_SUPER_MAGIC, MOUNT_BTIME | MOUNT_TELLS},
	{TMPFS_MAGIC, MOUNT_BTIME | MOUNT_MEMORY | MOUNT_TELLS},
	{RAMFS_MAGIC, MOUNT_MEMORY | MOUNT_TELLS},
	{PASS_ZFS_MAGIC, MOUNT_BTIME | MOUNT_TELLS},
	{PASS_BCACHEFS_MAGIC, MOUNT_BTIME | MOUNT_TELLS},
	{OVERLAYFS_SUPER_MAGIC, MOUNT_TELLS},
	{NFS_SUPER_MAGIC, MOUNT_WAITS},
	{PASS_CIFS_MAGIC, MOUNT_WAITS | MOUNT_NO_HANDLES},
	{PASS_SMB2_MAGIC, MOUNT_WAITS | MOUNT_NO_HANDLES},
	{SMB_SUPER_MAGIC, MOUNT_WAITS | MOUNT_NO_HANDLES},
	{FUSE_SUPER_MAGIC, MOUNT_WAITS | MOUNT_NO_HANDLES},
	{V9FS_MAGIC, MOUNT_WAITS | MOUNT_NO_HANDLES},
	{AFS_SUPER_MAGIC, MOUNT_WAITS | MOUNT_NO_HANDLES},
	{AFS_FS_MAGIC, MOUNT_WAITS | MOUNT_NO_HANDLES},
	{CODA_SUPER_MAGIC, MOUNT_WAITS | MOUNT_NO_HANDLES},
	{PASS_CEPH_MAGIC, MOUNT_WAITS},
	{PASS_LUSTRE_MAGIC, MOUNT_WAITS},
	{PASS_GFS2_MAGIC, MOUNT_WAITS},
	{MSDOS_SUPER_MAGIC, MOUNT_NO_HANDLES},
	{PASS_EXFAT_MAGIC, MOUNT_NO_HANDLES},
};

static uint32_t kind_of(int fd)
{
	struct statfs st;

	if (fstatfs(fd, &st) < 0)
		return 0;
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (kinds[i].magic == (uint32_t)st.f_type)
			return kinds[i].is;
	return 0;
}

static uint64_t dev_of(const struct statx *stx)
{
	return (uint64_t)stx->stx_dev_major << 32 | stx->stx_dev_minor;
}

static uint64_t id_of(const struct statx *stx)
{
	return stx->stx_mask & STATX_MNT_ID ? stx->stx_mnt_id : 0;
}

static uint32_t place_of(uint64_t id, uint64_t dev)
{
	uint64_t h = (id ^ dev << 20) * 0x9e3779b97f4a7c15ull;

	return (uint32_t)(h >> 40) % PASS_MOUNTS;
}

int pass_mount_find(const struct pass *fs, const struct statx *stx)
{
	uint64_t id = id_of(stx), dev = dev_of(stx);
	uint32_t at = place_of(id, dev);

	for (uint32_t i = 0; i < PASS_MOUNTS; i++, at = (at + 1) % PASS_MOUNTS) {
		const struct pass_mount *mount = &fs->mounts[at];

		if (!atomic_load_explicit(&mount->used, memory_order_acquire))
			return -ENOENT;
		if (mount->id == id && mount->dev == dev)
			return (int)at;
	}
	return -ENOENT;
}

/* An fd that is no O_PATH one, of a folder (or file) in the mount of @stx. */
static int open_mount(struct pass *fs, const struct statx *stx, struct pass_where where, int fd)
{
	struct statx parent;
	char name[16];

	if (S_ISDIR(stx->stx_mode))
		return openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK);
	if (where.name != NULL && pass_statx(where.dir_fd, NULL, &parent) == 0 && id_of(&parent) == id_of(stx))
		return openat(where.dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK);
	if (S_ISREG(stx->stx_mode))
		return openat(fs->proc_fd, pass_fd_name(fd, name), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	return -1;	/* a mount of a special file: rather not */
}

/* Do handles lead back to files here? 1 with mount->fd open, or -errno; 0: could not be found out now. */
static int try_handles(struct pass *fs, struct pass_mount *mount, const struct statx *stx, struct pass_where where,
		       int fd)
{
	union {
		struct file_handle h;
		uint8_t room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} u;
	int mount_id, again, err;

	u.h.handle_bytes = MAX_HANDLE_SZ;
	if (name_to_handle_at(fd, "", &u.h, &mount_id, AT_EMPTY_PATH) < 0)
		return -errno;
	if (mount->fd < 0)
		mount->fd = open_mount(fs, stx, where, fd);
	if (mount->fd < 0)
		return 0;
	again = open_by_handle_at(mount->fd, &u.h, O_PATH | O_CLOEXEC);
	if (again >= 0) {
		close(again);
		return 1;
	}
	err = -errno;
	close(mount->fd);
	mount->fd = -1;
	return err == -ESTALE || err == -EMFILE || err == -ENFILE || err == -ENOMEM ? 0 : err;
}

/* Under the lock: see to it that handles can be used if they can at all. */
static int mount_ready(struct pass *fs, struct pass_mount *mount, const struct statx *stx, struct pass_where where)
{
	int fd, handles = atomic_load(&mount->handles);
	uint32_t kind;

	if (handles < 0 || (handles > 0 && mount->fd >= 0))
		return 0;
	fd = pass_open_path(fs, where);
	if (fd < 0)
		return fd;
	if (!atomic_load(&mount->used)) {
		kind = kind_of(fd);
		mount->waits = kind & MOUNT_WAITS;
		mount->btime = kind & MOUNT_BTIME;
		mount->memory = kind & MOUNT_MEMORY;
		mount->tells = kind & MOUNT_TELLS;
		if (kind & MOUNT_NO_HANDLES)
			handles = -EOPNOTSUPP;
		if (fs->opt.handles == PASS_HANDLES_NEVER)
			handles = -EPERM;
	}
	if (handles >= 0)
		handles = try_handles(fs, mount, stx, where, fd);
	atomic_store_explicit(&mount->handles, handles, memory_order_release);
	close(fd);
	return 0;
}

static int mount_get_locked(struct pass *fs, const struct statx *stx, struct pass_where where)
{
	struct pass_mount *mount;
	uint32_t at;
	int err, found = pass_mount_find(fs, stx);

	if (found >= 0) {
		mount = &fs->mounts[found];
	} else {
		if (fs->nr_mounts >= PASS_MOUNTS / 4 * 3)
			return -ENOSPC;
		at = place_of(id_of(stx), dev_of(stx));
		while (atomic_load(&fs->mounts[at].used))
			at = (at + 1) % PASS_MOUNTS;
		mount = &fs->mounts[at];
		mount->id = id_of(stx);
		mount->dev = dev_of(stx);
		mount->fd = -1;
		atomic_store(&mount->handles, 0);
		found = (int)at;
	}
	err = mount_ready(fs, mount, stx, where);
	if (err < 0)
		return err;
	if (!atomic_load(&mount->used)) {
		fs->nr_mounts++;
		atomic_store_explicit(&mount->used, true, memory_order_release);
	}
	atomic_fetch_add(&mount->inodes, 1);
	return found;
}

int pass_mount_get(struct pass *fs, const struct statx *stx, struct pass_where where)
{
	int found = pass_mount_find(fs, stx);

	if (fs_likely(found >= 0)) {
		struct pass_mount *mount = &fs->mounts[found];
		uint32_t inodes = atomic_load(&mount->inodes);

		/* while it has inodes its fd stays open */
		while (inodes != 0 && atomic_load(&mount->handles) != 0)
			if (atomic_compare_exchange_weak(&mount->inodes, &inodes, inodes + 1))
				return found;
	}
	pthread_mutex_lock(&fs->mount_lock);
	found = mount_get_locked(fs, stx, where);
	pthread_mutex_unlock(&fs->mount_lock);
	return found;
}

void pass_mount_put(struct pass *fs, uint32_t at)
{
	struct pass_mount *mount = &fs->mounts[at];
	int fd = -1;

	if (atomic_fetch_sub(&mount->inodes, 1) != 1)
		return;
	/* the host may want to unmount it */
	pthread_mutex_lock(&fs->mount_lock);
	if (atomic_load(&mount->inodes) == 0 && mount->fd >= 0) {
		fd = mount->fd;
		mount->fd = -1;
	}
	pthread_mutex_unlock(&fs->mount_lock);
	if (fd >= 0)
		close(fd);
}

void pass_mounts_free(struct pass *fs)
{
	for (uint32_t i = 0; fs->mounts != NULL && i < PASS_MOUNTS; i++)
		if (atomic_load(&fs->mounts[i].used) && fs->mounts[i].fd >= 0)
			close(fs->mounts[i].fd);
}

int pass_try_handles(int root_fd)
{
	union {
		struct file_handle h;
		uint8_t room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} u;
	int mount_id, fd, again, err = 0;

	if (kind_of(root_fd) & MOUNT_NO_HANDLES)
		return -EOPNOTSUPP;
	u.h.handle_bytes = MAX_HANDLE_SZ;
	if (name_to_handle_at(root_fd, "", &u.h, &mount_id, AT_EMPTY_PATH) < 0)
		return -errno;
	fd = openat(root_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return -errno;
	again = open_by_handle_at(fd, &u.h, O_PATH | O_CLOEXEC);
	if (again < 0)
		err = -errno;
	else
		close(again);
	close(fd);
	return err;
}
