/* SPDX-License-Identifier: Apache-2.0 */
/*
 * csum.h - the Internet checksum (RFC 1071), in pieces.
 *
 * A sum here is of 16-bit words as they lie in memory: it is folded, inverted and stored in the order it has.
 * The bytes may be a guest's: each is loaded once, and only added up.
 */
#ifndef NET_CSUM_H
#define NET_CSUM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Sum of @len bytes, at most 1 MiB; an odd last byte is one with a zero after it. Not folded, less than 2^57. */
typedef uint64_t (*net_sum_fn)(const void *p, size_t len);

uint64_t net_sum_scalar(const void *p, size_t len);
/* The fastest that this processor can. */
net_sum_fn net_sum_best(void);

/* A sum as 16 bits: 0 only of nothing but zeros. */
static inline uint16_t net_sum_fold(uint64_t sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)((sum & 0xffff) + (sum >> 16));
}

/* The sum @part of bytes that begin at an @odd place of what is summed up. */
static inline uint64_t net_sum_at(uint64_t part, bool odd)
{
	return odd ? __builtin_bswap16(net_sum_fold(part)) : part;
}

/* What goes into the packet. 0 would say "none" in UDP: its other form means the same everywhere (RFC 768). */
static inline uint16_t net_sum_finish(uint64_t sum)
{
	uint16_t csum = (uint16_t)~net_sum_fold(sum);

	return csum ? csum : 0xffff;
}

#endif
