/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ring.h - device side of virtqueues, split and packed, behind one face: pop a batch of chains, complete them.
 *
 * Device code sees chains of pieces in its own address space, never a ring layout.
 *
 *	n = ring_vq_pop(vq, chains, 32);		one pass of checks per descriptor, nothing is re-read
 *	...						chains stay valid until pushed, in any order, however late
 *	ring_vq_push(vq, chains[i], written);		staged
 *	ring_vq_flush(vq);				one publish, at most one notification
 *
 * Queue states
 *	STOPPED   no ring memory may be touched         -> ring_vq_start() -> RUNNING
 *	RUNNING   pop, push, flush                      -> ring_vq_stop() -> STOPPED; a bad ring -> BROKEN
 *	BROKEN    sticky: pop and flush touch nothing; push only gives the chain back; ring_vq_stop() -> STOPPED
 *
 * Threads: one thread at a time owns a RUNNING queue (a worker, or the trio thread for Python devices). Everything
 * under "control" is called while the owner is parked or on the owner's own thread. Statistics may be read any time.
 */
#ifndef RING_RING_H
#define RING_RING_H

#include "ring/csrc/mem.h"

/* cffi:begin */
enum {
	RING_SIZE_MAX = 32768,	/* VIRTIO 1.3, 2.7 and 2.8: split a power of two, packed any number up to 2^15 */
	RING_CHAIN_MAX = 1024,	/* descriptors in a chain, all tables together: what QEMU allows */
	RING_IOV_MAX = 1024,	/* pieces of a chain; IOV_MAX, so that one readv/writev takes them */
	RING_INLINE_IOV = 6,	/* kept beside the chain; longer ones come from a pool of the queue */
	RING_BATCH_MAX = 256,	/* most chains one pop returns */

	RING_VQ_STOPPED = 0,
	RING_VQ_RUNNING = 1,
	RING_VQ_BROKEN = 2,
};

struct ring_vq;

/* A popped request. Owned by the queue; read-only for the device, @user apart. */
struct ring_chain {
	struct ring_iov *iov;	/* nr_out pieces the driver wrote, then nr_in pieces the device writes */
	uint32_t out_bytes;	/* sum of the readable pieces */
	uint32_t in_bytes;	/* sum of the writable pieces */
	uint16_t nr_out;
	uint16_t nr_in;
	uint16_t id;		/* split: head index; packed: buffer id */
	uint16_t nr_desc;	/* ring slots taken: 1 for split, length of the list for packed */
	uint8_t state;		/* queue's own */
	uint8_t iov_class;	/* queue's own */
	uint16_t inflight;	/* queue's own: entry in a packed inflight region */
	uint32_t written;	/* queue's own: bytes written, while completions wait for their order */
	struct ring_iov inl[6];	/* RING_INLINE_IOV */
};

struct ring_vq_config {
	uint32_t size;		/* entries */
	uint32_t base;		/* SET_VRING_BASE's number: split avail index; packed avail|wrap<<15|used<<16|wrap<<31 */
	uint64_t features;	/* negotiated virtio features; bits 28, 29, 33, 34, 35 matter here */
	uint64_t desc;		/* three ring addresses, of the kind below (iova if @iotlb) */
	uint64_t avail;		/* packed: driver event suppression area */
	uint64_t used;		/* packed: device event suppression area */
	uint32_t addr_kind;	/* RING_ADDR_UADDR (vhost-user) or RING_ADDR_GPA */
	uint32_t log;		/* 1: log used-ring writes at @log_addr (SET_VRING_ADDR flag bit 0) */
	uint64_t log_addr;	/* gpa of the used ring, for the log */
	struct ring_iotlb *iotlb;	/* NULL: descriptors hold gpa */
	void *inflight;		/* this queue's part of the inflight region, or NULL */
	uint64_t inflight_bytes;
	int call_fd;		/* eventfd, pipe or socket; -1: none. Made non-blocking; not owned, not closed */
	int err_fd;		/* likewise; written to when the queue breaks */
	int news_fd;		/* our own eventfd or -1: written when the queue breaks, misses, or has drained */
	uint32_t base_from_used;	/* 1: ignore @base, take the used ring's index (restart without inflight) */
};

/* Written by the owner, readable by anyone at any time; never reset while running. */
struct ring_vq_stats {
	uint64_t popped;	/* chains */
	uint64_t pushed;	/* chains */
	uint64_t batches;	/* pops that returned at least one chain */
	uint64_t notified;	/* writes to call_fd */
	uint64_t suppressed;	/* flushes whose notification the driver did not want */
	uint64_t rearms;	/* times kicks were asked for again */
	uint64_t misses;	/* IOTLB misses */
	uint64_t resubmitted;	/* chains popped from the inflight record */
	uint64_t held;		/* flushes whose notification was left to a later one */
};

/*
 * New queue number @index on @mem, STOPPED; NULL without memory. All that a run needs is allocated by ring_vq_start().
 * ring_vq_free() stops it first.
 */
struct ring_vq *ring_vq_new(struct ring_mem *mem, uint32_t index);
void ring_vq_free(struct ring_vq *vq);

/* control */

/* STOPPED -> RUNNING. 0, -RING_E_{SIZE,RING,INFLIGHT,STATE}, -RING_MISS (ring addresses not in the IOTLB), -ENOMEM. */
int ring_vq_start(struct ring_vq *vq, const struct ring_vq_config *cfg);
/* -> STOPPED. Chains in flight are abandoned (their pieces stay readable until the next start): drain first. */
void ring_vq_stop(struct ring_vq *vq);
/* The number GET_VRING_BASE returns, in SET_VRING_BASE's encoding; valid after stop too. */
uint32_t ring_vq_base(const struct ring_vq *vq);
int ring_vq_state(const struct ring_vq *vq);
/* Why it is BROKEN: a RING_E_* (positive), 0 otherwise; @detail gets the offending number. */
int ring_vq_error(const struct ring_vq *vq, uint64_t *detail);
/* Mark it BROKEN from outside (device found the request beyond repair, memory faulted). @error positive RING_E_*. */
void ring_vq_break(struct ring_vq *vq, int error, uint64_t detail);
uint32_t ring_vq_in_flight(const struct ring_vq *vq);
uint32_t ring_vq_index(const struct ring_vq *vq);
uint32_t ring_vq_size(const struct ring_vq *vq);
void ring_vq_set_call(struct ring_vq *vq, int call_fd);
void ring_vq_set_err(struct ring_vq *vq, int err_fd);
/* Buffers (@on) and the used ring (@log_used) are logged from now on; also on a running queue. */
void ring_vq_set_logging(struct ring_vq *vq, int on, int log_used, uint64_t log_addr);
/* Memory or IOTLB changed: translate the ring addresses again. As ring_vq_start() for errors; failure breaks it. */
int ring_vq_remap(struct ring_vq *vq);
/* 1 if a chain in flight has a piece inside [hva, hva + len). */
int ring_vq_overlaps(const struct ring_vq *vq, const void *hva, uint64_t len);
void ring_vq_stats(const struct ring_vq *vq, struct ring_vq_stats *out);

/* owner thread */

/*
 * Up to @max (<= RING_BATCH_MAX) chains. Returns their number, 0 if there are none (or the pool of long chains is used
 * up until some complete), -RING_MISS if the first one needs an IOTLB entry, -RING_E_* once BROKEN. Chains found before
 * a bad one are returned first.
 */
int ring_vq_pop(struct ring_vq *vq, struct ring_chain **chains, int max);
/* Chains that come next and were popped before, by a run that ended without completing them (inflight record). */
uint32_t ring_vq_resubmits(const struct ring_vq *vq);
/*
 * Complete: @written bytes of the writable pieces were written. The chain is the queue's again. With logging those bytes
 * are marked dirty, and the last writable byte, where a status may lie behind data that was not written.
 */
void ring_vq_push(struct ring_vq *vq, struct ring_chain *chain, uint32_t written);
/* As ring_vq_push() of @n chains, in turn. @written: of each; NULL: nothing was written. */
void ring_vq_push_batch(struct ring_vq *vq, struct ring_chain *const *chains, const uint32_t *written, int n);
/* Publish what was pushed; notify if the driver wants it. Returns 1 if it notified. */
int ring_vq_flush(struct ring_vq *vq);
/* Give back the newest @n popped chains, as if never popped (net: not enough receive buffers). */
int ring_vq_unpop(struct ring_vq *vq, int n);
/*
 * Before a stop: leave a popped chain in the inflight record, for whoever starts the queue next. -RING_E_STATE: there is
 * no record, and it has to be completed.
 */
int ring_vq_leave(struct ring_vq *vq, struct ring_chain *chain);
/* Suppress kicks: while somebody polls. */
void ring_vq_kicks_off(struct ring_vq *vq);
/*
 * Ask for kicks. Returns 1 if chains are there already: pop again before sleeping. 0 also where what is there cannot be
 * popped yet: after -RING_MISS, and while long chains wait for a push to give their pool a block back. After a push of
 * such a chain ask ring_vq_ready(), since the driver has kicked already.
 */
int ring_vq_kicks_on(struct ring_vq *vq);
/* A cheap look: 1 if a pop would find something. */
int ring_vq_ready(const struct ring_vq *vq);

/* Copy between private memory and a chain's pieces, across borders. Return the bytes copied. */
uint32_t ring_chain_read(const struct ring_chain *chain, uint32_t offset, void *dst, uint32_t len);
uint32_t ring_chain_write(const struct ring_chain *chain, uint32_t offset, const void *src, uint32_t len);

/* Bytes of one queue's part of the inflight region: same for every queue of a region. */
uint64_t ring_inflight_bytes(uint32_t queue_size, int packed);

const char *ring_strerror(int error);	/* @error: RING_E_* of either sign, or errno */
/* cffi:end */

_Static_assert(sizeof(struct ring_chain) == 128, "a chain is two cache lines");

#endif
