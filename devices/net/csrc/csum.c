/* SPDX-License-Identifier: Apache-2.0 */
/*
 * csum.c - sums of 16-bit words. Wider words are added instead: 2^16 is 1 in one's complement arithmetic, so that the
 * halves of any word may be added up apart and folded at the end.
 */
#include <string.h>

#include "devices/net/csrc/csum.h"

static inline uint64_t load64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

/* Less than 16 bytes. */
static inline uint64_t sum_tail(const uint8_t *p, size_t len)
{
	uint64_t sum = 0, w;

	if (len & 8) {
		w = load64(p);
		sum += (w & 0xffffffff) + (w >> 32);
		p += 8;
	}
	if (len & 7) {
		w = 0;
		memcpy(&w, p, len & 7);
		sum += (w & 0xffffffff) + (w >> 32);
	}
	return sum;
}

uint64_t net_sum_scalar(const void *buf, size_t len)
{
	const uint8_t *p = buf;
	uint64_t low[2] = { 0, 0 }, high[2] = { 0, 0 };

	for (; len >= 16; len -= 16, p += 16) {
		uint64_t a = load64(p), b = load64(p + 8);

		low[0] += a & 0xffffffff;
		high[0] += a >> 32;
		low[1] += b & 0xffffffff;
		high[1] += b >> 32;
	}
	return low[0] + low[1] + high[0] + high[1] + sum_tail(p, len);
}

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("avx2"))) static uint64_t sum_avx2(const void *buf, size_t len)
{
	const __m256i mask = _mm256_set1_epi64x(0xffffffff);
	const uint8_t *p = buf;
	__m256i low[2], high[2], all;
	uint64_t lane[4];

	if (len < 128)
		return net_sum_scalar(buf, len);
	low[0] = low[1] = high[0] = high[1] = _mm256_setzero_si256();
	for (; len >= 64; len -= 64, p += 64) {
		__m256i a = _mm256_loadu_si256((const __m256i *)(const void *)p);
		__m256i b = _mm256_loadu_si256((const __m256i *)(const void *)(p + 32));

		low[0] = _mm256_add_epi64(low[0], _mm256_and_si256(a, mask));
		high[0] = _mm256_add_epi64(high[0], _mm256_srli_epi64(a, 32));
		low[1] = _mm256_add_epi64(low[1], _mm256_and_si256(b, mask));
		high[1] = _mm256_add_epi64(high[1], _mm256_srli_epi64(b, 32));
	}
	all = _mm256_add_epi64(_mm256_add_epi64(low[0], low[1]), _mm256_add_epi64(high[0], high[1]));
	_mm256_storeu_si256((__m256i *)(void *)lane, all);
	return lane[0] + lane[1] + lane[2] + lane[3] + net_sum_scalar(p, len);
}

net_sum_fn net_sum_best(void)
{
	return __builtin_cpu_supports("avx2") ? sum_avx2 : net_sum_scalar;
}
#else
net_sum_fn net_sum_best(void)
{
	return net_sum_scalar;
}
#endif
