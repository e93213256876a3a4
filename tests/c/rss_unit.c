/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rss_unit - hashes of flows: the values that Microsoft publishes for its key ("Verifying the RSS hash calculation"),
 * both ways of computing them against a third, and what of a frame is hashed.
 */
#include <arpa/inet.h>

#include "devices/net/csrc/rss.h"
#include "tests/c/rig.h"

static const uint8_t key[NET_RSS_KEY] = {
	0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb,
	0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
};

static const struct vector {
	const char *to;
	uint16_t to_port;
	const char *from;
	uint16_t from_port;
	uint32_t addresses, with_ports;
} vectors[] = {
	{ "161.142.100.80", 1766, "66.9.149.187", 2794, 0x323e8fc2, 0x51ccc178 },
	{ "65.69.140.83", 4739, "199.92.111.2", 14230, 0xd718262a, 0xc626b0ea },
	{ "12.22.207.184", 38024, "24.19.198.95", 12898, 0xd2d0a5de, 0x5c2b394a },
	{ "209.142.163.6", 2217, "38.27.205.30", 48228, 0x82989176, 0xafc7327f },
	{ "202.188.127.2", 1303, "153.39.163.191", 44251, 0x5d1809c5, 0x10e828a2 },
	{ "3ffe:2501:200:3::1", 1766, "3ffe:2501:200:1fff::7", 2794, 0x2cc18cd5, 0x40207d3d },
	{ "ff02::1", 4739, "3ffe:501:8::260:97ff:fe40:efab", 14230, 0x0f0c461c, 0xdde51bbf },
	{ "fe80::200:f8ff:fe21:67cf", 38024, "3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251, 0x4b61e985, 0x02d1feef },
};

struct bytes {
	uint8_t at[NET_HEAD];
	uint32_t len;
};

static struct net_rss rss;

static void add(struct bytes *b, const void *data, uint32_t len)
{
	memcpy(b->at + b->len, data, len);
	b->len += len;
}

/* Addresses, @tags tags, the IP header of @proto, @extensions of 8 bytes (IPv6), ports. */
static struct bytes packet(const struct vector *v, uint8_t proto, uint32_t tags, uint32_t extensions)
{
	struct bytes b = { .len = 12 };
	uint8_t addr[16];
	uint16_t port;
	uint32_t i;

	for (i = 0; i < tags; i++)
		add(&b, i ? "\x81\x00\x00\x07" : "\x88\xa8\x00\x05", 4);
	if (strchr(v->to, ':')) {
		uint8_t ip[8] = { 0x60, 0, 0, 0, 0, 20, extensions ? 60 : proto, 64 };

		add(&b, "\x86\xdd", 2);
		add(&b, ip, sizeof(ip));
		CHECK_EQ(inet_pton(AF_INET6, v->from, addr), 1);
		add(&b, addr, 16);
		CHECK_EQ(inet_pton(AF_INET6, v->to, addr), 1);
		add(&b, addr, 16);
		for (i = 0; i < extensions; i++) {
			uint8_t ext[8] = { i + 1 == extensions ? proto : 60, 0, 1, 4 };

			add(&b, ext, sizeof(ext));
		}
	} else {
		uint8_t ip[12] = { 0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, proto };

		add(&b, "\x08\x00", 2);
		add(&b, ip, sizeof(ip));
		CHECK_EQ(inet_pton(AF_INET, v->from, addr), 1);
		add(&b, addr, 4);
		CHECK_EQ(inet_pton(AF_INET, v->to, addr), 1);
		add(&b, addr, 4);
	}
	port = htons(v->from_port);
	add(&b, &port, 2);
	port = htons(v->to_port);
	add(&b, &port, 2);
	return b;
}

static void expect(const struct bytes *b, uint32_t report, uint32_t hash)
{
	uint32_t got = 0;

	CHECK_EQ(net_rss_hash(&rss, b->at, b->len, &got), report);
	CHECK_EQ(got, hash);
}

static void published(void)
{
	uint32_t i, tags;

	for (i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++) {
		const struct vector *v = &vectors[i];
		uint32_t first = strchr(v->to, ':') ? NET_REPORT_IPV6 : NET_REPORT_IPV4;

		for (tags = 0; tags <= 2; tags++) {
			struct bytes b = packet(v, 6, tags, 0);

			rss.types = NET_HASH_TYPES;
			expect(&b, first + 1, v->with_ports);
			rss.types = NET_HASH_IPV4 | NET_HASH_IPV6 | NET_HASH_UDPV4 | NET_HASH_UDPV6;
			expect(&b, first, v->addresses);
			b = packet(v, 17, tags, 0);
			expect(&b, first + 2, v->with_ports);
			rss.types = NET_HASH_TCPV4 | NET_HASH_TCPV6;
			expect(&b, NET_REPORT_NONE, 0);
			b = packet(v, 1, tags, 0);
			rss.types = NET_HASH_TYPES;
			expect(&b, first, v->addresses);
		}
	}
}

static void parts(void)
{
	struct bytes b = packet(&vectors[0], 6, 0, 0);
	uint32_t n;

	rss.types = NET_HASH_TYPES;
	b.at[20] = 0x20;	/* more fragments */
	expect(&b, NET_REPORT_IPV4, vectors[0].addresses);
	b.at[20] = 0;
	b.at[21] = 9;		/* not the first one */
	expect(&b, NET_REPORT_IPV4, vectors[0].addresses);
	b = packet(&vectors[0], 6, 0, 0);
	b.at[14] = 0x46;	/* options push the ports out of the frame */
	expect(&b, NET_REPORT_IPV4, vectors[0].addresses);
	for (n = 1; n <= 3; n++) {
		b = packet(&vectors[5], 17, 0, n);
		expect(&b, NET_REPORT_UDPV6, vectors[5].with_ports);
	}
	b = packet(&vectors[5], 6, 0, 1);
	b.at[54] = 44;		/* an extension before a fragment header */
	expect(&b, NET_REPORT_IPV6, vectors[5].addresses);
	b.at[13] = 0x06;
	expect(&b, NET_REPORT_NONE, 0);
}

/* No frame is too short to be looked at, and nothing beyond it is. */
static void ends(void)
{
	uint32_t i, n, hash = 0;

	rss.types = NET_HASH_TYPES;
	for (i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++) {
		struct bytes b = packet(&vectors[i], 6, 2, 3);

		for (n = 0; n <= b.len; n++) {
			uint8_t *copy = malloc(n ? n : 1);

			memcpy(copy, b.at, n);
			net_rss_hash(&rss, copy, n, &hash);
			free(copy);
		}
	}
}

/* Bit for bit, as the standard tells it. */
static uint32_t textbook(const uint8_t *k, const uint32_t *words, uint32_t n)
{
	uint32_t hash = 0, bit, i;

	for (bit = 0; bit < 32 * n; bit++) {
		if (!(words[bit / 32] >> (31 - bit % 32) & 1))
			continue;
		for (i = 0; i < 32; i++)
			hash ^= (uint32_t)(k[(bit + i) / 8] >> (7 - (bit + i) % 8) & 1) << (31 - i);
	}
	return hash;
}

static void random_keys(void)
{
	uint64_t seed = 88172645463325252ULL;
	uint32_t words[NET_RSS_WORDS], round, i, n;
	uint8_t k[NET_RSS_KEY];

	for (round = 0; round < 20000; round++) {
		for (i = 0; i < NET_RSS_KEY; i++) {
			seed ^= seed << 13;
			seed ^= seed >> 7;
			seed ^= seed << 17;
			k[i] = (uint8_t)(seed >> 24);
			words[i % NET_RSS_WORDS] = (uint32_t)(seed >> 32);
		}
		n = 1 + round % NET_RSS_WORDS;
		net_rss_set_key(&rss, k, sizeof(k));
		CHECK_EQ(net_rss_toeplitz(&rss, words, n), textbook(k, words, n));
		CHECK_EQ(net_rss_toeplitz_portable(&rss, words, n), textbook(k, words, n));
	}
	memset(k + 7, 0, sizeof(k) - 7);	/* a short key */
	net_rss_set_key(&rss, k, 7);
	CHECK_EQ(net_rss_toeplitz(&rss, words, n), textbook(k, words, n));
}

int main(void)
{
	net_rss_set_key(&rss, key, sizeof(key));
	published();
	parts();
	ends();
	random_keys();
	return 0;
}
