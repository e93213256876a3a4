/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mem.c - the table of guest memory: regions come and go here; lookups are in translate.c.
 *
 * Theory of operation
 *   Two tables are allocated with the memory; one is in use. A change is checked, built in the other from the list of
 *   slots, and becomes the one in use in a single store, so a refused call leaves everything as it was and no change
 *   can fail half-way for want of memory.
 *   A removed region whose pieces are still in flight is buried: anonymous memory takes its place until no queue of
 *   this memory holds a piece of it. Graves are looked after at each later change.
 */
#include "ring/csrc/map.h"
#include "ring/csrc/ring.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

struct grave {
	struct grave *next;
	struct ring_mapping map;
};

struct slot {
	struct ring_region region;
	struct ring_mapping map;	/* base NULL: the embedder's own mapping */
	struct grave *grave;		/* for later, so that no removal fails for want of memory; NULL as above */
	uint64_t offset;		/* in the file, bytes */
};

struct table {
	struct ring_memtab tab;
	struct ring_region by_gpa[RING_MEM_MAX_REGIONS];
	uint32_t by_uaddr[RING_MEM_MAX_REGIONS];
	uint32_t by_hva[RING_MEM_MAX_REGIONS];
};

/* control thread only */
struct ring_mem_priv {
	struct table tables[2];
	unsigned int current;
	struct slot slots[RING_MEM_MAX_REGIONS];	/* ordered by gpa, as the table */
	uint32_t nr;
	struct grave *graves;
	struct ring_mapping log;
	struct ring_vq **queues;
	uint32_t nr_queues, cap_queues;
};

struct ring_mem *ring_mem_new(void)
{
	struct ring_mem *mem = calloc(1, sizeof(*mem));

	if (mem == NULL)
		return NULL;
	mem->priv = calloc(1, sizeof(*mem->priv));
	if (mem->priv == NULL) {
		free(mem);
		return NULL;
	}
	mem->tab = &mem->priv->tables[0].tab;
	return mem;
}

static bool in_flight(const struct ring_mem_priv *p, const struct ring_mapping *map)
{
	for (uint32_t i = 0; i < p->nr_queues; i++)
		if (ring_vq_overlaps(p->queues[i], map->base, map->len))
			return true;
	return false;
}

static void reap_graves(struct ring_mem_priv *p, bool all)
{
	struct grave **link = &p->graves, *g;

	while ((g = *link) != NULL) {
		if (!all && in_flight(p, &g->map)) {
			link = &g->next;
			continue;
		}
		*link = g->next;
		ring_mapping_drop(&g->map);
		free(g);
	}
}

void ring_mem_free(struct ring_mem *mem)
{
	struct ring_mem_priv *p;

	if (mem == NULL)
		return;
	p = mem->priv;
	ring_mem_log_clear(mem);
	for (uint32_t i = 0; i < p->nr; i++) {
		ring_mapping_drop(&p->slots[i].map);
		free(p->slots[i].grave);
	}
	reap_graves(p, true);
	free(p->queues);
	free(p);
	free(mem);
}

/* The two orders beside gpa order; insertion sort: tables are small and mostly ordered already. */
static void sort_by(uint32_t *order, uint32_t nr, const struct ring_region *regions, bool hva)
{
	for (uint32_t i = 0; i < nr; i++) {
		uint64_t key = hva ? (uintptr_t)regions[i].hva : regions[i].uaddr;
		uint32_t at = i;

		while (at > 0) {
			const struct ring_region *r = &regions[order[at - 1]];

			if ((hva ? (uintptr_t)r->hva : r->uaddr) < key)
				break;
			order[at] = order[at - 1];
			at--;
		}
		order[at] = i;
	}
}

static _Atomic uint64_t tables_made;

/* Build the unused table from the slots and put it in use. */
static void publish(struct ring_mem *mem)
{
	struct ring_mem_priv *p = mem->priv;
	struct table *t = &p->tables[p->current ^ 1];
	struct ring_memtab *tab = &t->tab;
	uint32_t first = 0;

	tab->nr = p->nr;
	tab->by_gpa = t->by_gpa;
	tab->by_uaddr = t->by_uaddr;
	tab->by_hva = t->by_hva;
	for (uint32_t i = 0; i < p->nr; i++)
		t->by_gpa[i] = p->slots[i].region;
	sort_by(t->by_uaddr, p->nr, t->by_gpa, false);
	sort_by(t->by_hva, p->nr, t->by_gpa, true);
	tab->shift = 12;
	if (p->nr > 0) {
		const struct ring_region *top = &t->by_gpa[p->nr - 1];

		while ((top->gpa + (top->len - 1)) >> tab->shift >= RING_GRANULES)
			tab->shift++;
	}
	for (uint32_t g = 0; g < RING_GRANULES; g++) {
		uint64_t start = (uint64_t)g << tab->shift;

		while (first < p->nr && t->by_gpa[first].gpa + (t->by_gpa[first].len - 1) < start)
			first++;
		tab->granule[g] = (uint16_t)first;
	}
	tab->gen = atomic_fetch_add(&tables_made, 1) + 1;
	p->current ^= 1;
	mem->tab = tab;
}

static bool overlaps(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
	return a <= b ? b - a < a_len : a - b < b_len;
}

/* May the region come in? Nothing is changed. */
static int check_region(const struct ring_mem_priv *p, uint64_t gpa, uint64_t len, uint64_t uaddr)
{
	uint64_t end;

	/* a region that ends at 2^64 exactly is refused too: its end has no number */
	if (len == 0 || __builtin_add_overflow(gpa, len, &end) || __builtin_add_overflow(uaddr, len, &end) ||
	    len > PTRDIFF_MAX)
		return -RING_E_RANGE;
	for (uint32_t i = 0; i < p->nr; i++) {
		const struct ring_region *r = &p->slots[i].region;

		if (overlaps(gpa, len, r->gpa, r->len) || overlaps(uaddr, len, r->uaddr, r->len))
			return -RING_E_OVERLAP;
	}
	return p->nr < RING_MEM_MAX_REGIONS ? 0 : -RING_E_SLOTS;
}

static void insert(struct ring_mem *mem, const struct slot *slot)
{
	struct ring_mem_priv *p = mem->priv;
	uint32_t at = p->nr;

	while (at > 0 && p->slots[at - 1].region.gpa > slot->region.gpa) {
		p->slots[at] = p->slots[at - 1];
		at--;
	}
	p->slots[at] = *slot;
	p->nr++;
	publish(mem);
}

int ring_mem_add(struct ring_mem *mem, int fd, uint64_t gpa, uint64_t len, uint64_t uaddr, uint64_t offset,
		 uint32_t flags)
{
	struct slot slot = { .region = { .gpa = gpa, .len = len, .uaddr = uaddr, .flags = flags }, .offset = offset };
	int prot = flags & RING_MEM_RO ? PROT_READ : PROT_READ | PROT_WRITE;
	int rc;

	reap_graves(mem->priv, false);
	rc = check_region(mem->priv, gpa, len, uaddr);
	if (rc < 0)
		return rc;
	slot.grave = malloc(sizeof(*slot.grave));
	if (slot.grave == NULL)
		return -ENOMEM;
	rc = ring_mapping_make(&slot.map, fd, len, offset, prot, &mem->faulted);
	if (rc < 0) {
		free(slot.grave);
		return rc;
	}
	if (flags & RING_MEM_NOTOUCH) {
		/* postcopy: every page must fault by itself, and none may be there already */
		madvise(slot.map.base, slot.map.len, MADV_NOHUGEPAGE);
		madvise(slot.map.base, slot.map.len, MADV_DONTNEED);
	}
	slot.region.hva = slot.map.data;
	insert(mem, &slot);
	return 0;
}

int ring_mem_add_mapped(struct ring_mem *mem, void *hva, uint64_t gpa, uint64_t len, uint64_t uaddr, uint32_t flags)
{
	struct slot slot = {
		.region = { .gpa = gpa, .len = len, .uaddr = uaddr, .flags = flags, .hva = hva },
	};
	uint64_t end;
	int rc;

	reap_graves(mem->priv, false);
	if (hva == NULL || __builtin_add_overflow((uintptr_t)hva, len, &end))
		return -RING_E_RANGE;
	rc = check_region(mem->priv, gpa, len, uaddr);
	if (rc < 0)
		return rc;
	for (uint32_t i = 0; i < mem->priv->nr; i++) {
		const struct ring_region *r = &mem->priv->slots[i].region;

		/* the dirty log goes from hva to gpa: one page, one address */
		if (overlaps((uintptr_t)hva, len, (uintptr_t)r->hva, r->len))
			return -RING_E_OVERLAP;
	}
	insert(mem, &slot);
	return 0;
}

/* The mapping of a region that has left the table. */
static void retire(struct ring_mem_priv *p, struct slot *slot)
{
	struct grave *g = slot->grave;

	if (g == NULL)
		return;
	if (!in_flight(p, &slot->map)) {
		ring_mapping_drop(&slot->map);
		free(g);
		return;
	}
	/* where it cannot be buried it stays mapped: late completions then hit only the guest that owned it */
	(void)ring_mapping_bury(&slot->map);
	g->map = slot->map;
	g->next = p->graves;
	p->graves = g;
}

static void remove_at(struct ring_mem *mem, uint32_t at)
{
	struct ring_mem_priv *p = mem->priv;
	struct slot slot = p->slots[at];

	p->nr--;
	memmove(&p->slots[at], &p->slots[at + 1], (p->nr - at) * sizeof(p->slots[0]));
	publish(mem);
	retire(p, &slot);
}

int ring_mem_remove(struct ring_mem *mem, uint64_t gpa, uint64_t len, uint64_t uaddr)
{
	struct ring_mem_priv *p = mem->priv;

	reap_graves(p, false);
	for (uint32_t i = 0; i < p->nr; i++) {
		const struct ring_region *r = &p->slots[i].region;

		if (r->gpa == gpa && r->len == len && r->uaddr == uaddr) {
			remove_at(mem, i);
			return 0;
		}
	}
	return -RING_E_NOREGION;
}

void ring_mem_clear(struct ring_mem *mem)
{
	reap_graves(mem->priv, false);
	while (mem->priv->nr > 0)
		remove_at(mem, mem->priv->nr - 1);
}

int ring_mem_regions(const struct ring_mem *mem, struct ring_region_info *out, int max)
{
	const struct ring_mem_priv *p = mem->priv;

	for (uint32_t i = 0; i < p->nr && max > 0 && i < (uint32_t)max; i++) {
		const struct slot *s = &p->slots[i];

		out[i] = (struct ring_region_info){
			.gpa = s->region.gpa,
			.len = s->region.len,
			.uaddr = s->region.uaddr,
			.hva = (uintptr_t)s->region.hva,
			.offset = s->offset,
			.flags = s->region.flags,
		};
	}
	return (int)p->nr;
}

int ring_mem_faulted(const struct ring_mem *mem)
{
	return atomic_load_explicit(&mem->faulted, memory_order_acquire);
}

int ring_mem_log_set(struct ring_mem *mem, int fd, uint64_t size, uint64_t offset)
{
	struct ring_mem_priv *p = mem->priv;
	struct ring_mapping map;
	int rc;

	if (p->nr > 0) {
		const struct ring_region *top = &p->slots[p->nr - 1].region;

		if ((top->gpa + (top->len - 1)) / RING_LOG_PAGE / 8 >= size)
			return -RING_E_LOG;
	}
	rc = ring_mapping_make(&map, fd, size, offset, PROT_READ | PROT_WRITE, &mem->faulted);
	if (rc < 0)
		return rc;
	ring_mem_log_clear(mem);
	p->log = map;
	mem->log.size = size;
	mem->log.base = map.data;
	return 0;
}

void ring_mem_log_clear(struct ring_mem *mem)
{
	mem->log.base = NULL;
	mem->log.size = 0;
	ring_mapping_drop(&mem->priv->log);
}

int ring_mem_attach(struct ring_mem *mem, struct ring_vq *vq)
{
	struct ring_mem_priv *p = mem->priv;
	struct ring_vq **queues;
	uint32_t cap;

	if (p->nr_queues == p->cap_queues) {
		cap = p->cap_queues ? p->cap_queues * 2 : 8;
		queues = realloc(p->queues, cap * sizeof(*queues));
		if (queues == NULL)
			return -ENOMEM;
		p->queues = queues;
		p->cap_queues = cap;
	}
	p->queues[p->nr_queues++] = vq;
	return 0;
}

void ring_mem_detach(struct ring_mem *mem, struct ring_vq *vq)
{
	struct ring_mem_priv *p = mem->priv;

	for (uint32_t i = 0; i < p->nr_queues; i++) {
		if (p->queues[i] == vq) {
			p->queues[i] = p->queues[--p->nr_queues];
			break;
		}
	}
	reap_graves(p, false);
}
