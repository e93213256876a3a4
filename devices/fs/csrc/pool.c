/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool.c - threads for requests that may wait for a disk, a network or a lock.
 *
 * Theory of operation
 *   Workers push requests on a stack without a lock and post a semaphore. Threads take one each: under a lock of their
 *   own the stack is turned into a list, oldest first. A thread that leaves none idle behind makes another one before it
 *   starts on its request, up to the bound, so that workers never do; one that finds nothing for a while ends.
 *   The answer travels back as a task of the request's worker.
 *
 * All signals are blocked in a thread but those that say that memory of a guest is gone, which the ring handles.
 */
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>

#include "devices/fs/csrc/fs_int.h"

enum {
	THREADS = 16,		/* unless told otherwise */
	STACK = 256 * 1024,
	IDLE_SECONDS = 10,
};

struct fs_pool {
	_Atomic(struct fs_req *) pushed;	/* newest first */
	sem_t jobs;
	_Atomic uint32_t max;
	_Atomic uint32_t threads;
	_Atomic uint32_t idle;			/* wait for the semaphore */
	_Atomic uint32_t queued;
	_Atomic bool ending;
	pthread_mutex_t lock;			/* threads' */
	pthread_cond_t gone;
	struct fs_req *first;			/* oldest first */
};

static void *pool_thread(void *arg);

/* One more, of which @pool->threads knows already. */
static int spawn(struct fs_pool *pool)
{
	sigset_t all, before;
	pthread_attr_t attr;
	pthread_t id;
	int rc;

	sigfillset(&all);
	sigdelset(&all, SIGBUS);
	sigdelset(&all, SIGSEGV);
	sigdelset(&all, SIGFPE);
	sigdelset(&all, SIGILL);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	atomic_fetch_add(&pool->idle, 1);
	rc = pthread_create(&id, &attr, pool_thread, pool);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	if (rc)
		atomic_fetch_sub(&pool->idle, 1);
	return -rc;
}

static void leave(struct fs_pool *pool)
{
	pthread_mutex_lock(&pool->lock);
	atomic_fetch_sub(&pool->threads, 1);
	pthread_cond_broadcast(&pool->gone);
	pthread_mutex_unlock(&pool->lock);
}

/* One more thread if the bound allows. */
static int grow(struct fs_pool *pool)
{
	uint32_t now = atomic_load(&pool->threads);

	do {
		if (now >= atomic_load(&pool->max))
			return 0;
	} while (!atomic_compare_exchange_weak(&pool->threads, &now, now + 1));
	if (spawn(pool) == 0)
		return 0;
	leave(pool);
	return -EAGAIN;
}

/* The oldest request, for which the semaphore was taken. */
static struct fs_req *next_job(struct fs_pool *pool)
{
	struct fs_req *req, *newest;

	pthread_mutex_lock(&pool->lock);
	if (!pool->first) {
		newest = atomic_exchange_explicit(&pool->pushed, NULL, memory_order_acquire);
		while (newest) {
			struct fs_req *next = newest->next;

			newest->next = pool->first;
			pool->first = newest;
			newest = next;
		}
	}
	req = pool->first;
	if (req)
		pool->first = req->next;
	pthread_mutex_unlock(&pool->lock);
	return req;
}

static void work(struct fs_pool *pool, struct fs_req *req)
{
	struct ring_worker *worker = req->q->source.worker;

	int result;

	atomic_fetch_sub_explicit(&pool->queued, 1, memory_order_relaxed);
	result = fs_cancelled(req) ? -EINTR : req->server->ops->handle(req->server, req, true);
	if (result == FS_PENDING)
		return;		/* it may be answered already: whoever has it posts its task */
	req->result = result;
	/* the slot may be in use again before this returns */
	ring_worker_head(worker)->api->post(worker, &req->task);
}

/* Wait for something to do: false if there was nothing for long. */
static bool wait_job(struct fs_pool *pool)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += IDLE_SECONDS;
	while (sem_timedwait(&pool->jobs, &until) < 0) {
		if (errno == EINTR)
			continue;
		return false;
	}
	return true;
}

static void *pool_thread(void *arg)
{
	struct fs_pool *pool = arg;

	for (;;) {
		bool found = wait_job(pool);
		uint32_t left = atomic_fetch_sub(&pool->idle, 1) - 1;
		struct fs_req *req;

		if (atomic_load(&pool->ending))
			break;
		if (!found) {
			if (left)
				break;	/* another one waits */
		} else {
			if (!left)
				grow(pool);
			req = next_job(pool);
			if (req)
				work(pool, req);
		}
		atomic_fetch_add(&pool->idle, 1);
	}
	leave(pool);
	return NULL;
}

struct fs_pool *fs_pool_new(void)
{
	struct fs_pool *pool = calloc(1, sizeof(*pool));

	if (!pool)
		return NULL;
	sem_init(&pool->jobs, 0, 0);
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->gone, NULL);
	atomic_store(&pool->max, THREADS);
	return pool;
}

void fs_pool_free(struct fs_pool *pool)
{
	uint32_t i, n;

	if (!pool)
		return;
	atomic_store(&pool->ending, true);
	n = atomic_load(&pool->threads) + 1;	/* one may be making another */
	for (i = 0; i < 2 * n; i++)
		sem_post(&pool->jobs);
	pthread_mutex_lock(&pool->lock);
	while (atomic_load(&pool->threads))
		pthread_cond_wait(&pool->gone, &pool->lock);
	pthread_mutex_unlock(&pool->lock);
	pthread_cond_destroy(&pool->gone);
	pthread_mutex_destroy(&pool->lock);
	sem_destroy(&pool->jobs);
	free(pool);
}

/* So that a worker finds one. */
int fs_pool_start(struct fs_pool *pool)
{
	return atomic_load(&pool->threads) ? 0 : grow(pool);
}

void fs_pool_set_max(struct fs_pool *pool, uint32_t max)
{
	atomic_store(&pool->max, max < 1 ? 1 : max > FS_THREADS_MAX ? FS_THREADS_MAX : max);
}

void fs_pool_counts(struct fs_pool *pool, uint32_t *threads, uint32_t *waiting, uint32_t *max)
{
	*threads = atomic_load(&pool->threads);
	*waiting = atomic_load(&pool->queued);
	*max = atomic_load(&pool->max);
}

void fs_pool_put(struct fs_pool *pool, struct fs_req *req)
{
	struct fs_req *head = atomic_load_explicit(&pool->pushed, memory_order_relaxed);

	atomic_fetch_add_explicit(&pool->queued, 1, memory_order_relaxed);
	do {
		req->next = head;
	} while (!atomic_compare_exchange_weak_explicit(&pool->pushed, &head, req, memory_order_release,
							memory_order_relaxed));
	sem_post(&pool->jobs);
}
