/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nbd_int.h - inside of the NBD store: between nbd.c (the store, requests) and nbd_conn.c (one connection).
 */
#ifndef BLK_NBD_INT_H
#define BLK_NBD_INT_H

#include <pthread.h>

#include <libnbd.h>

#include "devices/blk/csrc/blk_int.h"
#include "devices/blk/csrc/nbd.h"

enum {
	NBD_BUFFER_BYTES = 512 * 1024,
	NBD_BUFFERS = 32,		/* per connection */
	NBD_SMALL = 16 * 1024,		/* mean piece below which pieces go through one buffer */
	NBD_COMMANDS = 64,		/* of one round of a request */
	NBD_ATTEMPTS = 8,		/* connections a request may see die before it is to blame */
	NBD_RANGE = 1 << 30,		/* bytes of one trim or zero command */
	NBD_DATA = 32 << 20,		/* bytes of one read or write, where the server does not say */
	NBD_BACKOFF_MIN_MS = 50,
	NBD_BACKOFF_MAX_MS = 2000,
	NBD_GOODBYE_MS = 500,
};

struct nbd_store;
struct nbd_conn;

/*
 * A request at a connection. In exactly one of: @todo (nothing sent), @active (commands under way), @finished (all
 * commands answered), none (idle, in @spare).
 */
struct nbd_op {
	struct nbd_op *next, *prev;
	struct nbd_conn *conn;
	struct blk_req *req;
	uint64_t pos;		/* bytes of a range that are done */
	uint64_t round;		/* bytes of the commands under way */
	uint32_t pending;	/* commands under way */
	int error;		/* of the first that failed, errno */
	uint32_t attempts;	/* connections lost with it under way */
	bool flushing;		/* the data is written, its flush is under way */
	uint8_t *buffer;
};

struct nbd_list {
	struct nbd_op *first, *last;
};

enum nbd_state { NBD_DOWN, NBD_CONNECTING, NBD_UP };

struct nbd_conn {
	/* any thread */
	_Atomic(struct blk_req *) posted;	/* newest first, linked by scratch[0] */
	_Atomic int sleeping;
	_Atomic int up;				/* for the status */
	_Atomic int expired;
	int wake_fd;

	/* its thread's (before that: the opener's) */
	_Alignas(64) struct nbd_store *store;
	struct nbd_handle *h;
	enum nbd_state state;
	int at;			/* BLK_NBD_AT_*, of the attempt under way */
	uint64_t down_since_ns;	/* 0: up */
	uint64_t next_try_ns;	/* DOWN: when to connect */
	uint64_t until_ns;	/* CONNECTING: when to stop trying */
	uint32_t backoff_ms;
	bool told_lost;
	bool worked;		/* this connection has completed a command */
	bool failing;		/* the server said that it ends */
	struct nbd_list todo, active, finished;
	struct nbd_op *spare;
	uint8_t *buffer_mem;
	uint32_t nr_buffers;	/* free ones */
	uint8_t *buffers[NBD_BUFFERS];
	struct blk_nbd_failure failure;
	pthread_t thread;
	bool started;
};

struct nbd_store {
	struct blk_store store;	/* must be first */
	char *uri;
	struct blk_nbd_config config;
	struct blk_nbd_info info;
	_Atomic int stop;
	_Atomic uint64_t losses, reconnects, replayed, failed, commands, bounced;
	pthread_mutex_t lock;	/* of @text */
	char text[BLK_NBD_TEXT];
	uint32_t nr_conns;
	struct nbd_conn conns[];
};

/* nbd_conn.c: one connection. All on its thread, or before that on the opener's. */
void *nbd_conn_main(void *arg);
/* Connect and wait for it. 0, or -1: conn->failure. */
int nbd_conn_open(struct nbd_conn *conn);
void nbd_conn_close(struct nbd_conn *conn);
int nbd_conn_info(struct nbd_conn *conn, struct blk_nbd_info *info);
void nbd_conn_wake(struct nbd_conn *conn);

/* nbd_op.c: requests of a connection */
void nbd_ops_take(struct nbd_conn *conn);	/* posted -> todo */
void nbd_ops_send(struct nbd_conn *conn);	/* todo -> active */
void nbd_ops_settle(struct nbd_conn *conn);	/* finished -> back to their workers, or todo */
void nbd_ops_requeue(struct nbd_conn *conn);	/* the handle is gone: active -> todo */
void nbd_ops_fail(struct nbd_conn *conn);	/* todo -> back, failed */
void nbd_ops_free(struct nbd_conn *conn);

#endif
