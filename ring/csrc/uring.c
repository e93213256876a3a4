/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uring.c - see uring.h.
 *
 * Every entry handed out comes back as exactly one completion; multishot operations are not used. That makes
 * issued - done the number of operations under way.
 */
#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "ring/csrc/uring.h"

static int setup(struct io_uring *ring, unsigned entries, unsigned flags)
{
	struct io_uring_params p;

	memset(&p, 0, sizeof(p));
	p.flags = flags | IORING_SETUP_CQSIZE;
	p.cq_entries = entries * 4 > URING_CQ_MIN ? entries * 4 : URING_CQ_MIN;
	return io_uring_queue_init_params(entries, ring, &p);
}

void ring_uring_probe(struct ring_uring *u, unsigned entries)
{
	/* from the best to what every kernel with io_uring takes */
	static const unsigned tries[] = {
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN |
			IORING_SETUP_TASKRUN_FLAG,
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		0,
	};
	struct io_uring ring;
	size_t i;

	u->entries = 0;
	if (!entries)
		return;
	for (i = 0; i < sizeof(tries) / sizeof(tries[0]); i++) {
		int rc = setup(&ring, entries, tries[i]);

		if (rc == -EINVAL)
			continue;	/* a flag this kernel does not know */
		if (rc < 0)
			return;
		/* older than 5.7: reads could block the submitter, and a full completion queue lose events */
		if ((ring.features & IORING_FEAT_FAST_POLL) && (ring.features & IORING_FEAT_NODROP)) {
			u->flags = tries[i];
			u->entries = entries;
		}
		io_uring_queue_exit(&ring);
		return;
	}
}

int ring_uring_open(struct ring_uring *u)
{
	int rc;

	if (!u->entries)
		return 0;
	u->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (u->event_fd < 0)
		return -errno;
	rc = setup(&u->ring, u->entries, u->flags);
	if (rc == 0) {
		rc = io_uring_register_eventfd(&u->ring, u->event_fd);
		if (rc < 0)
			io_uring_queue_exit(&u->ring);
	}
	if (rc < 0) {
		close(u->event_fd);
		return rc;
	}
	ring_uring_deaf(u);
	u->live = true;
	u->issued = 0;
	u->done = 0;
	memset(u->files, 0, sizeof(u->files));
	/* refused where RLIMIT_NOFILE is smaller, or by kernels before 5.19: plain fds do then */
	u->have_files = io_uring_register_files_sparse(&u->ring, URING_FILES) == 0;
	return 0;
}

void ring_uring_close(struct ring_uring *u)
{
	if (!u->live)
		return;
	if (u->have_files)
		io_uring_unregister_files(&u->ring);	/* now; a ring's own end comes later, from a work queue */
	io_uring_queue_exit(&u->ring);
	close(u->event_fd);
	u->live = false;
}

int ring_uring_file(struct ring_uring *u, struct ring_source *owner, int fd)
{
	int slot;
	int rc;

	if (!u->live || !u->have_files)
		return -ENXIO;
	for (slot = 0; slot < URING_FILES && u->files[slot].owner; slot++)
		;
	if (slot == URING_FILES)
		return -ENFILE;
	rc = io_uring_register_files_update(&u->ring, (unsigned)slot, &fd, 1);
	if (rc < 0)
		return rc;
	u->files[slot].owner = owner;
	return slot;
}

void ring_uring_drop_files(struct ring_uring *u, const struct ring_source *owner)
{
	int none = -1;
	unsigned slot;

	for (slot = 0; slot < URING_FILES; slot++) {
		if (u->files[slot].owner != owner)
			continue;
		u->files[slot].owner = NULL;
		if (u->live)
			io_uring_register_files_update(&u->ring, slot, &none, 1);
	}
}

unsigned ring_uring_reap(struct ring_uring *u)
{
	struct io_uring_cqe *cqes[URING_REAP];
	unsigned total = 0;
	unsigned n, i;

	do {
		/* also runs deferred task work, where the kernel says that there is some */
		n = io_uring_peek_batch_cqe(&u->ring, cqes, URING_REAP);
		for (i = 0; i < n; i++) {
			struct ring_io *io = io_uring_cqe_get_data(cqes[i]);

			io->done(io, cqes[i]->res);
		}
		io_uring_cq_advance(&u->ring, n);
		u->done += n;
		total += n;
	} while (n == URING_REAP && total < 4 * URING_REAP);
	return total;
}

int ring_uring_submit(struct ring_uring *u)
{
	if (!io_uring_sq_ready(&u->ring))
		return 0;
	/* what the kernel does not take now (out of memory, completions overflowed) stays for the next time */
	if (u->flags & IORING_SETUP_DEFER_TASKRUN)
		io_uring_submit_and_get_events(&u->ring);
	else
		io_uring_submit(&u->ring);
	return 1;
}

struct io_uring_sqe *ring_uring_sqe(struct ring_uring *u)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

	if (!sqe) {
		io_uring_submit(&u->ring);
		sqe = io_uring_get_sqe(&u->ring);
		if (!sqe)
			return NULL;
	}
	u->issued++;
	return sqe;
}

bool ring_uring_listen(struct ring_uring *u)
{
	io_uring_cq_eventfd_toggle(&u->ring, true);
	/* pairs with the kernel, which posts (or marks deferred work) before it looks whether we listen */
	atomic_thread_fence(memory_order_seq_cst);
	return io_uring_cq_ready(&u->ring) ||
	       (IO_URING_READ_ONCE(*u->ring.sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW));
}

void ring_uring_deaf(struct ring_uring *u)
{
	io_uring_cq_eventfd_toggle(&u->ring, false);
}
