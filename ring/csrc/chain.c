/* SPDX-License-Identifier: Apache-2.0 */
/*
 * chain.c - chains and completions, whatever the layout: pop, push, flush, kicks, break.
 *
 * How chains are read is in walk.h and walk.c; the layouts are in split.c and packed.c.
 */
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ring/csrc/vq.h"

/* ---- pop ---- */

/* A walk failed with @rc: decide what the pop that found @got chains before it returns. */
__attribute__((cold)) int vq_pop_stopped(struct ring_vq *vq, int got, int rc, uint64_t detail)
{
	if (got)	/* those first; the next pop comes here again */
		return got;
	switch (rc) {
	case -VQ_NO_BLOCK:
		vq->hold = VQ_HOLD_POOL;
		return 0;
	case -RING_MISS:
		vq->hold = VQ_HOLD_MISS;
		ring_count(&vq->stats.misses, 1);
		vq_signal(vq->news_fd, false);
		return rc;
	default:
		ring_vq_break(vq, -rc, detail);
		return rc;
	}
}

int ring_vq_pop(struct ring_vq *vq, struct ring_chain **chains, int max)
{
	int n;

	if (vq_unlikely(!vq_running(vq))) {
		int error = atomic_load_explicit(&vq->error, memory_order_relaxed);

		return error ? -error : -RING_E_STATE;
	}
	if (vq_unlikely(vq_faulted(vq))) {
		ring_vq_break(vq, RING_E_FAULT, 0);
		return -RING_E_FAULT;
	}
	if (max > RING_BATCH_MAX)
		max = RING_BATCH_MAX;
	if (vq_unlikely(max <= 0))
		return 0;
	if (vq_unlikely(vq->hold))
		vq->hold = VQ_HOLD_NONE;
	n = vq->packed ? packed_pop(vq, chains, max) : split_pop(vq, chains, max);
	if (n > 0) {
		ring_count(&vq->stats.popped, (uint64_t)n);
		ring_count(&vq->stats.batches, 1);
	}
	return n;
}

uint32_t ring_vq_resubmits(const struct ring_vq *vq)
{
	return vq->slow & VQ_SLOW_RESUBMIT ? vq->inflight.nr_resubmit - (uint32_t)vq->popped : 0;
}

int ring_vq_unpop(struct ring_vq *vq, int n)
{
	int i;

	if (!vq_running(vq))
		return -RING_E_STATE;
	if (n < 0 || (uint64_t)n > vq->in_flight || (uint64_t)n > vq->popped)
		return -RING_E_STATE;
	for (i = 1; i <= n; i++)
		if (vq->slots[vq->order[(vq->popped - (uint64_t)i) & vq->order_mask]].state != VQ_CHAIN_POPPED)
			return -RING_E_STATE;
	for (i = 0; i < n; i++) {
		struct ring_chain *chain;
		bool resubmitted;

		vq->popped--;
		chain = &vq->slots[vq->order[vq->popped & vq->order_mask]];
		resubmitted = vq->popped < vq->inflight.nr_resubmit;
		if (vq->inflight.region != NULL)
			inflight_unpopped(vq, chain, resubmitted);
		if (resubmitted)
			vq->slow |= VQ_SLOW_RESUBMIT;
		else if (vq->packed)
			packed_unpop(vq, chain->nr_desc);
		else
			vq->last_avail--;
		vq_free_block(vq, chain);
		chain->state = VQ_CHAIN_FREE;
		vq->in_flight--;
	}
	ring_count(&vq->stats.popped, 0 - (uint64_t)n);
	return n;
}

int ring_vq_leave(struct ring_vq *vq, struct ring_chain *chain)
{
	if (!vq_running(vq) || vq->inflight.region == NULL || chain->state != VQ_CHAIN_POPPED)
		return -RING_E_STATE;
	vq_free_block(vq, chain);
	chain->state = VQ_CHAIN_FREE;
	vq->in_flight--;
	return 0;
}

/* ---- push ---- */

/* Give a block of pieces back to its pool. */
void vq_free_block(struct ring_vq *vq, struct ring_chain *chain)
{
	if (chain->iov_class) {
		struct vq_pool *pool = &vq->pool[chain->iov_class - 1];

		pool->free[pool->nr_free++] = chain->iov;
		chain->iov_class = 0;
		if (vq->hold == VQ_HOLD_POOL)
			vq->hold = VQ_HOLD_NONE;
	}
}

void vq_log_used(struct ring_vq *vq, uint64_t offset, uint64_t len)
{
	ring_mem_log_gpa(vq->mem, vq->log_addr + offset, len);
}

void vq_log_ring(struct ring_vq *vq, const SHM void *p, uint64_t len)
{
	ring_log_hva(vq->mem, p, len);
}

/*
 * The bytes said to be written, and the last writable byte: a status byte at the end is written even where a failed
 * request reports fewer bytes. After the write, which the device has done by now.
 */
static void log_chain(struct ring_vq *vq, const struct ring_chain *chain, uint32_t written)
{
	const struct ring_iov *iov = chain->iov + chain->nr_out;
	uint64_t left = written;
	uint32_t i;

	for (i = 0; i < chain->nr_in && left; i++) {
		uint64_t n = iov[i].len < left ? iov[i].len : left;

		ring_log_hva(vq->mem, iov[i].base, n);
		left -= n;
	}
	if (chain->nr_in && written < chain->in_bytes) {
		const struct ring_iov *end = &iov[chain->nr_in - 1];

		ring_log_hva(vq->mem, (uint8_t *)end->base + (end->len - 1), 1);
	}
}

static void stage_slow(struct ring_vq *vq, struct ring_chain *chain, uint32_t written)
{
	if (vq->slow & VQ_SLOW_INFLIGHT) {
		chain->written = written;
		chain->state = VQ_CHAIN_STAGED;
		inflight_pushed(vq, chain);
		return;
	}
	chain->state = VQ_CHAIN_FREE;
	if (vq->packed)
		packed_stage(vq, chain->id, chain->nr_desc, written);
	else
		split_stage(vq, chain->id, written);
}

/* IN_ORDER (VIRTIO 1.3, 2.7.9 and 2.8.12): what was completed early is held until all before it are. */
static void stage_in_order(struct ring_vq *vq)
{
	while (vq->order_tail != vq->popped) {
		struct ring_chain *chain = &vq->slots[vq->order[vq->order_tail & vq->order_mask]];

		if (chain->state != VQ_CHAIN_HELD)
			break;
		stage_slow(vq, chain, chain->written);
		vq->order_tail++;
	}
}

static __attribute__((noinline)) void push_slow(struct ring_vq *vq, struct ring_chain *chain, uint32_t written)
{
	if (vq->slow & VQ_SLOW_LOG_BUFFERS)
		log_chain(vq, chain, written);
	vq_free_block(vq, chain);
	vq->in_flight--;
	if (vq->slow & VQ_SLOW_IN_ORDER) {
		chain->written = written;
		chain->state = VQ_CHAIN_HELD;
		stage_in_order(vq);
		return;
	}
	stage_slow(vq, chain, written);
}

/* Not running: only take the chain back. Pushed twice: the device's mistake, and not one to go on after. */
static __attribute__((cold)) void push_odd(struct ring_vq *vq, struct ring_chain *chain)
{
	if (chain->state != VQ_CHAIN_POPPED) {
		ring_vq_break(vq, RING_E_STATE, chain->id);
		return;
	}
	vq_free_block(vq, chain);
	chain->state = VQ_CHAIN_FREE;
	vq->in_flight--;
}

void ring_vq_push(struct ring_vq *vq, struct ring_chain *chain, uint32_t written)
{
	if (vq_unlikely(!vq_running(vq) || chain->state != VQ_CHAIN_POPPED)) {
		push_odd(vq, chain);
		return;
	}
	if (vq_unlikely(written > chain->in_bytes))	/* the driver must not be told of bytes that are not there */
		written = chain->in_bytes;
	if (vq_unlikely(vq->slow & VQ_SLOW_PUSH)) {
		push_slow(vq, chain, written);
		return;
	}
	if (vq_unlikely(chain->iov_class))
		vq_free_block(vq, chain);
	vq->in_flight--;
	chain->state = VQ_CHAIN_FREE;
	if (vq->packed)
		packed_stage(vq, chain->id, chain->nr_desc, written);
	else
		split_stage(vq, chain->id, written);
}

/* What nearly all chains of a batch are. */
VQ_INLINE bool push_plain(const struct ring_chain *chain, uint32_t bytes)
{
	return vq_likely(chain->state == VQ_CHAIN_POPPED && bytes <= chain->in_bytes && !chain->iov_class);
}

/*
 * The next two do what split_stage() and packed_stage() do, with the queue's words in registers: a chain's state byte
 * may alias them. They stop at a chain that is not as nearly all are, and return how many they took.
 */
static int push_split(struct ring_vq *vq, struct ring_chain *const *chains, const uint32_t *written, int n)
{
	SHM uint8_t *ring = vq->used + VQ_USED_RING;
	uint32_t mask = vq->mask;
	uint16_t staged = vq->staged;
	int i;

	for (i = 0; i < n; i++, staged++) {	/* wraps on purpose */
		uint32_t bytes = written != NULL ? written[i] : 0;
		SHM uint8_t *entry = ring + 8 * (staged & mask);

		if (!push_plain(chains[i], bytes))
			break;
		shm_store32(entry, chains[i]->id);
		shm_store32(entry + 4, bytes);
		chains[i]->state = VQ_CHAIN_FREE;
	}
	vq->staged = staged;
	return i;
}

static int push_packed(struct ring_vq *vq, struct ring_chain *const *chains, const uint32_t *written, int n)
{
	SHM uint8_t *desc = vq->desc;
	uint32_t pos = vq->used_pos, size = vq->size, slots = vq->staged_slots;
	uint64_t first = vq->first_val, used = vq->used_wrap ? VQ_DESC_AVAIL | VQ_DESC_USED : 0;
	int i;

	for (i = 0; i < n; i++) {
		uint32_t bytes = written != NULL ? written[i] : 0;
		uint64_t val;

		if (!push_plain(chains[i], bytes))
			break;
		val = bytes | (uint64_t)chains[i]->id << 32 | (used | (bytes ? VQ_DESC_WRITE : 0)) << 48;
		if (vq_likely(slots)) {
			shm_store64(desc + (size_t)VQ_DESC_BYTES * pos + 8, val);
		} else {
			vq->first_pos = pos;
			first = val;
		}
		slots += chains[i]->nr_desc;
		pos += chains[i]->nr_desc;
		chains[i]->state = VQ_CHAIN_FREE;
		if (vq_unlikely(pos >= size)) {
			pos -= size;
			used ^= VQ_DESC_AVAIL | VQ_DESC_USED;
		}
	}
	vq->used_pos = pos;
	vq->used_wrap = used != 0;
	vq->staged_slots = slots;
	vq->staged_chains += (uint32_t)i;
	vq->first_val = first;
	return i;
}

void ring_vq_push_batch(struct ring_vq *vq, struct ring_chain *const *chains, const uint32_t *written, int n)
{
	bool slow = !vq_running(vq) || vq->slow & VQ_SLOW_PUSH;
	int i = 0;

	while (i < n) {
		const uint32_t *bytes = written != NULL ? written + i : NULL;

		if (vq_likely(!slow)) {
			int took = vq->packed ? push_packed(vq, chains + i, bytes, n - i) :
						push_split(vq, chains + i, bytes, n - i);

			vq->in_flight -= (uint32_t)took;
			i += took;
		}
		if (i < n) {
			ring_vq_push(vq, chains[i], written != NULL ? written[i] : 0);
			i++;
		}
	}
}

/* ---- flush ---- */

void vq_signal(int fd, bool sock)
{
	const uint64_t one = 1;
	ssize_t rc;

	if (fd < 0)
		return;
	do {	/* full (EAGAIN): it is readable already, so whoever listens wakes; gone (EPIPE): nobody to tell */
		rc = sock ? send(fd, &one, sizeof(one), MSG_NOSIGNAL | MSG_DONTWAIT) : write(fd, &one, sizeof(one));
	} while (rc < 0 && errno == EINTR);
}

/* The verdict on a notification is in. Returns 1 if the driver was told. */
int vq_notify(struct ring_vq *vq, bool wanted)
{
	if (!wanted) {
		ring_count(&vq->stats.suppressed, 1);
		return 0;
	}
	vq_signal(vq->call_fd, vq->call_sock);
	ring_count(&vq->stats.notified, 1);
	return 1;
}

int ring_vq_flush(struct ring_vq *vq)
{
	bool staged = vq->packed ? vq->staged_slots != 0 : vq->staged != vq->used_idx;

	if (!staged && !vq->inflight.nr_batch)
		return 0;
	if (vq_unlikely(!vq_running(vq)))
		return 0;
	if (vq_unlikely(vq_faulted(vq))) {
		ring_vq_break(vq, RING_E_FAULT, 0);
		return 0;
	}
	return vq->packed ? packed_flush(vq) : split_flush(vq);
}

/* ---- kicks, state ---- */

void ring_vq_kicks_off(struct ring_vq *vq)
{
	if (!vq_running(vq) || vq->kicks == VQ_KICKS_OFF)
		return;
	vq->kicks = VQ_KICKS_OFF;
	if (vq->packed)
		packed_kicks_off(vq);
	else
		split_kicks_off(vq);
}

int ring_vq_kicks_on(struct ring_vq *vq)
{
	int more;

	if (!vq_running(vq))
		return 0;
	vq->kicks = VQ_KICKS_ON;
	ring_count(&vq->stats.rearms, 1);
	more = vq->packed ? packed_kicks_on(vq) : split_kicks_on(vq);
	/* What is there cannot be popped yet: popping again would spin. A push or a wake comes first. */
	return more && !vq->hold;
}

int ring_vq_ready(const struct ring_vq *vq)
{
	if (!vq_running(vq) || vq->hold == VQ_HOLD_POOL)
		return 0;
	if (vq->slow & VQ_SLOW_RESUBMIT)
		return 1;
	return vq->packed ? packed_ready(vq) : split_ready(vq);
}

__attribute__((cold)) void ring_vq_break(struct ring_vq *vq, int error, uint64_t detail)
{
	if (!vq_running(vq))	/* sticky: the first reason stays */
		return;
	if (error < 0)
		error = -error;
	atomic_store_explicit(&vq->error_detail, detail, memory_order_relaxed);
	atomic_store_explicit(&vq->error, error, memory_order_relaxed);
	/* pairs with the acquire in ring_vq_state(): who sees BROKEN sees why */
	atomic_store_explicit(&vq->state, RING_VQ_BROKEN, memory_order_release);
	vq_signal(vq->err_fd, vq->err_sock);
	vq_signal(vq->news_fd, false);
}

int ring_vq_state(const struct ring_vq *vq)
{
	return atomic_load_explicit(&vq->state, memory_order_acquire);
}

int ring_vq_error(const struct ring_vq *vq, uint64_t *detail)
{
	bool broken = ring_vq_state(vq) == RING_VQ_BROKEN;

	if (detail != NULL)
		*detail = broken ? atomic_load_explicit(&vq->error_detail, memory_order_relaxed) : 0;
	return broken ? atomic_load_explicit(&vq->error, memory_order_relaxed) : 0;
}

uint32_t ring_vq_in_flight(const struct ring_vq *vq)
{
	return vq->in_flight;
}

uint32_t ring_vq_index(const struct ring_vq *vq)
{
	return vq->index;
}

uint32_t ring_vq_size(const struct ring_vq *vq)
{
	return vq->size;
}

int ring_vq_overlaps(const struct ring_vq *vq, const void *hva, uint64_t len)
{
	uintptr_t start = (uintptr_t)hva;
	uint32_t slot, i;

	if (!vq->in_flight || vq->slots == NULL)
		return 0;
	for (slot = 0; slot < vq->size; slot++) {
		const struct ring_chain *chain = &vq->slots[slot];

		if (chain->state != VQ_CHAIN_POPPED)
			continue;
		for (i = 0; i < (uint32_t)chain->nr_out + chain->nr_in; i++) {
			uintptr_t base = (uintptr_t)chain->iov[i].base;

			if (base < start ? start - base < chain->iov[i].len : base - start < len)
				return 1;
		}
	}
	return 0;
}

void ring_vq_stats(const struct ring_vq *vq, struct ring_vq_stats *out)
{
	_Static_assert(sizeof(*out) % sizeof(uint64_t) == 0, "statistics are counters only");
	ring_stats_copy(out, &vq->stats, sizeof(*out));
}

/* ---- copying ---- */

static uint32_t chain_copy(const struct ring_iov *iov, uint32_t nr, uint64_t offset, uint8_t *to, const uint8_t *from,
			   uint32_t len)
{
	uint32_t done = 0, i;

	for (i = 0; i < nr && done < len; i++) {
		uint64_t n;

		if (offset >= iov[i].len) {
			offset -= iov[i].len;
			continue;
		}
		n = iov[i].len - offset;
		if (n > len - done)
			n = len - done;
		if (to != NULL)
			shm_copy_in(to + done, (uint8_t *)iov[i].base + offset, n);
		else
			shm_copy_out((uint8_t *)iov[i].base + offset, from + done, n);
		done += (uint32_t)n;
		offset = 0;
	}
	return done;
}

uint32_t ring_chain_read(const struct ring_chain *chain, uint32_t offset, void *dst, uint32_t len)
{
	return chain_copy(chain->iov, chain->nr_out, offset, dst, NULL, len);
}

uint32_t ring_chain_write(const struct ring_chain *chain, uint32_t offset, const void *src, uint32_t len)
{
	return chain_copy(chain->iov + chain->nr_out, chain->nr_in, offset, NULL, src, len);
}
