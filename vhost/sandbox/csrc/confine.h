/* SPDX-License-Identifier: Apache-2.0 */
/*
 * confine.h - what a process gives up: namespaces, its root, Landlock. System calls only; what to give up is decided in
 * Python (vhost/sandbox).
 *
 * All of it is of the calling thread, and of threads and children it makes from then on: called by a process that has one thread.
 */
#ifndef SANDBOX_CONFINE_H
#define SANDBOX_CONFINE_H

#include <stdint.h>

/* cffi:begin */
enum {
	CONFINE_READ = 1,	/* read files and folders */
	CONFINE_ALL = 2,	/* everything the kernel's Landlock knows */
};

/* Namespaces of mounts, network, IPC and host name (@what), of users (@user). 0 or -errno. */
int confine_unshare(int what, int user);
/*
 * A new root that holds nothing but the @nr folders @paths, absolute: an empty, read-only file system with them in their
 * places, read-only, and what is mounted below them. After confine_unshare(). 0 or -errno; @step gets what failed.
 */
int confine_root(const char *const *paths, int nr, const char **step);
/* Another root in the present mount namespace. 0 or -errno. */
int confine_chroot(int fd);
/* No new privileges by execve(). 0 or -errno. */
int confine_no_new_privs(void);
/* The kernel's Landlock ABI: 1 or more, -ENOSYS, -EOPNOTSUPP. */
int confine_landlock_abi(void);
/* Only what @allow[i] (CONFINE_*) says about what is beneath @fds[i]. 0 or -errno. */
int confine_landlock(const int *fds, const uint32_t *allow, int nr);
/* cffi:end */

#endif
