/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker_loop.c - the loop of a worker: reap, poll, flush, submit, sleep.
 *
 * Theory of operation
 *   A source that found something is polled again in the next turn. From its first poll that finds nothing it has a
 *   window; when that ends it is armed and leaves the list of active ones. Only active sources cost anything per turn.
 *
 *   How long a source is polled, and when it sleeps through what it need not see, is gaps.c's to say.
 *
 *   The clock is looked at once per WORKER_IDLE_TURNS turns that found nothing, and once per WORKER_BUSY_LOOPS turns
 *   otherwise: it takes as long as a request.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "ring/csrc/vq.h"
#include "ring/csrc/worker_int.h"

enum {
	STOP_NS = 1000000000,	/* how long a stop waits for what is in flight: five of these */
	STOP_TICKS = 5,
	STOP_LOOK_NS = 10000000,
};

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ __volatile__("yield");
#endif
}

/* When a source that is not active wants to be looked at; 0: no need. */
static inline uint64_t due_ns(const struct ring_source *s)
{
	return s->deadline_ns ? s->deadline_ns : s->nap_ns;
}

/* --- active and not --------------------------------------------------------------------------------------------- */

static int arm(struct ring_source *s)
{
	if (s->ops->arm)
		return s->ops->arm(s);
	return s->vq ? ring_vq_kicks_on(s->vq) : 0;
}

static void disarm(struct ring_source *s)
{
	if (s->ops->disarm)
		s->ops->disarm(s);
	else if (s->vq)
		ring_vq_kicks_off(s->vq);
}

static inline void release(struct ring_source *s)
{
	if (s->vq && worker_unlikely(vq_holds(s->vq)))
		split_release(s->vq, false);
}

/* A poll found nothing. Returns whether a call is held back still: the source is polled on. */
static bool holds(const struct ring_worker *w, struct ring_source *s)
{
	if (!s->vq || !vq_holds(s->vq))
		return false;
	if (w->now_ns < s->vq->held_ns || w->now_ns - s->vq->held_ns < s->vq->hold_ns)
		return true;
	split_release(s->vq, true);
	return false;
}

void worker_activate(struct ring_worker *w, struct ring_source *s)
{
	if (s->active)
		return;
	if (s->timed) {
		s->timed = false;
		w->nr_timed--;
	}
	s->active = true;
	s->place = w->nr_active;
	w->active[w->nr_active++] = s;
	disarm(s);
}

void worker_deactivate(struct ring_worker *w, struct ring_source *s)
{
	if (s->timed) {
		s->timed = false;
		w->nr_timed--;
	}
	release(s);	/* who is not polled holds nothing back */
	if (!s->active)
		return;
	s->active = false;
	if (s->idle_since_ns == GAP_UNMEASURED)
		s->idle_since_ns = w->now_ns;
	w->active[s->place] = w->active[--w->nr_active];
	w->active[s->place]->place = s->place;
	s->slept = true;
	if (due_ns(s) && !s->dead && !s->paused) {
		s->timed = true;
		w->nr_timed++;
		if (due_ns(s) < w->next_deadline_ns)
			w->next_deadline_ns = due_ns(s);
	}
}

void worker_tell_drained(struct ring_source *s)
{
	uint64_t one = 1;
	int fds[2] = { s->news_fd, s->vq ? s->vq->news_fd : -1 };
	int i;

	if (!s->paused || s->drain_told || (s->vq && ring_vq_in_flight(s->vq)))
		return;
	s->drain_told = true;
	for (i = 0; i < 2; i++) {
		if (fds[i] >= 0 && write(fds[i], &one, sizeof(one)) < 0)
			continue;	/* full: then it is readable */
	}
}

static uint32_t in_flight(const struct ring_source *s)
{
	return s->vq ? ring_vq_in_flight(s->vq) : 0;
}

/* Sleep through most of a gap whose end is known. Returns as settle(), or -1: it is too late for that. */
static int nap(struct ring_worker *w, struct ring_source *s, uint64_t at, uint64_t until)
{
	w->now_ns = ring_now_ns();
	w->looks++;
	if (at <= w->now_ns)
		return -1;
	s->idle_since_ns = w->now_ns;
	s->window_ns = until - w->now_ns;
	s->slept = false;
	if (arm(s)) {	/* the gap is over already */
		disarm(s);
		return 1;
	}
	s->nap_ns = at;
	worker_deactivate(w, s);
	return 0;
}

/* A poll found nothing: keep polling, or arm and leave. Returns 1 if the source wants another turn at once. */
static int settle(struct ring_worker *w, struct ring_source *s)
{
	uint64_t at, until;
	int more;

	if (s->paused || w->stopping_ns) {
		worker_deactivate(w, s);
		return 0;
	}
	if (worker_unlikely(holds(w, s)))
		return 0;
	if (w->options.poll_us == RING_POLL_ALWAYS && !s->deadline_ns)
		return 0;
	if (!s->idle_since_ns) {
		s->gap_kind = in_flight(s) ? GAP_DEVICE : GAP_DRIVER;
		at = s->gap_kind == GAP_DRIVER && !s->deadline_ns ? gaps_nap(w, s, &s->gaps[GAP_DRIVER], &until) : 0;
		if (at) {
			more = nap(w, s, at, until);
			if (more >= 0)
				return more;
		}
		s->idle_since_ns = GAP_UNMEASURED;
		s->idle_look = w->looks;
		s->window_ns = gaps_window(w, &s->gaps[s->gap_kind]);
		s->slept = false;
	} else if (s->idle_since_ns == GAP_UNMEASURED && s->idle_look != w->looks) {
		s->idle_since_ns = w->now_ns;
	}
	if (s->window_ns && !s->deadline_ns && !s->slept &&
	    (s->idle_since_ns == GAP_UNMEASURED || w->now_ns - s->idle_since_ns < s->window_ns))
		return 0;
	if (s->nap_ns && !s->slept)
		gaps_nap_missed(s);
	else if (s->window_ns && !s->slept && !s->deadline_ns)
		gaps_window_missed(s);
	/* a kick for what was polled before the nap: it goes on */
	if (!s->slept || s->nap_ns <= w->now_ns)
		s->nap_ns = 0;
	s->slept = true;
	more = arm(s);
	if (!more) {
		/* no room for a long chain: a completion makes some, and flush_dirty() then wakes it */
		s->stalled = s->vq && s->vq->hold == VQ_HOLD_POOL;
		worker_deactivate(w, s);
		return 0;
	}
	if (s->stalled && in_flight(s)) {	/* it can go on only when something completes: flush_dirty() wakes it */
		worker_deactivate(w, s);
		return 0;
	}
	s->stalled = true;
	disarm(s);
	return 1;
}

/* --- one turn --------------------------------------------------------------------------------------------------- */

static unsigned poll_active(struct ring_worker *w)
{
	unsigned did = 0;
	uint32_t i = 0;

	while (i < w->nr_active) {
		struct ring_source *s = w->active[i];
		int n = s->ops->poll(s, worker_unlikely(s->paused || w->stopping_ns) ? 0 : WORKER_BUDGET);

		if (n > 0) {
			did += (unsigned)n;
			if (s->idle_since_ns)
				gaps_ended(w, s);
			s->stalled = false;
		} else if (worker_unlikely(n < 0)) {
			s->dead = true;
			worker_deactivate(w, s);
		} else {
			did += (unsigned)settle(w, s);
		}
		if (i < w->nr_active && w->active[i] == s)
			i++;
	}
	return did;
}

/* Publish what io callbacks completed. Returns how many sources had something. */
static unsigned flush_dirty(struct ring_worker *w)
{
	unsigned did = 0;

	while (w->head.dirty) {
		struct ring_source *s = w->head.dirty;

		w->head.dirty = s->next_dirty;
		s->dirty = false;
		s->ops->flush(s);
		if (!s->active)
			release(s);
		did++;
		if (worker_unlikely(s->paused)) {
			worker_tell_drained(s);
		} else if (s->active) {
			if (s->idle_since_ns)
				gaps_ended(w, s);
		} else if (!s->dead && !s->timed && !w->stopping_ns &&
			   (s->stalled || gaps_window_opens(w, &s->gaps[GAP_DRIVER]))) {
			if (s->idle_since_ns)
				gaps_ended(w, s);
			worker_activate(w, s);	/* the driver is likely to send the next request soon */
		}
	}
	return did;
}

static void run_tasks(struct ring_worker *w)
{
	struct ring_task *newest = atomic_exchange_explicit(&w->posted, NULL, memory_order_acquire);
	struct ring_task *oldest = NULL;

	while (newest) {
		struct ring_task *next = newest->next;

		newest->next = oldest;
		oldest = newest;
		newest = next;
	}
	while (oldest) {
		struct ring_task *next = oldest->next;	/* the task may be gone, or posted again, after it ran */

		oldest->run(oldest);
		oldest = next;
	}
}

static void scan(struct ring_worker *w)
{
	uint32_t i;

	for (i = 0; i < w->nr_slots; i++) {
		struct ring_source *s = w->sources[i];

		if (!s || !s->wake)
			continue;
		s->wake = false;
		worker_activate(w, s);
	}
}

/* Everything that came is finished, and all memory of ours is out of the kernel's hands. */
static bool drained(const struct ring_worker *w)
{
	uint32_t i;

	if (w->uring.live && w->uring.issued != w->uring.done)
		return false;
	for (i = 0; i < w->nr_slots; i++) {
		if (w->sources[i] && in_flight(w->sources[i]))
			return false;
	}
	return true;
}

/* Guest memory changes only while its workers are parked: what is no longer it is not held any longer than that. */
static void unpin_changed(struct ring_worker *w)
{
	uint32_t i;

	if (!w->uring.pins)
		return;
	for (i = 0; i < w->nr_slots; i++) {
		if (w->sources[i])
			ring_uring_unpin_changed(&w->uring, w->sources[i]);
	}
}

static void attend(struct ring_worker *w)
{
	unsigned why = atomic_load(&w->attention);
	uint32_t i;

	if (why & WORKER_POST) {
		/* the bit first: a task posted after the exchange sets it again */
		atomic_fetch_and(&w->attention, ~(unsigned)WORKER_POST);
		run_tasks(w);
	}
	if (why & WORKER_PARK) {
		flush_dirty(w);
		for (i = 0; i < w->nr_active; i++)
			release(w->active[i]);	/* the world may be another one afterwards */
		if (w->uring.live)
			ring_count(&w->stats.submits, (uint64_t)ring_uring_submit(&w->uring));
		worker_rest(w);
		unpin_changed(w);
	}
	if (atomic_load(&w->attention) & WORKER_SCAN) {
		atomic_fetch_and(&w->attention, ~(unsigned)WORKER_SCAN);
		scan(w);
	}
	if (why & WORKER_STOP) {
		atomic_fetch_and(&w->attention, ~(unsigned)WORKER_STOP);
		if (!w->stopping_ns)
			w->stopping_ns = ring_now_ns();
	}
}

/* --- sleeping --------------------------------------------------------------------------------------------------- */

/* A pipe or socket that nobody reads fills up, and then the driver's kick blocks. Never blocks us. */
static void drain_kick(struct ring_source *s)
{
	char buf[512];
	struct iovec iov = { .iov_base = buf, .iov_len = sizeof(buf) };
	ssize_t n;
	int rounds;

	for (rounds = 0; rounds < 64; rounds++) {	/* bounded: the writer may be faster than we are */
		if (s->kick_kind == KICK_SOCKET)
			n = recv(s->kick_dup, buf, sizeof(buf), MSG_DONTWAIT);
		else
			n = preadv2(s->kick_dup, &iov, 1, -1, RWF_NOWAIT);
		if (n < (ssize_t)sizeof(buf))
			return;
	}
}

static void handle_events(struct ring_worker *w, const struct epoll_event *events, int n)
{
	int i;

	for (i = 0; i < n; i++) {
		uint64_t what = events[i].data.u64;
		struct ring_source *s;
		uint64_t count;

		if (what == EVENT_URING)
			continue;	/* reaped at the start of the next turn */
		if (what == EVENT_WAKE) {
			if (read(w->wake_fd, &count, sizeof(count)) < 0)
				continue;
			continue;
		}
		s = (uint32_t)what < w->nr_slots ? w->sources[(uint32_t)what] : NULL;
		if (!s || s->gen != what >> 32)
			continue;
		if (s->kick_kind != KICK_EVENTFD)
			drain_kick(s);
		if (!s->dead && !s->paused)
			worker_activate(w, s);
	}
	if (n > 0)
		ring_count(&w->stats.wakeups, (uint64_t)n);
}

static void time_came(struct ring_worker *w, struct ring_source *s)
{
	if (!s->deadline_ns)
		gaps_nap_ended(w, s);
	worker_activate(w, s);
}

/* Sources whose time has come, and those without a kick fd. */
static void timers(struct ring_worker *w)
{
	uint64_t next = UINT64_MAX;
	bool tick = w->nr_ticking && w->now_ns - w->tick_ns >= WORKER_TICK_NS;
	uint32_t i;

	if (!tick && (!w->nr_timed || w->now_ns < w->next_deadline_ns))
		return;
	if (tick)
		w->tick_ns = w->now_ns;
	for (i = 0; i < w->nr_slots; i++) {
		struct ring_source *s = w->sources[i];

		if (!s || s->active)
			continue;
		if (s->timed) {
			if (due_ns(s) <= w->now_ns)
				time_came(w, s);
			else if (due_ns(s) < next)
				next = due_ns(s);
		} else if (tick && s->kick_dup < 0 && !s->dead && !s->paused &&
			   (!s->vq || ring_vq_ready(s->vq))) {
			worker_activate(w, s);
		}
	}
	w->next_deadline_ns = next;
}

/* How long nothing can happen without an event; ns, UINT64_MAX: for ever. */
static uint64_t quiet_ns(const struct ring_worker *w)
{
	uint64_t quiet = UINT64_MAX;

	if (w->nr_timed)
		quiet = w->next_deadline_ns > w->now_ns ? w->next_deadline_ns - w->now_ns : 0;
	if (w->nr_ticking && quiet > WORKER_TICK_NS)
		quiet = WORKER_TICK_NS;
	if (w->stopping_ns && quiet > STOP_LOOK_NS)
		quiet = STOP_LOOK_NS;
	return quiet;
}

static int wait_events(int epfd, struct epoll_event *events, uint64_t ns)
{
	struct timespec ts = { .tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u) };
	int n = epoll_pwait2(epfd, events, WORKER_EVENTS, ns == UINT64_MAX ? NULL : &ts, NULL);

	if (n < 0 && errno == ENOSYS)	/* before 5.11 */
		n = epoll_wait(epfd, events, WORKER_EVENTS, ns == UINT64_MAX ? -1 : (int)(ns / 1000000u) + 1);
	return n;
}

static void sleep_now(struct ring_worker *w)
{
	struct epoll_event events[WORKER_EVENTS];
	uint64_t quiet = quiet_ns(w);
	bool waiting = w->uring.live && w->uring.issued != w->uring.done;
	int n = 0;

	/* pairs with worker.c, worker_call() */
	atomic_store(&w->sleeping, 1);
	if (!(waiting && ring_uring_listen(&w->uring)) && !atomic_load(&w->attention)) {
		ring_count(&w->stats.sleeps, 1);
		n = wait_events(w->epfd, events, quiet);
	}
	atomic_store_explicit(&w->sleeping, 0, memory_order_relaxed);
	if (waiting)
		ring_uring_deaf(&w->uring);
	w->now_ns = ring_now_ns();
	w->looks++;
	w->armed_look_ns = w->now_ns;
	handle_events(w, events, n);
	timers(w);
}

/* Some sources are active: have a look at the others now and then. */
static void look_around(struct ring_worker *w)
{
	struct epoll_event events[WORKER_EVENTS];

	w->now_ns = ring_now_ns();
	w->looks++;
	timers(w);
	if (w->nr_active == w->nr_sources || w->now_ns - w->armed_look_ns < WORKER_ARMED_NS)
		return;
	w->armed_look_ns = w->now_ns;
	handle_events(w, events, epoll_wait(w->epfd, events, WORKER_EVENTS, 0));
}

static bool may_leave(const struct ring_worker *w)
{
	return drained(w) || ring_now_ns() - w->stopping_ns > (uint64_t)STOP_NS * STOP_TICKS;
}

/* For the next run, maybe on another thread: look at everything first. */
static void leave_loop(struct ring_worker *w)
{
	uint32_t i;

	for (i = 0; i < w->nr_slots; i++) {
		struct ring_source *s = w->sources[i];

		if (!s)
			continue;
		worker_deactivate(w, s);
		s->idle_since_ns = 0;
		s->nap_ns = 0;
		s->wake = true;
		s->pins = NULL;	/* they go with the ring */
	}
	w->stopping_ns = 0;
	atomic_fetch_or(&w->attention, WORKER_SCAN);
}

int worker_loop(struct ring_worker *w)
{
	w->now_ns = ring_now_ns();
	w->armed_look_ns = w->now_ns;
	w->tick_ns = w->now_ns;
	w->late_ns = WORKER_LATE_NS;
	w->busy_loops = 0;
	for (;;) {
		unsigned did = 0;

		ring_count(&w->stats.loops, 1);
		if (worker_unlikely(atomic_load_explicit(&w->attention, memory_order_relaxed)))
			attend(w);
		if (worker_unlikely(w->stopping_ns) && may_leave(w))
			break;
		if (w->uring.live && w->uring.issued != w->uring.done)
			did += ring_uring_reap(&w->uring);
		did += poll_active(w);
		if (w->head.dirty)
			did += flush_dirty(w);
		if (w->uring.live && ring_uring_submit(&w->uring)) {
			ring_count(&w->stats.submits, 1);
			did++;	/* some may have completed on the spot */
		}
		if (did) {
			if (++w->busy_loops < WORKER_BUSY_LOOPS)
				continue;
			w->busy_loops = 0;
			look_around(w);
		} else if (w->nr_active) {
			if (++w->idle_turns < WORKER_IDLE_TURNS)
				continue;
			w->idle_turns = 0;
			relax();
			look_around(w);
		} else {
			sleep_now(w);
		}
	}
	flush_dirty(w);
	leave_loop(w);
	return 0;
}
