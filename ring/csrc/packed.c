/* SPDX-License-Identifier: Apache-2.0 */
/*
 * packed.c - the packed layout (VIRTIO 1.3, 2.8): one ring of descriptors that both sides overwrite.
 *
 * Theory of operation
 *   A slot is available when its AVAIL bit equals our wrap counter and its USED bit does not. The buffer id that counts
 *   is in the last descriptor of a list, but drivers write it into all: the chain is walked into the slot that the
 *   first descriptor names and moved in the rare case that the last one says otherwise.
 *
 *   Chains of one descriptor are taken in runs, as in split.c: copies first, with what they point to on its way. No slot
 *   behind them is touched but the next: the driver is writing there.
 */
#include "ring/csrc/walk.h"

enum { PACKED_RUN = 32 };

VQ_INLINE bool packed_is_avail(uint64_t second, uint8_t wrap)
{
	uint32_t flags = (uint32_t)(second >> 48);
	bool avail = flags & VQ_DESC_AVAIL, used = flags & VQ_DESC_USED;

	return avail == wrap && used != wrap;
}

/* The chain was walked elsewhere: give it to the slot of @id. */
static struct ring_chain *packed_move(struct ring_vq *vq, struct ring_chain *from, uint16_t id)
{
	struct ring_chain *chain = &vq->slots[id];

	*chain = *from;
	from->iov_class = 0;	/* the block went along: a later walk into @from must not give it back */
	if (!chain->iov_class)
		chain->iov = chain->inl;
	return chain;
}

/*
 * A list that begins with the copied descriptor @d, in ring order: descriptor @k comes from ring slot @pos + k, or from
 * the inflight record when @entry >= 0. Fills *@nr_desc and *@id. The copies are kept if there is a record to feed.
 */
static int packed_walk(struct vq_walk *w, uint64_t d[2], uint32_t pos, int32_t entry, uint32_t *nr_desc, uint16_t *g_id)
{
	struct ring_vq *vq = w->vq;
	uint32_t seen;
	int rc;

	for (seen = 1;; seen++) {
		uint32_t flags = (uint32_t)(d[1] >> 48);

		if (vq->inflight.region != NULL && entry < 0) {
			vq->inflight.copies[seen - 1][0] = d[0];
			vq->inflight.copies[seen - 1][1] = d[1];
		}
		*nr_desc = seen;
		*g_id = (uint16_t)(d[1] >> 32);
		if (flags & VQ_DESC_INDIRECT) {
			if (vq_unlikely(flags & VQ_DESC_NEXT)) {	/* VIRTIO 1.3, 2.8.7 */
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
		if (vq_unlikely(seen == vq->size)) {
			w->detail = seen;
			return -RING_E_LOOP;
		}
		if (entry >= 0) {
			entry = vq->inflight.next[entry];
			inflight_load(vq, (uint32_t)entry, d);
			continue;
		}
		if (++pos == vq->size)
			pos = 0;
		/* available with the head: drivers make the head's flags valid last (2.8.21.1) */
		shm_load_desc(d, vq->desc + (size_t)VQ_DESC_BYTES * pos);
	}
}

/* What a whole list must still pass. 0 or negative. */
VQ_INLINE int packed_check(const struct ring_vq *vq, uint32_t nr_desc, uint32_t room, uint16_t g_id, uint64_t *detail)
{
	if (vq_unlikely(nr_desc > room)) {	/* the driver wrapped onto slots it has not got back */
		*detail = nr_desc;
		return -RING_E_AVAIL;
	}
	if (vq_unlikely(g_id >= vq->size)) {
		*detail = g_id;
		return -RING_E_ID;
	}
	if (vq_unlikely(vq->slots[g_id].state != VQ_CHAIN_FREE)) {
		*detail = g_id;
		return -RING_E_DUP;
	}
	return 0;
}

/* Take one chain the careful way: @room slots may still be taken. Returns 0 and *@out, or negative. */
static __attribute__((noinline)) int packed_take(struct ring_vq *vq, const uint64_t head[2], uint32_t pos,
						 int32_t entry, uint32_t room, struct ring_chain **out,
						 uint64_t *detail)
{
	uint64_t d[2] = { head[0], head[1] };
	uint16_t g_guess = (uint16_t)(d[1] >> 32), g_id = g_guess;
	struct ring_chain *chain = &vq->scratch;
	struct vq_walk w;
	uint32_t nr_desc = 0;
	int rc;

	if (g_guess < vq->size && vq->slots[g_guess].state == VQ_CHAIN_FREE)
		chain = &vq->slots[g_guess];
	walk_init(&w, vq);
	walk_begin(&w, chain);
	rc = packed_walk(&w, d, pos, entry, &nr_desc, &g_id);
	if (!rc)
		rc = packed_check(vq, nr_desc, room, g_id, &w.detail);
	if (rc) {
		walk_undo(&w);
		*detail = w.detail;
		return rc;
	}
	walk_end(&w);
	walk_fini(&w);
	if (chain != &vq->slots[g_id])
		chain = packed_move(vq, chain, g_id);
	chain->id = g_id;
	chain->nr_desc = (uint16_t)nr_desc;	/* <= size <= 2^15 */
	*out = chain;
	return 0;
}

/* The fast way, or NULL. */
VQ_INLINE struct ring_chain *packed_take_fast(struct ring_vq *vq, struct vq_near *near, const uint64_t head[2],
					      uint32_t pos, uint32_t room)
{
	uint16_t g_guess = (uint16_t)(head[1] >> 32), g_id;
	struct ring_chain *chain;
	uint32_t nr_desc;

	if (vq_unlikely(g_guess >= vq->size))
		return NULL;
	chain = &vq->slots[g_guess];
	if (vq_unlikely(chain->state != VQ_CHAIN_FREE))
		return NULL;
	nr_desc = walk_fast(vq, near, chain, head, pos, &g_id, true);
	if (vq_unlikely(!nr_desc || nr_desc > room || g_id != g_guess)) {
		vq_free_block(vq, chain);
		return NULL;
	}
	chain->id = g_guess;
	chain->nr_desc = (uint16_t)nr_desc;
	return chain;
}

/*
 * Copies of at most @max heads from ring slot @pos on, up to one that is not available, or no chain of its own, or the end of the
 * ring. What they point to is on its way then.
 */
VQ_INLINE uint32_t packed_singles(const struct ring_vq *vq, const struct vq_single *r, uint32_t pos, uint32_t max,
				  uint8_t wrap, uint64_t d[][2])
{
	const SHM uint8_t *at = vq->desc + (size_t)VQ_DESC_BYTES * pos;
	const struct ring_chain *slots = vq->slots;
	uint32_t n, size = vq->size, most = size - pos;
	uint64_t want = wrap ? VQ_DESC_AVAIL : VQ_DESC_USED;

	if (most > max)
		most = max;
	for (n = 0; n < most; n++, at += VQ_DESC_BYTES) {
		uint32_t flags, g_id;

		/* Pairs with the driver's release of the head's flags: the rest of it is there. */
		d[n][1] = shm_load64_acquire(at + 8);
		flags = (uint32_t)(d[n][1] >> 48);
		g_id = (uint32_t)(d[n][1] >> 32) & 0xffff;
		if ((flags & (VQ_DESC_AVAIL | VQ_DESC_USED | VQ_DESC_NEXT | VQ_DESC_INDIRECT)) != want ||
		    vq_unlikely(g_id >= size))
			break;
		d[n][0] = shm_load64(at);
		single_prefetch(r, d[n][0], flags);
		__builtin_prefetch(&slots[g_id], 1);
	}
	return n;
}

/* Chains of one descriptor, until something else comes: *@more, or the end. Returns their number. */
static __attribute__((noinline)) uint32_t packed_pop_singles(struct ring_vq *vq, struct ring_chain **chains,
							     uint32_t max, bool *more)
{
	struct ring_chain *slots = vq->slots;
	uint32_t pos = vq->avail_pos, got = 0, run, i;
	uint64_t d[PACKED_RUN][2];
	uint8_t wrap = vq->avail_wrap;
	struct vq_single r;

	*more = max > vq->size - vq->taken;	/* the driver has not got the rest back: an error, if it is there */
	if (vq_unlikely(*more))
		max = vq->size - vq->taken;
	if (vq_unlikely(!max))
		return 0;
	single_init(vq, &r);
	do {
		run = packed_singles(vq, &r, pos, max - got < PACKED_RUN ? max - got : PACKED_RUN, wrap, d);
		for (i = 0; i < run; i++, got++) {
			uint16_t id = (uint16_t)(d[i][1] >> 32);

			chains[got] = &slots[id];
			if (vq_unlikely(!single_take(vq, &r, &slots[id], d[i], (uint32_t)(d[i][1] >> 48), id)))
				break;
		}
		pos += i;
		if (vq_unlikely(i < run)) {
			*more = true;
			break;
		}
		if (pos == vq->size) {
			pos = 0;
			wrap ^= 1;
		} else if (run < PACKED_RUN) {	/* at the end, or at @max, or at something else */
			*more |= got < max && packed_is_avail(d[run][1], wrap);
			break;
		}
	} while (got < max);
	if (!got)
		return 0;
	vq->avail_pos = pos;
	vq->avail_wrap = wrap;
	vq->taken += got;
	singles_taken(vq, chains, got);
	return got;
}

/* @before: chains that this pop has taken already, elsewhere. */
VQ_INLINE int packed_pop_ring(struct ring_vq *vq, struct ring_chain **chains, int max, int before, const bool slow)
{
	struct vq_near near;
	uint32_t pos = vq->avail_pos, room = vq->size - vq->taken, stride = vq->stride;
	uint8_t wrap = vq->avail_wrap;
	uint64_t d[2], detail = 0;
	int got, rc = 0;

	/* Pairs with the driver's release of the head's flags: the whole list is there. */
	d[1] = shm_load64_acquire(vq->desc + (size_t)VQ_DESC_BYTES * pos + 8);
	if (!packed_is_avail(d[1], wrap))
		return 0;
	vq_guess(vq);
	near_init(&near, vq);
	for (got = 0;;) {
		struct ring_chain *chain = NULL;
		uint32_t ahead = pos + 4 * stride;

		d[0] = shm_load64(vq->desc + (size_t)VQ_DESC_BYTES * pos);
		/* A hint and nothing more: the ring line, and what a descriptor of a later chain points to. */
		if (vq_likely(ahead < vq->size)) {
			near_prefetch(&near, shm_load64(vq->desc + (size_t)VQ_DESC_BYTES * ahead), false);
			__builtin_prefetch(vq->desc + (size_t)VQ_DESC_BYTES * (ahead + 4 * stride));
		}
		if (!slow)
			chain = packed_take_fast(vq, &near, d, pos, room);
		if (slow || vq_unlikely(chain == NULL)) {
			rc = packed_take(vq, d, pos, -1, room, &chain, &detail);
			if (vq_unlikely(rc))
				break;
		}
		stride = chain->nr_desc;
		room -= stride;
		pos += stride;
		if (pos >= vq->size) {
			pos -= vq->size;
			wrap ^= 1;
		}
		chains[got] = chain;
		if (slow && vq->inflight.region != NULL)
			inflight_popped(vq, chain);
		vq_taken(vq, chain, vq->popped + (uint32_t)got);
		if (++got == max)
			break;
		d[1] = shm_load64_acquire(vq->desc + (size_t)VQ_DESC_BYTES * pos + 8);	/* as above */
		if (!packed_is_avail(d[1], wrap))
			break;
	}
	vq->avail_pos = pos;
	vq->avail_wrap = wrap;
	vq->taken = vq->size - room;
	vq->stride = stride;
	vq->popped += (uint32_t)got;
	vq->in_flight += (uint32_t)got;
	return vq_likely(!rc) ? got : vq_pop_stopped(vq, got + before, rc, detail) - before;
}

/* Chains that were in flight when an earlier run ended, from the inflight record's copies of their descriptors. */
static int packed_pop_resubmit(struct ring_vq *vq, struct ring_chain **chains, int max)
{
	struct vq_inflight *inf = &vq->inflight;
	uint64_t d[2], detail = 0;
	int got, rc = 0;

	for (got = 0; got < max && vq->popped < inf->nr_resubmit; got++) {
		const struct vq_resubmit *again = &inf->resubmit[vq->popped];

		inflight_load(vq, again->entry, d);
		/* the slots were counted at start */
		rc = packed_take(vq, d, 0, again->entry, vq->size, &chains[got], &detail);
		if (!rc && chains[got]->nr_desc != again->num) {
			vq_free_block(vq, chains[got]);
			rc = -RING_E_INFLIGHT;	/* flags changed under us */
			detail = again->entry;
		}
		if (rc)
			break;
		chains[got]->inflight = again->entry;
		vq_taken(vq, chains[got], vq->popped);
		vq->popped++;
		vq->in_flight++;
	}
	if (vq->popped >= inf->nr_resubmit)
		vq->slow &= ~(uint32_t)VQ_SLOW_RESUBMIT;
	ring_count(&vq->stats.resubmitted, (uint64_t)got);
	return rc ? vq_pop_stopped(vq, got, rc, detail) : got;
}

static __attribute__((noinline)) int packed_pop_slow(struct ring_vq *vq, struct ring_chain **chains, int max)
{
	if (vq->slow & VQ_SLOW_RESUBMIT) {
		int got = packed_pop_resubmit(vq, chains, max);

		if (got || vq->slow & VQ_SLOW_RESUBMIT)
			return got;
	}
	return packed_pop_ring(vq, chains, max, 0, true);
}

int packed_pop(struct ring_vq *vq, struct ring_chain **chains, int max)
{
	int got = 0;

	if (singles_likely(vq)) {
		bool more;

		got = (int)packed_pop_singles(vq, chains, (uint32_t)max, &more);
		if (!more)
			return got;
	}
	if (vq_unlikely(vq->slow & VQ_SLOW_POP))
		return packed_pop_slow(vq, chains, max);
	return got + packed_pop_ring(vq, chains + got, max - got, got, false);
}

/* Step back over the newest chain taken from the ring. */
void packed_unpop(struct ring_vq *vq, uint32_t nr_desc)
{
	vq->taken -= nr_desc;
	if (vq->avail_pos < nr_desc) {
		vq->avail_pos += vq->size;
		vq->avail_wrap ^= 1;
	}
	vq->avail_pos -= nr_desc;
}

static void packed_log_batch(struct ring_vq *vq, uint32_t from, uint32_t slots)
{
	uint32_t first = slots < vq->size - from ? slots : vq->size - from;

	vq_log_ring(vq, vq->desc + (size_t)VQ_DESC_BYTES * from, (uint64_t)VQ_DESC_BYTES * first);
	if (slots > first)
		vq_log_ring(vq, vq->desc, (uint64_t)VQ_DESC_BYTES * (slots - first));
}

/* VIRTIO 1.3, 2.8.10: does the driver want to hear of the @slots slots before used_pos? */
static bool packed_wanted(struct ring_vq *vq, uint32_t slots)
{
	uint32_t g_event, flags, off;
	int32_t event, now = (int32_t)vq->used_pos;

	/*
	 * The flags just written must be seen before the suppression area is read. Pairs with the driver's barrier
	 * between writing that area and looking at the flags again.
	 */
	shm_mb();
	g_event = shm_load32(vq->avail);
	flags = g_event >> 16;
	if (flags == VQ_EVENT_DISABLE)
		return false;
	if (flags != VQ_EVENT_AT_DESC || !vq->event_idx)	/* reserved values: better once too often */
		return true;
	if (vq_unlikely(!vq->signal_valid)) {
		vq->signal_valid = true;
		return true;
	}
	/* On one line with used_pos: an event of the other wrap counter lies in the lap before. */
	off = g_event & 0x7fff;
	event = (int32_t)off;
	if ((g_event >> 15 & 1) != vq->used_wrap)
		event -= (int32_t)vq->size;
	return event >= now - (int32_t)slots && event < now;
}

int packed_flush(struct ring_vq *vq)
{
	uint32_t slots;

	if (vq_unlikely(vq->slow & VQ_SLOW_INFLIGHT))
		inflight_before_publish(vq);
	slots = vq->staged_slots;
	/* Pairs with the driver's acquire of these flags: buffers and the rest of the batch are there. */
	shm_store64_release(vq->desc + (size_t)VQ_DESC_BYTES * vq->first_pos + 8, vq->first_val);
	/* After the store: a page marked, fetched and only then written would be lost to the migration. */
	if (vq_unlikely(vq->slow & VQ_SLOW_LOG_USED))
		packed_log_batch(vq, vq->first_pos, slots);
	ring_count(&vq->stats.pushed, vq->staged_chains);
	vq->taken -= slots;
	vq->staged_slots = 0;
	vq->staged_chains = 0;
	if (vq_unlikely(vq->slow & VQ_SLOW_INFLIGHT))
		inflight_after_publish(vq);
	if (vq->call_fd < 0) {	/* nobody to tell, so no word to read and no barrier */
		vq->signal_valid = false;
		return 0;
	}
	return vq_notify(vq, packed_wanted(vq, slots));
}

void packed_kicks_off(struct ring_vq *vq)
{
	shm_store16(vq->used + VQ_EVENT_FLAGS, VQ_EVENT_DISABLE);
	if (vq->slow & VQ_SLOW_LOG_USED)
		vq_log_ring(vq, vq->used, 4);
}

int packed_kicks_on(struct ring_vq *vq)
{
	if (vq->event_idx) {
		shm_store16(vq->used + VQ_EVENT_DESC, (uint16_t)(vq->avail_pos | (uint32_t)vq->avail_wrap << 15));
		/* Pairs with the driver's reading of flags before desc: it never takes an old position for a new one. */
		shm_store16_release(vq->used + VQ_EVENT_FLAGS, VQ_EVENT_AT_DESC);
	} else {
		shm_store16(vq->used + VQ_EVENT_FLAGS, VQ_EVENT_ENABLE);
	}
	if (vq->slow & VQ_SLOW_LOG_USED)
		vq_log_ring(vq, vq->used, 4);
	/*
	 * The wish must be seen before the descriptor is looked at again. Pairs with the driver's barrier between making
	 * descriptors available and reading this area.
	 */
	shm_mb();
	return vq->slow & VQ_SLOW_RESUBMIT || packed_ready(vq);
}

int packed_ready(const struct ring_vq *vq)
{
	return packed_is_avail(shm_load64(vq->desc + (size_t)VQ_DESC_BYTES * vq->avail_pos + 8), vq->avail_wrap);
}
