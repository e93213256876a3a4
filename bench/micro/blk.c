/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blk.c - what a block request costs our side: worker, ring and device, null and memory store.
 *
 *	blk time SECONDS-PER-CELL	lines "blk STORE-LAYOUT BATCH NS"
 *	blk count			instructions per cell, under callgrind (see count.h)
 *
 * Theory of operation
 *   The driver is a source of the worker that it drives: after each poll of the disk's queue the worker polls the driver,
 *   which takes what came back and sends as much again. All is on one thread, so that every count repeats exactly.
 *   The driver's own work is left out of the count; its share of the time is in the time.
 */
#include "bench/micro/blk_rig.h"
#include "bench/micro/count.h"
#include "ring/csrc/stats.h"

enum { WARM = 640, COUNTED = 1920 };

static const char *const stores[] = { "null", "memory" };
static const struct {
	const char *name;
	uint64_t features;
} layouts[] = {
	{ "split", BLK_RIG_EVENT_IDX },
	{ "packed", BLK_RIG_EVENT_IDX | BLK_RIG_PACKED },
};
static const uint32_t batches[] = { 1, 8, 32 };

#define NR(a) (sizeof(a) / sizeof((a)[0]))

struct driver {
	struct ring_source source;
	struct blk_rig *rig;
	uint64_t done, target;	/* requests */
	uint64_t end_ns;	/* 0: by target */
	bool counting;
	bool stopping;
	uint32_t turn;
};

static bool over(struct driver *d)
{
	if (!d->end_ns)
		return d->done >= d->target;
	return ++d->turn % 256 == 0 && ring_now_ns() >= d->end_ns;
}

static int drive(struct ring_source *source, int budget)
{
	struct driver *d = (struct driver *)(void *)source;
	struct ring_drv_used used[64];
	int n, k;

	if (d->counting)
		count_end();
	n = ring_drv_poll(d->rig->drv, used, 64);
	RIG_NEED(n >= 0);
	d->done += (uint64_t)n;
	if (!d->stopping && over(d)) {
		d->stopping = true;
		d->counting = false;
		ring_worker_stop(source->worker);
	}
	for (k = 0; k < n; k++) {
		blk_rig_received(d->rig, (uint32_t)used[k].token, used[k].len);
		if (!d->stopping && budget)
			blk_rig_send(d->rig, (uint32_t)used[k].token);
	}
	if (n)
		blk_rig_publish(d->rig);
	if (d->counting)
		count_begin();
	return n;
}

static int no_arm(struct ring_source *source)
{
	(void)source;
	return 0;
}

static void nothing(struct ring_source *source)
{
	(void)source;
}

static const struct ring_source_ops ops = { .poll = drive, .flush = nothing, .arm = no_arm, .disarm = nothing };

/* Keep @batch requests in flight until @target came back, or until @end_ns. */
static uint64_t run(struct driver *d, uint32_t batch, uint64_t target, uint64_t end_ns, bool counting)
{
	uint32_t i;

	d->done = 0;
	d->target = target;
	d->end_ns = end_ns;
	d->stopping = false;
	d->counting = counting;
	for (i = 0; i < batch; i++)
		blk_rig_send(d->rig, i);
	blk_rig_publish(d->rig);
	if (counting) {
		count_clear();
		count_begin();
	}
	RIG_NEED(ring_worker_run(d->rig->worker) == 0);
	RIG_NEED(d->rig->bad == 0 && ring_drv_pending(d->rig->drv) == 0);
	return d->done;
}

static void cell(const char *store, const char *layout, uint64_t features, uint32_t batch, double seconds)
{
	struct ring_worker_options wo = { .poll_us = RING_POLL_ALWAYS, .cpu = -1 };
	static struct blk_rig rig;
	static struct driver driver;
	char name[128];

	blk_rig_open(&rig, store, 0, features | BLK_RIG_INDIRECT | BLK_RIG_VERSION_1, &wo);
	driver = (struct driver){ .rig = &rig, .source = { .ops = &ops, .kick_fd = -1, .news_fd = -1 } };
	RIG_NEED(ring_worker_add(rig.worker, &driver.source) == 0);
	ring_drv_calls_off(rig.drv);
	run(&driver, batch, WARM, 0, false);
	snprintf(name, sizeof(name), "blk %s-%s %u", store, layout, batch);
	if (seconds > 0) {
		uint64_t start = ring_now_ns();
		uint64_t done = run(&driver, batch, 0, start + (uint64_t)(seconds * 1e9), false);

		printf("%s %.2f\n", name, (double)(ring_now_ns() - start) / (double)done);
	} else {
		run(&driver, batch, COUNTED, 0, true);
		snprintf(name + strlen(name), sizeof(name) - strlen(name), " device = %d", COUNTED);
		count_dump(name);
	}
	RIG_NEED(ring_worker_remove(rig.worker, &driver.source) == 0);
	RIG_NEED(blk_rig_close(&rig) == 0);
}

int main(int argc, char **argv)
{
	double seconds = argc == 3 && !strcmp(argv[1], "time") ? atof(argv[2]) : 0;
	size_t i, j, k;

	if (seconds <= 0 && (argc != 2 || strcmp(argv[1], "count") != 0)) {
		fprintf(stderr, "usage: blk count | blk time SECONDS\n");
		return 2;
	}
	if (seconds <= 0)
		count_need();
	for (i = 0; i < NR(stores); i++)
		for (j = 0; j < NR(layouts); j++)
			for (k = 0; k < NR(batches); k++)
				cell(stores[i], layouts[j].name, layouts[j].features, batches[k], seconds);
	return 0;
}
