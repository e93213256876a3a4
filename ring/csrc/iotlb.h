/* SPDX-License-Identifier: Apache-2.0 */
/*
 * iotlb.h - inside of struct ring_iotlb, for iotlb.c (control) and translate.c (lookup from any extension).
 *
 * Entries are disjoint and ordered by iova. Ends are inclusive, so that the whole 64-bit space is an entry like others.
 */
#ifndef RING_IOTLB_H
#define RING_IOTLB_H

#include "ring/csrc/mem.h"

enum {
	RING_IOTLB_MAX = 65536,		/* entries: 256 MiB of 4 KiB pages that nothing coalesces */
	RING_IOTLB_MISSES = 256,	/* misses kept until taken; more are dropped and found again by the next pop */
	RING_IOTLB_PAGE = 4096,		/* misses are told apart by page */
	RING_IOTLB_AHEAD = 16,		/* pages of one buffer asked for at once */
};

struct ring_iotlb_entry {
	uint64_t first;		/* iova */
	uint64_t last;		/* iova, inclusive */
	uint64_t uaddr;		/* of @first */
	uint32_t perm;		/* RING_PERM_*, never 0 */
	uint32_t pad;
};

struct ring_iotlb {
	/* any thread: goes up whenever a translation handed out earlier may have become wrong */
	_Atomic uint64_t generation;
	/* the rest under @lock */
	pthread_mutex_t lock;
	struct ring_iotlb_entry *entries;
	uint32_t nr;
	uint32_t cap;
	uint32_t hint;		/* last hit */
	uint32_t nr_misses;
	struct ring_iotlb_miss misses[RING_IOTLB_MISSES];
};

/* Index of the first entry with last >= @iova; nr if none. Under the lock. */
uint32_t ring_iotlb_lower(const struct ring_iotlb *tlb, uint64_t iova);

static inline uint64_t ring_iotlb_generation(const struct ring_iotlb *tlb)
{
	return atomic_load_explicit(&tlb->generation, memory_order_acquire);
}

#endif
