/* SPDX-License-Identifier: Apache-2.0 */
/*
 * walk.c - the careful walk: what walk.h leaves out of line. Borders of regions, IOTLB, indirect tables, blocks of pieces.
 */
#include "ring/csrc/walk.h"

static const struct ring_region no_region;	/* holds no address */

void walk_init_regions(struct vq_walk *w)
{
	struct ring_vq *vq = w->vq;

	/* With an IOTLB no descriptor holds a gpa: nothing may hit the fast path. */
	if (w->tab == NULL || !w->tab->nr || vq->slow & VQ_SLOW_IOTLB) {
		w->r = &no_region;
		return;
	}
	if (vq->hint >= w->tab->nr)	/* regions went away */
		vq->hint = 0;
	w->r = &w->tab->by_gpa[vq->hint];
}

static const int pool_iov[VQ_POOLS] = { VQ_POOL1_IOV, RING_IOV_MAX };

/* A block of the smallest class above @iov_class that has one left: its class, or 0. */
static uint8_t take_block(struct ring_vq *vq, uint8_t iov_class, struct ring_iov **out)
{
	uint8_t i;

	for (i = iov_class; i < VQ_POOLS; i++) {
		if (vq->pool[i].nr_free) {
			*out = vq->pool[i].free[--vq->pool[i].nr_free];
			return (uint8_t)(i + 1);
		}
	}
	return 0;
}

/* More pieces than there is room for: move to a bigger block. 0, -VQ_NO_BLOCK or -RING_E_IOVECS. */
static int walk_grow(struct vq_walk *w)
{
	struct ring_vq *vq = w->vq;
	struct ring_iov *old = w->iov;
	uint8_t iov_class;

	if (w->cap == RING_IOV_MAX) {
		w->detail = w->nr + 1;
		return -RING_E_IOVECS;
	}
	iov_class = take_block(vq, w->iov_class, &w->iov);
	if (!iov_class)
		return -VQ_NO_BLOCK;
	memcpy(w->iov, old, w->nr * sizeof(*old));
	if (w->iov_class) {
		struct vq_pool *pool = &vq->pool[w->iov_class - 1];

		pool->free[pool->nr_free++] = old;
	}
	w->iov_class = iov_class;
	w->cap = (uint32_t)pool_iov[iov_class - 1];
	return 0;
}

/* The same for the fast walk: @nr pieces stand inline, or in the block the chain has. NULL: leave it to the other. */
struct ring_iov *near_grow(struct ring_vq *vq, struct ring_chain *chain, uint32_t nr)
{
	struct ring_iov *block;
	uint8_t iov_class = take_block(vq, chain->iov_class, &block);

	if (!iov_class)
		return NULL;
	memcpy(block, chain->iov_class ? chain->iov : chain->inl, nr * sizeof(*block));
	vq_free_block(vq, chain);
	chain->iov = block;
	chain->iov_class = iov_class;
	return block;
}

const struct ring_region *single_region(struct ring_vq *vq, uint64_t g_addr)
{
	const struct ring_memtab *tab = vq->mem->tab;
	const struct ring_region *found = tab != NULL ? ring_memtab_find(tab, g_addr, &vq->hint) : NULL;

	return found == NULL || found->flags & RING_MEM_RO ? NULL : found;
}

void walk_undo(struct vq_walk *w)
{
	if (w->iov_class) {
		struct vq_pool *pool = &w->vq->pool[w->iov_class - 1];

		pool->free[pool->nr_free++] = w->iov;
		w->iov_class = 0;
	}
}

static int walk_piece(struct vq_walk *w, void *base, uint64_t len)
{
	int rc;

	if (w->nr == w->cap) {
		rc = walk_grow(w);
		if (rc)
			return rc;
	}
	w->iov[w->nr].base = base;
	w->iov[w->nr].len = len;
	w->nr++;
	return 0;
}

/* A buffer in I/O virtual memory. A buffer of n bytes has at most as many pieces as entries it touches. */
static int walk_add_iotlb(struct vq_walk *w, uint64_t g_addr, uint32_t g_len, bool write)
{
	struct ring_vq *vq = w->vq;
	struct ring_iov piece[8];
	uint64_t left = g_len;
	int rc, n, i;

	while (left) {
		/* a stretch of at most 7 pages has at most 8 pieces when entries are pages, which is what drivers map */
		uint64_t part = left < 7 * RING_LOG_PAGE ? left : 7 * RING_LOG_PAGE;

		n = ring_iotlb_translate(vq->iotlb, vq->mem, g_addr, part, write, vq->index, piece, 8);
		if (n == -RING_E_IOVECS) {	/* entries smaller than a page: byte ranges that surely fit */
			part = part < 8 ? part : 8;
			n = ring_iotlb_translate(vq->iotlb, vq->mem, g_addr, part, write, vq->index, piece, 8);
		}
		if (n < 0) {
			w->detail = g_addr;
			return n;
		}
		for (i = 0; i < n; i++) {
			rc = walk_piece(w, piece[i].base, piece[i].len);
			if (rc)
				return rc;
		}
		if (__builtin_add_overflow(g_addr, part, &g_addr) && left != part) {
			w->detail = g_addr;
			return -RING_E_RANGE;
		}
		left -= part;
	}
	return 0;
}

/* Everything walk_add() did not want to think about. */
__attribute__((noinline)) int walk_add_slow(struct vq_walk *w, uint64_t g_addr, uint32_t g_len, bool write)
{
	uint64_t left = g_len;
	int rc;

	if (!g_len)	/* docs/decisions/0003-zero-length-descriptors.md */
		return 0;
	if (w->bytes + g_len > UINT32_MAX) {
		w->detail = w->bytes + g_len;
		return -RING_E_LEN;
	}
	w->bytes += g_len;
	if (w->vq->slow & VQ_SLOW_IOTLB)
		return walk_add_iotlb(w, g_addr, g_len, write);

	w->detail = g_addr;
	if (w->tab == NULL)
		return -RING_E_ADDR;
	while (left) {
		const struct ring_region *r = ring_memtab_find(w->tab, g_addr, &w->vq->hint);
		uint64_t room;

		if (r == NULL)
			return -RING_E_ADDR;
		w->r = r;
		if (write && r->flags & RING_MEM_RO)
			return -RING_E_PERM;
		room = r->len - (g_addr - r->gpa);
		if (room > left)
			room = left;
		rc = walk_piece(w, r->hva + (g_addr - r->gpa), room);
		if (rc)
			return rc;
		left -= room;
		if (__builtin_add_overflow(g_addr, room, &g_addr) && left)
			return -RING_E_ADDR;
	}
	return 0;
}

/* One stretch of guest memory that lies in one piece, or as much of it as does: its address, or NULL and *@rc. */
static const SHM uint8_t *table_piece(struct vq_walk *w, uint64_t g_addr, uint64_t want, uint64_t *have, int *rc)
{
	struct ring_vq *vq = w->vq;
	struct ring_iov piece;
	const struct ring_region *r;

	w->detail = g_addr;
	if (vq->slow & VQ_SLOW_IOTLB) {
		uint64_t page = RING_LOG_PAGE - (g_addr & (RING_LOG_PAGE - 1));

		if (want > page)
			want = page;
		*rc = ring_iotlb_translate(vq->iotlb, vq->mem, g_addr, want, 0, vq->index, &piece, 1);
		if (*rc == -RING_E_IOVECS) {	/* entries smaller than a descriptor: byte by byte always works */
			want = 1;
			*rc = ring_iotlb_translate(vq->iotlb, vq->mem, g_addr, want, 0, vq->index, &piece, 1);
		}
		if (*rc < 0)
			return NULL;
		*have = piece.len < want ? piece.len : want;
		return piece.base;
	}
	r = w->tab != NULL ? ring_memtab_find(w->tab, g_addr, &vq->hint) : NULL;
	if (r == NULL) {
		*rc = -RING_E_ADDR;
		return NULL;
	}
	*have = r->len - (g_addr - r->gpa);
	if (*have > want)
		*have = want;
	return r->hva + (g_addr - r->gpa);
}

/* Copy one descriptor of an indirect table that is not in one piece, or not aligned. */
static __attribute__((noinline)) int walk_table_slow(struct vq_walk *w, uint64_t g_addr, uint64_t d[2])
{
	uint8_t copy[VQ_DESC_BYTES];
	uint64_t have = 0;
	uint32_t done;
	int rc = 0;

	for (done = 0; done < VQ_DESC_BYTES; done += (uint32_t)have) {
		uint64_t at;
		const SHM uint8_t *p;

		if (__builtin_add_overflow(g_addr, done, &at)) {
			w->detail = g_addr;
			return -RING_E_ADDR;
		}
		p = table_piece(w, at, VQ_DESC_BYTES - done, &have, &rc);
		if (p == NULL)
			return rc;
		shm_copy_in(copy + done, p, have);
	}
	memcpy(d, copy, sizeof(copy));
	return 0;
}

/* A descriptor of the table at @g_addr: fast where the whole table (@table) lies in one aligned piece. */
VQ_INLINE int table_load(struct vq_walk *w, const SHM uint8_t *table, uint64_t g_addr, uint32_t i, uint64_t d[2])
{
	uint64_t at;

	if (vq_likely(table != NULL)) {
		shm_load_desc(d, table + (size_t)VQ_DESC_BYTES * i);
		return 0;
	}
	if (__builtin_add_overflow(g_addr, (uint64_t)VQ_DESC_BYTES * i, &at)) {
		w->detail = g_addr;
		return -RING_E_ADDR;
	}
	return walk_table_slow(w, at, d);
}

/*
 * The buffers of an indirect table. Split: linked by next from entry 0 (2.7.5.3.2). Packed: all entries in order, and
 * of the flags only WRITE counts (2.8.7); a nested table is refused in both.
 */
int walk_indirect(struct vq_walk *w, uint64_t g_addr, uint32_t g_len)
{
	const struct ring_region *r = w->r;
	const SHM uint8_t *table = NULL;
	const bool packed = w->vq->packed;
	uint64_t off = g_addr - r->gpa;
	uint64_t d[2];
	uint32_t nr, i = 0, seen;
	int rc;

	w->detail = g_len;
	if (!w->vq->indirect || !g_len || g_len % VQ_DESC_BYTES)
		return -RING_E_INDIRECT;
	nr = g_len / VQ_DESC_BYTES;
	if (packed && nr > RING_CHAIN_MAX) {
		w->detail = nr;
		return -RING_E_LOOP;
	}
	if (off < r->len && g_len <= r->len - off && !((uintptr_t)(r->hva + off) & 7))
		table = r->hva + off;
	if (w->vq->slow & VQ_SLOW_IOTLB) {
		uint64_t have = 0;

		rc = 0;
		table = table_piece(w, g_addr, g_len, &have, &rc);
		if (table == NULL)
			return rc;
		if (have < g_len || (uintptr_t)table & 7)
			table = NULL;
	}

	for (seen = 1;; seen++) {
		uint32_t flags;

		rc = table_load(w, table, g_addr, i, d);
		if (rc)
			return rc;
		flags = (uint32_t)(packed ? d[1] >> 48 : d[1] >> 32);
		if (vq_unlikely(flags & VQ_DESC_INDIRECT)) {
			w->detail = i;
			return -RING_E_INDIRECT;
		}
		rc = walk_add(w, d[0], (uint32_t)d[1], flags & VQ_DESC_WRITE);
		if (vq_unlikely(rc))
			return rc;
		if (packed) {
			if (++i == nr)
				return 0;
			continue;
		}
		if (!(flags & VQ_DESC_NEXT))
			return 0;
		i = (uint32_t)(d[1] >> 48);
		if (vq_unlikely(i >= nr)) {
			w->detail = i;
			return -RING_E_NEXT;
		}
		if (vq_unlikely(seen == nr)) {	/* more steps than entries */
			w->detail = seen;
			return -RING_E_LOOP;
		}
	}
}
