// SPDX-License-Identifier: Apache-2.0
/*
 * Passthrough under several threads at once: each does what a guest's requests do, honest ones and ones with numbers that
 * it made up. Afterwards everything that was known, open and kept must be gone.
 *
 * Usage: pass_stress [rounds per thread]
 */
#include <dirent.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "devices/fs/csrc/pass_int.h"

enum {
	THREADS = 4,
	NAMES = 24,
	DIRS = 4,
	SEEN = 64,		/* nodeids and fhs that threads share */
	ROOM = 8192,
};

#define CHECK(x) do { if (!(x)) { fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x); exit(1); } } while (0)

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

static _Atomic uint64_t nodes[SEEN], files[SEEN], dirs[SEEN];

struct guest {
	struct fs_server *server;
	struct fs_req req;
	struct ring_iov room, data;
	uint8_t bytes[ROOM];
	uint64_t random;
	uint64_t unique;
};

static uint32_t rnd(struct guest *g, uint32_t below)
{
	g->random ^= g->random << 13;
	g->random ^= g->random >> 7;
	g->random ^= g->random << 17;
	return (uint32_t)(g->random >> 33) % below;
}

/* Mostly something that was seen, sometimes anything. */
static uint64_t some(struct guest *g, _Atomic uint64_t *of)
{
	switch (rnd(g, 16)) {
	case 0:
		return rnd(g, 64);
	case 1:
		return (uint64_t)rnd(g, 8) << 32 | rnd(g, 64);
	case 2:
		return g->random;
	default:
		return atomic_load(&of[rnd(g, SEEN)]);
	}
}

static uint64_t some_dir(struct guest *g)
{
	return rnd(g, 3) ? atomic_load(&nodes[rnd(g, DIRS)]) : some(g, nodes);
}

static int call(struct guest *g, uint32_t opcode, uint64_t nodeid, const void *arg, size_t len, const char *name,
		const char *name2)
{
	struct fs_req *req = &g->req;
	int rc;

	memset(&req->arg, 0, sizeof(req->arg));
	if (len)
		memcpy(req->arg.bytes, arg, len);
	req->in = (struct fuse_in_header){.opcode = opcode, .nodeid = nodeid, .unique = g->unique += 2};
	req->server = g->server;
	req->name = name;
	req->name_len = name ? (uint32_t)strlen(name) : 0;
	req->name2 = name2;
	req->name2_len = name2 ? (uint32_t)strlen(name2) : 0;
	g->room = (struct ring_iov){.base = g->bytes, .len = ROOM};
	g->data = (struct ring_iov){.base = g->bytes, .len = 100};
	req->room = &g->room;
	req->nr_room = 1;
	req->room_len = ROOM;
	req->data = &g->data;
	req->nr_data = 1;
	req->data_len = 100;
	req->in_place = false;
	rc = g->server->ops->handle(g->server, req, false);
	if (rc == FS_SLOW)
		rc = g->server->ops->handle(g->server, req, true);
	CHECK(rc >= -511 || rc == FS_NONE || rc == FS_AGAIN);
	return rc;
}

static void name_of(struct guest *g, char name[8])
{
	static const char *const bad[] = {".", "..", "a/b", "/", "../x", "x/.."};

	if (rnd(g, 40) == 0)
		snprintf(name, 8, "%s", bad[rnd(g, 6)]);
	else
		snprintf(name, 8, "n%u", rnd(g, NAMES));
}

static void forget(struct guest *g, uint64_t nodeid, uint64_t n)
{
	struct fuse_forget_in in = {.nlookup = n};

	call(g, FUSE_FORGET, nodeid, &in, sizeof(in), NULL, NULL);
}

static void saw(struct guest *g, int rc)
{
	const struct fuse_entry_out *out = FS_OUT(&g->req, fuse_entry_out);

	if (rc < (int)sizeof(*out) || out->nodeid == 0)
		return;
	if (rnd(g, 2))
		atomic_store(&nodes[DIRS + rnd(g, SEEN - DIRS)], out->nodeid);
	else
		forget(g, out->nodeid, 1);
}

static void list(struct guest *g)
{
	struct fuse_read_in in = {.fh = some(g, dirs), .size = ROOM, .offset = rnd(g, 8) ? 0 : g->random >> 8};
	int rc = call(g, FUSE_READDIRPLUS, PASS_ROOT_ID, &in, sizeof(in), NULL, NULL);

	for (int at = 0; at < rc;) {
		struct fuse_direntplus entry;

		memcpy(&entry, g->bytes + at, FUSE_NAME_OFFSET_DIRENTPLUS);
		CHECK(entry.dirent.namelen <= FS_NAME_MAX);
		if (entry.entry_out.nodeid != 0 && rnd(g, 4))
			forget(g, entry.entry_out.nodeid, 1);
		at += (int)FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET_DIRENTPLUS + entry.dirent.namelen);
		CHECK(at <= rc);
	}
}

static void open_some(struct guest *g)
{
	struct fuse_open_in in = {.flags = O_RDWR};
	int rc;

	if (rnd(g, 2)) {
		rc = call(g, FUSE_OPEN, some(g, nodes), &in, sizeof(in), NULL, NULL);
		if (rc > 0)
			atomic_store(&files[rnd(g, SEEN)], FS_OUT(&g->req, fuse_open_out)->fh);
	} else {
		rc = call(g, FUSE_OPENDIR, some_dir(g), &in, sizeof(in), NULL, NULL);
		if (rc > 0)
			atomic_store(&dirs[rnd(g, SEEN)], FS_OUT(&g->req, fuse_open_out)->fh);
	}
}

static void close_some(struct guest *g)
{
	struct fuse_release_in in = {.fh = some(g, rnd(g, 2) ? files : dirs)};

	call(g, rnd(g, 2) ? FUSE_RELEASE : FUSE_RELEASEDIR, PASS_ROOT_ID, &in, sizeof(in), NULL, NULL);
}

static void create(struct guest *g, const char *name)
{
	struct fuse_create_in in = {.flags = O_RDWR | (rnd(g, 2) ? O_EXCL : 0), .mode = 0644};
	int rc = call(g, FUSE_CREATE, some_dir(g), &in, sizeof(in), name, NULL);

	if (rc < 0)
		return;
	atomic_store(&files[rnd(g, SEEN)],
		     ((struct fuse_open_out *)(void *)(g->req.out + sizeof(struct fuse_entry_out)))->fh);
	saw(g, rc);
}

static void io(struct guest *g)
{
	struct fuse_read_in in = {.fh = some(g, files), .size = 100, .offset = rnd(g, 1000)};

	call(g, rnd(g, 2) ? FUSE_READ : FUSE_WRITE, PASS_ROOT_ID, &in, sizeof(in), NULL, NULL);
}

static void round_of(struct guest *g)
{
	struct fuse_getattr_in getattr = {.getattr_flags = rnd(g, 2), .fh = some(g, files)};
	struct fuse_setattr_in setattr = {.valid = FATTR_SIZE | (rnd(g, 2) ? FATTR_MODE : 0), .size = rnd(g, 5000),
					  .mode = 0600};
	struct fuse_rename2_in rename = {.newdir = some_dir(g), .flags = rnd(g, 4) ? 0 : 1 + rnd(g, 2)};
	struct fuse_mknod_in mknod = {.mode = rnd(g, 2) ? S_IFREG | 0644 : S_IFIFO | 0644};
	struct fuse_mkdir_in mkdir = {.mode = 0755};
	struct fuse_link_in link = {.oldnodeid = some(g, nodes)};
	char name[8], name2[8];

	name_of(g, name);
	name_of(g, name2);
	switch (rnd(g, 20)) {
	case 0: case 1: case 2: case 3:
		saw(g, call(g, FUSE_LOOKUP, some_dir(g), NULL, 0, name, NULL));
		break;
	case 4: case 5:
		call(g, FUSE_GETATTR, some(g, nodes), &getattr, sizeof(getattr), NULL, NULL);
		break;
	case 6: case 7:
		create(g, name);
		break;
	case 8:
		saw(g, call(g, FUSE_MKDIR, some_dir(g), &mkdir, sizeof(mkdir), name, NULL));
		break;
	case 9:
		call(g, rnd(g, 4) ? FUSE_UNLINK : FUSE_RMDIR, some_dir(g), NULL, 0, name, NULL);
		break;
	case 10:
		call(g, FUSE_RENAME2, some_dir(g), &rename, sizeof(rename), name, name2);
		break;
	case 11:
		saw(g, call(g, FUSE_LINK, some_dir(g), &link, sizeof(link), name, NULL));
		break;
	case 12:
		saw(g, call(g, FUSE_SYMLINK, some_dir(g), NULL, 0, name, "target"));
		call(g, FUSE_READLINK, some(g, nodes), NULL, 0, NULL, NULL);
		break;
	case 13:
		saw(g, call(g, FUSE_MKNOD, some_dir(g), &mknod, sizeof(mknod), name, NULL));
		break;
	case 14:
		call(g, FUSE_SETATTR, some(g, nodes), &setattr, sizeof(setattr), NULL, NULL);
		break;
	case 15:
		open_some(g);
		break;
	case 16:
		close_some(g);
		break;
	case 17:
		list(g);
		break;
	case 18:
		io(g);
		break;
	default:
		forget(g, some(g, nodes), 1 + rnd(g, 3));
	}
}

struct job {
	struct fs_server *server;
	uint32_t number, rounds;
};

static void *honest_and_not(void *arg)
{
	const struct job *job = arg;
	struct guest *g = calloc(1, sizeof(*g));

	CHECK(g != NULL);
	g->server = job->server;
	g->random = 0x9e3779b97f4a7c15ull * (job->number + 1);
	for (uint32_t i = 0; i < job->rounds; i++)
		round_of(g);
	free(g);
	return NULL;
}

/* All look the same names up and forget as often as they looked: nothing may be left, and nothing be lost before. */
static void *only_honest(void *arg)
{
	const struct job *job = arg;
	struct guest *g = calloc(1, sizeof(*g));
	struct fuse_getattr_in getattr = {0};

	CHECK(g != NULL);
	g->server = job->server;
	g->random = 0x9e3779b97f4a7c15ull * (job->number + 1);
	for (uint32_t i = 0; i < job->rounds; i++) {
		uint64_t node;
		char name[8];

		snprintf(name, sizeof(name), "h%u", rnd(g, 6));
		CHECK(call(g, FUSE_LOOKUP, PASS_ROOT_ID, NULL, 0, name, NULL) > 0);
		node = FS_OUT(&g->req, fuse_entry_out)->nodeid;
		CHECK(call(g, FUSE_GETATTR, node, &getattr, sizeof(getattr), NULL, NULL) > 0);
		if (rnd(g, 4) == 0)
			sched_yield();
		forget(g, node, 1);
	}
	free(g);
	return NULL;
}

static void run(struct fs_server *server, void *(*what)(void *), uint32_t rounds)
{
	pthread_t threads[THREADS];
	struct job jobs[THREADS];

	for (uint32_t i = 0; i < THREADS; i++) {
		jobs[i] = (struct job){.server = server, .number = i, .rounds = rounds};
		CHECK(pthread_create(&threads[i], NULL, what, &jobs[i]) == 0);
	}
	for (uint32_t i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
}

static int fds_open(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(dir) != NULL)
		n++;
	closedir(dir);
	return n;
}

static void make_dirs(struct fs_server *server)
{
	struct guest *g = calloc(1, sizeof(*g));
	struct fuse_mkdir_in mkdir = {.mode = 0755};

	CHECK(g != NULL);
	g->server = server;
	g->random = 1;
	for (uint32_t i = 0; i < SEEN; i++)
		atomic_store(&nodes[i], PASS_ROOT_ID);
	for (uint32_t i = 1; i < DIRS; i++) {
		char name[8];

		snprintf(name, sizeof(name), "d%u", i);
		if (call(g, FUSE_MKDIR, PASS_ROOT_ID, &mkdir, sizeof(mkdir), name, NULL) < 0)
			CHECK(call(g, FUSE_LOOKUP, PASS_ROOT_ID, NULL, 0, name, NULL) > 0);
		atomic_store(&nodes[i], FS_OUT(&g->req, fuse_entry_out)->nodeid);
	}
	free(g);
}

static void expect_nothing(struct fs_server *server)
{
	struct pass_stats stats;

	pass_get_stats(server, &stats);
	CHECK(stats.inodes == 1 && stats.files == 0 && stats.fds == 1 && stats.locks == 0);
}

static void one(const char *path, uint32_t handles, uint32_t max_fds, uint32_t rounds)
{
	struct pass_options opt = {
		.handles = handles, .max_fds = max_fds, .max_files = 64, .max_inodes = 1000, .readdirplus = true,
		.submounts = true, .posix_lock = true, .flock = true, .xattr = true, .killpriv_v2 = true,
	};
	int error, before = fds_open();
	struct pass_stats stats;
	struct fs_server *server;

	opt.root_fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	opt.proc_fd = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	server = pass_new(&opt, &error);
	CHECK(server != NULL);
	close(opt.root_fd);
	close(opt.proc_fd);

	run(server, only_honest, rounds);
	expect_nothing(server);
	make_dirs(server);
	run(server, honest_and_not, rounds);
	pass_get_stats(server, &stats);
	CHECK(stats.fds <= max_fds + 1);
	printf("handles %u: %llu inodes, %llu files, %llu fds (%llu opened, %llu evicted), %llu stale\n", handles,
	       (unsigned long long)stats.inodes, (unsigned long long)stats.files, (unsigned long long)stats.fds,
	       (unsigned long long)stats.fds_opened, (unsigned long long)stats.fds_evicted,
	       (unsigned long long)stats.stale);
	server->ops->reset(server);
	expect_nothing(server);
	make_dirs(server);		/* it goes on after a reset */
	run(server, honest_and_not, rounds / 10);
	server->ops->free(server);
	CHECK(fds_open() == before);
}

int main(int argc, char **argv)
{
	uint32_t rounds = argc > 1 ? (uint32_t)atoi(argv[1]) : 5000;
	char path[] = "/tmp/pass_stress.XXXXXX", command[64];

	CHECK(mkdtemp(path) != NULL);
	for (int i = 0; i < 6; i++) {
		char name[64];

		snprintf(name, sizeof(name), "%s/h%d", path, i);
		close(open(name, O_CREAT | O_WRONLY, 0644));
	}
	one(path, PASS_HANDLES_PREFER, 12, rounds);
	one(path, PASS_HANDLES_NEVER, 200, rounds);
	snprintf(command, sizeof(command), "rm -rf %s", path);
	return system(command) == 0 ? 0 : 1;
}
