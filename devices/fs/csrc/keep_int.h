/* SPDX-License-Identifier: Apache-2.0 */
/*
 * keep_int.h - inside of the file that outlives this process.
 *
 * Theory of operation
 *   The tables of inodes, open files and locks lie in the file itself, mapped shared: what a kill leaves is what was
 *   there at its last instruction. A slot's word is written last where it comes into use and first where it goes, so
 *   that a slot with references is whole.
 *
 *   Two areas take turns. A new process reads one, fills the other, and then says in the file's first bytes which one
 *   counts: a kill at any moment leaves one that is whole. Both are sparse, the one that does not count is empty.
 *
 *   A clean end writes behind the chunks what state.c makes of it, with the paths of what has no file handle.
 */
#ifndef FS_KEEP_INT_H
#define FS_KEEP_INT_H

#include "devices/fs/csrc/data_int.h"
#include "devices/fs/csrc/keep.h"

#define KEEP_MAGIC 0x317065656b6b6876ull	/* "vhkkeep1" */
#define KEEP_FRONT 4096ull			/* bytes before the areas */
#define KEEP_AREA (64ull << 30)			/* from one to the next */
#define KEEP_HEAD (256ull << 10)
#define KEEP_STRIDE (512ull << 10)		/* from chunk to chunk */

enum {
	KEEP_CHUNKS = 49152,
	KEEP_NOTES = 1 << 18,			/* lock ranges that are written down */
};

struct keep_front {
	uint64_t magic;
	uint64_t active;			/* 1 or 2: the area that counts; 0: none does */
};

struct keep_head {
	uint64_t magic;
	uint32_t inode_bytes, file_bytes, note_bytes, chunk_slots;	/* what this program was compiled with */
	uint32_t root_mount, root_index;
	uint64_t fs_type, fs_id;
	uint32_t minor, driver_minor, max_write, pad;
	uint64_t flags, offered;
	uint64_t epoch;				/* processes before this one */
	uint64_t clean;				/* bytes of state behind the chunks; 0: the tables count */
	uint64_t seq;				/* of the newest note */
	uint32_t nr_chunks;
	uint32_t chunks[KEEP_CHUNKS];		/* kind << 24 | index in its table */
};

_Static_assert(sizeof(struct keep_head) <= KEEP_HEAD, "the head has room");
_Static_assert(PASS_CHUNK * sizeof(struct pass_inode) <= KEEP_STRIDE, "inodes have room");
_Static_assert(PASS_CHUNK * sizeof(struct pass_file) <= KEEP_STRIDE, "files have room");
_Static_assert(KEEP_HEAD + (KEEP_CHUNKS + 1) * KEEP_STRIDE < KEEP_AREA, "areas are apart");

/* A range that an owner holds. */
struct keep_note {
	_Atomic uint64_t word;
	uint32_t index, next;
	uint64_t seq;			/* later ones win */
	uint64_t nodeid;
	uint64_t owner;
	uint64_t start, end;
	uint32_t type, pid;
};

struct pass_keep {
	int fd;
	uint32_t area;			/* ours: 1 or 2 */
	uint32_t old;			/* of the process before; 0: none */
	struct keep_head *head;		/* of ours, mapped */
	pthread_mutex_t lock;		/* of head->chunks, head->seq */
};

static inline off_t keep_at(uint32_t area)
{
	return (off_t)(KEEP_FRONT + (area - 1) * KEEP_AREA);
}

/* Empty the area. */
void pass_keep_punch(const struct pass_keep *keep, uint32_t area);
/* Say that it counts. */
int pass_keep_activate(struct pass_keep *keep);

#endif
