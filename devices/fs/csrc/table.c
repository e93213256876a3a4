// SPDX-License-Identifier: Apache-2.0
/*
 * table.c - tables of slots that never move: inodes and open files.
 */
#include "devices/fs/csrc/pass_int.h"

#include <stdlib.h>

static uint32_t *field(const struct pass_table *t, void *slot, size_t at)
{
	(void)t;
	return (uint32_t *)(void *)((uint8_t *)slot + at);
}

int pass_table_init(struct pass_table *t, size_t item, size_t index_at, size_t next_at, uint32_t limit)
{
	uint64_t most = (uint64_t)PASS_CHUNK * PASS_CHUNKS - 1;

	/* where chunks lie was said before */
	*t = (struct pass_table){.item = item, .index_at = index_at, .next_at = next_at, .keep = t->keep, .kind = t->kind,
				.generation = t->generation};
	t->limit = limit > most ? (uint32_t)most : limit;
	t->chunks = calloc(PASS_CHUNKS, sizeof(*t->chunks));
	if (t->chunks == NULL)
		return -ENOMEM;
	pthread_mutex_init(&t->lock, NULL);
	atomic_store(&t->top, 1);
	return 0;
}

static uint8_t *chunk_new(struct pass_table *t, uint32_t index)
{
	if (t->keep != NULL)
		return pass_keep_chunk(t->keep, t->kind, index, PASS_CHUNK * t->item);
	return calloc(PASS_CHUNK, t->item);
}

void pass_table_free(struct pass_table *t)
{
	if (t->chunks == NULL)
		return;
	for (uint32_t i = 0; i < PASS_CHUNKS; i++) {
		if (t->keep != NULL)
			pass_keep_chunk_free(atomic_load(&t->chunks[i]), PASS_CHUNK * t->item);
		else
			free(atomic_load(&t->chunks[i]));
	}
	free(t->chunks);
	t->chunks = NULL;
	pthread_mutex_destroy(&t->lock);
}

void *pass_table_slot(const struct pass_table *t, uint32_t index)
{
	uint8_t *chunk;

	if (index == 0 || index >= atomic_load_explicit(&t->top, memory_order_acquire))
		return NULL;
	chunk = atomic_load_explicit(&t->chunks[index / PASS_CHUNK], memory_order_acquire);
	if (fs_unlikely(chunk == NULL))
		return NULL;		/* between numbers that another process gave */
	return chunk + (size_t)(index % PASS_CHUNK) * t->item;
}

/* The first slot from @from on that somebody refers to; 0: none. */
uint32_t pass_table_next(const struct pass_table *t, uint32_t from)
{
	uint32_t top = atomic_load(&t->top);

	for (; from < top; from++) {
		const _Atomic uint64_t *word = pass_table_slot(t, from);

		if (word == NULL)
			from |= PASS_CHUNK - 1;	/* nor are its neighbours there */
		else if ((uint32_t)atomic_load_explicit(word, memory_order_relaxed) != 0)
			return from;
	}
	return 0;
}

void *pass_table_alloc(struct pass_table *t)
{
	uint32_t index = 0;
	void *slot = NULL;

	pthread_mutex_lock(&t->lock);
	if (t->free != 0) {
		slot = pass_table_slot(t, t->free);
		t->free = *field(t, slot, t->next_at);
	} else if ((index = atomic_load(&t->top)) <= t->limit) {
		uint8_t *chunk = atomic_load(&t->chunks[index / PASS_CHUNK]);

		if (chunk == NULL) {
			chunk = chunk_new(t, index / PASS_CHUNK);
			atomic_store_explicit(&t->chunks[index / PASS_CHUNK], chunk, memory_order_release);
		}
		if (chunk != NULL) {
			slot = chunk + (size_t)(index % PASS_CHUNK) * t->item;
			*field(t, slot, t->index_at) = index;
			atomic_store_explicit((_Atomic uint64_t *)slot, (uint64_t)t->generation << 32,
					      memory_order_relaxed);
			atomic_store_explicit(&t->top, index + 1, memory_order_release);
		}
	}
	pthread_mutex_unlock(&t->lock);
	if (slot != NULL)
		atomic_fetch_add_explicit(&t->live, 1, memory_order_relaxed);
	return slot;
}

/* Nobody holds it: its next use has another generation. */
void pass_table_release(struct pass_table *t, void *slot)
{
	_Atomic uint64_t *word = slot;
	uint64_t generation = (atomic_load_explicit(word, memory_order_relaxed) >> 32) + 1;

	atomic_store_explicit(word, generation << 32, memory_order_release);
	pthread_mutex_lock(&t->lock);
	*field(t, slot, t->next_at) = t->free;
	t->free = *field(t, slot, t->index_at);
	pthread_mutex_unlock(&t->lock);
	atomic_fetch_sub_explicit(&t->live, 1, memory_order_relaxed);
}

void *pass_table_get(const struct pass_table *t, uint64_t id)
{
	_Atomic uint64_t *word = pass_table_slot(t, (uint32_t)id);
	uint64_t now;

	if (word == NULL)
		return NULL;
	now = atomic_load_explicit(word, memory_order_relaxed);
	do {
		if (now >> 32 != id >> 32 || (uint32_t)now == 0)
			return NULL;
	} while (!atomic_compare_exchange_weak_explicit(word, &now, now + 1, memory_order_acquire, memory_order_relaxed));
	return word;
}

/* --- tables of another process -------------------------------------------------------------------------------- */

/*
 * state.c, nothing is in flight: the slot of @id, whose number and generation it gets; NULL: taken, or beyond the limit.
 * Only the chunks of such slots are made: numbers from outside must not cost more memory than what they stand for.
 */
void *pass_table_place(struct pass_table *t, uint64_t id)
{
	uint32_t index = (uint32_t)id;
	_Atomic uint64_t *word;
	uint8_t *chunk;

	if (index == 0 || index > t->limit)
		return NULL;
	chunk = atomic_load(&t->chunks[index / PASS_CHUNK]);
	if (chunk == NULL) {
		chunk = chunk_new(t, index / PASS_CHUNK);
		if (chunk == NULL)
			return NULL;
		atomic_store(&t->chunks[index / PASS_CHUNK], chunk);
	}
	if (index >= atomic_load(&t->top))
		atomic_store(&t->top, index + 1);
	word = pass_table_slot(t, index);
	if ((uint32_t)atomic_load(word) != 0)
		return NULL;
	*field(t, word, t->index_at) = index;
	atomic_store(word, id & ~(uint64_t)UINT32_MAX);
	return word;
}

/* Likewise: what was not placed is free. */
void pass_table_settle(struct pass_table *t)
{
	uint32_t live = 0;

	t->free = 0;
	for (uint32_t at = atomic_load(&t->top) - 1; at > 0; at--) {
		_Atomic uint64_t *word = pass_table_slot(t, at);

		if (word == NULL) {
			at = at < PASS_CHUNK ? 1 : at / PASS_CHUNK * PASS_CHUNK;	/* its neighbours are not there either */
		} else if ((uint32_t)atomic_load(word) != 0) {
			live++;
		} else {
			if (atomic_load(word) >> 32 < t->generation)
				atomic_store(word, (uint64_t)t->generation << 32);
			*field(t, word, t->index_at) = at;
			*field(t, word, t->next_at) = t->free;
			t->free = at;
		}
	}
	atomic_store(&t->live, live);
}
