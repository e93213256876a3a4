// SPDX-License-Identifier: Apache-2.0
/*
 * small.c - files that are small for sure.
 *
 * A file that goes with its last name, or its last close, takes as long as it is big: big ones go on a thread. How big
 * one is would have to be asked each time. Of files that the guest made itself it is known as long as nothing that the
 * guest does makes any file big: a number counts how often that happened, files and names remember the number of their
 * beginning. What others do to a file on the host is not seen, and costs at worst the time that the thread would take.
 */
#include <string.h>

#include "devices/fs/csrc/pass_int.h"

uint32_t pass_small_now(struct pass *fs)
{
	struct pass_small *small = &fs->small;
	uint32_t now = atomic_load_explicit(&small->growth, memory_order_relaxed);
	uint32_t seen = atomic_load_explicit(&small->seen, memory_order_relaxed);

	while (seen < now && !atomic_compare_exchange_weak_explicit(&small->seen, &seen, now, memory_order_relaxed,
								    memory_order_relaxed))
		;
	return now;
}

void pass_small_grown(struct pass *fs)
{
	struct pass_small *small = &fs->small;
	uint32_t now = atomic_load_explicit(&small->growth, memory_order_relaxed);

	/* nothing is small under this number: no need for another, which all workers would have to hear of */
	if (atomic_load_explicit(&small->seen, memory_order_relaxed) == now)
		atomic_compare_exchange_strong_explicit(&small->growth, &now, now + 1, memory_order_relaxed,
							memory_order_relaxed);
}

static uint64_t name_hash(const struct pass_inode *dir, const char *name, uint32_t len)
{
	uint64_t h = pass_inode_id(dir) * 0x9e3779b97f4a7c15ull ^ len, word;

	for (; len >= sizeof(word); len -= (uint32_t)sizeof(word), name += sizeof(word)) {
		memcpy(&word, name, sizeof(word));
		h = (h ^ word) * 0xbf58476d1ce4e5b9ull;
		h ^= h >> 32;
	}
	word = 0;
	memcpy(&word, name, len);
	return (h ^ word) * 0xbf58476d1ce4e5b9ull;
}

static _Atomic uint64_t *place_of(struct pass *fs, uint64_t hash)
{
	return &fs->small.names[hash >> (64 - PASS_SMALL_SHIFT)];	/* all of a name reaches the upper bits */
}

/* What stands in its place for a name that is small since @number. */
static uint64_t mark_of(uint64_t hash, uint32_t number)
{
	return hash ^ number * 0x9e3779b97f4a7c15ull;
}

void pass_small_name(struct pass *fs, const struct pass_inode *dir, const char *name, uint32_t len)
{
	uint64_t hash = name_hash(dir, name, len);

	atomic_store_explicit(place_of(fs, hash), mark_of(hash, pass_small_now(fs)), memory_order_relaxed);
}

bool pass_small_is(struct pass *fs, const struct pass_inode *dir, const char *name, uint32_t len)
{
	uint64_t hash = name_hash(dir, name, len);
	uint32_t now = atomic_load_explicit(&fs->small.growth, memory_order_relaxed);

	return atomic_load_explicit(place_of(fs, hash), memory_order_relaxed) == mark_of(hash, now);
}

void pass_small_not(struct pass *fs, const struct pass_inode *dir, const char *name, uint32_t len)
{
	atomic_store_explicit(place_of(fs, name_hash(dir, name, len)), 0, memory_order_relaxed);
}
