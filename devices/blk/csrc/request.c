/* SPDX-License-Identifier: Apache-2.0 */
/*
 * request.c - what a guest asks for: one look at the header and the segments, every rule of VIRTIO 1.3, 5.2.6.
 *
 * Rules
 * - The header is the first 16 readable bytes, the status the last writable byte, wherever descriptors begin and end.
 * - A chain without room for a status cannot be answered: the queue breaks. Everything else gets a status.
 * - A request of a feature that was not acked is UNSUPP, as one of unknown type.
 */
#include "devices/blk/csrc/blk_int.h"

_Static_assert(sizeof(struct virtio_blk_outhdr) == BLK_HEADER, "request header");
_Static_assert(sizeof(struct virtio_blk_discard_write_zeroes) == BLK_SEGMENT_BYTES, "segment");

#ifndef VIRTIO_BLK_F_LIFETIME
#define VIRTIO_BLK_F_LIFETIME 15
#endif
#ifndef VIRTIO_BLK_F_SECURE_ERASE
#define VIRTIO_BLK_F_SECURE_ERASE 16
#endif
#ifndef VIRTIO_BLK_T_GET_LIFETIME
#define VIRTIO_BLK_T_GET_LIFETIME 10
#endif
#ifndef VIRTIO_BLK_T_SECURE_ERASE
#define VIRTIO_BLK_T_SECURE_ERASE 14
#endif

static bool acked(const struct blk *blk, unsigned bit)
{
	return atomic_load_explicit(&blk->features, memory_order_relaxed) >> bit & 1;
}

/* @g_sector, and @len bytes from there on, lie on the disk and on block borders. */
static bool range_ok(const struct blk *blk, uint64_t g_sector, uint64_t len)
{
	uint64_t capacity = atomic_load_explicit(&blk->capacity, memory_order_relaxed);

	if (g_sector > capacity / BLK_SECTOR)
		return false;
	if ((g_sector * BLK_SECTOR | len) & blk->align_mask)
		return false;
	return len <= capacity - g_sector * BLK_SECTOR;
}

static uint8_t one_segment(const struct blk *blk, uint32_t op, const struct virtio_blk_discard_write_zeroes *g_seg,
			   struct blk_segment *seg)
{
	uint32_t flags = g_seg->flags;
	uint32_t max = op == BLK_DISCARD ? blk->config.max_discard_sectors :
		       op == BLK_ZERO ? blk->config.max_zero_sectors : blk->config.max_erase_sectors;
	uint64_t len = (uint64_t)g_seg->num_sectors * BLK_SECTOR;

	/* VIRTIO 1.3, 5.2.6.2: unknown flags, and unmap where it has no meaning */
	if (flags & ~(uint32_t)VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)
		return VIRTIO_BLK_S_UNSUPP;
	if (op != BLK_ZERO && flags)
		return VIRTIO_BLK_S_UNSUPP;
	if (g_seg->num_sectors > max || !range_ok(blk, g_seg->sector, len))
		return VIRTIO_BLK_S_IOERR;
	seg->offset = g_seg->sector * BLK_SECTOR;
	seg->len = len;
	seg->unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
	return VIRTIO_BLK_S_OK;
}

/* Discard, write zeroes, secure erase: all segments are checked before any is carried out. */
static uint8_t segments(const struct blk *blk, const struct ring_chain *chain, struct blk_parsed *p,
			struct blk_segment *segs)
{
	struct virtio_blk_discard_write_zeroes g_segs[BLK_SEGMENTS_MAX];
	uint32_t bytes = chain->out_bytes - BLK_HEADER;
	uint32_t nr = bytes / BLK_SEGMENT_BYTES;
	uint32_t i;

	if (blk->config.read_only)
		return VIRTIO_BLK_S_IOERR;
	if (!nr || bytes % BLK_SEGMENT_BYTES || nr > blk->config.max_segments || nr > BLK_SEGMENTS_MAX)
		return VIRTIO_BLK_S_IOERR;
	ring_chain_read(chain, BLK_HEADER, g_segs, nr * BLK_SEGMENT_BYTES);
	for (i = 0; i < nr; i++) {
		uint8_t status = one_segment(blk, p->op, &g_segs[i], &segs[i]);

		if (status != VIRTIO_BLK_S_OK)
			return status;
	}
	p->nr_seg = (uint8_t)nr;
	return VIRTIO_BLK_S_OK;
}

static void parse_rare(const struct blk *blk, const struct ring_chain *chain, uint32_t g_type, struct blk_parsed *p,
		       struct blk_segment *segs)
{
	p->len = 0;
	p->offset = 0;
	p->status = VIRTIO_BLK_S_UNSUPP;
	switch (g_type) {
	case VIRTIO_BLK_T_FLUSH:
		p->op = BLK_FLUSH;
		if (!acked(blk, VIRTIO_BLK_F_FLUSH))
			return;
		/* 5.2.6.1: a flush has no data; a driver that sends some is in error */
		p->status = chain->out_bytes == BLK_HEADER && chain->in_bytes == 1 ? VIRTIO_BLK_S_OK :
										     VIRTIO_BLK_S_IOERR;
		return;
	case VIRTIO_BLK_T_GET_ID:
		p->op = BLK_ID_REQ;
		p->status = VIRTIO_BLK_S_OK;
		return;
	case VIRTIO_BLK_T_GET_LIFETIME:
		p->op = BLK_LIFETIME_REQ;
		if (acked(blk, VIRTIO_BLK_F_LIFETIME))
			p->status = chain->in_bytes > BLK_LIFETIME_BYTES ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR;
		return;
	case VIRTIO_BLK_T_DISCARD:
		p->op = BLK_DISCARD;
		if (acked(blk, VIRTIO_BLK_F_DISCARD))
			p->status = segments(blk, chain, p, segs);
		return;
	case VIRTIO_BLK_T_WRITE_ZEROES:
		p->op = BLK_ZERO;
		if (acked(blk, VIRTIO_BLK_F_WRITE_ZEROES))
			p->status = segments(blk, chain, p, segs);
		return;
	case VIRTIO_BLK_T_SECURE_ERASE:
		p->op = BLK_ERASE;
		if (acked(blk, VIRTIO_BLK_F_SECURE_ERASE))
			p->status = segments(blk, chain, p, segs);
		return;
	default:
		p->op = BLK_OTHER;
		return;
	}
}

/* @segs has room for BLK_SEGMENTS_MAX. Nothing of the header is read a second time. */
void blk_parse(const struct blk *blk, const struct ring_chain *chain, struct blk_parsed *p, struct blk_segment *segs)
{
	struct virtio_blk_outhdr g_hdr;

	p->broken = 0;
	p->nr_seg = 0;
	if (blk_unlikely(!chain->in_bytes || chain->out_bytes < BLK_HEADER)) {
		p->op = BLK_OTHER;
		p->status = VIRTIO_BLK_S_IOERR;
		p->broken = !chain->in_bytes;
		p->len = 0;
		return;
	}
	if (blk_likely(chain->iov[0].len >= BLK_HEADER))
		shm_copy_in(&g_hdr, chain->iov[0].base, BLK_HEADER);
	else
		ring_chain_read(chain, 0, &g_hdr, BLK_HEADER);

	if (blk_likely(g_hdr.type == VIRTIO_BLK_T_IN)) {
		p->op = BLK_READ;
		p->len = chain->in_bytes - 1;
	} else if (blk_likely(g_hdr.type == VIRTIO_BLK_T_OUT)) {
		p->op = BLK_WRITE;
		p->len = chain->out_bytes - BLK_HEADER;
	} else {
		parse_rare(blk, chain, g_hdr.type, p, segs);
		return;
	}
	if (blk_unlikely(!range_ok(blk, g_hdr.sector, p->len) || (p->op == BLK_WRITE && blk->config.read_only))) {
		p->status = VIRTIO_BLK_S_IOERR;
		p->len = 0;
		p->offset = 0;
		return;
	}
	p->status = VIRTIO_BLK_S_OK;
	p->offset = g_hdr.sector * BLK_SECTOR;
}

uint32_t blk_answer(const struct blk *blk, const struct ring_chain *chain, const struct blk_parsed *p)
{
	static const uint8_t lifetime[BLK_LIFETIME_BYTES];	/* all "not known" (VIRTIO 1.3, 5.2.6) */
	uint32_t room = chain->in_bytes - 1;
	uint32_t n = 0;

	if (p->status == VIRTIO_BLK_S_OK && p->op == BLK_ID_REQ)
		n = ring_chain_write(chain, 0, blk->config.id, room < BLK_ID_BYTES ? room : BLK_ID_BYTES);
	else if (p->status == VIRTIO_BLK_S_OK && p->op == BLK_LIFETIME_REQ)
		n = ring_chain_write(chain, 0, lifetime, BLK_LIFETIME_BYTES);
	shm_store8(blk_status_byte(chain), p->status);
	return n + 1;
}
