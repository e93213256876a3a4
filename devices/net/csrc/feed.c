/* SPDX-License-Identifier: Apache-2.0 */
/*
 * feed.c - feeders: who has frames for a guest all the time, or reads them straight into its buffers.
 */
#include <errno.h>

#include "devices/net/csrc/rx_int.h"

bool net_rx_ask(struct net_rxq *q)
{
	uint32_t why;

	q->starved = true;
	while (ring_vq_kicks_on(q->source.vq)) {
		if (net_rx_reserve(q, q->need, 1, &why) || why == NET_DROP_TOO_SMALL) {
			q->starved = false;
			ring_vq_kicks_off(q->source.vq);
			return true;
		}
	}
	return false;
}

/* A feeder has no buffers for @need bytes. True: there are now, after all. */
static bool starve(struct net_rxq *q, uint32_t need)
{
	q->hungry = true;
	q->need = need;
	if (q->source.active)	/* it is polled, and asks when that ends: rx.c */
		return false;
	return net_rx_ask(q);
}

int net_rx_offer(struct net_dev *dev, uint32_t pair, const struct net_frame *const *frames, int n)
{
	struct net_rxq *q = dev->rx[pair];
	uint32_t each, room, why;
	int done;

	if (!net_rx_runs(q))
		return 0;
	if (q->rest) {
		q->rest--;
		q->hungry = true;
		return 0;
	}
	done = net_rx_deliver_some(q, frames, n);
	if (net_likely(done)) {
		if (done < n)
			q->rest = NET_REST;
		return done;
	}
	each = net_rx_reserve(q, q->hdr_len + frames[0]->len, (uint32_t)n, &why);
	if (!each && why == NET_DROP_NO_BUFFER && starve(q, q->hdr_len + frames[0]->len))
		each = net_rx_reserve(q, q->hdr_len + frames[0]->len, (uint32_t)n, &why);
	if (!each) {
		ring_count(&q->stats.dropped[why], why == NET_DROP_TOO_SMALL);
		return 0;
	}
	room = each == 1 ? q->nr - q->at : (q->nr - q->at) / each;
	if (room < (uint32_t)n) {
		n = (int)room;
		q->rest = NET_REST;
	}
	net_rx_deliver(q, frames, n);
	return n;
}

/* Pieces of the @n chains from chains[at], @skip bytes of them left out, at q->iov[@from]; returns their end. */
static int gather(struct net_rxq *q, uint32_t n, size_t skip, int from)
{
	uint32_t i, k;

	for (i = 0; i < n; i++) {
		const struct ring_chain *chain = q->chains[q->at + i];

		for (k = 0; k < chain->nr_in && from < RING_IOV_MAX; k++) {
			struct ring_iov iov = chain->iov[chain->nr_out + k];
			size_t drop = skip < iov.len ? skip : iov.len;

			skip -= drop;
			iov.base = (uint8_t *)iov.base + drop;
			iov.len -= drop;
			if (iov.len)
				q->iov[from++] = iov;
		}
	}
	return from;
}

/* The hash of a frame of @bytes that lies at q->iov[1] and after. */
static void hash_read(const struct net_rxq *q, uint32_t bytes, struct net_wire *w)
{
	uint32_t len = bytes < NET_HEAD ? bytes : NET_HEAD, at = 0;
	const struct ring_iov *iov = &q->iov[1];
	uint8_t head[NET_HEAD];

	while (at < len) {
		size_t n = iov->len < len - at ? iov->len : len - at;

		shm_copy_in(head + at, iov->base, n);
		at += (uint32_t)n;
		iov++;
	}
	w->hash_report = (uint16_t)net_rss_hash(&q->dev->rss, head, len, &w->hash_value);
}

/* @bytes of frame lie in the buffers: finish the header and give them to the driver. */
static void publish(struct net_rxq *q, uint32_t bytes, const struct net_hdr *hdr)
{
	uint32_t left = q->hdr_len + bytes;
	uint32_t n = 0, room = 0;
	struct net_wire w = { .num_buffers = 0 };

	while (room < left)
		room += q->chains[q->at + n++]->in_bytes;
	w.num_buffers = (uint16_t)n;
	if (hdr) {
		struct net_rx_cursor c = { .chain = &q->chains[q->at] };

		w.hdr = *hdr;
		if (q->hdr_len == NET_HDR_HASH && net_rss_on(&q->dev->rss))
			hash_read(q, bytes, &w);
		net_rx_put(&c, &w, q->hdr_len);
	} else {
		ring_chain_write(q->chains[q->at], sizeof(w.hdr), &w.num_buffers, sizeof(w.num_buffers));
	}
	while (n--) {
		uint32_t each = q->chains[q->at]->in_bytes, written = each < left ? each : left;

		net_rx_fill(q, written);
		left -= written;
	}
	net_rx_push_filled(q);
	ring_count(&q->stats.in_frames, 1);
	ring_count(&q->stats.in_bytes, bytes);
}

int net_rx_read(struct net_dev *dev, uint32_t pair, uint32_t max,
		ssize_t (*read)(void *arg, const struct ring_iov *iov, int nr), void *arg)
{
	struct net_rxq *q = dev->rx[pair];
	uint8_t header[NET_HDR_V1];
	uint64_t room;
	uint32_t n, why;
	bool direct;
	ssize_t got;
	int nr;

	if (!net_rx_runs(q)) {
		if (q)
			q->hungry = true;	/* for when it does */
		return -ENOBUFS;
	}
	n = net_rx_reserve(q, q->hdr_len + max, NET_BATCH, &why);
	if (!n && why == NET_DROP_NO_BUFFER) {
		if (!starve(q, q->hdr_len + max))
			return -ENOBUFS;
		n = net_rx_reserve(q, q->hdr_len + max, NET_BATCH, &why);
	}
	if (!n)	/* no buffer of this driver holds @max: what does not fit is cut off, and then dropped */
		n = 1;
	direct = q->hdr_len == NET_HDR_V1;
	if (direct) {
		nr = gather(q, n, 0, 0);
	} else {
		q->iov[0].base = header;
		q->iov[0].len = sizeof(header);
		nr = gather(q, n, q->hdr_len, 1);
	}
	got = read(arg, q->iov, nr);
	if (got < 0)
		return (int)got;
	for (room = 0; n-- > 0;)
		room += q->chains[q->at + n]->in_bytes;
	/* a file may say what it had, not what it gave */
	if ((uint64_t)got - NET_HDR_V1 + q->hdr_len > room && got > NET_HDR_V1) {
		ring_count(&q->stats.dropped[NET_DROP_TOO_SMALL], 1);
		return (int)got;
	}
	if (got < NET_HDR_V1 + NET_ETH) {
		ring_count(&q->stats.dropped[NET_DROP_RUNT], 1);
		return (int)got;
	}
	if (direct) {
		publish(q, (uint32_t)got - NET_HDR_V1, NULL);
	} else {
		struct net_hdr hdr;

		memcpy(&hdr, header, sizeof(hdr));
		publish(q, (uint32_t)got - NET_HDR_V1, &hdr);
	}
	return (int)got;
}

void net_rx_set_feeder(struct net_dev *dev, uint32_t pair, struct net_feeder *feeder)
{
	struct net_rxq *q = pair < dev->pairs ? dev->rx[pair] : NULL;

	if (!q)
		return;
	q->feeder = feeder;
	q->hungry = feeder != NULL;
}
