/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker_int.h - inside of a worker: worker.c (control, any thread) and worker_loop.c (the worker's thread).
 */
#ifndef RING_WORKER_INT_H
#define RING_WORKER_INT_H

#include <pthread.h>
#include <time.h>

#include "ring/csrc/stats.h"
#include "ring/csrc/uring.h"
#include "ring/csrc/worker.h"

#define worker_unlikely(x) __builtin_expect(!!(x), 0)

enum {
	/* @attention */
	WORKER_STOP = 1,	/* leave the loop */
	WORKER_PARK = 2,	/* somebody wants the safe point */
	WORKER_POST = 4,	/* tasks were posted */
	WORKER_SCAN = 8,	/* sources were woken, paused, added: look at all of them once */

	WORKER_BUDGET = 64,		/* chains a source may take before the next one has its turn */
	WORKER_POLL_MAX_US = 50,	/* default upper end of the adaptive window */
	WORKER_ARMED_NS = 20000,	/* how often armed sources are looked at while others are active */
	WORKER_BUSY_LOOPS = 32,		/* loops with work between two looks at the clock */
	WORKER_IDLE_TURNS = 64,		/* turns that found nothing between two looks at the clock */
	WORKER_TICK_NS = 1000000,	/* sources without a kick fd */
	WORKER_EVENTS = 64,
	WORKER_HOLD_MAX_US = 100000,	/* for which a call is held back at most */
	WORKER_LATE_NS = 8000,		/* how late a nap is thought to end at first */

	KICK_EVENTFD = 0,	/* never read: each write is an edge */
	KICK_PIPE = 1,		/* read, lest it fills up */
	KICK_SOCKET = 2,

	GAP_DRIVER = 0,		/* nothing in flight: the driver's next request is waited for */
	GAP_DEVICE = 1,		/* requests are in flight: a completion is */

	GAP_UNMEASURED = 1,	/* @idle_since_ns: idle, but the clock has not been looked at yet */
};

/* what epoll reports: the slot of a source and the generation of its kick fd, or one of these */
#define EVENT_WAKE UINT64_MAX
#define EVENT_URING (UINT64_MAX - 1)

struct ring_worker {
	struct ring_worker_head head;	/* must be first */

	/* worker thread (others only while it is parked or does not run) */
	struct ring_source **sources;	/* by slot; NULL: free */
	struct ring_source **active;	/* dense */
	uint32_t nr_slots;		/* length of @sources and @active */
	uint32_t nr_sources;
	uint32_t nr_active;
	uint32_t nr_timed;		/* sources not active that have a deadline */
	uint32_t nr_ticking;		/* sources without a kick fd */
	uint64_t now_ns;		/* of the last look at the clock */
	uint64_t next_deadline_ns;	/* of all timed ones; UINT64_MAX: none */
	uint64_t late_ns;		/* how late a nap ends, smoothed */
	uint64_t armed_look_ns;		/* when armed sources were looked at last */
	uint64_t tick_ns;		/* when sources without a kick fd were looked at last */
	uint64_t stopping_ns;		/* when the stop was seen; 0: not stopping */
	uint32_t busy_loops;
	uint32_t idle_turns;
	uint32_t looks;			/* at the clock, wraps */
	struct ring_uring uring;
	int epfd;

	/* any thread */
	_Alignas(64) _Atomic unsigned attention;	/* WORKER_* */
	_Atomic int sleeping;		/* epoll_wait may block: write @wake_fd */
	_Atomic(struct ring_task *) posted;	/* newest first */
	int wake_fd;

	/* under @lock */
	pthread_mutex_t lock;
	pthread_cond_t cond;
	unsigned parks;			/* asked for */
	bool running;
	bool at_rest;			/* the loop stands at the safe point */
	struct ring_source *drop;	/* its fixed files and buffers are to be dropped, by the parked thread */
	pthread_t thread;
	uint64_t cpu_ns;		/* of runs that ended */

	/* written by the worker thread, read by any */
	_Alignas(64) struct ring_worker_stats stats;
	struct ring_worker_options options;	/* constant */
};

/* worker.c */
void worker_call(struct ring_worker *w, unsigned why);
void worker_rest(struct ring_worker *w);	/* at the safe point: stay while parks last */

/* gaps.c */
uint64_t gaps_window(const struct ring_worker *w, struct ring_gaps *g);	/* how long to poll, ns; 0: not at all */
bool gaps_window_opens(const struct ring_worker *w, const struct ring_gaps *g);
void gaps_window_missed(struct ring_source *s);
uint64_t gaps_nap(const struct ring_worker *w, const struct ring_source *s, struct ring_gaps *g, uint64_t *until);
void gaps_nap_missed(struct ring_source *s);
void gaps_nap_ended(struct ring_worker *w, struct ring_source *s);
void gaps_ended(struct ring_worker *w, struct ring_source *s);	/* a request, or a completion, came */

/* worker_loop.c */
int worker_loop(struct ring_worker *w);
void worker_activate(struct ring_worker *w, struct ring_source *source);
void worker_deactivate(struct ring_worker *w, struct ring_source *source);
void worker_tell_drained(struct ring_source *source);

#endif
