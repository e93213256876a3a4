/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blk.h - virtio-blk (VIRTIO 1.3, 5.2): a disk over a store, served by any number of queues on any workers.
 *
 * Ownership: a disk outlives its queues, a store its disks. A queue is made for a virtqueue and run by a worker; it is
 * freed after it was removed from its worker with nothing in flight.
 * Threads: what is marked "any" may be called while workers run; the rest before or after.
 */
#ifndef BLK_H
#define BLK_H

#include "ring/csrc/worker.h"

/* cffi:begin */
enum {
	BLK_ID_BYTES = 20,	/* VIRTIO 1.3, 5.2.6.1 */
	BLK_SECTOR = 512,	/* whatever blk_size is */
	BLK_SEGMENTS_MAX = 16,	/* of a discard, write zeroes or secure erase request */

	/* operations, as counted */
	BLK_READ = 0,
	BLK_WRITE = 1,
	BLK_FLUSH = 2,
	BLK_DISCARD = 3,
	BLK_ZERO = 4,
	BLK_ERASE = 5,
	BLK_OTHER = 6,		/* get id, get lifetime, and what is refused before its type is known */
	BLK_OPS = 7,

	/* what a store can, beyond reading */
	BLK_CAN_WRITE = 1,
	BLK_CAN_FLUSH = 2,
	BLK_CAN_DISCARD = 4,
	BLK_CAN_ZERO = 8,
	BLK_CAN_ERASE = 16,
	BLK_CAN_LIFETIME = 32,

	/*
	 * Latency: bucket b holds requests of at most 2^(b + BLK_LATENCY_SHIFT) ticks that were in no earlier bucket.
	 * Ticks are the CPU's time stamp counter where it is steady, else ns: see blk_tick_ns().
	 */
	BLK_LATENCY_BUCKETS = 36,
	BLK_LATENCY_SHIFT = 7,
};

struct blk;
struct blk_store;

struct blk_config {
	uint32_t blk_size;		/* bytes, power of two >= 512: what requests are multiples of */
	uint32_t read_only;
	uint32_t max_discard_sectors;	/* of one segment */
	uint32_t max_zero_sectors;
	uint32_t max_erase_sectors;
	uint32_t max_segments;		/* of one request, <= BLK_SEGMENTS_MAX */
	uint32_t register_buffers;	/* 1: guest memory is registered with io_uring, which pins it */
	char id[20];			/* BLK_ID_BYTES, padded with zeros */
};

/* Limits; 0: none. @burst_ms: how long a disk may run at any rate after a pause. */
struct blk_limits {
	uint64_t iops;
	uint64_t read_iops;
	uint64_t write_iops;
	uint64_t bps;
	uint64_t read_bps;
	uint64_t write_bps;
	uint64_t burst_ms;
};

/* Of one queue, since it was made. Written by its worker, read by anyone at any time. */
struct blk_stats {
	uint64_t requests[7];	/* BLK_OPS, completed, failed ones too */
	uint64_t bytes[7];	/* of those that succeeded */
	uint64_t errors[7];	/* status not OK */
	uint64_t latency[36];	/* BLK_LATENCY_BUCKETS; stores that never wait are sampled, one batch in 16, weighted */
	uint64_t latency_ticks;	/* sum */
	uint64_t throttled;	/* times a queue waited for tokens */
	uint64_t bounced;	/* requests that went through a buffer of ours */
	uint64_t waits;		/* requests that waited for such a buffer, or for io_uring */
	uint64_t at_once;	/* reads of what is cached, reads and writes of files in memory: without io_uring */
	uint64_t fixed;		/* reads and writes with registered buffers */
	uint64_t fixed_error;	/* errno: why some went without, where the system refused; 0: none did */
};

/* New disk of @capacity bytes on @store, or NULL without memory. */
struct blk *blk_new(struct blk_store *store, const struct blk_config *config, uint64_t capacity);
/* After all its queues. */
void blk_free(struct blk *blk);
/* any: virtio features acked by the driver; requests of others are refused */
void blk_set_features(struct blk *blk, uint64_t features);
/* any: 1: writes complete when they are durable (CONFIG_WCE, or no FLUSH acked) */
void blk_set_writethrough(struct blk *blk, int on);
/* any: bytes */
void blk_set_capacity(struct blk *blk, uint64_t bytes);
/* any: requests already accepted are not taken back */
void blk_set_limits(struct blk *blk, const struct blk_limits *limits);

/* What a worker polls for @vq, with room for @depth requests in flight; NULL without memory. */
struct ring_source *blk_queue_new(struct blk *blk, struct ring_vq *vq, uint32_t depth);
/* 0, or -EBUSY: it is still at a worker or has requests at its store. */
int blk_queue_free(struct ring_source *source);
/* any */
void blk_queue_stats(const struct ring_source *source, struct blk_stats *out);

/* any: length of a tick in ns; measured once, over some milliseconds, by the first caller */
double blk_tick_ns(void);

/* Stores. Each is freed by blk_store_free(), after its disks. NULL: no memory. */

/* Takes writes, gives whatever the buffers held: for measuring. Never waits, touches no data. */
struct blk_store *blk_null_new(void);
/* @size bytes of memory that start as zeros. */
struct blk_store *blk_memory_new(uint64_t size);
/* Its contents; for tests and embedders. */
void *blk_memory_base(struct blk_store *store);

struct blk_file_config {
	int fd;			/* not owned: stays open until blk_store_free() */
	uint32_t can;		/* BLK_CAN_* */
	uint32_t direct;	/* 1: opened with O_DIRECT */
	uint32_t io_align;	/* bytes: offsets and lengths are multiples of it */
	uint32_t mem_align;	/* bytes: likewise buffer addresses; 1: any */
	uint32_t at_once;	/* 1: what needs no waiting is done without io_uring */
};

struct blk_store *blk_file_new(const struct blk_file_config *config);

/* A filter for tests: requests of the operations in @ops (bits 1 << BLK_*) fail or are late. */
struct blk_store *blk_fault_new(struct blk_store *inner);
/* any: every @every-th request fails with @error (errno); 0: none */
void blk_fault_errors(struct blk_store *store, uint32_t ops, uint32_t every, int error);
/* any: each waits @delay_us before it starts */
void blk_fault_delay(struct blk_store *store, uint32_t ops, uint64_t delay_us);
/* any: how many got here */
uint64_t blk_fault_seen(const struct blk_store *store);

void blk_store_free(struct blk_store *store);
/* any: BLK_CAN_* */
uint32_t blk_store_can(const struct blk_store *store);
/* cffi:end */

#endif
