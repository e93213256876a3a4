/* SPDX-License-Identifier: Apache-2.0 */
/*
 * load.c - load generator for virtio-blk queues.
 *
 * Every request has a slot with fixed addresses for header, data and status; only the sector changes. How they are sent
 * and taken back is ring/csrc/loadgen.h's.
 */
#include "devices/blk/csrc/load.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
	SECTOR = 512,
	T_IN = 0,
	T_OUT = 1,
	STATUS_AT = 16,
	NR_BUFS = 3,
	STATUS_UNSET = 0xff,
};

struct slot {
	uint64_t sector;
	uint32_t write;
	uint32_t pad;
};

struct queue {
	struct gen_queue gen;	/* first: a pointer to it is one to the queue */
	SHM uint8_t *slots;
	SHM uint8_t *data;
	uint64_t slots_gpa, data_gpa;
	uint64_t first, end;	/* sequential: this queue's blocks */
	uint64_t next_block;
	struct slot slot[GEN_DEPTH];
};

struct load {
	struct gen gen;		/* first, likewise */
	struct load_config cfg;
	struct load_stats stats;
	uint64_t blocks;	/* of the disk */
	uint64_t random;	/* state of the generator */
	uint32_t random_now;	/* blocks at random in this run */
};

struct load *load_new(const struct load_config *config)
{
	struct load *load;

	if (config->block_bytes == 0 || config->block_bytes % SECTOR || config->depth == 0 ||
	    config->depth > GEN_DEPTH || config->disk_bytes < config->block_bytes || config->read_percent > 100)
		return NULL;
	load = calloc(1, sizeof(*load));
	if (load == NULL)
		return NULL;
	load->cfg = *config;
	load->blocks = config->disk_bytes / config->block_bytes;
	load->random = measure_mix(config->seed) | 1;
	load->gen.stats = &load->stats.run;
	load->gen.rate = config->rate;
	load->gen.poll = config->poll;
	return load;
}

void load_free(struct load *load)
{
	if (load == NULL)
		return;
	gen_close(&load->gen);
	free(load);
}

int load_add_queue(struct load *load, struct ring_drv *drv, int kick_fd, int call_fd, void *slots,
		   uint64_t slots_gpa, void *data, uint64_t data_gpa)
{
	struct queue *q = calloc(1, sizeof(*q));

	if (q == NULL)
		return -ENOMEM;
	q->slots = slots;
	q->slots_gpa = slots_gpa;
	q->data = data;
	q->data_gpa = data_gpa;
	return gen_add_queue(&load->gen, &q->gen, drv, kick_fd, call_fd, load->cfg.depth);
}

void load_stop(struct load *load)
{
	gen_stop(&load->gen);
}

const struct load_stats *load_stats(const struct load *load)
{
	return &load->stats;
}

uint64_t load_in_flight(const struct load *load)
{
	return load->gen.in_flight;
}

void load_set_mode(struct load *load, uint32_t read_percent, uint32_t random, uint32_t verify)
{
	load->cfg.read_percent = read_percent > 100 ? 100 : read_percent;
	load->cfg.random = random;
	load->cfg.verify = verify;
}

static void fill(const struct load *load, SHM uint8_t *data, uint64_t sector)
{
	uint64_t words = load->cfg.block_bytes / 8;

	for (uint64_t i = 0; i < words; i++)
		shm_store64(data + 8 * i, measure_mix(load->cfg.seed ^ (sector * (SECTOR / 8) + i)));
}

static bool matches(const struct load *load, const SHM uint8_t *data, uint64_t sector)
{
	uint64_t words = load->cfg.block_bytes / 8;

	for (uint64_t i = 0; i < words; i++)
		if (shm_load64(data + 8 * i) != measure_mix(load->cfg.seed ^ (sector * (SECTOR / 8) + i)))
			return false;
	return true;
}

/* Sequential: this queue's part of the disk. */
static void begin(struct gen *g, struct gen_queue *gq, uint32_t number)
{
	struct load *load = (struct load *)g;
	struct queue *q = (struct queue *)gq;

	q->first = load->blocks * number / g->nr_queues;
	q->end = load->blocks * (number + 1) / g->nr_queues;
	gq->over = g->mode == GEN_ONCE && q->first == q->end;
	if (g->mode == GEN_ONCE || q->next_block < q->first || q->next_block >= q->end)
		q->next_block = q->first < q->end ? q->first : 0;
}

static bool submit(struct gen *g, struct gen_queue *gq, uint16_t nr)
{
	struct load *load = (struct load *)g;
	struct queue *q = (struct queue *)gq;
	struct slot *slot = &q->slot[nr];
	uint64_t head = q->slots_gpa + (uint64_t)nr * LOAD_SLOT_BYTES;
	SHM uint8_t *hdr = q->slots + (size_t)nr * LOAD_SLOT_BYTES;
	SHM uint8_t *data = q->data + (size_t)nr * load->cfg.block_bytes;
	bool write = load->cfg.read_percent < 100 &&
		     (load->cfg.read_percent == 0 || measure_draw_below(&load->random, 100) >= load->cfg.read_percent);
	uint64_t block = load->random_now ? measure_draw_below(&load->random, load->blocks) : q->next_block;
	struct ring_drv_buf bufs[NR_BUFS] = {
		{ .addr = head, .len = 16 },
		{ .addr = q->data_gpa + (uint64_t)nr * load->cfg.block_bytes, .len = load->cfg.block_bytes },
		{ .addr = head + STATUS_AT, .len = 1 },
	};

	slot->sector = load->cfg.disk_start / SECTOR + block * (load->cfg.block_bytes / SECTOR);
	slot->write = write;
	shm_store64(hdr, write ? T_OUT : T_IN);
	shm_store64(hdr + 8, slot->sector);
	shm_store8(hdr + STATUS_AT, STATUS_UNSET);
	if (load->cfg.verify) {
		if (write)
			fill(load, data, slot->sector);
		else
			shm_store64(data, ~measure_mix(load->cfg.seed ^ (slot->sector * (SECTOR / 8))));
	}
	if (ring_drv_add(gq->drv, bufs, write ? 2 : 1, write ? 1 : 2, nr, (int)load->cfg.indirect) < 0)
		return false;
	if (!load->random_now && ++q->next_block == q->end) {
		q->next_block = q->first;
		gq->over = g->mode == GEN_ONCE;
	}
	gq->dirty++;
	return true;
}

static bool finish(struct gen *g, struct gen_queue *gq, const struct ring_drv_used *used)
{
	struct load *load = (struct load *)g;
	struct queue *q = (struct queue *)gq;
	uint16_t nr = (uint16_t)used->token;
	struct slot *slot = &q->slot[nr];
	uint8_t g_status = shm_load8(q->slots + (size_t)nr * LOAD_SLOT_BYTES + STATUS_AT);
	uint32_t want = slot->write ? 1 : load->cfg.block_bytes + 1;

	if (g_status != 0)
		gen_fail(g->stats, LOAD_E_STATUS, g_status);
	else if (used->len != want)
		gen_fail(g->stats, GEN_E_LENGTH, used->len);
	else if (load->cfg.verify && !slot->write &&
		 !matches(load, q->data + (size_t)nr * load->cfg.block_bytes, slot->sector))
		gen_fail(g->stats, GEN_E_DATA, slot->sector);
	if (slot->write)
		load->stats.writes++;
	else
		load->stats.reads++;
	return true;
}

int load_run(struct load *load, uint64_t duration_ns, int mode)
{
	static const struct gen_ops ops = { .begin = begin, .send = submit, .take = finish };
	int rc;

	memset(&load->stats, 0, sizeof(load->stats));
	load->random_now = load->cfg.random && mode == GEN_RUN;
	rc = gen_run(&load->gen, duration_ns, mode, &ops);
	load->stats.bytes = load->stats.run.done * load->cfg.block_bytes;
	return rc;
}
