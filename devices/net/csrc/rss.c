/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rss.c - hashes of flows; theory in rss.h.
 */
#include <string.h>

#include "devices/net/csrc/bytes.h"
#include "devices/net/csrc/rss.h"

/* --- Toeplitz --------------------------------------------------------------------------------------------------- */

static uint64_t reversed(uint64_t v)
{
	v = (v >> 1 & 0x5555555555555555) | (v & 0x5555555555555555) << 1;
	v = (v >> 2 & 0x3333333333333333) | (v & 0x3333333333333333) << 2;
	v = (v >> 4 & 0x0f0f0f0f0f0f0f0f) | (v & 0x0f0f0f0f0f0f0f0f) << 4;
	return __builtin_bswap64(v);
}

static uint64_t load_be(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return __builtin_bswap64(v);
}

void net_rss_set_key(struct net_rss *rss, const uint8_t *key, uint32_t len)
{
	uint8_t whole[NET_RSS_KEY] = { 0 };
	uint32_t i;

	memcpy(whole, key, len < NET_RSS_KEY ? len : NET_RSS_KEY);
	for (i = 0; i < NET_RSS_WORDS; i++) {
		uint64_t window = load_be(whole + 4 * i);

		__atomic_store_n(&rss->window[i], window, __ATOMIC_RELAXED);
		__atomic_store_n(&rss->mirror[i], reversed(window), __ATOMIC_RELAXED);
	}
}

uint32_t net_rss_toeplitz_portable(const struct net_rss *rss, const uint32_t *words, uint32_t n)
{
	uint64_t hash = 0;
	uint32_t i;

	for (i = 0; i < n; i++) {
		uint64_t window = __atomic_load_n(&rss->window[i], __ATOMIC_RELAXED);
		uint32_t left = words[i];

		while (left) {
			int first = __builtin_clz(left);

			hash ^= window << first;
			left &= ~(0x80000000u >> first);
		}
	}
	return (uint32_t)(hash >> 32);
}

#if defined(__x86_64__)
#include <immintrin.h>

/*
 * With the first bit of the word highest (bit 31 - i is input i) and that of the key lowest (bit m is key m), bit 31 + j
 * of the product is the sum of all input i and key i + j: bit j of the hash. The sums of the words are one sum.
 */
__attribute__((target("pclmul"))) static uint32_t toeplitz_clmul(const struct net_rss *rss, const uint32_t *words,
								   uint32_t n)
{
	__m128i sum = _mm_setzero_si128();
	uint32_t i;

	for (i = 0; i < n; i++) {
		uint64_t mirror = __atomic_load_n(&rss->mirror[i], __ATOMIC_RELAXED);

		sum = _mm_xor_si128(sum, _mm_clmulepi64_si128(_mm_cvtsi64_si128((long long)mirror),
							      _mm_cvtsi64_si128((long long)words[i]), 0));
	}
	return (uint32_t)(reversed((uint64_t)_mm_cvtsi128_si64(sum) >> 31) >> 32);
}

uint32_t net_rss_toeplitz(const struct net_rss *rss, const uint32_t *words, uint32_t n)
{
	if (net_likely(__builtin_cpu_supports("pclmul")))
		return toeplitz_clmul(rss, words, n);
	return net_rss_toeplitz_portable(rss, words, n);
}
#else
uint32_t net_rss_toeplitz(const struct net_rss *rss, const uint32_t *words, uint32_t n)
{
	return net_rss_toeplitz_portable(rss, words, n);
}
#endif

/* --- what of a frame is hashed ---------------------------------------------------------------------------------- */

enum {
	ETH_IPV4 = 0x0800,
	ETH_IPV6 = 0x86dd,
	ETH_VLAN = 0x8100,
	ETH_QINQ = 0x88a8,
	TAGS = 2,
	IPV4_BYTES = 20,
	IPV6_BYTES = 40,
	PROTO_TCP = 6,
	PROTO_UDP = 17,
	EXTENSIONS = 8,		/* of an IPv6 packet that are looked at */
};

/* The place of the ports, if protocol @proto at @at of @head has some that are there; else 0. */
static uint32_t ports_at(uint32_t proto, uint32_t at, uint32_t len)
{
	return (proto == PROTO_TCP || proto == PROTO_UDP) && at + 4 <= len ? at : 0;
}

/* Options for every hop, routing, options for the destination. */
static bool is_extension(uint32_t proto)
{
	return proto == 0 || proto == 43 || proto == 60;
}

/* IPv6 at @at: what follows its extensions (VIRTIO 1.3, 5.1.6.4.3.4: without types of their own they are left out). */
static uint32_t after_extensions(const uint8_t *head, uint32_t len, uint32_t at, uint32_t *ports)
{
	uint32_t next = head[at + 6], i;

	at += IPV6_BYTES;
	for (i = 0; i < EXTENSIONS && is_extension(next) && at + 2 <= len; i++) {
		next = head[at];
		at += (head[at + 1] + 1u) * 8;
	}
	*ports = ports_at(next, at, len);	/* fragments have none: those after the first lack them */
	return next;
}

/* Report of the flow of @kind that @types hash, with its @ports or without; @first: NET_REPORT_IPV4 or its like. */
static uint32_t report_of(uint32_t types, uint32_t first, uint32_t proto, uint32_t ports)
{
	uint32_t bit = 1u << (first - 1);	/* of addresses alone; TCP and UDP are the next two */

	if (ports && proto == PROTO_TCP && types & bit << 1)
		return first + 1;
	if (ports && proto == PROTO_UDP && types & bit << 2)
		return first + 2;
	return types & bit ? first : NET_REPORT_NONE;
}

uint32_t net_rss_hash(const struct net_rss *rss, const uint8_t *head, uint32_t len, uint32_t *hash)
{
	uint32_t types = __atomic_load_n(&rss->types, __ATOMIC_ACQUIRE);
	uint32_t at = 12, ports = 0, tags, type, proto, report, i, n;
	uint32_t words[NET_RSS_WORDS];

	if (!types || len < NET_ETH)
		return NET_REPORT_NONE;
	type = get16(head + at);
	for (tags = 0; tags < TAGS && (type == ETH_VLAN || type == ETH_QINQ) && at + 6 <= len; tags++) {
		at += 4;
		type = get16(head + at);
	}
	at += 2;
	if (type == ETH_IPV4 && at + IPV4_BYTES <= len) {
		proto = head[at + 9];
		if (!(get16(head + at + 6) & 0x3fff))	/* not a fragment */
			ports = ports_at(proto, at + (head[at] & 15u) * 4, len);
		report = report_of(types, NET_REPORT_IPV4, proto, ports);
		n = 2;
		at += 12;
	} else if (type == ETH_IPV6 && at + IPV6_BYTES <= len) {
		proto = after_extensions(head, len, at, &ports);
		report = report_of(types, NET_REPORT_IPV6, proto, ports);
		n = 8;
		at += 8;
	} else {
		return NET_REPORT_NONE;
	}
	if (report == NET_REPORT_NONE)
		return report;
	for (i = 0; i < n; i++)
		words[i] = get32(head + at + 4 * i);
	if (report != NET_REPORT_IPV4 && report != NET_REPORT_IPV6)
		words[n++] = get32(head + ports);
	*hash = net_rss_toeplitz(rss, words, n);
	return report;
}

uint32_t net_rss_pair(const struct net_rss *rss, const struct net_frame *f)
{
	uint32_t hash;

	if (net_rss_hash(rss, f->head, f->head_len, &hash) == NET_REPORT_NONE)
		return __atomic_load_n(&rss->unclassified, __ATOMIC_RELAXED);
	return __atomic_load_n(&rss->table[hash & __atomic_load_n(&rss->mask, __ATOMIC_RELAXED)], __ATOMIC_RELAXED);
}
