/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net.h - virtio-net in C, as Python sees it: cards, ports, links. Theory in net_int.h.
 */
#ifndef NET_H
#define NET_H

#include "ring/csrc/ring.h"
#include "ring/csrc/worker.h"

/* cffi:begin */
enum {
	NET_PAIRS_MAX = 16,
	NET_FRAME_BYTES_MAX = 65557,	/* the largest segment to be cut, with two tags */

	/* frames a port takes unfinished */
	NET_TAKES_CSUM = 1,
	NET_TAKES_TSO4 = 2,
	NET_TAKES_TSO6 = 4,
	NET_TAKES_ECN = 8,
	NET_TAKES_USO = 16,
	NET_TAKES_UFO = 32,

	/* why a frame was dropped: index into net_port_stats.dropped */
	NET_DROP_NONE = 0,
	NET_DROP_RUNT = 1,	/* shorter than header and Ethernet addresses */
	NET_DROP_GIANT = 2,	/* longer than any frame may be */
	NET_DROP_HEADER = 3,	/* checksum or segment fields that are not true, or were not negotiated */
	NET_DROP_NO_BUFFER = 4,	/* the receiver offered none */
	NET_DROP_TOO_SMALL = 5,	/* its buffers do not hold the frame */
	NET_DROP_DOWN = 6,	/* link down, queue not running or not enabled */
	NET_DROP_NO_PEER = 7,	/* plugged into nothing */
	NET_DROP_FULL = 8,	/* tap, NAT: their queue is full */
	NET_DROP_ERROR = 9,	/* tap, NAT: the system refused it */
	NET_DROP_FILTER = 10,	/* the driver's address, VLAN or mode filter; a switch's pinned address */
	NET_DROP_VLAN = 11,	/* a tag that the port does not carry */
	NET_DROP_LIMIT = 12,	/* rate limits; flood limits */
	NET_DROP_ISOLATED = 13,	/* switch: these two ports do not talk; nowhere to flood to */
	NET_DROPS = 16,
};

struct net_dev;		/* a guest's card; its port is what it is plugged in by */
struct net_port;

/* From the port's owner's point of view: in is what was delivered to it, out is what it sent. Counters only. */
struct net_port_stats {
	uint64_t in_frames;
	uint64_t in_bytes;
	uint64_t out_frames;
	uint64_t out_bytes;
	uint64_t in_segments;	/* frames made by cutting for it */
	uint64_t in_checksums;	/* filled in for it */
	uint64_t dropped[16];	/* NET_DROPS: on the way to it, and what it sent that went nowhere */
};

/* While the worker of both is parked, or before they run. Either may be NULL: unplugged. Not owned. */
void net_port_connect(struct net_port *a, struct net_port *b);
void net_port_set_down(struct net_port *port, int down);	/* any thread */
void net_port_stats(const struct net_port *port, struct net_port_stats *out);	/* any thread */
/* Only when nothing is connected to it and no source of it runs. */
void net_port_free(struct net_port *port);

/* A guest's card. Freed by net_port_free(net_dev_port()), after its queues. NULL without memory. */
struct net_dev *net_dev_new(uint32_t pairs);
struct net_port *net_dev_port(struct net_dev *dev);
/* While no queue of it runs: what the driver acked, all bits. */
void net_dev_set_features(struct net_dev *dev, uint64_t features);
/* 1: all its pairs are on one worker, so a frame may be given to any of them. Before its queues run. */
void net_dev_set_shared(struct net_dev *dev, int shared);

/* Any thread. Forget what the driver set by its control queue; the card's own address is @mac, 6 bytes. */
void net_dev_reset(struct net_dev *dev, const uint8_t *mac);
/* Any thread. The address it has now: the driver may have set another. */
void net_dev_set_mac(struct net_dev *dev, const uint8_t *mac);
void net_dev_get_mac(const struct net_dev *dev, uint8_t *mac);
/* Any thread. The driver is asked to announce itself, until it says by its control queue that it did. */
void net_dev_set_announce(struct net_dev *dev, int on);
int net_dev_announce(const struct net_dev *dev);
/*
 * Control thread. Tell the network that @mac (6 bytes) is here now, by a RARP frame to the peer from the worker. 0,
 * -ENOTCONN: no ring runs, -ENOMEM.
 */
int net_dev_rarp(struct net_dev *dev, const uint8_t *mac);

/*
 * What a worker polls for @vq, ring @index of the card: 2i receives, 2i + 1 transmits, the one after the last pair that
 * the driver knows about is the control queue, if it acked one. With the worker parked; NULL
 * without memory or for an index it does not have.
 */
struct ring_source *net_queue_new(struct net_dev *dev, struct ring_vq *vq, uint32_t index);
/* With the worker parked, after the source was removed from it. 0, or -EBUSY: it has not been. */
int net_queue_free(struct ring_source *source);
/*
 * While parked. A receive ring that is not enabled gets no frames; a transmit ring takes what comes and drops it
 * (vhost-user, "Ring states").
 */
void net_queue_set_enabled(struct ring_source *source, int on);

/* Links for measuring: swallow everything; give everything back as it is; offer frames as fast as they are taken. */
struct net_port *net_null_new(void);
struct net_port *net_echo_new(void);
struct net_port *net_source_new(uint32_t frame_bytes);
/* While parked: pair @pair of @dev gets frames of @port, a source; until net_source_stop(). 0 or -errno. */
int net_source_start(struct net_port *port, struct net_dev *dev, uint32_t pair);
void net_source_stop(struct net_port *port, struct net_dev *dev, uint32_t pair);
/* cffi:end */

#endif
