/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fs_native.c - the system calls that a shared folder's requests come to, from a program on the host.
 *
 *   fs_native OP FOLDER FILES SIZE BLOCK PIECE BUFFERS NS CPU
 *
 * OP as `vhost bench fs` has it, in a folder made as it makes it. Prints operations, entries listed, nanoseconds, and
 * the median time of one in picoseconds.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 8, ENTRIES = 32768, IOVECS = 512, TIMES = 1 << 16 };

static int folder;
static uint64_t files, size, block, piece, buffers, entries;
static int *fds;
static char *data;
static uint64_t state = 0x9e3779b97f4a7c15ULL, turn;

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000U + (uint64_t)ts.tv_nsec;
}

static uint64_t below(uint64_t bound)
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return (uint64_t)(((unsigned __int128)(state * 0x2545f4914f6cdd1dULL) * bound) >> 64);
}

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void open_files(const char *form, int flags)
{
	char name[64];

	fds = calloc(files, sizeof(fds[0]));
	for (uint64_t i = 0; i < files; i++) {
		snprintf(name, sizeof(name), form, (unsigned int)i, (unsigned long)size);
		fds[i] = openat(folder, name, flags);
		if (fds[i] < 0)
			die(name);
	}
}

static void one_getattr(void)
{
	struct stat st;

	if (fstatat(fds[below(files)], "", &st, AT_EMPTY_PATH) < 0)
		die("fstatat");
}

static void one_lookup(void)
{
	struct stat st;
	char name[16];

	/* as short as can be: what is measured is the call */
	memcpy(name, "f000000", 8);
	for (uint64_t i = below(files), at = 6; i; i /= 10, at--)
		name[at] = (char)('0' + i % 10);
	if (fstatat(folder, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		die("fstatat");
}

static int pieces(struct iovec *iov)
{
	char *at = data + (turn++ % buffers) * ((block + 4095) / 4096 * 4096);
	int n = 0;

	for (uint64_t left = block; left; n++) {
		iov[n].iov_base = at;
		iov[n].iov_len = left < piece ? left : piece;
		at += iov[n].iov_len;
		left -= iov[n].iov_len;
	}
	return n;
}

static void one_read(void)
{
	struct iovec iov[IOVECS];

	if (preadv(fds[0], iov, pieces(iov), (off_t)(block * below(size / block))) != (ssize_t)block)
		die("preadv");
}

static void one_write(void)
{
	struct iovec iov[IOVECS];

	if (pwritev(fds[0], iov, pieces(iov), (off_t)(block * below(size / block))) != (ssize_t)block)
		die("pwritev");
}

static void one_list(void)
{
	static char buf[ENTRIES];
	static long have, at;
	struct stat st;

	/* one entry; getdents64 where they are used up */
	if (at == have) {
		at = 0;
		have = syscall(SYS_getdents64, folder, buf, sizeof(buf));
		if (have < 0)
			die("getdents64");
		if (have == 0) {
			lseek(folder, 0, SEEK_SET);
			return;
		}
	}
	struct dirent64 *entry = (struct dirent64 *)(void *)(buf + at);

	if (fstatat(folder, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		die("fstatat");
	at += entry->d_reclen;
	entries++;
}

static void one_create(void)
{
	int fd = openat(folder, "native", O_CREAT | O_EXCL | O_RDWR, 0644);

	if (fd < 0 || pwrite(fd, data, block, 0) != (ssize_t)block || close(fd) < 0 || unlinkat(folder, "native", 0) < 0)
		die("create");
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name, *form;
		int flags;
		void (*one)(void);
	} ops[] = {
		{ "getattr", "f%06u", O_PATH, one_getattr }, { "lookup", NULL, 0, one_lookup },
		{ "read", "d%06u-%lu", O_RDONLY, one_read }, { "write", "d%06u-%lu", O_RDWR, one_write },
		{ "list", NULL, 0, one_list }, { "create", NULL, 0, one_create },
	};
	static uint64_t times[TIMES];
	uint64_t done = 0, start, end, ns, batches = 0, last;
	cpu_set_t cpus;
	size_t op = 0;

	if (argc != 10)
		return 2;
	folder = open(argv[2], O_RDONLY | O_DIRECTORY);
	if (folder < 0)
		die(argv[2]);
	files = strtoull(argv[3], NULL, 10);
	size = strtoull(argv[4], NULL, 10);
	block = strtoull(argv[5], NULL, 10);
	piece = strtoull(argv[6], NULL, 10);
	buffers = strtoull(argv[7], NULL, 10);
	ns = strtoull(argv[8], NULL, 10);
	CPU_ZERO(&cpus);
	CPU_SET((size_t)atoi(argv[9]), &cpus);
	sched_setaffinity(0, sizeof(cpus), &cpus);
	if (piece == 0)
		piece = block;
	while (op < sizeof(ops) / sizeof(ops[0]) && strcmp(argv[1], ops[op].name))
		op++;
	if (op == sizeof(ops) / sizeof(ops[0]) || (block + piece - 1) / piece > IOVECS)
		return 2;
	if (ops[op].form)
		open_files(ops[op].form, ops[op].flags);
	/* shared, as guest memory is */
	data = mmap(NULL, buffers * ((block + 4095) / 4096 * 4096), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (data == MAP_FAILED)
		die("mmap");
	memset(data, 1, buffers * ((block + 4095) / 4096 * 4096));
	for (int i = 0; i < 1000 && block < 65536; i++)
		ops[op].one();
	entries = 0;
	end = start = now_ns();
	do {
		last = end;
		for (int i = 0; i < BATCH; i++)
			ops[op].one();
		done += BATCH;
		end = now_ns();
		times[batches++ % TIMES] = end - last;
	} while (end - start < ns);
	if (batches > TIMES)
		batches = TIMES;
	qsort(times, batches, sizeof(times[0]), by_size);
	printf("%llu %llu %llu %llu\n", (unsigned long long)done, (unsigned long long)entries, (unsigned long long)(end - start),
	       (unsigned long long)times[batches / 2] * 1000 / BATCH);
	return 0;
}
