/* SPDX-License-Identifier: Apache-2.0 */
/*
 * window.h - DAX: files that guests map, in a window of shared memory of the device (what Python sees).
 */
#ifndef FS_WINDOW_H
#define FS_WINDOW_H

#include "devices/fs/csrc/pass.h"

/* cffi:begin */
enum {
	PASS_WINDOW_UNIT = 2097152,	/* offsets are multiples of it; what Linux maps at once */
	PASS_WINDOW_CUTS = 256,		/* ranges of one REMOVEMAPPING */
};

struct pass_range64 {
	uint64_t at, len;
};

/* Something to tell the front-end: map, or take away. */
struct pass_errand {
	uint64_t epoch;		/* of the window when it was asked for */
	uint64_t nodeid;	/* of the file */
	int32_t fd;		/* map: the errand's; -1: take away */
	bool want_write;
	bool writable;		/* map: @fd allows it */
	uint64_t offset;	/* in the file */
	uint32_t nr;		/* of @ranges, one to map */
	struct pass_range64 ranges[256];	/* PASS_WINDOW_CUTS; in the window, checked: it has them */
};

/*
 * Before a queue starts: the front-end has a window of @bytes, a multiple of PASS_WINDOW_UNIT; 0: it has none. Errands
 * become readable at the returned eventfd, the server's; -errno.
 */
int pass_window_open(struct fs_server *server, uint64_t bytes);
/* Grows when the guest has mounted anew: nothing is mapped any more. */
uint64_t pass_window_epoch(struct fs_server *server);
/* The next errand, in order; NULL: none now. */
struct pass_errand *pass_window_next(struct fs_server *server);
/* It is done, with 0 or -errno; @errand is no more. */
void pass_window_done(struct fs_server *server, struct pass_errand *errand, int result);
/* Nobody does errands any more: those that wait fail with -EIO, later ones too until the next pass_window_open(). */
void pass_window_close(struct fs_server *server);
/* cffi:end */

#endif
