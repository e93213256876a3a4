/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uring.h - a worker's io_uring: set-up with what this kernel takes, fixed files. Used by worker.c only.
 *
 * A ring lives from the start of ring_worker_run() to its end: SINGLE_ISSUER and DEFER_TASKRUN bind it to that thread.
 */
#ifndef RING_URING_H
#define RING_URING_H

#include <liburing.h>
#include <stdbool.h>
#include <stdint.h>

#include "ring/csrc/worker.h"

enum {
	URING_FILES = 256,	/* fixed-file slots of a ring; whoever comes later uses its fd */
	URING_REAP = 64,	/* completions looked at in one go */
	URING_CQ_MIN = 4096,	/* completion queue: an overflow is survived, but slow */
};

/* A fixed-file slot belongs to a source, which takes it along when it is removed. */
struct ring_uring_file {
	struct ring_source *owner;	/* NULL: free */
};

struct ring_uring {
	struct io_uring ring;
	bool live;			/* set up, on this thread */
	bool have_files;
	unsigned flags;			/* set-up flags the kernel takes: found once */
	unsigned entries;		/* 0: none wanted, or none to be had */
	int event_fd;			/* for epoll: with DEFER_TASKRUN the ring's own fd does not report deferred work */
	uint64_t issued;		/* entries handed out, worker thread */
	uint64_t done;			/* completions seen, worker thread */
	struct ring_uring_file files[URING_FILES];
};

/* Find out whether io_uring works here and with which flags; @u->entries is 0 afterwards if not. */
void ring_uring_probe(struct ring_uring *u, unsigned entries);
/* On the worker's thread. 0 or -errno; 0 without doing anything if @u->entries is 0. */
int ring_uring_open(struct ring_uring *u);
void ring_uring_close(struct ring_uring *u);
int ring_uring_file(struct ring_uring *u, struct ring_source *owner, int fd);
void ring_uring_drop_files(struct ring_uring *u, const struct ring_source *owner);
/* Call what has completed. Returns completions. */
unsigned ring_uring_reap(struct ring_uring *u);
/* Submit what was prepared, if anything. Returns 1 if the kernel was called. */
int ring_uring_submit(struct ring_uring *u);
struct io_uring_sqe *ring_uring_sqe(struct ring_uring *u);
/* About to sleep: completions signal the eventfd from now on. Returns true if some are there already: do not sleep. */
bool ring_uring_listen(struct ring_uring *u);
void ring_uring_deaf(struct ring_uring *u);

#endif
