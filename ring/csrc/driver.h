/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver.h - the driver side of a virtqueue, split and packed: for our front-end, tests, load generators.
 *
 * It trusts the device no more than a device trusts it: ids and lengths that come back are checked.
 * One thread uses a ring at a time. No allocation, lock or syscall after ring_drv_new().
 */
#ifndef RING_DRIVER_H
#define RING_DRIVER_H

#include "ring/csrc/ring.h"

/* cffi:begin */
enum { RING_DRV_INDIRECT_MAX = 16 };	/* descriptors of one indirect table, unless ring_drv_new() is told otherwise */

struct ring_drv;

struct ring_drv_layout {
	uint64_t desc;		/* offsets from the start of the area, bytes */
	uint64_t avail;		/* packed: driver event suppression */
	uint64_t used;		/* packed: device event suppression */
	uint64_t indirect;	/* size x indirect_max x 16 bytes; only if bit 28 is among the features */
	uint64_t bytes;		/* whole area */
};

struct ring_drv_buf {
	uint64_t addr;		/* gpa or iova */
	uint32_t len;		/* bytes */
	uint32_t pad;
};

struct ring_drv_used {
	uint64_t token;		/* given to ring_drv_add() */
	uint32_t len;		/* bytes the device says it wrote */
	uint32_t id;
};

struct ring_drv_taken {
	uint32_t id;
	uint32_t len;		/* as above */
};

/* 0 or -RING_E_SIZE. @indirect_max 0: RING_DRV_INDIRECT_MAX. The area wants 4096-byte alignment. */
int ring_drv_layout(uint32_t size, uint64_t features, uint32_t indirect_max, struct ring_drv_layout *out);
/*
 * A ring in @area (shared, zeroed here) that the device sees at @gpa. @features as negotiated (28, 29, 34 matter).
 * @base: start index as SET_VRING_BASE encodes it (0 for split, 0x80008000 for packed from the beginning).
 */
struct ring_drv *ring_drv_new(void *area, uint64_t gpa, uint32_t size, uint64_t features, uint32_t indirect_max,
			      uint32_t base);
void ring_drv_free(struct ring_drv *drv);
/*
 * From now on descriptors of the split ring and of tables that would be written with what they hold already are left
 * alone. For load generators, before the first ring_drv_add(): nobody else may write there. 0, -ENOMEM.
 */
int ring_drv_remember(struct ring_drv *drv);
/*
 * Add a request: @nr_out readable then @nr_in writable buffers. @indirect 1: in an indirect table. Not yet visible.
 * Returns the id, -ENOSPC, -EINVAL.
 */
int ring_drv_add(struct ring_drv *drv, const struct ring_drv_buf *bufs, uint32_t nr_out, uint32_t nr_in,
		 uint64_t token, int indirect);
/* Make added requests visible. Returns 1 if the device wants a kick (write 8 bytes to the kick fd then). */
int ring_drv_publish(struct ring_drv *drv);
/* Up to @max completed requests; -RING_E_ID / -RING_E_DUP if the device returned nonsense. */
int ring_drv_poll(struct ring_drv *drv, struct ring_drv_used *out, int max);
/*
 * A prepared ring, for load generators: request @id is one buffer, always the same, of @len bytes at @gpa + @id *
 * @stride, ids from 0 to @nr - 1. From now on ring_drv_post() and ring_drv_take() stand for ring_drv_add() and
 * ring_drv_poll(), which may not be mixed with them. Before the first request; not with IN_ORDER. 0, -EINVAL, -ENOMEM.
 */
int ring_drv_prepare(struct ring_drv *drv, uint64_t gpa, uint64_t stride, uint32_t len, uint32_t nr, int writable);
/* Add requests @ids, none of which is under way. Not yet visible. 0, -ENOSPC or -EINVAL: nothing is added. */
int ring_drv_post(struct ring_drv *drv, const uint16_t *ids, uint32_t nr);
/* As ring_drv_poll(). */
int ring_drv_take(struct ring_drv *drv, struct ring_drv_taken *out, int max);
void ring_drv_calls_off(struct ring_drv *drv);
/* Ask for notifications; 1 if completions are there already. */
int ring_drv_calls_on(struct ring_drv *drv);
uint32_t ring_drv_free_slots(const struct ring_drv *drv);	/* descriptors free */
uint32_t ring_drv_pending(const struct ring_drv *drv);		/* requests not yet returned */
/* cffi:end */

#endif
