/* SPDX-License-Identifier: Apache-2.0 */
/*
 * load.c - load generator for virtio-net.
 *
 * Theory of operation
 *   Buffers and descriptors are prepared once (ring_drv_prepare()): in a steady state a frame costs a number in it, an
 *   index and a used entry. One loop visits each flow: takes what came and gives the buffers back in batches, then sends
 *   what may be sent. A flow with both ends numbers its frames; what comes back is found again by its number, so that
 *   loss, reordering and latency are known whatever lies between. A flow with one end sends frames that are never
 *   touched again, or counts what comes.
 *
 *   Closed loop (a window): so many frames are under way, none is lost for want of room, and what is measured is what
 *   gets through. While at least half of the window is under way, sending waits for a whole burst: a driver that sends
 *   frames one by one as they come back makes its device work one by one. Open loop (a rate): frames are due at fixed
 *   times whatever the device does, and latency counts from the time due.
 *
 *   Sleeping follows a Linux driver: notifications off while working, on when nothing is left, one more look, poll().
 */
#include "devices/net/csrc/load.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "devices/net/csrc/load_frame.h"

#define unlikely(x) __builtin_expect(!!(x), 0)

enum {
	SAMPLE = 8,		/* every so many-th frame's latency is kept */
	GONE_MS = 250,		/* nothing came for so long: what is missing is lost */
	AHEAD = 4,		/* frames whose tags are on their way */
};

struct end {
	struct net_load_ring ring;
	uint16_t *ids;		/* buffers that are ours, oldest first, so that rings go on in order; a ring of its own */
	uint32_t mask;
	uint32_t head, tail;	/* free-running; tail - head of them */
};

struct flow {
	struct end tx, rx;
	uint32_t nr;
	bool announce;
	uint8_t macs[12];
	/* numbers of frames with both ends */
	uint64_t next;		/* to be sent */
	uint64_t expected;	/* to come */
	uint64_t moved;		/* ticks: when something came last */
	uint64_t *sent_at;	/* ticks, by number */
	uint32_t at_mask;
	/* a frame that spans receive buffers */
	uint32_t left;		/* buffers still to come */
	uint32_t got;		/* bytes of the buffers so far */
	uint64_t tag;		/* 0: none of ours */
	/* open loop */
	double due;
	uint32_t announced;	/* in this run */
};

struct net_load {
	struct net_load_config cfg;
	struct net_load_stats stats;
	uint64_t start;		/* of this run, ticks */
	uint64_t now;		/* of this round */
	double ticks_per_ns;
	double interval;	/* open loop: ticks between frames of one flow */
	uint64_t gone;		/* GONE_MS in ticks */
	uint32_t nr_flows;
	uint32_t nr_senders;
	int mode;
	int broken;
	int stop;		/* atomic */
	struct flow *flows[NET_LOAD_FLOWS];
};

static uint32_t held(const struct end *end)
{
	return end->tail - end->head;
}

static bool numbered(const struct flow *flow)
{
	return flow->tx.ring.drv != NULL && flow->rx.ring.drv != NULL;
}

struct net_load *net_load_new(const struct net_load_config *config)
{
	uint32_t least = config->gso_bytes ? FRAME_TAG_TCP + 8 - NET_LOAD_HDR : NET_LOAD_FRAME_MIN;
	struct net_load *load;

	if (config->frame_bytes < least || config->frame_bytes > NET_LOAD_FRAME_MAX || config->burst == 0 ||
	    config->burst > NET_LOAD_BURST || config->window > NET_LOAD_WINDOW || config->gso_bytes > UINT16_MAX ||
	    config->rx_bytes < FRAME_TAG_TCP + 8)
		return NULL;
	load = calloc(1, sizeof(*load));
	if (load == NULL)
		return NULL;
	load->cfg = *config;
	if (load->cfg.window == 0)
		load->cfg.window = NET_LOAD_WINDOW;
	return load;
}

static void flow_free(struct flow *flow)
{
	free(flow->tx.ids);
	free(flow->rx.ids);
	free(flow->sent_at);
	free(flow);
}

void net_load_free(struct net_load *load)
{
	if (load == NULL)
		return;
	for (uint32_t i = 0; i < load->nr_flows; i++)
		flow_free(load->flows[i]);
	free(load);
}

/* Take over @ring: all its buffers are ours. */
static int end_init(struct end *end, const struct net_load_ring *ring, uint32_t len, int writable)
{
	uint32_t size = 1;
	int rc;

	rc = ring_drv_prepare(ring->drv, ring->gpa, ring->stride, len, ring->slots, writable);
	if (rc < 0)
		return rc;
	while (size < ring->slots)
		size *= 2;
	end->ids = calloc(size, sizeof(end->ids[0]));
	if (end->ids == NULL)
		return -ENOMEM;
	end->ring = *ring;
	end->mask = size - 1;
	for (end->tail = 0; end->tail < ring->slots; end->tail++)
		end->ids[end->tail] = (uint16_t)end->tail;
	return 0;
}

int net_load_add_flow(struct net_load *load, const struct net_load_ring *tx, const struct net_load_ring *rx,
		      const uint8_t *macs, int announce)
{
	const struct net_load_config *cfg = &load->cfg;
	struct flow *flow;
	int rc = 0;

	if (load->nr_flows == NET_LOAD_FLOWS || (tx == NULL && rx == NULL))
		return -ENOSPC;
	if ((tx != NULL && (tx->stride % 8 || tx->stride < NET_LOAD_HDR + cfg->frame_bytes)) ||
	    (rx != NULL && (rx->stride % 8 || rx->stride < cfg->rx_bytes)))
		return -EINVAL;
	flow = calloc(1, sizeof(*flow));
	if (flow == NULL)
		return -ENOMEM;
	flow->nr = load->nr_flows;
	flow->announce = announce;
	memcpy(flow->macs, macs, sizeof(flow->macs));
	for (flow->at_mask = 1; flow->at_mask < cfg->window; flow->at_mask *= 2)
		;
	flow->sent_at = calloc(flow->at_mask, sizeof(flow->sent_at[0]));
	flow->at_mask--;
	if (flow->sent_at == NULL)
		rc = -ENOMEM;
	if (rc == 0 && tx != NULL)
		rc = end_init(&flow->tx, tx, NET_LOAD_HDR + cfg->frame_bytes, 0);
	if (rc == 0 && rx != NULL)
		rc = end_init(&flow->rx, rx, cfg->rx_bytes, 1);
	if (rc < 0) {
		flow_free(flow);
		return rc;
	}
	for (uint32_t i = 0; tx != NULL && i < tx->slots; i++)
		frame_make(cfg, (SHM uint8_t *)tx->mem + i * tx->stride, macs, flow->nr);
	load->nr_senders += tx != NULL && !announce;
	load->flows[load->nr_flows++] = flow;
	return 0;
}

void net_load_stop(struct net_load *load)
{
	__atomic_store_n(&load->stop, 1, __ATOMIC_RELAXED);
}

const struct net_load_stats *net_load_stats(const struct net_load *load)
{
	return &load->stats;
}

static void break_ring(struct net_load *load, int error)
{
	gen_fail(&load->stats.run, GEN_E_RING, (uint64_t)-error);
	load->broken = -EIO;
}

static void publish(struct net_load *load, struct end *end)
{
	if (gen_publish(&load->stats.run, end->ring.drv, end->ring.kick_fd) < 0)
		load->broken = -EIO;
}

/* Give the device the @n oldest of our buffers. */
static void post(struct net_load *load, struct end *end, uint32_t n)
{
	while (n > 0) {
		uint32_t at = end->head & end->mask, run = end->mask + 1 - at;
		int rc;

		if (run > n)
			run = n;
		rc = ring_drv_post(end->ring.drv, end->ids + at, run);
		if (rc < 0) {
			load->broken = rc;
			return;
		}
		end->head += run;
		n -= run;
	}
}

static void keep(struct end *end, uint32_t id)
{
	end->ids[end->tail++ & end->mask] = (uint16_t)id;
}

/* --- receiving */

/* Frame @number of @flow came: what it skips is missing. */
static void arrived(struct net_load *load, struct flow *flow, uint64_t number)
{
	uint64_t ahead = (number - flow->expected) & FRAME_NUMBER;

	if (unlikely(ahead >= ((flow->next - flow->expected) & FRAME_NUMBER))) {
		/* given up already; or a copy, which hides a loss */
		load->stats.reordered++;
		if (load->stats.lost > 0)
			load->stats.lost--;
		return;
	}
	if (unlikely(ahead))
		load->stats.lost += ahead;
	flow->expected += ahead + 1;
	flow->moved = load->now;
	if (number % SAMPLE == 0) {
		uint64_t sent = flow->sent_at[number & flow->at_mask];

		if (sent >= load->start)	/* else of the run before */
			gen_note_latency(&load->stats.run, sent, load->now);
	}
}

/* All buffers of a frame are there. */
static void frame_done(struct net_load *load, struct flow *flow)
{
	uint64_t tag = flow->tag, nr = tag >> 40 & 0xff;

	load->stats.run.done++;
	load->stats.received_bytes += flow->got - NET_LOAD_HDR;
	if (tag == 0 || nr >= load->nr_flows || !numbered(load->flows[nr])) {
		load->stats.foreign++;
		return;
	}
	if (unlikely(flow->got != load->cfg.frame_bytes + NET_LOAD_HDR))
		gen_fail(&load->stats.run, GEN_E_LENGTH, flow->got - NET_LOAD_HDR);
	arrived(load, load->flows[nr], tag & FRAME_NUMBER);
}

static void verify(struct net_load *load, const struct flow *flow, const SHM uint8_t *buf, uint32_t len)
{
	uint32_t at;

	if (flow->tag == 0 || flow->got + len > NET_LOAD_HDR + load->cfg.frame_bytes)
		return;
	at = frame_compare(&load->cfg, buf, flow->got, len, flow->tag);
	if (at != flow->got + len)
		gen_fail(&load->stats.run, GEN_E_DATA, at - NET_LOAD_HDR);
}

/* The first buffer of a frame: how many there are, and is it one of ours? */
static void frame_begins(struct net_load *load, struct flow *flow, const SHM uint8_t *buf, uint32_t len)
{
	uint32_t tag_at = frame_tag_at(&load->cfg);
	uint64_t g_tag = 0;

	flow->got = 0;
	flow->left = 1;
	flow->tag = 0;
	if (load->cfg.mergeable) {
		uint16_t g_num = shm_load16(buf + FRAME_NUM_BUFFERS);

		if (unlikely(g_num == 0 || g_num > flow->rx.ring.slots))
			gen_fail(&load->stats.run, NET_LOAD_E_BUFFERS, g_num);
		else
			flow->left = g_num;
	}
	/* a flow with one end has no tags to look for, and a driver does not read its frames either */
	if (flow->tx.ring.drv != NULL && len >= tag_at + 8)
		g_tag = shm_load64(buf + tag_at);
	if (g_tag >> 48 == FRAME_MAGIC)
		flow->tag = g_tag;
}

static void take_buffer(struct net_load *load, struct flow *flow, uint32_t id, uint32_t len)
{
	const SHM uint8_t *buf = (const SHM uint8_t *)flow->rx.ring.mem + id * flow->rx.ring.stride;

	if (flow->left == 0) {
		if (unlikely(len < NET_LOAD_HDR)) {
			gen_fail(&load->stats.run, GEN_E_LENGTH, len);
			return;
		}
		frame_begins(load, flow, buf, len);
	}
	if (unlikely(load->cfg.verify))
		verify(load, flow, buf, len);
	flow->got += len;
	if (--flow->left == 0)
		frame_done(load, flow);
}

/* Take what came; buffers go back by the burst, as drivers do. Returns how many came. */
static int receive(struct net_load *load, struct flow *flow)
{
	struct end *end = &flow->rx;
	struct ring_drv_taken taken[NET_LOAD_BURST];
	uint64_t before = load->stats.run.done;
	uint32_t want, back;
	int n = ring_drv_take(end->ring.drv, taken, (int)load->cfg.burst);

	if (unlikely(n < 0)) {
		break_ring(load, n);
		return 0;
	}
	if (n > 0)
		load->now = measure_ticks();
	for (int i = 0; i < n; i++) {
		if (i + AHEAD < n) {
			const uint8_t *ahead = (const uint8_t *)end->ring.mem + taken[i + AHEAD].id * end->ring.stride;

			__builtin_prefetch(ahead);
		}
		take_buffer(load, flow, taken[i].id, taken[i].len);
		keep(end, taken[i].id);
	}
	if (n > 0) {
		load->stats.run.batches++;
		if (load->stats.run.done - before > load->stats.run.max_batch)
			load->stats.run.max_batch = load->stats.run.done - before;
	}
	back = held(end);
	want = end->ring.slots / 4 < load->cfg.burst ? end->ring.slots / 4 : load->cfg.burst;
	if (back > 0 && (back >= want || n == 0)) {
		post(load, end, back);
		publish(load, end);
	}
	return n;
}

/* --- sending */

static uint64_t under_way(const struct flow *flow)
{
	return (flow->next - flow->expected) & FRAME_NUMBER;
}

static int reap(struct net_load *load, struct flow *flow)
{
	struct ring_drv_taken taken[NET_LOAD_BURST];
	int n = ring_drv_take(flow->tx.ring.drv, taken, NET_LOAD_BURST);

	if (unlikely(n < 0)) {
		break_ring(load, n);
		return 0;
	}
	for (int i = 0; i < n; i++)
		keep(&flow->tx, taken[i].id);
	load->stats.taken += (uint64_t)n;
	return n;
}

/* Numbers, and contents if they are compared, for the @n frames that are next. */
static void number(struct net_load *load, struct flow *flow, uint32_t n)
{
	struct end *end = &flow->tx;
	uint32_t tag_at = frame_tag_at(&load->cfg);
	double due = flow->due;

	for (uint32_t i = 0; i < n; i++) {
		uint16_t id = end->ids[(end->head + i) & end->mask];
		SHM uint8_t *buf = (SHM uint8_t *)end->ring.mem + id * end->ring.stride;
		uint64_t tag = frame_tag(flow->nr, flow->next);

		shm_store64(buf + tag_at, tag);
		if (unlikely(load->cfg.verify))
			frame_fill(&load->cfg, buf, tag);
		flow->sent_at[flow->next & flow->at_mask] = load->interval > 0 ? (uint64_t)due : load->now;
		due += load->interval;
		flow->next++;
	}
}

/* How many frames of @flow may go now? */
static uint32_t allowed(struct net_load *load, struct flow *flow)
{
	uint32_t room = held(&flow->tx);

	if (load->mode == GEN_DRAIN || (flow->announce && flow->announced))
		return 0;
	if (flow->announce)
		return room ? 1 : 0;
	if (load->interval > 0) {
		double ready;

		if (flow->due > (double)load->now)
			return 0;
		ready = ((double)load->now - flow->due) / load->interval + 1;
		if (ready < room)
			room = (uint32_t)ready;
	} else if (room < load->cfg.burst && room < flow->tx.ring.slots / 2) {
		return 0;	/* the device is behind: no hurry */
	}
	if (numbered(flow)) {
		uint64_t out = under_way(flow), left = out < load->cfg.window ? load->cfg.window - out : 0;

		if (left < room)
			room = (uint32_t)left;
		if (load->interval == 0 && room < load->cfg.burst && out >= load->cfg.window / 2 && out > 1)
			return 0;
	}
	return room < load->cfg.burst ? room : load->cfg.burst;
}

static int transmit(struct net_load *load, struct flow *flow)
{
	int reaped = 0;
	uint32_t n;

	if (held(&flow->tx) < load->cfg.burst)
		reaped = reap(load, flow);
	if (load->interval > 0)
		load->now = measure_ticks();
	n = allowed(load, flow);
	if (n == 0)
		return reaped;
	if (numbered(flow))
		number(load, flow, n);
	if (load->interval > 0 && !flow->announce) {
		if ((double)load->now - flow->due > load->interval)
			load->stats.run.late += n;
		flow->due += n * load->interval;
	}
	flow->announced = 1;
	post(load, &flow->tx, n);
	publish(load, &flow->tx);
	load->stats.sent += n;
	load->stats.tx_batches++;
	return (int)n;
}

/* Nothing came for long: what is missing will not come, and its place in the window is free again. */
static void write_off(struct net_load *load)
{
	for (uint32_t i = 0; i < load->nr_flows; i++) {
		struct flow *flow = load->flows[i];

		if (!numbered(flow) || under_way(flow) == 0) {
			flow->moved = load->now;
		} else if (load->now > flow->moved && load->now - flow->moved > load->gone) {
			load->stats.lost += under_way(flow);
			flow->expected = flow->next;
			flow->moved = load->now;	/* what is sent next has its own time */
		}
	}
}

/* --- sleeping */

static void drain_calls(struct net_load *load, struct flow *flow)
{
	if (flow->rx.ring.drv != NULL)
		gen_drain_calls(&load->stats.run, flow->rx.ring.call_fd);
	if (flow->tx.ring.drv != NULL)
		gen_drain_calls(&load->stats.run, flow->tx.ring.call_fd);
}

/* Does sending wait for the device to take frames? Drivers of networks do not ask to be told else. */
static bool tx_waits(const struct net_load *load, const struct flow *flow)
{
	return flow->tx.ring.drv != NULL && held(&flow->tx) < load->cfg.burst &&
	       held(&flow->tx) < flow->tx.ring.slots / 2;
}

static void sleep_on_calls(struct net_load *load, uint64_t limit_ns)
{
	struct pollfd fds[2 * NET_LOAD_FLOWS];
	bool there = false;
	nfds_t nr = 0;

	for (uint32_t i = 0; i < load->nr_flows; i++) {
		struct flow *flow = load->flows[i];

		if (flow->rx.ring.drv != NULL) {
			fds[nr++] = (struct pollfd){ .fd = flow->rx.ring.call_fd, .events = POLLIN };
			there |= ring_drv_calls_on(flow->rx.ring.drv) != 0;
		}
		if (tx_waits(load, flow)) {
			fds[nr++] = (struct pollfd){ .fd = flow->tx.ring.call_fd, .events = POLLIN };
			there |= ring_drv_calls_on(flow->tx.ring.drv) != 0;
		}
	}
	if (!there)
		gen_sleep(&load->stats.run, fds, nr, limit_ns);
	for (uint32_t i = 0; i < load->nr_flows; i++) {
		struct flow *flow = load->flows[i];

		drain_calls(load, flow);
		if (flow->rx.ring.drv != NULL)
			ring_drv_calls_off(flow->rx.ring.drv);
		if (flow->tx.ring.drv != NULL)
			ring_drv_calls_off(flow->tx.ring.drv);
	}
}

/* --- a run */

/* Is nothing under way? Receive buffers stay where they are. */
static bool settled(struct net_load *load)
{
	for (uint32_t i = 0; i < load->nr_flows; i++) {
		struct flow *flow = load->flows[i];

		if (flow->tx.ring.drv != NULL && held(&flow->tx) < flow->tx.ring.slots) {
			reap(load, flow);
			if (held(&flow->tx) < flow->tx.ring.slots)
				return false;
		}
		if (numbered(flow) && under_way(flow))
			return false;
	}
	return true;
}

/* Ticks until a frame is due, at most @wait. */
static uint64_t until_due(const struct net_load *load, uint64_t wait)
{
	for (uint32_t i = 0; i < load->nr_flows && load->interval > 0 && load->mode == GEN_RUN; i++) {
		const struct flow *flow = load->flows[i];
		double left = flow->due - (double)load->now;

		if (flow->tx.ring.drv == NULL || flow->announce || tx_waits(load, flow))
			continue;
		if (left < 0)
			left = 0;
		if (left < (double)wait)
			wait = (uint64_t)left;
	}
	return wait;
}

static void loop(struct net_load *load, uint64_t end)
{
	uint64_t most = load->gone / 4;

	while (!load->broken && !__atomic_load_n(&load->stop, __ATOMIC_RELAXED)) {
		int n = 0;

		for (uint32_t i = 0; i < load->nr_flows; i++) {
			struct flow *flow = load->flows[i];

			if (flow->rx.ring.drv != NULL)
				n += receive(load, flow);
			if (flow->tx.ring.drv != NULL)
				n += transmit(load, flow);
		}
		if (n > 0 && load->now < end && load->mode == GEN_RUN && load->nr_senders == 0)
			continue;	/* receive() looked at the clock */
		load->now = measure_ticks();
		if (load->now >= end || (load->mode == GEN_DRAIN && settled(load)))
			return;
		if (n > 0)
			continue;
		write_off(load);
		if (load->cfg.poll) {
			measure_relax();
		} else {
			uint64_t wait = until_due(load, end - load->now < most ? end - load->now : most);

			sleep_on_calls(load, (uint64_t)((double)wait / load->ticks_per_ns));
		}
	}
}

static void begin(struct net_load *load)
{
	uint32_t turn = 0;

	load->interval = 0;
	if (load->cfg.rate && load->mode == GEN_RUN && load->nr_senders)
		load->interval = load->ticks_per_ns * 1e9 * load->nr_senders / (double)load->cfg.rate;
	for (uint32_t i = 0; i < load->nr_flows; i++) {
		struct flow *flow = load->flows[i];

		if (flow->rx.ring.drv != NULL)
			ring_drv_calls_off(flow->rx.ring.drv);
		if (flow->tx.ring.drv != NULL)
			ring_drv_calls_off(flow->tx.ring.drv);
		drain_calls(load, flow);
		flow->announced = 0;
		flow->moved = load->start;
		/* one after the other, not all at once */
		flow->due = (double)load->start + load->interval * turn / (load->nr_senders ? load->nr_senders : 1);
		turn += flow->tx.ring.drv != NULL && !flow->announce;
	}
	load->stats.run.calls = 0;
}

int net_load_run(struct net_load *load, uint64_t duration_ns, int mode)
{
	struct gen_account account;

	if (load->nr_flows == 0)
		return -EINVAL;
	if (load->ticks_per_ns == 0)
		load->ticks_per_ns = measure_ticks_per_ns();
	load->gone = (uint64_t)(load->ticks_per_ns * GONE_MS * 1e6);
	memset(&load->stats, 0, sizeof(load->stats));
	__atomic_store_n(&load->stop, 0, __ATOMIC_RELAXED);
	load->mode = mode;
	gen_account_begin(&account);
	load->start = load->now = account.ticks;
	begin(load);
	loop(load, load->start + (uint64_t)((double)duration_ns * load->ticks_per_ns));
	gen_account_end(&account, &load->stats.run);
	for (uint32_t i = 0; i < load->nr_flows; i++)
		drain_calls(load, load->flows[i]);
	if (load->broken)
		return load->broken;
	if (mode == GEN_RUN)
		return 0;
	return settled(load) ? 0 : -ETIME;
}
