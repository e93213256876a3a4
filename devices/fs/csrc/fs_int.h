/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fs_int.h - inside of virtio-fs: a request, the queue it came from, the server that answers it.
 *
 * The way of a request
 *   poll pops a batch; fs_decode() looks at a chain once and fills a slot (struct fs_req): a private copy of everything
 *   small (header, arguments, names), pieces of guest memory for everything large. The server's handle() answers on the
 *   worker; what may wait says FS_SLOW and is called again on a thread of the pool, which posts the result back. The reply
 *   is written by the worker, always: out header, then req->out or what lies in the chain's room already.
 *
 *   Requests of one file system run on many workers and pool threads at once: servers guard what they share.
 *
 * Rules
 * - Nothing of a request is read from guest memory twice. Names hold no NUL but the last; what they may hold besides is
 *   the server's business, as is the meaning of a nodeid or fh, which are any number.
 * - Data pieces are handed to system calls in place, never parsed.
 */
#ifndef FS_INT_H
#define FS_INT_H

#include <stdbool.h>

#include "devices/fs/csrc/fs.h"
#include "devices/fs/csrc/fuse.h"
#include "ring/csrc/shm.h"
#include "ring/csrc/worker.h"

#define fs_likely(x) __builtin_expect(!!(x), 1)
#define fs_unlikely(x) __builtin_expect(!!(x), 0)

enum {
	FS_BATCH = 32,			/* chains popped at once */
	FS_NAME_MAX = 255,
	FS_PATH_MAX = 4096,		/* target of a symbolic link, with its NUL */
	FS_OUT_MAX = 256,		/* bytes of a small reply */
	FS_ARG_MAX = 128,		/* bytes of a request's fixed arguments */
	FS_TEXT_MAX = 2 * FS_PATH_MAX,	/* names and small values of a request */
	FS_GROUPS_MAX = 32,		/* supplementary groups of a request */

	/* what handle() returns besides bytes of the reply and -errno */
	FS_SLOW = -10001,		/* may wait: call it again on a thread of the pool */
	FS_PENDING = -10002,		/* fs_req_done() follows, on the worker's thread */
	FS_NONE = -10003,		/* there is no reply to it */
	FS_AGAIN = -10004,		/* call it again at req->again_ns (a lock that somebody else holds) */
};

struct fs_queue;
struct fs_server;
struct fs_req;

struct fs_server_ops {
	/*
	 * Answer @req. @pool: on a thread of the pool, where it may wait and must not say FS_SLOW. Bytes of the reply after
	 * the out header (they lie in @req->out, or with @req->in_place in the chain's room already), -errno, or FS_*.
	 */
	int (*handle)(struct fs_server *server, struct fs_req *req, bool pool);
	/*
	 * The front-end's session ended or FUSE_DESTROY came, or another INIT: nothing is in flight. Forget all inodes but the root, close all
	 * files, let go of all locks.
	 */
	void (*reset)(struct fs_server *server);
	void (*free)(struct fs_server *server);
};

struct fs_server {
	const struct fs_server_ops *ops;
	uint64_t can;			/* FUSE INIT flags that it implements, of FS_CAN (init.c) */
	uint32_t minor;			/* negotiated; 0: no INIT yet */
	uint64_t flags;			/* negotiated */
	uint32_t max_write;		/* bytes, negotiated */
};

/* A request. Slots belong to a queue. */
struct fs_req {
	struct ring_io io;		/* for servers on io_uring */
	struct ring_task task;		/* back from the pool, and for servers on threads of their own */
	struct fs_req *next;		/* free, waiting, in the pool: one list at a time */
	struct fs_queue *q;
	struct fs_server *server;
	struct ring_chain *chain;
	uint64_t start_ticks;
	uint64_t again_ns;		/* CLOCK_MONOTONIC, with FS_AGAIN; kept by the server between calls */
	int result;			/* of a call on the pool */
	bool in_place;			/* the reply's bytes lie in @room */
	bool cancelled;			/* queue stops, __atomic: a call that waits gives up with -EINTR */

	/* decoded */
	struct fuse_in_header in;
	union {
		uint8_t bytes[FS_ARG_MAX];	/* zero beyond what the guest sent */
		uint64_t align;
	} arg;				/* struct fuse_*_in of the opcode, see FS_ARG() */
	const char *name;		/* NUL-terminated, in @text; NULL: the opcode has none */
	const char *name2;
	uint32_t name_len, name2_len;	/* without the NUL */
	const struct ring_iov *data;	/* pieces after arguments and names: WRITE, SETXATTR's value, BATCH_FORGET's table … */
	uint32_t nr_data;
	uint32_t data_len;		/* exactly what the opcode's arguments say */
	const struct ring_iov *room;	/* writable pieces after the out header */
	uint32_t nr_room;
	uint32_t room_len;		/* bytes; never below what the opcode's reply needs */
	uint32_t nr_groups;		/* FUSE_CREATE_SUPP_GROUP */
	uint32_t groups[FS_GROUPS_MAX];
	bool secctx;			/* a security context came along: @secctx_name, @secctx_value lie in @text */
	const char *secctx_name;
	const uint8_t *secctx_value;
	uint32_t secctx_len;

	union {
		uint8_t out[FS_OUT_MAX];	/* a small reply */
		uint64_t out_align;
	};
	/* pieces that were cut: room and data share pieces with the headers */
	struct ring_iov cut[4];
	char *text;			/* FS_TEXT_MAX bytes, the slot's */
};

/* The fixed arguments as what the opcode has. */
#define FS_ARG(req, type) ((const struct type *)(const void *)(req)->arg.bytes)
/* The small reply. */
#define FS_OUT(req, type) ((struct type *)(void *)(req)->out)

/* --- decode.c -------------------------------------------------------------------------------------------------- */

struct fs_op_stats;

/*
 * Fill @req from @chain: 0, or what the guest is told: -ENOSYS (unknown), -EINVAL (lengths that do not fit), -ENAMETOOLONG, -EIO (no room for
 * a header). @req->in is valid if the header was there (in.unique is 0 otherwise). -EPROTO: not even room for an out header and not an opcode without reply.
 */
int fs_decode(struct fs_req *req, struct ring_chain *chain);
/* Write the reply (@result: bytes or -errno) into the chain's room. Returns the bytes written, for ring_vq_push(). */
uint32_t fs_reply(struct fs_req *req, int result);

/* --- queue.c --------------------------------------------------------------------------------------------------- */

/* On the worker's thread, after FS_PENDING: @result as from handle(). */
void fs_req_done(struct fs_req *req, int result);

/* --- init.c ---------------------------------------------------------------------------------------------------- */

/* FUSE_INIT: negotiate with what the server can. Fills FS_OUT(fuse_init_out). */
int fs_init(struct fs_server *server, struct fs_req *req);

#endif
