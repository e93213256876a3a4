/* SPDX-License-Identifier: Apache-2.0 */
/*
 * walk.h - from descriptors to pieces: the one traversal that both layouts share.
 *
 * Rules
 * - Each descriptor is loaded once, by the caller or by walk_indirect(); only the copy is looked at.
 * - Every limit is checked inside the loop: descriptors, pieces, bytes.
 * - A walk that fails leaves no trace (walk_undo()).
 */
#ifndef RING_WALK_H
#define RING_WALK_H

#include "ring/csrc/vq.h"

struct vq_walk {
	struct ring_vq *vq;
	const struct ring_memtab *tab;
	const struct ring_region *r;	/* hit last */
	struct ring_iov *iov;
	uint32_t nr;			/* pieces */
	uint32_t cap;
	uint32_t nr_desc;		/* buffers seen, empty ones too */
	uint32_t nr_out;
	uint64_t bytes;
	uint64_t out_bytes;
	uint64_t detail;		/* the number to report with an error */
	uint8_t iov_class;
	bool in;			/* a writable descriptor was seen */
	struct ring_chain *chain;
};

int walk_add_slow(struct vq_walk *w, uint64_t g_addr, uint32_t g_len, bool write);
int walk_indirect(struct vq_walk *w, uint64_t g_addr, uint32_t g_len);
void walk_undo(struct vq_walk *w);
void walk_init_regions(struct vq_walk *w);

/* Before the first chain. */
VQ_INLINE void walk_init(struct vq_walk *w, struct ring_vq *vq)
{
	w->vq = vq;
	w->tab = vq->mem->tab;
	walk_init_regions(w);
}

/* The region hit last, for whoever walks next. */
VQ_INLINE void walk_fini(struct vq_walk *w)
{
	if (w->r->len)	/* not the one that holds no address */
		w->vq->hint = (uint32_t)(w->r - w->tab->by_gpa);
}

/* Once per chain. */
VQ_INLINE void walk_begin(struct vq_walk *w, struct ring_chain *chain)
{
	w->chain = chain;
	w->iov = chain->inl;
	w->cap = RING_INLINE_IOV;
	w->nr = 0;
	w->nr_desc = 0;
	w->bytes = 0;
	w->iov_class = 0;
	w->in = false;
}

/* One buffer: checks, translation, pieces. 0 or negative. */
VQ_INLINE int walk_add(struct vq_walk *w, uint64_t g_addr, uint32_t g_len, bool write)
{
	const struct ring_region *r = w->r;
	uint64_t off = g_addr - r->gpa;

	if (vq_unlikely(++w->nr_desc > RING_CHAIN_MAX)) {
		w->detail = w->nr_desc;
		return -RING_E_LOOP;
	}
	if (write != w->in) {
		if (vq_unlikely(w->in)) {	/* VIRTIO 1.3, 2.7.4.2 */
			w->detail = w->nr_desc;
			return -RING_E_ORDER;
		}
		w->in = true;
		w->nr_out = w->nr;
		w->out_bytes = w->bytes;
	}
	if (vq_likely(off < r->len && g_len <= r->len - off && w->nr < w->cap && g_len &&
		      w->bytes + g_len <= UINT32_MAX && !(r->flags & RING_MEM_RO && write))) {
		w->bytes += g_len;
		w->iov[w->nr].base = r->hva + off;
		w->iov[w->nr].len = g_len;
		w->nr++;
		return 0;
	}
	return walk_add_slow(w, g_addr, g_len, write);
}

/* The chain is complete: tell the slot. The id and what the layout needs are the caller's. */
VQ_INLINE void walk_end(struct vq_walk *w)
{
	struct ring_chain *chain = w->chain;

	if (!w->in) {
		w->nr_out = w->nr;
		w->out_bytes = w->bytes;
	}
	chain->iov = w->iov;
	chain->out_bytes = (uint32_t)w->out_bytes;	/* walk_add() keeps the sum below 2^32 */
	chain->in_bytes = (uint32_t)(w->bytes - w->out_bytes);
	chain->nr_out = (uint16_t)w->nr_out;
	chain->nr_in = (uint16_t)(w->nr - w->nr_out);
	chain->iov_class = w->iov_class;
}

/*
 * The fast walk, for what nearly every chain is: at most RING_INLINE_IOV buffers, none empty, each inside one writable
 * region, described directly or by one aligned table in order. It decides nothing else: where it returns false the chain
 * is walked again from the head's copy by the careful walk above, which reads the rest afresh and alone is believed.
 * All its state lives in registers; hence the separate region copy.
 */
struct vq_near {
	const struct ring_memtab *tab;
	uint64_t gpa;
	uint64_t len;	/* 0: no region yet */
	uint8_t *hva;
};

VQ_INLINE void near_set(struct vq_near *near, const struct ring_region *r)
{
	near->gpa = r->gpa;
	near->len = r->flags & RING_MEM_RO ? 0 : r->len;	/* read-only memory is for the careful walk */
	near->hva = r->hva;
}

VQ_INLINE void near_init(struct vq_near *near, struct ring_vq *vq)
{
	near->tab = vq->mem->tab;
	near->gpa = 0;
	near->len = 0;
	near->hva = NULL;
	if (vq_likely(near->tab != NULL && near->tab->nr)) {
		if (vq_unlikely(vq->hint >= near->tab->nr))	/* regions went away */
			vq->hint = 0;
		near_set(near, &near->tab->by_gpa[vq->hint]);
	}
}

/* Our address of [@g_addr, @g_addr + @g_len), or NULL. @g_len 0 wraps to something that fits nowhere. */
VQ_INLINE uint8_t *near_at(struct vq_near *near, struct ring_vq *vq, uint64_t g_addr, uint32_t g_len)
{
	uint64_t off = g_addr - near->gpa;

	if (vq_unlikely(off >= near->len)) {
		const struct ring_region *r = near->tab != NULL ? ring_memtab_find(near->tab, g_addr, &vq->hint) : NULL;

		if (r == NULL)
			return NULL;
		near_set(near, r);
		off = g_addr - near->gpa;
		if (off >= near->len)
			return NULL;
	}
	if (vq_unlikely((uint64_t)g_len - 1 >= near->len - off))
		return NULL;
	return near->hva + off;
}

/* A hint only: an address outside the region hit last is left alone. */
VQ_INLINE void near_prefetch(const struct vq_near *near, uint64_t g_addr)
{
	uint64_t off = g_addr - near->gpa;

	if (off < near->len)
		__builtin_prefetch(near->hva + off);
}

struct vq_sums {
	uint64_t bytes;
	uint64_t in_bytes;
	uint32_t nr;
	uint32_t nr_in;
	uint32_t was_in;
};

/* One buffer of at most RING_INLINE_IOV: false if the careful walk is to have it. */
VQ_INLINE bool near_add(struct vq_near *near, struct ring_vq *vq, struct ring_chain *chain, struct vq_sums *sum,
			const uint64_t d[2], uint32_t flags)
{
	uint32_t in = flags >> 1 & 1;	/* VQ_DESC_WRITE */
	uint32_t g_len = (uint32_t)d[1];
	uint8_t *p = near_at(near, vq, d[0], g_len);

	if (vq_unlikely(p == NULL || in < sum->was_in))
		return false;
	chain->inl[sum->nr].base = p;
	chain->inl[sum->nr].len = g_len;
	sum->nr++;
	sum->was_in = in;
	sum->nr_in += in;
	sum->bytes += g_len;
	sum->in_bytes += in ? g_len : 0;
	return true;
}

VQ_INLINE bool near_table(struct vq_near *near, struct ring_vq *vq, struct ring_chain *chain, struct vq_sums *sum,
			  uint64_t g_addr, uint32_t g_len, const bool packed)
{
	const SHM uint8_t *table;
	uint64_t d[2];
	uint32_t i, nr = g_len / VQ_DESC_BYTES;

	if (vq_unlikely(!vq->indirect || nr > RING_INLINE_IOV || g_len % VQ_DESC_BYTES))
		return false;
	table = near_at(near, vq, g_addr, g_len);
	if (vq_unlikely(table == NULL || (uintptr_t)table & 7))
		return false;
	for (i = 0; i < nr; i++) {
		uint32_t flags;

		shm_load_desc(d, table + (size_t)VQ_DESC_BYTES * i);
		flags = (uint32_t)(packed ? d[1] >> 48 : d[1] >> 32 & 0xffff);
		if (vq_unlikely(flags & VQ_DESC_INDIRECT || !near_add(near, vq, chain, sum, d, flags)))
			return false;
		if (packed)
			continue;
		if (!(flags & VQ_DESC_NEXT))
			return true;
		if (vq_unlikely(d[1] >> 48 != i + 1))	/* legal, but nobody does it */
			return false;
	}
	return packed;	/* split: NEXT pointed out of the table */
}

/*
 * From the head's copy @d into @chain, which is free. Packed: the list starts at ring slot @pos; *@nr_desc and *@g_id are
 * of its last descriptor. A list of more than the queue size cannot get past RING_INLINE_IOV unless the queue is smaller.
 */
VQ_INLINE bool walk_fast(struct ring_vq *vq, struct vq_near *near, struct ring_chain *chain, const uint64_t head[2],
			 uint32_t pos, uint32_t *nr_desc, uint16_t *g_id, const bool packed)
{
	struct vq_sums sum = { 0 };
	uint64_t d[2] = { head[0], head[1] };
	uint32_t seen;

	for (seen = 1;; seen++) {
		uint32_t flags = (uint32_t)(packed ? d[1] >> 48 : d[1] >> 32 & 0xffff);
		uint32_t g_next = (uint32_t)(d[1] >> 48);	/* split */

		if (flags & VQ_DESC_INDIRECT) {
			if (vq_unlikely(flags & VQ_DESC_NEXT || sum.nr ||
					!near_table(near, vq, chain, &sum, d[0], (uint32_t)d[1], packed)))
				return false;
			break;
		}
		if (vq_unlikely(!near_add(near, vq, chain, &sum, d, flags)))
			return false;
		if (!(flags & VQ_DESC_NEXT))
			break;
		if (vq_unlikely(seen == RING_INLINE_IOV || seen == vq->size))
			return false;
		if (packed) {
			if (vq_unlikely(++pos == vq->size))
				pos = 0;
			g_next = pos;
		} else if (vq_unlikely(g_next >= vq->size)) {
			return false;
		}
		shm_load_desc(d, vq->desc + (size_t)VQ_DESC_BYTES * g_next);
	}
	if (vq_unlikely(sum.bytes > UINT32_MAX))
		return false;
	*nr_desc = seen;
	*g_id = (uint16_t)(d[1] >> 32);
	chain->iov = chain->inl;
	chain->out_bytes = (uint32_t)(sum.bytes - sum.in_bytes);
	chain->in_bytes = (uint32_t)sum.in_bytes;
	chain->nr_out = (uint16_t)(sum.nr - sum.nr_in);
	chain->nr_in = (uint16_t)sum.nr_in;
	return true;
}

#endif
