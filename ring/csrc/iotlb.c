/* SPDX-License-Identifier: Apache-2.0 */
/*
 * iotlb.c - the IOTLB as the front-end fills and empties it; lookups are in translate.c.
 *
 * An update that needs room takes it before anything is changed, so that a failed one leaves the table as it was.
 */
#include "ring/csrc/iotlb.h"

#include <errno.h>
#include <stdlib.h>

struct ring_iotlb *ring_iotlb_new(void)
{
	struct ring_iotlb *tlb = calloc(1, sizeof(*tlb));

	if (tlb != NULL)
		pthread_mutex_init(&tlb->lock, NULL);
	return tlb;
}

void ring_iotlb_free(struct ring_iotlb *tlb)
{
	if (tlb == NULL)
		return;
	pthread_mutex_destroy(&tlb->lock);
	free(tlb->entries);
	free(tlb);
}

static int reserve(struct ring_iotlb *tlb, uint32_t extra)
{
	struct ring_iotlb_entry *entries;
	uint32_t cap = tlb->cap ? tlb->cap : 64;

	while (cap < tlb->nr + extra)
		cap *= 2;
	if (cap == tlb->cap)
		return 0;
	entries = realloc(tlb->entries, cap * sizeof(*entries));
	if (entries == NULL)
		return -ENOMEM;
	tlb->entries = entries;
	tlb->cap = cap;
	return 0;
}

static void open_gap(struct ring_iotlb *tlb, uint32_t at)
{
	memmove(&tlb->entries[at + 1], &tlb->entries[at], (tlb->nr - at) * sizeof(tlb->entries[0]));
	tlb->nr++;
}

static void close_gap(struct ring_iotlb *tlb, uint32_t at, uint32_t n)
{
	if (n == 0)
		return;
	memmove(&tlb->entries[at], &tlb->entries[at + n], (tlb->nr - at - n) * sizeof(tlb->entries[0]));
	tlb->nr -= n;
}

/* Take [first, last] out of the table; needs room for one more entry. Returns where an entry for it would go. */
static uint32_t cut(struct ring_iotlb *tlb, uint64_t first, uint64_t last, bool *changed)
{
	uint32_t at = ring_iotlb_lower(tlb, first), n = 0;
	struct ring_iotlb_entry *e;

	*changed = at < tlb->nr && tlb->entries[at].first <= last;
	if (!*changed)
		return at;
	if (tlb->entries[at].first < first) {
		if (tlb->entries[at].last > last) {	/* a hole in the middle: two halves, the right one is cut below */
			open_gap(tlb, at);
			tlb->entries[at] = tlb->entries[at + 1];
		}
		tlb->entries[at].last = first - 1;
		at++;
	}
	while (at + n < tlb->nr && tlb->entries[at + n].last <= last)
		n++;
	close_gap(tlb, at, n);
	if (at < tlb->nr && tlb->entries[at].first <= last) {
		e = &tlb->entries[at];
		e->uaddr += last + 1 - e->first;
		e->first = last + 1;
	}
	return at;
}

static bool joins(const struct ring_iotlb_entry *a, const struct ring_iotlb_entry *b)
{
	return a->last + 1 == b->first && a->perm == b->perm && a->uaddr + (b->first - a->first) == b->uaddr;
}

static void insert(struct ring_iotlb *tlb, uint32_t at, const struct ring_iotlb_entry *e)
{
	open_gap(tlb, at);
	tlb->entries[at] = *e;
	if (at + 1 < tlb->nr && joins(&tlb->entries[at], &tlb->entries[at + 1])) {
		tlb->entries[at].last = tlb->entries[at + 1].last;
		close_gap(tlb, at + 1, 1);
	}
	if (at > 0 && joins(&tlb->entries[at - 1], &tlb->entries[at])) {
		tlb->entries[at - 1].last = tlb->entries[at].last;
		close_gap(tlb, at, 1);
	}
}

/* Misses that the new entry answers need not be told any more. */
static void answer(struct ring_iotlb *tlb, const struct ring_iotlb_entry *e)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < tlb->nr_misses; i++) {
		const struct ring_iotlb_miss *m = &tlb->misses[i];
		bool answered = m->iova >= e->first && m->iova <= e->last && (m->perm & ~e->perm) == 0;

		if (!answered)
			tlb->misses[kept++] = *m;
	}
	tlb->nr_misses = kept;
}

/*
 * What an update within one entry that says the same adds to it. Some front-ends answer with just the access that was
 * asked for (QEMU with virtio-iommu): without this, a page both read and written would miss for ever. Whoever takes
 * access away invalidates first.
 */
static uint32_t perm_so_far(const struct ring_iotlb *tlb, const struct ring_iotlb_entry *e)
{
	uint32_t at = ring_iotlb_lower(tlb, e->first);
	const struct ring_iotlb_entry *old = &tlb->entries[at];

	if (at == tlb->nr || old->first > e->first || old->last < e->last ||
	    old->uaddr + (e->first - old->first) != e->uaddr)
		return 0;
	return old->perm;
}

static void stale(struct ring_iotlb *tlb)
{
	atomic_fetch_add_explicit(&tlb->generation, 1, memory_order_release);
}

int ring_iotlb_update(struct ring_iotlb *tlb, uint64_t iova, uint64_t size, uint64_t uaddr, uint32_t perm)
{
	struct ring_iotlb_entry e = { .first = iova, .uaddr = uaddr, .perm = perm };
	uint64_t uaddr_last;
	bool changed;
	uint32_t at;
	int rc;

	if (perm == 0)	/* "no access" is what a missing entry means */
		return ring_iotlb_invalidate(tlb, iova, size);
	if (size == 0 || (perm & ~(uint32_t)(RING_PERM_READ | RING_PERM_WRITE)) ||
	    __builtin_add_overflow(iova, size - 1, &e.last) || __builtin_add_overflow(uaddr, size - 1, &uaddr_last))
		return -RING_E_RANGE;
	pthread_mutex_lock(&tlb->lock);
	rc = tlb->nr >= RING_IOTLB_MAX ? -ENOSPC : reserve(tlb, 2);
	if (rc == 0) {
		e.perm |= perm_so_far(tlb, &e);
		at = cut(tlb, e.first, e.last, &changed);
		insert(tlb, at, &e);
		answer(tlb, &e);
		if (changed)
			stale(tlb);
	}
	pthread_mutex_unlock(&tlb->lock);
	return rc;
}

void ring_iotlb_clear(struct ring_iotlb *tlb)
{
	pthread_mutex_lock(&tlb->lock);
	tlb->nr = 0;
	tlb->nr_misses = 0;
	stale(tlb);
	pthread_mutex_unlock(&tlb->lock);
}

int ring_iotlb_invalidate(struct ring_iotlb *tlb, uint64_t iova, uint64_t size)
{
	uint64_t last;
	bool changed;
	int rc;

	/*
	 * QEMU flushes all with iova 0 and size 2^64, which arrives as 0; and to forget too much is always right.
	 * Unanswered misses stay: nobody has answered them.
	 */
	if (size == 0) {
		pthread_mutex_lock(&tlb->lock);
		tlb->nr = 0;
		stale(tlb);
		pthread_mutex_unlock(&tlb->lock);
		return 0;
	}
	if (__builtin_add_overflow(iova, size - 1, &last))
		return -RING_E_RANGE;
	pthread_mutex_lock(&tlb->lock);
	rc = reserve(tlb, 1);
	if (rc < 0) {	/* no room to split an entry: forget everything */
		tlb->nr = 0;
		changed = true;
	} else {
		cut(tlb, iova, last, &changed);
	}
	if (changed)
		stale(tlb);
	pthread_mutex_unlock(&tlb->lock);
	return 0;
}

int ring_iotlb_misses(struct ring_iotlb *tlb, struct ring_iotlb_miss *out, int max)
{
	uint32_t n;

	if (max <= 0)
		return 0;
	pthread_mutex_lock(&tlb->lock);
	n = tlb->nr_misses < (uint32_t)max ? tlb->nr_misses : (uint32_t)max;
	memcpy(out, tlb->misses, n * sizeof(out[0]));
	tlb->nr_misses -= n;
	memmove(tlb->misses, tlb->misses + n, tlb->nr_misses * sizeof(out[0]));
	pthread_mutex_unlock(&tlb->lock);
	return (int)n;
}
