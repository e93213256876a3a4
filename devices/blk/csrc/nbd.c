/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nbd.c - the NBD store as its disk sees it: opening, taking requests from workers, closing.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "devices/blk/csrc/nbd_int.h"
#include "ring/csrc/vq.h"

static struct nbd_store *nbd_of(struct blk_store *store)
{
	return (struct nbd_store *)(void *)store;
}

static void post(struct nbd_conn *conn, struct blk_req *req)
{
	struct blk_req *head = atomic_load_explicit(&conn->posted, memory_order_relaxed);

	do {
		req->scratch[0] = (uintptr_t)head;
	} while (!atomic_compare_exchange_weak(&conn->posted, &head, req));
	/* pairs with nbd_conn.c, wait_events(): either it sees the request, or we see that it sleeps */
	if (atomic_load(&conn->sleeping) && atomic_exchange(&conn->sleeping, 0))
		nbd_conn_wake(conn);
}

/* On a worker's thread. */
static int nbd_start(struct blk_store *store, struct blk_req *req)
{
	struct nbd_store *s = nbd_of(store);

	post(&s->conns[req->q->source.vq->index % s->nr_conns], req);
	return BLK_PENDING;
}

static void free_conn(struct nbd_conn *conn)
{
	nbd_conn_close(conn);
	nbd_ops_free(conn);
	if (conn->buffer_mem)
		munmap(conn->buffer_mem, (size_t)NBD_BUFFERS * NBD_BUFFER_BYTES);
	if (conn->wake_fd >= 0)
		close(conn->wake_fd);
}

static void nbd_free(struct blk_store *store)
{
	struct nbd_store *s = nbd_of(store);
	uint32_t i;

	atomic_store(&s->stop, 1);
	for (i = 0; i < s->nr_conns; i++)
		nbd_conn_wake(&s->conns[i]);
	for (i = 0; i < s->nr_conns; i++) {
		if (s->conns[i].started)
			pthread_join(s->conns[i].thread, NULL);
		free_conn(&s->conns[i]);
	}
	pthread_mutex_destroy(&s->lock);
	free(s->uri);
	free(s);
}

/* --- opening ---------------------------------------------------------------------------------------------------- */

static int make_conn(struct nbd_store *s, struct nbd_conn *conn)
{
	uint32_t i;

	conn->store = s;
	conn->backoff_ms = NBD_BACKOFF_MIN_MS;
	conn->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (conn->wake_fd < 0)
		return -errno;
	/* pages that no request ever used cost nothing */
	conn->buffer_mem = mmap(NULL, (size_t)NBD_BUFFERS * NBD_BUFFER_BYTES, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (conn->buffer_mem == MAP_FAILED) {
		conn->buffer_mem = NULL;
		return -ENOMEM;
	}
	for (i = 0; i < NBD_BUFFERS; i++)
		conn->buffers[i] = conn->buffer_mem + (size_t)(NBD_BUFFERS - 1 - i) * NBD_BUFFER_BYTES;
	conn->nr_buffers = NBD_BUFFERS;
	return 0;
}

static int start_thread(struct nbd_conn *conn)
{
	sigset_t all, before;
	int rc;

	/* signals are Python's; faults in guest memory must reach their handler */
	sigfillset(&all);
	sigdelset(&all, SIGBUS);
	sigdelset(&all, SIGSEGV);
	sigdelset(&all, SIGFPE);
	sigdelset(&all, SIGILL);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(&conn->thread, NULL, nbd_conn_main, conn);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (rc)
		return -rc;
	conn->started = true;
	pthread_setname_np(conn->thread, "vhost-nbd");
	return 0;
}

static void describe(struct nbd_store *s)
{
	static const struct blk_store_ops ops = { .start = nbd_start, .free = nbd_free };
	const struct blk_nbd_info *info = &s->info;

	s->store.ops = &ops;
	s->store.kind = BLK_INLINE_NO;
	s->store.io_align = info->block_min;
	s->store.mem_align = 1;
	if (!info->read_only && !s->config.read_only)
		s->store.can = BLK_CAN_WRITE | (info->can_flush ? BLK_CAN_FLUSH : 0u) |
			       (info->can_trim ? BLK_CAN_DISCARD : 0u) | (info->can_zero ? BLK_CAN_ZERO : 0u);
}

static struct nbd_store *new_store(const struct blk_nbd_config *config)
{
	size_t size = sizeof(struct nbd_store) + config->connections * sizeof(struct nbd_conn);
	struct nbd_store *s = aligned_alloc(64, (size + 63) / 64 * 64);
	uint32_t i;

	if (!s)
		return NULL;
	memset(s, 0, size);
	for (i = 0; i < config->connections; i++)
		s->conns[i].wake_fd = -1;
	s->config = *config;
	s->uri = strdup(config->uri);
	s->config.uri = s->uri;
	pthread_mutex_init(&s->lock, NULL);
	if (!s->uri) {
		nbd_free(&s->store);
		return NULL;
	}
	return s;
}

/* The first connection tells what the export is; the others, where allowed, are as many as the server takes. */
static int connect_all(struct nbd_store *s, struct blk_nbd_failure *failure)
{
	uint32_t want = s->config.connections;
	int rc;

	do {
		struct nbd_conn *conn = &s->conns[s->nr_conns];

		s->nr_conns++;
		rc = make_conn(s, conn);
		if (rc < 0) {
			failure->code = -rc;
			return rc;
		}
		if (nbd_conn_open(conn) < 0) {
			*failure = conn->failure;
			if (s->nr_conns == 1)
				return -EIO;
			free_conn(conn);
			s->nr_conns--;
			break;
		}
		if (s->nr_conns == 1 && nbd_conn_info(conn, &s->info) < 0) {
			*failure = conn->failure;
			return -EIO;
		}
	} while (s->nr_conns < want && s->info.can_multi_conn);
	s->info.connections = s->nr_conns;
	return 0;
}

struct blk_store *blk_nbd_open(const struct blk_nbd_config *config, struct blk_nbd_info *info,
			       struct blk_nbd_failure *failure)
{
	struct nbd_store *s;
	uint32_t i;
	int rc;

	memset(failure, 0, sizeof(*failure));
	failure->code = EINVAL;
	if (!config->connections || config->connections > BLK_NBD_CONNECTIONS_MAX)
		return NULL;
	failure->code = ENOMEM;
	s = new_store(config);
	if (!s)
		return NULL;
	if (connect_all(s, failure) < 0) {
		nbd_free(&s->store);
		return NULL;
	}
	describe(s);
	*info = s->info;
	for (i = 0; i < s->nr_conns; i++) {
		rc = start_thread(&s->conns[i]);
		if (rc < 0) {
			failure->at = BLK_NBD_AT_SETUP;
			failure->code = -rc;
			nbd_free(&s->store);
			return NULL;
		}
	}
	return &s->store;
}

/* --- while it runs ---------------------------------------------------------------------------------------------- */

/* A flush that no guest asked for. */
struct sync {
	struct blk_req req;	/* must be first; belongs to no queue */
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool over;
	int res;
};

/* On the connection's thread. */
static void sync_done(struct blk_req *req, int res)
{
	struct sync *sync = (struct sync *)(void *)req;

	pthread_mutex_lock(&sync->lock);
	sync->res = res;
	sync->over = true;
	pthread_cond_signal(&sync->cond);
	pthread_mutex_unlock(&sync->lock);
}

int blk_nbd_sync(struct blk_store *store)
{
	struct sync sync = { .req = { .sub = BLK_FLUSH, .done = sync_done },
			     .lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER };

	/* several connections are only used where a flush on one is a flush of all */
	post(&nbd_of(store)->conns[0], &sync.req);
	pthread_mutex_lock(&sync.lock);
	while (!sync.over)
		pthread_cond_wait(&sync.cond, &sync.lock);
	pthread_mutex_unlock(&sync.lock);
	pthread_cond_destroy(&sync.cond);
	pthread_mutex_destroy(&sync.lock);
	return sync.res;
}

void blk_nbd_status(const struct blk_store *store, struct blk_nbd_status *out)
{
	struct nbd_store *s = (struct nbd_store *)(uintptr_t)store;
	uint32_t i;

	memset(out, 0, sizeof(*out));
	out->connections = s->nr_conns;
	for (i = 0; i < s->nr_conns; i++) {
		out->connected += (uint32_t)atomic_load(&s->conns[i].up);
		out->given_up += (uint32_t)atomic_load(&s->conns[i].expired);
	}
	out->losses = atomic_load(&s->losses);
	out->reconnects = atomic_load(&s->reconnects);
	out->replayed = atomic_load(&s->replayed);
	out->failed = atomic_load(&s->failed);
	out->commands = atomic_load(&s->commands);
	out->bounced = atomic_load(&s->bounced);
	pthread_mutex_lock(&s->lock);
	memcpy(out->text, s->text, sizeof(out->text));
	pthread_mutex_unlock(&s->lock);
}
