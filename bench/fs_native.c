/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fs_native.c - the system calls that a shared folder's requests come to, from a program on the host.
 *
 *   fs_native OP FOLDER FILES SIZE BLOCK PIECE DEPTH NS CPU OTHER
 *
 * OP as `vhost bench fs` has it, in a folder made as it makes it. Prints operations, entries listed, nanoseconds, and
 * the median time of one in picoseconds.
 *
 * OTHER "idle": nothing else runs. "asleep": front-end and back-end are two processes on one processor that wake each
 * other by eventfds and do nothing else, DEPTH operations at a time: what a back-end that makes the calls comes to.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 8, ENTRIES = 32768, IOVECS = 512, TIMES = 1 << 16 };

static int folder;
static uint64_t files, size, block, piece, depth, entries;
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
	char *at = data + (turn++ % depth) * ((block + 4095) / 4096 * 4096);
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

static void pin(int cpu)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET((size_t)cpu, &cpus);
	sched_setaffinity(0, sizeof(cpus), &cpus);
}

/* --- taking turns ---------------------------------------------------------------------------------------------- */

/* Both sides' own cache lines. */
struct between {
	_Alignas(64) _Atomic uint64_t asked;
	_Atomic int asks_asleep;
	_Alignas(64) _Atomic uint64_t answered;
	_Atomic int answers_asleep;
};

static struct between *between;

static int kick, call;

static void wake(int fd)
{
	uint64_t one = 1;

	if (write(fd, &one, sizeof(one)) < 0)
		die("eventfd");
}

/* The front-end: sleeps until all is answered, as `vhost bench fs` does, and asks again. */
static void ask(void)
{
	struct pollfd calls = { .fd = call, .events = POLLIN };
	uint64_t mine = 0, count;

	for (;;) {
		mine += depth;
		atomic_store(&between->asked, mine);
		if (atomic_load(&between->answers_asleep))
			wake(kick);
		atomic_store(&between->asks_asleep, 1);
		while (atomic_load(&between->answered) < mine) {
			ppoll(&calls, 1, NULL, NULL);
			if (read(call, &count, sizeof(count)) < 0)
				continue;
		}
		atomic_store(&between->asks_asleep, 0);
	}
}

/* The back-end: does what was asked. Returns how many. */
static uint64_t answer(void (*one)(void))
{
	uint64_t done = atomic_load(&between->answered), start = done, count;

	while (atomic_load(&between->asked) == done) {
		atomic_store(&between->answers_asleep, 1);
		if (atomic_load(&between->asked) == done && read(kick, &count, sizeof(count)) < 0)
			die("eventfd");
		atomic_store(&between->answers_asleep, 0);
	}
	while (done < atomic_load(&between->asked)) {
		one();
		done++;
	}
	atomic_store(&between->answered, done);
	if (atomic_load(&between->asks_asleep))
		wake(call);
	return done - start;
}

/* --- measuring ------------------------------------------------------------------------------------------------- */

static uint64_t many(void (*one)(void))
{
	for (int i = 0; i < BATCH; i++)
		one();
	return BATCH;
}

static void *shared(size_t bytes)
{
	void *found = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (found == MAP_FAILED)
		die("mmap");
	return found;
}

/* A process for the other side; 0: there is none. */
static pid_t begin(const char *other)
{
	pid_t pid;

	between = shared(sizeof(*between));
	kick = eventfd(0, 0);
	call = eventfd(0, EFD_NONBLOCK);
	if (strcmp(other, "idle") == 0)
		return 0;
	pid = fork();
	if (pid < 0)
		die("fork");
	if (pid > 0)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	ask();
	return 0;
}

static void measure(void (*one)(void), uint64_t ns, bool asleep)
{
	static uint64_t times[TIMES];
	uint64_t start = now_ns(), end = start, done = 0, batches = 0;

	do {
		uint64_t last = end, n = asleep ? answer(one) : many(one);

		done += n;
		end = now_ns();
		times[batches++ % TIMES] = (end - last) * 1000 / n;
	} while (end - start < ns);
	if (batches > TIMES)
		batches = TIMES;
	qsort(times, batches, sizeof(times[0]), by_size);
	printf("%llu %llu %llu %llu\n", (unsigned long long)done, (unsigned long long)entries,
	       (unsigned long long)(end - start), (unsigned long long)times[batches / 2]);
}

static void arguments(char **argv)
{
	folder = open(argv[2], O_RDONLY | O_DIRECTORY);
	if (folder < 0)
		die(argv[2]);
	files = strtoull(argv[3], NULL, 10);
	size = strtoull(argv[4], NULL, 10);
	block = strtoull(argv[5], NULL, 10);
	piece = strtoull(argv[6], NULL, 10);
	depth = strtoull(argv[7], NULL, 10);
	if (piece == 0)
		piece = block;
	pin(atoi(argv[9]));
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
	size_t op = 0;
	pid_t other;

	if (argc != 11)
		return 2;
	arguments(argv);
	while (op < sizeof(ops) / sizeof(ops[0]) && strcmp(argv[1], ops[op].name))
		op++;
	if (op == sizeof(ops) / sizeof(ops[0]) || (block + piece - 1) / piece > IOVECS)
		return 2;
	if (ops[op].form)
		open_files(ops[op].form, ops[op].flags);
	/* shared, as guest memory is */
	data = shared(depth * ((block + 4095) / 4096 * 4096));
	memset(data, 1, depth * ((block + 4095) / 4096 * 4096));
	for (int i = 0; i < 1000 && block < 65536; i++)
		ops[op].one();
	entries = 0;
	other = begin(argv[10]);
	measure(ops[op].one, strtoull(argv[8], NULL, 10), strcmp(argv[10], "asleep") == 0);
	if (other) {
		kill(other, SIGKILL);
		waitpid(other, NULL, 0);
	}
	return 0;
}
