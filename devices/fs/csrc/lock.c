/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lock.c - locks of guests that are locks of the host: GETLK, SETLK, SETLKW.
 *
 * Record locks (fcntl): an open file description for each (inode, lock owner), which holds that owner's locks as OFD
 * locks; so owners conflict with each other and with everybody on the host, and closing the description lets go of all.
 * Whole-file locks (flock) are taken on the open file itself: what one open file is to the guest is one to us.
 *
 * Nobody waits here: a lock that somebody else holds is tried again after a pause that grows. An owner without locks
 * keeps its description until it flushes: who locks once locks again.
 *
 * Who waits for whom is noted: owners that wait for one another are told so (EDEADLK), as they are by the kernel where
 * they lock by themselves. In a guest they could not even be killed: Linux's driver has no way to take a request back.
 *
 * What an owner holds is kept beside it: the kernel has no way to ask, and migration and GETLK (whose is it?) want to
 * know. It also bounds what a guest makes the kernel remember.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "devices/fs/csrc/data_int.h"

enum {
	LOCK_PAUSE_NS = 1000000,	/* first pause of a lock that is taken */
	LOCK_PAUSE_MAX_NS = 20000000,
	LOCK_WAITS = 256,		/* waits that are noted; others are not seen to be deadlocks */
	LOCK_STALE_NS = 200000000,	/* a wait that was not tried again for so long has ended */
	LOCK_CHAIN = 16,		/* longest circle that is seen */
	LOCK_TRIES_MASK = 63,		/* of req->again_ns: pauses so far */
};

#define LOCK_EOF ((uint64_t)INT64_MAX)

int pass_again(struct fs_req *req)
{
	uint64_t tries = req->again_ns & LOCK_TRIES_MASK;
	uint64_t pause = (uint64_t)LOCK_PAUSE_NS << (tries > 5 ? 5 : tries);

	if (pause > LOCK_PAUSE_MAX_NS)
		pause = LOCK_PAUSE_MAX_NS;
	if (tries < LOCK_TRIES_MASK)
		tries++;
	req->again_ns = ((ring_now_ns() + pause) & ~(uint64_t)LOCK_TRIES_MASK) | tries;
	return FS_AGAIN;
}

static struct flock as_flock(const struct lock_range *range)
{
	return (struct flock){
		.l_type = (short)range->type,
		.l_whence = SEEK_SET,
		.l_start = (off_t)range->start,
		.l_len = range->end == LOCK_EOF ? 0 : (off_t)(range->end - range->start + 1),
	};
}

/* --- what an owner holds --------------------------------------------------------------------------------------- */

/* Room for one more cut, so that nothing can fail once the kernel has the lock. */
static int ranges_reserve(struct lock_owner *owner)
{
	struct lock_range *more;
	uint32_t room = owner->room ? owner->room * 2 : 4;

	if (owner->nr + 2 <= owner->room)
		return 0;
	if (owner->nr + 2 > PASS_LOCK_RANGES)
		return -ENOLCK;
	more = realloc(owner->ranges, room * sizeof(*more));
	if (!more)
		return -ENOLCK;
	owner->ranges = more;
	owner->room = room;
	return 0;
}

static bool joins(const struct lock_range *a, const struct lock_range *b)
{
	return a->type == b->type && a->end != LOCK_EOF && a->end + 1 == b->start;
}

/*
 * The owner's ranges, ordered and apart, after @new was set over them: pieces before it, itself, pieces after it. At
 * most one range is split, so two places more are enough.
 */
static void ranges_set(struct lock_owner *owner, const struct lock_range *new)
{
	struct lock_range *r = owner->ranges;
	struct lock_range add[3];
	uint32_t first = 0, last, n = 0;

	while (first < owner->nr && r[first].end < new->start)
		first++;
	last = first;
	while (last < owner->nr && r[last].start <= new->end)
		last++;
	if (first < last && r[first].start < new->start) {
		add[n] = r[first];
		add[n++].end = new->start - 1;
	}
	if (new->type != F_UNLCK)
		add[n++] = *new;
	if (first < last && r[last - 1].end > new->end) {
		add[n] = r[last - 1];
		add[n++].start = new->end + 1;
	}
	memmove(r + first + n, r + last, (owner->nr - last) * sizeof(*r));
	memcpy(r + first, add, n * sizeof(*r));
	owner->nr = owner->nr - (last - first) + n;

	/* what touches and is alike is one range */
	for (last = 1, n = owner->nr ? 1 : 0; last < owner->nr; last++) {
		if (joins(&r[n - 1], &r[last]))
			r[n - 1].end = r[last].end;
		else
			r[n++] = r[last];
	}
	owner->nr = n;
}

/* Whose lock of ours is in the way of @want: its process in the guest, or 0. */
static uint32_t ranges_pid(const struct pass_locks *locks, const struct lock_range *found, uint64_t but)
{
	const struct lock_owner *owner;
	uint32_t i;

	for (owner = locks->owners; owner; owner = owner->next) {
		if (owner->owner == but)
			continue;
		for (i = 0; i < owner->nr; i++)
			if (owner->ranges[i].start <= found->end && found->start <= owner->ranges[i].end)
				return owner->pid;
	}
	return 0;
}

/* --- owners of an inode ---------------------------------------------------------------------------------------- */

static struct pass_locks *locks_get(struct pass_inode *inode, bool make)
{
	struct pass_locks *locks = atomic_load_explicit(&inode->locks, memory_order_acquire);
	struct pass_locks *other = NULL;

	if (locks || !make)
		return locks;
	locks = calloc(1, sizeof(*locks));
	if (!locks)
		return NULL;
	pthread_mutex_init(&locks->mutex, NULL);
	if (atomic_compare_exchange_strong(&inode->locks, &other, locks))
		return locks;
	pthread_mutex_destroy(&locks->mutex);
	free(locks);
	return other;
}

static void owner_free(struct pass *fs, struct lock_owner *owner)
{
	pass_keep_unlock(fs, owner);
	close(owner->fd);	/* lets go of what it holds */
	free(owner->ranges);
	free(owner);
	atomic_fetch_sub_explicit(&fs->nr_locks, 1, memory_order_relaxed);
}

static struct lock_owner *owner_find(struct pass_locks *locks, uint64_t id)
{
	struct lock_owner *owner = locks->owners;

	while (owner && owner->owner != id)
		owner = owner->next;
	return owner;
}

/*
 * A lock needs a description that may read (shared) or write (exclusive). The one of an owner has to do for all its
 * locks, whatever open file they came by; so it can do both, where that is allowed.
 */
static int owner_open(struct pass *fs, struct pass_inode *inode)
{
	int fd = pass_inode_open(fs, inode, O_RDWR | O_CLOEXEC | O_NONBLOCK);

	if (fd == -EACCES || fd == -EPERM || fd == -EROFS || fd == -ETXTBSY || fd == -EISDIR) {
		fd = pass_inode_open(fs, inode, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
		if (fd == -EACCES || fd == -EPERM)
			fd = pass_inode_open(fs, inode, O_WRONLY | O_CLOEXEC | O_NONBLOCK);
	}
	return fd;
}

static int owner_make(struct pass *fs, struct pass_inode *inode, struct pass_locks *locks, uint64_t id,
		      struct lock_owner **out)
{
	struct lock_owner *owner;
	int fd;

	if (atomic_fetch_add_explicit(&fs->nr_locks, 1, memory_order_relaxed) >= PASS_LOCK_OWNERS) {
		atomic_fetch_sub_explicit(&fs->nr_locks, 1, memory_order_relaxed);
		return -ENOLCK;
	}
	owner = calloc(1, sizeof(*owner));
	fd = owner ? owner_open(fs, inode) : -ENOLCK;
	if (fd < 0) {
		free(owner);
		atomic_fetch_sub_explicit(&fs->nr_locks, 1, memory_order_relaxed);
		return fd;
	}
	owner->fd = fd;
	owner->owner = id;
	owner->next = locks->owners;
	locks->owners = owner;
	*out = owner;
	return 0;
}

static void owner_drop(struct pass *fs, struct pass_locks *locks, struct lock_owner *owner)
{
	struct lock_owner **at = &locks->owners;

	while (*at != owner)
		at = &(*at)->next;
	*at = owner->next;
	owner_free(fs, owner);
}

static int owner_set(struct pass *fs, const struct pass_inode *inode, struct lock_owner *owner,
		     const struct lock_range *range, uint32_t pid)
{
	bool whole = !range->start && range->end == LOCK_EOF;
	struct flock fl = as_flock(range);
	int rc = 0;

	/* to let go of all always works */
	if (!whole)
		rc = ranges_reserve(owner);
	else if (range->type != F_UNLCK && !owner->room)
		rc = ranges_reserve(owner);
	if (rc)
		return rc;
	if (fcntl(owner->fd, F_OFD_SETLK, &fl) < 0)
		return errno == EACCES ? -EAGAIN : -errno;
	owner->pid = pid;
	ranges_set(owner, range);
	pass_keep_lock(fs, inode, owner);
	return 0;
}

int pass_locks_set(struct pass *fs, struct pass_inode *inode, uint64_t id, const struct lock_range *range, uint32_t pid)
{
	struct pass_locks *locks = locks_get(inode, range->type != F_UNLCK);
	struct lock_owner *owner;
	int rc = 0;

	if (!locks)
		return range->type == F_UNLCK ? 0 : -ENOLCK;
	pthread_mutex_lock(&locks->mutex);
	owner = owner_find(locks, id);
	if (!owner && range->type != F_UNLCK)
		rc = owner_make(fs, inode, locks, id, &owner);
	if (!rc && owner)
		rc = owner_set(fs, inode, owner, range, pid);
	pthread_mutex_unlock(&locks->mutex);
	return rc;
}

void pass_locks_release(struct pass *fs, struct pass_inode *inode, uint64_t id)
{
	struct pass_locks *locks = locks_get(inode, false);
	struct lock_owner *owner;

	if (!locks)
		return;
	pthread_mutex_lock(&locks->mutex);
	owner = owner_find(locks, id);
	if (owner)
		owner_drop(fs, locks, owner);
	pthread_mutex_unlock(&locks->mutex);
}

uint64_t pass_locks_again(const struct pass_locks *locks)
{
	const struct lock_owner *owner;
	uint64_t lost = 0;
	uint32_t i;

	for (owner = locks->owners; owner; owner = owner->next) {
		for (i = 0; i < owner->nr; i++) {
			struct flock fl = as_flock(&owner->ranges[i]);

			if (fcntl(owner->fd, F_OFD_SETLK, &fl) < 0)
				lost++;
		}
	}
	return lost;
}

void pass_locks_free(struct pass *fs, struct pass_inode *inode)
{
	struct pass_locks *locks = atomic_exchange(&inode->locks, NULL);

	if (!locks)
		return;
	while (locks->owners)
		owner_drop(fs, locks, locks->owners);
	pthread_mutex_destroy(&locks->mutex);
	free(locks);
}

/* --- deadlocks -------------------------------------------------------------------------------------------------- */

struct lock_waits {
	pthread_mutex_t mutex;
	struct lock_wait {
		uint64_t owner;
		uint64_t holder;	/* that it waits for */
		uint64_t ns;		/* of the last try; 0: nobody waits here */
	} waits[LOCK_WAITS];
};

int pass_locks_init(struct pass *fs)
{
	fs->waits = calloc(1, sizeof(*fs->waits));
	if (!fs->waits)
		return -ENOMEM;
	pthread_mutex_init(&fs->waits->mutex, NULL);
	return 0;
}

void pass_locks_exit(struct pass *fs)
{
	if (!fs->waits)
		return;
	pthread_mutex_destroy(&fs->waits->mutex);
	free(fs->waits);
	fs->waits = NULL;
}

static struct lock_wait *wait_of(struct lock_waits *w, uint64_t owner, uint64_t now)
{
	uint32_t i;

	for (i = 0; i < LOCK_WAITS; i++)
		if (w->waits[i].ns && w->waits[i].owner == owner && now - w->waits[i].ns < LOCK_STALE_NS)
			return &w->waits[i];
	return NULL;
}

static struct lock_wait *wait_new(struct lock_waits *w, uint64_t now)
{
	uint32_t i;

	for (i = 0; i < LOCK_WAITS; i++)
		if (!w->waits[i].ns || now - w->waits[i].ns >= LOCK_STALE_NS)
			return &w->waits[i];
	return NULL;
}

/* Does the circle of those who wait for @holder close at @owner? */
static bool circle(struct lock_waits *w, uint64_t owner, uint64_t holder, uint64_t now)
{
	const struct lock_wait *wait;
	uint32_t i;

	for (i = 0; i < LOCK_CHAIN; i++) {
		if (holder == owner)
			return true;
		wait = wait_of(w, holder, now);
		if (!wait)
			return false;
		holder = wait->holder;
	}
	return false;
}

/* @owner waits for @holder from now on; true: for ever, and it is not noted. @holder NULL: it waits no more. */
static bool note_wait(struct pass *fs, uint64_t owner, const uint64_t *holder)
{
	struct lock_waits *w = fs->waits;
	uint64_t now = ring_now_ns();
	struct lock_wait *wait;
	bool dead;

	pthread_mutex_lock(&w->mutex);
	wait = wait_of(w, owner, now);
	dead = holder && circle(w, owner, *holder, now);
	if (holder && !dead && !wait)
		wait = wait_new(w, now);
	if (wait) {
		wait->owner = owner;
		wait->holder = holder ? *holder : 0;
		wait->ns = holder && !dead ? now : 0;
	}
	pthread_mutex_unlock(&w->mutex);
	return dead;
}

/* Another owner of ours that holds what is in the way of @want. */
static bool find_holder(struct pass_inode *inode, uint64_t but, const struct lock_range *want, uint64_t *holder)
{
	struct pass_locks *locks = locks_get(inode, false);
	const struct lock_owner *owner;
	bool found = false;
	uint32_t i;

	if (!locks)
		return false;
	pthread_mutex_lock(&locks->mutex);
	for (owner = locks->owners; owner && !found; owner = owner->next) {
		for (i = 0; i < owner->nr && owner->owner != but && !found; i++) {
			const struct lock_range *r = &owner->ranges[i];

			found = r->start <= want->end && want->start <= r->end &&
				(r->type == F_WRLCK || want->type == F_WRLCK);
		}
		*holder = owner->owner;
	}
	pthread_mutex_unlock(&locks->mutex);
	return found;
}

/* Somebody has what is wanted: try again later, unless all wait for one another. */
static int wait_for(struct pass *fs, struct fs_req *req, struct pass_inode *inode, uint64_t owner,
		    const struct lock_range *want)
{
	uint64_t holder;

	if (find_holder(inode, owner, want, &holder) && note_wait(fs, owner, &holder))
		return -EDEADLK;
	return pass_again(req);
}

/* --- requests -------------------------------------------------------------------------------------------------- */

/* What the guest wants, checked. */
static int parse(const struct fuse_lk_in *in, struct lock_range *range)
{
	if (in->lk.type != F_RDLCK && in->lk.type != F_WRLCK && in->lk.type != F_UNLCK)
		return -EINVAL;
	if (in->lk.start > LOCK_EOF || in->lk.end < in->lk.start)
		return -EINVAL;
	range->start = in->lk.start;
	range->end = in->lk.end > LOCK_EOF ? LOCK_EOF : in->lk.end;
	range->type = in->lk.type;
	return 0;
}

static int set_flock(struct fs_req *req, struct pass_file *file, uint32_t type, bool wait)
{
	int op = type == F_RDLCK ? LOCK_SH : type == F_WRLCK ? LOCK_EX : LOCK_UN;

	if (flock(file->fd, op | LOCK_NB) < 0)
		return errno != EWOULDBLOCK ? -errno : wait ? pass_again(req) : -EAGAIN;
	atomic_store_explicit(&file->flock, (uint8_t)(op & ~LOCK_UN), memory_order_relaxed);
	return 0;
}

static int set_lock(struct pass *fs, struct fs_req *req, bool pool, bool wait)
{
	const struct fuse_lk_in *in = FS_ARG(req, fuse_lk_in);
	bool whole = in->lk_flags & FUSE_LK_FLOCK;
	struct lock_range range;
	struct pass_file *file;
	int rc = parse(in, &range);

	if (!(whole ? fs->opt.flock : fs->opt.posix_lock))
		return -ENOSYS;
	if (rc)
		return rc;
	file = pass_file_get(fs, in->fh);
	if (!file)
		return -EBADF;
	if (pass_file_waits(fs, file) && !pool) {
		rc = FS_SLOW;
	} else if (whole) {
		rc = set_flock(req, file, range.type, wait);
	} else {
		/* a description that may do both must not let through what the guest's may not */
		int mode = file->flags & O_ACCMODE;

		if ((range.type == F_RDLCK && mode == O_WRONLY) || (range.type == F_WRLCK && mode == O_RDONLY))
			rc = -EBADF;
		else
			rc = pass_locks_set(fs, file->inode, in->owner, &range, in->lk.pid);
		if (rc == -EAGAIN && wait)
			rc = wait_for(fs, req, file->inode, in->owner, &range);
		else if (req->again_ns)
			note_wait(fs, in->owner, NULL);
	}
	pass_file_put(fs, file);
	return rc;
}

int pass_setlk(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	(void)inode;
	return set_lock(fs, req, pool, false);
}

int pass_setlkw(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	(void)inode;
	return set_lock(fs, req, pool, true);
}

/* Who is in the way: @range becomes the lock found, F_UNLCK if there is none. */
static int find_lock(struct pass_file *file, uint64_t id, struct lock_range *range, uint32_t *pid)
{
	struct pass_locks *locks = locks_get(file->inode, false);
	struct flock fl = as_flock(range);
	struct lock_owner *owner = NULL;
	int rc = 0;

	if (locks) {
		pthread_mutex_lock(&locks->mutex);
		owner = owner_find(locks, id);
	}
	/* the open file's own description holds no record locks: it stands for an owner without any */
	if (fcntl(owner ? owner->fd : file->fd, F_OFD_GETLK, &fl) < 0)
		rc = -errno;
	*pid = 0;
	range->type = (uint32_t)fl.l_type;
	if (!rc && fl.l_type != F_UNLCK) {
		range->start = (uint64_t)fl.l_start;
		range->end = fl.l_len ? (uint64_t)(fl.l_start + fl.l_len - 1) : LOCK_EOF;
		/* a process of the host means nothing to the guest, and OFD locks have none */
		if (fl.l_pid == -1 && locks)
			*pid = ranges_pid(locks, range, id);
	}
	if (locks)
		pthread_mutex_unlock(&locks->mutex);
	return rc;
}

int pass_getlk(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	const struct fuse_lk_in *in = FS_ARG(req, fuse_lk_in);
	struct fuse_lk_out *out = FS_OUT(req, fuse_lk_out);
	struct lock_range range;
	struct pass_file *file;
	uint32_t pid = 0;
	int rc = parse(in, &range);

	(void)inode;
	if (!fs->opt.posix_lock)
		return -ENOSYS;
	if (rc)
		return rc;
	if (range.type == F_UNLCK || (in->lk_flags & FUSE_LK_FLOCK))
		return -EINVAL;
	file = pass_file_get(fs, in->fh);
	if (!file)
		return -EBADF;
	if (pass_file_waits(fs, file) && !pool)
		rc = FS_SLOW;
	else
		rc = find_lock(file, in->owner, &range, &pid);
	pass_file_put(fs, file);
	if (rc)
		return rc;
	*out = (struct fuse_lk_out){
		.lk = { .start = range.start, .end = range.end, .type = range.type, .pid = pid },
	};
	return sizeof(*out);
}
