/* SPDX-License-Identifier: Apache-2.0 */
/* load_int.h - inside of the load generator: slots and queues, requests and what is made of their replies. */
#ifndef FS_LOAD_INT_H
#define FS_LOAD_INT_H

#include <stdbool.h>

#include "devices/fs/csrc/load.h"
#include "ring/csrc/shm.h"

/* An operation in flight, or what the next one goes on from. */
struct load_slot {
	uint64_t unique;
	uint64_t node, fh;	/* CREATE: of the new file; LIST: fh of the open folder */
	uint64_t offset;	/* READ, WRITE: of the block; LIST: where the listing goes on */
	uint32_t file;
	uint32_t step;		/* CREATE: which request of the operation */
	uint32_t opcode;
	uint64_t seen, sum;	/* LIST: entries since the beginning, and what their numbers add up to */
	char own[FS_LOAD_NAME];	/* CREATE: name of its files */
	uint32_t own_len;	/* with the NUL; 0: not made yet */
};

struct load_queue {
	struct gen_queue gen;	/* first: a pointer to it is one to the queue */
	SHM uint8_t *slots;
	SHM uint8_t *data;
	uint64_t slots_gpa, data_gpa, data_stride;
	uint32_t number, total;
	/* READ, WRITE in order: where it is */
	uint32_t file;
	uint64_t block;
	struct load_slot slot[GEN_DEPTH];
};

/* The high-priority queue: requests without reply. */
struct load_hiprio {
	struct ring_drv *drv;
	int kick_fd;
	SHM uint8_t *slots;
	uint64_t slots_gpa;
	uint32_t nr_free;
	uint32_t dirty;
	uint16_t free[FS_LOAD_FORGETS];
};

struct fs_load {
	struct gen gen;		/* first, likewise */
	struct fs_load_config cfg;
	struct fs_load_stats stats;
	const struct fs_load_file *files;
	uint32_t nr_files;
	uint64_t random;	/* state of the generator */
	uint64_t unique;
	struct load_hiprio hiprio;
};

/* Choose what @slot's next operation is about. False: GEN_ONCE has nothing left for @q. */
bool load_begin_op(struct fs_load *load, struct load_queue *q, struct load_slot *slot);
/* Add the request of @nr's step to the ring. False: the ring is full. */
bool load_request(struct fs_load *load, struct load_queue *q, uint16_t nr);
/* Look at a reply of @len bytes. True: the operation is through; else its next request is to be sent. */
bool load_reply(struct fs_load *load, struct load_queue *q, uint16_t nr, uint32_t len);
/* Add a FORGET of one look-up to the high-priority queue, which may have to wait for room there. */
void load_forget(struct fs_load *load, uint64_t node);

#endif
