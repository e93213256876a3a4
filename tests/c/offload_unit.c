/* SPDX-License-Identifier: Apache-2.0 */
/*
 * offload_unit - checksums and segments. Without arguments: sums, odd pieces, and every header that is refused.
 * `offload_unit FILE`: finish the frames of FILE and print what comes of each, for a model to compare with
 * (tests/devices/test_net_offload.py). `offload_unit --speed`: bytes per second of sums and segments.
 */
#include <time.h>

#include "devices/net/csrc/csum.h"
#include "devices/net/csrc/net_int.h"
#include "tests/c/rig.h"

enum { PIECES = 64, TCP4 = 54, BYTES = 4000 };

static struct net_finish *fin;

static uint64_t seed = 88172645463325252ULL;

static uint32_t rnd(uint32_t below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (uint32_t)(seed >> 32) % below;
}

/* --- a frame in pieces, each a heap block of its own, so that a byte too far is seen ------------------------------ */

struct pieces {
	struct ring_iov iov[PIECES];
	uint32_t nr;
	struct net_frame f;
};

static void pieces_free(struct pieces *p)
{
	for (uint32_t i = 0; i < p->nr; i++)
		free(p->iov[i].base);
	p->nr = 0;
}

/* @skip bytes of something else first, then @len of @data; cut at random, empty pieces too. */
static void pieces_make(struct pieces *p, const uint8_t *data, uint32_t len, uint32_t skip, const struct net_hdr *hdr)
{
	uint32_t at = 0, all = skip + len;

	memset(p, 0, sizeof(*p));
	while (at < all) {
		uint32_t n = p->nr == PIECES - 1 || rnd(4) == 0 ? all - at : rnd(rnd(2) ? 16 : 2000);
		uint8_t *block;

		n = n < all - at ? n : all - at;
		block = malloc(n ? n : 1);
		CHECK(block != NULL);
		for (uint32_t i = 0; i < n; i++)
			block[i] = at + i < skip ? 0xee : data[at + i - skip];
		p->iov[p->nr++] = (struct ring_iov){ .base = block, .len = n };
		at += n;
	}
	p->f.hdr = *hdr;
	p->f.len = len;
	p->f.head_len = (uint16_t)(len < NET_HEAD ? len : NET_HEAD);
	p->f.skip = skip;
	p->f.iov = p->iov;
	p->f.nr_iov = p->nr;
	p->f.pair = 3;
	memcpy(p->f.head, data, p->f.head_len);
}

/* --- sums --------------------------------------------------------------------------------------------------------- */

static uint16_t naive(const uint8_t *p, uint32_t len)
{
	uint32_t sum = 0;

	for (uint32_t i = 0; i < len; i++) {
		sum += i & 1 ? (uint32_t)p[i] << 8 : p[i];
		sum = (sum & 0xffff) + (sum >> 16);
	}
	return (uint16_t)sum;
}

static void test_sums(void)
{
	uint8_t *buf = malloc(70000);
	net_sum_fn fns[] = { net_sum_scalar, net_sum_best() };

	CHECK(buf != NULL);
	for (int fill = 0; fill < 3; fill++) {
		for (uint32_t i = 0; i < 70000; i++)
			buf[i] = fill == 0 ? 0xff : fill == 1 ? (uint8_t)rnd(256) : 0;
		for (uint32_t k = 0; k < 2; k++) {
			for (uint32_t len = 0; len < 700; len++) {
				uint8_t *exact = malloc(len + 3);

				CHECK(exact != NULL);
				memcpy(exact + 3, buf, len);	/* not aligned, and nothing behind */
				CHECK_EQ(net_sum_fold(fns[k](exact + 3, len)), naive(buf, len));
				free(exact);
			}
			for (uint32_t i = 0; i < 200; i++) {
				uint32_t at = rnd(100), len = rnd(65536);

				CHECK_EQ(net_sum_fold(fns[k](buf + at, len)), naive(buf + at, len));
			}
			CHECK_EQ(net_sum_fold(fns[k](buf, 70000)), naive(buf, 70000));
		}
	}
	CHECK_EQ(net_sum_fold(UINT64_MAX), 0xffff);
	CHECK_EQ(net_sum_fold(0), 0);
	CHECK_EQ(net_sum_fold(0x10000), 1);
	CHECK_EQ(net_sum_at(0x1234, true), 0x3412);
	CHECK_EQ(net_sum_finish(0xffff), 0xffff);	/* 0 in UDP says there is none */
	CHECK_EQ(net_sum_finish(0), 0xffff);
	free(buf);
}

/* --- frames in and out -------------------------------------------------------------------------------------------- */

struct sink {
	uint32_t frames;
	uint32_t len;		/* of the last one */
	struct net_hdr hdr;
	uint16_t pair;
	uint8_t data[NET_FRAME_MAX];
};

static struct sink sink;

static void take(void *arg, const struct net_frame *f)
{
	struct sink *s = arg;

	CHECK(f->len <= NET_FRAME_MAX);
	CHECK_EQ(f->head_len, f->len < NET_HEAD ? f->len : NET_HEAD);
	s->frames++;
	s->len = f->len;
	s->hdr = f->hdr;
	s->pair = f->pair;
	net_frame_copy(f, 0, s->data, f->len);
}

static uint32_t finish(const struct net_frame *f, uint32_t takes)
{
	memset(&sink, 0, offsetof(struct sink, data));
	return net_finish(fin, f, takes, take, &sink);
}

static void test_copy(void)
{
	static uint8_t data[5000], out[5000];
	struct net_hdr none = { 0 };
	struct net_frame f;
	struct ring_iov iov;
	struct pieces p;

	for (int round = 0; round < 300; round++) {
		uint32_t len = 1 + rnd(round & 1 ? 200 : 5000), at = rnd(len), n = rnd(len - at + 1);

		for (uint32_t i = 0; i < len; i++)
			data[i] = (uint8_t)rnd(256);
		pieces_make(&p, data, len, rnd(20), &none);
		p.f.head[0] ^= 0xff;	/* the head is what counts */
		data[0] ^= 0xff;
		net_frame_copy(&p.f, at, out, n);
		CHECK(memcmp(out, data + at, n) == 0);
		pieces_free(&p);
	}
	net_frame_of_memory(&f, &iov, data, 60, &none);
	CHECK(f.head_len == 60 && f.len == 60 && f.nr_iov == 1 && f.skip == 0 && memcmp(f.head, data, 60) == 0);
	net_frame_of_memory(&f, &iov, data, 5000, &none);
	CHECK(f.head_len == NET_HEAD && f.len == 5000);
}

/* The checksum anywhere, head or not, odd or not. */
static void test_csum_only(void)
{
	static uint8_t data[5000];
	struct pieces p;

	for (int round = 0; round < 3000; round++) {
		uint32_t len = 60 + rnd(round % 3 ? 300 : 4940);
		struct net_hdr hdr = { .flags = NET_F_NEEDS_CSUM };
		uint32_t place;
		uint16_t want;

		for (uint32_t i = 0; i < len; i++)
			data[i] = (uint8_t)rnd(256);
		hdr.csum_start = (uint16_t)rnd(len - 1);
		hdr.csum_offset = (uint16_t)rnd(len - hdr.csum_start - 1);
		place = (uint32_t)hdr.csum_start + hdr.csum_offset;
		want = (uint16_t)~naive(data + hdr.csum_start, len - hdr.csum_start);
		want = want ? want : 0xffff;
		pieces_make(&p, data, len, rnd(20), &hdr);
		CHECK_EQ(finish(&p.f, 0), 0);
		memcpy(data + place, &want, 2);
		CHECK(sink.frames == 1 && sink.len == len && sink.hdr.flags == 0 && sink.pair == 3);
		CHECK(memcmp(sink.data, data, len) == 0);
		/* taken as it is by who takes it */
		CHECK_EQ(finish(&p.f, NET_TAKES_CSUM), 0);
		CHECK(sink.frames == 1 && sink.hdr.flags == NET_F_NEEDS_CSUM && sink.len == len);
		pieces_free(&p);
	}
	/* a place that is not in the frame is not written to, whoever let it pass */
	memset(data, 1, sizeof(data));
	pieces_make(&p, data, 100, 0, &(struct net_hdr){ .flags = NET_F_NEEDS_CSUM, .csum_start = 60, .csum_offset = 39 });
	CHECK_EQ(finish(&p.f, 0), NET_DROP_HEADER);
	p.f.hdr.csum_start = p.f.hdr.csum_offset = UINT16_MAX;
	CHECK_EQ(finish(&p.f, 0), NET_DROP_HEADER);
	pieces_free(&p);
}

/* --- what is refused ---------------------------------------------------------------------------------------------- */

static const struct net_hdr tcp4 = {
	.flags = NET_F_NEEDS_CSUM, .gso_type = NET_GSO_TCPV4, .gso_size = 1000, .csum_start = 34, .csum_offset = 16,
};

static void good_tcp4(uint8_t *d)
{
	static const uint8_t head[TCP4] = {
		2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0,
		0x45, 0, (BYTES - 14) >> 8, (BYTES - 14) & 255, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
		0, 80, 0, 90, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 0, 99, 0, 0, 0, 0,
	};

	memset(d, 0x77, BYTES);
	memcpy(d, head, sizeof(head));
}

static uint32_t finish_with(uint32_t len, uint32_t at, uint8_t value, const struct net_hdr *hdr)
{
	static uint8_t d[BYTES];
	struct pieces p;
	uint32_t why;

	good_tcp4(d);
	d[at] = value;
	pieces_make(&p, d, len, 12, hdr);
	why = finish(&p.f, 0);
	CHECK(!why || sink.frames == 0);
	pieces_free(&p);
	return why;
}

static void test_refused(void)
{
	static const struct {
		uint32_t at;
		uint8_t value;
	} bad[] = {
		{ 12, 0x86 }, { 13, 6 }, { 12, 0x81 },			/* not IPv4 */
		{ 14, 0x65 }, { 14, 0x44 }, { 14, 0x40 }, { 14, 0x4f },	/* version, header length */
		{ 16, 0 }, { 16, 0xff }, { 17, 1 },			/* total length */
		{ 20, 0x20 }, { 20, 0x60 }, { 21, 1 }, { 20, 0x1f },	/* a fragment */
		{ 23, 17 }, { 23, 0 },					/* protocol */
		{ 46, 0x40 }, { 46, 0 },				/* TCP data offset */
	};
	struct net_hdr hdr = tcp4;
	uint32_t len;

	CHECK_EQ(finish_with(BYTES, 0, 2, &hdr), 0);
	CHECK_EQ(sink.frames, 4);
	CHECK_EQ(sink.len, BYTES - TCP4 - 3000 + TCP4);
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		CHECK_EQ(finish_with(BYTES, bad[i].at, bad[i].value, &hdr), NET_DROP_HEADER);
	for (len = NET_ETH; len < BYTES; len++)
		CHECK_EQ(finish_with(len, 0, 2, &hdr), NET_DROP_HEADER);
#define REFUSED(field, value)                                                                                          \
	do {                                                                                                           \
		hdr = tcp4;                                                                                            \
		hdr.field = (value);                                                                                   \
		CHECK_EQ(finish_with(BYTES, 0, 2, &hdr), NET_DROP_HEADER);                                             \
	} while (0)
	REFUSED(gso_type, NET_GSO_TCPV6);
	REFUSED(gso_type, NET_GSO_UDP);
	REFUSED(gso_type, NET_GSO_UDP | NET_GSO_ECN);
	REFUSED(gso_type, NET_GSO_UDP_L4);
	REFUSED(gso_type, NET_GSO_UDP_L4 | NET_GSO_ECN);
	REFUSED(gso_type, NET_GSO_ECN);
	REFUSED(gso_size, 0);
	REFUSED(gso_size, 1);		/* 3946 segments */
	REFUSED(csum_start, 33);
	REFUSED(csum_start, 0);
	REFUSED(csum_offset, 6);
	REFUSED(csum_start, UINT16_MAX);
#undef REFUSED
	hdr = tcp4;
	hdr.gso_size = 2;
	CHECK_EQ(finish_with(BYTES, 0, 2, &hdr), 0);
	CHECK_EQ(sink.frames, (BYTES - TCP4) / 2);
	hdr.hdr_len = UINT16_MAX;	/* a hint */
	hdr.gso_size = UINT16_MAX;
	CHECK_EQ(finish_with(BYTES, 0, 2, &hdr), 0);
	CHECK_EQ(sink.frames, 1);
	CHECK_EQ(sink.len, BYTES);
	hdr.flags = 0;			/* no checksum asked for: it is cut all the same */
	hdr.gso_size = 1000;
	CHECK_EQ(finish_with(BYTES, 0, 2, &hdr), 0);
	CHECK_EQ(sink.frames, 4);
}

/* --- for the model ------------------------------------------------------------------------------------------------ */

/* In: takes, len, skip, header. Then the frame. Out: a line per input, "why hdr:frame hdr:frame …", in hex. */
struct job {
	uint32_t takes;
	uint32_t len;
	uint32_t skip;
	struct net_hdr hdr;
};	/* 24 bytes */

static void print(void *arg, const struct net_frame *f)
{
	const uint8_t *hdr = (const uint8_t *)&f->hdr;

	take(arg, f);
	putchar(' ');
	for (size_t i = 0; i < sizeof(f->hdr); i++)
		printf("%02x", hdr[i]);
	putchar(':');
	for (uint32_t i = 0; i < f->len; i++)
		printf("%02x", sink.data[i]);
}

static void serve(const char *name)
{
	static uint8_t data[NET_FRAME_MAX];
	FILE *in = fopen(name, "rb");
	struct pieces p;
	struct job job;

	CHECK(in != NULL);
	while (fread(&job, sizeof(job), 1, in) == 1) {
		uint32_t why;

		CHECK(job.len <= sizeof(data) && fread(data, job.len, 1, in) == 1);
		pieces_make(&p, data, job.len, job.skip, &job.hdr);
		putchar('=');
		why = net_finish(fin, &p.f, job.takes, print, &sink);
		printf(" %u\n", why);
		pieces_free(&p);
	}
	fclose(in);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static double rate(net_sum_fn fn, const uint8_t *buf, uint32_t len)
{
	uint64_t sum = 0, bytes = 0, took;
	uint64_t from = now_ns();

	do {
		for (int i = 0; i < 1000; i++, bytes += len)
			sum += fn(buf, len);
		took = now_ns() - from;
	} while (took < 200000000);
	CHECK(sum != 1);
	return (double)bytes / (double)took;
}

static void ignore(void *arg, const struct net_frame *f)
{
	*(uint64_t *)arg += f->len;
}

/* A whole large frame to segments of 1448 bytes, nothing copied. */
static double segments(uint32_t takes)
{
	static uint8_t d[65000];
	struct net_hdr hdr = tcp4;
	struct ring_iov iov;
	struct net_frame f;
	uint64_t bytes = 0, from = now_ns(), took;

	good_tcp4(d);
	d[16] = d[17] = 0;
	hdr.gso_size = 1448;
	net_frame_of_memory(&f, &iov, d, sizeof(d), &hdr);
	do {
		for (int i = 0; i < 100; i++)
			CHECK_EQ(net_finish(fin, &f, takes, ignore, &bytes), 0);
		took = now_ns() - from;
	} while (took < 200000000);
	return (double)bytes / (double)took;
}

static void speed(void)
{
	static uint8_t buf[1 << 16];
	static const uint32_t lens[] = { 64, 256, 1460, 16384, 65536 };

	for (size_t i = 0; i < sizeof(lens) / sizeof(*lens); i++)
		printf("%6u bytes: %5.1f GB/s, word by word %5.1f GB/s\n", lens[i], rate(net_sum_best(), buf, lens[i]),
		       rate(net_sum_scalar, buf, lens[i]));
	printf("segments of 1448 bytes: %.1f GB/s, without checksums %.1f GB/s\n", segments(0),
	       segments(NET_TAKES_CSUM));
}

int main(int argc, char **argv)
{
	fin = net_finish_new();
	CHECK(fin != NULL);
	if (argc == 2 && strcmp(argv[1], "--speed") == 0) {
		speed();
	} else if (argc == 2) {
		serve(argv[1]);
	} else {
		test_sums();
		test_copy();
		test_csum_only();
		test_refused();
	}
	net_finish_free(fin);
	return 0;
}
