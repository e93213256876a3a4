/* SPDX-License-Identifier: Apache-2.0 */
/*
 * shm.h - the one door to memory that a guest or a front-end may change under us.
 *
 * Rules
 * - No other file dereferences shared memory; everything goes through these primitives, once per datum.
 * - A value read here is untrusted until checked: its local carries the prefix g_, and the check is where the prefix
 *   is lost. A g_ value indexes, sizes and bounds nothing.
 * - Data buffers are handed to the kernel in place or copied; they are never parsed in place.
 *
 * All guest layouts here are little-endian (VIRTIO 1.x); big-endian hosts are refused at compile time until tested.
 */
#ifndef RING_SHM_H
#define RING_SHM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "vhostkit has only been built and tested on little-endian hosts"
#endif

/* Marks a pointer into shared memory. */
#define SHM

static inline uint8_t shm_load8(const SHM void *p)
{
	return __atomic_load_n((const uint8_t *)p, __ATOMIC_RELAXED);
}

static inline uint16_t shm_load16(const SHM void *p)
{
	return __atomic_load_n((const uint16_t *)p, __ATOMIC_RELAXED);
}

static inline uint32_t shm_load32(const SHM void *p)
{
	return __atomic_load_n((const uint32_t *)p, __ATOMIC_RELAXED);
}

static inline uint64_t shm_load64(const SHM void *p)
{
	return __atomic_load_n((const uint64_t *)p, __ATOMIC_RELAXED);
}

static inline uint16_t shm_load16_acquire(const SHM void *p)
{
	return __atomic_load_n((const uint16_t *)p, __ATOMIC_ACQUIRE);
}

/*
 * The second half of a packed descriptor: length, id and flags in one single-copy-atomic load, so that whoever sees
 * the flags sees what was stored before them.
 */
static inline uint64_t shm_load64_acquire(const SHM void *p)
{
	return __atomic_load_n((const uint64_t *)p, __ATOMIC_ACQUIRE);
}

static inline void shm_store8(SHM void *p, uint8_t v)
{
	__atomic_store_n((uint8_t *)p, v, __ATOMIC_RELAXED);
}

static inline void shm_store16(SHM void *p, uint16_t v)
{
	__atomic_store_n((uint16_t *)p, v, __ATOMIC_RELAXED);
}

static inline void shm_store32(SHM void *p, uint32_t v)
{
	__atomic_store_n((uint32_t *)p, v, __ATOMIC_RELAXED);
}

static inline void shm_store64(SHM void *p, uint64_t v)
{
	__atomic_store_n((uint64_t *)p, v, __ATOMIC_RELAXED);
}

static inline void shm_store16_release(SHM void *p, uint16_t v)
{
	__atomic_store_n((uint16_t *)p, v, __ATOMIC_RELEASE);
}

static inline void shm_store64_release(SHM void *p, uint64_t v)
{
	__atomic_store_n((uint64_t *)p, v, __ATOMIC_RELEASE);
}

/* Dirty log: others set bits in the same byte at the same time (vhost-user, "Migration"). */
static inline void shm_or8(SHM void *p, uint8_t bits)
{
	if ((shm_load8(p) & bits) != bits)
		__atomic_fetch_or((uint8_t *)p, bits, __ATOMIC_SEQ_CST);
}

/* A full barrier; used only where a store must be seen before a later load (see split.c, packed.c). */
static inline void shm_mb(void)
{
#if defined(__SANITIZE_THREAD__)
	/* gcc does not model fences under TSan: a seq_cst RMW is one */
	static _Thread_local _Atomic unsigned dummy;
	atomic_fetch_add_explicit(&dummy, 1, memory_order_seq_cst);
#else
	atomic_thread_fence(memory_order_seq_cst);
#endif
}

enum { SHM_LINE = 64 };	/* of a cache, bytes */

/* Hints; @p may point anywhere. */
static inline void shm_prefetch(const SHM void *p)
{
	__builtin_prefetch(p);
}

/*
 * About to be written: the line comes to be owned, in one go. The builtin would say that only to the few processors it is told of,
 * and the instruction does nothing where it is not known.
 */
static inline void shm_prefetch_write(const SHM void *p)
{
#if defined(__x86_64__)
	__asm__ __volatile__("prefetchw %0" : : "m"(*(const uint8_t *)p));
#else
	__builtin_prefetch(p, 1);
#endif
}

/*
 * Copy out of shared memory into private memory; after it only the private copy may be looked at. The barrier keeps
 * the compiler from reading the source again later.
 */
static inline void shm_copy_in(void *dst, const SHM void *src, size_t n)
{
	memcpy(dst, src, n);
	__asm__ __volatile__("" : : "r"(dst) : "memory");
}

static inline void shm_copy_out(SHM void *dst, const void *src, size_t n)
{
	memcpy(dst, src, n);
	__asm__ __volatile__("" : : "r"(dst) : "memory");
}

/* One 16-byte ring descriptor in two loads: the common shape of both layouts. */
static inline void shm_load_desc(uint64_t d[2], const SHM void *src)
{
	d[0] = __atomic_load_n((const uint64_t *)src, __ATOMIC_RELAXED);
	d[1] = __atomic_load_n((const uint64_t *)src + 1, __ATOMIC_RELAXED);
}

#endif
