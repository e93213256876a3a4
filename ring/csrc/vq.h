/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vq.h - inside of a virtqueue: shared by vq.c chain.c split.c packed.c inflight.c, nobody else.
 *
 * Theory of operation
 *   pop reads the driver's index (or flags) once, walks each chain once (walk.h) into the slot of its head or id, and
 *   only then takes note of it: a walk that fails has no effect. push stages a used entry where the driver does not look
 *   yet; flush makes the batch visible with one release store.
 *   What few queues need (IOTLB, log, inflight record, IN_ORDER, chains to resubmit) hides behind one word, @slow.
 */
#ifndef RING_VQ_H
#define RING_VQ_H

#include "ring/csrc/ring.h"
#include "ring/csrc/stats.h"

#define vq_likely(x) __builtin_expect(!!(x), 1)
#define vq_unlikely(x) __builtin_expect(!!(x), 0)
#define VQ_INLINE static inline __attribute__((always_inline))

enum {
	/* features (VIRTIO 1.3, 6) */
	VQ_F_INDIRECT = 28,
	VQ_F_EVENT_IDX = 29,
	VQ_F_PACKED = 34,
	VQ_F_IN_ORDER = 35,

	/* descriptor flags */
	VQ_DESC_NEXT = 1,
	VQ_DESC_WRITE = 2,
	VQ_DESC_INDIRECT = 4,
	VQ_DESC_AVAIL = 1 << 7,	/* packed */
	VQ_DESC_USED = 1 << 15,	/* packed */
	VQ_DESC_BYTES = 16,

	/* split layout (2.7.6, 2.7.8) */
	VQ_AVAIL_FLAGS = 0,
	VQ_AVAIL_IDX = 2,
	VQ_AVAIL_RING = 4,
	VQ_USED_FLAGS = 0,
	VQ_USED_IDX = 2,
	VQ_USED_RING = 4,
	VQ_AVAIL_NO_INTERRUPT = 1,
	VQ_USED_NO_NOTIFY = 1,

	/* packed event suppression (2.8.10): le16 desc (offset, wrap in bit 15), le16 flags */
	VQ_EVENT_DESC = 0,
	VQ_EVENT_FLAGS = 2,
	VQ_EVENT_ENABLE = 0,
	VQ_EVENT_DISABLE = 1,
	VQ_EVENT_AT_DESC = 2,

	/* @slow */
	VQ_SLOW_IOTLB = 1,
	VQ_SLOW_LOG_BUFFERS = 2,
	VQ_SLOW_LOG_USED = 4,
	VQ_SLOW_INFLIGHT = 8,
	VQ_SLOW_IN_ORDER = 16,
	VQ_SLOW_RESUBMIT = 32,
	VQ_SLOW_POP = VQ_SLOW_IOTLB | VQ_SLOW_INFLIGHT | VQ_SLOW_RESUBMIT,
	VQ_SLOW_PUSH = VQ_SLOW_LOG_BUFFERS | VQ_SLOW_LOG_USED | VQ_SLOW_INFLIGHT | VQ_SLOW_IN_ORDER,

	/* ring_chain.state */
	VQ_CHAIN_FREE = 0,
	VQ_CHAIN_POPPED = 1,	/* the device has it */
	VQ_CHAIN_HELD = 2,	/* completed, waits for its order (IN_ORDER) */
	VQ_CHAIN_STAGED = 3,	/* completed, waits for the flush (inflight record) */

	/* pools of pieces: class 0 is inline; see docs/decisions/0002-chain-limits.md */
	VQ_POOLS = 2,
	VQ_POOL1_IOV = 136,	/* what a block request of 128 segments needs, and some */
	VQ_POOL1_BLOCKS = 256,
	VQ_POOL2_BLOCKS = 32,

	/* @hold: why the last pop found chains but returned none */
	VQ_HOLD_NONE = 0,
	VQ_HOLD_MISS = 1,
	VQ_HOLD_POOL = 2,

	/* @kicks */
	VQ_KICKS_UNKNOWN = 0,
	VQ_KICKS_OFF = 1,
	VQ_KICKS_ON = 2,

	VQ_HOLD_DEPTH = 4,	/* least requests under way for which calls are held back */
	VQ_HOLD_MISSES = 8,	/* log2 of the most flushes without, after calls held back for nothing */

	VQ_NO_BLOCK = 6000,	/* walk: pool exhausted; never leaves the core */
};

struct vq_pool {
	struct ring_iov **free;	/* a stack: the block used last is the warmest */
	uint32_t nr_free;
};

/* A resubmission from the inflight record, sorted by @counter. */
struct vq_resubmit {
	uint64_t counter;
	uint16_t entry;		/* split: head; packed: head entry in the record */
	uint16_t num;		/* packed: entries */
};

/* Our side of the inflight record. The record itself is shared: written, and read only at start. */
struct vq_inflight {
	SHM uint8_t *region;	/* NULL: none */
	uint64_t bytes;
	uint64_t counter;	/* next */
	uint16_t *batch;	/* heads / ids pushed since the last flush, size entries */
	uint32_t nr_batch;
	uint16_t last_batch_head;	/* split */
	/* packed: private copy of the record's lists, so that nothing is read back at run time */
	uint16_t free_head;
	uint32_t nr_entries;
	uint16_t *next;		/* nr_entries */
	uint16_t *last;		/* nr_entries; of head entries */
	uint64_t (*copies)[2];	/* size: the descriptors of the chain being popped */
	struct vq_resubmit *resubmit;
	uint32_t nr_resubmit;
};

struct ring_vq {
	/* owner thread; set at start, read-mostly */
	SHM uint8_t *desc;
	SHM uint8_t *avail;	/* packed: driver event suppression */
	SHM uint8_t *used;	/* packed: device event suppression */
	struct ring_mem *mem;
	struct ring_chain *slots;	/* by head (split) or buffer id (packed) */
	uint16_t *order;	/* slots in pop order, a ring */
	uint32_t size;
	uint32_t mask;		/* split: size - 1 */
	uint32_t order_mask;	/* a power of two >= size, less one */
	uint32_t slow;		/* VQ_SLOW_* */
	_Atomic int state;	/* RING_VQ_*; any thread reads */
	bool packed;
	bool event_idx;
	bool indirect;
	bool call_sock;		/* call_fd wants send() */

	/* owner thread; changes with every batch */
	_Alignas(64) uint64_t popped;	/* sequence number of the next pop */
	uint64_t order_tail;	/* IN_ORDER: oldest pop not yet staged */
	uint32_t in_flight;	/* chains the device has */
	uint32_t hint;		/* region hit last */
	uint16_t last_avail;	/* split: next avail index to take */
	uint16_t used_idx;	/* split: published */
	uint16_t staged;	/* split: used_idx + entries staged */
	uint8_t kicks;		/* VQ_KICKS_*: what the driver was told last */
	uint8_t hold;		/* VQ_HOLD_* */
	uint32_t avail_pos;	/* packed: next slot to look at */
	uint32_t used_pos;	/* packed: next slot to write, staged ones counted */
	uint8_t avail_wrap;
	uint8_t used_wrap;
	bool signal_valid;	/* every flush so far has looked at the suppression word */
	uint32_t staged_slots;	/* packed: ring slots staged */
	uint32_t staged_chains;
	uint32_t taken;		/* packed: ring slots popped, not yet published */
	uint32_t stride;	/* packed: ring slots of the last chain, a guess at the next */
	uint32_t first_pos;	/* packed: first staged slot; written last, by flush */
	uint64_t first_val;
	uint32_t span_was;	/* buffers of the last span */
	struct ring_chain *guess;	/* popped last: see vq_guess() */
	const SHM uint8_t *table;	/* the last one: for vq_guess() only */
	struct vq_pool pool[VQ_POOLS];
	int call_fd;
	/* calls held back, split with EVENT_IDX only: see split.c */
	uint32_t hold_ns;	/* at most so long; 0: not at all. Set by the worker */
	uint16_t held_from;	/* first used entry whose call is held back */
	uint16_t depth;		/* most requests that the driver had under way at a time, lately */
	uint16_t hold_skip;	/* flushes until it is tried again */
	uint8_t hold_misses;	/* in a row: held until the time was up */
	uint64_t held_ns;	/* since when; 0: none is */

	/* written by the owner, read by any thread */
	_Alignas(64) struct ring_vq_stats stats;
	_Atomic int error;	/* RING_E_*, 0 while not broken */
	_Atomic uint64_t error_detail;

	/* owner thread, rare */
	struct vq_inflight inflight;
	struct ring_chain scratch;	/* packed: where a chain is walked whose id is not known yet */
	uint64_t log_addr;
	struct ring_iotlb *iotlb;
	int err_fd;
	int news_fd;
	bool err_sock;

	/* control, only while stopped or parked */
	uint32_t index;
	struct ring_vq_config cfg;
	void *arena;		/* all allocations of a run, one block each */
	void *iov_arena;
	void *inflight_arena;
};

/* A call is held back: whoever owns the queue polls it until it is released. */
VQ_INLINE bool vq_holds(const struct ring_vq *vq)
{
	return vq->held_ns != 0;
}

/* Single writer, so no read-modify-write; readers on other threads see whole numbers. */
VQ_INLINE bool vq_running(const struct ring_vq *vq)
{
	return atomic_load_explicit(&vq->state, memory_order_relaxed) == RING_VQ_RUNNING;
}

VQ_INLINE bool vq_faulted(const struct ring_vq *vq)
{
	return atomic_load_explicit(&vq->mem->faulted, memory_order_relaxed) != 0;
}

/* Stage a used entry where the driver does not look yet. */
VQ_INLINE void split_stage(struct ring_vq *vq, uint16_t id, uint32_t written)
{
	SHM uint8_t *entry = vq->used + VQ_USED_RING + 8 * (vq->staged & vq->mask);

	shm_store32(entry, id);
	shm_store32(entry + 4, written);
	vq->staged++;	/* wraps on purpose */
}

/*
 * All but the first slot of a batch are written at once: the driver does not look past the first (VIRTIO 1.3, 2.8.1),
 * which flush writes last.
 */
VQ_INLINE void packed_stage(struct ring_vq *vq, uint16_t id, uint32_t nr_desc, uint32_t written)
{
	uint64_t flags = vq->used_wrap ? VQ_DESC_AVAIL | VQ_DESC_USED : 0;
	uint64_t val;

	if (written)
		flags |= VQ_DESC_WRITE;
	val = written | (uint64_t)id << 32 | flags << 48;
	if (vq->staged_slots) {
		shm_store64(vq->desc + (size_t)VQ_DESC_BYTES * vq->used_pos + 8, val);
	} else {
		vq->first_pos = vq->used_pos;
		vq->first_val = val;
	}
	vq->staged_slots += nr_desc;
	vq->staged_chains++;
	vq->used_pos += nr_desc;
	if (vq->used_pos >= vq->size) {
		vq->used_pos -= vq->size;
		vq->used_wrap ^= 1;
	}
}

/* A popped chain takes its place as number @seq; the caller counts it in popped and in_flight. */
VQ_INLINE void vq_taken(struct ring_vq *vq, struct ring_chain *chain, uint64_t seq)
{
	chain->state = VQ_CHAIN_POPPED;
	vq->order[seq & vq->order_mask] = chain->id;
	if (chain->nr_in)	/* most devices write a status there; before the other, for it is often the same line */
		shm_prefetch_write(chain->iov[chain->nr_out + chain->nr_in - 1].base);
	if (chain->nr_out)	/* every device reads the start of a request next */
		__builtin_prefetch(chain->iov->base);
	vq->guess = chain;
}

/*
 * A driver that has one request under way sends the next in the same buffers: what the last chain used is on its way
 * while its successor's descriptors are still being read. Hints and nothing more; the memory may even be gone.
 */
VQ_INLINE void vq_guess(const struct ring_vq *vq)
{
	const struct ring_chain *chain = vq->guess;

	if (vq->in_flight || chain == NULL)
		return;
	__builtin_prefetch(vq->table);
	if (!vq->packed)
		__builtin_prefetch(vq->desc + (size_t)VQ_DESC_BYTES * chain->id);
	if (chain->nr_in)
		__builtin_prefetch(chain->iov[chain->nr_out + chain->nr_in - 1].base, 1);
	if (chain->nr_out)
		__builtin_prefetch(chain->iov->base);
}

/* chain.c */
void vq_free_block(struct ring_vq *vq, struct ring_chain *chain);
int vq_pop_stopped(struct ring_vq *vq, int got, int rc, uint64_t detail);
void vq_signal(int fd, bool sock);
void vq_log_used(struct ring_vq *vq, uint64_t offset, uint64_t len);	/* split: offset in the used ring */
void vq_log_ring(struct ring_vq *vq, const SHM void *p, uint64_t len);	/* packed */
int vq_notify(struct ring_vq *vq, bool wanted);

/* split.c */
int split_pop(struct ring_vq *vq, struct ring_chain **chains, int max);
int split_flush(struct ring_vq *vq);
int split_release(struct ring_vq *vq, bool missed);
void split_kicks_off(struct ring_vq *vq);
int split_kicks_on(struct ring_vq *vq);
int split_ready(const struct ring_vq *vq);

/* packed.c */
int packed_pop(struct ring_vq *vq, struct ring_chain **chains, int max);
int packed_flush(struct ring_vq *vq);
void packed_kicks_off(struct ring_vq *vq);
int packed_kicks_on(struct ring_vq *vq);
int packed_ready(const struct ring_vq *vq);
void packed_unpop(struct ring_vq *vq, uint32_t nr_desc);

/* inflight.c: see there */
int inflight_start(struct ring_vq *vq);
void inflight_popped(struct ring_vq *vq, struct ring_chain *chain);
void inflight_unpopped(struct ring_vq *vq, struct ring_chain *chain, bool resubmitted);
void inflight_pushed(struct ring_vq *vq, struct ring_chain *chain);
void inflight_before_publish(struct ring_vq *vq);
void inflight_after_publish(struct ring_vq *vq);
void inflight_load(const struct ring_vq *vq, uint32_t entry, uint64_t d[2]);

#endif
