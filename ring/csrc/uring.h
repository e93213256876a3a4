/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uring.h - a worker's io_uring: set-up with what this kernel takes, fixed files, registered buffers. For the worker only.
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
	URING_BUFFERS = 4096,	/* registered buffers of a ring: 512 GiB of guest memory; the rest is used without */
	URING_CHUNK = 128 << 20,	/* bytes pinned in one go, which takes milliseconds; the kernel takes up to 1 GiB */
};

/* A fixed-file slot belongs to a source, which takes it along when it is removed. */
struct ring_uring_file {
	struct ring_source *owner;	/* NULL: free */
};

/* A stretch of guest memory, registered when it is first used. */
struct ring_pin {
	uintptr_t base;
	size_t len;
	int slot;	/* -errno: refused; PIN_UNTRIED: nobody asked yet */
};

/* Those of one guest memory, shared by all its queues on this worker. */
struct ring_pins {
	struct ring_pins *next;
	uint64_t gen;			/* of the table they stand for */
	uint32_t users;			/* sources */
	uint32_t nr;
	uint32_t last;			/* the one hit last */
	struct ring_pin pin[];		/* ordered by base */
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
	struct ring_pins *pins;
	bool buffers_asked;		/* the table of buffers was asked for: made on first use */
	int buffers_error;		/* -errno of that */
	uint32_t nr_free_buffers;
	uint16_t free_buffers[URING_BUFFERS];
};

/* Find out whether io_uring works here and with which flags; @u->entries is 0 afterwards if not. */
void ring_uring_probe(struct ring_uring *u, unsigned entries);
/* On the worker's thread. 0 or -errno; 0 without doing anything if @u->entries is 0. */
int ring_uring_open(struct ring_uring *u);
void ring_uring_close(struct ring_uring *u);
int ring_uring_file(struct ring_uring *u, struct ring_source *owner, int fd);
int ring_uring_buffer(struct ring_uring *u, struct ring_source *source, const void *base, size_t len);
/* If its memory has changed since, @source gives back its registered buffers; the next request asks for new ones. */
void ring_uring_unpin_changed(struct ring_uring *u, struct ring_source *source);
/* All that @source holds here: files and buffers. */
void ring_uring_drop(struct ring_uring *u, struct ring_source *source);
/* Call what has completed. Returns completions. */
unsigned ring_uring_reap(struct ring_uring *u);
/* Submit what was prepared, if anything. Returns 1 if the kernel was called. */
int ring_uring_submit(struct ring_uring *u);
struct io_uring_sqe *ring_uring_sqe(struct ring_uring *u);
/* About to sleep: completions signal the eventfd from now on. Returns true if some are there already: do not sleep. */
bool ring_uring_listen(struct ring_uring *u);
void ring_uring_deaf(struct ring_uring *u);

#endif
