/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver.c - the driver side of virtqueues: what a guest's kernel does, for our front-end, tests and load generators.
 *
 * Theory of operation
 *   What the device can write is read once and checked; free lists, chain lengths and tokens live in private memory, so
 *   that a lying device can at worst end the ring (-RING_E_*, sticky). Adding writes descriptors but nothing the device
 *   may look at yet; publishing makes all that was added visible by one release store: the available index, or in a
 *   packed ring the flags of the first descriptor of the batch.
 *   Free lists are last in, first out (caches stay warm), but first in, first out with IN_ORDER, which keeps split
 *   descriptors in ring order (VIRTIO 1.3, 2.7.8.1).
 */
#include "ring/csrc/driver.h"

#include <errno.h>
#include <stdlib.h>

#define BIT_INDIRECT (1ULL << 28)
#define BIT_EVENT_IDX (1ULL << 29)
#define BIT_PACKED (1ULL << 34)
#define BIT_IN_ORDER (1ULL << 35)

enum {
	F_NEXT = 1,
	F_WRITE = 2,
	F_INDIRECT = 4,
	F_AVAIL = 1 << 7,	/* packed */
	F_USED = 1 << 15,	/* packed */
	EV_ENABLE = 0,		/* packed event suppression areas */
	EV_DISABLE = 1,
	EV_DESC = 2,
	LINE = 128,		/* keeps what driver and device write in cache lines (and their prefetched pairs) apart */
	PAGE = 4096,
	INDIRECT_LIMIT = 32768,
};

/* One request; indexed by its id (split: head descriptor, packed: buffer id). */
struct req {
	uint64_t token;
	uint64_t in_bytes;
	uint16_t nr_desc;	/* in the ring */
	uint16_t last;		/* split: last descriptor of the chain */
	bool busy;
};

struct ring_drv {
	SHM uint8_t *desc;
	SHM uint8_t *avail;
	SHM uint8_t *used;
	SHM uint8_t *indirect;
	uint64_t (*desc_was)[2];	/* split, ring_drv_remember(): what the descriptors hold; NULL: not kept */
	uint64_t (*table_was)[2];	/* what the tables hold */
	uint64_t indirect_gpa;
	uint32_t size;
	uint32_t indirect_max;
	bool packed, event_idx, in_order;

	int error;		/* sticky, negative */
	uint16_t avail_idx;	/* split: free-running; packed: next slot to fill */
	uint16_t used_idx;	/* split: free-running; packed: next slot to look at */
	bool avail_wrap, used_wrap;
	uint16_t fresh;		/* split: chains, packed: descriptors added since the last publish */
	uint16_t batch_slot;	/* packed: first slot of what is not yet published, and its length, id and flags */
	uint64_t batch_val;
	bool batch_open;
	uint32_t free;		/* ring descriptors */
	uint32_t pending;	/* requests */

	/* IN_ORDER: one used entry may stand for many requests; ids in the order they were added */
	bool run;		/* in the middle of such an entry */
	uint16_t run_id;
	uint32_t run_len;
	uint32_t oldest;	/* index into order[], counts up to size */

	uint16_t free_head, free_tail;
	uint16_t *next;		/* private: free list, and (split) chains */
	uint16_t *order;
	struct req *reqs;

	/* ring_drv_prepare() */
	uint32_t prepared;		/* requests; 0: not prepared */
	uint32_t prep_len;
	uint32_t prep_room;		/* bytes the device may write */
	uint64_t prep_gpa, prep_stride;
	uint16_t *avail_was;		/* split: what the available ring holds */
	uint8_t *busy;			/* by id */
};

static uint64_t align_up(uint64_t v, uint64_t to)
{
	return (v + to - 1) / to * to;
}

int ring_drv_layout(uint32_t size, uint64_t features, uint32_t indirect_max, struct ring_drv_layout *out)
{
	bool packed = features & BIT_PACKED;
	uint64_t end;

	if (indirect_max == 0)
		indirect_max = RING_DRV_INDIRECT_MAX;
	if (size == 0 || size > RING_SIZE_MAX || (!packed && (size & (size - 1))) || indirect_max > INDIRECT_LIMIT)
		return -RING_E_SIZE;
	out->desc = 0;
	out->avail = align_up(16ULL * size, LINE);
	out->used = align_up(out->avail + (packed ? 4 : 6 + 2ULL * size), LINE);
	end = out->used + (packed ? 4 : 6 + 8ULL * size);
	out->indirect = 0;
	if (features & BIT_INDIRECT) {
		out->indirect = align_up(end, LINE);
		end = out->indirect + 16ULL * size * indirect_max;
	}
	out->bytes = align_up(end, PAGE);
	return 0;
}

/*
 * Slots of a packed ring look as if the device had used them in the lap before; from a base in the middle of a lap that
 * is not what zeroed memory says.
 */
static void init_packed(struct ring_drv *drv)
{
	for (uint32_t i = 0; i < drv->size; i++) {
		bool wrap = i < drv->avail_idx ? drv->avail_wrap : !drv->avail_wrap;

		shm_store16(drv->desc + 16ULL * i + 14, wrap ? F_AVAIL | F_USED : 0);
	}
}

static bool set_base(struct ring_drv *drv, uint32_t base)
{
	if (!drv->packed) {
		drv->avail_idx = drv->used_idx = (uint16_t)base;
		shm_store16(drv->avail + 2, drv->avail_idx);
		shm_store16(drv->used + 2, drv->used_idx);
		if (drv->event_idx)
			shm_store16(drv->avail + 4 + 2ULL * drv->size, drv->used_idx);
		return base <= UINT16_MAX;
	}
	drv->avail_idx = base & 0x7fff;
	drv->avail_wrap = base >> 15 & 1;
	drv->used_idx = base >> 16 & 0x7fff;
	drv->used_wrap = base >> 31;
	/* a new ring has nothing in flight */
	if (drv->avail_idx != drv->used_idx || drv->avail_wrap != drv->used_wrap || drv->avail_idx >= drv->size)
		return false;
	init_packed(drv);
	return true;
}

struct ring_drv *ring_drv_new(void *area, uint64_t gpa, uint32_t size, uint64_t features, uint32_t indirect_max,
			      uint32_t base)
{
	struct ring_drv_layout lay;
	struct ring_drv *drv;

	if (ring_drv_layout(size, features, indirect_max, &lay) < 0)
		return NULL;
	drv = calloc(1, sizeof(*drv));
	if (drv == NULL)
		return NULL;
	drv->next = calloc(size, sizeof(drv->next[0]));
	drv->order = calloc(size, sizeof(drv->order[0]));
	drv->reqs = calloc(size, sizeof(drv->reqs[0]));
	if (drv->next == NULL || drv->order == NULL || drv->reqs == NULL)
		goto fail;
	memset(area, 0, lay.bytes);
	drv->desc = (uint8_t *)area + lay.desc;
	drv->avail = (uint8_t *)area + lay.avail;
	drv->used = (uint8_t *)area + lay.used;
	if (features & BIT_INDIRECT) {
		drv->indirect = (uint8_t *)area + lay.indirect;
		drv->indirect_gpa = gpa + lay.indirect;
	}
	drv->size = size;
	drv->indirect_max = indirect_max ? indirect_max : RING_DRV_INDIRECT_MAX;
	drv->packed = features & BIT_PACKED;
	drv->event_idx = features & BIT_EVENT_IDX;
	drv->in_order = features & BIT_IN_ORDER;
	drv->free = size;
	for (uint32_t i = 0; i < size; i++)
		drv->next[i] = (uint16_t)(i + 1);
	drv->free_tail = (uint16_t)(size - 1);
	if (!set_base(drv, base))
		goto fail;
	return drv;
fail:
	ring_drv_free(drv);
	return NULL;
}

void ring_drv_free(struct ring_drv *drv)
{
	if (drv == NULL)
		return;
	free(drv->next);
	free(drv->order);
	free(drv->reqs);
	free(drv->desc_was);
	free(drv->table_was);
	free(drv->avail_was);
	free(drv->busy);
	free(drv);
}

int ring_drv_remember(struct ring_drv *drv)
{
	if (drv->desc_was != NULL)
		return 0;
	/* as zeroed as the area was; nothing that is ever written is all zero, for no buffer is empty */
	drv->desc_was = calloc(drv->size, sizeof(drv->desc_was[0]));
	if (drv->indirect != NULL)
		drv->table_was = calloc((size_t)drv->size * drv->indirect_max, sizeof(drv->table_was[0]));
	if (drv->desc_was != NULL && (drv->indirect == NULL || drv->table_was != NULL))
		return 0;
	free(drv->desc_was);
	drv->desc_was = NULL;
	return -ENOMEM;
}

uint32_t ring_drv_free_slots(const struct ring_drv *drv)
{
	return drv->free;
}

uint32_t ring_drv_pending(const struct ring_drv *drv)
{
	return drv->pending;
}

/* The second word of a descriptor; split: flags, next; packed: id, flags. */
static uint64_t second(uint32_t len, unsigned int hi16_0, unsigned int hi16_1)
{
	return len | (uint64_t)hi16_0 << 32 | (uint64_t)hi16_1 << 48;
}

static void put_desc(SHM uint8_t *at, uint64_t addr, uint32_t len, unsigned int hi16_0, unsigned int hi16_1)
{
	shm_store64(at, addr);
	shm_store64(at + 8, second(len, hi16_0, hi16_1));
}

/* The same at @base[@i], of which @was may know what it holds: a line that is not written stays in the device's cache. */
static void put_again(SHM uint8_t *base, uint64_t (*was)[2], size_t i, uint64_t addr, uint32_t len, unsigned int flags,
		      unsigned int hi16_1)
{
	if (was != NULL) {
		uint64_t val = second(len, flags, hi16_1);

		if (was[i][0] == addr && was[i][1] == val)
			return;
		was[i][0] = addr;
		was[i][1] = val;
	}
	put_desc(base + 16 * i, addr, len, flags, hi16_1);
}

/* Fill the table of request @id; returns its guest address. The tables of both layouts differ in the last two words. */
static uint64_t put_table(struct ring_drv *drv, uint32_t id, const struct ring_drv_buf *bufs, uint32_t nr_out,
			  uint32_t nr)
{
	size_t first = (size_t)drv->indirect_max * id;

	for (uint32_t i = 0; i < nr; i++) {
		unsigned int flags = i >= nr_out ? F_WRITE : 0;

		if (drv->packed)
			put_again(drv->indirect, drv->table_was, first + i, bufs[i].addr, bufs[i].len, 0, flags);
		else if (i + 1 < nr)
			put_again(drv->indirect, drv->table_was, first + i, bufs[i].addr, bufs[i].len, flags | F_NEXT,
				  i + 1);
		else
			put_again(drv->indirect, drv->table_was, first + i, bufs[i].addr, bufs[i].len, flags, 0);
	}
	return drv->indirect_gpa + 16 * first;
}

/* Descriptors start at the free list's head; returns the last one. */
static uint16_t put_split(struct ring_drv *drv, const struct ring_drv_buf *bufs, uint32_t nr_out, uint32_t nr)
{
	uint16_t at = drv->free_head, last = at;

	for (uint32_t i = 0; i < nr; i++) {
		unsigned int flags = i >= nr_out ? F_WRITE : 0;

		last = at;
		at = drv->next[at];
		if (i + 1 < nr)
			put_again(drv->desc, drv->desc_was, last, bufs[i].addr, bufs[i].len, flags | F_NEXT, at);
		else
			put_again(drv->desc, drv->desc_was, last, bufs[i].addr, bufs[i].len, flags, 0);
	}
	drv->free_head = at;
	return last;
}

/* One slot of a packed ring; the first of a batch keeps its old second word until publish. */
static void put_packed(struct ring_drv *drv, uint64_t addr, uint32_t len, uint16_t id, unsigned int flags)
{
	SHM uint8_t *at = drv->desc + 16ULL * drv->avail_idx;

	flags |= drv->avail_wrap ? F_AVAIL : F_USED;
	if (drv->batch_open) {
		put_desc(at, addr, len, id, flags);
	} else {
		shm_store64(at, addr);
		drv->batch_slot = drv->avail_idx;
		drv->batch_val = second(len, id, flags);
		drv->batch_open = true;
	}
	if (++drv->avail_idx == drv->size) {
		drv->avail_idx = 0;
		drv->avail_wrap = !drv->avail_wrap;
	}
}

int ring_drv_add(struct ring_drv *drv, const struct ring_drv_buf *bufs, uint32_t nr_out, uint32_t nr_in,
		 uint64_t token, int indirect)
{
	uint64_t total = (uint64_t)nr_out + nr_in, in_bytes = 0, table;
	uint32_t nr, slots;
	struct req *req;
	uint16_t id, last;

	if (drv->error)
		return drv->error;
	if (total == 0 || total > (indirect ? drv->indirect_max : drv->size) || (indirect && drv->indirect == NULL))
		return -EINVAL;
	nr = (uint32_t)total;
	slots = indirect ? 1 : nr;
	if (slots > drv->free)
		return -ENOSPC;
	for (uint32_t i = nr_out; i < nr; i++)
		in_bytes += bufs[i].len;
	id = last = drv->free_head;
	if (drv->packed) {
		drv->free_head = drv->next[id];
		if (indirect) {
			table = put_table(drv, id, bufs, nr_out, nr);
			put_packed(drv, table, 16 * nr, id, F_INDIRECT);
		} else {
			for (uint32_t i = 0; i < nr; i++)
				put_packed(drv, bufs[i].addr, bufs[i].len, id,
					   (i >= nr_out ? F_WRITE : 0U) | (i + 1 < nr ? F_NEXT : 0U));
		}
		drv->fresh = (uint16_t)(drv->fresh + slots);
	} else {
		if (indirect) {
			drv->free_head = drv->next[id];
			table = put_table(drv, id, bufs, nr_out, nr);
			put_again(drv->desc, drv->desc_was, id, table, 16 * nr, F_INDIRECT, 0);
		} else {
			last = put_split(drv, bufs, nr_out, nr);
		}
		shm_store16(drv->avail + 4 + 2ULL * (drv->avail_idx & (drv->size - 1)), id);
		drv->avail_idx++;	/* wraps at 2^16, on purpose */
		drv->fresh++;
	}
	req = &drv->reqs[id];
	req->token = token;
	req->in_bytes = in_bytes;
	req->nr_desc = (uint16_t)slots;
	req->last = last;
	req->busy = true;
	if (drv->in_order) {
		uint32_t at = drv->oldest + drv->pending;

		drv->order[at < drv->size ? at : at - drv->size] = id;
	}
	drv->free -= slots;
	drv->pending++;
	return id;
}

/* VIRTIO 1.3, 2.7.10: does the move from @old to @now pass @event? All wrap at 2^16. */
static bool passes(uint16_t event, uint16_t now, uint16_t old)
{
	return (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

static int publish_packed(struct ring_drv *drv)
{
	uint16_t now = drv->avail_idx, old = (uint16_t)(now - drv->fresh), g_flags, event;
	uint32_t g_event;

	/* pairs with the device's acquire load of the flags */
	shm_store64_release(drv->desc + 16ULL * drv->batch_slot + 8, drv->batch_val);
	drv->batch_open = false;
	drv->fresh = 0;
	/* the flags must be seen before we look whether a kick is wanted; pairs with the device's re-arming */
	shm_mb();
	g_event = shm_load32(drv->used);
	g_flags = (uint16_t)(g_event >> 16);
	if (g_flags != EV_DESC)
		return g_flags != EV_DISABLE;
	if (!drv->event_idx)
		return 1;	/* a reserved value: a kick too many does no harm */
	event = g_event & 0x7fff;
	if ((g_event >> 15 & 1) != drv->avail_wrap)
		event = (uint16_t)(event - drv->size);
	return passes(event, now, old);
}

int ring_drv_publish(struct ring_drv *drv)
{
	uint16_t old = (uint16_t)(drv->avail_idx - drv->fresh);

	if (drv->fresh == 0 || drv->error)
		return 0;
	if (drv->packed)
		return publish_packed(drv);
	/* pairs with the device's acquire load of the index */
	shm_store16_release(drv->avail + 2, drv->avail_idx);
	drv->fresh = 0;
	/* the index must be seen before we look whether a kick is wanted; pairs with the device's re-arming */
	shm_mb();
	if (drv->event_idx)
		return passes(shm_load16(drv->used + 4 + 8ULL * drv->size), drv->avail_idx, old);
	return !(shm_load16(drv->used) & 1);
}

/* Give back what request @id held. */
static void release(struct ring_drv *drv, uint16_t id)
{
	struct req *req = &drv->reqs[id];
	uint16_t last = drv->packed ? id : req->last;
	bool empty = drv->packed ? drv->pending == drv->size : drv->free == 0;

	req->busy = false;
	if (drv->in_order && !empty) {
		drv->next[drv->free_tail] = id;
	} else {
		drv->next[last] = drv->free_head;
		drv->free_head = id;
	}
	if (drv->in_order)
		drv->free_tail = last;
	drv->free += req->nr_desc;
	drv->pending--;
	if (++drv->oldest == drv->size)
		drv->oldest = 0;
}

/* Check what the device says about a used buffer. 0 or -RING_E_*. */
static int check_used(struct ring_drv *drv, uint32_t g_id, uint32_t g_len)
{
	if (g_id >= drv->size)
		return -RING_E_ID;
	if (!drv->reqs[g_id].busy)
		return -RING_E_DUP;
	if (g_len > drv->reqs[g_id].in_bytes)
		return -RING_E_LEN;
	return 0;
}

/* Take the next request that used buffer @id/@len (checked) stands for; ends the run once it is @id itself. */
static uint16_t take(struct ring_drv *drv, struct ring_drv_used *out)
{
	uint16_t id = drv->in_order ? drv->order[drv->oldest] : drv->run_id;
	struct req *req = &drv->reqs[id];

	drv->run = id != drv->run_id;
	out->token = req->token;
	out->id = id;
	/* what an entry for several leaves unsaid: the whole buffer (VIRTIO 1.3, 2.7.9) */
	out->len = !drv->run ? drv->run_len : req->in_bytes > UINT32_MAX ? UINT32_MAX : (uint32_t)req->in_bytes;
	release(drv, id);
	return req->nr_desc;
}

static int poll_split(struct ring_drv *drv, struct ring_drv_used *out, int max)
{
	uint16_t g_left;
	uint32_t left;
	int n = 0;

	/* both lines come at the same time */
	__builtin_prefetch(drv->used + 4 + 8ULL * (drv->used_idx & (drv->size - 1)));
	g_left = (uint16_t)(shm_load16_acquire(drv->used + 2) - drv->used_idx);
	left = g_left;
	if (left > drv->pending) {
		drv->error = -RING_E_DUP;
		return drv->error;
	}
	while (n < max && left > 0) {
		if (!drv->run) {
			const SHM uint8_t *at = drv->used + 4 + 8ULL * (drv->used_idx & (drv->size - 1));
			uint64_t g_elem = (uint64_t)shm_load32(at) | (uint64_t)shm_load32(at + 4) << 32;

			drv->error = check_used(drv, (uint32_t)g_elem, (uint32_t)(g_elem >> 32));
			if (drv->error)
				return n ? n : drv->error;
			drv->run = true;
			drv->run_id = (uint16_t)g_elem;
			drv->run_len = (uint32_t)(g_elem >> 32);
		}
		take(drv, &out[n++]);
		drv->used_idx++;
		left--;
	}
	if (drv->run && left == 0)	/* the index does not reach as far as the entry says */
		drv->error = -RING_E_ID;
	return n;
}

/* Is the slot looked at next a used one? Pairs with the device's release of its flags, which it writes last. */
static bool packed_used(const struct ring_drv *drv, uint64_t *g_val)
{
	bool avail, used;

	*g_val = shm_load64_acquire(drv->desc + 16ULL * drv->used_idx + 8);
	avail = *g_val >> 48 & F_AVAIL;
	used = *g_val >> 48 & F_USED;
	if (!(*g_val >> 48 & F_WRITE))	/* VIRTIO 1.3, 2.8.6: the length means nothing then; DPDK leaves what was there */
		*g_val &= ~(uint64_t)UINT32_MAX;
	return avail == used && used == drv->used_wrap;
}

static int poll_packed(struct ring_drv *drv, struct ring_drv_used *out, int max)
{
	int n = 0;

	while (n < max && drv->pending > 0) {
		uint32_t at = drv->used_idx;

		if (!drv->run) {
			uint64_t g_val;

			if (drv->batch_open && at == drv->batch_slot)
				break;	/* not even published */
			if (!packed_used(drv, &g_val))
				break;
			drv->error = check_used(drv, g_val >> 32 & 0xffff, (uint32_t)g_val);
			if (drv->error)
				return n ? n : drv->error;
			drv->run = true;
			drv->run_id = (uint16_t)(g_val >> 32);
			drv->run_len = (uint32_t)g_val;
		}
		at += take(drv, &out[n++]);
		if (at >= drv->size) {
			at -= drv->size;
			drv->used_wrap = !drv->used_wrap;
		}
		drv->used_idx = (uint16_t)at;
	}
	return n;
}

int ring_drv_poll(struct ring_drv *drv, struct ring_drv_used *out, int max)
{
	if (drv->error)
		return drv->error;
	return drv->packed ? poll_packed(drv, out, max) : poll_split(drv, out, max);
}

int ring_drv_prepare(struct ring_drv *drv, uint64_t gpa, uint64_t stride, uint32_t len, uint32_t nr, int writable)
{
	if (drv->in_order || drv->pending || drv->fresh || drv->prepared || nr == 0 || nr > drv->size || len == 0)
		return -EINVAL;
	drv->busy = calloc(nr, sizeof(drv->busy[0]));
	drv->avail_was = calloc(drv->size, sizeof(drv->avail_was[0]));
	if (drv->busy == NULL || drv->avail_was == NULL) {
		free(drv->busy);
		free(drv->avail_was);
		drv->busy = NULL;
		drv->avail_was = NULL;
		return -ENOMEM;
	}
	drv->prepared = nr;
	drv->prep_gpa = gpa;
	drv->prep_stride = stride;
	drv->prep_len = len;
	drv->prep_room = writable ? len : 0;
	/* the ring's descriptors are all written now, and the available ring is as zeroed as these copies */
	for (uint32_t i = 0; i < nr && !drv->packed; i++)
		put_desc(drv->desc + 16ULL * i, gpa + i * stride, len, writable ? F_WRITE : 0, 0);
	return 0;
}

int ring_drv_post(struct ring_drv *drv, const uint16_t *ids, uint32_t nr)
{
	unsigned int flags = drv->prep_room ? F_WRITE : 0;

	if (drv->error)
		return drv->error;
	if (nr > drv->free)
		return -ENOSPC;
	for (uint32_t i = 0; i < nr; i++) {
		if (ids[i] >= drv->prepared || drv->busy[ids[i]]) {
			while (i > 0)
				drv->busy[ids[--i]] = 0;
			return -EINVAL;
		}
		drv->busy[ids[i]] = 1;
	}
	for (uint32_t i = 0; i < nr; i++) {
		uint16_t id = ids[i];

		if (drv->packed) {
			put_packed(drv, drv->prep_gpa + id * drv->prep_stride, drv->prep_len, id, flags);
		} else {
			uint32_t at = drv->avail_idx & (drv->size - 1);

			/* in a steady state it holds this id already: the line stays in the device's cache */
			if (drv->avail_was[at] != id) {
				drv->avail_was[at] = id;
				shm_store16(drv->avail + 4 + 2ULL * at, id);
			}
			drv->avail_idx++;	/* wraps at 2^16, on purpose */
		}
	}
	drv->fresh = (uint16_t)(drv->fresh + nr);
	drv->free -= nr;
	drv->pending += nr;
	return 0;
}

/* Check a used entry of a prepared ring and free its id. 0 or -RING_E_*. */
static inline int take_one(struct ring_drv *drv, uint32_t g_id, uint32_t g_len, struct ring_drv_taken *out)
{
	if (g_id >= drv->prepared)
		return -RING_E_ID;
	if (!drv->busy[g_id])
		return -RING_E_DUP;
	if (g_len > drv->prep_room)
		return -RING_E_LEN;
	drv->busy[g_id] = 0;
	out->id = g_id;
	out->len = g_len;
	return 0;
}

static int take_split(struct ring_drv *drv, struct ring_drv_taken *out, int max)
{
	uint16_t g_left;
	int n = 0;

	/* both lines come at the same time */
	__builtin_prefetch(drv->used + 4 + 8ULL * (drv->used_idx & (drv->size - 1)));
	g_left = (uint16_t)(shm_load16_acquire(drv->used + 2) - drv->used_idx);
	if (g_left > drv->pending) {
		drv->error = -RING_E_DUP;
		return 0;
	}
	for (; n < max && n < g_left; n++) {
		const SHM uint8_t *at = drv->used + 4 + 8ULL * (drv->used_idx & (drv->size - 1));

		drv->error = take_one(drv, shm_load32(at), shm_load32(at + 4), &out[n]);
		if (drv->error)
			break;
		drv->used_idx++;
	}
	return n;
}

static int take_packed(struct ring_drv *drv, struct ring_drv_taken *out, int max)
{
	uint64_t g_val;
	int n = 0;

	for (; n < max && (uint32_t)n < drv->pending; n++) {
		if (drv->batch_open && drv->used_idx == drv->batch_slot)
			break;	/* not even published */
		if (!packed_used(drv, &g_val))
			break;
		drv->error = take_one(drv, g_val >> 32 & 0xffff, (uint32_t)g_val, &out[n]);
		if (drv->error)
			break;
		if (++drv->used_idx == drv->size) {
			drv->used_idx = 0;
			drv->used_wrap = !drv->used_wrap;
		}
	}
	return n;
}

int ring_drv_take(struct ring_drv *drv, struct ring_drv_taken *out, int max)
{
	int n;

	if (drv->error)
		return drv->error;
	n = drv->packed ? take_packed(drv, out, max) : take_split(drv, out, max);
	drv->pending -= (uint32_t)n;
	drv->free += (uint32_t)n;
	return n > 0 ? n : drv->error;
}

void ring_drv_calls_off(struct ring_drv *drv)
{
	if (drv->packed)
		shm_store32(drv->avail, (uint32_t)EV_DISABLE << 16);
	else if (drv->event_idx)	/* an event just passed: 2^16 completions away */
		shm_store16(drv->avail + 4 + 2ULL * drv->size, (uint16_t)(drv->used_idx - 1));
	else
		shm_store16(drv->avail, 1);
}

int ring_drv_calls_on(struct ring_drv *drv)
{
	uint64_t g_val;

	if (drv->packed && drv->event_idx)
		shm_store32(drv->avail, drv->used_idx | (uint32_t)drv->used_wrap << 15 | (uint32_t)EV_DESC << 16);
	else if (drv->packed)
		shm_store32(drv->avail, (uint32_t)EV_ENABLE << 16);
	else if (drv->event_idx)
		shm_store16(drv->avail + 4 + 2ULL * drv->size, drv->used_idx);
	else
		shm_store16(drv->avail, 0);
	/* the wish must be seen before we look a last time; pairs with the device's fence after publishing */
	shm_mb();
	if (drv->error || drv->run)
		return 1;
	if (drv->packed)
		return drv->pending > 0 && packed_used(drv, &g_val);
	return shm_load16_acquire(drv->used + 2) != drv->used_idx;
}
