/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fs.h - virtio-fs (VIRTIO 1.3, 5.11): queues of FUSE requests over a server that answers them.
 *
 * Ownership: a server outlives its queues. A queue is made for a virtqueue and run by a worker; it is freed after it was
 * removed from its worker with nothing in flight.
 * Threads: what is marked "any" may be called while workers run; the rest before or after.
 */
#ifndef FS_H
#define FS_H

#include "ring/csrc/worker.h"

/* cffi:begin */
enum {
	FS_OPS = 54,		/* opcodes, as counted; 0: unknown ones and what has no readable header */

	/*
	 * Latency: bucket b holds requests of at most 2^(b + FS_LATENCY_SHIFT) ticks that were in no earlier bucket.
	 * Ticks are the CPU's time stamp counter where it is steady, else ns: see fs_tick_ns().
	 */
	FS_LATENCY_BUCKETS = 32,
	FS_LATENCY_SHIFT = 8,

	FS_WRITE_MAX = 1048576,	/* bytes of one WRITE, and of a READ that Linux sends */
	FS_THREADS_MAX = 256,
};

struct fs_server;

/* Of one queue, since it was made. Written by its worker, read by anyone at any time. */
struct fs_stats {
	uint64_t requests[54];		/* FS_OPS, answered, refused ones too */
	uint64_t errors[54];
	uint64_t ticks[54];		/* sum of latencies */
	uint64_t latency[54][32];	/* FS_LATENCY_BUCKETS */
	uint64_t bytes_in;		/* data of requests: WRITE, values of attributes */
	uint64_t bytes_out;		/* of replies, headers left out */
	uint64_t slow;			/* handed to threads */
	uint64_t again;			/* asked again later */
	uint64_t malformed;		/* lengths that do not fit, no room for an answer */
	uint64_t cancelled;		/* interrupted, or ended because the queue stopped */
};

/* What the last INIT agreed on. */
struct fs_session {
	uint32_t minor;			/* 0: there was none yet */
	uint32_t max_write;		/* bytes */
	uint64_t flags;			/* FUSE_* of INIT */
	uint64_t offered;		/* those that the driver offered */
	uint32_t driver_minor;
	uint32_t threads;		/* of the pool, now */
	uint32_t waiting;		/* requests that no thread has taken yet */
	uint32_t threads_max;
};

/* any */
void fs_server_session(struct fs_server *server, struct fs_session *out);
/*
 * Go on as if INIT had agreed on that, as a migrated guest expects. No queue runs. 0, -EPROTO: a minor that we do not
 * speak; -EOPNOTSUPP: flags that this server does not implement, or sizes beyond ours.
 */
int fs_server_set_session(struct fs_server *server, const struct fs_session *session);
/* any: threads for what may wait; 1 to FS_THREADS_MAX. More are made when they are needed, idle ones end. */
void fs_server_set_threads(struct fs_server *server, uint32_t max);
/* any: the front-end went away, and nobody wants what waits any more */
void fs_server_cancel(struct fs_server *server);
/* any: this process ends, the guest does not: what waits is left to the next process, where there is an inflight record */
void fs_server_leave(struct fs_server *server);
/* The front-end went away: forget what its guest had. No queue has anything in flight. */
void fs_server_reset(struct fs_server *server);
/* After all its queues. NULL does nothing. */
void fs_server_free(struct fs_server *server);

/* What a worker polls for @vq, with room for @depth requests in flight; NULL without memory. */
struct ring_source *fs_queue_new(struct fs_server *server, struct ring_vq *vq, uint32_t depth, int hiprio);
/* 0, or -EBUSY: it is still at a worker or has requests in flight. */
int fs_queue_free(struct ring_source *source);
/* any */
void fs_queue_stats(const struct ring_source *source, struct fs_stats *out);

/* any: length of a tick in ns; measured once, over some milliseconds, by the first caller */
double fs_tick_ns(void);

/*
 * A server for tests of everything but a file system: LOOKUP of "wait" and "stuck" waits until it is interrupted, the
 * latter on a thread, "slow" is answered by a thread, WRITE counts bytes, READ gives zeros, what makes a name is
 * answered with what was decoded (server.c); the rest is -ENOSYS.
 */
struct fs_server *fs_null_new(uint64_t can);
/* cffi:end */

#endif
