/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fs_stress - queues of a file system on two workers and a pool of threads: requests that are answered at once, by a
 * thread, later, after both; others interrupt them, mount anew, and pause queues meanwhile.
 *
 * Each request comes back once, as itself, with an error that it can have; nothing runs while the server is reset.
 *
 * Usage: fs_stress [requests of each driver]
 */
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "devices/fs/csrc/fs_int.h"
#include "rig.h"

enum {
	QUEUES = 4,		/* the first is of high priority */
	WORKERS = 2,
	SIZE = 64,
	SLOT = 256,		/* bytes of a request and its answer */
	THREADS_MAX = 3,
	FEATURES = 0,
};

/* --- a server --------------------------------------------------------------------------------------------------- */

static struct fs_server server;
static _Atomic int inside;	/* calls of handle() */
static _Atomic bool resetting;
static _Atomic uint64_t resets, slow_ones, cancelled_ones;

static int answer(struct fs_req *req, bool pool)
{
	struct fuse_statfs_out *out = FS_OUT(req, fuse_statfs_out);
	uint32_t kind = (uint32_t)(req->in.nodeid % 8);

	CHECK(server.minor != 0);
	CHECK(req->in.opcode == FUSE_STATFS);
	/* @again_ns is ours between calls: odd times are second ones */
	switch (kind) {
	case 0:	/* a thread */
		if (!pool)
			return FS_SLOW;
		atomic_fetch_add(&slow_ones, 1);
		break;
	case 1:	/* later */
		if (!(req->again_ns & 1) || req->in.nodeid & 64) {
			req->again_ns = (ring_now_ns() + 20000) | 1;
			return FS_AGAIN;
		}
		break;
	case 2:	/* a thread that says later, then at once */
		if (req->again_ns & 1)
			break;
		if (!pool)
			return FS_SLOW;
		req->again_ns = (ring_now_ns() + 30000) | 1;
		return FS_AGAIN;
	case 3:	/* until it is interrupted, or a while */
		if (!pool)
			return FS_SLOW;
		for (int i = 0; i < 20; i++) {
			if (fs_cancelled(req)) {
				atomic_fetch_add(&cancelled_ones, 1);
				return -EINTR;
			}
			usleep(20);
		}
		break;
	default:
		break;
	}
	memset(out, 0, sizeof(*out));
	out->st.blocks = req->in.unique;
	out->st.bfree = req->in.nodeid;
	return sizeof(*out);
}

static int handle(struct fs_server *s, struct fs_req *req, bool pool)
{
	int result;

	(void)s;
	atomic_fetch_add(&inside, 1);
	CHECK(!atomic_load(&resetting));
	result = req->in.opcode == FUSE_FORGET ? FS_NONE : answer(req, pool);
	if (result != FS_AGAIN && result != FS_SLOW)
		req->again_ns = 0;
	atomic_fetch_sub(&inside, 1);
	return result;
}

static void reset(struct fs_server *s)
{
	(void)s;
	atomic_store(&resetting, true);
	CHECK(atomic_load(&inside) == 0);
	for (int i = 0; i < QUEUES; i++)
		sched_yield();
	CHECK(atomic_load(&inside) == 0);
	atomic_store(&resetting, false);
	atomic_fetch_add(&resets, 1);
}

static void done(struct fs_server *s)
{
	fs_server_exit(s);
}

static const struct fs_server_ops ops = { .handle = handle, .reset = reset, .free = done };

/* --- drivers ---------------------------------------------------------------------------------------------------- */

static struct side {
	struct rig rig;
	struct ring_source *source;
	int kick;
	pthread_t thread;
	uint64_t random;
	uint64_t asked, answered, interrupted, ended;
} sides[QUEUES];

static struct ring_worker *workers[WORKERS];
static uint64_t requests = 20000;
static _Atomic int running = QUEUES;

static void make(struct side *side, uint64_t token, uint32_t slot)
{
	uint8_t *at = side->rig.area + side->rig.data + (uint64_t)slot * 2 * SLOT;
	uint64_t gpa = RIG_GPA + side->rig.data + (uint64_t)slot * 2 * SLOT;
	bool hiprio = side == sides;
	struct fuse_in_header head = { .unique = token, .nodeid = rig_rnd(&side->random) % 4096 };
	struct ring_drv_buf bufs[2] = { { .addr = gpa }, { .addr = gpa + SLOT, .len = SLOT } };
	union {
		struct fuse_init_in init;
		struct fuse_interrupt_in interrupt;
		struct fuse_forget_in forget;
	} arg = { .init = { .major = 7, .minor = 40 } };
	size_t len = 0;

	head.opcode = FUSE_STATFS;
	if (hiprio) {
		head.opcode = rig_rnd(&side->random) % 4 ? FUSE_INTERRUPT : FUSE_FORGET;
		arg.interrupt.unique = (rig_rnd(&side->random) % (QUEUES - 1) + 1) << 40 |
				       rig_rnd(&side->random) % (requests + 1);
		len = sizeof(arg.interrupt);
	} else if (token == (1ULL << 40 | 1) || rig_rnd(&side->random) % 512 == 0) {
		head.opcode = FUSE_INIT;
		len = sizeof(arg.init);
	} else if (rig_rnd(&side->random) % 2048 == 0) {
		head.opcode = FUSE_DESTROY;
	}
	head.len = (uint32_t)(sizeof(head) + len);
	memcpy(at, &head, sizeof(head));
	memcpy(at + sizeof(head), &arg, len);
	bufs[0].len = head.len;
	CHECK(ring_drv_add(side->rig.drv, bufs, 1, hiprio ? 0 : 1, token << 8 | slot, 0) >= 0);
	side->asked++;
}

static void look(struct side *side, uint64_t token, uint32_t slot, uint32_t written)
{
	const uint8_t *at = side->rig.area + side->rig.data + (uint64_t)slot * 2 * SLOT;
	struct fuse_in_header in;
	struct fuse_out_header out;
	struct fuse_statfs_out st;

	side->answered++;
	if (side == sides) {
		CHECK_EQ(written, 0);
		return;
	}
	memcpy(&in, at, sizeof(in));
	memcpy(&out, at + SLOT, sizeof(out));
	CHECK_EQ(in.unique, token);
	CHECK_EQ(out.unique, token);
	CHECK_EQ(out.len, written);
	if (out.error) {
		/* no INIT yet, or DESTROY; interrupted, or INIT came; the queue stopped */
		CHECK(out.error == -EIO || out.error == -EINTR || out.error == -EAGAIN);
		CHECK_EQ(written, sizeof(out));
		side->interrupted += out.error == -EINTR;
		side->ended += out.error == -EAGAIN;
	} else if (in.opcode == FUSE_STATFS) {
		memcpy(&st, at + SLOT + sizeof(out), sizeof(st));
		CHECK_EQ(written, sizeof(out) + sizeof(st));
		CHECK_EQ(st.st.blocks, token);
		CHECK_EQ(st.st.bfree, in.nodeid);
	}
}

static void kick(struct side *side)
{
	uint64_t one = 1;

	if (ring_drv_publish(side->rig.drv))
		CHECK(write(side->kick, &one, sizeof(one)) == sizeof(one));
}

static void *drive(void *arg)
{
	struct side *side = arg;
	uint64_t number = (uint64_t)(side - sides) << 40, last_ns = ring_now_ns();
	uint32_t free_slots[SIZE / 2], nr_free = SIZE / 2, i;

	for (i = 0; i < nr_free; i++)
		free_slots[i] = i;
	while (side->answered < requests) {
		struct ring_drv_used used[SIZE];
		uint32_t burst = (uint32_t)(rig_rnd(&side->random) % 8) + 1;
		int n;

		for (i = 0; i < burst && nr_free && side->asked < requests; i++)
			make(side, ++number, free_slots[--nr_free]);
		kick(side);
		n = ring_drv_poll(side->rig.drv, used, SIZE);
		CHECK(n >= 0);
		for (i = 0; i < (uint32_t)n; i++) {
			look(side, used[i].token >> 8, used[i].token & 0xff, used[i].len);
			free_slots[nr_free++] = used[i].token & 0xff;
		}
		if (n)
			last_ns = ring_now_ns();
		else
			usleep(10);
		CHECK(ring_now_ns() - last_ns < 30000000000u && "requests do not come back");
	}
	atomic_fetch_sub(&running, 1);
	return NULL;
}

/* --- set-up ----------------------------------------------------------------------------------------------------- */

static void *run(void *arg)
{
	CHECK_EQ(ring_worker_run(arg), 0);
	return NULL;
}

static struct ring_worker *worker_of(uint32_t i)
{
	return workers[i % WORKERS];
}

static void open_queue(uint32_t i)
{
	struct side *side = &sides[i];

	rig_open(&side->rig, SIZE, RIG_VERSION_1 | (i % 2 ? RIG_EVENT_IDX : 0) | (i == 3 ? RIG_PACKED : 0),
		 i == 3 ? RIG_PACKED_BASE : 0, SIZE * 2 * SLOT);
	rig_start(&side->rig);
	side->random = 0x9e3779b97f4a7c15u * (i + 1);
	side->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	side->source = fs_queue_new(&server, side->rig.vq, SIZE, i == 0);
	CHECK(side->source != NULL);
	side->source->kick_fd = side->kick;
	CHECK_EQ(ring_worker_add(worker_of(i), side->source), 0);
}

/* A queue takes nothing new until all it has is answered, as control does before memory changes. */
static void pause_queue(uint32_t i)
{
	struct ring_worker *w = worker_of(i);
	uint32_t left;
	int looks = 0;

	ring_worker_park(w);
	ring_source_pause(sides[i].source, 1);
	ring_worker_resume(w);
	do {
		CHECK(looks++ < 100000);
		usleep(100);
		ring_worker_park(w);
		left = ring_vq_in_flight(sides[i].rig.vq);
		if (!left)
			ring_source_pause(sides[i].source, 0);
		ring_worker_resume(w);
	} while (left);
}

int main(int argc, char **argv)
{
	struct ring_worker_options how = { .poll_us = RING_POLL_ADAPTIVE, .cpu = -1 };
	pthread_t threads[WORKERS];
	static struct fs_stats stats;
	uint64_t counted = 0, interrupted = 0, ended = 0, again = 0;
	uint32_t i, op;

	if (argc > 1)
		requests = strtoull(argv[1], NULL, 0);
	CHECK_EQ(fs_server_init(&server, &ops, 0), 0);
	fs_server_set_threads(&server, THREADS_MAX);
	for (i = 0; i < WORKERS; i++)
		CHECK((workers[i] = ring_worker_new(&how)) != NULL);
	for (i = 0; i < QUEUES; i++)
		open_queue(i);
	for (i = 0; i < WORKERS; i++)
		CHECK(pthread_create(&threads[i], NULL, run, workers[i]) == 0);
	for (i = 0; i < QUEUES; i++)
		CHECK(pthread_create(&sides[i].thread, NULL, drive, &sides[i]) == 0);
	for (i = 0; atomic_load(&running); i++) {
		usleep(3000);
		pause_queue(i % QUEUES);
	}
	for (i = 0; i < QUEUES; i++)
		CHECK(pthread_join(sides[i].thread, NULL) == 0);
	for (i = 0; i < WORKERS; i++) {
		ring_worker_stop(workers[i]);
		CHECK(pthread_join(threads[i], NULL) == 0);
	}
	for (i = 0; i < QUEUES; i++) {
		fs_queue_stats(sides[i].source, &stats);
		for (op = 0; op < FS_OPS; op++)
			counted += stats.requests[op];
		again += stats.again;
		interrupted += sides[i].interrupted;
		ended += sides[i].ended;
		CHECK_EQ(ring_worker_remove(worker_of(i), sides[i].source), 0);
		CHECK_EQ(fs_queue_free(sides[i].source), 0);
		rig_close(&sides[i].rig);
		close(sides[i].kick);
	}
	CHECK_EQ(counted, QUEUES * requests);
	for (i = 0; i < WORKERS; i++)
		ring_worker_free(workers[i]);
	fs_server_free(&server);
	CHECK(atomic_load(&resets) && atomic_load(&slow_ones) && interrupted && again);
	printf("%llu resets, %llu by threads, %llu interrupted, %llu ended by a stop, %llu put off\n",
	       (unsigned long long)resets, (unsigned long long)slow_ones, (unsigned long long)interrupted,
	       (unsigned long long)ended, (unsigned long long)again);
	return 0;
}
