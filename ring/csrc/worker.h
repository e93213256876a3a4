/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker.h - a worker: one thread that polls sources (queues of any devices and VMs), sleeps when nothing comes.
 *
 * Theory of operation
 *   A source is ACTIVE (polled, its kicks suppressed) or ARMED (kicks wanted, its fd in epoll, edge-triggered, never
 *   read). The loop: reap io_uring completions, poll ACTIVE sources, submit to io_uring once. A source whose polls
 *   found nothing for the poll window is armed; when all are armed the worker sleeps in epoll_wait. While some are
 *   ACTIVE the armed ones are looked at every few microseconds with a zero timeout.
 *   The poll window adapts: it follows the observed gap between requests, and falls to zero where polling does not pay.
 *
 * Control: ring_worker_park() returns once the worker stands at a safe point (outside every source); the world may then
 * be changed; ring_worker_resume(). Parks nest. Parking a worker that does not run succeeds at once and keeps it
 * from starting. A park must not be asked for from the worker's own thread.
 */
#ifndef RING_WORKER_H
#define RING_WORKER_H

#include <stdlib.h>
#include <string.h>

#include "ring/csrc/ring.h"

/* cffi:begin */
enum {
	RING_POLL_ADAPTIVE = -1,	/* poll_us: follow the load */
	RING_POLL_NEVER = 0,
	RING_POLL_ALWAYS = 2147483647,
};

struct ring_worker;
struct ring_source;

struct ring_worker_options {
	int32_t poll_us;	/* RING_POLL_* or the fixed length of the poll window, microseconds */
	int32_t cpu;		/* pin to this CPU; -1: leave */
	uint32_t uring_entries;	/* submission queue, power of two; 0: no io_uring */
	uint32_t max_poll_us;	/* adaptive: upper end of the window; 0: default (50) */
	uint32_t coalesce_us;	/* calls are held back for so long at most, polling; 0, or without polling: not at all */
};

struct ring_worker_stats {
	uint64_t loops;
	uint64_t sleeps;	/* epoll_wait that could block */
	uint64_t wakeups;	/* kicks and completions seen by epoll */
	uint64_t submits;	/* io_uring_enter to submit */
	uint64_t parks;
	uint64_t cpu_ns;	/* thread CPU time, updated at each sleep and park */
};

struct ring_worker *ring_worker_new(const struct ring_worker_options *options);
/* Only when not running and without sources. */
void ring_worker_free(struct ring_worker *w);
/* The loop, on the calling thread, until ring_worker_stop(). 0 or -errno (set-up failed). May be run again. */
int ring_worker_run(struct ring_worker *w);
/* From any thread, any time, repeatedly; a stop before run makes run return at once (and is consumed). */
void ring_worker_stop(struct ring_worker *w);
void ring_worker_park(struct ring_worker *w);
void ring_worker_resume(struct ring_worker *w);
/* While parked or not running: sources come and go. @source stays its owner's. 0, -EEXIST, -ENOMEM, -errno of epoll. */
int ring_worker_add(struct ring_worker *w, struct ring_source *source);
int ring_worker_remove(struct ring_worker *w, struct ring_source *source);
void ring_worker_stats(const struct ring_worker *w, struct ring_worker_stats *out);
/* 1 if io_uring works on this machine and the worker was asked to have it. Known before run. */
int ring_worker_has_uring(const struct ring_worker *w);

/* While parked (or on the worker's thread). */
/* A paused source pops nothing but still completes; its queue's news_fd is written once nothing is in flight. */
void ring_source_pause(struct ring_source *source, int paused);
/* The kick fd (-1: none, the source is then polled every millisecond while armed); not owned, not closed. */
int ring_source_set_kick(struct ring_source *source, int kick_fd);
/* Look at the queue once even without a kick (start, resume, after an IOTLB update). */
void ring_source_wake(struct ring_source *source);
/* cffi:end */

struct ring_worker_priv;
struct ring_pins;
struct io_uring;
struct io_uring_sqe;

/*
 * What a device gives a worker: embed it. Callbacks run on the worker's thread and never block.
 */
struct ring_source_ops {
	/*
	 * Do what is there, at most @budget new chains (0: take no new ones, only finish). Returns the number of chains
	 * taken, or -RING_E_* / -errno: the source is then disarmed and left alone until woken by control.
	 */
	int (*poll)(struct ring_source *source, int budget);
	/* Publish completions that io callbacks have pushed since the last poll; called after reaping. */
	void (*flush)(struct ring_source *source);
	/* About to sleep: ask for kicks. 1: work is there already, do not sleep. NULL: ring_vq_kicks_on(source->vq). */
	int (*arm)(struct ring_source *source);
	/* Awake: suppress kicks. NULL: ring_vq_kicks_off(source->vq). */
	void (*disarm)(struct ring_source *source);
};

/* What the worker has learned about one kind of gap: until the driver's next request, until the next completion. */
struct ring_gaps {
	uint32_t ewma_ns;	/* smoothed length */
	uint16_t misses;	/* poll windows in a row that found nothing */
	uint16_t skip;		/* windows to leave out before trying again */
	/* naps: gaps longer than any window, but much alike */
	uint32_t mean_ns;
	uint32_t dev_ns;	/* mean deviation */
	uint16_t alike;		/* gaps since one that was too long for naps */
	uint8_t nap_misses;	/* in a row that ended before the gap did */
	uint8_t nap_skip;	/* to leave out before trying again */
};

struct ring_source {
	const struct ring_source_ops *ops;
	struct ring_vq *vq;		/* may be NULL for sources that are no queue (tap, timer) */
	struct ring_worker *worker;	/* set by ring_worker_add() */
	uint64_t deadline_ns;		/* poll again at this CLOCK_MONOTONIC time at the latest; 0: no need (throttle) */
	int kick_fd;			/* -1 before ring_worker_add(): none yet */
	int news_fd;			/* drained news, besides the queue's; -1: none */
	bool coalesce;			/* calls may be held back: only its own callbacks complete its queue's chains */
	/* worker's own, zeroed by the device */
	bool dirty;			/* set by ring_source_completed() */
	bool paused, active, dead, wake, drain_told;
	bool stalled;			/* its queue has something it cannot take now */
	bool timed;			/* not active, its deadline is watched */
	bool slept;			/* went to sleep since it was idle */
	uint8_t kick_kind;		/* eventfd, pipe, socket */
	uint8_t gap_kind;		/* which gap is being waited for */
	uint32_t slot;			/* in the worker's table */
	uint32_t place;			/* in the list of active ones */
	uint32_t gen;			/* of the kick fd: tells late events of an earlier one */
	int kick_dup;			/* our own copy, in epoll */
	uint32_t idle_look;		/* the worker's look at the clock before it was idle */
	uint64_t idle_since_ns;		/* first poll that found nothing; 0: busy */
	uint64_t window_ns;		/* how long it is polled from then on */
	uint64_t came_ns;		/* when the last request was found after a gap */
	uint64_t nap_ns;		/* asleep until then, or polled since then; 0: no nap */
	struct ring_gaps gaps[2];
	struct ring_source *next_dirty;
	struct ring_pins *pins;		/* registered buffers it shares; NULL: none yet */
};

/* Zeroed memory of @size bytes for a queue that begins with its source; free() it. NULL without memory. */
static inline void *ring_source_new(size_t size, const struct ring_source_ops *ops, struct ring_vq *vq)
{
	struct ring_source *source = aligned_alloc(64, (size + 63) / 64 * 64);

	if (source == NULL)
		return NULL;
	memset(source, 0, size);
	source->ops = ops;
	source->vq = vq;
	source->kick_fd = -1;
	source->news_fd = -1;
	return source;
}

/* An asynchronous operation on the worker's io_uring: embed it; its address is the user_data. */
struct ring_io {
	void (*done)(struct ring_io *io, int res);
};

/* Work posted from another thread, run on the worker's thread; embed it. Lock-free, any thread. */
struct ring_task {
	struct ring_task *next;
	void (*run)(struct ring_task *task);
};

void ring_worker_post(struct ring_worker *w, struct ring_task *task);

/* On the worker's thread: a submission entry (submitting first when the queue is full), or NULL: none now. */
struct io_uring_sqe *ring_worker_sqe(struct ring_worker *w);
struct io_uring *ring_worker_uring(struct ring_worker *w);	/* NULL: this worker has none */
/*
 * On the worker's thread: a fixed-file slot for @fd in the worker's io_uring, on behalf of @source; ring_worker_remove()
 * drops it. Valid while ring_worker_head()->uring_gen stays. Negative: none to be had, use the fd itself.
 */
int ring_worker_file(struct ring_worker *w, struct ring_source *source, int fd);
/*
 * On the worker's thread: the registered buffer of the worker's io_uring that holds [@base, @base + @len), guest memory of
 * @source's queue; it is registered when it is first asked for, which pins it. ring_worker_remove() and a change of the
 * memory drop it. -ENOENT: no guest memory, or none that can be registered; other -errno: the system refused.
 * An operation with it fails with -EFAULT where the memory changed before the kernel saw it: repeat it without.
 */
int ring_worker_buffer(struct ring_worker *w, struct ring_source *source, const void *base, size_t len);

/*
 * Device extensions hold their own copies of the ring's hot path but not of the worker: they reach it through these
 * pointers, filled in by ring._ring.
 */
struct ring_worker_api {
	void (*post)(struct ring_worker *w, struct ring_task *task);
	struct io_uring_sqe *(*sqe)(struct ring_worker *w);
	struct io_uring *(*uring)(struct ring_worker *w);
	int (*file)(struct ring_worker *w, struct ring_source *source, int fd);
	int (*buffer)(struct ring_worker *w, struct ring_source *source, const void *base, size_t len);
};

/* The beginning of every struct ring_worker. */
struct ring_worker_head {
	const struct ring_worker_api *api;
	struct ring_source *dirty;	/* worker thread: sources with staged completions */
	uint32_t uring_gen;		/* worker thread: changes when a new io_uring takes the place of an old one */
};

static inline struct ring_worker_head *ring_worker_head(struct ring_worker *w)
{
	return (struct ring_worker_head *)(void *)w;
}

/* On the worker's thread: a callback pushed completions of @source, which its flush is to publish. */
static inline void ring_source_completed(struct ring_source *source)
{
	struct ring_worker_head *head = ring_worker_head(source->worker);

	if (source->dirty)
		return;
	source->dirty = true;
	source->next_dirty = head->dirty;
	head->dirty = source;
}

#endif
