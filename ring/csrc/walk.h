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

/* Once per batch. */
VQ_INLINE void walk_init(struct vq_walk *w, struct ring_vq *vq)
{
	w->vq = vq;
	w->tab = vq->mem->tab;
	walk_init_regions(w);
}

/* The region hit last, for the next batch. */
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

/* A hint only: an address that is not in the region hit last is left alone. */
VQ_INLINE void walk_prefetch(const struct vq_walk *w, uint64_t g_addr)
{
	uint64_t off = g_addr - w->r->gpa;

	if (off < w->r->len)
		__builtin_prefetch(w->r->hva + off);
}

#endif
