/* SPDX-License-Identifier: Apache-2.0 */
/*
 * state.h - passthrough: what a guest knows of a folder, as bytes for another process.
 */
#ifndef FS_STATE_H
#define FS_STATE_H

#include "devices/fs/csrc/pass.h"

/* cffi:begin */
struct pass_state {
	uint8_t *bytes;		/* pass_state_free() */
	uint64_t len;
	uint64_t inodes;	/* of the guest, the root left out */
	uint64_t inodes_lost;	/* saved: without a path; loaded: not found */
	uint64_t files;
	uint64_t files_lost;	/* loaded: could not be opened */
	uint64_t locks;		/* ranges, and locks of whole files */
	uint64_t locks_lost;	/* loaded: somebody else has them */
};

/*
 * While nothing is in flight: describe inodes, open files and locks. The locks are let go of, so that whoever takes over
 * can have them; pass_state_resume() takes them back. 0, -ENOMEM.
 */
int pass_state_save(struct fs_server *server, struct pass_state *out);
void pass_state_free(struct pass_state *state);
/* It goes on here after all. Returns how many locks somebody else has by now. */
uint64_t pass_state_resume(struct fs_server *server);
/*
 * Take over what @bytes say, in place of all that was known. @handles: also find files by their handle, which may lead
 * outside the folder: only for bytes that can be trusted as far as the file system goes. Fills @report's counts.
 * 0; -EINVAL: they are no such state, with where in report->len; -ENOMEM, -EOVERFLOW: more than our options allow.
 */
int pass_state_load(struct fs_server *server, const uint8_t *bytes, uint64_t len, int handles,
		    struct pass_state *report);
/* cffi:end */

#endif
