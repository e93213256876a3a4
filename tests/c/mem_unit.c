/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mem_unit.c - guest memory: every refusal, lookups against a naive scan, IOTLB against a model, dirty log, truncation.
 */
#include <fcntl.h>
#include <signal.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ring/csrc/iotlb.h"
#include "tests/c/rig.h"

enum { KIB = 1024, MIB = 1024 * 1024 };

static uint64_t seed = 88172645463325252ULL;

static uint64_t rnd(void)
{
	return rig_rnd(&seed);
}

static int memfd(uint64_t size)
{
	int fd = memfd_create("mem_unit", MFD_CLOEXEC);

	CHECK(fd >= 0 && ftruncate(fd, (off_t)size) == 0);
	return fd;
}

static void test_refusals(void)
{
	struct ring_mem *mem = ring_mem_new();
	int fd = memfd(4 * MIB), zero = open("/dev/zero", O_RDWR | O_CLOEXEC), ro, pipefd[2];
	struct ring_iov iov[4];
	char path[64];

	CHECK_EQ(ring_mem_add(mem, fd, 0, 0, 0, 0, 0), -RING_E_RANGE);
	CHECK_EQ(ring_mem_add(mem, fd, UINT64_MAX - 4095, 8192, 0, 0, 0), -RING_E_RANGE);
	CHECK_EQ(ring_mem_add(mem, fd, UINT64_MAX - 4095, 4096, 0, 0, 0), -RING_E_RANGE);	/* ends at 2^64 */
	CHECK_EQ(ring_mem_add(mem, fd, 0, 8192, UINT64_MAX - 4095, 0, 0), -RING_E_RANGE);
	CHECK_EQ(ring_mem_add(mem, fd, 0, 8192, 0, UINT64_MAX - 4095, 0), -RING_E_RANGE);
	CHECK_EQ(ring_mem_add(mem, fd, 0, 8192, 0, INT64_MAX - 4095, 0), -RING_E_RANGE);
	CHECK_EQ(ring_mem_add(mem, fd, 0, 4 * MIB + 1, 0, 0, 0), -RING_E_SHORT);
	CHECK_EQ(ring_mem_add(mem, fd, 0, 4 * MIB, 0, 1, 0), -RING_E_SHORT);
	CHECK_EQ(ring_mem_add(mem, fd, 0, 1ULL << 62, 0, 0, 0), -RING_E_SHORT);
	CHECK_EQ(ring_mem_add(mem, zero, 0, 4096, 0, 0, 0), -ENODEV);
	CHECK(pipe(pipefd) == 0);
	CHECK_EQ(ring_mem_add(mem, pipefd[0], 0, 4096, 0, 0, 0), -ENODEV);
	CHECK_EQ(ring_mem_add(mem, -1, 0, 4096, 0, 0, 0), -EBADF);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ro = open(path, O_RDONLY | O_CLOEXEC);
	CHECK_EQ(ring_mem_add(mem, ro, 0, 4096, 0, 0, 0), -EACCES);
	CHECK_EQ(ring_mem_add(mem, ro, 0, 4096, 0x1000000, 0, RING_MEM_RO), 0);
	CHECK_EQ(ring_mem_translate(mem, RING_ADDR_GPA, 0, 4096, 0, iov, 4), 1);
	CHECK_EQ(ring_mem_translate(mem, RING_ADDR_GPA, 0, 4096, 1, iov, 4), -RING_E_PERM);
	CHECK_EQ(ring_mem_translate(mem, RING_ADDR_GPA, 0, 4097, 0, iov, 4), -RING_E_ADDR);
	CHECK_EQ(ring_mem_translate(mem, RING_ADDR_GPA, 4096, 1, 0, iov, 4), -RING_E_ADDR);
	CHECK_EQ(ring_mem_translate(mem, RING_ADDR_GPA, 0, 0, 0, iov, 4), -RING_E_RANGE);
	CHECK_EQ(ring_mem_translate(mem, RING_ADDR_GPA, UINT64_MAX, 2, 0, iov, 4), -RING_E_RANGE);
	CHECK_EQ(ring_mem_translate(mem, RING_ADDR_GPA, UINT64_MAX, 1, 0, iov, 4), -RING_E_ADDR);
	CHECK_EQ(ring_mem_translate(mem, RING_ADDR_GPA, 0, 1, 0, iov, 0), -RING_E_IOVECS);

	/* by a byte at either end, in either space */
	CHECK_EQ(ring_mem_add(mem, fd, 4095, 4096, 0x2000000, 0, 0), -RING_E_OVERLAP);
	CHECK_EQ(ring_mem_add(mem, fd, 0, 1, 0x2000000, 0, 0), -RING_E_OVERLAP);
	CHECK_EQ(ring_mem_add(mem, fd, 8192, 4096, 0x1000fff, 0, 0), -RING_E_OVERLAP);
	CHECK_EQ(ring_mem_add(mem, fd, 8192, 4096, 0x0fff001, 0, 0), -RING_E_OVERLAP);
	CHECK_EQ(ring_mem_add(mem, fd, 8192, 4096, 0x0fff000, 0, 0), 0);
	CHECK_EQ(ring_mem_regions(mem, NULL, 0), 2);

	CHECK_EQ(ring_mem_remove(mem, 8192, 4096, 0), -RING_E_NOREGION);
	CHECK_EQ(ring_mem_remove(mem, 8192, 8192, 0x0fff000), -RING_E_NOREGION);
	CHECK_EQ(ring_mem_remove(mem, 8192, 4096, 0x0fff000), 0);
	CHECK_EQ(ring_mem_remove(mem, 8192, 4096, 0x0fff000), -RING_E_NOREGION);
	ring_mem_clear(mem);
	CHECK_EQ(ring_mem_regions(mem, NULL, 0), 0);
	CHECK_EQ(ring_mem_translate(mem, RING_ADDR_GPA, 0, 1, 0, iov, 4), -RING_E_ADDR);

	for (uint64_t i = 0; i < RING_MEM_MAX_REGIONS; i++)
		CHECK_EQ(ring_mem_add(mem, fd, i * 8192, 4096, i * 8192, i * 4096, 0), 0);
	CHECK_EQ(ring_mem_add(mem, fd, 1ULL << 40, 4096, 1ULL << 40, 0, 0), -RING_E_SLOTS);
	ring_mem_free(mem);
	ring_mem_free(NULL);
	close(fd);
	close(zero);
	close(ro);
	close(pipefd[0]);
	close(pipefd[1]);
}

static void test_offsets(void)
{
	struct ring_mem *mem = ring_mem_new();
	struct ring_region_info info[2];
	struct ring_iov iov[2];
	int fd = memfd(64 * KIB);
	uint8_t byte;

	for (int i = 0; i < 64 * KIB; i++) {
		byte = (uint8_t)(i * 7 + i / 256);
		CHECK(pwrite(fd, &byte, 1, i) == 1);
	}
	CHECK_EQ(ring_mem_add(mem, fd, 0x1000, 5000, 0x7f0000001000, 12345, 0), 0);
	CHECK_EQ(ring_mem_translate(mem, RING_ADDR_GPA, 0x1000 + 10, 4000, 1, iov, 2), 1);
	for (int i = 0; i < 4000; i++) {
		int at = 12345 + 10 + i;

		CHECK_EQ(((uint8_t *)iov[0].base)[i], (uint8_t)(at * 7 + at / 256));
	}
	CHECK_EQ(ring_mem_regions(mem, info, 2), 1);
	CHECK_EQ(info[0].offset, 12345);
	CHECK_EQ(info[0].uaddr, 0x7f0000001000);
	CHECK_EQ(ring_mem_add(mem, fd, 0x100000, 4096, 0, 4096, RING_MEM_NOTOUCH), 0);
	CHECK_EQ(ring_mem_translate(mem, RING_ADDR_GPA, 0x100000, 1, 1, iov, 2), 1);
	CHECK_EQ(*(uint8_t *)iov[0].base, (uint8_t)(4096 * 7 + 16));
	ring_mem_free(mem);
	close(fd);
}

/* Ranges over the border of adjacent regions; the uaddr order differs from the gpa order. */
static void test_crossing(void)
{
	struct ring_mem *mem = ring_mem_new();
	static uint8_t a[8192], b[8192], c[8192];
	struct ring_iov iov[4];

	CHECK_EQ(ring_mem_add_mapped(mem, b, 0x2000, 0x2000, 0x90000, 0), 0);
	CHECK_EQ(ring_mem_add_mapped(mem, a, 0x0000, 0x2000, 0x92000, 0), 0);
	CHECK_EQ(ring_mem_add_mapped(mem, c, 0x4000, 0x2000, 0x50000, RING_MEM_RO), 0);
	CHECK_EQ(ring_mem_add_mapped(mem, a + 4096, 0x9000, 0x1000, 0xa0000, 0), -RING_E_OVERLAP);
	CHECK_EQ(ring_mem_add_mapped(mem, NULL, 0x9000, 0x1000, 0xa0000, 0), -RING_E_RANGE);
	CHECK_EQ(ring_mem_add_mapped(mem, (void *)(UINTPTR_MAX - 100), 0x9000, 0x1000, 0xa0000, 0), -RING_E_RANGE);
	CHECK_EQ(ring_mem_translate(mem, RING_ADDR_GPA, 0x1ff0, 0x2020, 0, iov, 4), 3);
	CHECK(iov[0].base == a + 0x1ff0 && iov[0].len == 0x10);
	CHECK(iov[1].base == b && iov[1].len == 0x2000);
	CHECK(iov[2].base == c && iov[2].len == 0x10);
	CHECK_EQ(ring_mem_translate(mem, RING_ADDR_GPA, 0x1ff0, 0x2020, 0, iov, 2), -RING_E_IOVECS);
	CHECK_EQ(ring_mem_translate(mem, RING_ADDR_GPA, 0x1ff0, 0x2020, 1, iov, 4), -RING_E_PERM);
	CHECK_EQ(ring_mem_translate(mem, RING_ADDR_GPA, 0x1ff0, 0x4011, 0, iov, 4), -RING_E_ADDR);
	CHECK_EQ(ring_mem_translate(mem, RING_ADDR_UADDR, 0x91fff, 2, 1, iov, 4), 2);
	CHECK(iov[0].base == b + 0x1fff && iov[0].len == 1);
	CHECK(iov[1].base == a && iov[1].len == 1);
	CHECK_EQ(ring_mem_translate(mem, RING_ADDR_UADDR, 0x8ffff, 1, 0, iov, 4), -RING_E_ADDR);
	CHECK_EQ(ring_mem_translate(mem, RING_ADDR_UADDR, 0x94000, 1, 0, iov, 4), -RING_E_ADDR);
	ring_mem_free(mem);
}

struct naive {
	uint64_t gpa, len, uaddr;
	uint8_t *hva;
};

static const struct naive *naive_find(const struct naive *r, int nr, uint64_t gpa)
{
	for (int i = 0; i < nr; i++)
		if (gpa >= r[i].gpa && gpa - r[i].gpa < r[i].len)
			return &r[i];
	return NULL;
}

static void check_lookups(const struct ring_mem *mem, const struct naive *r, int nr)
{
	uint32_t hint = 0;

	for (int i = 0; i < 100000; i++) {
		const struct naive *base = nr ? &r[rnd() % (unsigned int)nr] : NULL, *want;
		const struct ring_region *got;
		uint64_t gpa = rnd();

		if (base && i % 8)	/* mostly at and near the borders */
			gpa = base->gpa + (i % 2 ? rnd() % base->len : base->len * (rnd() & 1)) + rnd() % 3 - 1;
		want = naive_find(r, nr, gpa);
		got = ring_memtab_find(mem->tab, gpa, &hint);
		CHECK((want == NULL) == (got == NULL));
		CHECK(want == NULL || (got->hva == want->hva && got->gpa == want->gpa));
	}
}

/* All slots, anywhere in 64 bits or dense, with holes; then half of them removed. */
static void test_lookup(int spread)
{
	static struct naive r[RING_MEM_MAX_REGIONS];
	struct ring_mem *mem = ring_mem_new();
	uint8_t *pool = mmap(NULL, 512UL * 16384, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int nr = 0, kept = 0;

	CHECK(pool != MAP_FAILED);
	check_lookups(mem, r, 0);
	while (nr < RING_MEM_MAX_REGIONS) {
		struct naive n = { .len = 1 + rnd() % 16384, .hva = pool + nr * 16384 };
		bool skip = false;

		n.gpa = rnd() >> spread;
		n.uaddr = rnd() >> 1;
		for (int i = 0; i < nr; i++)
			skip |= n.gpa <= r[i].gpa + r[i].len - 1 && r[i].gpa <= n.gpa + n.len - 1;
		if (skip || n.gpa + n.len < n.gpa)
			continue;
		CHECK_EQ(ring_mem_add_mapped(mem, n.hva, n.gpa, n.len, n.uaddr, 0), 0);
		r[nr++] = n;
	}
	check_lookups(mem, r, nr);
	for (int i = 0; i < nr; i++) {
		struct ring_iov iov;

		CHECK_EQ(ring_mem_translate(mem, RING_ADDR_UADDR, r[i].uaddr + r[i].len - 1, 1, 0, &iov, 1), 1);
		CHECK(iov.base == r[i].hva + r[i].len - 1);
	}
	for (int i = 0; i < nr; i++) {
		if (i % 2)
			CHECK_EQ(ring_mem_remove(mem, r[i].gpa, r[i].len, r[i].uaddr), 0);
		else
			r[kept++] = r[i];
	}
	check_lookups(mem, r, kept);
	ring_mem_free(mem);
	munmap(pool, 512UL * 16384);
}

static void test_log(void)
{
	struct ring_mem *mem = ring_mem_new();
	uint8_t *ram = mmap(NULL, 1 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *bits;
	int fd = memfd(3 * 4096);

	CHECK(ram != MAP_FAILED);
	bits = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(bits != MAP_FAILED);
	CHECK_EQ(ring_mem_add_mapped(mem, ram, 0, 512 * KIB, 0, 0), 0);
	CHECK_EQ(ring_mem_add_mapped(mem, ram + 512 * KIB, 0x100000000, 512 * KIB, 0x100000000, 0), 0);
	ring_mem_log_gpa(mem, 0, 4096);	/* no log: nothing happens */
	CHECK_EQ(ring_mem_log_set(mem, fd, 3 * 4096, 0), -RING_E_LOG);
	CHECK_EQ(ring_mem_remove(mem, 0x100000000, 512 * KIB, 0x100000000), 0);
	CHECK_EQ(ring_mem_log_set(mem, fd, 15, 0), -RING_E_LOG);
	CHECK_EQ(ring_mem_log_set(mem, fd, 3 * 4096, 1), -RING_E_SHORT);
	CHECK_EQ(ring_mem_log_set(mem, fd, UINT64_MAX, 4096), -RING_E_RANGE);
	CHECK_EQ(ring_mem_log_set(mem, fd, 16, 4096), 0);
	CHECK_EQ(ring_mem_add_mapped(mem, ram + 512 * KIB, 0x100000000, 512 * KIB, 0x100000000, 0), 0);

	ring_mem_log_gpa(mem, 4095, 1);
	CHECK_EQ(bits[4096], 0x01);
	ring_mem_log_gpa(mem, 4095, 2);
	CHECK_EQ(bits[4096], 0x03);
	ring_mem_log_gpa(mem, 0x5000, 0);
	CHECK_EQ(bits[4096], 0x03);
	ring_log_hva(mem, ram + 7 * 4096 + 1, 2 * 4096);	/* pages 7, 8, 9 */
	CHECK_EQ(bits[4096], 0x83);
	CHECK_EQ(bits[4097], 0x03);
	ring_mem_log_gpa(mem, 16 * 4096, 40 * 4096);
	CHECK_EQ(bits[4098], 0xff);
	CHECK_EQ(bits[4102], 0xff);
	CHECK_EQ(bits[4103], 0x00);
	CHECK_EQ(atomic_load(&mem->log_misses), 0);

	/* outside the log, outside memory: counted, not written */
	ring_log_hva(mem, ram + 512 * KIB, 1);
	CHECK_EQ(atomic_load(&mem->log_misses), 1);
	ring_mem_log_gpa(mem, 126 * 4096, 4 * 4096);
	CHECK_EQ(bits[4096 + 15], 0xc0);
	CHECK_EQ(atomic_load(&mem->log_misses), 3);
	ring_mem_log_gpa(mem, UINT64_MAX, 2);
	ring_mem_log_gpa(mem, UINT64_MAX, 1);
	ring_log_hva(mem, &fd, 4);
	CHECK_EQ(atomic_load(&mem->log_misses), 6);
	CHECK_EQ(bits[4095], 0);
	CHECK_EQ(bits[4096 + 16], 0);
	/* over the border of two regions that lie side by side here, far apart in the guest */
	ring_log_hva(mem, ram + 512 * KIB - 1, 2);
	CHECK_EQ(bits[4096 + 15], 0xc0);
	CHECK_EQ(atomic_load(&mem->log_misses), 7);
	ring_mem_log_clear(mem);
	memset(bits, 0, 3 * 4096);
	ring_mem_log_gpa(mem, 0, 4096);
	CHECK_EQ(bits[4096], 0);
	ring_mem_free(mem);
	munmap(ram, 1 * MIB);
	munmap(bits, 3 * 4096);
	close(fd);
}

/* IOTLB against a model: each page of a small iova space has a uaddr and a permission. */
enum { PAGES = 256 };

static void test_iotlb_model(void)
{
	struct ring_iotlb *tlb = ring_iotlb_new();
	struct ring_mem *mem = ring_mem_new();
	static uint64_t uaddr[PAGES];
	static uint32_t perm[PAGES];
	uint8_t *ram = mmap(NULL, 1UL << 28, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct ring_iotlb_miss miss[RING_IOTLB_MISSES];
	struct ring_iov iov[PAGES];

	CHECK(ram != MAP_FAILED);
	CHECK_EQ(ring_mem_add_mapped(mem, ram, 0, 1UL << 28, 0, 0), 0);
	for (int round = 0; round < 20000; round++) {
		uint64_t at = rnd() % PAGES, n = 1 + rnd() % (PAGES - at < 20 ? PAGES - at : 20);
		uint64_t to = rnd() % 2 ? at : rnd() % 65000, gen = ring_iotlb_generation(tlb);
		uint32_t p = (uint32_t)(1 + rnd() % 3);
		bool had = false, ok = true, same = true;
		uint32_t more;
		int got;

		for (uint64_t i = at; i < at + n; i++) {
			had |= perm[i] != 0;
			same &= perm[i] == perm[at] && uaddr[i] == (to + i - at) * 4096;
		}
		more = same ? perm[at] : 0;
		switch (rnd() % 3) {
		case 0:
			CHECK_EQ(ring_iotlb_update(tlb, at * 4096, n * 4096, to * 4096, p), 0);
			for (uint64_t i = 0; i < n; i++) {
				uaddr[at + i] = (to + i) * 4096;
				perm[at + i] = p | more;
			}
			CHECK(!had || ring_iotlb_generation(tlb) > gen);
			break;
		case 1:
			if (rnd() % 4)
				break;
			CHECK_EQ(ring_iotlb_invalidate(tlb, at * 4096, n * 4096), 0);
			memset(&perm[at], 0, n * sizeof(perm[0]));
			CHECK(!had || ring_iotlb_generation(tlb) > gen);
			break;
		}
		at = rnd() % PAGES;
		n = 1 + rnd() % (PAGES - at < 20 ? PAGES - at : 20);
		for (uint64_t i = at; i < at + n; i++)
			ok &= (perm[i] & p & 1) || (perm[i] & p & 2);
		if (p == 3)
			continue;
		got = ring_iotlb_translate(tlb, mem, at * 4096 + 5, n * 4096 - 5, p == 2, 7, iov, PAGES);
		if (!ok) {
			CHECK_EQ(got, -RING_MISS);
			CHECK(ring_iotlb_misses(tlb, miss, RING_IOTLB_MISSES) >= 1);
			CHECK_EQ(miss[0].perm, p);
			CHECK_EQ(miss[0].queue, 7);
			CHECK((perm[miss[0].iova / 4096] & p) == 0);
			continue;
		}
		CHECK(got >= 1);
		for (uint64_t off = 5, k = 0, in = 0; off < n * 4096; off++, in++) {
			if (in == iov[k].len) {
				in = 0;
				k++;
			}
			CHECK((uint8_t *)iov[k].base + in == ram + uaddr[at + off / 4096] + off % 4096);
			if (off % 4096 == 8) {	/* borders are what matters */
				off += 4000;
				in += 4000;
			}
		}
	}
	ring_iotlb_free(tlb);
	ring_mem_free(mem);
	munmap(ram, 1UL << 28);
}

static void test_iotlb_edges(void)
{
	struct ring_iotlb *tlb = ring_iotlb_new();
	struct ring_mem *mem = ring_mem_new();
	struct ring_iotlb_miss miss[RING_IOTLB_MISSES + 1];
	static uint8_t ram[8192];
	struct ring_iov iov[4];

	CHECK_EQ(ring_mem_add_mapped(mem, ram, 0, 8192, 0x100000, 0), 0);
	CHECK_EQ(ring_iotlb_update(tlb, 0, 0, 0, 3), -RING_E_RANGE);
	CHECK_EQ(ring_iotlb_update(tlb, 0, 4096, 0, 4), -RING_E_RANGE);
	CHECK_EQ(ring_iotlb_update(tlb, UINT64_MAX - 4095, 4097, 0, 3), -RING_E_RANGE);
	CHECK_EQ(ring_iotlb_update(tlb, 0, 4097, UINT64_MAX - 4095, 3), -RING_E_RANGE);
	CHECK_EQ(ring_iotlb_invalidate(tlb, UINT64_MAX, 2), -RING_E_RANGE);
	/* the last page of the space is an ordinary one */
	CHECK_EQ(ring_iotlb_update(tlb, UINT64_MAX - 4095, 4096, 0x100000, 1), 0);
	CHECK_EQ(ring_iotlb_translate(tlb, mem, UINT64_MAX - 4095, 4096, 0, 0, iov, 4), 1);
	CHECK(iov[0].base == ram && iov[0].len == 4096);
	CHECK_EQ(ring_iotlb_translate(tlb, mem, UINT64_MAX, 2, 0, 0, iov, 4), -RING_E_RANGE);
	CHECK_EQ(ring_iotlb_translate(tlb, mem, 0, 0, 0, 0, iov, 4), -RING_E_RANGE);
	/* too little permission is a miss that asks for more; the answer widens it */
	CHECK_EQ(ring_iotlb_translate(tlb, mem, UINT64_MAX - 10, 4, 1, 3, iov, 4), -RING_MISS);
	CHECK_EQ(ring_iotlb_translate(tlb, mem, UINT64_MAX - 10, 4, 1, 3, iov, 4), -RING_MISS);
	CHECK_EQ(ring_iotlb_misses(tlb, miss, 8), 1);
	CHECK(miss[0].iova == UINT64_MAX - 4095 && miss[0].perm == RING_PERM_WRITE && miss[0].queue == 3);
	CHECK_EQ(ring_iotlb_misses(tlb, miss, 8), 0);
	CHECK_EQ(ring_iotlb_translate(tlb, mem, UINT64_MAX - 10, 4, 1, 3, iov, 4), -RING_MISS);
	CHECK_EQ(ring_iotlb_update(tlb, UINT64_MAX - 4095, 4096, 0x100000, 3), 0);
	CHECK_EQ(ring_iotlb_misses(tlb, miss, 8), 0);	/* answered before it was taken */
	CHECK_EQ(ring_iotlb_translate(tlb, mem, UINT64_MAX - 10, 4, 1, 3, iov, 4), 1);
	/* an entry that leads nowhere */
	CHECK_EQ(ring_iotlb_update(tlb, 0, 4096, 0x102000, 3), 0);
	CHECK_EQ(ring_iotlb_translate(tlb, mem, 0, 1, 0, 0, iov, 4), -RING_E_ADDR);
	/* two entries, not side by side in uaddr: two pieces, but not with room for one */
	CHECK_EQ(ring_iotlb_update(tlb, 0, 4096, 0x101000, 3), 0);
	CHECK_EQ(ring_iotlb_update(tlb, 4096, 4096, 0x100000, 3), 0);
	CHECK_EQ(ring_iotlb_translate(tlb, mem, 4000, 200, 0, 0, iov, 4), 2);
	CHECK(iov[0].base == ram + 4096 + 4000 && iov[0].len == 96 && iov[1].base == ram && iov[1].len == 104);
	CHECK_EQ(ring_iotlb_translate(tlb, mem, 4000, 200, 0, 0, iov, 1), -RING_E_IOVECS);
	/* side by side in both: one piece */
	CHECK_EQ(ring_iotlb_update(tlb, 0, 4096, 0x100000, 3), 0);
	CHECK_EQ(ring_iotlb_update(tlb, 4096, 4096, 0x101000, 3), 0);
	CHECK_EQ(ring_iotlb_translate(tlb, mem, 0, 8192, 1, 0, iov, 1), 1);
	/* no access, and QEMU's flush of everything */
	CHECK_EQ(ring_iotlb_update(tlb, 4096, 4096, 0x101000, 0), 0);
	CHECK_EQ(ring_iotlb_translate(tlb, mem, 0, 8192, 1, 0, iov, 4), -RING_MISS);
	CHECK_EQ(ring_iotlb_invalidate(tlb, 0, 0), 0);
	CHECK_EQ(ring_iotlb_translate(tlb, mem, 0, 1, 0, 0, iov, 4), -RING_MISS);
	CHECK_EQ(ring_iotlb_translate(tlb, mem, UINT64_MAX, 1, 0, 0, iov, 4), -RING_MISS);
	ring_iotlb_clear(tlb);
	CHECK_EQ(ring_iotlb_misses(tlb, miss, 8), 0);
	/* a flood of misses is bounded */
	for (uint64_t i = 0; i < 1000; i++)
		CHECK_EQ(ring_iotlb_translate(tlb, mem, i << 20, 1, 0, 0, iov, 4), -RING_MISS);
	CHECK_EQ(ring_iotlb_misses(tlb, miss, RING_IOTLB_MISSES + 1), RING_IOTLB_MISSES);
	CHECK_EQ(ring_iotlb_translate(tlb, mem, 100, UINT64_MAX - 200, 0, 0, iov, 4), -RING_MISS);
	CHECK_EQ(ring_iotlb_misses(tlb, miss, RING_IOTLB_MISSES), RING_IOTLB_AHEAD);
	/* and so is the table */
	for (uint64_t i = 0; i < RING_IOTLB_MAX; i++)
		CHECK_EQ(ring_iotlb_update(tlb, i * 8192, 4096, i * 4096, 1), 0);
	CHECK_EQ(ring_iotlb_update(tlb, 4096, 4096, 0, 1), -ENOSPC);
	CHECK_EQ(ring_iotlb_invalidate(tlb, 0, UINT64_MAX), 0);
	CHECK_EQ(ring_iotlb_update(tlb, 4096, 4096, 0, 1), 0);
	ring_iotlb_free(tlb);
	ring_iotlb_free(NULL);
	ring_mem_free(mem);
}

/* A front-end cuts its file short: the flag goes up, we live, nobody else's memory changes. */
static void test_truncated(void)
{
	struct ring_mem *mem = ring_mem_new(), *other = ring_mem_new();
	struct ring_shared *shared;
	int fd = memfd(1 * MIB), fd2 = memfd(1 * MIB), file, n;
	struct ring_iov iov, iov2;
	struct iovec kernel;
	uint8_t page[4096];

	CHECK_EQ(ring_mem_add(mem, fd, 0, 1 * MIB, 0, 0, 0), 0);
	CHECK_EQ(ring_mem_add(other, fd2, 0, 1 * MIB, 0, 0, 0), 0);
	CHECK_EQ(ring_shared_map(fd2, 4096, 4096, &shared), 0);
	CHECK_EQ(ring_mem_translate(mem, RING_ADDR_GPA, 0, 1 * MIB, 1, &iov, 1), 1);
	CHECK_EQ(ring_mem_translate(other, RING_ADDR_GPA, 0, 1 * MIB, 1, &iov2, 1), 1);
	memset(iov.base, 0x5a, 1 * MIB);
	memset(iov2.base, 0xa5, 1 * MIB);
	CHECK_EQ(*(uint8_t *)ring_shared_base(shared), 0xa5);
	CHECK_EQ(ftruncate(fd, 8192), 0);
	CHECK_EQ(ring_mem_faulted(mem), 0);
	/* a system call meets the hole: an error, no signal */
	file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	kernel.iov_base = (uint8_t *)iov.base + 16384;
	kernel.iov_len = 4096;
	CHECK_EQ(readv(file, &kernel, 1), -1);
	CHECK_EQ(errno, EFAULT);
	CHECK_EQ(ring_mem_faulted(mem), 0);
	/* we meet it */
	CHECK_EQ(shm_load8((uint8_t *)iov.base + 8191), 0x5a);
	CHECK_EQ(ring_mem_faulted(mem), 0);
	CHECK_EQ(shm_load8((uint8_t *)iov.base + 8192), 0);
	CHECK_EQ(ring_mem_faulted(mem), 1);
	shm_copy_in(page, (uint8_t *)iov.base + 1 * MIB - 4096, sizeof(page));
	for (n = 0; n < 4096; n++)
		CHECK_EQ(page[n], 0);
	memset((uint8_t *)iov.base + 100000, 1, 300000);
	CHECK_EQ(shm_load8((uint8_t *)iov.base + 8191), 0x5a);
	for (n = 0; n < 1 * MIB; n++)
		CHECK(((uint8_t *)iov2.base)[n] == 0xa5);
	CHECK_EQ(ring_mem_faulted(other), 0);
	CHECK_EQ(ring_shared_faulted(shared), 0);
	CHECK_EQ(ftruncate(fd2, 0), 0);
	CHECK_EQ(*(uint8_t *)ring_shared_base(shared), 0);
	CHECK_EQ(ring_shared_faulted(shared), 1);
	CHECK_EQ(ring_mem_faulted(other), 0);
	ring_shared_unmap(shared);
	ring_mem_free(mem);
	ring_mem_free(other);
	close(fd);
	close(fd2);
	close(file);
}

/* hugetlbfs: the size that counts is st_size, mappings are whole huge pages, and so is the patch over a hole. */
static void test_huge(void)
{
	enum { HUGE = 2 * MIB };
	int fd = memfd_create("mem_unit", MFD_CLOEXEC | MFD_HUGETLB);
	struct ring_mem *mem = ring_mem_new();
	struct ring_iov iov;
	void *probe;

	if (fd < 0 || ftruncate(fd, 2 * HUGE) < 0) {
		printf("mem_unit: no hugetlbfs here: %s\n", strerror(errno));
		ring_mem_free(mem);
		return;
	}
	CHECK_EQ(ring_mem_add(mem, fd, 0, 2 * HUGE + 1, 0, 0, 0), -RING_E_SHORT);
	probe = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (probe == MAP_FAILED)
		printf("mem_unit: no huge pages reserved: only faults without a page are tested\n");
	else
		munmap(probe, 2 * HUGE);
	/* no reservation is asked for, so this works either way; without a free page the touch is a SIGBUS of its own */
	CHECK_EQ(ring_mem_add(mem, fd, 0, HUGE - 4096, 0, 4096, 0), 0);
	CHECK_EQ(ring_mem_add(mem, fd, HUGE, HUGE, HUGE, HUGE, 0), 0);
	CHECK_EQ(ring_mem_translate(mem, RING_ADDR_GPA, HUGE, HUGE, 1, &iov, 1), 1);
	if (probe != MAP_FAILED) {
		memset(iov.base, 7, HUGE);
		CHECK_EQ(ring_mem_faulted(mem), 0);
		CHECK_EQ(ftruncate(fd, HUGE), 0);
	}
	CHECK_EQ(shm_load8((uint8_t *)iov.base + 12345), 0);
	memset(iov.base, 1, HUGE);
	CHECK_EQ(ring_mem_faulted(mem), 1);
	CHECK_EQ(ring_mem_remove(mem, 0, HUGE - 4096, 0), 0);
	ring_mem_free(mem);
	close(fd);
}

static void poke_hole(void)	/* a SIGBUS that is nobody's but ours to die of */
{
	int fd = memfd(4096);
	volatile uint8_t *p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);

	CHECK(p != MAP_FAILED && ftruncate(fd, 0) == 0);
	(void)p[0];
}

static void recover(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)context;
	if (mmap((void *)((uintptr_t)info->si_addr & ~4095UL), 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
		 -1, 0) == MAP_FAILED)
		_exit(3);
}

static void plain(int sig)
{
	(void)sig;
	_exit(42);
}

/* What becomes of a SIGBUS that is not ours, for each disposition found at the first guard. */
static void in_child(int kind, int want_exit, int want_signal)
{
	pid_t pid;
	int status;

	fflush(NULL);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		struct sigaction act = { .sa_handler = SIG_DFL };
		struct ring_mem *mem = ring_mem_new();
		int fd = memfd(4096);
		struct ring_iov iov;

		if (kind == 1 || kind == 4)
			act.sa_handler = plain;
		else if (kind == 2) {
			act.sa_sigaction = recover;
			act.sa_flags = SA_SIGINFO;
		} else if (kind == 3)
			act.sa_handler = SIG_IGN;
		if (kind != 4)
			sigaction(SIGBUS, &act, NULL);
		if (ring_mem_add(mem, fd, 0, 4096, 0, 0, 0) < 0)
			_exit(9);
		if (kind == 4) {	/* put on top of ours; the next guard takes over again */
			sigaction(SIGBUS, &act, NULL);
			ring_mem_clear(mem);
			if (ring_mem_add(mem, fd, 0, 4096, 0, 0, 0) < 0)
				_exit(9);
		}
		if (ring_mem_translate(mem, RING_ADDR_GPA, 0, 1, 0, &iov, 1) != 1 || ftruncate(fd, 0) < 0)
			_exit(9);
		if (shm_load8(iov.base) != 0 || !ring_mem_faulted(mem))
			_exit(8);
		if (kind == 3)
			raise(SIGBUS);	/* stays ignored */
		if (kind == 5) {
			raise(SIGBUS);
			_exit(7);
		}
		poke_hole();
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	if (want_signal)
		CHECK(WIFSIGNALED(status) && WTERMSIG(status) == want_signal);
	else
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == want_exit);
}

static void test_chaining(void)
{
	in_child(0, 0, SIGBUS);		/* default: dies of it */
	in_child(1, 42, 0);		/* a plain handler gets it */
	in_child(2, 0, 0);		/* one with siginfo recovers from it */
	in_child(3, 0, SIGBUS);		/* ignored: a fault cannot be */
	in_child(4, 42, 0);
	in_child(5, 0, SIGBUS);		/* sent, not faulted */
}

int main(void)
{
	test_chaining();	/* first: while nobody has installed the handler in this process */
	test_refusals();
	test_offsets();
	test_crossing();
	test_lookup(0);
	test_lookup(24);
	test_lookup(40);
	test_log();
	test_iotlb_model();
	test_iotlb_edges();
	test_truncated();
	test_huge();
	printf("mem_unit: ok\n");
	return 0;
}
