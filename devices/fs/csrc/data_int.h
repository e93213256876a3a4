/* SPDX-License-Identifier: Apache-2.0 */
/*
 * data_int.h - passthrough: what the files about data, space and locks share.
 */
#ifndef FS_DATA_INT_H
#define FS_DATA_INT_H

#include <pthread.h>

#include "devices/fs/csrc/pass_int.h"

enum {
	PASS_LOCK_RANGES = 4096,	/* of one owner; beyond: ENOLCK */
	PASS_LOCK_OWNERS = 4096,	/* of a file system, each an open description; beyond: ENOLCK */
};

/* --- io.c ------------------------------------------------------------------------------------------------------ */

/* The fh of a request need not be one of the inode that was asked about whether its calls may wait long. */
static inline bool pass_file_waits(struct pass *fs, const struct pass_file *file)
{
	return pass_inode_mount(fs, file->inode)->waits;
}

/* --- lock.c ---------------------------------------------------------------------------------------------------- */

/* Somebody else has it, and nobody waits: FS_AGAIN, after a pause that grows. */
int pass_again(struct fs_req *req);

struct lock_range {
	uint64_t start;
	uint64_t end;		/* inclusive; INT64_MAX: up to the end, however far that is */
	uint32_t type;		/* F_RDLCK, F_WRLCK; for setting F_UNLCK too */
};

struct lock_owner {
	struct lock_owner *next;
	uint64_t owner;		/* the guest's number for it */
	struct lock_range *ranges;	/* ordered, apart */
	uint32_t nr, room;
	uint32_t pid;		/* in the guest, of the last lock */
	int fd;
	uint32_t nr_notes;	/* keep.c */
	uint32_t *notes;
};

/* Of an inode; made with the first lock, kept as long as the inode. */
struct pass_locks {
	pthread_mutex_t mutex;	/* guards all below */
	struct lock_owner *owners;
};

/* Set or take away a lock: 0, -EAGAIN (somebody else holds it), -ENOLCK, -errno. */
int pass_locks_set(struct pass *fs, struct pass_inode *inode, uint64_t id, const struct lock_range *range,
		   uint32_t pid);
/* state.c: the kernel has none of them any more, take them anew. Returns how many somebody else has by now. */
uint64_t pass_locks_again(const struct pass_locks *locks);
/* The owner flushes: its locks go. */
void pass_locks_release(struct pass *fs, struct pass_inode *inode, uint64_t id);

#endif
