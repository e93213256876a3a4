/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vlan.c - tags are put in and taken out.
 *
 * Only head, length and offsets change. Byte n of the new frame is byte n - 4 or n + 4 of the old one where both are
 * behind the tag, so the pieces stay and @skip moves by four.
 */
#include "devices/net/csrc/vlan.h"

/* In front of frames that begin where their memory begins; never read. */
static uint8_t pad[VLAN_TAG];

static void set_tag(struct net_frame *g, uint32_t tci)
{
	g->head[VLAN_AT] = 0x81;
	g->head[VLAN_AT + 1] = 0x00;
	g->head[VLAN_AT + 2] = (uint8_t)(tci >> 8);
	g->head[VLAN_AT + 3] = (uint8_t)tci;
}

/* Offsets of the header, when what they point to moves on by the length of a tag. */
static bool move_on(struct net_hdr *hdr)
{
	if (hdr->flags & NET_F_NEEDS_CSUM) {
		if (hdr->csum_start > UINT16_MAX - VLAN_TAG)
			return false;
		hdr->csum_start = (uint16_t)(hdr->csum_start + VLAN_TAG);
	}
	if (hdr->hdr_len && hdr->hdr_len <= UINT16_MAX - VLAN_TAG)
		hdr->hdr_len = (uint16_t)(hdr->hdr_len + VLAN_TAG);
	return true;
}

static bool move_back(struct net_hdr *hdr)
{
	if (hdr->flags & NET_F_NEEDS_CSUM) {
		if (hdr->csum_start < NET_ETH + VLAN_TAG)
			return false;
		hdr->csum_start = (uint16_t)(hdr->csum_start - VLAN_TAG);
	}
	hdr->hdr_len = (uint16_t)(hdr->hdr_len > VLAN_TAG ? hdr->hdr_len - VLAN_TAG : 0);
	return true;
}

static struct net_frame *next(struct vlan_frames *fr, const struct net_frame *f)
{
	struct net_frame *g = &fr->of[fr->nr++].frame;

	g->hdr = f->hdr;
	g->pair = f->pair;
	g->nr_iov = f->nr_iov;
	g->iov = f->iov;
	g->skip = f->skip;
	return g;
}

static int push(struct vlan_frames *fr, const struct net_frame *f, uint32_t vlan, const struct net_frame **out)
{
	bool prepend = f->skip < VLAN_TAG;
	bool is_long = prepend && f->nr_iov + 1 > VLAN_IOV_SHORT;
	struct net_frame *g;
	uint32_t rest;

	if (f->len > NET_FRAME_MAX - VLAN_TAG || f->nr_iov > RING_IOV_MAX)
		return NET_DROP_GIANT;
	if (is_long && fr->long_used)
		return VLAN_FRAME_FLUSH;
	g = next(fr, f);
	if (!move_on(&g->hdr))
		return NET_DROP_HEADER;
	g->len = f->len + VLAN_TAG;
	g->head_len = (uint16_t)(g->len < NET_HEAD ? g->len : NET_HEAD);
	rest = g->head_len - VLAN_AT - VLAN_TAG;
	memcpy(g->head, f->head, VLAN_AT);
	memcpy(g->head + VLAN_AT + VLAN_TAG, f->head + VLAN_AT, rest);
	set_tag(g, vlan);
	if (prepend) {
		struct ring_iov *iov = is_long ? fr->long_iov : fr->of[fr->nr - 1].iov;

		iov[0].base = pad;
		iov[0].len = sizeof(pad);
		memcpy(iov + 1, f->iov, f->nr_iov * sizeof(*iov));
		g->iov = iov;
		g->nr_iov++;
		fr->long_used |= is_long;
	} else {
		g->skip -= VLAN_TAG;
	}
	*out = g;
	return VLAN_FRAME_DONE;
}

static int pop(struct vlan_frames *fr, const struct net_frame *f, const struct net_frame **out)
{
	struct net_frame *g;
	uint32_t have;

	/* a tag behind the tag would count at the other end */
	if (vlan_is_tag(f, VLAN_AT + VLAN_TAG))
		return NET_DROP_VLAN;
	g = next(fr, f);
	if (!move_back(&g->hdr))
		return NET_DROP_HEADER;
	g->len = f->len - VLAN_TAG;
	g->head_len = (uint16_t)(g->len < NET_HEAD ? g->len : NET_HEAD);
	have = f->head_len - VLAN_TAG;
	memcpy(g->head, f->head, VLAN_AT);
	memcpy(g->head + VLAN_AT, f->head + VLAN_AT + VLAN_TAG, have - VLAN_AT);
	if (g->head_len > have)
		net_frame_copy(f, f->head_len, g->head + have, g->head_len - have);
	g->skip += VLAN_TAG;
	*out = g;
	return VLAN_FRAME_DONE;
}

static int rename_tag(struct vlan_frames *fr, const struct net_frame *f, uint32_t vlan, const struct net_frame **out)
{
	struct net_frame *g = next(fr, f);

	g->len = f->len;
	g->head_len = f->head_len;
	memcpy(g->head, f->head, f->head_len);
	set_tag(g, (uint32_t)(f->head[VLAN_AT + 2] & 0xf0) << 8 | vlan);
	*out = g;
	return VLAN_FRAME_DONE;
}

int vlan_frame(struct vlan_frames *fr, const struct net_frame *f, uint32_t what, bool tag, const struct net_frame **out)
{
	bool tagged = what & VLAN_TAGGED;

	*out = f;
	if (tagged == tag && !(what & VLAN_PRIORITY && tag))
		return VLAN_FRAME_DONE;
	if (fr->nr == NET_BATCH)
		return VLAN_FRAME_FLUSH;
	if (!tagged)
		return push(fr, f, what & VLAN_ID, out);
	if (!tag)
		return pop(fr, f, out);
	return rename_tag(fr, f, what & VLAN_ID, out);
}
