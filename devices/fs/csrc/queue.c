/* SPDX-License-Identifier: Apache-2.0 */
/*
 * queue.c - a queue as its worker runs it: requests in, answers out, and what is done while nothing else is.
 *
 * INIT and DESTROY change what all queues of a server look at. They hold the server: queues take nothing new, end what
 * waits, and say so in @busy; once all are quiet the one that holds it does its work and lets go.
 *
 * Requests that wait (FS_AGAIN) are asked again at their time by poll, for which the source's deadline is set. They end
 * with -EINTR when a FUSE_INTERRUPT names them, and with -EAGAIN when their queue stops: Linux would pass -EINTR on as an
 * error that no program knows. Where it is the process that ends, they are left to the next one, if there can be one.
 */
#include <stdlib.h>
#include <string.h>

#include "devices/fs/csrc/fs_int.h"

enum {
	HOLD_LOOK_NS = 200000,	/* between looks whether all queues are quiet, and whether they are held still */
	SHARE = 8,		/* requests answered between two looks whether the driver is to see them */
	AGAIN_MAX_NS = 20000000,	/* longest pause of a request that waits */
	AHEAD = 2,		/* requests whose pieces are asked for before they are looked at */
};

static inline struct fs_queue *queue_of(struct ring_source *source)
{
	return (struct fs_queue *)(void *)source;
}

/* --- answers ---------------------------------------------------------------------------------------------------- */

static inline uint32_t bucket(uint64_t ticks)
{
	uint32_t b;

	if (ticks <= 1u << FS_LATENCY_SHIFT)
		return 0;
	b = 64 - (uint32_t)__builtin_clzll(ticks - 1) - FS_LATENCY_SHIFT;
	return b < FS_LATENCY_BUCKETS ? b : FS_LATENCY_BUCKETS - 1;
}

static inline void took(struct fs_queue *q, uint32_t op, uint64_t start, uint64_t now)
{
	uint64_t ticks = now > start ? now - start : 0;	/* of another socket's counter */

	ring_count(&q->stats.ticks[op], ticks);
	ring_count(&q->stats.latency[op][bucket(ticks)], 1);
}

/* The driver is about to see what ended since the last time: the clock is read once for all of them. */
static inline void publish(struct fs_queue *q)
{
	uint64_t now = measure_ticks();
	uint32_t i;

	for (i = 0; i < q->nr_ended; i++)
		took(q, q->ended[i], q->came_ticks, now);
	q->nr_ended = 0;
	q->told = ring_vq_flush(q->source.vq);
}

static inline void account(struct fs_queue *q, const struct fs_req *req, int result)
{
	uint32_t op = req->shape ? req->in.opcode : 0;

	ring_count(&q->stats.requests[op], 1);
	if (fs_likely(req->start_ticks == q->came_ticks))
		q->ended[q->nr_ended++] = (uint8_t)op;
	else
		took(q, op, req->start_ticks, measure_ticks());
	if (fs_unlikely(result < 0 && result != FS_NONE))
		ring_count(&q->stats.errors[op], 1);
	else if (result > 0)
		ring_count(&q->stats.bytes_out, (uint64_t)result);
	if (req->data_len)
		ring_count(&q->stats.bytes_in, req->data_len);
}

static inline void finish(struct fs_queue *q, struct fs_req *req, int result)
{
	account(q, req, result);
	/* an INTERRUPT that came too early is answered, if there is room: the driver sends it again */
	if (fs_unlikely(req->shape & FS_SHAPE_SILENT && !(req->shape & FS_SHAPE_CORE && result == -EAGAIN)))
		result = FS_NONE;
	ring_vq_push(q->source.vq, req->chain, fs_reply(req, result));
	req->next = q->free;
	q->free = req;
	q->in_use--;
}

static inline void set_busy(struct fs_queue *q, uint32_t polls)
{
	atomic_store_explicit(&q->busy, q->in_use + polls, memory_order_release);
}

/* --- requests that wait ----------------------------------------------------------------------------------------- */

static void wants_cancel(struct fs_req *req)
{
	atomic_store(&req->cancel, 0);
	atomic_store(&req->waits, req->in.unique);
}

static void again(struct fs_queue *q, struct fs_req *req)
{
	uint64_t now = ring_now_ns();

	ring_count(&q->stats.again, 1);
	if (req->again_ns > now + AGAIN_MAX_NS)
		req->again_ns = now + AGAIN_MAX_NS;	/* interrupts are seen no sooner */
	req->next = NULL;
	*q->waiting_end = req;
	q->waiting_end = &req->next;
	if (!q->source.deadline_ns || req->again_ns < q->source.deadline_ns)
		q->source.deadline_ns = req->again_ns;
}

static void settle(struct fs_queue *q, struct fs_req *req, int result)
{
	switch (result) {
	case FS_SLOW:
		ring_count(&q->stats.slow, 1);
		if (!atomic_load_explicit(&req->waits, memory_order_relaxed))
			wants_cancel(req);
		fs_pool_put(q->server->pool, req);
		return;
	case FS_PENDING:
		return;
	case FS_AGAIN:
		if (!atomic_load_explicit(&req->waits, memory_order_relaxed))
			wants_cancel(req);
		again(q, req);
		return;
	default:
		if (atomic_load_explicit(&req->waits, memory_order_relaxed))
			atomic_store(&req->waits, 0);
		finish(q, req, result);
	}
}

void fs_req_done(struct fs_req *req, int result)
{
	struct fs_queue *q = req->q;

	/* nobody would ask it again */
	if (result == FS_AGAIN && (q->source.paused || ring_vq_state(q->source.vq) != RING_VQ_RUNNING))
		result = -EAGAIN;
	settle(q, req, result);
	set_busy(q, 0);
	if (result == FS_AGAIN)
		q->source.stalled = true;	/* the worker sets its clock only after a poll */
	ring_source_completed(&q->source);
}

static void back_from_pool(struct ring_task *task)
{
	struct fs_req *req = (struct fs_req *)(void *)((char *)task - offsetof(struct fs_req, task));

	fs_req_done(req, req->result);
}

/* --- one at a time ---------------------------------------------------------------------------------------------- */

static bool holds(const struct fs_server *server, const struct fs_req *req)
{
	return atomic_load(&server->holder) == req;
}

/* All other requests of all queues have ended. */
static bool quiet(struct fs_server *server, const struct fs_queue *mine)
{
	const struct fs_queue *q;
	bool yes = mine->in_use == 1;

	pthread_mutex_lock(&server->lock);
	for (q = server->queues; q && yes; q = q->next) {
		if (q != mine)
			yes = !atomic_load(&q->busy);
	}
	pthread_mutex_unlock(&server->lock);
	return yes;
}

/* End what waits under the number @unique, or all that waits (0). Returns how many. */
static uint32_t cancel(struct fs_server *server, uint64_t unique)
{
	struct fs_queue *q;
	uint32_t i, found = 0;

	pthread_mutex_lock(&server->lock);
	for (q = server->queues; q; q = q->next) {
		if (!atomic_load(&q->busy))
			continue;
		for (i = 0; i < q->depth; i++) {
			uint64_t waits = atomic_load_explicit(&q->reqs[i].waits, memory_order_relaxed);

			if (!waits || (unique && waits != unique))
				continue;
			atomic_store(&q->reqs[i].cancel, waits);
			found++;
		}
	}
	pthread_mutex_unlock(&server->lock);
	return found;
}

void fs_server_leave(struct fs_server *server)
{
	atomic_store(&server->leaving, true);
}

void fs_server_cancel(struct fs_server *server)
{
	cancel(server, 0);
}

/* INIT and DESTROY. */
static int alone(struct fs_queue *q, struct fs_req *req)
{
	struct fs_server *server = q->server;
	struct fs_req *nobody = NULL;
	int result = 0;

	req->again_ns = ring_now_ns() + HOLD_LOOK_NS;
	if (!holds(server, req)) {
		if (!atomic_compare_exchange_strong(&server->holder, &nobody, req))
			return FS_AGAIN;
		cancel(server, 0);	/* nobody waits for those any more */
	}
	if (!quiet(server, q))
		return FS_AGAIN;
	if (server->minor) {
		server->minor = 0;
		server->flags = 0;
		fs_server_settled(server);
		server->ops->reset(server);
	}
	if (req->in.opcode == FUSE_INIT) {
		result = fs_init(server, req);
		fs_server_settled(server);
	}
	atomic_store(&server->holder, NULL);
	return result;
}

static int rare(struct fs_queue *q, struct fs_req *req)
{
	struct fs_server *server = q->server;

	if (q->hiprio && !(req->shape & FS_SHAPE_HIPRIO))
		return -EIO;	/* VIRTIO 1.3, 5.11.6.1: nothing that waits */
	if (req->shape & FS_SHAPE_CORE) {
		if (req->in.opcode == FUSE_INTERRUPT) {
			uint64_t unique = FS_ARG(req, fuse_interrupt_in)->unique;

			return unique && !cancel(server, unique) ? -EAGAIN : 0;	/* it may be on its way */
		}
		return alone(q, req);
	}
	if (!server->minor)
		return -EIO;	/* nothing was agreed on yet */
	return server->ops->handle(server, req, false);
}

static inline int dispatch(struct fs_queue *q, struct fs_req *req)
{
	if (fs_unlikely(q->hiprio || req->shape & FS_SHAPE_CORE || !q->server->minor))
		return rare(q, req);
	return q->server->ops->handle(q->server, req, false);
}

/* --- poll ------------------------------------------------------------------------------------------------------- */

/* The queue stops, and another process answers @req: its chain stays in the inflight record. */
static bool leave(struct fs_queue *q, struct fs_req *req)
{
	if (!atomic_load(&q->server->leaving) || ring_vq_leave(q->source.vq, req->chain) < 0)
		return false;
	atomic_store(&req->waits, 0);
	req->next = q->free;
	q->free = req;
	q->in_use--;
	return true;
}

/* Ask those whose time has come; @error: end all but who holds the server. */
static void ask_again(struct fs_queue *q, int error)
{
	struct fs_req *req = q->waiting;
	uint64_t now = ring_now_ns();

	q->waiting = NULL;
	q->waiting_end = &q->waiting;
	q->source.deadline_ns = 0;
	while (req) {
		struct fs_req *next = req->next;
		bool holder = holds(q->server, req);
		bool gone;

		if (error == -EAGAIN && holder) {	/* the queue stops: whoever comes next may hold it */
			atomic_store(&q->server->holder, NULL);
			holder = false;
		}
		gone = fs_cancelled(req) && !holder;
		if (error == -EAGAIN && !gone && leave(q, req)) {
			req = next;
			continue;
		}
		if ((error && !holder) || gone) {
			ring_count(&q->stats.cancelled, 1);
			settle(q, req, gone ? -EINTR : error);
		} else if (req->again_ns <= now) {
			settle(q, req, dispatch(q, req));
		} else {
			again(q, req);
		}
		req = next;
	}
}

static void begin(struct fs_queue *q, struct ring_chain *chain, bool replay)
{
	struct fs_req *req = q->free;
	int result;

	q->free = req->next;
	q->in_use++;
	req->start_ticks = q->came_ticks;
	req->again_ns = 0;
	req->replay = replay;
	result = fs_decode(req, chain);
	if (fs_unlikely(result)) {
		if (result != -ENOSYS)
			ring_count(&q->stats.malformed, 1);
		finish(q, req, result == -EPROTO ? FS_NONE : result);
		return;
	}
	settle(q, req, dispatch(q, req));
}

/*
 * Arguments behind the header, room for the answer's header and for a short answer: the queue has asked for the first and last
 * pieces. What is written without being owned is waited for by the next system call's first locked instruction.
 */
static inline void expect(const struct ring_chain *chain)
{
	const struct ring_iov *in = chain->iov + chain->nr_out;

	if (chain->nr_out > 1)
		shm_prefetch(chain->iov[1].base);
	if (chain->nr_in)
		shm_prefetch_write(in->base);
	if (chain->nr_in > 1 && in[1].len > SHM_LINE) {
		shm_prefetch_write((SHM uint8_t *)in[1].base + SHM_LINE);
		if (in[1].len <= FS_OUT_MAX)
			shm_prefetch_write((SHM uint8_t *)in[1].base + in[1].len - 1);
	}
}

static int take_batch(struct fs_queue *q, int budget)
{
	struct ring_chain *chains[FS_BATCH];
	bool share = !q->told;
	int i, n, replays = 0;

	if (budget > FS_BATCH)
		budget = FS_BATCH;
	if ((uint32_t)budget > q->depth - q->in_use)
		budget = (int)(q->depth - q->in_use);
	if (!budget)
		return 0;
	if (fs_unlikely(q->replays)) {
		replays = (int)ring_vq_resubmits(q->source.vq);
		q->replays = replays;
	}
	n = ring_vq_pop(q->source.vq, chains, budget);
	if (n <= 0)
		return n;
	q->came_ticks = measure_ticks();
	for (i = 0; i < n && i < AHEAD; i++)
		expect(chains[i]);
	for (i = 0; i < n; i++) {
		if (share && i % SHARE == 0 && i)
			publish(q);
		if (i + AHEAD < n)
			expect(chains[i + AHEAD]);
		begin(q, chains[i], i < replays);
	}
	publish(q);
	q->came_ticks = 0;
	return n;
}

static int queue_poll(struct ring_source *source, int budget)
{
	struct fs_queue *q = queue_of(source);
	int n = 0;

	/* pairs with alone(): it sees that we are busy, or we see that it holds the server */
	atomic_store(&q->busy, q->in_use + 1);
	q->held = atomic_load(&q->server->holder) != NULL;
	source->deadline_ns = 0;
	if (fs_unlikely(q->waiting != NULL)) {
		bool stops = !budget || ring_vq_state(source->vq) != RING_VQ_RUNNING;

		ask_again(q, stops ? -EAGAIN : q->held ? -EINTR : 0);
		ring_vq_flush(source->vq);
		q->held = atomic_load(&q->server->holder) != NULL;
	}
	if (fs_unlikely(q->held)) {
		uint64_t look = ring_now_ns() + HOLD_LOOK_NS;

		if (!source->deadline_ns || look < source->deadline_ns)
			source->deadline_ns = look;
	} else if (budget) {
		n = take_batch(q, budget);
	}
	set_busy(q, 0);
	return n;
}

static void queue_flush(struct ring_source *source)
{
	queue_of(source)->told = ring_vq_flush(source->vq);
}

static int queue_arm(struct ring_source *source)
{
	struct fs_queue *q = queue_of(source);

	if (q->held)
		return 0;	/* chains may be there; the deadline says when they are taken */
	if (q->in_use == q->depth)
		return !q->waiting;	/* completions say when, or the deadline */
	return ring_vq_kicks_on(source->vq);
}

static const struct ring_source_ops queue_ops = {
	.poll = queue_poll,
	.flush = queue_flush,
	.arm = queue_arm,
};

/* --- set-up ----------------------------------------------------------------------------------------------------- */

static int make_slots(struct fs_queue *q)
{
	uint32_t i;

	q->reqs = calloc(q->depth, sizeof(*q->reqs));
	q->texts = calloc(q->depth, FS_TEXT_MAX);	/* touched where they are used: the newest free slot comes next */
	if (!q->reqs || !q->texts)
		return -ENOMEM;
	for (i = q->depth; i-- > 0;) {
		struct fs_req *req = &q->reqs[i];

		req->q = q;
		req->server = q->server;
		req->text = q->texts + (size_t)i * FS_TEXT_MAX;
		req->task.run = back_from_pool;
		req->next = q->free;
		q->free = req;
	}
	return 0;
}

static void free_queue(struct fs_queue *q)
{
	free(q->texts);
	free(q->reqs);
	free(q);
}

struct ring_source *fs_queue_new(struct fs_server *server, struct ring_vq *vq, uint32_t depth, int hiprio)
{
	struct fs_queue *q = ring_source_new(sizeof(*q), &queue_ops, vq);

	if (!q)
		return NULL;
	q->source.coalesce = true;
	q->server = server;
	q->depth = depth;
	q->hiprio = hiprio != 0;
	q->replays = true;
	q->waiting_end = &q->waiting;
	if (make_slots(q) < 0 || fs_pool_start(server->pool) < 0) {
		free_queue(q);
		return NULL;
	}
	atomic_store(&server->leaving, false);
	pthread_mutex_lock(&server->lock);
	q->next = server->queues;
	server->queues = q;
	pthread_mutex_unlock(&server->lock);
	return &q->source;
}

int fs_queue_free(struct ring_source *source)
{
	struct fs_queue *q, **at;

	if (!source)
		return 0;
	q = queue_of(source);
	if (source->worker || q->in_use)
		return -EBUSY;
	pthread_mutex_lock(&q->server->lock);
	for (at = &q->server->queues; *at; at = &(*at)->next) {
		if (*at == q) {
			*at = q->next;
			break;
		}
	}
	pthread_mutex_unlock(&q->server->lock);
	free_queue(q);
	return 0;
}

void fs_queue_stats(const struct ring_source *source, struct fs_stats *out)
{
	ring_stats_copy(out, &((const struct fs_queue *)(const void *)source)->stats, sizeof(*out));
}

double fs_tick_ns(void)
{
	return ring_tick_ns();
}
