/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mem.h - guest memory: regions mapped from fds, address translation, IOTLB, dirty log.
 *
 * Three address spaces meet here:
 *   gpa    guest-physical: what descriptors hold (without a virtual IOMMU)
 *   uaddr  front-end virtual: what SET_VRING_ADDR and the IOTLB hold
 *   hva    our own mapping
 *   iova   what descriptors and ring addresses hold when ACCESS_PLATFORM is negotiated; an IOTLB maps it to uaddr
 *
 * Threads: a table changes only while every worker that has a queue on this memory is parked (worker.h), or on the one
 * thread that uses it. Lookups take no lock. The IOTLB has a lock of its own, taken only when a queue uses an IOTLB.
 */
#ifndef RING_MEM_H
#define RING_MEM_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "ring/csrc/shm.h"

/* cffi:begin */
enum {
	RING_MEM_MAX_REGIONS = 512,	/* as much as QEMU ever asks for (its own limit) */
	RING_LOG_PAGE = 4096,		/* vhost-user, "Migration": one bit per 4 KiB */
	RING_MEM_RO = 1,		/* map read-only; a writable descriptor there breaks the queue */
	RING_MEM_NOTOUCH = 2,		/* postcopy: no prefault, no huge pages, contents dropped */
	RING_PERM_READ = 1,		/* IOTLB permissions, as struct vhost_iotlb_msg */
	RING_PERM_WRITE = 2,
	RING_ADDR_UADDR = 0,		/* kinds of address, for translation from Python */
	RING_ADDR_GPA = 1,
};

/*
 * Errors of the ring core are returned as negative numbers below -5000; plain -errno above. RING_MISS is no error of
 * the guest: the IOTLB lacks an entry, the pop had no effect and is to be tried again later.
 */
enum ring_error {
	RING_E_HEAD = 5001,	/* head index >= queue size (VIRTIO 1.3, 2.7.6) */
	RING_E_AVAIL = 5002,	/* more made available than the queue holds: index jump (split), slots not returned (packed) */
	RING_E_NEXT = 5003,	/* next index >= table size */
	RING_E_LOOP = 5004,	/* chain longer than RING_CHAIN_MAX or than its table */
	RING_E_INDIRECT = 5005,	/* indirect: not negotiated, nested, with NEXT, bad length (2.7.5.3) */
	RING_E_ORDER = 5006,	/* readable descriptor after a writable one (2.7.4.2) */
	RING_E_ADDR = 5007,	/* buffer not wholly inside guest memory */
	RING_E_LEN = 5008,	/* chain of 2^32 bytes or more */
	RING_E_DUP = 5009,	/* descriptor head or buffer id already in flight */
	RING_E_ID = 5010,	/* packed buffer id >= queue size */
	RING_E_PERM = 5011,	/* writable descriptor in read-only memory */
	RING_E_IOVECS = 5012,	/* chain needs more than RING_IOV_MAX pieces */
	RING_E_FAULT = 5013,	/* the front-end truncated its memory file (SIGBUS) */
	RING_E_INFLIGHT = 5014,	/* inflight region inconsistent or too small */
	RING_E_RING = 5015,	/* ring addresses not mapped, misaligned or too short */
	RING_E_SIZE = 5016,	/* queue size 0, too big, or not a power of two (split) */
	RING_E_OVERLAP = 5017,	/* memory region overlaps another */
	RING_E_RANGE = 5018,	/* address + length wraps */
	RING_E_SHORT = 5019,	/* fd shorter than the region it backs */
	RING_E_SLOTS = 5020,	/* more than RING_MEM_MAX_REGIONS regions */
	RING_E_NOREGION = 5021,	/* no such region */
	RING_E_DEVICE = 5022,	/* the device found the request beyond repair */
	RING_E_STATE = 5023,	/* call not legal in this state (embedder's mistake) */
	RING_E_LOG = 5024,	/* dirty log too small for the memory it covers */
	RING_MISS = 5100,	/* IOTLB miss: not an error, see above */
};

struct ring_mem;
struct ring_iotlb;

/* A buffer piece in our address space; same layout as struct iovec. */
struct ring_iov {
	void *base;
	size_t len;	/* bytes */
};

struct ring_region_info {
	uint64_t gpa;
	uint64_t len;		/* bytes */
	uint64_t uaddr;
	uint64_t hva;		/* 0 while not mapped */
	uint64_t offset;	/* of the region in its file, bytes */
	uint32_t flags;		/* RING_MEM_* */
};

struct ring_iotlb_miss {
	uint64_t iova;
	uint32_t perm;		/* RING_PERM_* wanted */
	uint32_t queue;		/* the index given to ring_vq_new */
};

/* New empty guest memory, or NULL without memory. Freed by ring_mem_free(), which unmaps all; no queue may use it. */
struct ring_mem *ring_mem_new(void);
void ring_mem_free(struct ring_mem *mem);

/*
 * Map @len bytes of @fd at @offset (any alignment) as guest memory at @gpa / @uaddr. The fd is not kept: the caller
 * closes it. Returns 0, -RING_E_{SLOTS,OVERLAP,RANGE,SHORT}, -ENODEV (not a regular file: no size to hold it to) or
 * -errno of fstat/mmap.
 */
int ring_mem_add(struct ring_mem *mem, int fd, uint64_t gpa, uint64_t len, uint64_t uaddr, uint64_t offset,
		 uint32_t flags);

/*
 * Use memory the embedder mapped itself at @hva; never unmapped by us, nor guarded: the embedder keeps it mapped until
 * no queue has pieces of it in flight.
 */
int ring_mem_add_mapped(struct ring_mem *mem, void *hva, uint64_t gpa, uint64_t len, uint64_t uaddr, uint32_t flags);

/*
 * Remove the region that matches all three. Pieces still in flight keep a harmless anonymous mapping in its place, so
 * that a late completion hits nobody's memory. Returns 0 or -RING_E_NOREGION.
 */
int ring_mem_remove(struct ring_mem *mem, uint64_t gpa, uint64_t len, uint64_t uaddr);

/* Remove all regions, as ring_mem_remove() for each. */
void ring_mem_clear(struct ring_mem *mem);

/* Number of regions; the first @max of them, ordered by gpa, are written to @out. */
int ring_mem_regions(const struct ring_mem *mem, struct ring_region_info *out, int max);

/*
 * Translate @len (>= 1) bytes at @addr (@kind RING_ADDR_*) to at most @max pieces. Returns their number,
 * -RING_E_{ADDR,RANGE,IOVECS,PERM}.
 */
int ring_mem_translate(const struct ring_mem *mem, int kind, uint64_t addr, uint64_t len, int write,
		       struct ring_iov *out, int max);

/* Non-zero once a read of this memory faulted because its file was truncated. Sticky. */
int ring_mem_faulted(const struct ring_mem *mem);

/*
 * Dirty log (VHOST_F_LOG_ALL): map @size bytes of @fd at @offset; replaces an earlier one. The fd is not kept.
 * Returns 0, -RING_E_{SHORT,RANGE,LOG} or -errno. Logging itself is switched per queue (ring_vq_set_logging()).
 */
int ring_mem_log_set(struct ring_mem *mem, int fd, uint64_t size, uint64_t offset);
void ring_mem_log_clear(struct ring_mem *mem);
/* Mark [gpa, gpa + len) dirty; out-of-log bits are counted, never written. */
void ring_mem_log_gpa(struct ring_mem *mem, uint64_t gpa, uint64_t len);

/*
 * Another file that a front-end shares and may truncate (the inflight region): map @size bytes of @fd at @offset. The
 * fd is not kept. Returns 0, -RING_E_{RANGE,SHORT}, -ENODEV (no regular file), -errno. Unmapped by ring_shared_unmap(),
 * which no user of the memory may outlive.
 */
struct ring_shared;
int ring_shared_map(int fd, uint64_t size, uint64_t offset, struct ring_shared **out);
void *ring_shared_base(struct ring_shared *shared);
/* Non-zero once it was found truncated; it then reads as zeroes there. Sticky. */
int ring_shared_faulted(const struct ring_shared *shared);
void ring_shared_unmap(struct ring_shared *shared);

/* IOTLB: entries iova -> uaddr. All calls are thread-safe. */
struct ring_iotlb *ring_iotlb_new(void);
void ring_iotlb_free(struct ring_iotlb *tlb);
/*
 * Add or replace; within an entry that says the same, permissions add up. @perm RING_PERM_*. Returns 0, -RING_E_RANGE,
 * -ENOMEM, -ENOSPC (more than 65536 entries).
 */
int ring_iotlb_update(struct ring_iotlb *tlb, uint64_t iova, uint64_t size, uint64_t uaddr, uint32_t perm);
/* Forget the range: entries that reach over its ends are cut. @size 0 (2^64, from QEMU's full flush): forget all. */
int ring_iotlb_invalidate(struct ring_iotlb *tlb, uint64_t iova, uint64_t size);
void ring_iotlb_clear(struct ring_iotlb *tlb);
/* Take up to @max distinct misses recorded by pops since the last call. */
int ring_iotlb_misses(struct ring_iotlb *tlb, struct ring_iotlb_miss *out, int max);
/* cffi:end */

_Static_assert(sizeof(struct ring_iov) == sizeof(struct iovec) &&
	       offsetof(struct ring_iov, base) == offsetof(struct iovec, iov_base) &&
	       offsetof(struct ring_iov, len) == offsetof(struct iovec, iov_len), "ring_iov is handed out as iovec");

/*
 * What the hot path sees: an immutable table, replaced whole while workers are parked.
 *
 * Lookup of an address: the caller's last hit, then @granule (address >> shift -> first region that can hold it),
 * then a short forward walk. Regions are ordered by gpa and never overlap.
 */
struct ring_region {
	uint64_t gpa;
	uint64_t len;
	uint8_t *hva;
	uint64_t uaddr;
	uint32_t flags;
	uint32_t pad;
};

enum { RING_GRANULES = 4096 };

struct ring_memtab {
	uint32_t nr;
	uint32_t shift;			/* gpa >> shift < RING_GRANULES for every mapped gpa */
	struct ring_region *by_gpa;	/* nr entries */
	uint32_t *by_uaddr;		/* nr indexes into by_gpa, ordered by uaddr */
	uint32_t *by_hva;		/* nr indexes into by_gpa, ordered by hva: for the dirty log */
	uint16_t granule[RING_GRANULES];	/* first index with gpa + len > g << shift; nr if none */
	uint64_t gen;			/* no two tables of a process have the same, but empty ones: 0 */
};

struct ring_log {
	SHM uint8_t *base;	/* NULL: no log */
	uint64_t size;		/* bytes */
};

struct ring_mem {
	/* replaced whole while workers are parked */
	struct ring_memtab *tab;
	struct ring_log log;
	/* any thread */
	_Atomic int faulted;
	_Atomic uint64_t log_misses;
	/* control thread only; fields below belong to mem.c */
	struct ring_mem_priv *priv;
};

/* translate.c: gpa -> region or NULL; @hint is the caller's last hit, updated */
const struct ring_region *ring_memtab_find(const struct ring_memtab *tab, uint64_t gpa, uint32_t *hint);

/* log.c: mark what lies at @hva (inside guest memory) dirty, by reverse lookup */
void ring_log_hva(struct ring_mem *mem, const void *hva, uint64_t len);

/* sigbus.c: guarded ranges; *@flag is set to 1 by a fault inside. Control thread only; the handler reads lock-free. */
int ring_sigbus_guard(void *base, size_t len, _Atomic int *flag);
void ring_sigbus_unguard(void *base);

/* translate.c: the IOTLB lookup that chains use; a miss is recorded. Returns pieces, -RING_MISS or -RING_E_*. */
int ring_iotlb_translate(struct ring_iotlb *tlb, const struct ring_mem *mem, uint64_t iova, uint64_t len, int write,
			 uint32_t queue, struct ring_iov *out, int max);

/* Keep track of queues, so that a removed region knows what is in flight (mem.c asks ring_vq_overlaps()). */
struct ring_vq;
int ring_mem_attach(struct ring_mem *mem, struct ring_vq *vq);
void ring_mem_detach(struct ring_mem *mem, struct ring_vq *vq);

#endif
