// SPDX-License-Identifier: Apache-2.0
/*
 * What passthrough's commonest requests cost: the system calls of each are counted by a tracer.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "devices/fs/csrc/pass_int.h"

enum { ROOM = 8192, FILES = 20 };

#define CHECK(x) do { if (!(x)) { fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x); _exit(1); } } while (0)
#define MARK() syscall(SYS_getppid)	/* nothing else here asks for it */

/* The core: no queues here. */
int fs_server_init(struct fs_server *server, const struct fs_server_ops *ops, uint64_t can)
{
	server->ops = ops;
	server->can = server->flags = can;
	server->minor = 38;
	return 0;
}

void fs_server_exit(struct fs_server *server)
{
	(void)server;
}

/* What is asked for between two marks, in their order, and the most calls it may take. */
static const struct {
	const char *what;
	int most;
} steps[] = {
	{"LOOKUP of what is known", 1},
	{"LOOKUP of what is not there", 1},
	{"LOOKUP of what is new", 2},
	{"GETATTR with its descriptor kept", 1},
	{"GETATTR of what has none yet", 3},	/* by its handle, and once a look whether it is the same */
	{"FORGET", 0},
	{"READDIRPLUS of what is known", FILES + 4},	/* one each, getdents64 twice, memory to read into */
	{"GETATTR of an open file", 1},
	{"READDIRPLUS of what is new", 2 * FILES + 4},
	{"CREATE", 3},		/* it, its attributes, its handle */
	{"WRITE", 1},
	{"RELEASE of a small file", 1},
	{"UNLINK of a small file", 1},
};

enum { STEPS = sizeof(steps) / sizeof(steps[0]) };

static struct fs_req req;
static struct ring_iov room;
static uint8_t bytes[ROOM];
static struct fs_server *server;

static int call(uint32_t opcode, uint64_t nodeid, const void *arg, size_t len, const char *name)
{
	memset(&req, 0, sizeof(req));
	if (len)
		memcpy(req.arg.bytes, arg, len);
	req.in = (struct fuse_in_header){.opcode = opcode, .nodeid = nodeid, .unique = 2};
	req.server = server;
	req.name = name;
	req.name_len = name ? (uint32_t)strlen(name) : 0;
	room = (struct ring_iov){.base = bytes, .len = ROOM};
	req.room = &room;
	req.nr_room = 1;
	req.room_len = ROOM;
	if (opcode == FUSE_WRITE) {
		req.data = &room;
		req.nr_data = 1;
		req.data_len = ROOM;
	}
	return server->ops->handle(server, &req, false);
}

static uint64_t lookup(const char *name)
{
	CHECK(call(FUSE_LOOKUP, PASS_ROOT_ID, NULL, 0, name) > 0);
	return FS_OUT(&req, fuse_entry_out)->nodeid;
}

static void getattr(uint64_t node, uint64_t fh)
{
	struct fuse_getattr_in in = {.getattr_flags = fh ? FUSE_GETATTR_FH : 0, .fh = fh};

	CHECK(call(FUSE_GETATTR, node, &in, sizeof(in), NULL) > 0);
}

static void forget(uint64_t node, uint64_t n)
{
	struct fuse_forget_in in = {.nlookup = n};

	CHECK(call(FUSE_FORGET, node, &in, sizeof(in), NULL) == FS_NONE);
}

static uint64_t open_node(uint32_t opcode, uint64_t node)
{
	struct fuse_open_in in = {.flags = O_RDONLY};

	CHECK(call(opcode, node, &in, sizeof(in), NULL) > 0);
	return FS_OUT(&req, fuse_open_out)->fh;
}

static void list(uint64_t fh)
{
	struct fuse_read_in in = {.fh = fh, .size = ROOM};

	CHECK(call(FUSE_READDIRPLUS, PASS_ROOT_ID, &in, sizeof(in), NULL) > FILES * (int)FUSE_NAME_OFFSET_DIRENTPLUS);
}

/* Of a new file. The umask is the thread's own from the first one on. */
static void life(void)
{
	struct fuse_create_in create = {.flags = O_RDWR | O_CREAT | O_EXCL, .mode = 0644};
	struct fuse_write_in write = {.size = sizeof(bytes)};
	struct fuse_release_in release = {0};
	uint64_t node;

	CHECK(call(FUSE_CREATE, PASS_ROOT_ID, &create, sizeof(create), "first") > 0);
	MARK();
	CHECK(call(FUSE_CREATE, PASS_ROOT_ID, &create, sizeof(create), "new") > 0);
	node = FS_OUT(&req, fuse_entry_out)->nodeid;
	write.fh = release.fh = ((struct fuse_open_out *)(void *)(FS_OUT(&req, fuse_entry_out) + 1))->fh;
	MARK();
	CHECK(call(FUSE_WRITE, node, &write, sizeof(write), NULL) > 0);
	MARK();
	CHECK(call(FUSE_RELEASE, node, &release, sizeof(release), NULL) == 0);
	MARK();
	CHECK(call(FUSE_UNLINK, PASS_ROOT_ID, NULL, 0, "new") == 0);
	MARK();
}

/* Its mounts and its root are seen once before. */
static void guest(void)
{
	uint64_t node = lookup("f0"), other = lookup("f1"), fh, dir;
	struct fuse_getattr_in in = {0};

	getattr(node, 0);
	MARK();
	lookup("f0");
	MARK();
	CHECK(call(FUSE_LOOKUP, PASS_ROOT_ID, NULL, 0, "nothing") == -ENOENT);
	MARK();
	node = lookup("f2");
	MARK();
	getattr(lookup("f0"), 0);	/* a LOOKUP with it, taken off below */
	MARK();
	CHECK(call(FUSE_GETATTR, other, &in, sizeof(in), NULL) > 0);
	MARK();
	forget(node, 1);
	MARK();
	for (int i = 0; i < FILES; i++) {
		char name[16];

		snprintf(name, sizeof(name), "f%d", i);
		lookup(name);
	}
	dir = open_node(FUSE_OPENDIR, PASS_ROOT_ID);
	fh = open_node(FUSE_OPEN, other);
	MARK();
	list(dir);
	MARK();
	getattr(other, fh);
	MARK();
	server->ops->reset(server);
	lookup("f0");			/* the mount is seen again */
	forget(lookup("f0"), 1);
	dir = open_node(FUSE_OPENDIR, PASS_ROOT_ID);
	MARK();
	list(dir);
	MARK();
	life();
}

static void traced(const char *path)
{
	struct pass_options opt = {.handles = PASS_HANDLES_PREFER, .max_fds = 100, .max_files = 64, .max_inodes = 1000,
				   .readdirplus = true};
	int error;

	opt.root_fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	opt.proc_fd = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	server = pass_new(&opt, &error);
	CHECK(server != NULL);
	CHECK(ptrace(PTRACE_TRACEME, 0, 0, 0) == 0);
	raise(SIGSTOP);
	guest();
	_exit(0);
}

/* The number of a system call that begins, else -1. */
static long begun(pid_t child)
{
	struct __ptrace_syscall_info info;

	if (ptrace(PTRACE_GET_SYSCALL_INFO, child, sizeof(info), &info) <= 0)
		return -1;
	return info.op == PTRACE_SYSCALL_INFO_ENTRY ? (long)info.entry.nr : -1;
}

static int trace(pid_t child)
{
	/* the parts between marks that are counted; the one in which all is looked up is not, nor the one after the reset */
	static const int step_of[] = {-1, 0, 1, 2, 3, 4, 5, -1, 6, 7, -1, 8, -1, 9, 10, 11, 12};
	int counts[STEPS] = {0}, part = 0, status, failed = 0;

	CHECK(waitpid(child, &status, 0) == child && WIFSTOPPED(status));
	ptrace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
	for (;;) {
		long nr;

		CHECK(ptrace(PTRACE_SYSCALL, child, 0, 0) == 0);
		CHECK(waitpid(child, &status, 0) == child);
		if (WIFEXITED(status) || WIFSIGNALED(status))
			break;
		nr = begun(child);
		if (nr == SYS_getppid)
			part++;
		else if (nr >= 0 && part < (int)(sizeof(step_of) / sizeof(step_of[0])) && step_of[part] >= 0)
			counts[step_of[part]]++;
	}
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	counts[3]--;			/* the LOOKUP that came with it */
	for (int i = 0; i < STEPS; i++) {
		printf("%s: %d\n", steps[i].what, counts[i]);
		if (counts[i] > steps[i].most) {
			fprintf(stderr, "%s: %d system calls, not %d\n", steps[i].what, counts[i], steps[i].most);
			failed = 1;
		}
	}
	return failed;
}

int main(void)
{
	char path[] = "/tmp/pass_calls.XXXXXX", command[64];
	int fd, failed;
	pid_t child;

	CHECK(mkdtemp(path) != NULL);
	for (int i = 0; i < FILES; i++) {
		char name[64];

		snprintf(name, sizeof(name), "%s/f%d", path, i);
		close(open(name, O_CREAT | O_WRONLY, 0644));
	}
	fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (pass_try_handles(fd) < 0) {
		printf("skipped: no file handles in /tmp\n");
		return 0;
	}
	close(fd);
	child = fork();
	if (child == 0)
		traced(path);
	failed = trace(child);
	snprintf(command, sizeof(command), "rm -rf %s", path);
	return system(command) == 0 ? failed : 1;
}
