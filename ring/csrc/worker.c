/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker.c - a worker's life and what others may ask of it; the loop itself is in worker_loop.c.
 *
 * Rules
 * - Other threads set bits in @attention and, if the loop may be asleep, write @wake_fd; the loop looks at the bits once
 *   per turn. Sources and lists are touched by others only at the safe point (parked, or not running).
 * - epoll holds a copy of the kick fd that is ours: an fd that its owner closed without a word cannot leave a stale
 *   entry behind.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ring/csrc/vq.h"
#include "ring/csrc/worker_int.h"

static const struct ring_worker_api api = {
	.post = ring_worker_post,
	.sqe = ring_worker_sqe,
	.uring = ring_worker_uring,
	.file = ring_worker_file,
	.buffer = ring_worker_buffer,
};

struct ring_worker *ring_worker_new(const struct ring_worker_options *options)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.u64 = EVENT_WAKE };
	struct ring_worker *w = aligned_alloc(64, (sizeof(*w) + 63) / 64 * 64);

	if (!w)
		return NULL;
	memset(w, 0, sizeof(*w));
	w->head.api = &api;
	w->options = *options;
	if (w->options.coalesce_us > WORKER_HOLD_MAX_US)
		w->options.coalesce_us = WORKER_HOLD_MAX_US;
	w->next_deadline_ns = UINT64_MAX;
	w->epfd = epoll_create1(EPOLL_CLOEXEC);
	w->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (w->epfd < 0 || w->wake_fd < 0 || epoll_ctl(w->epfd, EPOLL_CTL_ADD, w->wake_fd, &ev) < 0)
		goto fail;
	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->cond, NULL);
	ring_uring_probe(&w->uring, options->uring_entries);
	return w;
fail:
	if (w->epfd >= 0)
		close(w->epfd);
	if (w->wake_fd >= 0)
		close(w->wake_fd);
	free(w);
	return NULL;
}

void ring_worker_free(struct ring_worker *w)
{
	if (!w)
		return;
	close(w->epfd);
	close(w->wake_fd);
	pthread_mutex_destroy(&w->lock);
	pthread_cond_destroy(&w->cond);
	free(w->sources);
	free(w->active);
	free(w);
}

/* --- asking for the loop's attention ---------------------------------------------------------------------------- */

void worker_call(struct ring_worker *w, unsigned why)
{
	uint64_t one = 1;

	/* pairs with worker_loop.c, sleep_now(): either it sees the bit, or we see that it sleeps */
	atomic_fetch_or(&w->attention, why);
	if (atomic_load(&w->sleeping) && write(w->wake_fd, &one, sizeof(one)) < 0)
		return;	/* full: it is readable, which is all that is wanted */
}

void ring_worker_stop(struct ring_worker *w)
{
	worker_call(w, WORKER_STOP);
}

void ring_worker_post(struct ring_worker *w, struct ring_task *task)
{
	struct ring_task *head = atomic_load_explicit(&w->posted, memory_order_relaxed);

	do {
		task->next = head;
	} while (!atomic_compare_exchange_weak_explicit(&w->posted, &head, task, memory_order_release,
							memory_order_relaxed));
	worker_call(w, WORKER_POST);
}

void ring_worker_park(struct ring_worker *w)
{
	pthread_mutex_lock(&w->lock);
	w->parks++;
	worker_call(w, WORKER_PARK);
	while (w->running && !w->at_rest)
		pthread_cond_wait(&w->cond, &w->lock);
	pthread_mutex_unlock(&w->lock);
}

void ring_worker_resume(struct ring_worker *w)
{
	pthread_mutex_lock(&w->lock);
	if (w->parks && --w->parks == 0)
		pthread_cond_broadcast(&w->cond);
	pthread_mutex_unlock(&w->lock);
}

/* The safe point. Called with nothing staged and nothing unsubmitted. */
void worker_rest(struct ring_worker *w)
{
	pthread_mutex_lock(&w->lock);
	if (w->parks)
		ring_count(&w->stats.parks, 1);
	while (w->parks) {
		w->at_rest = true;
		if (w->drop) {
			ring_uring_drop(&w->uring, w->drop);
			w->drop = NULL;
		}
		pthread_cond_broadcast(&w->cond);
		pthread_cond_wait(&w->cond, &w->lock);
	}
	w->at_rest = false;
	atomic_fetch_and(&w->attention, ~(unsigned)WORKER_PARK);
	pthread_mutex_unlock(&w->lock);
}

/* --- running ---------------------------------------------------------------------------------------------------- */

/* Wait until no park is left, then be the running thread. -EBUSY: another thread runs it. */
static int enter(struct ring_worker *w)
{
	struct timespec ts;
	int rc = 0;

	pthread_mutex_lock(&w->lock);
	while (w->parks)
		pthread_cond_wait(&w->cond, &w->lock);
	if (w->running) {
		rc = -EBUSY;
	} else {
		w->running = true;
		w->at_rest = false;
		w->thread = pthread_self();
		/* what the thread did before is not ours; wraps on purpose */
		if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts) == 0)
			w->cpu_ns -= (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
	}
	pthread_mutex_unlock(&w->lock);
	return rc;
}

static void leave(struct ring_worker *w)
{
	struct timespec ts;

	pthread_mutex_lock(&w->lock);
	if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts) == 0)
		w->cpu_ns += (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
	w->running = false;
	/* a drop that was asked for between the last rest and here: the ring is gone, so are its files */
	w->drop = NULL;
	pthread_cond_broadcast(&w->cond);
	pthread_mutex_unlock(&w->lock);
}

/* The thread is borrowed: it gets back the CPUs it came with. */
static int pin(const struct ring_worker *w, cpu_set_t *before)
{
	cpu_set_t set;

	if (w->options.cpu < 0)
		return 0;
	if (w->options.cpu >= CPU_SETSIZE)
		return -EINVAL;
	if (sched_getaffinity(0, sizeof(*before), before) < 0)
		return -errno;
	CPU_ZERO(&set);
	CPU_SET((size_t)w->options.cpu, &set);
	return sched_setaffinity(0, sizeof(set), &set) < 0 ? -errno : 0;
}

static int watch_uring(struct ring_worker *w)
{
	struct epoll_event ev = { .events = EPOLLIN | EPOLLET, .data.u64 = EVENT_URING };	/* never read */

	if (!w->uring.live)
		return 0;
	return epoll_ctl(w->epfd, EPOLL_CTL_ADD, w->uring.event_fd, &ev) < 0 ? -errno : 0;
}

int ring_worker_run(struct ring_worker *w)
{
	int slack = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
	cpu_set_t before;
	int rc = enter(w);

	if (rc < 0)
		return rc;
	rc = pin(w, &before);
	if (rc < 0)
		goto out;
	/* timed sleeps end when they should, not up to 50 us later */
	prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
	rc = ring_uring_open(&w->uring);
	w->head.uring_gen++;
	if (rc == 0)
		rc = watch_uring(w);
	if (rc == 0)
		rc = worker_loop(w);
	ring_uring_close(&w->uring);
	if (slack > 0)
		prctl(PR_SET_TIMERSLACK, (unsigned long)slack, 0UL, 0UL, 0UL);
	if (w->options.cpu >= 0)
		sched_setaffinity(0, sizeof(before), &before);
out:
	/* the stop is consumed; a park that came meanwhile is told by leave() */
	atomic_fetch_and(&w->attention, ~(unsigned)(WORKER_STOP | WORKER_PARK));
	leave(w);
	return rc;
}

/* --- sources: parked, or not running ---------------------------------------------------------------------------- */

static void forget_kick(struct ring_worker *w, struct ring_source *s)
{
	if (s->kick_dup >= 0) {
		epoll_ctl(w->epfd, EPOLL_CTL_DEL, s->kick_dup, NULL);
		close(s->kick_dup);
	} else {
		w->nr_ticking--;
	}
	s->kick_dup = -1;
	s->gen++;
}

static int watch_kick(struct ring_worker *w, struct ring_source *s, int fd)
{
	struct epoll_event ev = { .events = EPOLLIN | EPOLLET };
	struct stat st;
	int rc;

	s->kick_fd = fd;
	s->kick_dup = -1;
	s->kick_kind = KICK_EVENTFD;
	if (fd < 0) {
		w->nr_ticking++;
		return 0;
	}
	if (fstat(fd, &st) < 0)
		goto fail;
	if (!s->vq)	/* what is read there is its own business, as an eventfd is nobody's */
		s->kick_kind = KICK_EVENTFD;
	else if (S_ISFIFO(st.st_mode))
		s->kick_kind = KICK_PIPE;
	else if (S_ISSOCK(st.st_mode))
		s->kick_kind = KICK_SOCKET;
	s->kick_dup = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (s->kick_dup < 0)
		goto fail;
	ev.data.u64 = (uint64_t)s->gen << 32 | s->slot;
	if (epoll_ctl(w->epfd, EPOLL_CTL_ADD, s->kick_dup, &ev) == 0)
		return 0;
fail:
	rc = -errno;	/* EPERM: a regular file cannot be waited for */
	if (s->kick_dup >= 0)
		close(s->kick_dup);
	s->kick_dup = -1;
	s->kick_fd = -1;
	w->nr_ticking++;
	return rc;
}

static int grow(struct ring_worker *w)
{
	uint32_t nr = w->nr_slots ? w->nr_slots * 2 : 16;
	struct ring_source **sources = realloc(w->sources, nr * sizeof(*sources));
	struct ring_source **active;

	if (!sources)
		return -ENOMEM;
	w->sources = sources;
	active = realloc(w->active, nr * sizeof(*active));
	if (!active)
		return -ENOMEM;
	w->active = active;
	memset(sources + w->nr_slots, 0, (nr - w->nr_slots) * sizeof(*sources));
	w->nr_slots = nr;
	return 0;
}

int ring_worker_add(struct ring_worker *w, struct ring_source *source)
{
	uint32_t slot;
	int rc;

	if (source->worker)
		return -EEXIST;
	if (w->nr_sources == w->nr_slots) {
		rc = grow(w);
		if (rc < 0)
			return rc;
	}
	for (slot = 0; w->sources[slot]; slot++)
		;
	source->slot = slot;
	rc = watch_kick(w, source, source->kick_fd);
	if (rc < 0) {
		w->nr_ticking--;
		return rc;
	}
	w->sources[slot] = source;
	w->nr_sources++;
	source->worker = w;
	source->active = false;
	source->timed = false;
	source->dirty = false;
	if (source->vq && source->coalesce && w->options.poll_us != RING_POLL_NEVER)
		source->vq->hold_ns = w->options.coalesce_us * 1000;
	source->idle_since_ns = 0;
	memset(source->gaps, 0, sizeof(source->gaps));
	ring_source_wake(source);
	return 0;
}

int ring_worker_remove(struct ring_worker *w, struct ring_source *source)
{
	struct ring_source **p;

	if (source->worker != w)
		return -ENOENT;
	worker_deactivate(w, source);
	for (p = &w->head.dirty; *p; p = &(*p)->next_dirty) {
		if (*p == source) {
			*p = source->next_dirty;
			break;
		}
	}
	source->dirty = false;
	if (source->vq)
		source->vq->hold_ns = 0;
	forget_kick(w, source);
	w->sources[source->slot] = NULL;
	w->nr_sources--;
	source->worker = NULL;
	/* fixed files and buffers belong to the thread that registered them; it drops them now: they are free on return */
	pthread_mutex_lock(&w->lock);
	if (w->running && pthread_equal(pthread_self(), w->thread)) {
		ring_uring_drop(&w->uring, source);
	} else if (w->running) {
		w->drop = source;
		pthread_cond_broadcast(&w->cond);
		while (w->drop && w->running)
			pthread_cond_wait(&w->cond, &w->lock);
	}
	pthread_mutex_unlock(&w->lock);
	return 0;
}

int ring_source_set_kick(struct ring_source *source, int kick_fd)
{
	struct ring_worker *w = source->worker;
	int rc;

	if (!w) {
		source->kick_fd = kick_fd;
		return 0;
	}
	forget_kick(w, source);
	rc = watch_kick(w, source, kick_fd);
	ring_source_wake(source);
	return rc;
}

void ring_source_pause(struct ring_source *source, int paused)
{
	source->paused = paused != 0;
	source->drain_told = false;
	if (paused)
		worker_tell_drained(source);
	ring_source_wake(source);
}

void ring_source_wake(struct ring_source *source)
{
	source->wake = true;
	source->dead = false;
	if (source->worker)
		worker_call(source->worker, WORKER_SCAN);
}

/* --- the rest --------------------------------------------------------------------------------------------------- */

void ring_worker_stats(const struct ring_worker *w, struct ring_worker_stats *out)
{
	struct ring_worker *mw = (struct ring_worker *)(uintptr_t)w;	/* the lock is taken, nothing else changes */
	struct timespec ts;
	clockid_t clock;

	ring_stats_copy(out, &w->stats, sizeof(*out));
	pthread_mutex_lock(&mw->lock);
	out->cpu_ns = w->cpu_ns;
	/* asked here, so that a sleep costs no clock call of its own */
	if (w->running && pthread_getcpuclockid(w->thread, &clock) == 0 && clock_gettime(clock, &ts) == 0)
		out->cpu_ns += (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
	pthread_mutex_unlock(&mw->lock);
}

int ring_worker_has_uring(const struct ring_worker *w)
{
	return w->uring.entries != 0;
}

struct io_uring_sqe *ring_worker_sqe(struct ring_worker *w)
{
	return w->uring.live ? ring_uring_sqe(&w->uring) : NULL;
}

struct io_uring *ring_worker_uring(struct ring_worker *w)
{
	return w->uring.live ? &w->uring.ring : NULL;
}

int ring_worker_file(struct ring_worker *w, struct ring_source *source, int fd)
{
	return ring_uring_file(&w->uring, source, fd);
}

int ring_worker_buffer(struct ring_worker *w, struct ring_source *source, const void *base, size_t len)
{
	return ring_uring_buffer(&w->uring, source, base, len);
}
