/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fsio - what a program does to a file system when a test wants to know exactly what must be there afterwards. In guests
 * and on the host, linked statically. Every command ends with a line "ok ..." and status 0, or says what was wrong.
 *
 *   many DIR N [there]		N files: made, listed, looked at, removed; no name twice, none lost; "there": made before, kept
 *   verify FILE BYTES SECONDS	random reads and writes of any length and place beside a copy in memory
 *   mmap FILE BYTES		a shared mapping and read/write see one another
 *   holes FILE			punch, SEEK_DATA, SEEK_HOLE
 *   xattr FILE			set, get, list, remove
 *   big FILE			data beyond 4 GiB in a sparse file
 *   tmpfile DIR			O_TMPFILE, then a name
 *   open DIR			an open file without a name, renamed and truncated under its reader
 *   append FILE WHO N		N lines of 32 bytes with O_APPEND
 *   storm DIR THREADS SECONDS	renames over one another; every file is somewhere at the end
 *   lock FILE r|w|u START LEN [wait] [hold]	fcntl; "busy PID" and status 3 where somebody else has it; "hold": until stdin ends
 *   flock FILE r|w [wait] [hold]
 *   acl FILE UID r|rw|...		give a user rights of its own
 *   keep DIR			until DIR/stop exists: use an open file that is locked, one without a name, a folder; "ok N" each time
 *   as UID GID GROUP,.. PROGRAM ARGS	run with these ids
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static void __attribute__((format(printf, 1, 2), noreturn)) die(const char *format, ...)
{
	int error = errno;
	va_list args;

	va_start(args, format);
	printf("fsio: ");
	vprintf(format, args);
	printf(" (%s)\n", strerror(error));
	va_end(args);
	exit(1);
}

#define check(what, ...) do { if (!(what)) die(__VA_ARGS__); } while (0)

static int opened(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0644);

	check(fd >= 0, "%s: open", path);
	return fd;
}

static uint64_t seed = 88172645463325252u;

static uint64_t next(uint64_t bound)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed % bound;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int many(char **arg)
{
	int dir, i, seen = 0, n = atoi(arg[1]);
	double made, listed, looked, begin = now();
	bool there = arg[2] && !strcmp(arg[2], "there");
	char *found = calloc((size_t)n, 1), name[32];
	struct dirent *entry;
	struct stat st;
	DIR *list;

	check(there || mkdir(arg[0], 0755) == 0, "%s: mkdir", arg[0]);
	dir = opened(arg[0], O_RDONLY | O_DIRECTORY);
	for (i = 0; i < n && !there; i++) {
		snprintf(name, sizeof(name), "file-%d", i);
		check(close(openat(dir, name, O_CREAT | O_EXCL | O_WRONLY, 0644)) == 0, "%s: create", name);
	}
	made = now();
	list = fdopendir(dup(dir));
	while ((entry = readdir(list)) != NULL) {
		if (entry->d_name[0] == '.')
			continue;
		check(sscanf(entry->d_name, "file-%d", &i) == 1 && i >= 0 && i < n, "a name of nobody: %s", entry->d_name);
		check(!found[i], "listed twice: %s", entry->d_name);
		found[i] = 1;
		seen++;
	}
	check(seen == n, "%d of %d names were listed", seen, n);
	closedir(list);
	listed = now();
	for (i = 0; i < n; i++) {
		snprintf(name, sizeof(name), "file-%d", i);
		check(fstatat(dir, name, &st, 0) == 0 && st.st_size == 0, "%s: stat", name);
	}
	looked = now();
	for (i = 0; i < n && !there; i++) {
		snprintf(name, sizeof(name), "file-%d", i);
		check(unlinkat(dir, name, 0) == 0, "%s: unlink", name);
	}
	check(there || rmdir(arg[0]) == 0, "%s: rmdir", arg[0]);
	printf("ok made %.1f s, listed %.1f, looked at %.1f, removed %.1f\n", made - begin, listed - made, looked - listed,
	       now() - looked);
	return 0;
}

static int verify(char **arg)
{
	size_t size = (size_t)atoll(arg[1]), at, len, i;
	int fd = opened(arg[0], O_RDWR | O_CREAT | O_TRUNC), rounds = 0;
	unsigned char *copy = calloc(size, 1), *buf = malloc(size);
	double end = now() + atof(arg[2]);

	check(ftruncate(fd, (off_t)size) == 0, "truncate");
	for (; now() < end; rounds++) {
		at = next(size);
		len = 1 + next(next(4) ? 5000 : 300000);
		len = len < size - at ? len : size - at;
		if (next(2)) {
			for (i = 0; i < len; i++)
				copy[at + i] = (unsigned char)next(256);
			check(pwrite(fd, copy + at, len, (off_t)at) == (ssize_t)len, "pwrite %zu at %zu", len, at);
		} else {
			check(pread(fd, buf, len, (off_t)at) == (ssize_t)len, "pread %zu at %zu", len, at);
			check(memcmp(buf, copy + at, len) == 0, "other bytes than were written, %zu at %zu", len, at);
		}
		if (!next(64)) {
			check(fsync(fd) == 0 && close(fd) == 0, "fsync");
			fd = opened(arg[0], O_RDWR);
			posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
		}
	}
	check(pread(fd, buf, size, 0) == (ssize_t)size && !memcmp(buf, copy, size), "other bytes at the end");
	printf("ok %d rounds\n", rounds);
	return 0;
}

static int do_mmap(char **arg)
{
	size_t size = (size_t)atoll(arg[1]), i;
	int fd = opened(arg[0], O_RDWR | O_CREAT | O_TRUNC);
	unsigned char *map, byte, *buf = malloc(size);

	check(ftruncate(fd, (off_t)size) == 0, "truncate");
	map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	check(map != MAP_FAILED, "mmap");
	for (i = 0; i < size; i++)
		map[i] = (unsigned char)(i * 7 + i / 4096);
	check(pread(fd, buf, size, 0) == (ssize_t)size && !memcmp(buf, map, size), "read sees no mapped writes");
	for (i = 0; i < 200; i++) {
		size_t at = next(size);

		byte = (unsigned char)next(256);
		check(pwrite(fd, &byte, 1, (off_t)at) == 1, "pwrite");
		check(*(volatile unsigned char *)&map[at] == byte, "the mapping does not see a write at %zu", at);
	}
	check(msync(map, size, MS_SYNC) == 0, "msync");
	check(pread(fd, buf, size, 0) == (ssize_t)size && !memcmp(buf, map, size), "read differs after msync");
	check(munmap(map, size) == 0 && close(fd) == 0, "close");
	printf("ok\n");
	return 0;
}

static int holes(char **arg)
{
	enum { K = 1024 };
	int fd = opened(arg[0], O_RDWR | O_CREAT | O_TRUNC);
	char *buf = malloc(1024 * K);
	struct stat before, after;
	int i;

	memset(buf, 'x', 1024 * K);
	check(pwrite(fd, buf, 1024 * K, 0) == 1024 * K && fsync(fd) == 0, "write");
	fstat(fd, &before);
	check(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 512 * K, 256 * K) == 0, "punch");
	check(lseek(fd, 0, SEEK_HOLE) == 512 * K, "SEEK_HOLE");
	check(lseek(fd, 512 * K, SEEK_DATA) == 768 * K, "SEEK_DATA");
	check(pread(fd, buf, 1024 * K, 0) == 1024 * K, "read");
	for (i = 0; i < 1024 * K; i++)
		check(buf[i] == (i >= 512 * K && i < 768 * K ? 0 : 'x'), "byte %d is %d", i, buf[i]);
	fstat(fd, &after);
	check(after.st_size == 1024 * K && after.st_blocks <= before.st_blocks - 500, "blocks %ld, then %ld",
	      (long)before.st_blocks, (long)after.st_blocks);
	check(fallocate(fd, 0, 0, 2048 * K) == 0 && fstat(fd, &after) == 0 && after.st_size == 2048 * K, "allocate");
	check(lseek(fd, 4096 * K, SEEK_DATA) == -1 && errno == ENXIO, "SEEK_DATA behind the end");
	printf("ok\n");
	return 0;
}

static int do_xattr(char **arg)
{
	char buf[4096], big[3000];

	close(opened(arg[0], O_RDWR | O_CREAT));
	memset(big, 'b', sizeof(big));
	check(setxattr(arg[0], "user.one", "value", 5, XATTR_CREATE) == 0, "set");
	check(setxattr(arg[0], "user.one", "value", 5, XATTR_CREATE) == -1 && errno == EEXIST, "set again");
	check(setxattr(arg[0], "user.big", big, sizeof(big), 0) == 0, "set a big one");
	check(getxattr(arg[0], "user.one", NULL, 0) == 5, "size");
	check(getxattr(arg[0], "user.one", buf, 3) == -1 && errno == ERANGE, "too small");
	check(getxattr(arg[0], "user.one", buf, sizeof(buf)) == 5 && !memcmp(buf, "value", 5), "get");
	check(getxattr(arg[0], "user.big", buf, sizeof(buf)) == sizeof(big) && !memcmp(buf, big, sizeof(big)), "get big");
	check(listxattr(arg[0], buf, sizeof(buf)) == 18, "list");
	check(removexattr(arg[0], "user.one") == 0, "remove");
	check(getxattr(arg[0], "user.one", buf, sizeof(buf)) == -1 && errno == ENODATA, "get what is removed");
	printf("ok\n");
	return 0;
}

static int big(char **arg)
{
	const off_t at = (5ll << 30) + 123;
	int fd = opened(arg[0], O_RDWR | O_CREAT | O_TRUNC);
	char buf[100000], back[100000];
	struct stat st;
	size_t i;

	for (i = 0; i < sizeof(buf); i++)
		buf[i] = (char)next(256);
	check(pwrite(fd, buf, sizeof(buf), at) == sizeof(buf) && fsync(fd) == 0, "pwrite");
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	check(fstat(fd, &st) == 0 && st.st_size == at + (off_t)sizeof(buf), "size %lld", (long long)st.st_size);
	check(pread(fd, back, sizeof(back), at) == sizeof(back) && !memcmp(buf, back, sizeof(buf)), "pread");
	check(pread(fd, back, 4096, 4ll << 30) == 4096 && !back[0] && !back[4095], "the hole");
	check(ftruncate(fd, (4ll << 30) + 1) == 0 && lseek(fd, 0, SEEK_END) == (4ll << 30) + 1, "truncate");
	printf("ok\n");
	return 0;
}

static int do_tmpfile(char **arg)
{
	char path[64], name[4096], buf[8];
	int fd = open(arg[0], O_TMPFILE | O_RDWR, 0600);

	check(fd >= 0, "O_TMPFILE");
	check(write(fd, "unnamed", 7) == 7, "write");
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	snprintf(name, sizeof(name), "%s/named", arg[0]);
	check(linkat(AT_FDCWD, path, AT_FDCWD, name, AT_SYMLINK_FOLLOW) == 0, "linkat");
	close(fd);
	fd = opened(name, O_RDONLY);
	check(read(fd, buf, 8) == 7 && !memcmp(buf, "unnamed", 7), "read by its name");
	printf("ok\n");
	return 0;
}

static int do_open(char **arg)
{
	char a[4096], b[4096], buf[16];
	struct stat st;
	int fd, other;

	snprintf(a, sizeof(a), "%s/a", arg[0]);
	snprintf(b, sizeof(b), "%s/b", arg[0]);
	fd = opened(a, O_RDWR | O_CREAT | O_TRUNC);
	check(write(fd, "0123456789", 10) == 10 && rename(a, b) == 0, "rename");
	check(pread(fd, buf, 10, 0) == 10 && !memcmp(buf, "0123456789", 10), "read after rename");
	other = opened(b, O_RDWR);
	check(ftruncate(other, 4) == 0 && pread(fd, buf, 10, 0) == 4, "read after truncate");
	check(unlink(b) == 0 && fstat(fd, &st) == 0 && st.st_nlink == 0, "unlink");
	check(pwrite(fd, "abc", 3, 4) == 3 && pread(other, buf, 10, 0) == 7 && !memcmp(buf, "0123abc", 7), "no name");
	check(fchmod(fd, 0600) == 0 && ftruncate(fd, 1) == 0, "change what has no name");
	printf("ok\n");
	return 0;
}

static int append(char **arg)
{
	int fd = opened(arg[0], O_WRONLY | O_CREAT | O_APPEND), i, n = atoi(arg[2]);
	char line[64];

	for (i = 0; i < n; i++) {
		snprintf(line, sizeof(line), "%-10s %020d\n", arg[1], i);
		check(write(fd, line, 32) == 32, "append %d", i);
	}
	printf("ok\n");
	return 0;
}

static const char *storm_dir;
static double storm_end;
enum { STORM = 40 };

static void *storm_thread(void *arg)
{
	uint64_t state = (uintptr_t)arg * 7919 + 1;
	char from[4096], to[4096];
	long done = 0;

	while (now() < storm_end) {
		state = state * 6364136223846793005u + 1442695040888963407u;
		snprintf(from, sizeof(from), "%s/%d/f%d", storm_dir, (int)(state >> 33) % 2, (int)(state >> 40) % STORM);
		snprintf(to, sizeof(to), "%s/%d/f%d", storm_dir, (int)(state >> 34) % 2, (int)(state >> 48) % STORM);
		if (renameat2(AT_FDCWD, from, AT_FDCWD, to, state >> 60 ? RENAME_NOREPLACE : RENAME_EXCHANGE) == 0)
			done++;
		else
			check(errno == ENOENT || errno == EEXIST, "rename %s %s", from, to);
	}
	return (void *)done;
}

static int storm(char **arg)
{
	pthread_t threads[16];
	int i, n = atoi(arg[1]), files = 0;
	long done = 0;
	char path[4096];
	void *each;

	storm_dir = arg[0];
	check(mkdir(storm_dir, 0755) == 0, "mkdir");
	for (i = 0; i < 2; i++) {
		snprintf(path, sizeof(path), "%s/%d", storm_dir, i);
		check(mkdir(path, 0755) == 0, "mkdir");
	}
	for (i = 0; i < STORM; i++) {
		snprintf(path, sizeof(path), "%s/%d/f%d", storm_dir, i % 2, i);
		close(opened(path, O_CREAT | O_WRONLY));
	}
	storm_end = now() + atof(arg[2]);
	for (i = 0; i < n && i < 16; i++)
		pthread_create(&threads[i], NULL, storm_thread, (void *)(uintptr_t)i);
	for (i = 0; i < n && i < 16; i++) {
		pthread_join(threads[i], &each);
		done += (long)each;
	}
	for (i = 0; i < 2; i++) {
		struct dirent *entry;
		DIR *list;

		snprintf(path, sizeof(path), "%s/%d", storm_dir, i);
		list = opendir(path);
		while ((entry = readdir(list)) != NULL)
			files += entry->d_name[0] == 'f';
		closedir(list);
	}
	check(files == STORM, "%d files of %d are left", files, STORM);
	printf("ok %ld renames\n", done);
	return 0;
}

static bool given(char **arg, const char *word)
{
	for (; *arg; arg++)
		if (!strcmp(*arg, word))
			return true;
	return false;
}

/* Say what was got, and keep it as long as asked. */
static int hold(char **arg)
{
	printf("ok\n");
	fflush(stdout);
	if (given(arg, "hold"))
		while (getchar() != EOF)
			;
	return 0;
}

static int lock(char **arg)
{
	int fd = opened(arg[0], O_RDWR | O_CREAT);
	struct flock want = {
		.l_type = *arg[1] == 'r' ? F_RDLCK : *arg[1] == 'w' ? F_WRLCK : F_UNLCK,
		.l_start = atoll(arg[2]),
		.l_len = atoll(arg[3]),
	};

	if (fcntl(fd, given(arg + 4, "wait") ? F_SETLKW : F_SETLK, &want) == 0)
		return hold(arg + 4);
	check(errno == EAGAIN || errno == EACCES, "lock");
	check(fcntl(fd, F_GETLK, &want) == 0, "F_GETLK");
	printf("busy %ld+%ld\n", (long)want.l_start, (long)want.l_len);
	return 3;
}

static int do_flock(char **arg)
{
	int fd = opened(arg[0], O_RDWR | O_CREAT);

	if (flock(fd, (*arg[1] == 'r' ? LOCK_SH : LOCK_EX) | (given(arg + 2, "wait") ? 0 : LOCK_NB)) == 0)
		return hold(arg + 2);
	check(errno == EAGAIN, "flock");
	printf("busy\n");
	return 3;
}

/* Write to @fd, and read it back past what is cached. */
static void use(int fd, int n)
{
	char text[17], back[16];

	snprintf(text, sizeof(text), "%016d", n);
	check(pwrite(fd, text, 16, n % 1000 * 16) == 16, "write %d", n);
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	check(pread(fd, back, 16, n % 1000 * 16) == 16 && !memcmp(text, back, 16), "read %d", n);
	if (n > 500)
		check(pread(fd, back, 16, (n - 500) % 1000 * 16) == 16 && atoi(back) == n - 500, "read %d again", n - 500);
}

static int keep(char **arg)
{
	struct flock range = { .l_type = F_WRLCK, .l_start = 1 << 20, .l_len = 10 }, other = range;
	int n, named, unnamed, dir = opened(arg[0], O_RDONLY | O_DIRECTORY);
	struct stat st;

	named = openat(dir, "named", O_RDWR | O_CREAT, 0644);
	unnamed = openat(dir, "unnamed", O_RDWR | O_CREAT, 0644);
	check(named >= 0 && unnamed >= 0 && unlinkat(dir, "unnamed", 0) == 0, "files");
	check(fcntl(named, F_SETLK, &range) == 0 && flock(named, LOCK_EX) == 0, "lock");
	other.l_start += 100;
	for (n = 1; faccessat(dir, "stop", F_OK, 0) < 0; n++) {
		use(named, n);
		use(unnamed, n);
		other.l_type = n % 2 ? F_RDLCK : F_UNLCK;
		check(fcntl(named, F_SETLK, &other) == 0, "lock %d", n);
		check(fstat(unnamed, &st) == 0 && st.st_nlink == 0, "stat %d", n);
		printf("ok %d\n", n);
		fflush(stdout);
		usleep(20000);
	}
	check(fsync(named) == 0 && fsync(unnamed) == 0 && close(unnamed) == 0, "fsync");
	printf("ok\n");
	return 0;
}

static int acl(char **arg)
{
	const char *rights = arg[2];
	struct {
		uint32_t version;
		struct {
			uint16_t tag, perm;
			uint32_t id;
		} entry[5];
	} a = { 2, { { 1, 6, ~0u }, { 2, 0, (uint32_t)atoi(arg[1]) }, { 4, 0, ~0u }, { 0x10, 7, ~0u }, { 0x20, 0, ~0u } } };

	for (; *rights; rights++)
		a.entry[1].perm |= *rights == 'r' ? 4 : *rights == 'w' ? 2 : 1;
	check(setxattr(arg[0], "system.posix_acl_access", &a, sizeof(a), 0) == 0, "%s: acl", arg[0]);
	printf("ok\n");
	return 0;
}

static int as(char **arg)
{
	gid_t groups[32];
	size_t n = 0;
	char *each;

	for (each = strtok(arg[2], ","); each && n < 32; each = strtok(NULL, ","))
		groups[n++] = (gid_t)atoi(each);
	check(setgroups(n, groups) == 0 && setgid((gid_t)atoi(arg[1])) == 0 && setuid((uid_t)atoi(arg[0])) == 0, "ids");
	execvp(arg[3], arg + 3);
	die("%s", arg[3]);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int args;
		int (*run)(char **arg);
	} commands[] = {
		{ "many", 2, many }, { "verify", 3, verify }, { "mmap", 2, do_mmap }, { "holes", 1, holes },
		{ "xattr", 1, do_xattr }, { "big", 1, big }, { "tmpfile", 1, do_tmpfile }, { "open", 1, do_open },
		{ "append", 3, append }, { "storm", 3, storm }, { "lock", 4, lock }, { "flock", 2, do_flock }, { "as", 4, as },
		{ "keep", 1, keep }, { "acl", 3, acl },
	};
	size_t i;

	for (i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		if (argc >= 2 + commands[i].args && !strcmp(argv[1], commands[i].name))
			return commands[i].run(argv + 2);
	fprintf(stderr, "usage: see the head of fsio.c\n");
	return 2;
}
