/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fdb.c - the table of a switch; theory in fdb.h.
 */
#include <errno.h>
#include <stdlib.h>

#include "devices/net/csrc/fdb.h"

/* The whole table is looked at in so many ticks. */
#define SWEEP_TICKS 32

int fdb_init(struct fdb *fdb, uint32_t entries, uint32_t ports, uint64_t seed)
{
	uint64_t buckets = 4;

	/* half full at most: then hardly ever are both buckets of a key full */
	while (buckets * FDB_WAYS < 2 * (uint64_t)entries)
		buckets *= 2;
	memset(fdb, 0, sizeof(*fdb));
	fdb->buckets = aligned_alloc(64, buckets * sizeof(*fdb->buckets));
	fdb->count = calloc(ports, sizeof(*fdb->count));
	if (!fdb->buckets || !fdb->count) {
		fdb_fini(fdb);
		return -ENOMEM;
	}
	memset(fdb->buckets, 0, buckets * sizeof(*fdb->buckets));
	fdb->mask = buckets - 1;
	fdb->seed[0] = seed;
	fdb->seed[1] = (seed ^ seed >> 29) * 0xbf58476d1ce4e5b9ull;
	fdb->ageing = UINT32_MAX;
	return 0;
}

void fdb_fini(struct fdb *fdb)
{
	free(fdb->buckets);
	free(fdb->count);
	fdb->buckets = NULL;
	fdb->count = NULL;
}

static void add_count(struct fdb *fdb, uint32_t port, uint32_t n)
{
	__atomic_store_n(&fdb->count[port], fdb->count[port] + n, __ATOMIC_RELAXED);
	ring_count(&fdb->entries, (uint64_t)(int64_t)(int32_t)n);
}

static void drop(struct fdb *fdb, struct fdb_entry *e)
{
	if (!fdb_is_pin(e->key))
		add_count(fdb, e->port, (uint32_t)-1);
	memset(e, 0, sizeof(*e));
	fdb->gen++;
}

/* An entry for a new key of @port in @b: a free one, an aged one. NULL: all are in use. */
static struct fdb_entry *room_in(struct fdb *fdb, struct fdb_bucket *b)
{
	int i;

	for (i = 0; i < FDB_WAYS; i++) {
		struct fdb_entry *e = &b->way[i];

		if (!e->key)
			return e;
		if (fdb_aged(fdb, e)) {
			drop(fdb, e);
			return e;
		}
	}
	return NULL;
}

/* Of both buckets: the learnt entry whose port has most, if that is more than @mine. */
static struct fdb_entry *victim(struct fdb *fdb, struct fdb_bucket *const b[2], uint32_t mine)
{
	struct fdb_entry *worst = NULL;
	int i;

	for (i = 0; i < 2 * FDB_WAYS; i++) {
		struct fdb_entry *e = &b[i / FDB_WAYS]->way[i % FDB_WAYS];

		if (!fdb_is_pin(e->key) && fdb->count[e->port] > mine) {
			worst = e;
			mine = fdb->count[e->port];
		}
	}
	return worst;
}

bool fdb_put(struct fdb *fdb, uint64_t key, uint32_t port)
{
	uint64_t h = fdb_hash(fdb, key);
	struct fdb_bucket *const b[2] = { &fdb->buckets[h & fdb->mask], &fdb->buckets[h >> 32 & fdb->mask] };
	struct fdb_entry *e;
	bool pin = fdb_is_pin(key);
	int i;

	for (i = 0; i < 2; i++) {
		e = fdb_in(b[i], key);
		if (e)		/* aged: fdb_find() did not see it */
			drop(fdb, e);
	}
	e = room_in(fdb, b[0]);
	if (!e)
		e = room_in(fdb, b[1]);
	if (!e) {
		e = victim(fdb, b, pin ? 0 : fdb->count[port] + 1);
		if (!e)
			return false;
		drop(fdb, e);
		ring_count(&fdb->evicted, 1);
	}
	e->key = key;
	e->tick = fdb->now;
	e->port = port;
	if (!pin) {
		add_count(fdb, port, 1);
		ring_count(&fdb->learnt, 1);
	}
	return true;
}

void fdb_move(struct fdb *fdb, struct fdb_entry *e, uint32_t port)
{
	add_count(fdb, e->port, (uint32_t)-1);
	add_count(fdb, port, 1);
	e->port = port;
	e->tick = fdb->now;
	fdb->gen++;
	ring_count(&fdb->moved, 1);
}

void fdb_remove(struct fdb *fdb, uint64_t key)
{
	struct fdb_entry *e = fdb_find(fdb, key);

	if (e)
		drop(fdb, e);
}

void fdb_flush(struct fdb *fdb, uint32_t port)
{
	uint64_t at;
	int i;

	for (at = 0; at <= fdb->mask; at++) {
		for (i = 0; i < FDB_WAYS; i++) {
			struct fdb_entry *e = &fdb->buckets[at].way[i];

			if (e->key && !fdb_is_pin(e->key) && (port == UINT32_MAX || e->port == port))
				drop(fdb, e);
		}
	}
}

void fdb_set_now(struct fdb *fdb, uint32_t tick)
{
	uint64_t passed = tick - fdb->now;
	uint64_t n;
	int i;

	fdb->now = tick;
	n = (fdb->mask / SWEEP_TICKS + 1) * (passed < SWEEP_TICKS ? passed : SWEEP_TICKS);
	while (n--) {
		struct fdb_bucket *b = &fdb->buckets[fdb->swept];

		fdb->swept = (fdb->swept + 1) & fdb->mask;
		for (i = 0; i < FDB_WAYS; i++)
			if (b->way[i].key && fdb_aged(fdb, &b->way[i]))
				drop(fdb, &b->way[i]);
	}
}
