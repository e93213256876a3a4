/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fdb.h - the table of a switch: which address, in which VLAN, is at which port.
 *
 * Theory of operation
 *   Buckets of four entries, a cache line each; a key may be in two of them. The hash is keyed, so that nobody can aim at
 *   a bucket. Time is counted in ticks of 2^30 ns. An entry that has aged counts as absent, and a few buckets
 *   are cleared each tick. Where both buckets of a new key are full, the port with the most entries among them loses one,
 *   unless the new one's has as many.
 */
#ifndef NET_FDB_H
#define NET_FDB_H

#include "devices/net/csrc/net_int.h"

enum {
	FDB_WAYS = 4,
	FDB_PIN_VLAN = 0xffff,		/* of a pinned address, whatever the VLAN */
	FDB_TICK_SHIFT = 30,
};

#define FDB_MAC_MASK 0xffffffffffffull

struct fdb_entry {
	uint64_t key;			/* fdb_key(); 0: free */
	uint32_t tick;			/* when it was heard of */
	uint32_t port;
};

struct fdb_bucket {
	_Alignas(64) struct fdb_entry way[FDB_WAYS];
};

struct fdb {
	struct fdb_bucket *buckets;
	uint64_t mask;			/* buckets - 1 */
	uint64_t seed[2];
	uint32_t ageing;		/* ticks */
	uint32_t now;			/* tick */
	uint32_t gen;			/* changes when an entry moves or goes: what was found before may be wrong */
	uint64_t swept;			/* bucket */
	uint32_t *count;		/* per port: learnt entries; any thread reads */
	uint64_t entries, learnt, moved, evicted;	/* any thread reads */
};

/* @mac in the lower 48 bits, as loaded from memory. Never 0 for an address that may be a source. */
static inline uint64_t fdb_key(uint64_t mac, uint32_t vlan)
{
	return mac | (uint64_t)vlan << 48;
}

static inline uint64_t fdb_hash(const struct fdb *fdb, uint64_t key)
{
	uint64_t h = (key ^ fdb->seed[0]) * 0x9e3779b97f4a7c15ull;

	h = (h ^ h >> 32 ^ fdb->seed[1]) * 0xd6e8feb86659fd93ull;
	return h ^ h >> 32;
}

static inline bool fdb_is_pin(uint64_t key)
{
	return key >> 48 == FDB_PIN_VLAN;
}

static inline bool fdb_aged(const struct fdb *fdb, const struct fdb_entry *e)
{
	return fdb->now - e->tick > fdb->ageing && !fdb_is_pin(e->key);
}

static inline struct fdb_entry *fdb_in(struct fdb_bucket *b, uint64_t key)
{
	int i;

	for (i = 0; i < FDB_WAYS; i++)
		if (b->way[i].key == key)
			return &b->way[i];
	return NULL;
}

/* NULL: unknown, or aged. */
static inline struct fdb_entry *fdb_find(const struct fdb *fdb, uint64_t key)
{
	uint64_t h = fdb_hash(fdb, key);
	struct fdb_entry *e = fdb_in(&fdb->buckets[h & fdb->mask], key);

	if (net_unlikely(!e))
		e = fdb_in(&fdb->buckets[h >> 32 & fdb->mask], key);
	return e && net_likely(!fdb_aged(fdb, e)) ? e : NULL;
}

int fdb_init(struct fdb *fdb, uint32_t entries, uint32_t ports, uint64_t seed);
void fdb_fini(struct fdb *fdb);
/* @key is at @port now. False: no room. */
bool fdb_put(struct fdb *fdb, uint64_t key, uint32_t port);
void fdb_move(struct fdb *fdb, struct fdb_entry *e, uint32_t port);
void fdb_remove(struct fdb *fdb, uint64_t key);
/* Forget what was learnt on @port, UINT32_MAX: anywhere. */
void fdb_flush(struct fdb *fdb, uint32_t port);
/* It is @tick: clear away some of what has aged. */
void fdb_set_now(struct fdb *fdb, uint32_t tick);

#endif
