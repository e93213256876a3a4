/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blk_speed.c - both ends of a block queue in one process: what a request costs in rings, worker and device.
 *
 *	blk_speed STORE DEPTH MILLISECONDS [packed] [sleep] [event] [direct] [same] [nouring] [always|never] [idle]
 *
 * STORE: null, memory, or the path of a file to read at random (4 KiB). The driver polls on CPU 0 (sleep: it waits for
 * the call eventfd), the worker is on CPU 1 (same: on CPU 0 too). Every block that a memory or file store returns is
 * checked. Exit status 1: something came back wrong.
 */
#include <poll.h>
#include <pthread.h>
#include <sched.h>

#include "bench/micro/blk_rig.h"
#include "ring/csrc/stats.h"

static const char *options;

static int want(const char *word)
{
	return strstr(options, word) != NULL;
}

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((size_t)cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

static void *run_worker(void *arg)
{
	int rc = ring_worker_run(arg);

	if (rc)
		fprintf(stderr, "worker: %s\n", ring_strerror(rc));
	return NULL;
}

static void wait_call(struct blk_rig *r)
{
	struct pollfd p = { .fd = r->call, .events = POLLIN };
	uint64_t n;

	if (ring_drv_calls_on(r->drv))
		return;
	poll(&p, 1, 1000);
	if (read(r->call, &n, 8) == 8)
		r->calls++;
	ring_drv_calls_off(r->drv);
}

static uint64_t drive(struct blk_rig *r, uint32_t depth, uint64_t ms)
{
	struct ring_drv_used used[64];
	uint64_t end = ring_now_ns() + ms * 1000000;
	uint64_t done = 0;
	uint32_t turn = 0;
	uint32_t i;

	ring_drv_calls_off(r->drv);
	for (i = 0; i < depth; i++)
		blk_rig_send(r, i);
	blk_rig_publish(r);
	while (ring_drv_pending(r->drv)) {
		int n = ring_drv_poll(r->drv, used, 64);
		int k;

		if (n < 0) {
			r->bad++;
			break;
		}
		if (!n && want("sleep"))
			wait_call(r);
		else if (!n)
			__builtin_ia32_pause();
		for (k = 0; k < n; k++) {
			blk_rig_received(r, (uint32_t)used[k].token, used[k].len);
			done++;
			if (end)
				blk_rig_send(r, (uint32_t)used[k].token);
		}
		if (n && end)
			blk_rig_publish(r);
		if (end && ++turn % 256 == 0 && ring_now_ns() > end)
			end = 0;
	}
	return done;
}

static void idle(struct blk_rig *r)
{
	struct ring_worker_stats before, after;

	ring_worker_stats(r->worker, &before);
	sleep(1);
	ring_worker_stats(r->worker, &after);
	printf("idle second: %.3f ms of CPU\n", (double)(after.cpu_ns - before.cpu_ns) / 1e6);
}

static uint64_t measure(struct blk_rig *r, char **argv)
{
	struct ring_worker_stats ws;
	struct ring_vq_stats vs;
	uint64_t start, ns, done;

	drive(r, (uint32_t)atoi(argv[2]), 50);
	r->kicks = r->calls = 0;
	start = ring_now_ns();
	done = drive(r, (uint32_t)atoi(argv[2]), (uint64_t)atoi(argv[3]));
	ns = ring_now_ns() - start;
	ring_worker_stats(r->worker, &ws);
	ring_vq_stats(r->vq, &vs);
	if (want("idle"))
		idle(r);
	printf("%s depth %s %s: %lu requests, %.1f ns each, %.0f k/s; kicks %lu calls %lu; notified %lu sleeps %lu submits %lu cpu %.0f%%; bad %lu\n",
	       argv[1], argv[2], options, done, (double)ns / (double)done, (double)done * 1e6 / (double)ns, r->kicks,
	       r->calls, vs.notified, ws.sleeps, ws.submits, (double)ws.cpu_ns / (double)ns * 100, r->bad);
	return done;
}

int main(int argc, char **argv)
{
	struct ring_worker_options wo = { .poll_us = -1, .cpu = 1, .uring_entries = 256 };
	uint64_t features = BLK_RIG_INDIRECT | BLK_RIG_VERSION_1;
	static struct blk_rig rig;
	char joined[256] = "";
	pthread_t thread;
	uint64_t done;
	int i;

	if (argc < 4 || atoi(argv[2]) < 1 || atoi(argv[2]) > SIZE)
		return 2;
	for (i = 4; i < argc; i++) {
		strncat(joined, argv[i], sizeof(joined) - strlen(joined) - 2);
		strcat(joined, " ");
	}
	options = joined;
	features |= want("packed") ? BLK_RIG_PACKED : 0;
	features |= want("event") ? BLK_RIG_EVENT_IDX : 0;
	if (want("always"))
		wo.poll_us = RING_POLL_ALWAYS;
	if (want("never"))
		wo.poll_us = RING_POLL_NEVER;
	if (want("same"))
		wo.cpu = 0;
	if (want("nouring"))
		wo.uring_entries = 0;
	pin(0);
	blk_rig_open(&rig, argv[1], want("direct"), features, &wo);
	pthread_create(&thread, NULL, run_worker, rig.worker);
	done = measure(&rig, argv);
	ring_worker_stop(rig.worker);
	pthread_join(thread, NULL);
	i = blk_rig_close(&rig);
	return rig.bad || i || !done;
}
