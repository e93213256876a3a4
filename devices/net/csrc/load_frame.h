/* SPDX-License-Identifier: Apache-2.0 */
/*
 * load_frame.h - the frames of the load generator: UDP, or TCP to be cut, with a tag that says which one it is.
 *
 * A buffer holds the virtio header and then the frame, so that tag and contents lie on multiples of eight.
 */
#ifndef NET_LOAD_FRAME_H
#define NET_LOAD_FRAME_H

#include "devices/net/csrc/load.h"
#include "ring/csrc/shm.h"

enum {
	FRAME_TAG_UDP = 56,		/* of the tag in its buffer: behind 12 + 14 + 20 + 8 bytes, rounded up */
	FRAME_TAG_TCP = 72,
	FRAME_NUM_BUFFERS = 10,
};

/* Tag: 16 bits of ours, 8 bits flow, 40 bits number. */
#define FRAME_MAGIC 0xbe7cULL
#define FRAME_NUMBER ((1ULL << 40) - 1)

static inline uint32_t frame_tag_at(const struct net_load_config *cfg)
{
	return cfg->gso_bytes ? FRAME_TAG_TCP : FRAME_TAG_UDP;
}

static inline uint64_t frame_tag(uint32_t flow, uint64_t number)
{
	return FRAME_MAGIC << 48 | (uint64_t)flow << 40 | (number & FRAME_NUMBER);
}

/* Write the frame of @flow to @buf: everything but the tag. */
void frame_make(const struct net_load_config *cfg, SHM uint8_t *buf, const uint8_t *macs, uint32_t flow);
/* Contents of their own, behind the tag. */
void frame_fill(const struct net_load_config *cfg, SHM uint8_t *buf, uint64_t tag);
/*
 * Compare @len bytes at @piece, which are bytes [@at, @at + @len) of a buffer that holds all of frame @tag. Returns the
 * offset of the first that differs, or @at + @len.
 */
uint32_t frame_compare(const struct net_load_config *cfg, const SHM uint8_t *piece, uint32_t at, uint32_t len,
		       uint64_t tag);

#endif
