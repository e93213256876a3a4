// SPDX-License-Identifier: Apache-2.0
/*
 * rings.c - fences of contexts' rings: each ring is a line of time of its own, and waits for none of the others.
 */
#include <pthread.h>

#include "devices/gpu/render/csrc/render_int.h"

/* By slot: what is answered when it is over; 0: nothing is under way. */
static struct {
	uint32_t context, type;
} fences[WIRE_SLOTS];

/* The library calls with locks of its own held: ours is not held when it is called. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void over(uint32_t slot, uint32_t type)
{
	fences[slot].type = 0;
	render_tell(slot, type);
}

void render_ring_begin(uint32_t context, uint32_t ring, uint32_t slot, uint32_t type)
{
	if (slot >= WIRE_SLOTS)
		return;		/* nobody waits for that one */
	pthread_mutex_lock(&lock);
	fences[slot].context = context;
	fences[slot].type = type;
	pthread_mutex_unlock(&lock);
	if (render_draw.ring_fence(context, ring, slot))
		return;
	pthread_mutex_lock(&lock);
	if (fences[slot].type)
		over(slot, VIRTIO_GPU_RESP_ERR_UNSPEC);
	pthread_mutex_unlock(&lock);
}

void render_ring_fenced(uint32_t slot)
{
	pthread_mutex_lock(&lock);
	if (slot < WIRE_SLOTS && fences[slot].type)
		over(slot, fences[slot].type);
	pthread_mutex_unlock(&lock);
}

void render_rings_gone(uint32_t context)
{
	pthread_mutex_lock(&lock);
	for (uint32_t slot = 0; slot < WIRE_SLOTS; slot++) {
		if (fences[slot].context == context && fences[slot].type)
			over(slot, fences[slot].type);
	}
	pthread_mutex_unlock(&lock);
}
