/* SPDX-License-Identifier: Apache-2.0 */
/*
 * load.h - load generator for virtio-net: the guest's side of queue pairs at full speed, in one thread, without the GIL.
 *
 * A flow is where frames go out, where they come in, or both: an echo, or two cards with something between them. The
 * generator owns neither rings nor memory. A run ends after its time; what is under way then stays so and the next run
 * goes on with it: warm up, look at the clocks, measure, look again, drain.
 */
#ifndef NET_LOAD_H
#define NET_LOAD_H

#include "ring/csrc/loadgen.h"

/* cffi:begin */
enum {
	NET_LOAD_FLOWS = 64,
	NET_LOAD_BURST = 256,		/* frames taken or sent at once, at most */
	NET_LOAD_WINDOW = 16384,	/* frames of a flow under way, at most */
	NET_LOAD_HDR = 12,		/* virtio header with num_buffers (VIRTIO 1.3, 5.1.6) */
	NET_LOAD_FRAME_MIN = 60,
	NET_LOAD_FRAME_MAX = 65549,	/* an IP packet of 64 KiB less one, and Ethernet's header */

	NET_LOAD_E_BUFFERS = 16,	/* a kind of error, for first_error: num_buffers is not true */
};

struct net_load;

struct net_load_config {
	uint32_t frame_bytes;	/* of what is sent, from the destination address on */
	uint32_t rx_bytes;	/* of a receive buffer, virtio header included */
	uint32_t mergeable;
	uint32_t burst;		/* 1 to NET_LOAD_BURST */
	uint32_t window;	/* frames of a flow with both ends that are under way; 0: as many as fit */
	uint32_t gso_bytes;	/* not 0: TCP, to be cut into segments with as much payload */
	uint32_t poll;		/* 1: never sleep, no notifications */
	uint32_t verify;	/* every frame has contents of its own, which are compared */
	uint64_t rate;		/* frames/s over all flows, evenly spaced; 0: as fast as they go */
};

/* One end of a flow. The caller keeps all of it until net_load_free(). */
struct net_load_ring {
	struct ring_drv *drv;	/* NULL: the flow has no such end */
	void *mem;		/* @slots buffers, @stride apart */
	uint64_t gpa;
	uint64_t stride;	/* bytes, a multiple of 8 */
	uint32_t slots;		/* at most the ring's size */
	int kick_fd;
	int call_fd;
	uint32_t pad;
};

struct net_load_stats {
	struct gen_stats run;	/* done: frames from the device, of whatever origin; latencies of every eighth */
	uint64_t sent;		/* frames given to the device */
	uint64_t taken;		/* of them, those that the device has taken */
	uint64_t received_bytes;
	uint64_t foreign;	/* of what came, those that are none of ours */
	uint64_t lost;		/* did not come: later ones did, or nothing moved any more */
	uint64_t reordered;	/* came after a later one; copies too */
	uint64_t tx_batches;	/* times that frames were given to the device */
};

/* NULL without memory or if the configuration makes no sense. */
struct net_load *net_load_new(const struct net_load_config *config);
void net_load_free(struct net_load *load);
/*
 * Add a flow from @tx to @rx; either may be NULL. @macs: destination, then source address, 12 bytes. @announce: it
 * sends one frame per run, so that what is between the ends learns where @rx's partner is. 0, -ENOSPC, -ENOMEM, -EINVAL.
 */
int net_load_add_flow(struct net_load *load, const struct net_load_ring *tx, const struct net_load_ring *rx,
		      const uint8_t *macs, int announce);
/*
 * Drive the flows for @duration_ns, or until net_load_stop(), or as @mode says: GEN_RUN, or GEN_DRAIN until nothing
 * comes any more. Statistics start anew. 0; -ETIME if frames were not even taken when GEN_DRAIN's time was over; -EIO
 * once the device broke a ring.
 */
int net_load_run(struct net_load *load, uint64_t duration_ns, int mode);
/* From any thread. */
void net_load_stop(struct net_load *load);
/* Of the last run; the pointer stays valid until net_load_free(). */
const struct net_load_stats *net_load_stats(const struct net_load *load);
/* cffi:end */

#endif
