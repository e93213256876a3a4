/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nbd.h - a store at an NBD server, through libnbd's asynchronous calls.
 *
 * Theory of operation
 *   Each connection is a thread of its own with its own libnbd handle. A queue sends its requests to one of them (queue
 *   number modulo connections; more than one only where the server allows it) over a lock-free stack, and the thread
 *   sends completions back to the queue's worker with post(). So workers allocate nothing, take no lock, and never
 *   wait for a name server, a TLS handshake or a full socket.
 *
 *   A lost connection is opened again with growing pauses. What was under way is sent once more: reads, writes of the
 *   same bytes, zeros, discards and flushes all may be repeated. After reconnect_ms without a server requests fail, at
 *   once, until it is back.
 *
 * Threads: what is marked "any" may be called from any thread while the store exists.
 */
#ifndef BLK_NBD_H
#define BLK_NBD_H

#include "devices/blk/csrc/blk.h"

/* cffi:begin */
enum {
	BLK_NBD_TEXT = 400,

	/* how far opening came */
	BLK_NBD_AT_SETUP = 0,		/* threads, memory */
	BLK_NBD_AT_URI = 1,
	BLK_NBD_AT_CONNECT = 2,
	BLK_NBD_AT_HANDSHAKE = 3,	/* the export, TLS */
};

struct blk_nbd_config {
	const char *uri;
	uint32_t read_only;	/* 1: nothing is ever written, whatever the server allows */
	uint32_t connections;	/* at most, 1..BLK_NBD_CONNECTIONS_MAX */
	uint32_t connect_ms;	/* how long one attempt may take */
	uint32_t reconnect_ms;	/* how long requests wait for a lost server */
	int news_fd;		/* eventfd, written when a connection is lost or back; not owned; -1: none */
};

/* Of the export, as the server told at the first connection. */
struct blk_nbd_info {
	uint64_t size;		/* bytes */
	uint32_t block_min;	/* bytes, 1: any */
	uint32_t block_preferred;
	uint32_t block_max;	/* of one command's data */
	uint32_t read_only;
	uint32_t can_flush, can_fua, can_trim, can_zero, can_multi_conn;
	uint32_t tls;
	uint32_t rotational;
	uint32_t connections;	/* opened */
};

struct blk_nbd_failure {
	int at;			/* BLK_NBD_AT_* */
	int code;		/* errno, 0: none known */
	char text[400];		/* libnbd's words */
};

struct blk_nbd_status {
	uint32_t connections;
	uint32_t connected;
	uint32_t given_up;	/* connections whose requests fail at once */
	uint32_t pad;
	uint64_t losses;	/* connections lost */
	uint64_t reconnects;
	uint64_t replayed;	/* requests sent again */
	uint64_t failed;	/* requests that failed for want of a server */
	uint64_t commands;	/* sent to the server */
	uint64_t bounced;	/* requests whose pieces went through one buffer */
	char text[400];		/* why the last connection was lost */
};

/*
 * Connect, and start the threads. NULL: @failure says why. Takes up to connect_ms.
 * blk_store_free() ends the threads and closes the connections.
 */
struct blk_store *blk_nbd_open(const struct blk_nbd_config *config, struct blk_nbd_info *info,
			       struct blk_nbd_failure *failure);
/* any */
void blk_nbd_status(const struct blk_store *store, struct blk_nbd_status *out);
/* any but a worker's: make durable what was written, and wait for it. 0 or -errno. Waits as requests do. */
int blk_nbd_sync(struct blk_store *store);
/* cffi:end */

#define BLK_NBD_CONNECTIONS_MAX 16

#endif
