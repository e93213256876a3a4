/* SPDX-License-Identifier: Apache-2.0 */
/*
 * split.c - the split layout (VIRTIO 1.3, 2.7): avail ring in, used ring out.
 *
 * Theory of operation
 *   A pop reads avail->idx once and works through what it found in runs of SPLIT_RUN: heads, then their descriptors,
 *   then their chains; each pass prefetches for the next, since all of it was last written by another CPU.
 */
#include "ring/csrc/walk.h"

enum { SPLIT_RUN = 32 };

/* From the copied head descriptor @d to the end of the chain. */
VQ_INLINE int split_walk(struct vq_walk *w, uint64_t d[2])
{
	struct ring_vq *vq = w->vq;
	uint32_t seen;
	int rc;

	for (seen = 1;; seen++) {
		uint32_t flags = (uint32_t)(d[1] >> 32) & 0xffff;
		uint32_t g_next = (uint32_t)(d[1] >> 48);

		if (flags & VQ_DESC_INDIRECT) {
			/* VIRTIO 1.3, 2.7.5.3.1: not together with NEXT; WRITE is ignored (2.7.5.3.2) */
			if (vq_unlikely(flags & VQ_DESC_NEXT)) {
				w->detail = flags;
				return -RING_E_INDIRECT;
			}
			return walk_indirect(w, d[0], (uint32_t)d[1]);
		}
		rc = walk_add(w, d[0], (uint32_t)d[1], flags & VQ_DESC_WRITE);
		if (vq_unlikely(rc))
			return rc;
		if (!(flags & VQ_DESC_NEXT))
			return 0;
		if (vq_unlikely(g_next >= vq->size)) {
			w->detail = g_next;
			return -RING_E_NEXT;
		}
		if (vq_unlikely(seen == vq->size)) {	/* more steps than descriptors */
			w->detail = seen;
			return -RING_E_LOOP;
		}
		shm_load_desc(d, vq->desc + (size_t)VQ_DESC_BYTES * g_next);
	}
}

/* The chain at @head, whose descriptor was copied to @d: the careful way. */
static __attribute__((noinline)) int split_take(struct ring_vq *vq, uint16_t head, const uint64_t copy[2],
						uint64_t *detail)
{
	struct ring_chain *chain = &vq->slots[head];
	uint64_t d[2] = { copy[0], copy[1] };
	struct vq_walk w;
	int rc;

	if (vq_unlikely(chain->state != VQ_CHAIN_FREE)) {
		*detail = head;
		return -RING_E_DUP;
	}
	walk_init(&w, vq);
	walk_begin(&w, chain);
	rc = split_walk(&w, d);
	if (vq_unlikely(rc)) {
		walk_undo(&w);
		*detail = w.detail;
		return rc;
	}
	walk_end(&w);
	walk_fini(&w);
	chain->id = head;
	chain->nr_desc = 1;
	return 0;
}

/* Heads of a run, and their descriptors on the way into the cache. */
VQ_INLINE void split_heads(const struct ring_vq *vq, uint16_t from, uint32_t run, uint16_t g_head[])
{
	uint32_t i;

	for (i = 0; i < run; i++) {
		g_head[i] = shm_load16(vq->avail + VQ_AVAIL_RING + 2 * ((from + i) & vq->mask));
		if (vq_likely(g_head[i] < vq->size)) {
			__builtin_prefetch(vq->desc + (size_t)VQ_DESC_BYTES * g_head[i]);
			__builtin_prefetch(&vq->slots[g_head[i]], 1);
		}
	}
}

/* Chains of one descriptor, until something else comes: *@more, or the end. Returns their number. */
static __attribute__((noinline)) uint32_t split_pop_singles(struct ring_vq *vq, struct ring_chain **chains, uint32_t max,
							    bool *more)
{
	uint16_t g_head[SPLIT_RUN], last = vq->last_avail;
	struct ring_chain *slots = vq->slots;
	uint64_t d[SPLIT_RUN][2];
	struct vq_single r;
	uint32_t got = 0, run, i;
	uint16_t g_new;

	__builtin_prefetch(vq->avail + VQ_AVAIL_RING + 2 * (last & vq->mask));
	/* Pairs with the driver's release of avail->idx: heads and descriptors are there. */
	g_new = (uint16_t)(shm_load16_acquire(vq->avail + VQ_AVAIL_IDX) - last);
	*more = g_new > vq->size;	/* which is an error */
	if (!g_new || vq_unlikely(*more))
		return 0;
	if (max > g_new)
		max = g_new;
	shm_prefetch_write(vq->used + VQ_USED_RING + 8 * (vq->staged & vq->mask));
	single_init(vq, &r);
	do {
		run = max - got < SPLIT_RUN ? max - got : SPLIT_RUN;
		split_heads(vq, (uint16_t)(last + got), run, g_head);
		for (i = 0; i < run; i++) {
			uint32_t flags;

			if (vq_unlikely(g_head[i] >= vq->size))
				break;
			shm_load_desc(d[i], vq->desc + (size_t)VQ_DESC_BYTES * g_head[i]);
			flags = (uint32_t)(d[i][1] >> 32) & 0xffff;
			if (vq_unlikely(flags & (VQ_DESC_NEXT | VQ_DESC_INDIRECT)))
				break;
			single_prefetch(&r, d[i][0], flags);
		}
		run = i;
		for (i = 0; i < run; i++, got++) {
			chains[got] = &slots[g_head[i]];
			if (vq_unlikely(!single_take(vq, &r, &slots[g_head[i]], d[i], (uint32_t)(d[i][1] >> 32), g_head[i])))
				break;
		}
	} while (i == SPLIT_RUN && got < max);
	*more = got < max;
	vq->last_avail = (uint16_t)(last + got);	/* wraps on purpose */
	singles_taken(vq, chains, got);
	return got;
}

/* @before: chains that this pop has taken already, elsewhere. */
VQ_INLINE int split_pop_ring(struct ring_vq *vq, struct ring_chain **chains, int max, uint32_t before, const bool slow)
{
	struct vq_near near;
	uint64_t d[SPLIT_RUN][2], detail = 0;
	uint16_t g_head[SPLIT_RUN];
	uint16_t last = vq->last_avail;
	uint16_t g_new;
	uint32_t n, run, i, got = 0;
	int rc = 0;

	/* Both lines come at the same time: where there is one new head, its entry is waited for as long as the index. */
	__builtin_prefetch(vq->avail + VQ_AVAIL_RING + 2 * (last & vq->mask));
	/* Pairs with the driver's release of avail->idx: heads and descriptors are there. */
	g_new = (uint16_t)(shm_load16_acquire(vq->avail + VQ_AVAIL_IDX) - last);
	if (!g_new)
		return 0;
	vq_guess(vq);
	shm_prefetch_write(vq->used + VQ_USED_RING + 8 * (vq->staged & vq->mask));
	if (vq_unlikely(g_new > vq->size))
		return vq_pop_stopped(vq, (int)before, -RING_E_AVAIL, g_new) - (int)before;	/* read twice: it may be new */
	n = g_new < (uint32_t)max ? g_new : (uint32_t)max;
	near_init(&near, vq);
	for (; got < n; got += run) {
		run = n - got < SPLIT_RUN ? n - got : SPLIT_RUN;
		split_heads(vq, last, run, g_head);
		for (i = 0; i < run; i++) {
			if (vq_unlikely(g_head[i] >= vq->size))	/* refused below */
				continue;
			shm_load_desc(d[i], vq->desc + (size_t)VQ_DESC_BYTES * g_head[i]);
			/* indirect table, or the request's header, or a buffer */
			near_prefetch(&near, d[i][0], (uint32_t)(d[i][1] >> 32) & VQ_DESC_WRITE);
		}
		for (i = 0; i < run; i++) {
			uint16_t head = g_head[i], unused;
			struct ring_chain *chain;

			if (vq_unlikely(head >= vq->size)) {	/* VIRTIO 1.3, 2.7.6 */
				detail = head;
				rc = -RING_E_HEAD;
				goto out;
			}
			chain = &vq->slots[head];
			if (!slow && vq_likely(chain->state == VQ_CHAIN_FREE &&
					       walk_fast(vq, &near, chain, d[i], 0, &unused, false))) {
				chain->id = head;
				chain->nr_desc = 1;
			} else {
				rc = split_take(vq, head, d[i], &detail);
				if (vq_unlikely(rc))
					goto out;
			}
			chains[got + i] = chain;
			if (slow && vq->inflight.region != NULL)
				inflight_popped(vq, chain);
			vq_taken(vq, chain, vq->popped + got + i);
		}
		last = (uint16_t)(last + run);	/* wraps on purpose */
	}
	i = 0;
out:
	got += i;
	vq->last_avail = (uint16_t)(last + i);
	vq->popped += got;
	vq->in_flight += got;
	return vq_likely(!rc) ? (int)got : vq_pop_stopped(vq, (int)(got + before), rc, detail) - (int)before;
}

/* Chains that were in flight when an earlier run ended; last_avail stands behind them already. */
static int split_pop_resubmit(struct ring_vq *vq, struct ring_chain **chains, int max)
{
	struct vq_inflight *inf = &vq->inflight;
	uint64_t d[2], detail = 0;
	int got, rc = 0;

	for (got = 0; got < max && vq->popped < inf->nr_resubmit; got++) {
		uint16_t head = inf->resubmit[vq->popped].entry;	/* < size, see inflight_start() */

		shm_load_desc(d, vq->desc + (size_t)VQ_DESC_BYTES * head);
		rc = split_take(vq, head, d, &detail);
		if (rc)
			break;
		chains[got] = &vq->slots[head];
		vq_taken(vq, chains[got], vq->popped);
		vq->popped++;
		vq->in_flight++;
	}
	if (vq->popped >= inf->nr_resubmit)
		vq->slow &= ~(uint32_t)VQ_SLOW_RESUBMIT;
	ring_count(&vq->stats.resubmitted, (uint64_t)got);
	return rc ? vq_pop_stopped(vq, got, rc, detail) : got;
}

static __attribute__((noinline)) int split_pop_slow(struct ring_vq *vq, struct ring_chain **chains, int max)
{
	if (vq->slow & VQ_SLOW_RESUBMIT) {
		int got = split_pop_resubmit(vq, chains, max);

		if (got || vq->slow & VQ_SLOW_RESUBMIT)
			return got;
	}
	return split_pop_ring(vq, chains, max, 0, true);
}

int split_pop(struct ring_vq *vq, struct ring_chain **chains, int max)
{
	uint32_t got = 0;

	if (singles_likely(vq)) {
		bool more;

		got = split_pop_singles(vq, chains, (uint32_t)max, &more);
		if (!more)
			return (int)got;
	}
	if (vq_unlikely(vq->slow & VQ_SLOW_POP))
		return split_pop_slow(vq, chains, max);
	return (int)got + split_pop_ring(vq, chains + got, max - (int)got, got, false);
}

static void split_log_batch(struct ring_vq *vq, uint16_t from, uint16_t count)
{
	uint32_t at = from & vq->mask;
	uint32_t nr = count < vq->size ? count : vq->size;
	uint32_t first = nr < vq->size - at ? nr : vq->size - at;

	vq_log_used(vq, VQ_USED_RING + 8 * (uint64_t)at, 8 * (uint64_t)first);
	if (nr > first)
		vq_log_used(vq, VQ_USED_RING, 8 * (uint64_t)(nr - first));
	vq_log_used(vq, VQ_USED_IDX, 2);
}

/* VIRTIO 1.3, 2.7.7: does the driver want to hear of used entries @from … @to - 1? */
static bool split_wanted(struct ring_vq *vq, uint16_t from, uint16_t to)
{
	uint16_t g_event;

	/*
	 * The new used->idx must be seen before the suppression word is read. Pairs with the driver's barrier between
	 * writing that word and looking at used->idx again.
	 */
	shm_mb();
	if (!vq->event_idx)
		return !(shm_load16(vq->avail + VQ_AVAIL_FLAGS) & VQ_AVAIL_NO_INTERRUPT);
	g_event = shm_load16(vq->avail + VQ_AVAIL_RING + 2 * (size_t)vq->size);
	if (vq_unlikely(!vq->signal_valid)) {
		vq->signal_valid = true;
		return true;
	}
	return (uint16_t)(to - g_event - 1) < (uint16_t)(to - from);	/* vring_need_event() */
}

/*
 * Calls held back (docs/decisions/0015-calls-held-back.md). A driver with many requests under way goes on making them
 * while we serve those that are there, and a call for each interrupts it each time. With EVENT_IDX it says how far it has
 * looked at used entries, hence how many it has not seen yet and how many requests it has under way. Entries are
 * published at once; their call waits until all that the driver usually has under way (@depth, learned) is done,
 * until something is not served on the spot, or until the time is up. The last is a miss: there was less. Misses in a
 * row double the flushes that are left out. Returns whether the call waits.
 */
static bool split_hold(struct ring_vq *vq, uint16_t from, uint16_t to)
{
	uint16_t g_seen = shm_load16(vq->avail + VQ_AVAIL_RING + 2 * (size_t)vq->size);
	uint16_t under_way = (uint16_t)(vq->last_avail - g_seen);
	uint16_t unseen = (uint16_t)(to - g_seen);
	uint64_t now_ns;

	if (under_way > vq->size || unseen > under_way)
		return false;
	if (under_way > vq->depth)
		vq->depth = under_way;
	/* a driver says what it has seen after its program has gone on: one at a time may look like two */
	if (vq->in_flight || unseen >= vq->depth || vq->depth < VQ_HOLD_DEPTH)
		return false;
	if (vq->hold_skip) {
		vq->hold_skip--;
		return false;
	}
	now_ns = ring_now_ns();
	if (!vq->held_ns) {
		vq->held_ns = now_ns;
		vq->held_from = from;
	}
	return now_ns - vq->held_ns < vq->hold_ns;
}

/* The call that was held back. @missed: the time was up. Returns 1 if the driver was told. */
int split_release(struct ring_vq *vq, bool missed)
{
	uint16_t g_seen;

	vq->held_ns = 0;
	if (vq->call_fd < 0 || !vq_running(vq)) {
		vq->signal_valid = false;
		return 0;
	}
	if (!missed) {
		vq->hold_misses = 0;
	} else {
		g_seen = shm_load16(vq->avail + VQ_AVAIL_RING + 2 * (size_t)vq->size);
		vq->depth = (uint16_t)(vq->used_idx - g_seen);
		if (vq->hold_misses < VQ_HOLD_MISSES)
			vq->hold_misses++;
		vq->hold_skip = (uint16_t)(1u << vq->hold_misses);
	}
	return vq_notify(vq, split_wanted(vq, vq->held_from, vq->used_idx));
}

int split_flush(struct ring_vq *vq)
{
	uint16_t from = vq->used_idx, to, count;

	if (vq_unlikely(vq->slow & VQ_SLOW_INFLIGHT))
		inflight_before_publish(vq);
	to = vq->staged;
	count = (uint16_t)(to - from);
	/* Pairs with the driver's acquire of used->idx: entries and buffers are there. */
	shm_store16_release(vq->used + VQ_USED_IDX, to);
	/* After the store: a page marked, fetched and only then written would be lost to the migration. */
	if (vq_unlikely(vq->slow & VQ_SLOW_LOG_USED))
		split_log_batch(vq, from, count);
	vq->used_idx = to;
	ring_count(&vq->stats.pushed, count);
	if (vq_unlikely(vq->slow & VQ_SLOW_INFLIGHT))
		inflight_after_publish(vq);
	if (vq->call_fd < 0) {	/* nobody to tell, so no word to read and no barrier */
		vq->signal_valid = false;
		return 0;
	}
	if (vq_unlikely(vq->hold_ns) && vq->event_idx) {
		if (split_hold(vq, from, to)) {
			ring_count(&vq->stats.held, 1);
			return 0;
		}
		if (vq->held_ns)
			return split_release(vq, false);
	}
	return vq_notify(vq, split_wanted(vq, from, to));
}

/*
 * With EVENT_IDX the driver kicks only when it passes avail_event. Where it has, that stays behind and nothing is written; where
 * we stopped waiting on our own, it is moved out of the way.
 */
void split_kicks_off(struct ring_vq *vq)
{
	uint64_t at = VQ_USED_RING + 8 * (uint64_t)vq->size;

	if (vq->event_idx) {
		if (split_ready(vq))
			return;
		shm_store16(vq->used + at, (uint16_t)(vq->last_avail - 1));
		if (vq->slow & VQ_SLOW_LOG_USED)
			vq_log_used(vq, at, 2);
		return;
	}
	shm_store16(vq->used + VQ_USED_FLAGS, VQ_USED_NO_NOTIFY);
	if (vq->slow & VQ_SLOW_LOG_USED)
		vq_log_used(vq, VQ_USED_FLAGS, 2);
}

int split_kicks_on(struct ring_vq *vq)
{
	uint64_t at = VQ_USED_RING + 8 * (uint64_t)vq->size;

	if (vq->event_idx) {
		shm_store16(vq->used + at, vq->last_avail);	/* avail_event */
		if (vq->slow & VQ_SLOW_LOG_USED)
			vq_log_used(vq, at, 2);
	} else {
		shm_store16(vq->used + VQ_USED_FLAGS, 0);
		if (vq->slow & VQ_SLOW_LOG_USED)
			vq_log_used(vq, VQ_USED_FLAGS, 2);
	}
	/*
	 * The wish must be seen before avail->idx is read again. Pairs with the driver's barrier between its publish and
	 * its reading of avail_event or flags.
	 */
	shm_mb();
	return vq->slow & VQ_SLOW_RESUBMIT || split_ready(vq);
}

int split_ready(const struct ring_vq *vq)
{
	return shm_load16(vq->avail + VQ_AVAIL_IDX) != vq->last_avail;
}
