// SPDX-License-Identifier: Apache-2.0
/*
 * listed.c - folders that the guest's kernel has a listing of, which is still good.
 *
 * A kernel that is told to (FOPEN_CACHE_DIR) keeps what a folder's listing gave, and uses it again where the next OPENDIR
 * says so (FOPEN_KEEP_CACHE). Here it says so while the folder's ctime is what it was when that listing began: nobody has
 * added, taken or renamed anything in it since, on the host or in the guest. A ctime that was fresh then could be that of
 * a later change too, and counts for nothing.
 *
 * Names are listed with attributes, which are trusted for a while only. A listing from the cache brings no new ones, and
 * then each is asked for by itself: so after that time it is kept only where it had hardly any.
 *
 * A place in a table for each folder that fits in: what is lost, or mixed up by two workers, costs a listing.
 */
#include "devices/fs/csrc/pass_int.h"

enum {
	FRESH_NS = 20000000,	/* clocks of file systems tick 100 times a second, or more often */
	FEW = 8,		/* one of so many names */
};

static struct pass_listed *place_of(struct pass *fs, uint64_t nodeid)
{
	return &fs->listed[nodeid * 0x9e3779b97f4a7c15ull >> (64 - PASS_LISTED_SHIFT)];
}

/* Of the folder with that ctime. */
static uint64_t mark_of(uint64_t nodeid, uint64_t ctime)
{
	uint64_t h = (nodeid ^ ctime * 0xbf58476d1ce4e5b9ull) * 0x9e3779b97f4a7c15ull;

	return h ^ h >> 32;
}

/* ns; 0: it says nothing. */
static uint64_t ctime_of(int fd)
{
	struct statx stx;

	if (pass_statx(fd, NULL, &stx) < 0 || !(stx.stx_mask & STATX_CTIME))
		return 0;
	return (uint64_t)stx.stx_ctime.tv_sec * 1000000000 + stx.stx_ctime.tv_nsec;
}

static bool tells(struct pass *fs, const struct pass_inode *inode)
{
	return fs->opt.relist && pass_inode_mount(fs, inode)->tells;
}

void pass_listing_begins(struct pass *fs, const struct pass_file *file, struct pass_listing *l)
{
	struct timespec now;

	*l = (struct pass_listing){0};
	if (!tells(fs, file->inode))
		return;
	clock_gettime(CLOCK_REALTIME_COARSE, &now);
	l->ctime = ctime_of(file->fd);
	l->began = ring_now_ns();
	if (l->ctime + FRESH_NS > (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec)
		l->ctime = 0;
}

void pass_listing_ends(struct pass *fs, const struct pass_file *file, const struct pass_listing *l)
{
	struct pass_listed *place;

	if (l->ctime == 0)
		return;
	place = place_of(fs, pass_inode_id(file->inode));
	atomic_store_explicit(&place->until, l->plus > l->names / FEW ? l->began + fs->opt.entry_ns : UINT64_MAX,
			      memory_order_relaxed);
	atomic_store_explicit(&place->mark, mark_of(pass_inode_id(file->inode), l->ctime), memory_order_relaxed);
	atomic_store_explicit(&place->nodeid, pass_inode_id(file->inode), memory_order_relaxed);
}

bool pass_listing_holds(struct pass *fs, const struct pass_inode *inode, int fd)
{
	uint64_t nodeid = pass_inode_id(inode);
	const struct pass_listed *place;

	if (!tells(fs, inode))
		return false;
	place = place_of(fs, nodeid);
	if (atomic_load_explicit(&place->nodeid, memory_order_relaxed) != nodeid ||
	    atomic_load_explicit(&place->until, memory_order_relaxed) <= ring_now_ns())
		return false;
	return atomic_load_explicit(&place->mark, memory_order_relaxed) == mark_of(nodeid, ctime_of(fd));
}
