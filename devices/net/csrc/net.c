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
	dev->active = pairs;
	dev->filter.mode = NET_MODE_PROMISC;
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

uint32_t net_takes_of(uint64_t features)
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
	__atomic_store_n(&dev->port.takes, net_takes_of(features), __ATOMIC_RELAXED);
}

void net_dev_set_shared(struct net_dev *dev, int shared)
{
	dev->shared = shared != 0;
}

bool net_dev_steers(const struct net_dev *dev)
{
	return net_rss_steers(&dev->rss);
}

/* --- announcing ------------------------------------------------------------------------------------------------- */

enum { RARP_BYTES = 60 };

struct rarp {
	struct ring_task task;
	struct net_dev *dev;
	uint8_t mac[NET_MAC];
};

/* On the worker. A switch learns from it where the guest is now. */
static void rarp_run(struct ring_task *task)
{
	/* type; Ethernet, IPv4, 6 and 4 bytes long, reverse request (RFC 903) */
	static const uint8_t fixed[] = { 0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3 };
	struct rarp *r = (struct rarp *)(void *)task;
	struct net_port *port = &r->dev->port;
	const struct net_frame *list[1];
	const struct net_hdr hdr = { .flags = 0 };
	uint8_t bytes[RARP_BYTES] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
	struct net_frame f;
	struct ring_iov iov;

	memcpy(bytes + 6, r->mac, NET_MAC);
	memcpy(bytes + 12, fixed, sizeof(fixed));
	memcpy(bytes + 22, r->mac, NET_MAC);
	memcpy(bytes + 32, r->mac, NET_MAC);
	net_frame_of_memory(&f, &iov, bytes, sizeof(bytes), &hdr);
	f.pair = 0;
	list[0] = &f;
	if (port->peer && !net_is_down(port))
		port->peer->ops->send(port->peer, list, 1);
	free(r);
}

int net_dev_rarp(struct net_dev *dev, const uint8_t *mac)
{
	struct ring_worker *worker = dev->tx[0] ? dev->tx[0]->source.worker : NULL;
	struct rarp *r;

	if (!worker)
		return -ENOTCONN;
	r = calloc(1, sizeof(*r));
	if (!r)
		return -ENOMEM;
	r->task.run = rarp_run;
	r->dev = dev;
	memcpy(r->mac, mac, NET_MAC);
	ring_worker_head(worker)->api->post(worker, &r->task);
	return 0;
}

/* --- rings ------------------------------------------------------------------------------------------------------ */

struct ring_source *net_queue_new(struct net_dev *dev, struct ring_vq *vq, uint32_t index)
{
	uint32_t pair = index / 2;

	bool many = has(dev->features, NET_V_MQ) || has(dev->features, NET_V_RSS);

	/* VIRTIO 1.3, 5.1.2: it comes after the pairs that the driver knows about */
	if (has(dev->features, NET_V_CTRL_VQ) && index == 2 * (many ? dev->pairs : 1))
		return net_ctrlq_new(dev, vq);
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
	else if (source->ops == &net_ctrl_ops)
		net_ctrlq_free(source);
	else
		net_txq_free((struct net_txq *)(void *)source);
	return 0;
}

void net_queue_set_enabled(struct ring_source *source, int on)
{
	if (source->ops == &net_tx_ops)
		((struct net_txq *)(void *)source)->enabled = on != 0;
	else if (source->ops == &net_rx_ops)
		((struct net_rxq *)(void *)source)->enabled = on != 0;
}
