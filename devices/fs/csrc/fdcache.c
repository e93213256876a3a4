// SPDX-License-Identifier: Apache-2.0
/*
 * fdcache.c - how inodes are reached: O_PATH fds that handles can bring back, in a clock of bounded size (second chance),
 * and fds that stay open where there is no handle.
 *
 * pass_inode.fdword is users << 32 | recent << 31 | fd + 1. Whoever uses the fd counts as a user; the clock closes
 * what has none and was not used since its hand came by last. Fds are put into and taken out of the word with the clock's lock
 * held, users come and go without.
 */
#include "devices/fs/csrc/pass_int.h"

#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#define FD_USER (1ull << 32)
#define FD_RECENT (1ull << 31)
#define FD_MASK (FD_RECENT - 1)
#define NO_PLACE UINT32_MAX

enum {
	NAMES_DEEP = 32,		/* folders in a row that are reached by their names; STACK of pool.c holds them */
	RELIEF = 32,			/* fds closed when the system has no more */
};

const char *pass_fd_name(int fd, char name[16])
{
	char *at = name + 15;
	unsigned n = (unsigned)fd;

	*at = '\0';
	do
		*--at = (char)('0' + n % 10);
	while ((n /= 10) != 0);
	return at;
}

int pass_fds_init(struct pass *fs)
{
	struct pass_fds *fds = &fs->fds;

	fds->size = fs->opt.max_fds;
	fds->ring = calloc(fds->size, sizeof(*fds->ring));
	fds->spare = calloc(fds->size, sizeof(*fds->spare));
	if (fds->ring == NULL || fds->spare == NULL)
		return -ENOMEM;
	while (fds->nr_spare < fds->size) {
		fds->spare[fds->nr_spare] = fds->size - 1 - fds->nr_spare;
		fds->nr_spare++;
	}
	return 0;
}

void pass_fds_free(struct pass *fs)
{
	free(fs->fds.ring);
	free(fs->fds.spare);
	pthread_mutex_destroy(&fs->fds.lock);
}

/* Under the lock: the fd of the inode at @place if nobody uses it, else -1. @force: even if it was used of late. */
static int take_from(struct pass *fs, uint32_t place, bool force)
{
	struct pass_inode *inode = pass_table_slot(&fs->inodes, fs->fds.ring[place]);
	uint64_t word;

	if (inode == NULL)
		return -1;
	word = atomic_load_explicit(&inode->fdword, memory_order_relaxed);
	for (;;) {
		uint64_t left = 0;

		if (word >= FD_USER)
			return -1;
		if (word & FD_RECENT && !force)
			left = word & ~FD_RECENT;
		if (!atomic_compare_exchange_weak_explicit(&inode->fdword, &word, left, memory_order_acq_rel,
							   memory_order_relaxed))
			continue;
		if (left != 0)
			return -1;
		inode->place = NO_PLACE;
		fs->fds.ring[place] = 0;
		return (int)(word & FD_MASK) - 1;
	}
}

/* Under the lock: one place less in use, its fd for the caller to close; -1: all are in use at this moment. */
static int evict(struct pass *fs, uint32_t *place)
{
	struct pass_fds *fds = &fs->fds;

	for (uint32_t i = 0; i < 2 * fds->size; i++) {
		uint32_t at = fds->hand;
		int fd = take_from(fs, at, i >= fds->size);

		fds->hand = at + 1 < fds->size ? at + 1 : 0;
		if (fd < 0)
			continue;
		*place = at;
		atomic_fetch_add_explicit(&fds->evicted, 1, memory_order_relaxed);
		return fd;
	}
	return -1;
}

bool pass_fds_relieve(struct pass *fs, int error)
{
	struct pass_fds *fds = &fs->fds;
	int fd[RELIEF], n = 0;

	if (error != -EMFILE && error != -ENFILE)
		return false;
	atomic_fetch_add_explicit(&fds->scarce, 1, memory_order_relaxed);
	pthread_mutex_lock(&fds->lock);
	while (n < RELIEF && fds->nr_spare < fds->size) {
		uint32_t place;

		fd[n] = evict(fs, &place);
		if (fd[n] < 0)
			break;
		fds->spare[fds->nr_spare++] = place;
		atomic_fetch_sub_explicit(&fds->kept, 1, memory_order_relaxed);
		n++;
	}
	pthread_mutex_unlock(&fds->lock);
	for (int i = 0; i < n; i++)
		close(fd[i]);
	return n > 0;
}

/* Under the lock: @fd becomes the inode's, with one user. False: no place, the clock's fds are all in use. */
static bool put_into(struct pass *fs, struct pass_inode *inode, int fd, int *old)
{
	struct pass_fds *fds = &fs->fds;
	uint32_t place;

	*old = -1;
	if (fds->nr_spare > 0 && atomic_load_explicit(&fds->kept, memory_order_relaxed) +
				 atomic_load_explicit(&fds->pinned, memory_order_relaxed) < fds->size) {
		place = fds->spare[--fds->nr_spare];
		atomic_fetch_add_explicit(&fds->kept, 1, memory_order_relaxed);
	} else {
		*old = evict(fs, &place);
		if (*old < 0)
			return false;
	}
	fds->ring[place] = inode->index;
	inode->place = place;
	atomic_store_explicit(&inode->fdword, FD_USER | ((uint64_t)fd + 1), memory_order_release);
	return true;
}

int pass_open_below(int dir_fd, const char *name, int flags, mode_t mode)
{
	static _Atomic bool old_kernel;
	struct open_how how = {
		.flags = (unsigned int)flags | O_CLOEXEC,
		.mode = mode,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
	};
	int fd;

	while (!atomic_load_explicit(&old_kernel, memory_order_relaxed)) {
		fd = (int)syscall(SYS_openat2, dir_fd, name, &how, sizeof(how));
		if (fd >= 0 || (errno != ENOSYS && errno != EAGAIN))
			return fd;
		if (errno == ENOSYS)	/* before 5.6, or a filter of somebody else's */
			atomic_store(&old_kernel, true);
	}
	return openat(dir_fd, name, flags | O_CLOEXEC, mode);
}

int pass_open_path(struct pass *fs, struct pass_where where)
{
	char name[16];
	int fd;

	do {
		if (where.name != NULL)
			fd = pass_open_below(where.dir_fd, where.name, O_PATH | O_NOFOLLOW, 0);
		else
			fd = openat(fs->proc_fd, pass_fd_name(where.dir_fd, name), O_PATH | O_CLOEXEC);
	} while (fd < 0 && pass_fds_relieve(fs, -errno));
	return fd < 0 ? -errno : fd;
}

static int open_handle(struct pass *fs, struct pass_inode *inode, int flags)
{
	union {
		struct file_handle h;
		uint8_t room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} u;
	int fd;

	u.h.handle_bytes = inode->handle_len;
	u.h.handle_type = inode->handle_type;
	memcpy(u.h.f_handle, inode->handle_len > PASS_HANDLE_INLINE ? inode->handle_far : inode->handle,
	       inode->handle_len);
	do
		fd = open_by_handle_at(pass_inode_mount(fs, inode)->fd, &u.h, flags | O_CLOEXEC);
	while (fd < 0 && pass_fds_relieve(fs, -errno));
	return fd < 0 ? -errno : fd;
}

/* An O_PATH fd by its name, which somebody else may have by now. */
static int open_name(struct pass *fs, struct pass_inode *inode)
{
	static _Thread_local int depth;
	struct pass_inode *dir;
	char name[FS_NAME_MAX + 1];
	uint64_t parent, btime;
	struct statx stx;
	int fd = -ESTALE, dir_fd;

	if (depth == NAMES_DEEP)
		return -ESTALE;
	pthread_mutex_lock(&fs->fds.lock);
	parent = inode->by.parent;
	strcpy(name, inode->by.name);
	pthread_mutex_unlock(&fs->fds.lock);
	dir = pass_inode_get(fs, parent);
	if (dir == NULL)
		return -ESTALE;
	depth++;
	dir_fd = pass_inode_fd(fs, dir);
	depth--;
	if (dir_fd >= 0) {
		struct pass_where where = {.dir_fd = dir_fd, .name = name};

		fd = pass_open_path(fs, where);
		pass_inode_fd_put(fs, dir, dir_fd);
	}
	pass_inode_put(fs, dir);
	if (fd < 0)
		return fd == -ENOENT || fd == -ENOTDIR || fd == -ELOOP ? -ESTALE : fd;
	if (pass_statx(fd, NULL, &stx) == 0) {
		btime = (uint64_t)stx.stx_btime.tv_sec * 1000000000 + stx.stx_btime.tv_nsec;
		if (stx.stx_ino == inode->ino && stx.stx_mode >> 12 == inode->type &&
		    pass_mount_find(fs, &stx) == inode->mount && (inode->btime == 0 || inode->btime == btime))
			return fd;
	}
	close(fd);
	return -ESTALE;
}

int pass_inode_fd_name(struct pass *fs, struct pass_inode *inode, struct pass_where where)
{
	char *name, *old = NULL;

	if (where.called == NULL || fs->opt.handles == PASS_HANDLES_ALWAYS)
		return -ENFILE;
	name = strdup(where.called);
	if (name == NULL)
		return -ENOMEM;
	pthread_mutex_lock(&fs->fds.lock);
	if (inode->handle_len == PASS_BY_NAME) {
		old = inode->by.name;
	} else {
		inode->place = NO_PLACE;
		inode->handle_len = PASS_BY_NAME;
		atomic_fetch_add_explicit(&fs->fds.named, 1, memory_order_relaxed);
	}
	inode->by.parent = where.parent;
	inode->by.name = name;
	pthread_mutex_unlock(&fs->fds.lock);
	free(old);
	return 0;
}

/* It cannot be reached any more; whoever finds the file again gets another inode. */
static int gone(struct pass *fs, struct pass_inode *inode)
{
	if (!atomic_exchange(&inode->gone, 1))
		atomic_fetch_add_explicit(&fs->stale, 1, memory_order_relaxed);
	return -ESTALE;
}

/* An O_PATH fd by its handle. The first time: the name may have changed hands between its statx and its handle. */
static int open_again(struct pass *fs, struct pass_inode *inode)
{
	int fd;

	if (inode->handle_len == PASS_BY_NAME) {
		fd = open_name(fs, inode);
		if (fd >= 0)
			atomic_fetch_add_explicit(&fs->fds.opened, 1, memory_order_relaxed);
		return fd;
	}
	fd = open_handle(fs, inode, O_PATH | O_NOFOLLOW);
	if (fd == -ESTALE)
		return gone(fs, inode);
	if (fd < 0)
		return fd;
	atomic_fetch_add_explicit(&fs->fds.opened, 1, memory_order_relaxed);
	if (!atomic_load_explicit(&inode->checked, memory_order_acquire)) {
		struct statx stx;
		int err = pass_statx(fd, NULL, &stx);

		if (err == 0 && (stx.stx_ino != inode->ino || stx.stx_mode >> 12 != inode->type))
			err = gone(fs, inode);
		if (err < 0) {
			close(fd);
			return err;
		}
		atomic_store_explicit(&inode->checked, 1, memory_order_release);
	}
	return fd;
}

/* The inode's fd with one more user, or -1: it has none now. */
static int use(struct pass_inode *inode)
{
	uint64_t word = atomic_load_explicit(&inode->fdword, memory_order_relaxed);

	while ((word & FD_MASK) != 0)
		if (atomic_compare_exchange_weak_explicit(&inode->fdword, &word, (word + FD_USER) | FD_RECENT,
							  memory_order_acquire, memory_order_relaxed))
			return (int)(word & FD_MASK) - 1;
	return -1;
}

int pass_inode_fd(struct pass *fs, struct pass_inode *inode)
{
	int fd = use(inode), mine, old = -1;

	if (fs_likely(fd >= 0))
		return fd;
	mine = open_again(fs, inode);
	if (mine < 0)
		return mine;
	pthread_mutex_lock(&fs->fds.lock);
	fd = use(inode);		/* somebody else was quicker */
	if (fd >= 0)
		old = mine;
	else if (put_into(fs, inode, mine, &old))
		fd = mine;
	else
		fd = mine;		/* pass_inode_fd_put() closes it */
	pthread_mutex_unlock(&fs->fds.lock);
	if (old >= 0)
		close(old);
	return fd;
}

void pass_inode_fd_put(struct pass *fs, struct pass_inode *inode, int fd)
{
	(void)fs;
	/* users keep it in the word: another number means that there was no place for it */
	if (fs_likely((atomic_load_explicit(&inode->fdword, memory_order_relaxed) & FD_MASK) == (uint64_t)fd + 1))
		atomic_fetch_sub_explicit(&inode->fdword, FD_USER, memory_order_release);
	else
		close(fd);
}

int pass_inode_fd_pin(struct pass *fs, struct pass_inode *inode, int fd)
{
	/* a quarter is left for those that come and go */
	if (atomic_fetch_add(&fs->fds.pinned, 1) >= fs->opt.max_fds - fs->opt.max_fds / 4) {
		atomic_fetch_sub(&fs->fds.pinned, 1);
		return -ENFILE;
	}
	atomic_fetch_add_explicit(&fs->fds.opened, 1, memory_order_relaxed);
	inode->place = NO_PLACE;
	inode->handle_len = 0;
	atomic_store_explicit(&inode->fdword, (uint64_t)fd + 1, memory_order_release);
	return 0;
}

void pass_inode_fd_drop(struct pass *fs, struct pass_inode *inode)
{
	struct pass_fds *fds = &fs->fds;
	uint64_t word;

	if (atomic_load_explicit(&inode->fdword, memory_order_acquire) == 0)
		return;
	/* the clock may be looking at it */
	pthread_mutex_lock(&fds->lock);
	word = atomic_exchange_explicit(&inode->fdword, 0, memory_order_acq_rel);
	if (word != 0 && inode->handle_len != 0) {
		fds->ring[inode->place] = 0;
		fds->spare[fds->nr_spare++] = inode->place;
		atomic_fetch_sub_explicit(&fds->kept, 1, memory_order_relaxed);
		inode->place = NO_PLACE;
	} else if (word != 0) {
		atomic_fetch_sub(&fds->pinned, 1);
	}
	pthread_mutex_unlock(&fds->lock);
	if (word != 0)
		close((int)(word & FD_MASK) - 1);
}

int pass_fd_reopen(struct pass *fs, int fd, int flags)
{
	char name[16];
	int again;

	do
		again = openat(fs->proc_fd, pass_fd_name(fd, name), flags | O_CLOEXEC | O_NOCTTY);
	while (again < 0 && pass_fds_relieve(fs, -errno));
	return again < 0 ? -errno : again;
}

int pass_inode_open(struct pass *fs, struct pass_inode *inode, int flags)
{
	mode_t type = pass_inode_type(inode);
	int fd, path;

	if (type != S_IFREG && type != S_IFDIR)
		return type == S_IFLNK ? -ELOOP : -EACCES;
	flags &= ~(O_CREAT | O_EXCL | O_NOFOLLOW);
	if (inode->handle_len != 0 && inode->handle_len != PASS_BY_NAME &&
	    atomic_load_explicit(&inode->checked, memory_order_acquire)) {
		/* it is known what it leads to: no way round by /proc */
		fd = open_handle(fs, inode, flags | O_NOCTTY);
		return fd == -ESTALE ? gone(fs, inode) : fd;
	}
	path = pass_inode_fd(fs, inode);
	if (path < 0)
		return path;
	fd = pass_fd_reopen(fs, path, flags);
	pass_inode_fd_put(fs, inode, path);
	return fd;
}
