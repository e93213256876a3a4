/* SPDX-License-Identifier: Apache-2.0 */
/*
 * inflight.c - the record of chains in flight that outlives the process (vhost-user, "Inflight I/O tracking").
 *
 * Rules
 * - The record is shared with the front-end and perhaps an older self: read only at start, each word once, checked
 *   before use. At run time the private copies in struct vq_inflight count, and the record is only written.
 * - A crash may come between any two stores: each step leaves a record that inflight_start() makes sense of. A crash
 *   stops a process, not a machine, so keeping the compiler from reordering (step()) is enough.
 *
 * Packed, beyond the letter of the specification: a batch is entered into the lists at flush, never at push, since a pop
 * in between would take the entries of a chain that the driver does not have back yet. And a crash between the first
 * ring writes of a batch and its publish leaves slots behind the first that look used: start makes them available again.
 */
#include <errno.h>
#include <stdlib.h>

#include "ring/csrc/vq.h"

enum {
	/* both layouts */
	REC_VERSION = 8,	/* u16; 0: not initialised, 1: this */
	REC_DESC_NUM = 10,	/* u16 */
	/* split */
	SREC_LAST_BATCH_HEAD = 12,
	SREC_USED_IDX = 14,
	SREC_DESC = 16,
	SREC_ENTRY = 16,
	SREC_E_INFLIGHT = 0,
	SREC_E_NEXT = 6,
	SREC_E_COUNTER = 8,
	/* packed */
	PREC_FREE = 12,		/* u16 free_head, u16 old_free_head: one store */
	PREC_USED = 16,		/* u16 used_idx, u16 old_used_idx, u8 used_wrap, u8 old_used_wrap: one store */
	PREC_DESC = 32,
	PREC_ENTRY = 32,
	PREC_E_INFLIGHT = 0,
	PREC_E_NEXT = 2,
	PREC_E_LAST = 4,
	PREC_E_NUM = 6,
	PREC_E_COUNTER = 8,
	PREC_E_ID = 16,
	PREC_E_FLAGS = 18,
	PREC_E_LEN = 20,
	PREC_E_ADDR = 24,
};

/* Stores before are in the record before those after. */
static inline void step(void)
{
	atomic_signal_fence(memory_order_seq_cst);
}

static SHM uint8_t *split_entry(const struct ring_vq *vq, uint32_t i)
{
	return vq->inflight.region + SREC_DESC + (size_t)SREC_ENTRY * i;
}

static SHM uint8_t *packed_entry(const struct ring_vq *vq, uint32_t i)
{
	return vq->inflight.region + PREC_DESC + (size_t)PREC_ENTRY * i;
}

uint64_t ring_inflight_bytes(uint32_t queue_size, int packed)
{
	uint64_t bytes = packed ? PREC_DESC + (uint64_t)PREC_ENTRY * queue_size :
				  SREC_DESC + (uint64_t)SREC_ENTRY * queue_size;

	return (bytes + 63) & ~(uint64_t)63;
}

static void packed_set_free(struct ring_vq *vq, uint16_t now, uint16_t old)
{
	shm_store32(vq->inflight.region + PREC_FREE, now | (uint32_t)old << 16);
	step();
}

/* Index and wrap counter together: a crash never leaves one without the other. */
static void packed_set_used(struct ring_vq *vq, uint32_t now, uint8_t now_wrap, uint32_t old, uint8_t old_wrap)
{
	shm_store64(vq->inflight.region + PREC_USED,
		    now | (uint64_t)old << 16 | (uint64_t)now_wrap << 32 | (uint64_t)old_wrap << 40);
	step();
}

/* ---- start ---- */

static int by_counter(const void *a, const void *b)
{
	const struct vq_resubmit *x = a, *y = b;

	if (x->counter != y->counter)
		return x->counter < y->counter ? -1 : 1;
	return x->entry < y->entry ? -1 : x->entry > y->entry;
}

static void sort_resubmits(struct vq_inflight *inf)
{
	qsort(inf->resubmit, inf->nr_resubmit, sizeof(*inf->resubmit), by_counter);
	inf->counter = inf->nr_resubmit ? inf->resubmit[inf->nr_resubmit - 1].counter + 1 : 0;
}

static void split_init(struct ring_vq *vq)
{
	struct vq_inflight *inf = &vq->inflight;
	uint32_t i;

	for (i = 0; i < SREC_DESC / 8; i++)
		shm_store64(inf->region + 8 * i, 0);
	for (i = 0; i < inf->nr_entries; i++) {
		shm_store64(split_entry(vq, i), 0);
		shm_store64(split_entry(vq, i) + 8, 0);
	}
	shm_store16(inf->region + REC_DESC_NUM, (uint16_t)inf->nr_entries);
	shm_store16(inf->region + SREC_USED_IDX, vq->used_idx);
	step();
	shm_store16(inf->region + REC_VERSION, 1);
}

/* The driver has got the last batch, but the record may not know: forget those chains. */
static int split_finish_batch(struct ring_vq *vq)
{
	struct vq_inflight *inf = &vq->inflight;
	uint16_t g_batch = (uint16_t)(vq->used_idx - shm_load16(inf->region + SREC_USED_IDX));
	uint16_t g_head = shm_load16(inf->region + SREC_LAST_BATCH_HEAD);
	uint32_t i;

	if (g_batch > vq->size)
		return -RING_E_INFLIGHT;
	inf->last_batch_head = 0;
	for (i = 0; i < g_batch; i++) {
		if (g_head >= vq->size)
			return -RING_E_INFLIGHT;
		shm_store8(split_entry(vq, g_head) + SREC_E_INFLIGHT, 0);
		g_head = shm_load16(split_entry(vq, g_head) + SREC_E_NEXT);
	}
	step();
	shm_store16(inf->region + SREC_USED_IDX, vq->used_idx);
	return 0;
}

static int split_start(struct ring_vq *vq)
{
	struct vq_inflight *inf = &vq->inflight;
	uint32_t i;
	int rc = split_finish_batch(vq);

	if (rc)
		return rc;
	for (i = 0; i < vq->size; i++) {
		if (!shm_load8(split_entry(vq, i) + SREC_E_INFLIGHT))
			continue;
		inf->resubmit[inf->nr_resubmit++] = (struct vq_resubmit){
			.counter = shm_load64(split_entry(vq, i) + SREC_E_COUNTER), .entry = (uint16_t)i, .num = 1 };
	}
	sort_resubmits(inf);
	/* All before the used index were returned, the rest up to here is in flight: whatever base the front-end gave. */
	vq->last_avail = (uint16_t)(vq->used_idx + inf->nr_resubmit);
	return 0;
}

static void packed_init(struct ring_vq *vq)
{
	struct vq_inflight *inf = &vq->inflight;
	uint32_t i, at;

	for (i = 0; i < PREC_DESC / 8; i++)
		shm_store64(inf->region + 8 * i, 0);
	for (i = 0; i < inf->nr_entries; i++) {
		for (at = 0; at < PREC_ENTRY; at += 8)
			shm_store64(packed_entry(vq, i) + at, 0);
		inf->next[i] = (uint16_t)(i + 1);
		shm_store16(packed_entry(vq, i) + PREC_E_NEXT, inf->next[i]);
	}
	shm_store16(inf->region + REC_DESC_NUM, (uint16_t)inf->nr_entries);
	packed_set_used(vq, vq->used_pos, vq->used_wrap, vq->used_pos, vq->used_wrap);
	shm_store16(inf->region + REC_VERSION, 1);
}

/* The batch was not published, but slots behind its first may look used already: they are still ours. */
static void packed_take_back(struct ring_vq *vq, uint32_t pos, uint8_t wrap, uint32_t slots)
{
	uint32_t i;

	for (i = 0; i < slots; i++) {
		shm_store16(vq->desc + (size_t)VQ_DESC_BYTES * pos + 14, wrap ? VQ_DESC_AVAIL : VQ_DESC_USED);
		if (++pos == vq->size) {
			pos = 0;
			wrap ^= 1;
		}
	}
}

/* Was the last batch published? Then it counts; otherwise the state before it does. Sets free_head, used_pos, used_wrap. */
static int packed_finish_batch(struct ring_vq *vq)
{
	struct vq_inflight *inf = &vq->inflight;
	uint32_t g_frees = shm_load32(inf->region + PREC_FREE);
	uint64_t g_useds = shm_load64(inf->region + PREC_USED);
	uint16_t g_free = (uint16_t)g_frees, g_old_free = (uint16_t)(g_frees >> 16);
	uint16_t g_used = (uint16_t)g_useds, g_old_used = (uint16_t)(g_useds >> 16);
	uint8_t g_wrap = (uint8_t)(g_useds >> 32), g_old_wrap = (uint8_t)(g_useds >> 40);
	uint16_t flags;
	int32_t slots;
	bool published;

	if (g_free > inf->nr_entries || g_old_free > inf->nr_entries || g_used >= vq->size ||
	    g_old_used >= vq->size || g_wrap > 1 || g_old_wrap > 1)
		return -RING_E_INFLIGHT;
	slots = (int32_t)g_used - g_old_used + (g_wrap != g_old_wrap ? (int32_t)vq->size : 0);
	if (slots < 0 || slots > (int32_t)vq->size)
		return -RING_E_INFLIGHT;
	if (slots) {
		flags = shm_load16(vq->desc + (size_t)VQ_DESC_BYTES * g_old_used + 14);
		published = !!(flags & VQ_DESC_AVAIL) != g_old_wrap || !!(flags & VQ_DESC_USED) == g_old_wrap;
		if (published) {
			g_old_free = g_free;
			g_old_used = g_used;
			g_old_wrap = g_wrap;
		} else {
			packed_take_back(vq, g_old_used, g_old_wrap, (uint32_t)slots);
		}
	}
	inf->free_head = g_old_free;
	vq->used_pos = g_old_used;
	vq->used_wrap = g_old_wrap;
	packed_set_free(vq, inf->free_head, inf->free_head);
	/* last: until here a second crash decides the same again */
	packed_set_used(vq, vq->used_pos, vq->used_wrap, vq->used_pos, vq->used_wrap);
	return 0;
}

/* The free list, each entry once; ends at nr_entries. @seen marks its entries. */
static int packed_read_free(struct ring_vq *vq, uint8_t *seen, uint32_t *nr)
{
	struct vq_inflight *inf = &vq->inflight;
	uint32_t i, g_i;

	for (i = inf->free_head, *nr = 0; i != inf->nr_entries; i = g_i) {
		if (seen[i])
			return -RING_E_INFLIGHT;
		seen[i] = 1;
		++*nr;
		shm_store8(packed_entry(vq, i) + PREC_E_INFLIGHT, 0);
		g_i = shm_load16(packed_entry(vq, i) + PREC_E_NEXT);
		if (g_i > inf->nr_entries)
			return -RING_E_INFLIGHT;
		inf->next[i] = (uint16_t)g_i;
	}
	return 0;
}

/* The chain in flight at head entry @head: its list must be whole, and nobody else's. */
static int packed_read_chain(struct ring_vq *vq, uint8_t *seen, uint32_t head)
{
	struct vq_inflight *inf = &vq->inflight;
	uint16_t g_num = shm_load16(packed_entry(vq, head) + PREC_E_NUM);
	uint16_t g_last = shm_load16(packed_entry(vq, head) + PREC_E_LAST);
	uint32_t i = head, k, g_next;

	if (!g_num || g_num > vq->size - vq->taken || inf->nr_resubmit == vq->size)
		return -RING_E_INFLIGHT;
	for (k = 1;; k++) {
		if (seen[i])
			return -RING_E_INFLIGHT;
		seen[i] = 1;
		if (k == g_num)
			break;
		g_next = shm_load16(packed_entry(vq, i) + PREC_E_NEXT);
		if (g_next >= inf->nr_entries)
			return -RING_E_INFLIGHT;
		inf->next[i] = (uint16_t)g_next;
		i = g_next;
	}
	if (i != g_last)
		return -RING_E_INFLIGHT;
	inf->last[head] = (uint16_t)i;
	inf->resubmit[inf->nr_resubmit++] = (struct vq_resubmit){
		.counter = shm_load64(packed_entry(vq, head) + PREC_E_COUNTER), .entry = (uint16_t)head, .num = g_num };
	vq->taken += g_num;
	return 0;
}

static int packed_start(struct ring_vq *vq)
{
	struct vq_inflight *inf = &vq->inflight;
	uint32_t i, nr_free, pos;
	uint8_t *seen;
	int rc = packed_finish_batch(vq);

	if (rc)
		return rc;
	seen = calloc(inf->nr_entries, 1);
	if (seen == NULL)
		return -ENOMEM;
	rc = packed_read_free(vq, seen, &nr_free);
	for (i = 0; !rc && i < inf->nr_entries; i++)
		if (!seen[i] && shm_load8(packed_entry(vq, i) + PREC_E_INFLIGHT))
			rc = packed_read_chain(vq, seen, i);
	free(seen);
	if (rc)
		return rc;
	if (nr_free + vq->taken < vq->size)	/* entries lost: chains could not be recorded */
		return -RING_E_INFLIGHT;
	sort_resubmits(inf);
	pos = vq->used_pos + vq->taken;
	vq->avail_wrap = vq->used_wrap ^ (pos >= vq->size);
	vq->avail_pos = pos >= vq->size ? pos - vq->size : pos;
	return 0;
}

/*
 * Take up the record of cfg.inflight: initialise it, or find what is to be resubmitted; then the indexes follow from it.
 * 0, -RING_E_INFLIGHT, -ENOMEM. What it allocates is inflight_arena, freed by ring_vq_start()'s failure path and stop.
 */
int inflight_start(struct ring_vq *vq)
{
	struct vq_inflight *inf = &vq->inflight;
	uint64_t bytes = vq->cfg.inflight_bytes, room, at;
	uint32_t head = vq->packed ? PREC_DESC : SREC_DESC, entry = vq->packed ? PREC_ENTRY : SREC_ENTRY;
	uint16_t g_version, g_num;
	uint8_t *arena;
	int rc;

	if ((uintptr_t)vq->cfg.inflight & 7 || bytes < head)
		return -RING_E_INFLIGHT;
	room = (bytes - head) / entry;
	inf->region = vq->cfg.inflight;
	inf->bytes = bytes;
	inf->nr_entries = vq->size;
	g_version = shm_load16(inf->region + REC_VERSION);
	g_num = shm_load16(inf->region + REC_DESC_NUM);
	if (room < vq->size || g_version > 1)
		return -RING_E_INFLIGHT;
	if (g_version) {	/* another implementation may have counted the largest queue's size */
		if (g_num < vq->size || g_num > room)
			return -RING_E_INFLIGHT;
		inf->nr_entries = g_num;
	}

	at = (uint64_t)vq->size * (sizeof(*inf->copies) + sizeof(*inf->resubmit) + sizeof(*inf->batch)) +
	     (uint64_t)inf->nr_entries * (sizeof(*inf->next) + sizeof(*inf->last));
	arena = calloc(1, at);
	if (arena == NULL)
		return -ENOMEM;
	vq->inflight_arena = arena;
	inf->copies = (uint64_t (*)[2])arena;
	inf->resubmit = (struct vq_resubmit *)(inf->copies + vq->size);
	inf->batch = (uint16_t *)(inf->resubmit + vq->size);
	inf->next = inf->batch + vq->size;
	inf->last = inf->next + inf->nr_entries;

	if (!g_version) {
		if (vq->packed)
			packed_init(vq);
		else
			split_init(vq);
		rc = 0;
	} else {
		rc = vq->packed ? packed_start(vq) : split_start(vq);
	}
	vq->slow |= VQ_SLOW_INFLIGHT | (inf->nr_resubmit ? (uint32_t)VQ_SLOW_RESUBMIT : 0);
	return rc;
}

/* ---- run time ---- */

/* Record a chain that the device is about to get; packed: its descriptors are in copies[]. */
void inflight_popped(struct ring_vq *vq, struct ring_chain *chain)
{
	struct vq_inflight *inf = &vq->inflight;
	uint16_t head = inf->free_head, i = head, k;
	SHM uint8_t *e;

	if (!vq->packed) {
		e = split_entry(vq, chain->id);
		shm_store64(e + SREC_E_COUNTER, inf->counter++);
		step();
		shm_store8(e + SREC_E_INFLIGHT, 1);
		step();
		return;
	}
	/* entries suffice: packed_take() keeps popped slots <= size, packed_start() free entries >= free slots */
	for (k = 0; k < chain->nr_desc; k++) {
		uint64_t *d = inf->copies[k];

		e = packed_entry(vq, i);
		shm_store64(e + PREC_E_ADDR, d[0]);
		shm_store32(e + PREC_E_LEN, (uint32_t)d[1]);
		shm_store16(e + PREC_E_ID, (uint16_t)(d[1] >> 32));
		shm_store16(e + PREC_E_FLAGS, (uint16_t)(d[1] >> 48));
		inf->last[head] = i;
		i = inf->next[i];
	}
	inf->free_head = i;
	chain->inflight = head;
	e = packed_entry(vq, head);
	shm_store16(e + PREC_E_LAST, inf->last[head]);
	shm_store16(e + PREC_E_NUM, chain->nr_desc);
	shm_store64(e + PREC_E_COUNTER, inf->counter++);
	step();
	shm_store8(e + PREC_E_INFLIGHT, 1);
	step();	/* while it is on the free list, start does not believe its inflight flag */
	packed_set_free(vq, inf->free_head, inf->free_head);
}

static void packed_free_entries(struct ring_vq *vq, uint16_t head)
{
	struct vq_inflight *inf = &vq->inflight;
	uint16_t last = inf->last[head];

	inf->next[last] = inf->free_head;
	shm_store16(packed_entry(vq, last) + PREC_E_NEXT, inf->free_head);
	inf->free_head = head;
	step();
}

/* A chain goes back to the driver's side unseen; one that was resubmitted stays on record, to be handed out again. */
void inflight_unpopped(struct ring_vq *vq, struct ring_chain *chain, bool resubmitted)
{
	struct vq_inflight *inf = &vq->inflight;

	if (resubmitted)
		return;
	if (!vq->packed) {
		shm_store8(split_entry(vq, chain->id) + SREC_E_INFLIGHT, 0);
		step();
		return;
	}
	packed_free_entries(vq, chain->inflight);
	packed_set_free(vq, inf->free_head, inf->free_head);
	shm_store8(packed_entry(vq, chain->inflight) + PREC_E_INFLIGHT, 0);
	step();
}

/* A chain was completed; it stays STAGED, so that its head cannot come again before the flush. */
void inflight_pushed(struct ring_vq *vq, struct ring_chain *chain)
{
	struct vq_inflight *inf = &vq->inflight;

	inf->batch[inf->nr_batch++] = chain->id;	/* at most size: each slot is STAGED once */
	if (vq->packed)
		return;
	shm_store16(split_entry(vq, chain->id) + SREC_E_NEXT, inf->last_batch_head);
	step();
	inf->last_batch_head = chain->id;
	shm_store16(inf->region + SREC_LAST_BATCH_HEAD, chain->id);
	step();
	split_stage(vq, chain->id, chain->written);
}

/* Enter the batch: what it changes is undone at start until the publish is seen. Packed: then stage it. */
void inflight_before_publish(struct ring_vq *vq)
{
	struct vq_inflight *inf = &vq->inflight;
	uint32_t i, pos = vq->used_pos;
	uint8_t wrap = vq->used_wrap;
	uint16_t old_free = inf->free_head;

	if (!vq->packed) {
		step();
		return;
	}
	for (i = 0; i < inf->nr_batch; i++) {
		const struct ring_chain *chain = &vq->slots[inf->batch[i]];

		packed_free_entries(vq, chain->inflight);
		pos += chain->nr_desc;
		if (pos >= vq->size) {
			pos -= vq->size;
			wrap ^= 1;
		}
	}
	packed_set_free(vq, inf->free_head, old_free);
	packed_set_used(vq, pos, wrap, vq->used_pos, vq->used_wrap);
	for (i = 0; i < inf->nr_batch; i++) {
		const struct ring_chain *chain = &vq->slots[inf->batch[i]];

		packed_stage(vq, chain->id, chain->nr_desc, chain->written);
	}
	step();
}

/* The driver has the batch: strike it off the record. */
void inflight_after_publish(struct ring_vq *vq)
{
	struct vq_inflight *inf = &vq->inflight;
	uint32_t i;

	step();
	for (i = 0; i < inf->nr_batch; i++) {
		struct ring_chain *chain = &vq->slots[inf->batch[i]];

		if (vq->packed)
			shm_store8(packed_entry(vq, chain->inflight) + PREC_E_INFLIGHT, 0);
		else
			shm_store8(split_entry(vq, chain->id) + SREC_E_INFLIGHT, 0);
		chain->state = VQ_CHAIN_FREE;
	}
	inf->nr_batch = 0;
	step();
	if (vq->packed) {
		packed_set_free(vq, inf->free_head, inf->free_head);
		packed_set_used(vq, vq->used_pos, vq->used_wrap, vq->used_pos, vq->used_wrap);
	} else {
		shm_store16(inf->region + SREC_USED_IDX, vq->used_idx);
	}
}

/* One descriptor from the record, shaped as in the ring. */
void inflight_load(const struct ring_vq *vq, uint32_t entry, uint64_t d[2])
{
	const SHM uint8_t *e = packed_entry(vq, entry);

	d[0] = shm_load64(e + PREC_E_ADDR);
	d[1] = shm_load32(e + PREC_E_LEN) | (uint64_t)shm_load16(e + PREC_E_ID) << 32 |
	       (uint64_t)shm_load16(e + PREC_E_FLAGS) << 48;
}
