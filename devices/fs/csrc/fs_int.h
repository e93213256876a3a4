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

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#include "devices/fs/csrc/fs.h"
#include "devices/fs/csrc/fuse.h"
#include "ring/csrc/shm.h"
#include "ring/csrc/stats.h"
#include "ring/csrc/worker.h"

#define fs_likely(x) __builtin_expect(!!(x), 1)
#define fs_unlikely(x) __builtin_expect(!!(x), 0)

enum {
	FS_BATCH = 32,			/* chains popped at once */
	FS_NAME_MAX = 255,
	FS_PATH_MAX = 4096,		/* target of a symbolic link, with its NUL */
	FS_OUT_MAX = 288,		/* bytes of a small reply: fuse_statx_out */
	FS_ARG_MAX = 128,		/* bytes of a request's fixed arguments */
	FS_TEXT_MAX = 2 * FS_PATH_MAX,	/* names and small values of a request */
	FS_GROUPS_MAX = 32,		/* supplementary groups of a request */

	/* what handle() returns besides bytes of the reply and -errno */
	FS_SLOW = -10001,		/* may wait: call it again on a thread of the pool */
	FS_PENDING = -10002,		/* fs_req_done() follows, on the worker's thread; from a pool's thread: its task is posted */
	FS_NONE = -10003,		/* there is no reply to it */
	FS_AGAIN = -10004,		/* call it again at req->again_ns (a lock that somebody else holds) */
};

struct fs_queue;
struct fs_pool;
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
	/* What INIT settled is something else now; may be NULL. */
	void (*settled)(struct fs_server *server);
};

struct fs_server {
	const struct fs_server_ops *ops;
	uint64_t can;			/* FUSE INIT flags that it implements, of FS_CAN (init.c) */
	uint64_t cannot;		/* of them, what this front-end rules out */
	uint32_t map_align;		/* log2 of what SETUPMAPPING's offsets are multiples of, with FUSE_MAP_ALIGNMENT */
	/* what INIT settled; changes only while nothing else is in flight */
	uint32_t minor;			/* negotiated; 0: no INIT yet */
	uint32_t max_write;		/* bytes */
	uint64_t flags;			/* FUSE_* of INIT */

	/* the core's */
	uint64_t offered;		/* INIT flags that the driver offered */
	uint32_t driver_minor;
	struct fs_pool *pool;
	_Atomic bool leaving;		/* the next process goes on with what waits; until a queue starts */
	_Atomic(struct fs_req *) holder;	/* it waits until all queues are quiet, and they take nothing new */
	pthread_mutex_t lock;		/* of @queues: when one comes or goes, and for what is rare */
	struct fs_queue *queues;
};

static inline void fs_server_settled(struct fs_server *server)
{
	if (server->ops->settled)
		server->ops->settled(server);
}

/* A server's own new() and free() call these. 0, -ENOMEM. */
int fs_server_init(struct fs_server *server, const struct fs_server_ops *ops, uint64_t can);
void fs_server_exit(struct fs_server *server);

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
	bool replay;			/* it was in flight when an earlier run ended, and may have been carried out */
	uint8_t shape;			/* FS_SHAPE_* of its opcode */
	uint8_t nr_cut;
	/* any thread, see fs_cancelled() */
	_Atomic uint64_t waits;		/* its unique, while it waits or is in the pool; else 0 */
	_Atomic uint64_t cancel;	/* the unique that is to give up */

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
	/*
	 * Writable pieces after the out header, for replies of any length (READ, READDIR, READLINK, GETXATTR …; the others
	 * have no pieces here), no more bytes than the guest asked for.
	 */
	const struct ring_iov *room;
	uint32_t nr_room;
	uint32_t room_len;		/* bytes; never below what the opcode's reply needs */
	uint32_t nr_groups;		/* FUSE_CREATE_SUPP_GROUP */
	uint32_t groups[FS_GROUPS_MAX];
	bool secctx;			/* a security context came along: @secctx_name, @secctx_value lie in @text */
	const char *secctx_name;
	const uint8_t *secctx_value;
	uint32_t secctx_len;

	struct fuse_out_header head;	/* the reply's; directly before @out */
	union {
		uint8_t out[FS_OUT_MAX];	/* a small reply */
		uint64_t out_align;
	};
	/* pieces of the chain that were cut to data or room, and as they were */
	struct ring_iov *cut[4];
	struct ring_iov whole[4];
	char *text;			/* FS_TEXT_MAX bytes, the slot's */
};

_Static_assert(offsetof(struct fs_req, out) == offsetof(struct fs_req, head) + sizeof(struct fuse_out_header),
	       "a small reply and its header are one piece");

/* The fixed arguments as what the opcode has. */
#define FS_ARG(req, type) ((const struct type *)(const void *)(req)->arg.bytes)
/* The small reply. */
#define FS_OUT(req, type) ((struct type *)(void *)(req)->out)

/* What opcodes are like. */
enum {
	FS_SHAPE_KNOWN = 1,
	FS_SHAPE_SILENT = 2,	/* no reply */
	FS_SHAPE_CORE = 4,	/* the core answers it: INIT, DESTROY, INTERRUPT */
	FS_SHAPE_ROOM = 8,	/* a reply of any length, in place */
	FS_SHAPE_EXT = 16,	/* makes a name: extensions may follow */
	FS_SHAPE_HIPRIO = 32,	/* may come by the queue of high priority */
};

/* What a worker polls. */
struct fs_queue {
	struct ring_source source;	/* must be first */
	struct fs_server *server;
	struct fs_req *free;
	struct fs_req *waiting;		/* FS_AGAIN, oldest first */
	struct fs_req **waiting_end;
	struct fs_req *reqs;
	char *texts;
	uint32_t depth;
	uint32_t in_use;		/* slots */
	bool hiprio;
	bool held;			/* something holds all queues of the server */
	bool told;			/* the driver wanted to be told of the last batch */
	bool replays;			/* requests of an earlier run may be left */
	uint8_t ended[FS_BATCH];	/* opcodes of what came with the batch, and is not published yet */
	uint32_t nr_ended;
	uint64_t came_ticks;		/* when the batch came; 0: there is none under way */
	/* any thread: slots in use, and one while it polls */
	_Alignas(64) _Atomic uint32_t busy;
	struct fs_queue *next;		/* under the server's lock */
	_Alignas(64) struct fs_stats stats;
};

/* --- decode.c -------------------------------------------------------------------------------------------------- */

/*
 * Fill @req (its @server and @text are set) from @chain: 0, or what the guest is told: -ENOSYS (unknown), -EINVAL
 * (lengths that do not fit), -ENAMETOOLONG, -E2BIG. -EPROTO: no header, or no room for an answer: nobody is told.
 * @req->in is valid if the header was there (all zeros otherwise).
 */
int fs_decode(struct fs_req *req, struct ring_chain *chain);
/* Write the reply (@result: bytes, -errno or FS_NONE) into the chain's room. Returns the bytes written, for ring_vq_push(). */
uint32_t fs_reply(struct fs_req *req, int result);

/* --- queue.c --------------------------------------------------------------------------------------------------- */

/* On the worker's thread, after FS_PENDING: @result as from handle(). */
void fs_req_done(struct fs_req *req, int result);

/* Any thread: whoever waits for something on behalf of @req is to give up, with -EINTR. */
static inline bool fs_cancelled(const struct fs_req *req)
{
	return fs_unlikely(atomic_load_explicit(&req->cancel, memory_order_relaxed) == req->in.unique);
}

/* --- init.c ---------------------------------------------------------------------------------------------------- */

/* FUSE_INIT: negotiate with what the server can. Fills FS_OUT(fuse_init_out); bytes of it, or -errno. */
int fs_init(struct fs_server *server, struct fs_req *req);
/* Flags that can be agreed on. */
uint64_t fs_flags(const struct fs_server *server);

/* --- pool.c ---------------------------------------------------------------------------------------------------- */

/* NULL without memory. */
struct fs_pool *fs_pool_new(void);
/* Not on a worker: see that it has a thread, which makes more when they are needed. 0, -EAGAIN. */
int fs_pool_start(struct fs_pool *pool);
/* Nothing is in it. Waits for its threads to end. */
void fs_pool_free(struct fs_pool *pool);
/* any */
void fs_pool_set_max(struct fs_pool *pool, uint32_t max);
void fs_pool_counts(struct fs_pool *pool, uint32_t *threads, uint32_t *waiting, uint32_t *max);
/* A worker's thread: @req goes to handle(…, true); its task is posted to the worker afterwards. Takes no lock. */
void fs_pool_put(struct fs_pool *pool, struct fs_req *req);

#endif
