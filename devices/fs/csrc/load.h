/* SPDX-License-Identifier: Apache-2.0 */
/*
 * load.h - load generator for virtio-fs: the guest's FUSE requests at full speed, in one thread, without the GIL.
 *
 * It owns neither rings nor memory, and knows files by what somebody else looked up and opened. One thread calls
 * fs_load_run() of one generator; several generators, each with queues of its own, may run in several threads. A run
 * ends after its time; requests in flight stay so and the next run goes on with them: warm up, look at the clocks,
 * measure, look again, drain.
 */
#ifndef FS_LOAD_H
#define FS_LOAD_H

#include "ring/csrc/loadgen.h"

/* cffi:begin */
enum {
	FS_LOAD_SLOT_BYTES = 512,	/* of each slot's private piece: headers, arguments, small replies */
	FS_LOAD_PIECES = 512,		/* descriptors of a request's data */
	FS_LOAD_NAME = 32,		/* bytes of a name with its NUL */
	FS_LOAD_FORGETS = 64,		/* slots of the high-priority queue */

	FS_LOAD_GETATTR = 0,		/* operations */
	FS_LOAD_LOOKUP = 1,
	FS_LOAD_READ = 2,
	FS_LOAD_WRITE = 3,
	FS_LOAD_LIST = 4,		/* READDIRPLUS, from the first entry to the last and again */
	FS_LOAD_CREATE = 5,		/* CREATE, WRITE, FLUSH, RELEASE, UNLINK and FORGET of a new file */

	FS_LOAD_E_STATUS = 16,		/* kinds of errors, for first_error: an errno of a reply */
	FS_LOAD_E_UNIQUE = 17,		/* the answer to something else */
	FS_LOAD_E_INODE = 18,		/* another inode, or another size, than was looked up */
	FS_LOAD_E_LISTING = 19,		/* entries missing, twice or malformed; how many there were */
};

struct fs_load;

struct fs_load_config {
	uint32_t op;		/* FS_LOAD_GETATTR, ... */
	uint32_t depth;		/* per queue */
	uint32_t block_bytes;	/* READ, WRITE, CREATE: per request; LIST: room for entries; a multiple of 8 */
	uint32_t piece_bytes;	/* of a descriptor of data; 0: one for all */
	uint32_t random;	/* files and blocks at random */
	uint32_t poll;		/* 1: never sleep, no notifications; 0: sleep on the call eventfds */
	uint32_t indirect;
	uint32_t verify;	/* contents are a function of file and offset; inodes and listings are compared */
	uint32_t number;	/* of this generator: names of files are its own */
	uint32_t uid;		/* who asks */
	uint32_t gid;
	uint32_t pad;
	uint64_t seed;
	uint64_t rate;		/* operations/s over all queues, evenly spaced; 0: as fast as they come back */
	uint64_t folder;	/* node of the folder that LOOKUP and CREATE work in, and that LIST lists */
};

struct fs_load_file {
	uint64_t node;
	uint64_t fh;		/* READ, WRITE */
	uint64_t ino;
	uint64_t size;
	char name[32];		/* FS_LOAD_NAME */
};

/* Guest memory of a queue; the caller keeps it until fs_load_free(). */
struct fs_load_memory {
	void *slots;		/* @depth pieces of FS_LOAD_SLOT_BYTES */
	uint64_t slots_gpa;
	void *data;		/* @depth blocks, @data_stride apart; NULL without data */
	uint64_t data_gpa;
	uint64_t data_stride;
};

struct fs_load_stats {
	struct gen_stats run;	/* of operations */
	uint64_t requests;	/* replies */
	uint64_t bytes;		/* of files or of listings */
	uint64_t entries;	/* LIST */
};

/* NULL without memory or if the configuration makes no sense. */
struct fs_load *fs_load_new(const struct fs_load_config *config);
void fs_load_free(struct fs_load *load);
/* What to work on; the caller keeps it. READ, WRITE: queue n of all generators takes file n, n + queues, ... */
void fs_load_set_files(struct fs_load *load, const struct fs_load_file *files, uint32_t nr);
/*
 * Add request queue @number of the device's @total. @listings: LIST only, @depth handles of open folders, which are
 * copied. The caller keeps the ring. 0, -ENOSPC, -ENOMEM.
 */
int fs_load_add_queue(struct fs_load *load, struct ring_drv *drv, int kick_fd, int call_fd,
		      const struct fs_load_memory *memory, const uint64_t *listings, uint32_t number, uint32_t total);
/* CREATE: the high-priority queue, and FS_LOAD_FORGETS pieces of FS_LOAD_SLOT_BYTES. 0, -ENOMEM. */
int fs_load_set_hiprio(struct fs_load *load, struct ring_drv *drv, int kick_fd, void *slots, uint64_t slots_gpa);
/*
 * Drive the queues for @duration_ns, or until fs_load_stop(), or as @mode says: GEN_ONCE is for READ and WRITE, every
 * block of every file. Statistics start anew. 0, -ETIME if GEN_ONCE or GEN_DRAIN did not end in time, -EIO once the
 * device broke a ring.
 */
int fs_load_run(struct fs_load *load, uint64_t duration_ns, int mode);
/* From any thread. */
void fs_load_stop(struct fs_load *load);
/* Of the last run; the pointer stays valid until fs_load_free(). */
const struct fs_load_stats *fs_load_stats(const struct fs_load *load);
/* READ or WRITE from now on, and whether blocks are compared or made. Nothing may be in flight. */
void fs_load_set_op(struct fs_load *load, uint32_t op, uint32_t verify);
/* cffi:end */

#endif
