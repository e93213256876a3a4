/* SPDX-License-Identifier: Apache-2.0 */
/*
 * map.h - mappings of files that somebody else may truncate: checked when made, guarded against SIGBUS while they live.
 *
 * Internal; only `_ring` has the code (the signal handler is process-wide).
 */
#ifndef RING_MAP_H
#define RING_MAP_H

#include "ring/csrc/mem.h"

struct ring_mapping {
	uint8_t *data;	/* the byte at the offset asked for */
	void *base;	/* what was mapped: aligned to the file's page size */
	size_t len;	/* bytes mapped from base */
	size_t page;	/* page size of the file, bytes (hugetlbfs: its own) */
};

/*
 * Map @len bytes of @fd at @offset (any alignment), shared, with @prot; a fault inside sets *@flag. The fd is not kept.
 * Returns 0, -RING_E_{RANGE,SHORT}, -ENODEV (no regular file, so no size to hold it to), -errno.
 */
int ring_mapping_make(struct ring_mapping *m, int fd, uint64_t len, uint64_t offset, int prot, _Atomic int *flag);
void ring_mapping_drop(struct ring_mapping *m);
/* Put anonymous memory in its place; the address range stays taken until ring_mapping_drop(). 0 or -errno. */
int ring_mapping_bury(struct ring_mapping *m);

#endif
