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
#include "devices/net/csrc/slirp_packet.h"

enum {
	TCP_MAX = 60,

	URG = 0x20,
	ACK = 0x10,
	PSH = 0x08,
	FIN = 0x01,
	DONT_FRAGMENT = 0x4000,

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
	uint32_t next;		/* sequence number that goes on */
	bool ipv6;
	uint8_t packet[SLIRP_HEADER + ETH + IP_MAX];
};

struct slirp_merge {
	void (*out)(void *opaque, struct iovec *iov, int nr, uint32_t segments);
	void *opaque;
	uint32_t mtu;
	uint32_t oldest;
	struct stream streams[STREAMS];
};

struct segment {
	const uint8_t *frame;
	uint32_t head;
	uint32_t payload;
	uint32_t most;		/* payload that the guest's network takes */
	uint32_t seq;
	bool ipv6;
	bool push;		/* nothing is to be waited for */
};

static void put_le16(uint8_t *at, uint32_t v)
{
	at[0] = (uint8_t)v;
	at[1] = (uint8_t)(v >> 8);
}

/* Is it a segment with payload that may be joined to others, or is to be cut? */
static bool parse(const struct slirp_merge *m, struct segment *g, const uint8_t *frame, size_t len)
{
	const uint8_t *ip = frame + ETH, *tcp;
	uint32_t tcp_len, ip_len;

	if (len < ETH + IP4 + TCP || len > ETH + IP_MAX)
		return false;
	if (get16(frame + 12) == ETH_IPV4) {
		if (ip[0] != 0x45 || ip[9] != PROTO_TCP || get16(ip + 6) & 0x3fff)	/* options; a fragment */
			return false;
		ip_len = IP4;
		if (get16(ip + 2) != len - ETH)
			return false;
	} else if (get16(frame + 12) == ETH_IPV6) {
		if (len < ETH + IP6 + TCP || ip[0] >> 4 != 6 || ip[6] != PROTO_TCP || get16(ip + 4) != len - ETH - IP6)
			return false;
		ip_len = IP6;
	} else {
		return false;
	}
	tcp = ip + ip_len;
	tcp_len = (tcp[12] >> 4) * 4U;
	if (tcp_len < TCP || len <= ETH + ip_len + tcp_len)
		return false;
	/* urgent data is rare: left alone, unless it has to be cut, which leaves the mark out: it stands in the stream anyway */
	if ((tcp[13] & ~(PSH | FIN | (len > ETH + m->mtu ? URG : 0))) != ACK)
		return false;
	g->frame = frame;
	g->ipv6 = ip_len == IP6;
	g->head = ETH + ip_len + tcp_len;
	g->payload = (uint32_t)len - g->head;
	g->most = m->mtu + ETH - g->head;
	g->seq = get16(tcp + 4) << 16 | get16(tcp + 6);
	g->push = tcp[13] & (PSH | FIN);
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

	if (s->head != g->head || s->next != g->seq || s->len + g->payload > ETH + IP_MAX)
		return false;
	/* all but the last are of one size */
	if ((g->payload > s->segment && s->segment != g->most) || (s->len - s->head) % s->segment)
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

static uint32_t segments(const struct stream *s)
{
	return (s->len - s->head + s->segment - 1) / s->segment;
}

static void pass(struct slirp_merge *m, struct stream *s)
{
	struct iovec iov = { .iov_base = s->packet, .iov_len = SLIRP_HEADER + s->len };

	if (!s->len)
		return;
	if (segments(s) > 1)
		finish(s);
	m->out(m->opaque, &iov, 1, segments(s));
	s->len = 0;
}

static void append(struct stream *s, const struct segment *g)
{
	uint8_t *frame = s->packet + SLIRP_HEADER;
	uint32_t flags = (g->ipv6 ? ETH + IP6 : ETH + IP4) + 13;

	memcpy(frame + s->len, g->frame + g->head, g->payload);
	s->len += g->payload;
	s->next += g->payload;
	frame[flags] |= g->frame[flags] & (PSH | FIN);
}

static struct stream *keep(struct slirp_merge *m, const struct segment *g)
{
	uint32_t tcp = g->ipv6 ? ETH + IP6 : ETH + IP4, i;
	struct stream *s = NULL;
	uint8_t *frame;

	for (i = 0; i < STREAMS && !s; i++) {
		if (!m->streams[i].len)
			s = &m->streams[i];
	}
	if (!s) {
		s = &m->streams[m->oldest++ % STREAMS];
		pass(m, s);
	}
	frame = s->packet + SLIRP_HEADER;
	memset(s->packet, 0, SLIRP_HEADER);
	memcpy(frame, g->frame, g->head + g->payload);
	if (frame[tcp + 13] & URG) {
		frame[tcp + 13] &= (uint8_t)~URG;
		put16(frame + tcp + 18, 0);
	}
	s->len = g->head + g->payload;
	s->head = g->head;
	s->segment = g->payload < g->most ? g->payload : g->most;
	s->next = g->seq + g->payload;
	s->ipv6 = g->ipv6;
	return s;
}

/* An IPv4 packet that is larger than the guest's network takes, in pieces (RFC 791, 3.2). False: it may not be, or is none. */
static bool cut(struct slirp_merge *m, const uint8_t *frame, size_t len)
{
	uint8_t header[SLIRP_HEADER] = { 0 }, head[ETH + IP4];
	uint32_t step = (m->mtu - IP4) & ~7u, at, size, flags;
	const uint8_t *ip = frame + ETH;
	uint32_t payload;

	if (len < ETH + IP4 || get16(frame + 12) != ETH_IPV4 || ip[0] != 0x45 || get16(ip + 2) != len - ETH ||
	    get16(ip + 6) & DONT_FRAGMENT)
		return false;
	payload = (uint32_t)len - ETH - IP4;
	for (at = 0; at < payload; at += size) {
		struct iovec iov[] = { { header, sizeof(header) }, { head, sizeof(head) }, { NULL, 0 } };

		size = payload - at < step ? payload - at : step;
		flags = get16(ip + 6) + at / 8;	/* it may be a piece already */
		if (at + size < payload)
			flags |= MORE;
		memcpy(head, frame, sizeof(head));
		put16(head + ETH + 2, IP4 + size);
		put16(head + ETH + 6, flags);
		put16(head + ETH + 10, 0);
		put16(head + ETH + 10, checksum(head + ETH, IP4));
		iov[2].iov_base = (void *)(uintptr_t)(ip + IP4 + at);
		iov[2].iov_len = size;
		m->out(m->opaque, iov, 3, 1);
	}
	return true;
}

void slirp_merge_frame(struct slirp_merge *m, const uint8_t *frame, size_t len)
{
	uint8_t header[SLIRP_HEADER] = { 0 };
	struct iovec iov[] = { { header, sizeof(header) }, { (void *)(uintptr_t)frame, len } };
	struct segment g;
	uint32_t i;

	if (!parse(m, &g, frame, len)) {
		slirp_merge_flush(m);
		if (len <= ETH + m->mtu || !cut(m, frame, len))
			m->out(m->opaque, iov, 2, 1);
		return;
	}
	for (i = 0; i < STREAMS; i++) {
		struct stream *s = &m->streams[i];

		if (!is_of(s, &g))
			continue;
		if (goes_on(s, &g)) {
			append(s, &g);
			if (g.push || g.payload % s->segment)
				pass(m, s);
			return;
		}
		pass(m, s);
		break;
	}
	if (!g.push)
		keep(m, &g);
	else if (g.payload > g.most)
		pass(m, keep(m, &g));
	else
		m->out(m->opaque, iov, 2, 1);
}

void slirp_merge_flush(struct slirp_merge *m)
{
	uint32_t i;

	for (i = 0; i < STREAMS; i++)
		pass(m, &m->streams[i]);
}

struct slirp_merge *slirp_merge_new(void (*out)(void *opaque, struct iovec *iov, int nr, uint32_t segments),
				    void *opaque, uint32_t mtu)
{
	struct slirp_merge *m = calloc(1, sizeof(*m));

	if (m) {
		m->out = out;
		m->opaque = opaque;
		m->mtu = mtu;
	}
	return m;
}

void slirp_merge_free(struct slirp_merge *m)
{
	free(m);
}
