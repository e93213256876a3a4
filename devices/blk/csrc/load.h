/* SPDX-License-Identifier: Apache-2.0 */
/*
 * load.h - load generator for virtio-blk queues: the guest's side at full speed, in one thread, without the GIL.
 *
 * It owns neither rings nor memory. One thread calls load_run() of one generator; several generators, each with queues
 * of its own, may run in several threads. A run ends after its time; requests in flight stay so and the next run goes
 * on with them: warm up, look at the clocks, measure, look again, drain.
 */
#ifndef BLK_LOAD_H
#define BLK_LOAD_H

#include "ring/csrc/loadgen.h"

/* cffi:begin */
enum {
	LOAD_SLOT_BYTES = 64,	/* header at 0, status at 16 of each slot's private piece */
	LOAD_E_STATUS = 16,	/* a kind of error, for first_error: a status byte */
};

struct load;

struct load_config {
	uint64_t disk_start;	/* range of the disk to use, bytes; start a multiple of 512 */
	uint64_t disk_bytes;
	uint32_t block_bytes;	/* per request, a multiple of 512 */
	uint32_t depth;		/* per queue */
	uint32_t read_percent;	/* 100 reads only, 0 writes only */
	uint32_t random;	/* 0: sequential per queue */
	uint32_t poll;		/* 1: never sleep, no notifications; 0: sleep on the call eventfds */
	uint32_t indirect;
	uint32_t verify;	/* 1: written and expected data is a function of sector and seed */
	uint32_t pad;
	uint64_t seed;
	uint64_t rate;		/* requests/s over all queues, evenly spaced; 0: as fast as they come back */
};

struct load_stats {
	struct gen_stats run;	/* first_error_info: status byte, length, sector or RING_E_* */
	uint64_t reads;
	uint64_t writes;
	uint64_t bytes;
};

/* NULL without memory or if the configuration makes no sense. */
struct load *load_new(const struct load_config *config);
void load_free(struct load *load);
/*
 * Add a queue. @slots: @depth pieces of LOAD_SLOT_BYTES; @data: @depth blocks; each with its guest address. The caller
 * keeps all of it, the ring and the descriptors until load_free(). 0, -ENOSPC, -ENOMEM.
 */
int load_add_queue(struct load *load, struct ring_drv *drv, int kick_fd, int call_fd, void *slots,
		   uint64_t slots_gpa, void *data, uint64_t data_gpa);
/*
 * Drive the queues for @duration_ns, or until load_stop(), or as @mode says. Statistics start anew. 0, -ETIME if
 * GEN_ONCE or GEN_DRAIN did not end in time, -EIO once the device broke a ring.
 */
int load_run(struct load *load, uint64_t duration_ns, int mode);
/* From any thread. */
void load_stop(struct load *load);
/* Of the last run; the pointer stays valid until load_free(). */
const struct load_stats *load_stats(const struct load *load);
uint64_t load_in_flight(const struct load *load);
/* From now on other kinds of requests: percent of reads, random or not, verification. Between runs. */
void load_set_mode(struct load *load, uint32_t read_percent, uint32_t random, uint32_t verify);
/* cffi:end */

#endif
