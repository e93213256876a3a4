/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fdlink.h - a port that is a file of frames: a tap with its queues, or a socket of packets.
 *
 * Theory of operation
 *   Each queue is a file and a source of its own, which runs on the worker of the pair of rings it serves. What a guest
 *   sends is written from where it lies, one frame per system call; nothing waits: a file that is full drops the frame.
 *   The other way frames are read straight into the guest's buffers where the peer is a card that takes them as they
 *   are, and into private memory where it is anything else. Without buffers nothing is read, so that the kernel's queue
 *   fills up and the sender notices; the card calls the queue's feeder when there are some.
 *
 *   Frames of pair p belong to queue p modulo queues; pairs of the same queue are on one worker.
 */
#ifndef NET_FDLINK_H
#define NET_FDLINK_H

#include "devices/net/csrc/net.h"

/* cffi:begin */
enum {
	NET_FD_HEADER = 12,		/* bytes of virtio header in front of each frame of a tap */
	NET_TAP_UNKNOWN = -1,		/* net_fdlink_error(): the file ended, without an errno */
};

struct net_fdlink_config {
	uint32_t queues;	/* 1 to NET_PAIRS_MAX */
	uint32_t header;	/* NET_FD_HEADER: in front of each frame, as a tap's; 0: none */
	uint32_t takes;		/* NET_TAKES_* */
	uint32_t gives;		/* NET_TAKES_*: what frames from sockets with headers may need */
	uint32_t whole_tcp;	/* 1: large TCP segments are taken uncut, with their checksum filled in */
	uint32_t max_frame;	/* bytes of the largest frame that is read, unless it may be given uncut; 0: any */
	int32_t fds[16];	/* non-blocking; not owned, and open until net_port_free() */
};

/* NULL without memory. Freed by net_port_free(). */
struct net_port *net_fdlink_new(const struct net_fdlink_config *config);
/*
 * While parked, the port plugged in. What net_fdlink_start() returns is for the worker; remove it before _stop(). @queue
 * serves pair @queue of the peer, if that is a card. @offload: a tap is to give what the peer takes unfinished. NULL: no
 * such queue.
 */
struct ring_source *net_fdlink_start(struct net_port *port, uint32_t queue, int offload);
void net_fdlink_stop(struct net_port *port, uint32_t queue);
/* While parked: of the largest frame from now on. */
void net_fdlink_set_max_frame(struct net_port *port, uint32_t bytes);
/* Why queue @queue is not read any more: errno, NET_TAP_UNKNOWN, or 0: it is. Any thread. */
int net_fdlink_error(const struct net_port *port, uint32_t queue);

/* tap.c: let the tap @fd give frames that need @takes, as far as its kernel can. What it may give now, or -errno. */
int net_tap_set_offload(int fd, uint32_t takes);
/* What it takes from us: all the kernel knows. @fd's offloads are off afterwards. */
uint32_t net_tap_takes(int fd);
/* cffi:end */

#endif
