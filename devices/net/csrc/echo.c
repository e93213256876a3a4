/* SPDX-License-Identifier: Apache-2.0 */
/*
 * echo.c - links for measuring: null swallows, echo gives back, source offers.
 *
 * Each pair counts for itself, since pairs may be on several workers.
 */
#include <errno.h>
#include <stdlib.h>

#include "devices/net/csrc/dev.h"

struct pair_stats {
	_Alignas(64) struct net_port_stats stats;
};

struct simple_port {
	struct net_port port;
	struct pair_stats pairs[NET_PAIRS_MAX];
};

static struct simple_port *simple_of(struct net_port *port)
{
	return (struct simple_port *)(void *)port;
}

static struct net_port_stats *stats_of(struct net_port *port, const struct net_frame *f)
{
	return &simple_of(port)->pairs[f->pair % NET_PAIRS_MAX].stats;
}

static void simple_add_stats(const struct net_port *port, struct net_port_stats *sum)
{
	const struct simple_port *s = (const struct simple_port *)(const void *)port;
	int i;

	for (i = 0; i < NET_PAIRS_MAX; i++)
		net_stats_add(sum, &s->pairs[i].stats);
}

static uint64_t bytes_of(const struct net_frame *const *frames, int n)
{
	uint64_t bytes = 0;
	int i;

	for (i = 0; i < n; i++)
		bytes += frames[i]->len;
	return bytes;
}

static void simple_free(struct net_port *port)
{
	free(port);
}

static struct net_port *simple_new(const struct net_port_ops *ops, size_t size)
{
	struct net_port *port = aligned_alloc(64, (size + 63) / 64 * 64);

	if (!port)
		return NULL;
	memset(port, 0, size);
	port->ops = ops;
	port->takes = NET_TAKES_CSUM | NET_TAKES_TSO4 | NET_TAKES_TSO6 | NET_TAKES_ECN | NET_TAKES_USO | NET_TAKES_UFO;
	return port;
}

/* --- null ------------------------------------------------------------------------------------------------------- */

static void null_send(struct net_port *port, const struct net_frame *const *frames, int n)
{
	struct net_port_stats *stats = stats_of(port, frames[0]);

	ring_count(&stats->in_frames, (uint64_t)n);
	ring_count(&stats->in_bytes, bytes_of(frames, n));
}

static const struct net_port_ops null_ops = {
	.send = null_send,
	.free = simple_free,
	.add_stats = simple_add_stats,
};

struct net_port *net_null_new(void)
{
	return simple_new(&null_ops, sizeof(struct simple_port));
}

/* --- echo ------------------------------------------------------------------------------------------------------- */

static void echo_send(struct net_port *port, const struct net_frame *const *frames, int n)
{
	struct net_port_stats *stats = stats_of(port, frames[0]);
	uint64_t bytes = bytes_of(frames, n);

	ring_count(&stats->in_frames, (uint64_t)n);
	ring_count(&stats->in_bytes, bytes);
	if (net_is_down(port)) {
		ring_count(&stats->dropped[NET_DROP_DOWN], (uint64_t)n);
		return;
	}
	if (!port->peer)
		return;
	ring_count(&stats->out_frames, (uint64_t)n);
	ring_count(&stats->out_bytes, bytes);
	port->peer->ops->send(port->peer, frames, n);
}

static const struct net_port_ops echo_ops = {
	.send = echo_send,
	.free = simple_free,
	.add_stats = simple_add_stats,
};

struct net_port *net_echo_new(void)
{
	return simple_new(&echo_ops, sizeof(struct simple_port));
}

/* --- source ----------------------------------------------------------------------------------------------------- */

struct source_feed {
	struct net_feeder feeder;
	struct source_port *port;
	struct net_dev *dev;
	uint32_t pair;
	struct net_frame frame;
	const struct net_frame *list[NET_BATCH];
};

struct source_port {
	struct simple_port simple;
	uint32_t frame_bytes;
	struct ring_iov iov;
	struct source_feed *feeds[NET_PAIRS_MAX];
	uint8_t data[];
};

static int source_feed(struct net_feeder *feeder, int budget)
{
	struct source_feed *feed = (struct source_feed *)(void *)feeder;
	struct net_port_stats *stats = &feed->port->simple.pairs[feed->pair].stats;
	int n;

	if (net_is_down(&feed->port->simple.port))
		return 0;
	n = net_rx_offer(feed->dev, feed->pair, feed->list, budget < NET_BATCH ? budget : NET_BATCH);
	ring_count(&stats->out_frames, (uint64_t)n);
	ring_count(&stats->out_bytes, (uint64_t)n * feed->port->frame_bytes);
	return n;
}

static void source_free(struct net_port *port)
{
	struct source_port *s = (struct source_port *)(void *)port;
	int i;

	for (i = 0; i < NET_PAIRS_MAX; i++)
		free(s->feeds[i]);
	free(s);
}

static const struct net_port_ops source_ops = {
	.send = null_send,
	.free = source_free,
	.add_stats = simple_add_stats,
};

struct net_port *net_source_new(uint32_t frame_bytes)
{
	struct source_port *s;
	uint32_t i;

	if (frame_bytes < NET_ETH || frame_bytes > NET_FRAME_MAX)
		return NULL;
	s = (struct source_port *)(void *)simple_new(&source_ops, sizeof(*s) + frame_bytes);
	if (!s)
		return NULL;
	s->frame_bytes = frame_bytes;
	/* broadcast, from a locally administered address, of an experimental type (IEEE 802) */
	memset(s->data, 0xff, 6);
	s->data[6] = 2;
	s->data[12] = 0x88;
	s->data[13] = 0xb5;
	for (i = NET_ETH; i < frame_bytes; i++)
		s->data[i] = (uint8_t)i;
	s->iov.base = s->data;
	s->iov.len = frame_bytes;
	return &s->simple.port;
}

int net_source_start(struct net_port *port, struct net_dev *dev, uint32_t pair)
{
	struct source_port *s = (struct source_port *)(void *)port;
	struct source_feed *feed;
	int i;

	if (port->ops != &source_ops || pair >= NET_PAIRS_MAX)
		return -EINVAL;
	feed = s->feeds[pair];
	if (!feed)
		feed = s->feeds[pair] = calloc(1, sizeof(*feed));
	if (!feed)
		return -ENOMEM;
	feed->feeder.feed = source_feed;
	feed->port = s;
	feed->dev = dev;
	feed->pair = pair;
	feed->frame.len = s->frame_bytes;
	feed->frame.head_len = (uint16_t)(s->frame_bytes < NET_HEAD ? s->frame_bytes : NET_HEAD);
	feed->frame.pair = (uint16_t)pair;
	feed->frame.nr_iov = 1;
	feed->frame.iov = &s->iov;
	memcpy(feed->frame.head, s->data, feed->frame.head_len);
	for (i = 0; i < NET_BATCH; i++)
		feed->list[i] = &feed->frame;
	net_rx_set_feeder(dev, pair, &feed->feeder);
	return 0;
}

void net_source_stop(struct net_port *port, struct net_dev *dev, uint32_t pair)
{
	(void)port;
	net_rx_set_feeder(dev, pair, NULL);
}
