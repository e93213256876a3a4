/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net.c - a guest's card: its port, what its driver negotiated, its rings.
 */
#include <errno.h>
#include <stdlib.h>

#include "devices/net/csrc/dev.h"

static void dev_free(struct net_port *port)
{
	free(net_dev_of(port));
}

static void dev_add_stats(const struct net_port *port, struct net_port_stats *sum)
{
	const struct net_dev *dev = (const struct net_dev *)(const void *)port;
	uint32_t i;

	net_stats_add(sum, &dev->past);
	for (i = 0; i < dev->pairs; i++) {
		if (dev->rx[i])
			net_stats_add(sum, &dev->rx[i]->stats);
		if (dev->tx[i])
			net_stats_add(sum, &dev->tx[i]->stats);
	}
}

static const struct net_port_ops dev_ops = {
	.send = net_rx_send,
	.free = dev_free,
	.add_stats = dev_add_stats,
};

struct net_dev *net_dev_new(uint32_t pairs)
{
	struct net_dev *dev;

	if (!pairs || pairs > NET_PAIRS_MAX)
		return NULL;
	dev = calloc(1, sizeof(*dev));
	if (!dev)
		return NULL;
	dev->port.ops = &dev_ops;
	dev->pairs = pairs;
	net_dev_set_features(dev, 0);
	return dev;
}

struct net_port *net_dev_port(struct net_dev *dev)
{
	return &dev->port;
}

struct net_dev *net_port_dev(struct net_port *port)
{
	return port->ops == &dev_ops ? net_dev_of(port) : NULL;
}

static bool has(uint64_t features, int bit)
{
	return features >> bit & 1;
}

static uint32_t takes_of(uint64_t features)
{
	uint32_t takes = 0;

	if (!has(features, NET_V_GUEST_CSUM))
		return 0;	/* VIRTIO 1.3, 5.1.3.1: all others need it */
	takes |= NET_TAKES_CSUM;
	if (has(features, NET_V_GUEST_TSO4))
		takes |= NET_TAKES_TSO4;
	if (has(features, NET_V_GUEST_TSO6))
		takes |= NET_TAKES_TSO6;
	if (has(features, NET_V_GUEST_ECN))
		takes |= NET_TAKES_ECN;
	if (has(features, NET_V_GUEST_USO4) && has(features, NET_V_GUEST_USO6))
		takes |= NET_TAKES_USO;
	if (has(features, NET_V_GUEST_UFO))
		takes |= NET_TAKES_UFO;
	return takes;
}

static uint32_t allowed_of(uint64_t features)
{
	uint32_t allowed = 0;

	if (!has(features, NET_V_CSUM))
		return 0;
	allowed |= NET_TAKES_CSUM;
	if (has(features, NET_V_HOST_TSO4))
		allowed |= NET_TAKES_TSO4;
	if (has(features, NET_V_HOST_TSO6))
		allowed |= NET_TAKES_TSO6;
	if (has(features, NET_V_HOST_ECN))
		allowed |= NET_TAKES_ECN;
	if (has(features, NET_V_HOST_USO))
		allowed |= NET_TAKES_USO;
	if (has(features, NET_V_HOST_UFO))
		allowed |= NET_TAKES_UFO;
	return allowed;
}

void net_dev_set_features(struct net_dev *dev, uint64_t features)
{
	dev->features = features;
	dev->mergeable = has(features, NET_V_MRG_RXBUF);
	if (has(features, NET_V_HASH_REPORT))
		dev->hdr_len = NET_HDR_HASH;
	else if (dev->mergeable || has(features, NET_V_VERSION_1))
		dev->hdr_len = NET_HDR_V1;
	else
		dev->hdr_len = NET_HDR_LEGACY;
	dev->allowed = allowed_of(features);
	__atomic_store_n(&dev->port.takes, takes_of(features), __ATOMIC_RELAXED);
}

void net_dev_set_shared(struct net_dev *dev, int shared)
{
	dev->shared = shared != 0;
}

/* --- rings ------------------------------------------------------------------------------------------------------ */

struct ring_source *net_queue_new(struct net_dev *dev, struct ring_vq *vq, uint32_t index)
{
	uint32_t pair = index / 2;

	if (pair >= dev->pairs)
		return NULL;
	return index & 1 ? net_txq_new(dev, vq, pair) : net_rxq_new(dev, vq, pair);
}

int net_queue_free(struct ring_source *source)
{
	if (!source)
		return 0;
	if (source->worker)
		return -EBUSY;
	if (source->ops == &net_rx_ops)
		net_rxq_free((struct net_rxq *)(void *)source);
	else
		net_txq_free((struct net_txq *)(void *)source);
	return 0;
}

void net_queue_set_enabled(struct ring_source *source, int on)
{
	if (source->ops == &net_tx_ops)
		((struct net_txq *)(void *)source)->enabled = on != 0;
}
