/* SPDX-License-Identifier: Apache-2.0 */
/*
 * window.c - DAX: SETUPMAPPING and REMOVEMAPPING.
 *
 * The front-end maps files into the guest's memory, and is asked to by Python, which alone speaks on the back-end's
 * channel. A thread of the pool opens the file and leaves an errand; the request is pending until Python has done it.
 * Linux maps 2 MiB at a time: other units are refused, so that a guest cannot make the VMM map more pieces than the
 * window has units.
 */
#include <stdlib.h>
#include <sys/eventfd.h>

#include "devices/fs/csrc/pass_int.h"
#include "devices/fs/csrc/window.h"

struct errand {
	struct pass_errand is;		/* first: what Python has is this */
	struct errand *next;
	struct fs_req *req;
};

struct pass_window {
	pthread_mutex_t lock;		/* of all below */
	struct errand *first, **last;
	uint64_t bytes;			/* 0: none */
	bool open;
	_Atomic uint64_t epoch;
	int news;			/* eventfd */
};

int pass_window_init(struct pass *fs)
{
	struct pass_window *w = calloc(1, sizeof(*w));

	if (!w)
		return -ENOMEM;
	w->news = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (w->news < 0) {
		free(w);
		return -errno;
	}
	pthread_mutex_init(&w->lock, NULL);
	w->last = &w->first;
	fs->window = w;
	return 0;
}

void pass_window_free(struct pass *fs)
{
	if (!fs->window)
		return;
	close(fs->window->news);
	pthread_mutex_destroy(&fs->window->lock);
	free(fs->window);
	fs->window = NULL;
}

static void tell(const struct pass_window *w)
{
	eventfd_write(w->news, 1);
}

void pass_window_reset(struct pass *fs)
{
	if (!fs->window)
		return;
	atomic_fetch_add(&fs->window->epoch, 1);
	tell(fs->window);
}

int pass_window_open(struct fs_server *server, uint64_t bytes)
{
	struct pass_window *w = pass_of(server)->window;

	if (!w)
		return -EOPNOTSUPP;
	pthread_mutex_lock(&w->lock);
	w->bytes = bytes;
	w->open = bytes != 0;
	pthread_mutex_unlock(&w->lock);
	server->cannot = bytes ? 0 : FUSE_MAP_ALIGNMENT | FUSE_HAS_INODE_DAX;
	return w->news;
}

uint64_t pass_window_epoch(struct fs_server *server)
{
	return atomic_load(&pass_of(server)->window->epoch);
}

struct pass_errand *pass_window_next(struct fs_server *server)
{
	struct pass_window *w = pass_of(server)->window;
	struct errand *errand;

	pthread_mutex_lock(&w->lock);
	errand = w->first;
	if (errand) {
		w->first = errand->next;
		if (!w->first)
			w->last = &w->first;
	}
	pthread_mutex_unlock(&w->lock);
	return errand ? &errand->is : NULL;
}

void pass_window_done(struct fs_server *server, struct pass_errand *is, int result)
{
	struct errand *errand = (struct errand *)(void *)is;
	struct fs_req *req = errand->req;
	struct ring_worker *worker = req->q->source.worker;

	(void)server;
	if (is->fd >= 0)
		close(is->fd);
	free(errand);
	req->result = result;
	ring_worker_head(worker)->api->post(worker, &req->task);
}

void pass_window_close(struct fs_server *server)
{
	struct pass_window *w = pass_of(server)->window;
	struct pass_errand *errand;

	pthread_mutex_lock(&w->lock);
	w->open = false;
	pthread_mutex_unlock(&w->lock);
	while ((errand = pass_window_next(server)))
		pass_window_done(server, errand, -EIO);
}

/* The errand is Python's from here on, unless this fails. */
static int leave(struct pass_window *w, struct errand *errand)
{
	bool open;

	pthread_mutex_lock(&w->lock);
	open = w->open;
	if (open) {
		errand->is.epoch = atomic_load(&w->epoch);
		*w->last = errand;
		w->last = &errand->next;
		tell(w);
	}
	pthread_mutex_unlock(&w->lock);
	return open ? FS_PENDING : -EIO;
}

static struct errand *errand_new(struct fs_req *req)
{
	struct errand *errand = calloc(1, sizeof(*errand));

	if (errand) {
		errand->req = req;
		errand->is.fd = -1;
		errand->is.nodeid = req->in.nodeid;
	}
	return errand;
}

static bool fits(const struct pass_window *w, uint64_t at, uint64_t len)
{
	return at % PASS_WINDOW_UNIT == 0 && len && len % 4096 == 0 && at < w->bytes && len <= w->bytes - at;
}

int pass_setupmapping(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	const struct fuse_setupmapping_in *in = FS_ARG(req, fuse_setupmapping_in);
	bool write = in->flags & FUSE_SETUPMAPPING_FLAG_WRITE;
	struct errand *errand;
	int fd, rc;

	if (!fs->window || !(fs->server.flags & FUSE_MAP_ALIGNMENT))
		return -ENOSYS;
	if (!pool)
		return FS_SLOW;
	if (!fits(fs->window, in->moffset, in->len) || in->foffset % PASS_WINDOW_UNIT ||
	    in->foffset > INT64_MAX - in->len || pass_inode_type(inode) != S_IFREG)
		return -EINVAL;
	if (write && fs->opt.read_only)
		return -EROFS;
	/* for writing too where that works: what is mapped need not be taken away when the guest wants to write */
	fd = fs->opt.read_only ? -EROFS : pass_inode_open(fs, inode, O_RDWR);
	errand = errand_new(req);
	if (!errand) {
		if (fd >= 0)
			close(fd);
		return -ENOMEM;
	}
	errand->is.writable = fd >= 0;
	if (fd < 0 && !write)
		fd = pass_inode_open(fs, inode, O_RDONLY);
	if (fd < 0) {
		free(errand);
		return fd;
	}
	errand->is.fd = fd;
	errand->is.want_write = write;
	errand->is.offset = in->foffset;
	errand->is.nr = 1;
	errand->is.ranges[0] = (struct pass_range64){ in->moffset, in->len };
	rc = leave(fs->window, errand);
	if (rc != FS_PENDING) {
		close(fd);
		free(errand);
	}
	return rc;
}

static void gather(uint8_t *to, const struct ring_iov *iov, uint32_t nr, size_t len)
{
	uint32_t i;

	for (i = 0; i < nr && len; i++) {
		size_t part = iov[i].len < len ? iov[i].len : len;

		shm_copy_in(to, iov[i].base, part);
		to += part;
		len -= part;
	}
}

int pass_removemapping(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	_Static_assert(sizeof(struct fuse_removemapping_one) == sizeof(struct pass_range64), "one is the other");
	uint32_t i, nr = FS_ARG(req, fuse_removemapping_in)->count;
	struct errand *errand;
	int rc = 0;

	(void)inode;
	(void)pool;
	if (!fs->window || !(fs->server.flags & FUSE_MAP_ALIGNMENT))
		return -ENOSYS;
	if (!nr || nr > PASS_WINDOW_CUTS)
		return -EINVAL;
	errand = errand_new(req);
	if (!errand)
		return -ENOMEM;
	errand->is.nr = nr;
	gather((uint8_t *)errand->is.ranges, req->data, req->nr_data, nr * sizeof(struct pass_range64));
	for (i = 0; i < nr && !rc; i++) {
		struct pass_range64 *range = &errand->is.ranges[i];

		if (range->len == UINT64_MAX && !range->at)
			range->len = fs->window->bytes;	/* all of it */
		if (!fits(fs->window, range->at, range->len))
			rc = -EINVAL;
	}
	if (!rc)
		rc = leave(fs->window, errand);
	if (rc != FS_PENDING)
		free(errand);
	return rc;
}
