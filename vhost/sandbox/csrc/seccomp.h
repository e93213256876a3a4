/* SPDX-License-Identifier: Apache-2.0 */
/* seccomp.h - a filter of system calls, by libseccomp. */
#ifndef SANDBOX_SECCOMP_H
#define SANDBOX_SECCOMP_H

#include <stdint.h>

/* cffi:begin */
enum {
	FILTER_DENY = 0,	/* others fail with EPERM */
	FILTER_KILL = 1,	/* others end the process */
	FILTER_LOG = 2,		/* others are logged by the kernel, and pass */
};

/* A system call that is allowed; of one with a mask only where argument @arg & @mask == @value. */
struct filter_call {
	const char *name;
	int arg;
	uint64_t mask;		/* 0: always */
	uint64_t value;
};

/*
 * From now on the calling thread, and what it makes, does only @calls. A name this machine or libseccomp does not have is
 * passed over. 0 or -errno.
 */
int filter_apply(const struct filter_call *calls, int nr, int others);
/* cffi:end */

#endif
