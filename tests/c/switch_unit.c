/* SPDX-License-Identifier: Apache-2.0 */
/*
 * switch_unit - a switch between stations that keep what they get. Learning, ageing, floods, VLANs, isolation, pins,
 * limits, ports that come and go; then random frames against a model that looks everything up in a list.
 */
#include <time.h>

#include "devices/net/csrc/fdb.h"
#include "devices/net/csrc/net_int.h"
#include "devices/net/csrc/switch.h"
#include "devices/net/csrc/vlan.h"
#include "tests/c/rig.h"

enum { STATIONS = 6, BYTES = 2000, KEEP = 256, ALL = 63 };

struct got {
	struct net_hdr hdr;
	uint32_t len;
	uint8_t bytes[BYTES];
};

struct station {
	struct net_port port;
	struct net_port *at;	/* the switch's */
	struct got got[KEEP];
	int nr;
	int sends;
	bool echo;
};

static struct net_switch *sw;
static struct station st[STATIONS];
static uint64_t seed = 88172645463325252ULL;

static uint32_t rnd(uint32_t below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (uint32_t)(seed >> 32) % below;
}

static void station_send(struct net_port *port, const struct net_frame *const *frames, int n)
{
	struct station *s = (struct station *)(void *)port;
	int i;

	s->sends++;
	for (i = 0; i < n; i++) {
		struct got *g = &s->got[s->nr % KEEP];

		s->nr++;
		CHECK(frames[i]->len <= BYTES);
		CHECK_EQ(frames[i]->head_len, frames[i]->len < NET_HEAD ? frames[i]->len : NET_HEAD);
		g->hdr = frames[i]->hdr;
		g->len = frames[i]->len;
		net_frame_copy(frames[i], 0, g->bytes, g->len);
	}
	if (s->echo)
		s->at->ops->send(s->at, frames, n);
}

static void no_free(struct net_port *port)
{
	(void)port;
}

static const struct net_port_ops station_ops = { .send = station_send, .free = no_free };

static struct net_switch_config plain(void)
{
	return (struct net_switch_config){ .learn_max = 100 };
}

static struct net_switch_config access_port(uint32_t vlan)
{
	return (struct net_switch_config){ .learn_max = 100, .vlan = vlan };
}

static struct net_switch_config trunk(uint32_t native, uint32_t a, uint32_t b)
{
	struct net_switch_config c = { .learn_max = 100, .vlan = native, .flags = NET_SWITCH_TRUNK };

	c.trunk[a / 64] |= 1ull << a % 64;
	c.trunk[b / 64] |= 1ull << b % 64;
	return c;
}

static void plug(int i, struct net_switch_config config)
{
	int error;

	memset(&st[i], 0, sizeof(st[i]));
	st[i].port.ops = &station_ops;
	st[i].at = net_switch_port_new(sw, &config, &error);
	CHECK_EQ(error, 0);
	net_port_connect(&st[i].port, st[i].at);
}

static void unplug(int i)
{
	net_port_connect(NULL, st[i].at);
	net_port_free(st[i].at);
	st[i].at = NULL;
}

static void begin(int stations)
{
	int i;

	sw = net_switch_new(1024, 0x123456789abcdefull);
	CHECK(sw != NULL);
	net_switch_set_ageing(sw, 300);
	for (i = 0; i < stations; i++)
		plug(i, plain());
}

static void end(void)
{
	int i;

	for (i = 0; i < STATIONS; i++)
		if (st[i].at)
			unplug(i);
	net_switch_free(sw);
}

/* --- frames ----------------------------------------------------------------------------------------------------- */

#define EVERYONE 0xffff		/* as an address */

static uint32_t address(uint8_t *to, uint32_t id)
{
	static const uint8_t lead[4] = { 0x02, 0, 0, 0 };

	memset(to, 0xff, 6);
	if (id != EVERYONE) {
		memcpy(to, lead, 4);
		to[4] = (uint8_t)(id >> 8);
		to[5] = (uint8_t)id;
	}
	return 6;
}

/* Bytes of a frame; @tci < 0: without a tag. */
static uint32_t make(uint8_t *to, uint32_t dst, uint32_t src, int tci, uint32_t len)
{
	uint32_t at = address(to, dst), i;

	at += address(to + at, src);
	if (tci >= 0) {
		to[at++] = 0x81;
		to[at++] = 0;
		to[at++] = (uint8_t)(tci >> 8);
		to[at++] = (uint8_t)tci;
	}
	to[at++] = 0x88;
	to[at++] = 0xb5;
	for (i = at; i < len; i++)
		to[i] = (uint8_t)(i * 7 + src + dst * 3);
	return len;
}

/* @bytes as a frame, in pieces of its own, @skip bytes of something else in front; they are freed by frame_free(). */
struct pieces {
	struct net_frame f;
	struct ring_iov iov[40];
};

static void frame_make(struct pieces *p, const uint8_t *bytes, uint32_t len, uint32_t skip, uint32_t nr)
{
	uint32_t at = 0, all = skip + len, i, k;

	memset(p, 0, sizeof(*p));
	for (i = 0; i < nr; i++) {
		uint32_t n = i == nr - 1 ? all - at : rnd(all / nr + 1) + (i ? 0 : skip);
		uint8_t *block = malloc(n ? n : 1);

		CHECK(block != NULL);
		n = n < all - at ? n : all - at;
		for (k = 0; k < n; k++)
			block[k] = at + k < skip ? 0xee : bytes[at + k - skip];
		p->iov[i] = (struct ring_iov){ .base = block, .len = n };
		at += n;
	}
	p->f.len = len;
	p->f.head_len = (uint16_t)(len < NET_HEAD ? len : NET_HEAD);
	p->f.nr_iov = nr;
	p->f.iov = p->iov;
	p->f.skip = skip;
	memcpy(p->f.head, bytes, p->f.head_len);
}

static void frame_free(struct pieces *p)
{
	uint32_t i;

	for (i = 0; i < p->f.nr_iov; i++)
		free(p->iov[i].base);
}

static void forget(void)
{
	int i;

	for (i = 0; i < STATIONS; i++)
		st[i].nr = st[i].sends = 0;
}

static uint8_t last[BYTES];
static struct net_hdr last_hdr;

/* Station @i sends; a bit for each station that got it. */
static uint32_t send_tagged(int i, uint32_t dst, uint32_t src, int tci, uint32_t len)
{
	const struct net_frame *list[1];
	struct pieces p;
	uint32_t who = 0;
	int k;

	forget();
	make(last, dst, src, tci, len);
	frame_make(&p, last, len, rnd(2) ? 12 : rnd(4), 1 + rnd(rnd(2) ? 2 : 39));
	p.f.hdr = last_hdr;
	list[0] = &p.f;
	st[i].at->ops->send(st[i].at, list, 1);
	frame_free(&p);
	for (k = 0; k < STATIONS; k++)
		who |= (uint32_t)(st[k].nr > 0) << k;
	return who;
}

static uint32_t send_frame(int i, uint32_t dst, uint32_t src)
{
	return send_tagged(i, dst, src, -1, 60 + rnd(200));
}

static uint64_t drops(int i, int why)
{
	struct net_port_stats s;

	net_port_stats(st[i].at, &s);
	return s.dropped[why];
}

/* --- cases ------------------------------------------------------------------------------------------------------ */

static void test_learning(void)
{
	struct net_switch_entry table[10];
	struct net_switch_stats stats;

	begin(4);
	CHECK_EQ(send_frame(0, 2, 1), 14);		/* unknown: to all others */
	CHECK_EQ(send_frame(1, 1, 2), 1);
	CHECK(!memcmp(st[0].got[0].bytes, last, st[0].got[0].len));
	CHECK_EQ(send_frame(0, 2, 1), 2);
	CHECK_EQ(send_frame(0, EVERYONE, 1), 14);
	CHECK_EQ(send_frame(2, 1, 2), 1);		/* 2 has moved */
	CHECK_EQ(send_frame(0, 2, 1), 4);
	CHECK_EQ(send_frame(3, 2, 3), 4);
	CHECK_EQ(send_frame(2, 2, 4), 0);		/* is on the same side */
	CHECK_EQ(drops(2, NET_DROP_ISOLATED), 1);
	CHECK_EQ(net_switch_table(sw, table, 10), 4);
	CHECK_EQ(net_switch_table(sw, table, 1), 4);
	net_switch_stats(sw, &stats);
	CHECK_EQ(stats.entries, 4);
	CHECK_EQ(stats.moved, 1);
	CHECK_EQ(net_switch_port_learnt(st[2].at), 2);
	net_switch_flush(sw, st[2].at);
	CHECK_EQ(send_frame(0, 2, 1), 14);
	net_switch_flush(sw, NULL);
	CHECK_EQ(net_switch_table(sw, table, 10), 0);
	CHECK_EQ(send_frame(1, 1, 5), 13);
	end();
}

static void test_bad_addresses(void)
{
	static const uint8_t reserved[6] = { 0x01, 0x80, 0xc2, 0, 0, 0x0e };
	uint8_t bytes[60];
	struct pieces p;
	const struct net_frame *list[1] = { &p.f };

	begin(3);
	make(bytes, 2, 1, -1, 60);
	memcpy(bytes, reserved, 6);
	frame_make(&p, bytes, 60, 0, 1);
	st[0].at->ops->send(st[0].at, list, 1);
	frame_free(&p);
	bytes[5] = 0x10;	/* the first one that is not reserved */
	frame_make(&p, bytes, 60, 0, 1);
	CHECK_EQ(st[1].nr, 0);
	CHECK_EQ(drops(0, NET_DROP_FILTER), 1);
	st[0].at->ops->send(st[0].at, list, 1);
	frame_free(&p);
	CHECK_EQ(st[1].nr, 1);
	CHECK_EQ(send_frame(0, 2, EVERYONE), 0);
	memset(bytes, 0, 12);
	frame_make(&p, bytes, 60, 0, 1);
	st[0].at->ops->send(st[0].at, list, 1);
	frame_free(&p);
	CHECK_EQ(drops(0, NET_DROP_FILTER), 3);
	end();
}

static void test_ageing(void)
{
	struct net_switch_entry table[4];
	struct net_switch_stats stats;

	begin(3);
	send_frame(1, EVERYONE, 2);
	net_switch_skip(sw, 290);
	CHECK_EQ(send_frame(0, 2, 1), 2);
	CHECK_EQ(net_switch_table(sw, table, 4), 2);
	CHECK(table[0].age + table[1].age >= 288 && table[0].age + table[1].age <= 291);
	net_switch_skip(sw, 12);
	CHECK_EQ(send_frame(0, 2, 1), 6);
	CHECK_EQ(send_frame(2, 1, 3), 1);	/* was heard of meanwhile */
	net_switch_skip(sw, 1000);		/* cleared away without being looked for */
	net_switch_stats(sw, &stats);
	CHECK_EQ(stats.entries, 0);
	net_switch_set_ageing(sw, 10);
	send_frame(1, EVERYONE, 2);
	net_switch_skip(sw, 12);
	CHECK_EQ(send_frame(0, 2, 1), 6);
	end();
}

/* Somebody with a thousand addresses gets his share of the table, and does not push out those of others. */
static void test_learning_limit(void)
{
	struct net_switch_stats stats;
	uint32_t i;

	begin(3);
	send_frame(1, EVERYONE, 2);
	for (i = 0; i < 3000; i++)
		send_frame(0, 2, 1000 + i);
	CHECK_EQ(net_switch_port_learnt(st[0].at), 100);
	net_switch_stats(sw, &stats);
	CHECK_EQ(stats.entries, 101);
	CHECK_EQ(stats.refused, 2900);
	CHECK_EQ(send_frame(2, 2, 3), 2);
	CHECK_EQ(send_frame(2, 1000, 3), 1);
	CHECK_EQ(send_frame(2, 3999, 3), 3);
	end();
}

static void test_full_table(void)
{
	struct net_switch_config greedy = { .learn_max = 1000000 };
	uint32_t i;

	sw = net_switch_new(8, 1);
	net_switch_set_ageing(sw, 300);
	plug(0, greedy);
	plug(1, plain());
	plug(2, plain());
	for (i = 0; i < 500; i++)
		send_frame(0, EVERYONE, 1000 + i);
	CHECK_EQ(net_switch_port_learnt(st[0].at), 16);
	CHECK_EQ(send_frame(1, EVERYONE, 2), 5);
	CHECK_EQ(net_switch_port_learnt(st[1].at), 1);
	for (i = 0; i < 500; i++)
		send_frame(0, EVERYONE, 1000 + i);
	CHECK_EQ(send_frame(2, 2, 3), 2);
	CHECK_EQ(net_switch_port_learnt(st[0].at), 14);
	end();
}

static void test_isolation(void)
{
	struct net_switch_config c = plain();

	begin(1);
	c.flags = NET_SWITCH_ISOLATED;
	plug(1, c);
	plug(2, c);
	CHECK_EQ(send_frame(1, EVERYONE, 2), 1);
	CHECK_EQ(send_frame(2, EVERYONE, 3), 1);
	CHECK_EQ(send_frame(0, EVERYONE, 1), 6);
	CHECK_EQ(send_frame(1, 3, 2), 0);
	CHECK_EQ(drops(1, NET_DROP_ISOLATED), 1);
	CHECK_EQ(send_frame(1, 1, 2), 1);
	CHECK_EQ(send_frame(0, 3, 1), 4);
	end();
}

static void test_pins(void)
{
	struct net_switch_config c = plain();
	int error;

	begin(3);
	send_frame(0, EVERYONE, 9);	/* was there before it was pinned elsewhere */
	CHECK_EQ(send_frame(2, 9, 3), 1);
	c.flags = NET_SWITCH_PINNED;
	address(c.mac, 9);
	CHECK_EQ(net_switch_port_set(st[1].at, &c), 0);
	CHECK_EQ(net_switch_port_set(st[2].at, &c), -EEXIST);
	CHECK(!net_switch_port_new(sw, &c, &error) && error == -EEXIST);
	CHECK_EQ(send_frame(2, 9, 3), 2);		/* known before it has said anything */
	CHECK_EQ(send_frame(1, EVERYONE, 8), 0);	/* not its own */
	CHECK_EQ(drops(1, NET_DROP_FILTER), 1);
	CHECK_EQ(send_frame(0, EVERYONE, 9), 0);	/* somebody else's */
	CHECK_EQ(drops(0, NET_DROP_FILTER), 1);
	CHECK_EQ(send_frame(1, 3, 9), 4);
	CHECK_EQ(send_frame(2, 9, 3), 2);
	net_switch_flush(sw, NULL);
	CHECK_EQ(send_frame(2, 9, 3), 2);
	net_switch_skip(sw, 100000);
	CHECK_EQ(send_frame(2, 9, 3), 2);
	address(c.mac, 10);
	CHECK_EQ(net_switch_port_set(st[1].at, &c), 0);
	CHECK_EQ(send_frame(0, EVERYONE, 9), 6);
	CHECK_EQ(send_frame(0, EVERYONE, 10), 0);
	unplug(1);
	CHECK_EQ(send_frame(0, EVERYONE, 10), 4);
	address(c.mac, EVERYONE);
	CHECK_EQ(net_switch_port_set(st[0].at, &c), -EINVAL);
	end();
}

static void test_vlans(void)
{
	struct net_switch_config bad = access_port(4095);
	int error;

	begin(1);
	plug(1, access_port(5));
	plug(2, access_port(5));
	plug(3, access_port(6));
	plug(4, trunk(0, 5, 6));
	plug(5, trunk(6, 5, 7));
	CHECK_EQ(send_frame(0, EVERYONE, 1), 0);	/* plain ones are by themselves */
	CHECK_EQ(send_tagged(1, EVERYONE, 2, -1, 300), 4 | 16 | 32);
	CHECK(st[2].got[0].len == 300 && !memcmp(st[2].got[0].bytes, last, 300));
	CHECK_EQ(st[4].got[0].len, 304);
	CHECK(!memcmp(st[4].got[0].bytes, last, 12) && !memcmp(st[4].got[0].bytes + 12, "\x81\0\0\5", 4));
	CHECK(!memcmp(st[4].got[0].bytes + 16, last + 12, 288));
	CHECK(!memcmp(st[4].got[0].bytes, st[5].got[0].bytes, 304));
	CHECK_EQ(send_tagged(4, EVERYONE, 3, 0x6005, 304), 2 | 4 | 32);
	CHECK(st[1].got[0].len == 300 && !memcmp(st[1].got[0].bytes, last, 12));
	CHECK(!memcmp(st[1].got[0].bytes + 12, last + 16, 288));
	CHECK(st[5].got[0].len == 304 && !memcmp(st[5].got[0].bytes, last, 304));
	CHECK_EQ(send_tagged(3, EVERYONE, 4, -1, 60), 16 | 32);
	CHECK(st[4].got[0].len == 64 && st[5].got[0].len == 60);
	CHECK_EQ(send_tagged(5, 4, 5, -1, 60), 8);	/* without tag it is VLAN 6 */
	CHECK_EQ(send_tagged(5, 4, 5, 0x2000, 64), 8);	/* so it is with a tag that only has a priority */
	CHECK_EQ(st[3].got[0].len, 60);
	CHECK_EQ(send_tagged(5, EVERYONE, 5, 0x2000, 64), 8 | 16);
	CHECK(!memcmp(st[4].got[0].bytes + 12, "\x81\0\x20\6", 4));
	CHECK_EQ(send_tagged(5, EVERYONE, 5, 8, 64), 0);
	CHECK_EQ(drops(5, NET_DROP_VLAN), 1);
	CHECK_EQ(send_tagged(4, EVERYONE, 5, -1, 64), 0);
	CHECK_EQ(send_tagged(1, EVERYONE, 5, 5, 64), 0);
	CHECK_EQ(send_tagged(1, EVERYONE, 5, 5, 16), 0);
	CHECK_EQ(drops(1, NET_DROP_VLAN), 1);
	CHECK_EQ(drops(1, NET_DROP_RUNT), 1);
	CHECK_EQ(send_tagged(4, 2, 9, 5, 64), 2);	/* one address in two VLANs */
	CHECK_EQ(send_tagged(5, EVERYONE, 2, 5, 64), 2 | 4 | 16);
	CHECK_EQ(send_tagged(3, 2, 4, -1, 64), 16 | 32);
	CHECK_EQ(net_switch_port_set(st[0].at, &bad), -EINVAL);
	bad = trunk(0, 0, 5);
	CHECK(!net_switch_port_new(sw, &bad, &error) && error == -EINVAL);
	end();
}

/* A tag behind the one that is taken out, or behind none. */
static void test_hopping(void)
{
	static const uint8_t types[3][2] = { { 0x81, 0 }, { 0x88, 0xa8 }, { 0x91, 0 } };
	const struct net_frame *list[1];
	uint8_t bytes[68];
	struct pieces p;
	int i;

	begin(0);
	plug(0, access_port(5));
	plug(1, trunk(5, 6, 7));
	plug(2, access_port(5));
	list[0] = &p.f;
	for (i = 0; i < 3; i++) {
		make(bytes, EVERYONE, 1, 0, 68);
		memcpy(bytes + 16, types[i], 2);
		frame_make(&p, bytes, 68, 12, 1);
		st[0].at->ops->send(st[0].at, list, 1);
		frame_free(&p);
		make(bytes, EVERYONE, 1, -1, 68);
		memcpy(bytes + 12, types[i], 2);
		bytes[15] = 6;
		frame_make(&p, bytes, 68, 12, 1);
		st[0].at->ops->send(st[0].at, list, 1);
		frame_free(&p);
	}
	CHECK_EQ(st[1].nr + st[2].nr, 0);
	CHECK_EQ(drops(1, NET_DROP_VLAN), 3);
	CHECK_EQ(drops(0, NET_DROP_VLAN), 3);
	end();
}

static void test_offloads(void)
{
	struct net_hdr h = { .flags = NET_F_NEEDS_CSUM, .gso_type = NET_GSO_TCPV4, .hdr_len = 54, .gso_size = 1448,
			     .csum_start = 34, .csum_offset = 16 };

	begin(0);
	plug(0, access_port(5));
	plug(1, trunk(0, 5, 5));
	plug(2, access_port(5));
	last_hdr = h;
	CHECK_EQ(send_tagged(0, EVERYONE, 1, -1, 1500), 6);
	CHECK(!memcmp(&st[2].got[0].hdr, &h, sizeof(h)));
	CHECK(st[1].got[0].hdr.csum_start == 38 && st[1].got[0].hdr.hdr_len == 58);
	CHECK(st[1].got[0].hdr.gso_size == 1448 && st[1].got[0].hdr.csum_offset == 16);
	last_hdr.csum_start = 38;
	last_hdr.hdr_len = 58;
	CHECK_EQ(send_tagged(1, 1, 2, 5, 1504), 1);
	CHECK(!memcmp(&st[0].got[0].hdr, &h, sizeof(h)));
	last_hdr.csum_start = 17;	/* it lies in the tag */
	CHECK_EQ(send_tagged(1, 1, 2, 5, 1504), 0);
	CHECK_EQ(drops(0, NET_DROP_HEADER), 1);
	last_hdr.csum_start = 65533;
	CHECK_EQ(send_tagged(0, 2, 1, -1, 1500), 0);
	CHECK_EQ(drops(1, NET_DROP_HEADER), 1);
	memset(&last_hdr, 0, sizeof(last_hdr));
	end();
}

static int count_sent(int from, uint32_t dst, int tries)
{
	int n = 0;

	while (tries--)
		n += send_tagged(from, dst, 1, -1, 100) != 0;
	return n;
}

static void wait_ms(long ms)
{
	struct timespec ts = { .tv_nsec = ms * 1000000 };

	nanosleep(&ts, NULL);
}

static void set(int i, struct net_switch_config c)
{
	CHECK_EQ(net_switch_port_set(st[i].at, &c), 0);
}

/* A burst, and what comes together meanwhile; the machine may be slow, so that it is more, never less. */
static void expect_burst(int from, uint32_t dst, int burst)
{
	int n = count_sent(from, dst, 3 * burst);

	CHECK(n >= burst && n < 3 * burst);
}

static void test_limits(void)
{
	struct net_switch_config c = { .learn_max = 10, .in_frames = 100, .burst_ms = 200 };

	begin(3);
	send_frame(1, EVERYONE, 2);
	set(0, c);
	expect_burst(0, 2, 20);
	CHECK(drops(0, NET_DROP_LIMIT) > 0);
	wait_ms(50);
	CHECK(count_sent(0, 2, 1) == 1);
	c.in_frames = 0;
	c.in_bytes = 10000;
	set(0, c);
	expect_burst(0, 2, 20);
	c.in_bytes = 0;
	c.in_floods = 100;
	set(0, c);
	expect_burst(0, EVERYONE, 20);
	CHECK_EQ(count_sent(0, 2, 50), 50);	/* what is known is no flood */
	c.in_floods = 0;
	c.out_frames = 100;
	set(0, plain());
	set(1, c);
	expect_burst(0, 2, 20);
	CHECK(drops(1, NET_DROP_LIMIT) > 0);
	c.out_frames = 0;
	c.out_bytes = 10000;
	set(1, c);
	expect_burst(0, 2, 20);
	set(1, plain());
	CHECK_EQ(count_sent(0, 2, 100), 100);
	/* a segment counts as all it is cut into */
	c.out_bytes = 0;
	c.in_frames = 100;
	set(0, c);
	last_hdr = (struct net_hdr){ .flags = NET_F_NEEDS_CSUM, .gso_type = NET_GSO_TCPV4, .gso_size = 10, .csum_start = 34,
				     .csum_offset = 16 };
	expect_burst(0, 2, 3);
	memset(&last_hdr, 0, sizeof(last_hdr));
	end();
}

static void test_ports_come_and_go(void)
{
	struct net_switch_stats stats;
	int error;

	begin(3);
	send_frame(1, EVERYONE, 2);
	send_frame(2, EVERYONE, 3);
	CHECK_EQ(send_frame(0, 2, 1), 2);
	unplug(1);
	CHECK_EQ(send_frame(0, 2, 1), 4);
	plug(1, plain());		/* takes the number, not the addresses */
	CHECK_EQ(send_frame(0, 2, 1), 6);
	CHECK_EQ(send_frame(1, 3, 2), 4);
	net_port_set_down(st[2].at, 1);
	CHECK_EQ(send_frame(0, 3, 1), 0);
	CHECK_EQ(drops(2, NET_DROP_DOWN), 1);
	CHECK_EQ(send_frame(2, 1, 3), 0);
	CHECK_EQ(send_frame(0, EVERYONE, 1), 2);
	net_port_set_down(st[2].at, 0);
	net_port_connect(NULL, st[2].at);
	CHECK_EQ(send_frame(0, 3, 1), 0);
	CHECK_EQ(drops(2, NET_DROP_NO_PEER), 1);
	net_switch_stats(sw, &stats);
	CHECK_EQ(stats.entries, 3);
	end();
	CHECK(sw != NULL);
	begin(0);
	{
		struct net_port *ports[NET_SWITCH_PORTS];
		struct net_switch_config c = plain();
		int i;

		for (i = 0; i < NET_SWITCH_PORTS; i++)
			CHECK((ports[i] = net_switch_port_new(sw, &c, &error)) != NULL);
		CHECK(!net_switch_port_new(sw, &c, &error) && error == -ENOSPC);
		for (i = 0; i < NET_SWITCH_PORTS; i++)
			net_port_free(ports[i]);
	}
	end();
}

/* Stations that give everything back: it ends. */
static void test_echoes(void)
{
	begin(4);
	st[1].echo = st[2].echo = true;
	CHECK_EQ(send_frame(0, EVERYONE, 1), 15);
	CHECK(st[3].nr == 3 && drops(1, NET_DROP_ERROR) && drops(2, NET_DROP_ERROR));
	end();
}

/* --- a batch: groups, order ------------------------------------------------------------------------------------- */

static void test_batches(void)
{
	const struct net_frame *list[NET_BATCH];
	static struct pieces p[NET_BATCH];
	uint8_t bytes[100];
	int i;

	begin(4);
	for (i = 1; i < 4; i++)
		send_frame(i, EVERYONE, (uint32_t)i + 1);
	forget();
	for (i = 0; i < NET_BATCH; i++) {
		make(bytes, 2 + (uint32_t)i % 3, 1, -1, 100);
		bytes[50] = (uint8_t)i;
		frame_make(&p[i], bytes, 100, 0, 2);
		list[i] = &p[i].f;
	}
	st[0].at->ops->send(st[0].at, list, NET_BATCH);
	for (i = 0; i < NET_BATCH; i++)
		CHECK_EQ(st[1 + i % 3].got[i / 3].bytes[50], i);
	CHECK(st[1].sends == 1 && st[2].sends == 1 && st[3].sends == 1);
	forget();
	memset(p[31].f.head, 0xff, 6);
	memset(p[32].f.head, 0xff, 6);
	st[0].at->ops->send(st[0].at, list, NET_BATCH);
	CHECK(st[1].sends == 3 && st[2].sends == 3 && st[3].sends == 3);
	for (i = 1; i < 4; i++) {
		int k;

		for (k = 1; k < st[i].nr; k++)
			CHECK(st[i].got[k].bytes[50] > st[i].got[k - 1].bytes[50]);
	}
	for (i = 0; i < NET_BATCH; i++)
		frame_free(&p[i]);
	end();
}

/* More long frames than can be given new pieces at once. */
static void test_long_chains(void)
{
	const struct net_frame *list[NET_BATCH];
	static struct pieces p[NET_BATCH];
	uint8_t bytes[1000];
	int i;

	begin(0);
	plug(0, access_port(5));
	plug(1, trunk(0, 5, 5));
	for (i = 0; i < NET_BATCH; i++) {
		make(bytes, EVERYONE, 1, -1, 1000);
		bytes[999] = (uint8_t)i;
		frame_make(&p[i], bytes, 1000, (uint32_t)i % 7, i % 2 ? 30 : 3);
		list[i] = &p[i].f;
	}
	st[0].at->ops->send(st[0].at, list, NET_BATCH);
	CHECK_EQ(st[1].nr, NET_BATCH);
	for (i = 0; i < NET_BATCH; i++) {
		CHECK_EQ(st[1].got[i].bytes[1003], i);
		CHECK(!memcmp(st[1].got[i].bytes + 16, bytes + 12, 987));
		frame_free(&p[i]);
	}
	end();
}

/* --- against a model -------------------------------------------------------------------------------------------- */

struct model_entry {
	uint32_t mac, vlan;
	int port;
};

static struct model_entry entries[4096];
static int nr_entries;
static struct net_switch_config rules[STATIONS];

static bool model_carries(int i, uint32_t vlan)
{
	const struct net_switch_config *c = &rules[i];

	if (c->flags & NET_SWITCH_TRUNK && c->trunk[vlan / 64] >> vlan % 64 & 1)
		return true;
	return c->flags & NET_SWITCH_TRUNK ? vlan && c->vlan == vlan : c->vlan == vlan;
}

static struct model_entry *model_find(uint32_t mac, uint32_t vlan)
{
	int i;

	for (i = 0; i < nr_entries; i++)
		if (entries[i].mac == mac && entries[i].vlan == vlan)
			return &entries[i];
	return NULL;
}

static int model_pin(uint32_t mac)
{
	uint8_t want[6];
	int i;

	address(want, mac);
	for (i = 0; i < STATIONS; i++)
		if (rules[i].flags & NET_SWITCH_PINNED && !memcmp(want, rules[i].mac, 6))
			return i;
	return -1;
}

/* Who gets the frame? */
static uint32_t model_send(int from, uint32_t dst, uint32_t src, int tci)
{
	const struct net_switch_config *c = &rules[from];
	uint32_t vlan = c->vlan, who = 0;
	struct model_entry *e;
	int i, to;

	if (tci >= 0 && (c->vlan || c->flags & NET_SWITCH_TRUNK) && (tci & 0xfff)) {
		vlan = tci & 0xfff;
		if (!(c->flags & NET_SWITCH_TRUNK))
			return 0;
	}
	if (!model_carries(from, vlan))
		return 0;
	if (c->flags & NET_SWITCH_PINNED ? model_pin(src) != from : model_pin(src) >= 0)
		return 0;
	e = model_find(src, vlan);
	if (!e)
		e = &entries[nr_entries++];
	*e = (struct model_entry){ .mac = src, .vlan = vlan, .port = from };
	e = model_find(dst, vlan);
	to = e ? e->port : model_pin(dst);
	for (i = 0; i < STATIONS; i++) {
		if (i == from || (to >= 0 && i != to) || !model_carries(i, vlan))
			continue;
		if (rules[i].flags & c->flags & NET_SWITCH_ISOLATED)
			continue;
		who |= 1u << i;
	}
	return who;
}

static void model_forget(int port, uint32_t mac)
{
	int i;

	for (i = 0; i < nr_entries;) {
		if (entries[i].port == port || entries[i].mac == mac)
			entries[i] = entries[--nr_entries];
		else
			i++;
	}
}

static void change_rules(int i)
{
	struct net_switch_config c = rnd(2) ? plain() : access_port(1 + rnd(3));
	uint32_t pin = 1 + rnd(8);

	if (rnd(3) == 0)
		c = trunk(rnd(3), 1 + rnd(3), 1 + rnd(3));
	c.flags |= rnd(3) ? 0 : NET_SWITCH_ISOLATED;
	if (rnd(3) == 0 && (model_pin(pin) < 0 || model_pin(pin) == i)) {
		c.flags |= NET_SWITCH_PINNED;
		address(c.mac, pin);
	} else {
		pin = 0;
	}
	unplug(i);
	plug(i, c);
	model_forget(i, pin);
	rules[i] = c;
}

static void test_model(int rounds)
{
	int i;

	begin(STATIONS);
	nr_entries = 0;
	for (i = 0; i < STATIONS; i++)
		rules[i] = plain();
	while (rounds--) {
		int from = (int)rnd(STATIONS), tci = rnd(3) ? -1 : (int)(rnd(2) << 13 | rnd(5));
		uint32_t dst = rnd(5) ? 1 + rnd(8) : EVERYONE, src = 1 + rnd(8), len = 64 + rnd(300), want, got;

		if (rnd(20) == 0)
			change_rules((int)rnd(STATIONS));
		want = model_send(from, dst, src, tci);
		got = send_tagged(from, dst, src, tci, len);
		CHECK_EQ(got, want);
		for (i = 0; i < STATIONS; i++) {
			const struct got *g = &st[i].got[0];
			bool had = tci >= 0, has = g->bytes[12] == 0x81;

			if (!(got >> i & 1))
				continue;
			CHECK_EQ(g->len + (had ? 4 : 0), len + (has ? 4 : 0));
			CHECK(!memcmp(g->bytes, last, 12));
			CHECK(!memcmp(g->bytes + (has ? 16 : 12), last + (had ? 16 : 12), len - (had ? 16 : 12)));
		}
	}
	end();
}

static void swallow(struct net_port *port, const struct net_frame *const *frames, int n)
{
	(void)port;
	(void)frames;
	(void)n;
}

static const struct net_port_ops swallow_ops = { .send = swallow, .free = no_free };

/* Nanoseconds for a frame between two plain ports, without the copy; not for a busy machine. */
static void speed(void)
{
	const struct net_frame *list[NET_BATCH];
	static struct pieces p[NET_BATCH];
	struct timespec a, b;
	uint8_t bytes[64];
	int i, rounds = 1000000;

	begin(3);
	send_frame(1, EVERYONE, 2);
	make(bytes, 2, 1, -1, 64);
	for (i = 0; i < NET_BATCH; i++) {
		frame_make(&p[i], bytes, 64, 0, 1);
		list[i] = &p[i].f;
	}
	st[1].port.ops = &swallow_ops;
	clock_gettime(CLOCK_MONOTONIC, &a);
	for (i = 0; i < rounds; i++)
		st[0].at->ops->send(st[0].at, list, NET_BATCH);
	clock_gettime(CLOCK_MONOTONIC, &b);
	printf("%.2f ns per frame\n",
	       ((double)(b.tv_sec - a.tv_sec) * 1e9 + (double)(b.tv_nsec - a.tv_nsec)) / NET_BATCH / rounds);
	for (i = 0; i < NET_BATCH; i++)
		frame_free(&p[i]);
	end();
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "--speed")) {
		speed();
		return 0;
	}
	test_learning();
	test_bad_addresses();
	test_ageing();
	test_learning_limit();
	test_full_table();
	test_isolation();
	test_pins();
	test_vlans();
	test_hopping();
	test_offloads();
	test_limits();
	test_ports_come_and_go();
	test_echoes();
	test_batches();
	test_long_chains();
	test_model(argc > 1 ? atoi(argv[1]) : 30000);
	puts("ok");
	return 0;
}
