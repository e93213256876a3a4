/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rss.h - hashes of flows (VIRTIO 1.3, 5.1.6.4.3): which queue a frame goes to, and what its driver is told of it.
 *
 * Theory of operation
 *   Toeplitz's hash is a product of polynomials over GF(2), input and key, of which 32 coefficients in the middle are
 *   wanted. The input is taken in words of 32 bits, each with its window of the key; where the processor multiplies
 *   without carry that is one instruction for each word, and elsewhere a shift for each bit that is set.
 *
 *   The driver sets all of it by its control queue, on that queue's worker. A card with pairs on several workers is
 *   hashed for on all of them: words are whole, and while they change nothing is hashed.
 */
#ifndef NET_RSS_H
#define NET_RSS_H

#include "devices/net/csrc/net_int.h"

enum {
	NET_RSS_KEY = 40,		/* bytes: enough for the longest input */
	NET_RSS_WORDS = 9,		/* two IPv6 addresses and two ports */
	NET_RSS_TABLE = 128,		/* entries: what the standard asks for */

	/* struct net_rss.types */
	NET_HASH_IPV4 = 1,
	NET_HASH_TCPV4 = 2,
	NET_HASH_UDPV4 = 4,
	NET_HASH_IPV6 = 8,
	NET_HASH_TCPV6 = 16,
	NET_HASH_UDPV6 = 32,
	NET_HASH_TYPES = 63,

	/* what is reported */
	NET_REPORT_NONE = 0,
	NET_REPORT_IPV4 = 1,
	NET_REPORT_TCPV4 = 2,
	NET_REPORT_UDPV4 = 3,
	NET_REPORT_IPV6 = 4,
	NET_REPORT_TCPV6 = 5,
	NET_REPORT_UDPV6 = 6,
};

struct net_rss {
	uint32_t types;			/* NET_HASH_*; 0: nothing is hashed */
	uint32_t steer;			/* the table is used */
	uint32_t mask;			/* entries of it, less one */
	uint32_t unclassified;		/* pair of what has no hash */
	uint64_t window[NET_RSS_WORDS];	/* of the key: 64 bits from bit 32 * i on; first bit highest */
	uint64_t mirror[NET_RSS_WORDS];	/* the same, first bit lowest */
	uint8_t table[NET_RSS_TABLE];	/* pairs */
};

/* While nothing is hashed: the key is @len bytes at @key, at most NET_RSS_KEY, and zeroes after them. */
void net_rss_set_key(struct net_rss *rss, const uint8_t *key, uint32_t len);
/* The hash of @n words of input, at most NET_RSS_WORDS, first byte highest. */
uint32_t net_rss_toeplitz(const struct net_rss *rss, const uint32_t *words, uint32_t n);
uint32_t net_rss_toeplitz_portable(const struct net_rss *rss, const uint32_t *words, uint32_t n);
/* The hash of the frame that begins with the @len bytes at @head; NET_REPORT_*: of what, or that there is none. */
uint32_t net_rss_hash(const struct net_rss *rss, const uint8_t *head, uint32_t len, uint32_t *hash);

static inline bool net_rss_on(const struct net_rss *rss)
{
	return __atomic_load_n(&rss->types, __ATOMIC_ACQUIRE) != 0;
}

static inline bool net_rss_steers(const struct net_rss *rss)
{
	return __atomic_load_n(&rss->steer, __ATOMIC_ACQUIRE) != 0;
}

/* Nothing is hashed any more. */
static inline void net_rss_stop(struct net_rss *rss)
{
	__atomic_store_n(&rss->steer, 0, __ATOMIC_RELEASE);
	__atomic_store_n(&rss->types, 0, __ATOMIC_RELEASE);
}

/* The pair that @f goes to. */
uint32_t net_rss_pair(const struct net_rss *rss, const struct net_frame *f);

#endif
