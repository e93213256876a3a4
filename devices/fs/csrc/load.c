/* SPDX-License-Identifier: Apache-2.0 */
/*
 * load.c - load generator for virtio-fs.
 *
 * Every operation in flight has a slot with fixed addresses for headers, arguments and data. An operation is one request,
 * or several that follow each other; latency is that of the operation. How they are sent and taken back is
 * ring/csrc/loadgen.h's.
 */
#include "devices/fs/csrc/load.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "devices/fs/csrc/load_int.h"

enum { BLOCK_MAX = 1 << 30 };

struct fs_load *fs_load_new(const struct fs_load_config *config)
{
	struct fs_load *load;
	uint32_t pieces = config->piece_bytes ? (config->block_bytes + config->piece_bytes - 1) / config->piece_bytes : 1;

	if (config->op > FS_LOAD_CREATE || config->depth == 0 || config->depth > GEN_DEPTH ||
	    config->block_bytes > BLOCK_MAX || config->block_bytes % 8 || config->piece_bytes % 8 ||
	    pieces > FS_LOAD_PIECES)
		return NULL;
	load = calloc(1, sizeof(*load));
	if (load == NULL)
		return NULL;
	load->cfg = *config;
	load->random = measure_mix(config->seed + config->number) | 1;
	load->gen.stats = &load->stats.run;
	load->gen.rate = config->rate;
	load->gen.poll = config->poll;
	load->unique = 1ULL << 32;	/* none of those that set things up */
	return load;
}

void fs_load_free(struct fs_load *load)
{
	if (load == NULL)
		return;
	gen_close(&load->gen);
	free(load);
}

void fs_load_set_files(struct fs_load *load, const struct fs_load_file *files, uint32_t nr)
{
	load->files = files;
	load->nr_files = nr;
}

int fs_load_add_queue(struct fs_load *load, struct ring_drv *drv, int kick_fd, int call_fd,
		      const struct fs_load_memory *memory, const uint64_t *listings, uint32_t number, uint32_t total)
{
	struct load_queue *q = calloc(1, sizeof(*q));

	if (q == NULL)
		return -ENOMEM;
	q->slots = memory->slots;
	q->slots_gpa = memory->slots_gpa;
	q->data = memory->data;
	q->data_gpa = memory->data_gpa;
	q->data_stride = memory->data_stride;
	q->number = number;
	q->total = total;
	q->file = load->nr_files ? number % load->nr_files : 0;
	for (uint32_t i = 0; listings != NULL && i < load->cfg.depth; i++)
		q->slot[i].fh = listings[i];
	return gen_add_queue(&load->gen, &q->gen, drv, kick_fd, call_fd, load->cfg.depth);
}

int fs_load_set_hiprio(struct fs_load *load, struct ring_drv *drv, int kick_fd, void *slots, uint64_t slots_gpa)
{
	struct load_hiprio *h = &load->hiprio;

	if (ring_drv_remember(drv) < 0)
		return -ENOMEM;
	h->drv = drv;
	h->kick_fd = kick_fd;
	h->slots = slots;
	h->slots_gpa = slots_gpa;
	for (h->nr_free = 0; h->nr_free < FS_LOAD_FORGETS; h->nr_free++)
		h->free[h->nr_free] = (uint16_t)h->nr_free;
	ring_drv_calls_off(drv);
	return 0;
}

void fs_load_stop(struct fs_load *load)
{
	gen_stop(&load->gen);
}

const struct fs_load_stats *fs_load_stats(const struct fs_load *load)
{
	return &load->stats;
}

void fs_load_set_op(struct fs_load *load, uint32_t op, uint32_t verify)
{
	load->cfg.op = op;
	load->cfg.verify = verify;
}

static void begin(struct gen *g, struct gen_queue *gq, uint32_t number)
{
	struct fs_load *load = (struct fs_load *)g;
	struct load_queue *q = (struct load_queue *)gq;

	(void)number;
	gq->over = g->mode == GEN_ONCE && q->number >= load->nr_files;
	if (g->mode == GEN_ONCE) {
		q->file = load->nr_files ? q->number % load->nr_files : 0;
		q->block = 0;
	}
}

static bool begin_op(struct gen *g, struct gen_queue *gq, uint16_t nr)
{
	struct fs_load *load = (struct fs_load *)g;
	struct load_queue *q = (struct load_queue *)gq;

	return load_begin_op(load, q, &q->slot[nr]) && load_request(load, q, nr);
}

static bool reply(struct gen *g, struct gen_queue *gq, const struct ring_drv_used *used)
{
	struct fs_load *load = (struct fs_load *)g;
	struct load_queue *q = (struct load_queue *)gq;
	uint16_t nr = (uint16_t)used->token;

	if (load_reply(load, q, nr, used->len))
		return true;
	if (!load_request(load, q, nr))
		g->broken = -ENOSPC;
	return false;
}

/* What was forgotten in this round. */
static void forget(struct gen *g)
{
	struct load_hiprio *h = &((struct fs_load *)g)->hiprio;

	if (h->dirty == 0)
		return;
	h->dirty = 0;
	if (gen_publish(g->stats, h->drv, h->kick_fd) < 0)
		g->broken = -EIO;
}

int fs_load_run(struct fs_load *load, uint64_t duration_ns, int mode)
{
	static const struct gen_ops ops = { .begin = begin, .send = begin_op, .take = reply, .after = forget };

	if (load->nr_files == 0 && load->cfg.op < FS_LOAD_LIST)
		return -EINVAL;
	memset(&load->stats, 0, sizeof(load->stats));
	return gen_run(&load->gen, duration_ns, mode, &ops);
}
