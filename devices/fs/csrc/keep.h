/* SPDX-License-Identifier: Apache-2.0 */
/*
 * keep.h - passthrough: what a guest knows of a folder, in a file that outlives this process (what Python sees).
 */
#ifndef FS_KEEP_H
#define FS_KEEP_H

#include "devices/fs/csrc/state.h"

/* cffi:begin */
/*
 * No queue runs yet: take over what the process before left in the file of pass_options.keep_fd, @handles as in
 * pass_state_load(). What has no name any more can also be one of the @nr descriptors at @fds, the caller's. 1: there was
 * something, @report says what; 0: nothing; -EPROTO: it is of another version of this program; else as pass_state_load():
 * nothing was taken over. From now on the file is about this process.
 */
int pass_keep_load(struct fs_server *server, int handles, const int *fds, uint32_t nr, struct pass_state *report);
/*
 * Any time: of what the guest has open and nobody can open again, for it has no name any more, copies of the first @room
 * descriptors to @fds, the caller's. Returns how many there are; those that could not be copied are -1.
 */
uint32_t pass_keep_deleted(struct fs_server *server, int *fds, uint32_t room);
/* The process ends, no queue runs: write down what only a clean end can (paths), and let go of the locks. 0, -errno. */
int pass_keep_end(struct fs_server *server);
/* It goes on after all: what was written down is no longer true. */
void pass_keep_again(struct fs_server *server);
/* cffi:end */

#endif
