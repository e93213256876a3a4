/* SPDX-License-Identifier: Apache-2.0 */
/* loadgen.c - the parts of load generators that cost nothing while requests flow: queues, sleeping, accounts. */
#include "ring/csrc/loadgen.h"

#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

uint64_t gen_hist_value(uint32_t bucket)
{
	return measure_value(bucket);
}

void gen_account_begin(struct gen_account *account)
{
	prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
	getrusage(RUSAGE_THREAD, &account->usage);
	account->cpu_ns = measure_ns(CLOCK_THREAD_CPUTIME_ID);
	account->ns = measure_ns(CLOCK_MONOTONIC);
	account->ticks = measure_ticks();
}

void gen_account_end(const struct gen_account *account, struct gen_stats *stats)
{
	struct rusage usage;

	stats->ticks = measure_ticks() - account->ticks;
	stats->ns = measure_ns(CLOCK_MONOTONIC) - account->ns;
	stats->cpu_ns = measure_ns(CLOCK_THREAD_CPUTIME_ID) - account->cpu_ns;
	getrusage(RUSAGE_THREAD, &usage);
	stats->voluntary = (uint64_t)(usage.ru_nvcsw - account->usage.ru_nvcsw);
	stats->involuntary = (uint64_t)(usage.ru_nivcsw - account->usage.ru_nivcsw);
}

void gen_sleep(struct gen_stats *stats, struct pollfd *fds, nfds_t nr, uint64_t limit_ns)
{
	struct timespec ts = {
		.tv_sec = (time_t)(limit_ns / MEASURE_NS), .tv_nsec = (long)(limit_ns % MEASURE_NS)
	};

	stats->sleeps++;
	if (ppoll(fds, nr, &ts, NULL) < 0)
		for (nfds_t i = 0; i < nr; i++)
			fds[i].revents = 0;
}

void gen_drain_calls(struct gen_stats *stats, int call_fd)
{
	uint64_t count;

	/* ppoll() may have woken for another queue */
	if (call_fd >= 0 && read(call_fd, &count, sizeof(count)) == sizeof(count))
		stats->calls += count;
}

int gen_add_queue(struct gen *g, struct gen_queue *q, struct ring_drv *drv, int kick_fd, int call_fd, uint32_t depth)
{
	int rc = 0;

	if (g->nr_queues == GEN_QUEUES)
		rc = -ENOSPC;
	else if (ring_drv_remember(drv) < 0)
		rc = -ENOMEM;
	if (rc < 0) {
		free(q);
		return rc;
	}
	q->drv = drv;
	q->kick_fd = kick_fd;
	q->call_fd = call_fd;
	q->nr_free = depth;
	for (uint32_t i = 0; i < depth; i++)
		q->free[i] = (uint16_t)(depth - 1 - i);
	g->queues[g->nr_queues++] = q;
	return 0;
}

void gen_close(struct gen *g)
{
	for (uint32_t i = 0; i < g->nr_queues; i++)
		free(g->queues[i]);
	g->nr_queues = 0;
}

void gen_stop(struct gen *g)
{
	__atomic_store_n(&g->stop, 1, __ATOMIC_RELAXED);
}

void gen_sleep_on_calls(struct gen *g, uint64_t limit_ns)
{
	struct pollfd fds[GEN_QUEUES];
	bool there = false;

	for (uint32_t i = 0; i < g->nr_queues; i++) {
		fds[i] = (struct pollfd){ .fd = g->queues[i]->call_fd, .events = POLLIN };
		if (ring_drv_calls_on(g->queues[i]->drv))
			there = true;
	}
	if (!there) {
		gen_sleep(g->stats, fds, g->nr_queues, limit_ns);
		for (uint32_t i = 0; i < g->nr_queues; i++)
			if (fds[i].revents)
				gen_drain_calls(g->stats, g->queues[i]->call_fd);
	}
	for (uint32_t i = 0; i < g->nr_queues; i++)
		ring_drv_calls_off(g->queues[i]->drv);
}
