// SPDX-License-Identifier: Apache-2.0
/*
 * apart.c - a process with process numbers of its own: what it may kill is its own.
 */
#include <errno.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "devices/gpu/render/csrc/render.h"

static long apart(uint64_t flags)
{
	struct clone_args args = {.flags = flags, .exit_signal = SIGCHLD};

	return syscall(SYS_clone3, &args, sizeof(args));
}

int render_fork_apart(void)
{
	long pid = apart(CLONE_NEWPID);

	if (pid < 0 && errno == EPERM)
		pid = apart(CLONE_NEWPID | CLONE_NEWUSER);
	return pid < 0 ? -errno : (int)pid;
}
