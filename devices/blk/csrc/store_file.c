/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store_file.c - files and block devices, by io_uring; where a worker has none, by blocking calls on its thread.
 *
 * What the page cache holds is read at once, by a call that says so where it would have to wait. See
 * docs/decisions/0006-cached-reads.md.
 */
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <liburing.h>

#include "devices/blk/csrc/blk_int.h"

struct file {
	struct blk_store store;	/* must be first */
	int fd;
	bool at_once;	/* reads may be tried at once */
	bool resident;	/* in memory and cannot be anywhere else: nothing here waits */
};

static int fallocate_mode(const struct blk_req *req)
{
	/* the size of the file never changes by what a guest does */
	if (req->sub == BLK_ZERO && !req->unmap)
		return FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
	return FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
}

/* What one call can move: the result is an int. */
static uint32_t limit(const struct blk_req *req)
{
	return (uint32_t)(req->x_len > INT32_MAX / 4096 * 4096 ? INT32_MAX / 4096 * 4096 : req->x_len);
}

static int blocking(const struct file *f, const struct blk_req *req)
{
	const struct iovec *iov = (const struct iovec *)(const void *)req->x_iov;
	ssize_t rc;

	switch (req->sub) {
	case BLK_READ:
		rc = preadv2(f->fd, iov, (int)req->x_nr, (off_t)req->offset, 0);
		break;
	case BLK_WRITE:
		rc = pwritev2(f->fd, iov, (int)req->x_nr, (off_t)req->offset, req->durable ? RWF_DSYNC : 0);
		break;
	case BLK_FLUSH:
		rc = fdatasync(f->fd);
		break;
	default:
		rc = fallocate(f->fd, fallocate_mode(req), (off_t)req->offset, (off_t)req->x_len);
		break;
	}
	return rc < 0 ? -errno : (int)rc;
}

/* The file's slot in the io_uring of the queue's worker; asked for again when that is a new one. */
static int fixed_file(const struct file *f, struct blk_queue *q)
{
	struct ring_worker *w = q->source.worker;
	struct ring_worker_head *head = ring_worker_head(w);

	if (blk_unlikely(q->fixed_gen != head->uring_gen)) {
		q->fixed_gen = head->uring_gen;
		q->fixed = head->api->file(w, &q->source, f->fd);
	}
	return q->fixed;
}

/* The registered buffer that the part's one piece lies in; negative: none, or it has several pieces. */
static int fixed_buffer(struct blk_req *req)
{
	struct blk_queue *q = req->q;
	struct ring_worker *w = q->source.worker;
	int slot;

	req->fixed = 0;
	if (req->x_nr != 1 || req->sub > BLK_WRITE || req->plain)
		return -ENOENT;
	slot = ring_worker_head(w)->api->buffer(w, &q->source, req->x_iov->base, limit(req));
	if (slot >= 0) {
		req->fixed = 1;
		ring_count(&q->stats.fixed, 1);
	} else if (slot != -ENOENT) {
		__atomic_store_n(&q->stats.fixed_error, (uint64_t)-slot, __ATOMIC_RELAXED);
	}
	return slot;
}

static void prep(struct io_uring_sqe *sqe, const struct blk_req *req, int fd, int buffer)
{
	const struct iovec *iov = (const struct iovec *)(const void *)req->x_iov;

	switch (req->sub) {
	case BLK_READ:
		if (buffer >= 0)
			io_uring_prep_read_fixed(sqe, fd, iov->iov_base, limit(req), req->offset, buffer);
		else if (req->x_nr == 1)
			io_uring_prep_read(sqe, fd, iov->iov_base, limit(req), req->offset);
		else
			io_uring_prep_readv(sqe, fd, iov, req->x_nr, req->offset);
		break;
	case BLK_WRITE:
		if (buffer >= 0)
			io_uring_prep_write_fixed(sqe, fd, iov->iov_base, limit(req), req->offset, buffer);
		else if (req->x_nr == 1)
			io_uring_prep_write(sqe, fd, iov->iov_base, limit(req), req->offset);
		else
			io_uring_prep_writev(sqe, fd, iov, req->x_nr, req->offset);
		if (req->durable)
			sqe->rw_flags = RWF_DSYNC;
		break;
	case BLK_FLUSH:
		io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
		break;
	default:
		io_uring_prep_fallocate(sqe, fd, fallocate_mode(req), (off_t)req->offset, (off_t)req->x_len);
		break;
	}
}

static void once_missed(struct blk_queue *q)
{
	if (++q->once_misses <= BLK_ONCE_MISSES)
		return;
	if (q->once_misses > BLK_ONCE_SKIP)
		q->once_misses = BLK_ONCE_SKIP;
	q->once_skip = 1u << q->once_misses;
}

/*
 * Bytes done, or BLK_LATER: io_uring has to do it. Never the end of the file, nor an error: those are io_uring's to say,
 * but for a file in memory, where the two say the same.
 */
static int at_once(const struct file *f, struct blk_req *req)
{
	const struct iovec *iov = (const struct iovec *)(const void *)req->x_iov;
	struct blk_queue *q = req->q;
	ssize_t rc;

	if (f->resident) {
		uint64_t most = q->once_few ? BLK_ONCE_BYTES : BLK_ONCE_MANY_BYTES;

		if (req->sub > BLK_WRITE || req->x_len > most || req->retried)
			return BLK_LATER;
		q->reap_ticks = 0;
		ring_count(&q->stats.at_once, 1);
		return blocking(f, req);
	}
	if (req->sub != BLK_READ || !q->once_few || q->once_never || req->x_len > BLK_ONCE_BYTES)
		return BLK_LATER;
	if (q->once_skip) {
		q->once_skip--;
		return BLK_LATER;
	}
	rc = preadv2(f->fd, iov, (int)req->x_nr, (off_t)req->offset, RWF_NOWAIT);
	if (blk_unlikely(rc <= 0)) {
		if (rc < 0 && errno == EAGAIN)
			once_missed(q);
		else if (rc < 0 && errno == EOPNOTSUPP)
			q->once_never = true;
		return BLK_LATER;
	}
	q->once_misses = 0;
	q->reap_ticks = 0;	/* it took time: what is completed now is completed later than the one before */
	ring_count(&q->stats.at_once, 1);
	return (int)rc;
}

static int file_start(struct blk_store *store, struct blk_req *req)
{
	const struct file *f = (const struct file *)(const void *)store;
	struct ring_worker *w = req->q->source.worker;
	const struct ring_worker_api *api = ring_worker_head(w)->api;
	struct io_uring_sqe *sqe;
	int buffer = -ENOENT;
	int fixed;

	if (blk_unlikely(!api->uring(w)))
		return blocking(f, req);
	if (f->at_once) {
		int rc = at_once(f, req);

		if (rc != BLK_LATER)
			return rc;
	}
	fixed = fixed_file(f, req->q);
	sqe = api->sqe(w);
	if (!sqe)
		return BLK_LATER;
	if (req->q->blk->config.register_buffers)
		buffer = fixed_buffer(req);
	prep(sqe, req, fixed >= 0 ? fixed : f->fd, buffer);
	if (fixed >= 0)
		sqe->flags |= IOSQE_FIXED_FILE;
	if (req->retried)
		sqe->flags |= IOSQE_ASYNC;
	io_uring_sqe_set_data(sqe, &req->io);
	return BLK_PENDING;
}

/*
 * A file of tmpfs or ramfs on a system that cannot swap. io_uring hands each of its requests to a kernel thread, because
 * these file systems do not know RWF_NOWAIT; a copy is all there is to do.
 */
static bool in_memory(int fd)
{
	struct sysinfo info;
	struct statfs fs;
	struct stat st;

	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || fstatfs(fd, &fs) < 0 || sysinfo(&info) < 0)
		return false;
	return (fs.f_type == TMPFS_MAGIC && !info.totalswap) || fs.f_type == RAMFS_MAGIC;
}

static void file_free(struct blk_store *store)
{
	free(store);
}

struct blk_store *blk_file_new(const struct blk_file_config *config)
{
	static const struct blk_store_ops ops = { .start = file_start, .free = file_free };
	struct file *f = calloc(1, sizeof(*f));

	if (!f)
		return NULL;
	f->fd = config->fd;
	f->resident = config->at_once && in_memory(config->fd);
	f->at_once = f->resident || (config->at_once && !config->direct);
	f->store.ops = &ops;
	f->store.kind = BLK_INLINE_NO;
	f->store.can = config->can;
	f->store.io_align = config->direct ? config->io_align : 1;
	f->store.mem_align = config->direct ? config->mem_align : 1;
	return &f->store;
}
