/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sigbus.c - mappings of files that a front-end may truncate under us, and what happens when it does.
 *
 * A touch of a page beyond the end of its file raises SIGBUS. The handler looks the address up among the guarded
 * ranges, raises the flag of the one it lies in, puts an anonymous zero page in the hole and returns: the access then
 * succeeds on harmless memory, and whoever owns the flag breaks that VM's queues. Other VMs notice nothing.
 * The reasons are in docs/decisions/0001-sigbus.md.
 *
 * Rules of the handler: async-signal-safe calls and lock-free reads only. A slot is published by storing its base last
 * and withdrawn by storing 0 first; a reader takes base, the rest, then base again. Nobody may touch a range while it
 * is withdrawn, so no fault is lost.
 */
#include "ring/csrc/map.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef HUGETLBFS_MAGIC
#define HUGETLBFS_MAGIC 0x958458f6
#endif

enum { GUARDS_MAX = 65536 };	/* 128 VMs with all their slots in use; 3 MiB of bss, touched only as used */

struct guard {
	_Atomic uintptr_t base;		/* 0: free */
	_Atomic size_t len;
	_Atomic size_t page;
	_Atomic int prot;
	_Atomic(_Atomic int *) flag;
};

static struct guard guards[GUARDS_MAX];
static _Atomic uint32_t guards_end;	/* no slot in use at or above */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;	/* the two below, and who changes guards[] */
static struct sigaction previous;
static _Atomic int handed_over;	/* we have put @previous back; the next guard takes over again */

/* Put zero pages where the fault was. Returns false if the address is not guarded or memory is out. */
static bool mend(uintptr_t addr)
{
	uint32_t end = atomic_load_explicit(&guards_end, memory_order_acquire);

	for (uint32_t i = 0; i < end; i++) {
		struct guard *g = &guards[i];
		uintptr_t base = atomic_load_explicit(&g->base, memory_order_acquire);
		size_t len = atomic_load_explicit(&g->len, memory_order_acquire);
		size_t page = atomic_load_explicit(&g->page, memory_order_acquire);
		int prot = atomic_load_explicit(&g->prot, memory_order_acquire);
		_Atomic int *flag = atomic_load_explicit(&g->flag, memory_order_acquire);
		uintptr_t at;

		if (base == 0 || addr - base >= len)
			continue;
		if (atomic_load_explicit(&g->base, memory_order_relaxed) != base)
			continue;	/* withdrawn meanwhile: then it was not what faulted */
		atomic_store_explicit(flag, 1, memory_order_release);
		at = addr & ~(uintptr_t)(page - 1);
		if (mmap((void *)at, page, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED)
			return true;
		/* thousands of holes exhaust vm.max_map_count: then one mapping for the whole range */
		return mmap((void *)base, len, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) !=
		       MAP_FAILED;
	}
	return false;
}

/*
 * Not ours. A handler with siginfo is called: it may know how to recover. Any other disposition is put back and gets
 * the signal again, by the repeated fault or by raise(); it is expected to end the process.
 */
static void pass_on(int sig, siginfo_t *info, void *context)
{
	struct sigaction dfl = { .sa_handler = SIG_DFL };
	bool sent = info->si_code <= 0;		/* by kill() and the like, not by a fault */

	if ((previous.sa_flags & SA_SIGINFO) && previous.sa_sigaction != NULL) {
		previous.sa_sigaction(sig, info, context);
		return;
	}
	if (sent && previous.sa_handler == SIG_IGN)
		return;
	/* a handler that was put on top of ours and gives back "the one before" would come round again: end it here */
	if (atomic_exchange(&handed_over, 1))
		sigaction(SIGBUS, &dfl, NULL);
	else
		sigaction(SIGBUS, &previous, NULL);
	if (sent)
		raise(sig);
}

static void on_sigbus(int sig, siginfo_t *info, void *context)
{
	int err = errno;

	if (info->si_code <= 0 || !mend((uintptr_t)info->si_addr))
		pass_on(sig, info, context);
	errno = err;
}

/* Be the handler: at the first guard, and again if somebody has put theirs in place since. Under the lock. */
static int install(void)
{
	struct sigaction act = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK }, now;

	if (sigaction(SIGBUS, NULL, &now) < 0)
		return -errno;
	if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_sigbus)
		return 0;
	previous = now;
	sigemptyset(&act.sa_mask);
	if (sigaction(SIGBUS, &act, NULL) < 0)
		return -errno;
	atomic_store(&handed_over, 0);
	return 0;
}

static int guard(void *base, size_t len, size_t page, int prot, _Atomic int *flag)
{
	uint32_t i, end;
	int rc;

	pthread_mutex_lock(&lock);
	rc = install();
	if (rc < 0)
		goto out;
	end = atomic_load_explicit(&guards_end, memory_order_relaxed);
	for (i = 0; i < end; i++)
		if (atomic_load_explicit(&guards[i].base, memory_order_relaxed) == 0)
			break;
	if (i == GUARDS_MAX) {
		rc = -ENOMEM;
		goto out;
	}
	atomic_store_explicit(&guards[i].len, len, memory_order_release);
	atomic_store_explicit(&guards[i].page, page, memory_order_release);
	atomic_store_explicit(&guards[i].prot, prot, memory_order_release);
	atomic_store_explicit(&guards[i].flag, flag, memory_order_release);
	atomic_store_explicit(&guards[i].base, (uintptr_t)base, memory_order_release);
	if (i == end)
		atomic_store_explicit(&guards_end, end + 1, memory_order_release);
out:
	pthread_mutex_unlock(&lock);
	return rc;
}

static void unguard(void *base)
{
	uint32_t end;

	pthread_mutex_lock(&lock);
	end = atomic_load_explicit(&guards_end, memory_order_relaxed);
	for (uint32_t i = 0; i < end; i++)
		if (atomic_load_explicit(&guards[i].base, memory_order_relaxed) == (uintptr_t)base)
			atomic_store_explicit(&guards[i].base, 0, memory_order_release);
	while (end > 0 && atomic_load_explicit(&guards[end - 1].base, memory_order_relaxed) == 0)
		end--;
	atomic_store_explicit(&guards_end, end, memory_order_release);
	pthread_mutex_unlock(&lock);
}

int ring_sigbus_guard(void *base, size_t len, _Atomic int *flag)
{
	return guard(base, len, (size_t)sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE, flag);
}

void ring_sigbus_unguard(void *base)
{
	unguard(base);
}

/* 0 if @fd is a regular file of at least @end bytes; its page size goes to @page. */
static int check_file(int fd, uint64_t end, size_t *page)
{
	struct statfs fs;
	struct stat st;

	if (fstat(fd, &st) < 0 || fstatfs(fd, &fs) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -ENODEV;
	if (st.st_size < 0 || end > (uint64_t)st.st_size)
		return -RING_E_SHORT;
	*page = (size_t)sysconf(_SC_PAGESIZE);
	if ((unsigned long)fs.f_type == HUGETLBFS_MAGIC && (size_t)fs.f_bsize > *page)
		*page = (size_t)fs.f_bsize;
	return 0;
}

int ring_mapping_make(struct ring_mapping *m, int fd, uint64_t len, uint64_t offset, int prot, _Atomic int *flag)
{
	uint64_t end, skip, rounded;
	void *base;
	int rc;

	if (len == 0 || __builtin_add_overflow(offset, len, &end) || end > INT64_MAX)
		return -RING_E_RANGE;
	rc = check_file(fd, end, &m->page);
	if (rc < 0)
		return rc;
	skip = offset & (m->page - 1);
	rounded = (skip + len + m->page - 1) & ~(uint64_t)(m->page - 1);	/* < 2^63 + 2 pages */
	base = mmap(NULL, rounded, prot, MAP_SHARED | MAP_NORESERVE, fd, (off_t)(offset - skip));
	if (base == MAP_FAILED)
		return -errno;
	madvise(base, rounded, MADV_DONTDUMP);	/* a core dump of ours is no place for a guest's memory */
	rc = guard(base, rounded, m->page, prot, flag);
	if (rc < 0) {
		munmap(base, rounded);
		return rc;
	}
	m->base = base;
	m->len = rounded;
	m->data = (uint8_t *)base + skip;
	return 0;
}

void ring_mapping_drop(struct ring_mapping *m)
{
	if (m->base == NULL)
		return;
	unguard(m->base);
	munmap(m->base, m->len);
	m->base = NULL;
}

int ring_mapping_bury(struct ring_mapping *m)
{
	if (mmap(m->base, m->len, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED)
		return -errno;
	return 0;
}

struct ring_shared {
	struct ring_mapping map;
	_Atomic int faulted;
};

int ring_shared_map(int fd, uint64_t size, uint64_t offset, struct ring_shared **out)
{
	struct ring_shared *s = calloc(1, sizeof(*s));
	int rc;

	if (s == NULL)
		return -ENOMEM;
	rc = ring_mapping_make(&s->map, fd, size, offset, PROT_READ | PROT_WRITE, &s->faulted);
	if (rc < 0) {
		free(s);
		return rc;
	}
	*out = s;
	return 0;
}

void *ring_shared_base(struct ring_shared *shared)
{
	return shared->map.data;
}

int ring_shared_faulted(const struct ring_shared *shared)
{
	return atomic_load_explicit(&shared->faulted, memory_order_acquire);
}

void ring_shared_unmap(struct ring_shared *shared)
{
	if (shared == NULL)
		return;
	ring_mapping_drop(&shared->map);
	free(shared);
}
