/* SPDX-License-Identifier: Apache-2.0 */
/*
 * noalloc - between start and stop a queue allocates nothing, takes no lock, and enters the kernel only to notify.
 *
 * The allocator, the locks and write() are replaced in this program; while armed, each call is counted.
 */
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tests/c/rig.h"

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);
void __libc_free(void *p);

static bool armed;
static unsigned long allocations, locks, writes;

void *malloc(size_t n)
{
	allocations += armed;
	return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
	allocations += armed;
	return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
	allocations += armed;
	return __libc_realloc(p, n);
}

void *aligned_alloc(size_t align, size_t n)
{
	allocations += armed;
	return __libc_memalign(align, n);
}

int posix_memalign(void **p, size_t align, size_t n)
{
	allocations += armed;
	*p = __libc_memalign(align, n);
	return *p == NULL ? ENOMEM : 0;
}

void free(void *p)
{
	allocations += armed;
	__libc_free(p);
}

int pthread_mutex_lock(pthread_mutex_t *mutex)
{
	static int (*real)(pthread_mutex_t *);

	locks += armed;
	if (real == NULL)
		*(void **)&real = dlsym(RTLD_NEXT, "pthread_mutex_lock");
	return real(mutex);
}

ssize_t write(int fd, const void *buf, size_t n)
{
	writes += armed;
	return syscall(SYS_write, fd, buf, n);
}

static void run(uint32_t size, uint64_t features, bool inflight, bool logging)
{
	static uint64_t record[1 << 14];
	struct ring_chain *chains[16];
	struct ring_drv_used used[16];
	struct ring_vq_stats stats;
	uint64_t rnd = 42;
	struct rig r;
	int call = eventfd(0, EFD_CLOEXEC), log = memfd_create("log", MFD_CLOEXEC);
	int round, i, n;

	CHECK(call >= 0 && log >= 0);
	rig_open(&r, size, features | RIG_VERSION_1, features & RIG_PACKED ? RIG_PACKED_BASE : 0, 1 << 20);
	CHECK(ftruncate(log, RIG_GPA / 4096 / 8 + 4096) == 0);
	CHECK_EQ(ring_mem_log_set(r.mem, log, RIG_GPA / 4096 / 8 + 4096, 0), 0);
	memset(record, 0, sizeof(record));
	if (inflight) {
		r.cfg.inflight = record;
		r.cfg.inflight_bytes = ring_inflight_bytes(size, features & RIG_PACKED ? 1 : 0);
		CHECK(r.cfg.inflight_bytes <= sizeof(record));
	}
	r.cfg.call_fd = call;
	rig_start(&r);
	ring_vq_set_logging(r.vq, logging, logging, RIG_GPA + r.lay.used);
	allocations = locks = writes = 0;
	armed = true;
	for (round = 0; round < 2000; round++) {
		for (i = 0; i < 8; i++) {
			struct ring_drv_buf bufs[12];
			uint32_t nr = (uint32_t)(1 + rig_rnd(&rnd) % 12), k;

			for (k = 0; k < nr; k++)
				bufs[k] = (struct ring_drv_buf){ .addr = RIG_GPA + r.data + 4096 * k, .len = 100 };
			(void)ring_drv_add(r.drv, bufs, nr / 2, nr - nr / 2, 0, features & RIG_INDIRECT && i & 1);
		}
		(void)ring_drv_publish(r.drv);
		ring_vq_kicks_off(r.vq);
		n = ring_vq_pop(r.vq, chains, 16);
		if (n < 0)
			break;
		if (n > 1 && round % 5 == 0)
			n -= ring_vq_unpop(r.vq, 1);
		while (n)
			ring_vq_push(r.vq, chains[--n], 1);
		(void)ring_vq_flush(r.vq);
		(void)ring_vq_kicks_on(r.vq);
		(void)ring_drv_poll(r.drv, used, 16);
		if (round == 1000)
			ring_vq_break(r.vq, RING_E_DEVICE, 0);
	}
	armed = false;
	CHECK_EQ(round, 1001);	/* broken half-way, which allocates nothing either */
	ring_vq_stats(r.vq, &stats);
	CHECK(stats.pushed > 1000 && stats.notified > 0);
	CHECK_EQ(allocations, 0);
	CHECK_EQ(locks, 0);
	CHECK_EQ(writes, stats.notified);
	rig_close(&r);
	close(call);
	close(log);
}

int main(void)
{
	void *p;

	armed = true;	/* the counting itself works */
	p = malloc(1);
	__asm__ volatile("" : : "r"(p) : "memory");	/* keeps the compiler from dropping the pair */
	free(p);
	armed = false;
	CHECK_EQ(allocations, 2);
	for (int i = 0; i < 8; i++) {
		bool inflight = i & 1, logging = i & 2;
		uint64_t order = i & 4 ? RIG_IN_ORDER : RIG_EVENT_IDX;

		run(64, RIG_INDIRECT | order, inflight, logging);
		run(50, RIG_INDIRECT | RIG_PACKED | order, inflight, logging);
	}
	return 0;
}
