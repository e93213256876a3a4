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

struct ring_iov *near_grow(struct ring_vq *vq, struct ring_chain *chain, uint32_t nr);
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
 * The fast walk, for what nearly every chain is: buffers of which none is empty, each inside one writable region,
 * described directly or by one aligned table in order. It decides nothing else: where it returns 0 the chain is walked
 * again from the head's copy by the careful walk above, which reads the rest afresh and alone is believed.
 * All its state lives in registers; hence the separate region copy. Two regions are remembered: the one that chains begin
 * in, and the last other one, for the data often lies elsewhere than header and status.
 */
struct vq_near {
	const struct ring_memtab *tab;
	uint64_t gpa;	/* where chains begin */
	uint64_t len;	/* 0: no region yet */
	uint8_t *hva;
	struct {
		uint64_t gpa;
		uint64_t len;
		uint8_t *hva;
	} other;
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
	near->other.gpa = 0;
	near->other.len = 0;
	near->other.hva = NULL;
	if (vq_likely(near->tab != NULL && near->tab->nr)) {
		if (vq_unlikely(vq->hint >= near->tab->nr))	/* regions went away */
			vq->hint = 0;
		near_set(near, &near->tab->by_gpa[vq->hint]);
	}
}

/* The region of @g_addr by one look at the table of granules, which is enough where none holds several; or the long way. */
VQ_INLINE const struct ring_region *near_find(const struct vq_near *near, struct ring_vq *vq, uint64_t g_addr)
{
	const struct ring_memtab *tab = near->tab;
	uint64_t g;

	if (vq_unlikely(tab == NULL))
		return NULL;
	g = g_addr >> tab->shift;
	if (vq_likely(g < RING_GRANULES)) {
		uint32_t i = tab->granule[g];

		if (vq_likely(i < tab->nr && g_addr - tab->by_gpa[i].gpa < tab->by_gpa[i].len)) {
			vq->hint = i;
			return &tab->by_gpa[i];
		}
	}
	return ring_memtab_find(tab, g_addr, &vq->hint);
}

/*
 * Our address of [@g_addr, @g_addr + @g_len), or NULL. @g_len 0 wraps to something that fits nowhere. @begin: a chain or its
 * table begins there.
 */
VQ_INLINE uint8_t *near_at(struct vq_near *near, struct ring_vq *vq, uint64_t g_addr, uint32_t g_len, const bool begin)
{
	uint64_t off = g_addr - near->gpa, len = near->len;
	uint8_t *hva = near->hva;

	if (vq_unlikely(off >= len)) {
		off = g_addr - near->other.gpa;
		len = near->other.len;
		hva = near->other.hva;
		if (off >= len) {
			const struct ring_region *r = near_find(near, vq, g_addr);

			if (r == NULL)
				return NULL;
			off = g_addr - r->gpa;
			len = r->flags & RING_MEM_RO ? 0 : r->len;	/* read-only memory is for the careful walk */
			hva = r->hva;
			if (off >= len)
				return NULL;
			near->other.gpa = r->gpa;
			near->other.len = len;
			near->other.hva = hva;
		}
		if (begin) {
			near->gpa = near->other.gpa;
			near->len = len;
			near->hva = hva;
		}
	}
	if (vq_unlikely((uint64_t)g_len - 1 >= len - off))
		return NULL;
	return hva + off;
}

/* A hint only: an address outside the region hit last is left alone. */
VQ_INLINE void near_prefetch(const struct vq_near *near, uint64_t g_addr, bool write)
{
	uint64_t off = g_addr - near->gpa;

	if (off >= near->len)
		return;
	if (write)
		shm_prefetch_write(near->hva + off);
	else
		shm_prefetch(near->hva + off);
}

/*
 * Chains of one descriptor, as networks have them: no list, no table. Where they are, they come one after the other, and the
 * loop that takes them has room for nothing else; see split.c and packed.c. What is odd about one ends it, and the walks
 * above judge.
 */
/* Its address stays with the caller, so that all of it can lie in registers: a chain's state byte may alias anything. */
struct vq_single {
	uint64_t gpa, len;	/* region hit last; len 0: none */
	uint8_t *hva;
	uint16_t *order;
	uint64_t seq;		/* of the next chain */
	uint32_t order_mask;
};

/* A guess: the chain popped last was one. */
VQ_INLINE bool singles_likely(const struct ring_vq *vq)
{
	const struct ring_chain *chain = vq->guess;

	return chain != NULL && !(vq->slow & VQ_SLOW_POP) && chain->nr_desc == 1 && chain->nr_out + chain->nr_in == 1;
}

/* Of the last pop. */
VQ_INLINE void single_init(const struct ring_vq *vq, struct vq_single *r)
{
	const struct ring_memtab *tab = vq->mem->tab;
	const struct ring_region *last;

	r->order = vq->order;
	r->order_mask = vq->order_mask;
	r->seq = vq->popped;
	r->gpa = 0;
	r->len = 0;
	r->hva = NULL;
	if (vq_unlikely(tab == NULL || vq->hint >= tab->nr))
		return;
	last = &tab->by_gpa[vq->hint];
	r->gpa = last->gpa;
	r->len = last->flags & RING_MEM_RO ? 0 : last->len;	/* read-only memory is for the careful walk */
	r->hva = last->hva;
}

/* Where @g_addr lies, another region than the last; NULL: nowhere, or where only the careful walk may look. */
const struct ring_region *single_region(struct ring_vq *vq, uint64_t g_addr);

VQ_INLINE void single_prefetch(const struct vq_single *r, uint64_t g_addr, uint32_t flags)
{
	uint64_t off = g_addr - r->gpa;

	if (vq_unlikely(off >= r->len))
		return;
	if (flags & VQ_DESC_WRITE)
		shm_prefetch_write(r->hva + off);
	else
		shm_prefetch(r->hva + off);
}

/* Our address of [@g_addr, @g_addr + @g_len), or NULL: only the careful walk may say what is wrong with it. */
VQ_INLINE uint8_t *single_at(struct ring_vq *vq, struct vq_single *r, uint64_t g_addr, uint32_t g_len)
{
	uint64_t off = g_addr - r->gpa;

	if (vq_unlikely(off >= r->len)) {
		const struct ring_region *other = single_region(vq, g_addr);

		if (other == NULL)
			return NULL;
		r->gpa = other->gpa;
		r->len = other->len;
		r->hva = other->hva;
		off = g_addr - r->gpa;
	}
	if (vq_unlikely((uint64_t)g_len - 1 >= r->len - off))	/* 0 too */
		return NULL;
	return r->hva + off;
}

/* Take the copied descriptor @d into the slot of @id, which is below the size. False: it is an odd one. */
VQ_INLINE bool single_take(struct ring_vq *vq, struct vq_single *r, struct ring_chain *chain, const uint64_t d[2],
			   uint32_t flags, uint16_t id)
{
	uint32_t g_len = (uint32_t)d[1];
	uint32_t in = flags / VQ_DESC_WRITE & 1;
	uint8_t *base;

	if (vq_unlikely(chain->state != VQ_CHAIN_FREE))
		return false;
	base = single_at(vq, r, d[0], g_len);
	if (vq_unlikely(base == NULL))
		return false;
	chain->iov = chain->inl;
	chain->inl[0].base = base;
	chain->inl[0].len = g_len;
	chain->out_bytes = g_len & (in - 1);
	chain->in_bytes = g_len & -in;
	chain->nr_out = (uint16_t)(in ^ 1);
	chain->nr_in = (uint16_t)in;
	chain->id = id;
	chain->nr_desc = 1;
	chain->state = VQ_CHAIN_POPPED;
	r->order[r->seq++ & r->order_mask] = id;
	return true;
}

/* @got of them were taken. */
VQ_INLINE void singles_taken(struct ring_vq *vq, struct ring_chain **chains, uint32_t got)
{
	vq->popped += got;
	vq->in_flight += got;
	if (vq_likely(got))
		vq->guess = chains[got - 1];
}

/* Flags of either layout in the low bits; what may stand above them is never tested. */
VQ_INLINE uint32_t near_flags(uint64_t second, const bool packed)
{
	return (uint32_t)(second >> (packed ? 48 : 32));
}

/* Tell the slot: @nr_out of @nr pieces are readable, @out_bytes of @bytes. */
VQ_INLINE void near_done(struct ring_chain *chain, struct ring_iov *iov, uint32_t nr_out, uint32_t nr,
			 uint64_t out_bytes, uint64_t bytes)
{
	chain->iov = iov;
	chain->out_bytes = (uint32_t)out_bytes;
	chain->in_bytes = (uint32_t)(bytes - out_bytes);
	chain->nr_out = (uint16_t)nr_out;
	chain->nr_in = (uint16_t)(nr - nr_out);
}

/* The ring or table slot after @at, whose second word is @second. False if the careful walk is to judge. */
VQ_INLINE bool near_next(const struct ring_vq *vq, uint64_t second, uint32_t *at, uint32_t nr, const bool packed,
			 const bool in_table)
{
	if (packed) {
		if (vq_unlikely(++*at == vq->size))
			*at = 0;
		return true;
	}
	if (in_table)	/* out of order is legal, but nobody does it */
		return vq_likely(++*at == second >> 48 && *at < nr);
	*at = (uint32_t)(second >> 48);
	return vq_likely(*at < vq->size);
}

/*
 * A list of buffers from the copied descriptor @d, in the ring (@table NULL, @at its slot when packed) or in a table of
 * @nr entries (@at 0). Two loops, readable then writable, so that neither has to ask which it is. Returns the number of
 * descriptors, 0 if the careful walk is to have the chain (which may hold a block then); packed: *@g_id is the last
 * descriptor's.
 */
VQ_INLINE uint32_t near_list(struct vq_near *near, struct ring_vq *vq, struct ring_chain *chain, uint64_t d[2],
			     const SHM uint8_t *table, uint32_t at, uint32_t nr, uint16_t *g_id, const bool packed,
			     const bool in_table)
{
	const SHM uint8_t *from = in_table ? table : vq->desc;
	struct ring_iov *base = chain->inl, *iov = base, *end = base + RING_INLINE_IOV, *in = NULL;
	uint64_t bytes = 0, out_bytes = 0;

	for (;; shm_load_desc(d, from + (size_t)VQ_DESC_BYTES * at)) {
		uint32_t flags = near_flags(d[1], packed), g_len = (uint32_t)d[1];
		uint8_t *p;

		if (flags & VQ_DESC_WRITE) {
			if (in == NULL) {
				in = iov;
				out_bytes = bytes;
			}
		} else if (vq_unlikely(in != NULL)) {
			return 0;
		}
		if (vq_unlikely(flags & VQ_DESC_INDIRECT))
			return 0;
		p = near_at(near, vq, d[0], g_len, !in_table && iov == base);
		if (vq_unlikely(p == NULL))
			return 0;
		iov->base = p;
		iov->len = g_len;
		iov++;
		bytes += g_len;
		if (packed && in_table) {
			if (++at == nr)
				break;
		} else {
			if (!(flags & VQ_DESC_NEXT))
				break;
			if (vq_unlikely(!near_next(vq, d[1], &at, nr, packed, in_table)))
				return 0;
		}
		if (vq_unlikely(iov == end)) {
			struct ring_iov *bigger = near_grow(vq, chain, (uint32_t)(iov - base));

			if (bigger == NULL)
				return 0;
			iov = bigger + (iov - base);
			in = in != NULL ? bigger + (in - base) : NULL;
			base = bigger;
			end = base + (chain->iov_class == 1 ? VQ_POOL1_IOV : RING_IOV_MAX);
		}
	}
	nr = (uint32_t)(iov - base);
	if (vq_unlikely(bytes > UINT32_MAX || (!in_table && nr > vq->size)))
		return 0;
	if (in == NULL) {
		in = iov;
		out_bytes = bytes;
	}
	*g_id = (uint16_t)(d[1] >> 32);
	near_done(chain, base, (uint32_t)(in - base), nr, out_bytes, bytes);
	return nr;
}

/*
 * From the head's copy into @chain, which is free. Packed: the list starts at ring slot @pos. Returns the ring slots the
 * chain takes, 0 for the careful walk; *@g_id as above.
 */
VQ_INLINE uint32_t walk_fast(struct ring_vq *vq, struct vq_near *near, struct ring_chain *chain, const uint64_t head[2],
			     uint32_t pos, uint16_t *g_id, const bool packed)
{
	uint64_t d[2] = { head[0], head[1] };
	uint32_t flags = near_flags(d[1], packed), g_len = (uint32_t)d[1];
	const SHM uint8_t *table;
	uint16_t unused;
	uint32_t nr;

	if (!(flags & VQ_DESC_INDIRECT)) {
		nr = near_list(near, vq, chain, d, NULL, pos, 0, g_id, packed, false);
	} else {
		if (vq_unlikely(!vq->indirect || flags & VQ_DESC_NEXT || g_len > RING_IOV_MAX * VQ_DESC_BYTES ||
				g_len % VQ_DESC_BYTES))
			return 0;
		table = near_at(near, vq, d[0], g_len, true);
		if (vq_unlikely(table == NULL || (uintptr_t)table & 7))
			return 0;
		*g_id = (uint16_t)(d[1] >> 32);
		vq->table = table;
		shm_load_desc(d, table);
		nr = near_list(near, vq, chain, d, table, 0, g_len / VQ_DESC_BYTES, &unused, packed, true) ? 1 : 0;
	}
	if (vq_unlikely(!nr))
		vq_free_block(vq, chain);
	return nr;
}

#endif
