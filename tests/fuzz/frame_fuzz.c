/* SPDX-License-Identifier: Apache-2.0 */
/*
 * frame_fuzz.c - what a guest sends: any header, any frame, in any pieces, for a taker that takes anything.
 *
 * An input is struct input below, little-endian, the lengths of the pieces, and the bytes of the chain. Pieces are
 * heap blocks of exactly their length, so that the sanitizers see every byte beyond. What they cannot see is asserted:
 * a frame that is let through keeps its promises, nothing that a taker does not take reaches it, no payload is lost or
 * repeated, and checksums are right, as a sum word by word finds them.
 *
 * With -DREPLAY it is a program that runs files instead of a libFuzzer target; it prints how many frames each made.
 */
#include "devices/net/csrc/dev.h"
#include "devices/net/csrc/rss.h"
#include "devices/net/csrc/vlan.h"
#include "tests/fuzz/fuzz.h"

enum {
	MAX_PIECES = 32,
	SEGMENTS_MAX = 2048,	/* as offload.c has it */

	/* input.flags */
	CHANGES = 1,		/* the guest writes to its pages while we work */
	TAG = 2,		/* a switch has the frame tagged, or without its tag */
	UNTAG = 4,
};

struct input {
	uint8_t header;		/* length of the virtio header: index into the table below */
	uint8_t allowed;	/* NET_TAKES_*: what the driver negotiated to send */
	uint8_t takes;		/* what the taker takes */
	uint8_t flags;
	uint16_t extra;		/* bytes of zeros behind the chain's bytes */
	uint16_t nr_pieces;	/* modulo; the rest is one more */
};

static const uint32_t header_lens[] = { NET_HDR_LEGACY, NET_HDR_V1, NET_HDR_HASH };

static struct state {
	struct input in;
	struct ring_chain chain;
	struct ring_iov iov[MAX_PIECES + 1];
	struct net_frame f;
	uint8_t *frame;		/* as it was let through, whole */
	struct net_frame first;	/* of those made of it */
	uint32_t made;
	uint32_t at;		/* payload bytes seen in them */
	uint32_t headers;	/* bytes before the payload */
	unsigned long long total;
} s;

static void fail(const char *what)
{
	fprintf(stderr, "frame_fuzz: %s\n", what);
	abort();
}

/* --- the chain ---------------------------------------------------------------------------------------------------- */

static void add_piece(const uint8_t **data, size_t *left, size_t len)
{
	struct ring_iov *iov = &s.iov[s.chain.nr_out];

	if (!len)
		return;		/* chains have none: walk.c leaves them out */
	iov->base = calloc(1, len);
	if (!iov->base)
		fail("no memory");
	iov->len = len;
	take(data, left, iov->base, len);
	s.chain.nr_out++;
	s.chain.out_bytes += (uint32_t)len;
}

static void set_up(const uint8_t **data, size_t *left)
{
	uint16_t cut[MAX_PIECES] = { 0 };
	uint32_t nr;

	s.made = s.at = s.headers = 0;
	s.frame = NULL;
	memset(&s.in, 0, sizeof(s.in));
	memset(&s.chain, 0, sizeof(s.chain));
	s.chain.iov = s.iov;
	take(data, left, &s.in, sizeof(s.in));
	nr = s.in.nr_pieces % (MAX_PIECES + 1);
	take(data, left, cut, nr * sizeof(cut[0]));
	for (uint32_t i = 0; i < nr; i++)
		add_piece(data, left, cut[i]);
	add_piece(data, left, *left + s.in.extra);
}

static void guest_writes(void)
{
	for (uint32_t i = 0; i < s.chain.nr_out; i++) {
		uint8_t *p = s.iov[i].base;

		for (size_t at = 0; at < s.iov[i].len; at++)
			p[at] = (uint8_t)(p[at] * 5 + at + 1);
	}
}

/* --- what is promised --------------------------------------------------------------------------------------------- */

/* Every byte of it can be had, and no more. */
static uint8_t *whole(const struct net_frame *f)
{
	uint8_t *copy = malloc(f->len);
	uint64_t there = 0;

	if (!copy)
		fail("no memory");
	if (f->len < NET_ETH || f->len > NET_FRAME_MAX)
		fail("a length that no frame has");
	if (f->head_len != (f->len < NET_HEAD ? f->len : NET_HEAD))
		fail("a head that is not the frame's");
	for (uint32_t i = 0; i < f->nr_iov; i++)
		there += f->iov[i].len;
	if (f->len > f->head_len && there < (uint64_t)f->skip + f->len)
		fail("pieces that do not hold the frame");
	net_frame_copy(f, 0, copy, f->len);
	return copy;
}

static void check_hdr(const struct net_frame *f, uint32_t allowed)
{
	if (net_check_hdr(&f->hdr, f->len, allowed) != NET_DROP_NONE)
		fail("a header that would not be let in again");
	if (f->hdr.hdr_len > f->len)
		fail("a hint beyond the frame");
}

static uint32_t sum(const uint8_t *p, uint32_t len, uint32_t start)
{
	for (uint32_t i = 0; i < len; i++) {
		start += i & 1 ? p[i] : (uint32_t)p[i] << 8;
		start = (start & 0xffff) + (start >> 16);
	}
	return start;
}

/* One checksum filled in, over what the driver had left in its place. */
static void check_filled(const uint8_t *now)
{
	uint32_t start = s.f.hdr.csum_start, place = start + s.f.hdr.csum_offset;
	uint32_t want = ~sum(s.frame + start, s.f.len - start, 0) & 0xffff;

	want = want ? want : 0xffff;
	if (now[place] != want >> 8 || now[place + 1] != (want & 0xff))
		fail("a checksum is wrong");
	for (uint32_t i = 0; i < s.f.len; i++)
		if (now[i] != s.frame[i] && i != place && i != place + 1)
			fail("more than the checksum was changed");
}

/* A segment's, where the addresses in its header are those that count. */
static void check_segment_sum(const uint8_t *p, uint32_t len)
{
	uint32_t l4 = s.f.hdr.csum_start, l3 = 14, all;
	bool udp = s.f.hdr.gso_type == NET_GSO_UDP_L4;

	while ((p[l3 - 2] == 0x81 && p[l3 - 1] == 0) || (p[l3 - 2] == 0x88 && p[l3 - 1] == 0xa8))
		l3 += 4;
	if (p[l3] >> 4 == 4 && l4 == l3 + 20) {
		if (sum(p + l3, 20, 0) != 0xffff)
			fail("an IPv4 header's checksum is wrong");
		all = sum(p + l3 + 12, 8, 0);
	} else if (p[l3] >> 4 == 6 && l4 == l3 + 40) {
		all = sum(p + l3 + 8, 32, 0);
	} else {
		return;
	}
	all += udp ? 17 : 6;
	all += len - l4;
	all = sum(p + l4, len - l4, (all & 0xffff) + (all >> 16));
	if (all % 0xffff != 0)
		fail("a segment's checksum is wrong");
}

/* A tag comes or goes, and nothing else. False: dropped. */
static bool tag(bool on)
{
	static struct vlan_frames made;
	bool tagged = vlan_is_tagged(&s.f);
	const struct net_frame *out;
	uint32_t len = s.f.len, behind;
	uint8_t *now;
	int why;

	if (tagged && s.f.head_len < NET_ETH + VLAN_TAG)
		return true;	/* switch.c lets none of these in */
	vlan_begin(&made);
	why = vlan_frame(&made, &s.f, tagged ? VLAN_TAGGED | 9 : 9, on, &out);
	if (why != VLAN_FRAME_DONE) {
		if (why < 0)
			fail("no room for one frame");
		return false;
	}
	if (out == &s.f)
		return true;
	s.f = *out;
	now = whole(&s.f);
	if (s.f.len != (on ? len + VLAN_TAG : len - VLAN_TAG))
		fail("more than a tag came or went");
	behind = len - VLAN_AT - (on ? 0 : VLAN_TAG);
	if (memcmp(now, s.frame, VLAN_AT) != 0 ||
	    memcmp(now + s.f.len - behind, s.frame + len - behind, behind) != 0)
		fail("a tag changed what it is put into");
	free(s.frame);
	s.frame = now;
	return true;
}

/* --- what is made -------------------------------------------------------------------------------------------------- */

static void see_segment(const struct net_frame *f, const uint8_t *p, bool changes)
{
	uint32_t payload;

	if (s.made == 1) {
		/* one that is not the last has a full payload */
		s.headers = f->len - s.f.hdr.gso_size;
		if (f->len == s.f.len)
			s.headers = 0;
		else if (s.f.hdr.gso_size > f->len || s.headers > NET_HEAD)
			fail("a segment of another size");
	}
	if (!s.headers) {
		s.at = s.f.len;		/* all in one */
		return;
	}
	payload = f->len - s.headers;
	if (f->len <= s.headers || payload > s.f.hdr.gso_size || payload > s.f.len - s.headers - s.at)
		fail("more payload than there is");
	if (!changes && memcmp(p + s.headers, s.frame + s.headers + s.at, payload) != 0)
		fail("another payload");
	s.at += payload;
}

static void see(void *arg, const struct net_frame *f)
{
	bool changes = s.in.flags & CHANGES, cut = s.f.hdr.gso_type != NET_GSO_NONE;
	uint8_t *p;

	(void)arg;
	s.made++;
	if (s.made > SEGMENTS_MAX)
		fail("too many segments");
	if (net_unfinished(f, s.in.takes))
		fail("unfinished");
	if (f == &s.f)
		return;
	check_hdr(f, s.in.takes);
	p = whole(f);
	if (cut)
		see_segment(f, p, changes);
	else if (f->len != s.f.len)
		fail("another length");
	if (!changes && !f->hdr.flags) {
		if (cut)
			check_segment_sum(p, f->len);
		else
			check_filled(p);
	}
	free(p);
}

/* A hash is one of those that are wanted, and nothing beyond the head is looked at. */
static void hash(uint32_t types)
{
	struct net_rss rss = { .types = types & NET_HASH_TYPES };
	uint8_t *head = malloc(s.f.head_len);
	uint32_t report, value = 0;

	if (!head)
		fail("no memory");
	memcpy(head, s.f.head, s.f.head_len);
	report = net_rss_hash(&rss, head, s.f.head_len, &value);
	if (report > NET_REPORT_UDPV6 || (report && !(rss.types >> (report - 1) & 1)))
		fail("a hash that nobody wants");
	free(head);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct net_finish *fin;
	static struct net_dev dev;
	uint32_t why = NET_DROP_NONE;
	bool there = true;

	fin = fin ? fin : net_finish_new();
	if (!fin)
		fail("no memory");
	set_up(&data, &size);
	dev.hdr_len = header_lens[s.in.header % 3];
	dev.allowed = s.in.allowed;
	memset(&s.f, 0xa5, sizeof(s.f));
	s.f.pair = 0;
	if (!net_frame_of_chain(&dev, &s.chain, &s.f, &why)) {
		if (why == NET_DROP_NONE || why >= NET_DROPS)
			fail("dropped without a reason");
	} else {
		s.frame = whole(&s.f);
		check_hdr(&s.f, s.in.allowed);
		if (s.in.flags & (TAG | UNTAG))
			there = tag(s.in.flags & TAG);
		check_hdr(&s.f, s.in.allowed);
		hash(s.in.takes);
		if (s.in.flags & CHANGES)
			guest_writes();
		if (there)
			why = net_finish(fin, &s.f, s.in.takes, see, NULL);
		if (!there)
			s.made = 0;
		else if (why ? s.made != 0 || why != NET_DROP_HEADER : s.made == 0)
			fail("a drop that made frames, or none for no reason");
		if (s.headers && s.at != s.f.len - s.headers)
			fail("payload is missing");
		free(s.frame);
	}
	s.total = s.made;
	for (uint32_t i = 0; i < s.chain.nr_out; i++)
		free(s.iov[i].base);
	return 0;
}

FUZZ_REPLAY(s.total)
