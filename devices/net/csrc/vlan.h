/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vlan.h - frames get and lose 802.1Q tags without being copied: a new head, the rest where it lies.
 */
#ifndef NET_VLAN_H
#define NET_VLAN_H

#include "devices/net/csrc/net_int.h"

enum {
	VLAN_TAG = 4,			/* bytes */
	VLAN_AT = 12,			/* where in a frame */
	VLAN_IOV_SHORT = 8,

	/* What a switch knows of a frame: its VLAN in the lower 12 bits, and */
	VLAN_ID = 0xfff,
	VLAN_TAGGED = 1 << 16,		/* there is a tag */
	VLAN_PRIORITY = 1 << 17,	/* which names no VLAN */

	VLAN_FRAME_DONE = 0,
	VLAN_FRAME_FLUSH = -1,		/* the frames made so far have to go first */
};

/* Frames in the making: valid until the next vlan_begin(). */
struct vlan_frames {
	uint32_t nr;
	bool long_used;
	struct {
		struct net_frame frame;
		struct ring_iov iov[VLAN_IOV_SHORT];
	} of[NET_BATCH];
	struct ring_iov long_iov[RING_IOV_MAX + 1];
};

/* Is the type at @at that of a tag, of whatever standard? */
static inline bool vlan_is_tag(const struct net_frame *f, uint32_t at)
{
	uint32_t type = (uint32_t)f->head[at] << 8 | f->head[at + 1];

	return type == 0x8100 || type == 0x88a8 || type == 0x9100;
}

static inline bool vlan_is_tagged(const struct net_frame *f)
{
	return f->head[VLAN_AT] == 0x81 && f->head[VLAN_AT + 1] == 0x00;
}

static inline void vlan_begin(struct vlan_frames *fr)
{
	fr->nr = 0;
	fr->long_used = false;
}

/*
 * Frame @f, of which @what is known, for a port that wants its VLAN tagged (@tag) or not. *@out is @f itself or a new
 * frame of @fr. VLAN_FRAME_DONE, VLAN_FRAME_FLUSH (nothing was made), or NET_DROP_*.
 */
int vlan_frame(struct vlan_frames *fr, const struct net_frame *f, uint32_t what, bool tag, const struct net_frame **out);

#endif
