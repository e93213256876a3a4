/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker_unit - a worker with sources that are no queues: kicks of all kinds, parks, posts, deadlines, io_uring, stops.
 *
 * Waits have generous upper bounds; what must not happen (a spin, a poll too many) is checked by counting.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ring/csrc/stats.h"
#include "ring/csrc/worker.h"

#define CHECK(x)                                                                                   \
	do {                                                                                       \
		if (!(x)) {                                                                        \
			fprintf(stderr, "%s:%d: %s: not so: %s\n", __FILE__, __LINE__, __func__, #x); \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

/* A source that counts; work is offered by @ready. */
struct probe {
	struct ring_source source;
	_Atomic int ready, polls, taken, arms, disarms, flushes;
	_Atomic int fail;		/* poll returns this once */
	_Atomic uint64_t deadline_in;	/* ns; poll sets a deadline once */
	_Atomic int paused_polls;
};

static int probe_poll(struct ring_source *s, int budget)
{
	struct probe *p = (struct probe *)(void *)s;
	int n = atomic_load(&p->ready);
	uint64_t in;

	s->deadline_ns = 0;
	atomic_fetch_add(&p->polls, 1);
	if (!budget) {
		atomic_fetch_add(&p->paused_polls, 1);
		return 0;
	}
	if (atomic_load(&p->fail))
		return atomic_exchange(&p->fail, 0);
	in = atomic_exchange(&p->deadline_in, 0);
	if (in)
		s->deadline_ns = ring_now_ns() + in;
	if (n > budget)
		n = budget;
	atomic_fetch_sub(&p->ready, n);
	atomic_fetch_add(&p->taken, n);
	return n;
}

static void probe_flush(struct ring_source *s)
{
	atomic_fetch_add(&((struct probe *)(void *)s)->flushes, 1);
}

static int probe_arm(struct ring_source *s)
{
	struct probe *p = (struct probe *)(void *)s;

	atomic_fetch_add(&p->arms, 1);
	return s->deadline_ns ? 0 : atomic_load(&p->ready) != 0;
}

static void probe_disarm(struct ring_source *s)
{
	atomic_fetch_add(&((struct probe *)(void *)s)->disarms, 1);
}

static const struct ring_source_ops probe_ops = { probe_poll, probe_flush, probe_arm, probe_disarm };

static void probe_init(struct probe *p, int kick)
{
	memset(p, 0, sizeof(*p));
	p->source.ops = &probe_ops;
	p->source.kick_fd = kick;
	p->source.news_fd = -1;
}

static int event(void)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	CHECK(fd >= 0);
	return fd;
}

static void kick(int fd)
{
	uint64_t one = 1;

	CHECK(write(fd, &one, sizeof(one)) == sizeof(one));
}

#define UNTIL(x)                                                              \
	do {                                                                  \
		uint64_t end_ = ring_now_ns() + 10000000000u;                 \
		while (!(x)) {                                                \
			CHECK(ring_now_ns() < end_ && #x);                    \
			usleep(200);                                          \
		}                                                             \
	} while (0)

static struct ring_worker *w;
static pthread_t thread;
static int run_result;

static void *run(void *arg)
{
	(void)arg;
	run_result = ring_worker_run(w);
	return NULL;
}

static void start(void)
{
	CHECK(pthread_create(&thread, NULL, run, NULL) == 0);
}

static void make(int poll_us, unsigned uring)
{
	struct ring_worker_options o = { .poll_us = poll_us, .cpu = -1, .uring_entries = uring };

	w = ring_worker_new(&o);
	CHECK(w);
}

static void join(void)
{
	ring_worker_stop(w);
	CHECK(pthread_join(thread, NULL) == 0);
	CHECK(run_result == 0);
}

static struct ring_worker_stats stats(void)
{
	struct ring_worker_stats s;

	ring_worker_stats(w, &s);
	return s;
}

/* Nothing may happen in 50 ms but sleep. */
static void check_quiet(void)
{
	struct ring_worker_stats a, b;

	usleep(20000);
	a = stats();
	usleep(50000);
	b = stats();
	CHECK(b.loops - a.loops <= 3);
	CHECK(b.cpu_ns - a.cpu_ns < 10000000);
}

static void test_idle_and_kick(int poll_us)
{
	struct probe p[64];
	int fd[64];
	int i, polls;

	make(poll_us, 64);
	for (i = 0; i < 64; i++) {
		fd[i] = event();
		probe_init(&p[i], fd[i]);
		CHECK(ring_worker_add(w, &p[i].source) == 0);
	}
	CHECK(ring_worker_add(w, &p[0].source) == -EEXIST);
	start();
	for (i = 0; i < 64; i++)
		UNTIL(atomic_load(&p[i].arms) > 0);	/* looked at once, unasked */
	check_quiet();
	polls = atomic_load(&p[8].polls);
	for (i = 0; i < 200; i++) {	/* the eventfd is never read: each write counts */
		atomic_fetch_add(&p[7].ready, 3);
		kick(fd[7]);
		UNTIL(atomic_load(&p[7].taken) == 3 * (i + 1));
	}
	check_quiet();
	CHECK(atomic_load(&p[8].polls) == polls);	/* the others were left alone */
	join();
	for (i = 0; i < 64; i++) {
		CHECK(ring_worker_remove(w, &p[i].source) == 0);
		close(fd[i]);
	}
	ring_worker_free(w);
}

/* Kicks by pipe and socket are read, so that their writer never blocks; a closed one does not make us spin. */
static void test_pipe_and_socket(bool sock)
{
	struct ring_mem *mem = ring_mem_new();
	struct ring_vq *vq = ring_vq_new(mem, 0);	/* never started: only queues' kicks are read */
	struct probe p;
	int fds[2];
	int i;

	CHECK(vq != NULL);
	CHECK((sock ? socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) : pipe2(fds, O_CLOEXEC)) == 0);
	make(-1, 0);
	probe_init(&p, fds[0]);
	p.source.vq = vq;
	CHECK(ring_worker_add(w, &p.source) == 0);
	start();
	for (i = 0; i < 40000; i++) {	/* five times what a pipe holds */
		if (i % 1000 == 0)
			atomic_fetch_add(&p.ready, 1);
		kick(fds[1]);
		if (i % 1000 == 0)
			UNTIL(atomic_load(&p.taken) == i / 1000 + 1);
	}
	close(fds[1]);
	check_quiet();
	join();
	ring_worker_remove(w, &p.source);
	close(fds[0]);
	ring_worker_free(w);
	ring_vq_free(vq);
	ring_mem_free(mem);
}

static void test_bad_kick(void)
{
	struct probe p;
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	int ev = event();

	make(-1, 0);
	probe_init(&p, fd);
	CHECK(ring_worker_add(w, &p.source) == -EPERM);
	probe_init(&p, ev);
	CHECK(ring_worker_add(w, &p.source) == 0);
	CHECK(ring_source_set_kick(&p.source, fd) == -EPERM);
	CHECK(ring_source_set_kick(&p.source, -2 - 1000) == 0);	/* none */
	start();
	UNTIL(atomic_load(&p.polls) > 5);	/* without a kick fd: every millisecond */
	ring_worker_park(w);
	CHECK(ring_source_set_kick(&p.source, ev) == 0);
	close(ev);	/* its owner may close it: we hold a copy */
	ring_worker_resume(w);
	check_quiet();
	join();
	ring_worker_remove(w, &p.source);
	ring_worker_free(w);
	close(fd);
}

static _Atomic int parked_now;

static void *parker(void *arg)
{
	int i;

	(void)arg;
	for (i = 0; i < 200; i++) {
		ring_worker_park(w);
		atomic_fetch_add(&parked_now, 1);
		sched_yield();
		atomic_fetch_sub(&parked_now, 1);
		ring_worker_resume(w);
	}
	return NULL;
}

static int poll_unparked(struct ring_source *s, int budget)
{
	CHECK(atomic_load(&parked_now) == 0);	/* never inside a source while somebody holds a park */
	return probe_poll(s, budget);
}

static void test_park(void)
{
	static const struct ring_source_ops ops = { poll_unparked, probe_flush, probe_arm, probe_disarm };
	pthread_t parkers[3];
	struct probe p, late;
	int fd = event(), i, polls;

	make(-1, 64);
	probe_init(&p, fd);
	p.source.ops = &ops;
	CHECK(ring_worker_add(w, &p.source) == 0);
	ring_worker_park(w);	/* not running: at once, and it keeps it from starting */
	start();
	usleep(20000);
	CHECK(atomic_load(&p.polls) == 0);
	ring_worker_resume(w);
	UNTIL(atomic_load(&p.polls) > 0);
	for (i = 0; i < 3; i++)
		CHECK(pthread_create(&parkers[i], NULL, parker, NULL) == 0);
	for (i = 0; i < 300; i++) {
		atomic_fetch_add(&p.ready, 1);
		kick(fd);
		usleep(50);
	}
	for (i = 0; i < 3; i++)
		pthread_join(parkers[i], NULL);
	UNTIL(atomic_load(&p.taken) == 300);
	ring_worker_park(w);
	ring_worker_park(w);
	polls = atomic_load(&p.polls);
	kick(fd);
	ring_worker_resume(w);
	usleep(20000);
	CHECK(atomic_load(&p.polls) == polls);	/* parks nest */
	CHECK(ring_worker_remove(w, &p.source) == 0);
	CHECK(ring_worker_remove(w, &p.source) == -ENOENT);
	probe_init(&late, -1);
	CHECK(ring_worker_add(w, &late.source) == 0);
	ring_worker_resume(w);
	UNTIL(atomic_load(&late.polls) > 0);
	CHECK(atomic_load(&p.polls) == polls);
	CHECK(stats().parks > 0);
	/* a stop while parked counts; the park of a worker that ends returns */
	ring_worker_park(w);
	ring_worker_stop(w);
	ring_worker_resume(w);
	pthread_join(thread, NULL);
	ring_worker_park(w);
	ring_worker_resume(w);
	ring_worker_remove(w, &late.source);
	ring_worker_free(w);
	close(fd);
}

static void test_stop(void)
{
	int i;

	make(-1, 64);
	ring_worker_stop(w);
	ring_worker_stop(w);
	CHECK(ring_worker_run(w) == 0);	/* a stop before run makes it return at once, */
	for (i = 0; i < 3; i++) {	/* and is consumed */
		start();
		usleep(2000);
		join();
	}
	ring_worker_free(w);
}

struct job {
	struct ring_task task;
	int number;
	struct lane *lane;
};

enum { JOBS = 5000, LANES = 3 };

struct lane {
	struct job jobs[JOBS];
	int next;
	_Atomic int done;
};

static void job_run(struct ring_task *task)
{
	struct job *j = (struct job *)(void *)task;

	CHECK(j->number == j->lane->next++);	/* in the order posted */
	atomic_fetch_add(&j->lane->done, 1);
}

static void *poster(void *arg)
{
	struct lane *lane = arg;
	int i;

	for (i = 0; i < JOBS; i++) {
		lane->jobs[i].task.run = job_run;
		lane->jobs[i].number = i;
		lane->jobs[i].lane = lane;
		ring_worker_post(w, &lane->jobs[i].task);
		if (i % 512 == 0)
			usleep(300);	/* let it fall asleep */
	}
	return NULL;
}

static void test_post(void)
{
	struct lane *lanes = calloc(LANES, sizeof(*lanes));
	pthread_t threads[LANES];
	int i;

	make(-1, 0);
	start();
	for (i = 0; i < LANES; i++)
		CHECK(pthread_create(&threads[i], NULL, poster, &lanes[i]) == 0);
	for (i = 0; i < LANES; i++)
		pthread_join(threads[i], NULL);
	for (i = 0; i < LANES; i++)
		UNTIL(atomic_load(&lanes[i].done) == JOBS);
	check_quiet();
	join();
	ring_worker_free(w);
	free(lanes);
}

static void test_deadline(void)
{
	struct probe p;
	uint64_t t0;
	int fd = event(), polls;

	make(-1, 64);
	probe_init(&p, fd);
	CHECK(ring_worker_add(w, &p.source) == 0);
	start();
	UNTIL(atomic_load(&p.arms) > 0);
	check_quiet();
	polls = atomic_load(&p.polls);
	atomic_store(&p.deadline_in, 20000000);
	t0 = ring_now_ns();
	kick(fd);
	UNTIL(atomic_load(&p.polls) >= polls + 2);
	CHECK(ring_now_ns() - t0 > 19000000);
	check_quiet();
	join();
	ring_worker_remove(w, &p.source);
	ring_worker_free(w);
	close(fd);
}

static void test_dead_and_paused(void)
{
	struct probe p;
	uint64_t news;
	int fd = event(), told = event(), polls;

	make(-1, 64);
	probe_init(&p, fd);
	p.source.news_fd = told;
	CHECK(ring_worker_add(w, &p.source) == 0);
	start();
	UNTIL(atomic_load(&p.arms) > 0);
	check_quiet();
	atomic_store(&p.fail, -RING_E_HEAD);
	kick(fd);
	UNTIL(atomic_load(&p.fail) == 0);
	polls = atomic_load(&p.polls);
	atomic_store(&p.ready, 1);
	kick(fd);
	usleep(20000);
	CHECK(atomic_load(&p.polls) == polls);	/* left alone until woken */
	ring_worker_park(w);
	ring_source_wake(&p.source);
	ring_worker_resume(w);
	UNTIL(atomic_load(&p.taken) == 1);

	ring_worker_park(w);
	CHECK(read(told, &news, 8) < 0);
	ring_source_pause(&p.source, 1);
	ring_worker_resume(w);
	CHECK(read(told, &news, 8) == 8);	/* nothing was in flight */
	atomic_store(&p.ready, 5);
	kick(fd);
	usleep(20000);
	CHECK(atomic_load(&p.taken) == 1);
	check_quiet();
	ring_worker_park(w);
	ring_source_pause(&p.source, 0);
	ring_worker_resume(w);
	UNTIL(atomic_load(&p.taken) == 6);
	join();
	ring_worker_remove(w, &p.source);
	ring_worker_free(w);
	close(fd);
	close(told);
}

/* An operation on the worker's io_uring, begun by a posted task. */
struct op {
	struct ring_io io;
	struct ring_task task;
	struct probe *probe;
	struct __kernel_timespec ts;
	int fd;
	char byte;
	_Atomic int result, done, slot;
};

static void op_done(struct ring_io *io, int res)
{
	struct op *o = (struct op *)(void *)io;

	atomic_store(&o->result, res);
	ring_source_completed(&o->probe->source);
	atomic_store(&o->done, 1);
}

static void op_timeout(struct ring_task *task)
{
	struct op *o = (struct op *)(void *)((char *)task - offsetof(struct op, task));
	struct io_uring_sqe *sqe = ring_worker_sqe(w);

	CHECK(sqe);
	o->io.done = op_done;
	io_uring_prep_timeout(sqe, &o->ts, 0, 0);
	io_uring_sqe_set_data(sqe, &o->io);
}

static void op_read(struct ring_task *task)
{
	struct op *o = (struct op *)(void *)((char *)task - offsetof(struct op, task));
	struct io_uring_sqe *sqe = ring_worker_sqe(w);
	int slot = ring_worker_file(w, &o->probe->source, o->fd);

	CHECK(sqe);
	atomic_store(&o->slot, slot);
	o->io.done = op_done;
	io_uring_prep_read(sqe, slot >= 0 ? slot : o->fd, &o->byte, 1, 0);
	sqe->flags |= slot >= 0 ? IOSQE_FIXED_FILE : 0;
	sqe->flags |= IOSQE_ASYNC;	/* completes on another thread: deferred work, seen while asleep */
	io_uring_sqe_set_data(sqe, &o->io);
}

static void test_uring(void)
{
	struct probe p;
	struct op o;
	int fd = event(), i;

	make(-1, 8);
	if (!ring_worker_has_uring(w)) {
		fprintf(stderr, "no io_uring here: not tested\n");
		ring_worker_free(w);
		close(fd);
		return;
	}
	probe_init(&p, fd);
	CHECK(ring_worker_add(w, &p.source) == 0);
	memset(&o, 0, sizeof(o));
	o.probe = &p;
	start();
	for (i = 0; i < 20; i++) {
		atomic_store(&o.done, 0);
		o.ts.tv_nsec = 2000000;
		o.task.run = op_timeout;
		ring_worker_post(w, &o.task);
		UNTIL(atomic_load(&o.done));
		CHECK(atomic_load(&o.result) == -ETIME);
	}
	UNTIL(atomic_load(&p.flushes) == 20);
	o.fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	for (i = 0; i < 20; i++) {
		atomic_store(&o.done, 0);
		o.task.run = op_read;
		ring_worker_post(w, &o.task);
		UNTIL(atomic_load(&o.done));
		CHECK(atomic_load(&o.result) == 1 && o.byte == 0x7f);
		CHECK(atomic_load(&o.slot) == i);
	}
	ring_worker_park(w);	/* with the source go its files: the slots are free again */
	CHECK(ring_worker_remove(w, &p.source) == 0);
	CHECK(ring_worker_add(w, &p.source) == 0);
	ring_worker_resume(w);
	atomic_store(&o.done, 0);
	ring_worker_post(w, &o.task);
	UNTIL(atomic_load(&o.done));
	CHECK(atomic_load(&o.slot) == 0);
	check_quiet();
	/* a stop waits for what is under way */
	atomic_store(&o.done, 0);
	o.ts.tv_nsec = 50000000;
	o.task.run = op_timeout;
	ring_worker_post(w, &o.task);
	usleep(5000);
	join();
	CHECK(atomic_load(&o.done));
	ring_worker_remove(w, &p.source);
	ring_worker_free(w);
	close(fd);
	close(o.fd);
}

static void test_pinning(void)
{
	struct ring_worker_options o = { .poll_us = -1, .cpu = 0 };
	cpu_set_t before, after;

	w = ring_worker_new(&o);
	CHECK(sched_getaffinity(0, sizeof(before), &before) == 0);
	ring_worker_stop(w);
	CHECK(ring_worker_run(w) == 0);
	CHECK(sched_getaffinity(0, sizeof(after), &after) == 0 && CPU_EQUAL(&before, &after));
	ring_worker_free(w);
	o.cpu = 1000;
	w = ring_worker_new(&o);
	CHECK(ring_worker_run(w) == -EINVAL);	/* no such CPU */
	ring_worker_free(w);
}

int main(void)
{
	test_idle_and_kick(-1);
	test_idle_and_kick(0);
	test_idle_and_kick(30);
	test_pipe_and_socket(false);
	test_pipe_and_socket(true);
	test_bad_kick();
	test_park();
	test_stop();
	test_post();
	test_deadline();
	test_dead_and_paused();
	test_uring();
	test_pinning();
	return 0;
}
