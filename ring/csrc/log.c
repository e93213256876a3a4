/* SPDX-License-Identifier: Apache-2.0 */
/*
 * log.c - the dirty log of a migrating guest: one bit per 4 KiB page, set by atomic OR, because the front-end takes and
 * clears bits at the same time (vhost-user, "Migration").
 *
 * A byte that is set already is not written again. That is safe only if our data is visible before the byte is looked
 * at; hence one full fence per call. Its pair is the front-end's atomic exchange of the log word, before it copies the
 * page: either it sees our data, or we see its exchange and set the bit anew.
 */
#include "ring/csrc/mem.h"

static void log_pages(struct ring_mem *mem, uint64_t gpa, uint64_t len)
{
	uint64_t page = gpa / RING_LOG_PAGE;
	uint64_t last = (gpa + (len - 1)) / RING_LOG_PAGE;

	while (page <= last) {
		uint64_t byte = page / 8;
		unsigned int from = page % 8;
		unsigned int to = last / 8 == byte ? last % 8 : 7;

		if (byte >= mem->log.size) {
			atomic_fetch_add_explicit(&mem->log_misses, last - page + 1, memory_order_relaxed);
			return;
		}
		shm_or8(mem->log.base + byte, (uint8_t)((0xffU << from) & (0xffU >> (7 - to))));
		page = (byte + 1) * 8;
	}
}

void ring_mem_log_gpa(struct ring_mem *mem, uint64_t gpa, uint64_t len)
{
	uint64_t end;

	if (mem->log.base == NULL || len == 0)
		return;
	if (__builtin_add_overflow(gpa, len - 1, &end)) {
		atomic_fetch_add_explicit(&mem->log_misses, 1, memory_order_relaxed);
		return;
	}
	shm_mb();
	log_pages(mem, gpa, len);
}

static const struct ring_region *find_hva(const struct ring_memtab *tab, uint64_t hva)
{
	uint32_t lo = 0, hi = tab->nr;

	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;
		const struct ring_region *r = &tab->by_gpa[tab->by_hva[mid]];

		if (hva < (uintptr_t)r->hva)
			hi = mid;
		else if (hva - (uintptr_t)r->hva < r->len)
			return r;
		else
			lo = mid + 1;
	}
	return NULL;
}

void ring_log_hva(struct ring_mem *mem, const void *hva, uint64_t len)
{
	uint64_t addr = (uintptr_t)hva;
	const struct ring_region *r;
	uint64_t off, part;

	if (mem->log.base == NULL)
		return;
	shm_mb();
	while (len > 0) {
		r = find_hva(mem->tab, addr);
		if (r == NULL) {	/* a removed region's grave: nothing there is the guest's any more */
			atomic_fetch_add_explicit(&mem->log_misses, 1, memory_order_relaxed);
			return;
		}
		off = addr - (uintptr_t)r->hva;
		part = r->len - off;
		if (part > len)
			part = len;
		log_pages(mem, r->gpa + off, part);
		addr += part;
		len -= part;
	}
}
