/* SPDX-License-Identifier: Apache-2.0 */
/*
 * offload.c - what a taker cannot take is finished in software: checksums filled in, TCP and UDP cut into segments.
 *
 * Theory of operation
 *   Everything is decided on f->head, the private copy of the frame's first bytes: a frame whose headers do not fit
 *   there, or do not agree with its length and its virtio header, is refused. A segment is a frame of its own, made of
 *   a head (its headers and the first of its payload, copied) and of the sender's own pieces: byte n of segment i,
 *   beyond the head, is byte n + i * gso_size of the sender's frame, so that only @skip differs. Payload is read once
 *   to be added up and never to be understood; where the taker takes checksums, it is not read at all.
 *
 *   Checksums of segments start from the addresses in the head. The driver's own sum, with its length taken out,
 *   is used where the header names another destination than the last one (routing header, IPv4 options).
 */
#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "devices/net/csrc/bytes.h"
#include "devices/net/csrc/csum.h"
#include "devices/net/csrc/net_int.h"

enum {
	/*
	 * Of one frame: a full one of the smallest segments Linux sends (net.ipv4.tcp_min_snd_mss, 48, less options).
	 * More would be work that the sender does not pay for.
	 */
	SEGMENTS_MAX = 2048,
	TAGS_MAX = 2,
	EXTENSIONS_MAX = 8,

	P_TCP = 6,
	P_UDP = 17,
	V6_HOP = 0,
	V6_ROUTING = 43,
	V6_OPTIONS = 60,

	TCP_FIN = 0x01,
	TCP_PSH = 0x08,
	TCP_CWR = 0x80,
	TCP_CSUM = 16,		/* offsets in a TCP header, a UDP header */
	UDP_CSUM = 6,
};

/* Where the headers of a frame to be cut are. All inside of its head. */
struct place {
	uint32_t l3;		/* IP header */
	uint32_t l4;		/* TCP or UDP header */
	uint32_t end;		/* payload */
	uint32_t csum;		/* transport checksum */
	uint8_t protocol;
	bool v6;
	bool routed;		/* the last destination is not the one in the header */
	bool no_csum;		/* UDP without a checksum */
};

/* Where a walk over a frame's pieces stands. */
struct cursor {
	const struct ring_iov *iov;
	uint32_t nr;		/* pieces left */
	uint32_t skip;		/* bytes of the first one passed */
};

struct net_finish {
	net_sum_fn sum;
	struct ring_iov iov;
	struct net_frame out;
	uint8_t whole[NET_FRAME_MAX];
};

struct net_finish *net_finish_new(void)
{
	struct net_finish *fin = calloc(1, sizeof(*fin));

	if (fin)
		fin->sum = net_sum_best();
	return fin;
}

void net_finish_free(struct net_finish *fin)
{
	free(fin);
}

/* A checksum or sum, in memory order. */
static inline void put_sum(uint8_t *p, uint16_t sum)
{
	memcpy(p, &sum, sizeof(sum));
}

/* --- walking over a frame ---------------------------------------------------------------------------------------- */

static inline struct cursor cursor_of(const struct net_frame *f)
{
	return (struct cursor){ .iov = f->iov, .nr = f->nr_iov, .skip = f->skip };
}

/* @n more bytes on. */
static inline void advance(struct cursor *c, uint32_t n)
{
	size_t skip = (size_t)c->skip + n;

	while (c->nr && skip >= c->iov->len) {
		skip -= c->iov->len;
		c->iov++;
		c->nr--;
	}
	c->skip = (uint32_t)skip;
}

/* The next bytes in one piece, at most @n; 0 at the end, which frames do not reach. */
static inline uint32_t piece(struct cursor *c, uint32_t n, const SHM uint8_t **p)
{
	size_t left;

	advance(c, 0);
	if (!c->nr)
		return 0;
	*p = (const SHM uint8_t *)c->iov->base + c->skip;
	left = c->iov->len - c->skip;
	n = left < n ? (uint32_t)left : n;
	c->skip += n;
	return n;
}

static void copy_in(struct cursor c, uint8_t *dst, uint32_t len)
{
	const SHM uint8_t *p;
	uint32_t n;

	for (; len && (n = piece(&c, len, &p)); len -= n, dst += n)
		shm_copy_in(dst, p, n);
}

static uint64_t sum_pieces(const struct net_finish *fin, struct cursor c, uint32_t len, bool odd)
{
	const SHM uint8_t *p;
	uint64_t sum = 0;
	uint32_t n;

	for (; len && (n = piece(&c, len, &p)); len -= n) {
		sum += net_sum_at(fin->sum(p, n), odd);
		odd ^= n & 1;
	}
	return sum;
}

void net_frame_copy(const struct net_frame *f, uint32_t at, void *dst, uint32_t len)
{
	struct cursor c = cursor_of(f);
	uint32_t n = 0;

	if (at < f->head_len) {
		n = f->head_len - at < len ? f->head_len - at : len;
		memcpy(dst, f->head + at, n);
	}
	if (n == len)
		return;
	advance(&c, at + n);
	copy_in(c, (uint8_t *)dst + n, len - n);
}

void net_frame_of_memory(struct net_frame *f, struct ring_iov *iov, void *mem, uint32_t len, const struct net_hdr *hdr)
{
	*iov = (struct ring_iov){ .base = mem, .len = len };
	f->hdr = *hdr;
	f->head_len = (uint16_t)(len < NET_HEAD ? len : NET_HEAD);
	f->pair = 0;
	f->len = len;
	f->nr_iov = 1;
	f->skip = 0;
	f->iov = iov;
	memcpy(f->head, mem, f->head_len);
}

/* --- checksum only ----------------------------------------------------------------------------------------------- */

/* A checksum beyond the head: on a copy of all of it. */
static void finish_far(struct net_finish *fin, const struct net_frame *f, uint32_t place)
{
	const struct net_hdr none = { .gso_type = NET_GSO_NONE };

	net_frame_copy(f, 0, fin->whole, f->len);
	put_sum(fin->whole + place,
		net_sum_finish(fin->sum(fin->whole + f->hdr.csum_start, f->len - f->hdr.csum_start)));
	net_frame_of_memory(&fin->out, &fin->iov, fin->whole, f->len, &none);
	fin->out.pair = f->pair;
}

/* VIRTIO 1.3, 5.1.6.2: the sum from csum_start to the end, over what the driver left in its place. */
static uint32_t finish_csum(struct net_finish *fin, const struct net_frame *f)
{
	uint32_t start = f->hdr.csum_start, place = start + f->hdr.csum_offset;
	struct net_frame *out = &fin->out;
	struct cursor c = cursor_of(f);
	uint32_t from = f->head_len;
	uint64_t sum;

	if (f->len > NET_FRAME_MAX || place + 2 > f->len)
		return NET_DROP_HEADER;
	if (place + 2 > f->head_len) {
		finish_far(fin, f, place);
		return 0;
	}
	*out = *f;
	memset(&out->hdr, 0, sizeof(out->hdr));
	/* the place is in the head, and start is not behind it */
	sum = fin->sum(f->head + start, f->head_len - start);
	if (from < f->len) {
		advance(&c, from);
		sum += sum_pieces(fin, c, f->len - from, (from - start) & 1);
	}
	put_sum(out->head + place, net_sum_finish(sum));
	return 0;
}

/* --- headers ---------------------------------------------------------------------------------------------------- */

/* Lengths that drivers leave 0 in what is to be cut are fine; others are true. */
static inline bool length_lies(uint32_t length, uint32_t truth)
{
	return length && length != truth;
}

static bool place_v4(const struct net_frame *f, struct place *pl)
{
	const uint8_t *ip = f->head + pl->l3;
	uint32_t ihl;

	if (pl->l3 + 20 > f->head_len || ip[0] >> 4 != 4)
		return false;
	ihl = (ip[0] & 15) * 4u;
	/* a fragment has no header to cut by */
	if (ihl < 20 || length_lies(get16(ip + 2), f->len - pl->l3) || get16(ip + 6) & 0x3fff)
		return false;
	if (f->len - pl->l3 > UINT16_MAX)
		return false;
	pl->protocol = ip[9];
	pl->routed = ihl > 20;
	pl->l4 = pl->l3 + ihl;
	return pl->l4 <= f->head_len;
}

static bool place_v6(const struct net_frame *f, struct place *pl)
{
	const uint8_t *ip = f->head + pl->l3;
	uint32_t at = pl->l3 + 40;
	uint8_t next;

	if (at > f->head_len || ip[0] >> 4 != 6 || length_lies(get16(ip + 4), f->len - at))
		return false;
	if (f->len - at > UINT16_MAX)
		return false;
	next = ip[6];
	for (int i = 0; i < EXTENSIONS_MAX && (next == V6_HOP || next == V6_ROUTING || next == V6_OPTIONS); i++) {
		if (at + 8 > f->head_len)
			return false;
		pl->routed |= next == V6_ROUTING;
		next = f->head[at];
		at += 8 + f->head[at + 1] * 8u;
	}
	pl->v6 = true;
	pl->protocol = next;
	pl->l4 = at;
	return at <= f->head_len;
}

static bool place_transport(const struct net_frame *f, struct place *pl)
{
	const uint8_t *th = f->head + pl->l4;
	uint32_t doff;

	if (f->hdr.gso_type == NET_GSO_UDP_L4) {
		if (pl->protocol != P_UDP || pl->l4 + 8 > f->head_len || length_lies(get16(th + 4), f->len - pl->l4))
			return false;
		pl->end = pl->l4 + 8;
		pl->csum = pl->l4 + UDP_CSUM;
		pl->no_csum = !pl->v6 && !(f->hdr.flags & NET_F_NEEDS_CSUM) && get16(th + UDP_CSUM) == 0;
		return true;
	}
	if (pl->protocol != P_TCP || pl->l4 + 20 > f->head_len)
		return false;
	doff = (th[12] >> 4) * 4u;
	pl->end = pl->l4 + doff;
	pl->csum = pl->l4 + TCP_CSUM;
	return doff >= 20 && pl->end <= f->head_len;
}

/* Where everything is in a frame to be cut, or false: it is not what its virtio header says. */
static bool find_place(const struct net_frame *f, struct place *pl)
{
	uint8_t type = f->hdr.gso_type & (uint8_t)~NET_GSO_ECN;
	uint32_t at = 12;
	uint32_t ether;

	*pl = (struct place){ 0 };
	for (int tags = 0;; tags++) {
		if (at + 2 > f->head_len)
			return false;
		ether = get16(f->head + at);
		if ((ether != 0x8100 && ether != 0x88a8) || tags == TAGS_MAX)
			break;
		at += 4;
	}
	pl->l3 = at + 2;
	if (ether == 0x0800 && type != NET_GSO_TCPV6) {
		if (!place_v4(f, pl))
			return false;
	} else if (ether == 0x86dd && type != NET_GSO_TCPV4) {
		if (!place_v6(f, pl))
			return false;
	} else {
		return false;
	}
	if (!place_transport(f, pl) || pl->end > f->len)
		return false;
	return !(f->hdr.flags & NET_F_NEEDS_CSUM) ||
	       (f->hdr.csum_start == pl->l4 && f->hdr.csum_offset == pl->csum - pl->l4);
}

/* --- segments --------------------------------------------------------------------------------------------------- */

/* The pseudo header's sum without its length (RFC 793, 768, 8200). */
static uint64_t pseudo_sum(const struct net_frame *f, const struct place *pl)
{
	const uint8_t *ip = f->head + pl->l3;
	uint16_t left;

	if (pl->routed && f->hdr.flags & NET_F_NEEDS_CSUM) {
		memcpy(&left, f->head + pl->csum, sizeof(left));
		/* less the length: plus its complement */
		return (uint64_t)left + (uint16_t)~htobe16((uint16_t)(f->len - pl->l4));
	}
	return (pl->v6 ? net_sum_scalar(ip + 8, 32) : net_sum_scalar(ip + 12, 8)) + htobe16(pl->protocol);
}

/* What one segment differs in from the others. */
struct cut {
	uint32_t nr;		/* its number */
	uint32_t at;		/* payload bytes before it */
	uint32_t payload;	/* bytes of it */
	bool last;
};

static void patch_ip(uint8_t *head, const struct place *pl, const struct cut *cut, uint32_t len)
{
	uint8_t *ip = head + pl->l3;
	uint32_t id;

	if (pl->v6) {
		put16(ip + 4, len - pl->l3 - 40);
		return;
	}
	put16(ip + 2, len - pl->l3);
	id = get16(ip + 4);
	put16(ip + 4, id + cut->nr);
	put_sum(ip + 10, 0);
	put_sum(ip + 10, (uint16_t)~net_sum_fold(net_sum_scalar(ip, pl->l4 - pl->l3)));
}

static void patch_transport(uint8_t *head, const struct place *pl, const struct cut *cut, uint32_t len)
{
	uint8_t *th = head + pl->l4;

	if (pl->protocol == P_UDP) {
		put16(th + 4, len - pl->l4);
		return;
	}
	put32(th + 4, get32(th + 4) + cut->at);
	if (cut->nr)
		th[13] &= (uint8_t)~TCP_CWR;	/* said once (RFC 3168, 6.1.2) */
	if (!cut->last)
		th[13] &= (uint8_t)~(TCP_FIN | TCP_PSH);
}

/*
 * One segment, in fin->out. @c stands where its byte 0 would be, were its headers in place: @cut->at bytes into the
 * frame.
 */
static void make_segment(struct net_finish *fin, const struct net_frame *f, const struct place *pl,
			 const struct cut *cut, struct cursor c, uint64_t pseudo, bool takes_csum)
{
	struct net_frame *out = &fin->out;
	uint32_t len = pl->end + cut->payload;
	uint32_t head_len = len < NET_HEAD ? len : NET_HEAD;
	struct cursor rest = c;
	uint64_t sum;

	memcpy(out->head, f->head, pl->end);
	if (pl->end + cut->at < f->head_len) {
		net_frame_copy(f, pl->end + cut->at, out->head + pl->end, head_len - pl->end);
	} else {
		advance(&rest, pl->end);
		copy_in(rest, out->head + pl->end, head_len - pl->end);
		rest = c;
	}
	out->head_len = (uint16_t)head_len;
	out->len = len;
	out->iov = c.iov;
	out->nr_iov = c.nr;
	out->skip = c.skip;
	memset(&out->hdr, 0, sizeof(out->hdr));
	patch_ip(out->head, pl, cut, len);
	patch_transport(out->head, pl, cut, len);
	if (pl->no_csum)
		return;
	sum = pseudo + htobe16((uint16_t)(len - pl->l4));
	if (takes_csum) {
		put_sum(out->head + pl->csum, net_sum_fold(sum));
		out->hdr.flags = NET_F_NEEDS_CSUM;
		out->hdr.csum_start = (uint16_t)pl->l4;
		out->hdr.csum_offset = (uint16_t)(pl->csum - pl->l4);
		return;
	}
	put_sum(out->head + pl->csum, 0);
	sum += fin->sum(out->head + pl->l4, head_len - pl->l4);
	if (head_len < len) {
		advance(&rest, head_len);
		/* NET_HEAD and l4 are even */
		sum += sum_pieces(fin, rest, len - head_len, false);
	}
	put_sum(out->head + pl->csum, net_sum_finish(sum));
}

static uint32_t finish_segments(struct net_finish *fin, const struct net_frame *f, uint32_t takes,
				void (*emit)(void *arg, const struct net_frame *f), void *arg)
{
	struct cursor c = cursor_of(f);
	struct cut cut = { 0 };
	uint32_t size = f->hdr.gso_size, payload;
	struct place pl;
	uint64_t pseudo;

	if (!size || f->len > NET_FRAME_MAX || !find_place(f, &pl))
		return NET_DROP_HEADER;
	payload = f->len - pl.end;
	if (payload > size * SEGMENTS_MAX)
		return NET_DROP_HEADER;
	pseudo = pseudo_sum(f, &pl);
	fin->out.pair = f->pair;
	for (;;) {
		cut.payload = payload < size ? payload : size;
		payload -= cut.payload;
		cut.last = payload == 0;
		make_segment(fin, f, &pl, &cut, c, pseudo, takes & NET_TAKES_CSUM);
		emit(arg, &fin->out);
		if (cut.last)
			return 0;
		cut.nr++;
		cut.at += size;
		advance(&c, size);
	}
}

uint32_t net_finish(struct net_finish *fin, const struct net_frame *f, uint32_t takes,
		    void (*emit)(void *arg, const struct net_frame *f), void *arg)
{
	uint8_t type = f->hdr.gso_type & (uint8_t)~NET_GSO_ECN;
	uint32_t why;

	if (!net_unfinished(f, takes)) {
		emit(arg, f);
		return 0;
	}
	if (type == NET_GSO_TCPV4 || type == NET_GSO_TCPV6 || f->hdr.gso_type == NET_GSO_UDP_L4)
		return finish_segments(fin, f, takes, emit, arg);
	/* fragments (UFO) are not made: nobody is offered it */
	if (f->hdr.gso_type != NET_GSO_NONE)
		return NET_DROP_HEADER;
	why = finish_csum(fin, f);
	if (!why)
		emit(arg, &fin->out);
	return why;
}
