/* SPDX-License-Identifier: Apache-2.0 */
/*
 * translate.c - addresses of guests and front-ends to pieces in our address space.
 *
 * A range is accepted only if every byte of it lies in mapped memory with the access asked for; a range over adjacent
 * regions gives one piece per region. Every comparison is of the form `addr - start < len`: nothing here can wrap.
 */
#include "ring/csrc/iotlb.h"
#include "ring/csrc/mem.h"

const struct ring_region *ring_memtab_find(const struct ring_memtab *tab, uint64_t gpa, uint32_t *hint)
{
	const struct ring_region *r;
	uint32_t lo, hi, mid;
	uint64_t g;

	lo = *hint;
	if (lo < tab->nr) {
		r = &tab->by_gpa[lo];
		if (gpa - r->gpa < r->len)
			return r;
	}
	g = gpa >> tab->shift;
	if (g >= RING_GRANULES)
		return NULL;
	/* what holds an address of granule g starts in it or before, and ends in it or is the first to end later */
	lo = tab->granule[g];
	hi = g + 1 < RING_GRANULES ? tab->granule[g + 1] + 1U : tab->nr;
	if (hi > tab->nr)
		hi = tab->nr;
	while (lo < hi) {
		mid = lo + (hi - lo) / 2;
		r = &tab->by_gpa[mid];
		if (gpa < r->gpa) {
			hi = mid;
		} else if (gpa - r->gpa < r->len) {
			*hint = mid;
			return r;
		} else {
			lo = mid + 1;
		}
	}
	return NULL;
}

static const struct ring_region *find_uaddr(const struct ring_memtab *tab, uint64_t uaddr)
{
	uint32_t lo = 0, hi = tab->nr;

	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;
		const struct ring_region *r = &tab->by_gpa[tab->by_uaddr[mid]];

		if (uaddr < r->uaddr)
			hi = mid;
		else if (uaddr - r->uaddr < r->len)
			return r;
		else
			lo = mid + 1;
	}
	return NULL;
}

int ring_mem_translate(const struct ring_mem *mem, int kind, uint64_t addr, uint64_t len, int write,
		       struct ring_iov *out, int max)
{
	const struct ring_memtab *tab = mem->tab;
	const struct ring_region *r;
	uint64_t off, part, last;
	uint32_t hint = 0;
	int n = 0;

	if (len == 0 || __builtin_add_overflow(addr, len - 1, &last))
		return -RING_E_RANGE;
	for (;;) {
		if (kind == RING_ADDR_UADDR) {
			r = find_uaddr(tab, addr);
			off = r ? addr - r->uaddr : 0;
		} else {
			r = ring_memtab_find(tab, addr, &hint);
			off = r ? addr - r->gpa : 0;
		}
		if (r == NULL)
			return -RING_E_ADDR;
		if (write && (r->flags & RING_MEM_RO))
			return -RING_E_PERM;
		if (n >= max)
			return -RING_E_IOVECS;
		part = r->len - off;
		if (part > len)
			part = len;
		out[n].base = r->hva + off;
		out[n].len = part;
		n++;
		len -= part;
		if (len == 0)
			return n;
		addr += part;
	}
}

uint32_t ring_iotlb_lower(const struct ring_iotlb *tlb, uint64_t iova)
{
	uint32_t lo = 0, hi = tlb->nr;

	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;

		if (tlb->entries[mid].last < iova)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

/* The entry that holds @iova and grants @perm, or NULL. */
static const struct ring_iotlb_entry *find_iova(struct ring_iotlb *tlb, uint64_t iova, uint32_t perm)
{
	const struct ring_iotlb_entry *e;
	uint32_t i = tlb->hint;

	if (i >= tlb->nr || iova < tlb->entries[i].first || iova > tlb->entries[i].last)
		i = ring_iotlb_lower(tlb, iova);
	if (i >= tlb->nr)
		return NULL;
	e = &tlb->entries[i];
	if (iova < e->first || (e->perm & perm) != perm)
		return NULL;
	tlb->hint = i;
	return e;
}

static void record_miss(struct ring_iotlb *tlb, uint64_t iova, uint32_t perm, uint32_t queue)
{
	struct ring_iotlb_miss *m;

	for (uint32_t i = 0; i < tlb->nr_misses; i++) {
		m = &tlb->misses[i];
		if (m->iova == iova && (m->perm & perm) == perm)
			return;
	}
	if (tlb->nr_misses == RING_IOTLB_MISSES)
		return;
	m = &tlb->misses[tlb->nr_misses++];
	m->iova = iova;
	m->perm = perm;
	m->queue = queue;
}

/* Ask for the pages of [iova, last] that are not there, a few at once: each answer costs a round trip. */
static void record_misses(struct ring_iotlb *tlb, uint64_t iova, uint64_t last, uint32_t perm, uint32_t queue)
{
	uint64_t page = iova - iova % RING_IOTLB_PAGE;

	for (int n = 0; n < RING_IOTLB_AHEAD; n++) {
		if (find_iova(tlb, page < iova ? iova : page, perm) == NULL)
			record_miss(tlb, page, perm, queue);
		if (last - page < RING_IOTLB_PAGE)
			return;
		page += RING_IOTLB_PAGE;
	}
}

int ring_iotlb_translate(struct ring_iotlb *tlb, const struct ring_mem *mem, uint64_t iova, uint64_t len, int write,
			 uint32_t queue, struct ring_iov *out, int max)
{
	uint32_t perm = write ? RING_PERM_WRITE : RING_PERM_READ;
	const struct ring_iotlb_entry *e;
	uint64_t last, uaddr, part, run_uaddr = 0, run_len = 0;
	int n = 0, got;

	if (len == 0 || __builtin_add_overflow(iova, len - 1, &last))
		return -RING_E_RANGE;
	pthread_mutex_lock(&tlb->lock);
	while (len > 0) {
		e = find_iova(tlb, iova, perm);
		if (e == NULL) {
			record_misses(tlb, iova, last, perm, queue);
			n = -RING_MISS;
			goto out;
		}
		part = e->last - iova;
		part = part < len - 1 ? part + 1 : len;
		uaddr = e->uaddr + (iova - e->first);
		if (run_len > 0 && uaddr == run_uaddr + run_len) {
			run_len += part;
		} else {
			if (run_len > 0) {
				got = ring_mem_translate(mem, RING_ADDR_UADDR, run_uaddr, run_len, write, out + n,
							 max - n);
				if (got < 0) {
					n = got;
					goto out;
				}
				n += got;
			}
			run_uaddr = uaddr;
			run_len = part;
		}
		iova += part;
		len -= part;
	}
	got = ring_mem_translate(mem, RING_ADDR_UADDR, run_uaddr, run_len, write, out + n, max - n);
	n = got < 0 ? got : n + got;
out:
	pthread_mutex_unlock(&tlb->lock);
	return n;
}
