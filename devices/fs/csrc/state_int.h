/* SPDX-License-Identifier: Apache-2.0 */
/*
 * state_int.h - the bytes that state.c makes of what a guest knows.
 *
 * Layout: a header, then records, each { kind, bytes that follow }, its bytes a multiple of 8; all little-endian. Numbers
 * that the guest holds (nodeid, fh, lock owner) stay what they are, so that it notices nothing.
 */
#ifndef FS_STATE_INT_H
#define FS_STATE_INT_H

#include "devices/fs/csrc/data_int.h"
#include "devices/fs/csrc/state.h"

#define STATE_MAGIC 0x316b6873666b6876ull	/* "vhkfshk1" */

enum {
	RECORD_INODE = 1,
	RECORD_FILE = 2,
	RECORD_LOCKS = 3,
	RECORD_END = 4,
	STATE_PATH_MAX = 4096,
};

struct state_header {
	uint64_t magic;
	uint32_t bytes;			/* of this header */
	uint32_t minor;
	uint64_t flags;
	uint64_t offered;
	uint32_t driver_minor;
	uint32_t max_write;
	uint64_t fs_type;
	uint64_t fs_id;			/* of the folder's file system; 0: unknown */
};

struct record {
	uint32_t kind;
	uint32_t len;			/* bytes after this, a multiple of 8 */
};

struct inode_record {
	uint64_t nodeid;
	uint64_t nlookup;
	uint64_t ino;
	uint64_t btime;
	uint32_t type;			/* S_IFMT >> 12 */
	int32_t handle_type;
	uint16_t handle_len;
	uint16_t path_len;		/* then handle, path */
	uint32_t in_root;		/* it lies in the mount of the folder itself */
};

struct file_record {
	uint64_t fh;
	uint64_t nodeid;
	uint32_t flags;
	uint32_t flock;
};

struct locks_record {
	uint64_t nodeid;
	uint64_t owner;
	uint32_t pid;
	uint32_t nr;			/* ranges that follow */
};

struct range_record {
	uint64_t start, end;
	uint64_t type;
};

/* Bytes on their way out; @failed: there was no memory for some. */
struct state_bytes {
	uint8_t *bytes;
	size_t len, room;
	bool failed;
};

/* How files are found that have no path. */
struct state_means {
	bool handles;			/* by their handles */
	const int *fds;			/* among these descriptors, the caller's */
	uint32_t nr;
};

/* As pass_state_load(). */
int state_load(struct fs_server *server, const uint8_t *bytes, uint64_t len, const struct state_means *means,
	       struct pass_state *report);

void state_put(struct state_bytes *to, const void *from, size_t len);
/* What comes before the @len bytes of a record, and what fills them up behind. */
void state_put_record(struct state_bytes *to, uint32_t kind, size_t len);
void state_put_padding(struct state_bytes *to);

#endif
