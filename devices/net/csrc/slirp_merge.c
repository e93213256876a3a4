/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slirp_merge.c - see slirp_merge.h.
 *
 * Rules
 * - A frame that cannot be joined to anything lets all that is kept go first: nothing overtakes.
 * - Frames come from libslirp and are of its making, not the guest's; what a peer on the network sends is payload.
 */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "devices/net/csrc/slirp_merge.h"

enum {
	ETH = 14,
	IP4 = 20,
	IP6 = 40,
	TCP = 20,
	TCP_MAX = 60,
	PROTO_TCP = 6,
	IP_MAX = 65535,

	ACK = 0x10,
	PSH = 0x08,

	/* of the virtio header (VIRTIO 1.3, 5.1.6) */
	NEEDS_CSUM = 1,
	GSO_TCPV4 = 1,
	GSO_TCPV6 = 4,
	TCP_CSUM = 16,		/* where the checksum is in a TCP header */

	STREAMS = 4,		/* kept at once; libslirp takes turns between streams */
};

struct stream {
	uint32_t len;		/* of the frame; 0: nothing is kept */
	uint32_t head;		/* bytes in front of the payload */
	uint32_t segment;	/* payload of each but the last */
	uint32_t segments;
	uint32_t next;		/* sequence number that goes on */
	bool ipv6;
	uint8_t packet[SLIRP_HEADER + ETH + IP_MAX];
};

struct slirp_merge {
	void (*out)(void *opaque, struct iovec *iov, int nr, uint32_t segments);
	void *opaque;
	uint32_t oldest;
	struct stream streams[STREAMS];
};

struct segment {
	const uint8_t *frame;
	uint32_t head;
	uint32_t payload;
	uint32_t seq;
	bool ipv6;
	bool push;
};

static uint32_t get16(const uint8_t *at)
{
	return (uint32_t)at[0] << 8 | at[1];
}

static void put16(uint8_t *at, uint32_t v)
{
	at[0] = (uint8_t)(v >> 8);
	at[1] = (uint8_t)v;
}

static void put_le16(uint8_t *at, uint32_t v)
{
	at[0] = (uint8_t)v;
	at[1] = (uint8_t)(v >> 8);
}

/* The ones' complement sum of @len bytes, an even number, folded. */
static uint32_t sum(const uint8_t *at, uint32_t len, uint32_t start)
{
	uint32_t i;

	for (i = 0; i < len; i += 2)
		start += get16(at + i);
	while (start >> 16)
		start = (start & 0xffff) + (start >> 16);
	return start;
}

/* Is it a segment with payload that may be joined to others? */
static bool parse(struct segment *g, const uint8_t *frame, size_t len)
{
	const uint8_t *ip = frame + ETH, *tcp;
	uint32_t tcp_len, ip_len;

	if (len < ETH + IP4 + TCP || len > ETH + IP_MAX)
		return false;
	if (get16(frame + 12) == 0x0800) {
		if (ip[0] != 0x45 || ip[9] != PROTO_TCP || get16(ip + 6) & 0x3fff)	/* options; a fragment */
			return false;
		ip_len = IP4;
		if (get16(ip + 2) != len - ETH)
			return false;
	} else if (get16(frame + 12) == 0x86dd) {
		if (len < ETH + IP6 + TCP || ip[0] >> 4 != 6 || ip[6] != PROTO_TCP || get16(ip + 4) != len - ETH - IP6)
			return false;
		ip_len = IP6;
	} else {
		return false;
	}
	tcp = ip + ip_len;
	tcp_len = (tcp[12] >> 4) * 4U;
	if (tcp_len < TCP || len <= ETH + ip_len + tcp_len || (tcp[13] & ~PSH) != ACK)
		return false;
	g->frame = frame;
	g->ipv6 = ip_len == IP6;
	g->head = ETH + ip_len + tcp_len;
	g->payload = (uint32_t)len - g->head;
	g->seq = get16(tcp + 4) << 16 | get16(tcp + 6);
	g->push = tcp[13] & PSH;
	return true;
}

/* Of the same connection? */
static bool is_of(const struct stream *s, const struct segment *g)
{
	const uint8_t *have = s->packet + SLIRP_HEADER;
	uint32_t from = g->ipv6 ? ETH + 8 : ETH + 12, len = g->ipv6 ? 2 * 16 + 4 : 2 * 4 + 4;

	return s->len && s->ipv6 == g->ipv6 && !memcmp(have + from, g->frame + from, len);
}

/* Does @g go on where @s ends, and differ in nothing else? */
static bool goes_on(const struct stream *s, const struct segment *g)
{
	const uint8_t *have = s->packet + SLIRP_HEADER, *more = g->frame;
	uint32_t l4 = g->ipv6 ? ETH + IP6 : ETH + IP4;

	if (s->head != g->head || s->next != g->seq || g->payload > s->segment || s->len + g->payload > ETH + IP_MAX)
		return false;
	if (memcmp(have, more, ETH))
		return false;
	/* version and class (of IPv6: and flow); lifetime: the hop limit, or TTL and protocol */
	if (g->ipv6 ? memcmp(have + ETH, more + ETH, 4) || have[ETH + 7] != more[ETH + 7] :
		      have[ETH + 1] != more[ETH + 1] || memcmp(have + ETH + 6, more + ETH + 6, 4))
		return false;
	/* acknowledgement and header length; window; urgent pointer and options */
	return !memcmp(have + l4 + 8, more + l4 + 8, 5) && !memcmp(have + l4 + 14, more + l4 + 14, 2) &&
	       !memcmp(have + l4 + 18, more + l4 + 18, g->head - l4 - 18);
}

/* Lengths and checksums of all that was joined. */
static void finish(struct stream *s)
{
	uint8_t *frame = s->packet + SLIRP_HEADER, *ip = frame + ETH, *hdr = s->packet;
	uint32_t l3 = s->ipv6 ? IP6 : IP4, tcp_len = s->len - ETH - l3;

	if (s->ipv6) {
		put16(ip + 4, tcp_len);
	} else {
		put16(ip + 2, s->len - ETH);
		put16(ip + 10, 0);
		put16(ip + 10, ~sum(ip, IP4, 0) & 0xffff);
	}
	/* the pseudo header's, not inverted: the rest is who cuts it to add (VIRTIO 1.3, 5.1.6.2) */
	put16(ip + l3 + TCP_CSUM, sum(ip + (s->ipv6 ? 8 : 12), s->ipv6 ? 32 : 8, PROTO_TCP + tcp_len));
	hdr[0] = NEEDS_CSUM;
	hdr[1] = s->ipv6 ? GSO_TCPV6 : GSO_TCPV4;
	put_le16(hdr + 2, s->head);
	put_le16(hdr + 4, s->segment);
	put_le16(hdr + 6, ETH + l3);
	put_le16(hdr + 8, TCP_CSUM);
}

static void pass(struct slirp_merge *m, struct stream *s)
{
	struct iovec iov = { .iov_base = s->packet, .iov_len = SLIRP_HEADER + s->len };

	if (!s->len)
		return;
	if (s->segments > 1)
		finish(s);
	m->out(m->opaque, &iov, 1, s->segments);
	s->len = 0;
}

static void append(struct stream *s, const struct segment *g)
{
	uint8_t *frame = s->packet + SLIRP_HEADER;

	memcpy(frame + s->len, g->frame + g->head, g->payload);
	s->len += g->payload;
	s->next += g->payload;
	s->segments++;
	if (g->push)
		frame[(g->ipv6 ? ETH + IP6 : ETH + IP4) + 13] |= PSH;
}

static void keep(struct slirp_merge *m, const struct segment *g)
{
	struct stream *s = NULL;
	uint32_t i;

	for (i = 0; i < STREAMS && !s; i++) {
		if (!m->streams[i].len)
			s = &m->streams[i];
	}
	if (!s) {
		s = &m->streams[m->oldest++ % STREAMS];
		pass(m, s);
	}
	memset(s->packet, 0, SLIRP_HEADER);
	memcpy(s->packet + SLIRP_HEADER, g->frame, g->head + g->payload);
	s->len = g->head + g->payload;
	s->head = g->head;
	s->segment = g->payload;
	s->segments = 1;
	s->next = g->seq + g->payload;
	s->ipv6 = g->ipv6;
}

void slirp_merge_frame(struct slirp_merge *m, const uint8_t *frame, size_t len)
{
	uint8_t header[SLIRP_HEADER] = { 0 };
	struct iovec iov[] = { { header, sizeof(header) }, { (void *)(uintptr_t)frame, len } };
	struct segment g;
	uint32_t i;

	if (!parse(&g, frame, len)) {
		slirp_merge_flush(m);
		m->out(m->opaque, iov, 2, 1);
		return;
	}
	for (i = 0; i < STREAMS; i++) {
		struct stream *s = &m->streams[i];

		if (!is_of(s, &g))
			continue;
		if (goes_on(s, &g)) {
			append(s, &g);
			if (g.push || g.payload < s->segment)
				pass(m, s);
			return;
		}
		pass(m, s);
		break;
	}
	if (g.push)
		m->out(m->opaque, iov, 2, 1);
	else
		keep(m, &g);
}

void slirp_merge_flush(struct slirp_merge *m)
{
	uint32_t i;

	for (i = 0; i < STREAMS; i++)
		pass(m, &m->streams[i]);
}

struct slirp_merge *slirp_merge_new(void (*out)(void *opaque, struct iovec *iov, int nr, uint32_t segments),
				    void *opaque)
{
	struct slirp_merge *m = calloc(1, sizeof(*m));

	if (m) {
		m->out = out;
		m->opaque = opaque;
	}
	return m;
}

void slirp_merge_free(struct slirp_merge *m)
{
	free(m);
}
