/* SPDX-License-Identifier: Apache-2.0 */
/*
 * capture.h - what passes a port, written to pcapng files.
 *
 * A capture owns a file (or a ring of them) and a thread; each port it watches is an interface of it, with a ring of
 * its own that workers fill and the thread empties. Workers never wait: what finds the ring full is counted as lost.
 */
#ifndef NET_CAPTURE_H
#define NET_CAPTURE_H

#include "devices/net/csrc/net.h"

/* cffi:begin */
enum {
	NET_CAPTURE_RING_MIN = 262144,	/* bytes: several of the largest frames */
	NET_CAPTURE_RING_MAX = 1073741824,
	NET_CAPTURE_NAME = 64,
	NET_CAPTURE_PATH = 3072,
};

struct net_capture;		/* one interface: what net_port.capture points to */
struct net_capture_file;

struct net_capture_options {
	uint32_t snaplen;	/* bytes kept of a frame; 0: all */
	uint32_t files;		/* with @file_bytes: how many are kept; 0: all */
	uint64_t file_bytes;	/* a file this long is followed by a new one; 0: one file */
	uint32_t ring_bytes;	/* per interface, a power of two */
	uint32_t pad;
};

struct net_capture_stats {
	uint64_t frames;	/* written, or about to be */
	uint64_t bytes;		/* of them, as they were on the wire */
	uint64_t lost;		/* the ring was full, or writing failed */
};

struct net_capture_file_stats {
	uint64_t bytes;		/* written */
	uint64_t files;		/* begun */
	int32_t error;		/* errno that ended it; 0: none */
};

/*
 * New file @path; with @file_bytes its name gets a number before its suffix, which counts from 1. Starts the thread.
 * NULL: *@error is an errno.
 */
struct net_capture_file *net_capture_open(const char *path, const struct net_capture_options *options, int *error);
/* Only without interfaces in use by ports. Writes what is left; joins the thread. errno that ended it, or 0. */
int net_capture_close(struct net_capture_file *file);
/* An interface @name, captured from now on. NULL: no memory. */
struct net_capture *net_capture_add(struct net_capture_file *file, const char *name);
/* No port has it any more. What is in its ring is still written. */
void net_capture_remove(struct net_capture *c);
/* Any thread. */
void net_capture_set_on(struct net_capture *c, int on);
void net_capture_stats(const struct net_capture *c, struct net_capture_stats *out);
void net_capture_file_stats(const struct net_capture_file *file, struct net_capture_file_stats *out);
/* Returns once all that was captured before is in the file (or writing failed). Any thread but the worker's. */
void net_capture_sync(struct net_capture_file *file);
/* While the port's workers are parked. NULL: none. */
void net_port_set_capture(struct net_port *port, struct net_capture *c);
/* cffi:end */

#endif
