/* SPDX-License-Identifier: Apache-2.0 */
/*
 * load_frame.c - the frames of the load generator.
 */
#include "devices/net/csrc/bytes.h"
#include "devices/net/csrc/load_frame.h"

#include "ring/csrc/measure.h"

enum {
	ETH = 14,
	IP = 20,
	UDP = 8,
	TCP = 20,
	NEEDS_CSUM = 1,
	GSO_TCPV4 = 1,
	PROTO_TCP = 6,
	PROTO_UDP = 17,
	PORT = 9,			/* discard */
	HEAD = NET_LOAD_HDR + ETH + IP + TCP,
	PIECE = 512,
};

static void le16(uint8_t *at, uint32_t v)
{
	at[0] = (uint8_t)v;
	at[1] = (uint8_t)(v >> 8);
}

/* The ones' complement sum of @len (even) bytes, folded. */
static uint32_t sum(const uint8_t *at, uint32_t len, uint32_t start)
{
	uint32_t total = start;

	for (uint32_t i = 0; i < len; i += 2)
		total += get16(at + i);
	while (total >> 16)
		total = (total & 0xffff) + (total >> 16);
	return total;
}

void frame_make(const struct net_load_config *cfg, SHM uint8_t *buf, const uint8_t *macs, uint32_t flow)
{
	uint8_t head[HEAD] = { 0 };
	uint8_t *eth = head + NET_LOAD_HDR, *ip = eth + ETH, *l4 = ip + IP;
	uint32_t ip_len = cfg->frame_bytes - ETH, proto = cfg->gso_bytes ? PROTO_TCP : PROTO_UDP;
	uint32_t used = NET_LOAD_HDR + ETH + IP + (cfg->gso_bytes ? TCP : UDP);

	memcpy(eth, macs, 12);
	put16(eth + 12, 0x0800);
	ip[0] = 0x45;
	put16(ip + 2, ip_len);
	put16(ip + 6, 0x4000);	/* do not fragment */
	ip[8] = 64;
	ip[9] = (uint8_t)proto;
	ip[12] = ip[16] = 10;
	ip[14] = ip[18] = (uint8_t)flow;
	ip[15] = 1;
	ip[19] = 2;
	put16(ip + 10, ~sum(ip, IP, 0));
	put16(l4, 1024 + flow);
	put16(l4 + 2, PORT);
	if (cfg->gso_bytes) {
		head[0] = NEEDS_CSUM;
		head[1] = GSO_TCPV4;
		le16(head + 2, ETH + IP + TCP);
		le16(head + 4, cfg->gso_bytes);
		le16(head + 6, ETH + IP);
		le16(head + 8, 16);
		l4[12] = TCP / 4 << 4;
		l4[13] = 0x10;		/* ACK */
		put16(l4 + 14, 0xffff);
		/* of the pseudo header, not inverted: what is to be finished (VIRTIO 1.3, 5.1.6.2) */
		put16(l4 + 16, sum(ip + 12, 8, proto + ip_len - IP));
	} else {
		put16(l4 + 4, ip_len - IP);	/* no checksum, which UDP allows */
	}
	shm_copy_out(buf, head, used);
}

static uint8_t expected(uint64_t tag, uint32_t at)
{
	return (uint8_t)(measure_mix(tag ^ (uint64_t)at / 8 << 17) >> (at % 8 * 8));
}

/* Bytes [@at, @at + @len) of the contents. */
static void contents(uint8_t *out, uint32_t at, uint32_t len, uint64_t tag)
{
	uint32_t i = 0;

	for (; i < len && (at + i) % 8; i++)
		out[i] = expected(tag, at + i);
	for (; i + 8 <= len; i += 8) {
		uint64_t word = measure_mix(tag ^ (uint64_t)(at + i) / 8 << 17);

		memcpy(out + i, &word, 8);
	}
	for (; i < len; i++)
		out[i] = expected(tag, at + i);
}

void frame_fill(const struct net_load_config *cfg, SHM uint8_t *buf, uint64_t tag)
{
	uint32_t end = NET_LOAD_HDR + cfg->frame_bytes;
	uint8_t piece[PIECE];

	for (uint32_t at = frame_tag_at(cfg) + 8; at < end; at += PIECE) {
		uint32_t len = end - at < PIECE ? end - at : PIECE;

		contents(piece, at, len, tag);
		shm_copy_out(buf + at, piece, len);
	}
}

uint32_t frame_compare(const struct net_load_config *cfg, const SHM uint8_t *piece, uint32_t at, uint32_t len,
		       uint64_t tag)
{
	uint32_t start = frame_tag_at(cfg) + 8, end = at + len;
	uint8_t want[PIECE], have[PIECE];

	for (uint32_t pos = at < start ? start : at; pos < end; pos += PIECE) {
		uint32_t n = end - pos < PIECE ? end - pos : PIECE;

		contents(want, pos, n, tag);
		shm_copy_in(have, piece + (pos - at), n);
		for (uint32_t i = 0; i < n; i++)
			if (have[i] != want[i])
				return pos + i;
	}
	return end;
}
