/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tx.c - from a guest: chains become frames, frames go to the peer.
 */
#include <stdlib.h>

#include "devices/net/csrc/dev.h"

uint32_t net_check_hdr(const struct net_hdr *hdr, uint32_t len, uint32_t allowed)
{
	uint32_t type = hdr->gso_type & (uint32_t)~NET_GSO_ECN;
	uint32_t need;

	if (hdr->flags & NET_F_NEEDS_CSUM) {
		if (!(allowed & NET_TAKES_CSUM) || hdr->csum_start < NET_ETH ||
		    (uint32_t)hdr->csum_start + hdr->csum_offset + 2 > len)
			return NET_DROP_HEADER;
	}
	if (net_likely(hdr->gso_type == NET_GSO_NONE))
		return NET_DROP_NONE;
	switch (type) {
	case NET_GSO_TCPV4:
		need = NET_TAKES_TSO4;
		break;
	case NET_GSO_TCPV6:
		need = NET_TAKES_TSO6;
		break;
	case NET_GSO_UDP:
		need = NET_TAKES_UFO;
		break;
	case NET_GSO_UDP_L4:
		need = NET_TAKES_USO;
		break;
	default:
		return NET_DROP_HEADER;
	}
	if (hdr->gso_type & NET_GSO_ECN) {
		if (type != NET_GSO_TCPV4 && type != NET_GSO_TCPV6)
			return NET_DROP_HEADER;
		need |= NET_TAKES_ECN;
	}
	/* VIRTIO 1.3, 5.1.6.2.1: a frame to be cut has a checksum to be filled in */
	if (need & ~allowed || !hdr->gso_size || !(hdr->flags & NET_F_NEEDS_CSUM))
		return NET_DROP_HEADER;
	return NET_DROP_NONE;
}

/* What nobody may look at is cleared, what is a mere hint is made true. It asks for something: see plain(). */
static inline void clean_hdr(struct net_hdr *hdr, uint32_t len)
{
	hdr->flags &= NET_F_NEEDS_CSUM;
	if (net_likely(!hdr->flags)) {
		hdr->csum_start = 0;
		hdr->csum_offset = 0;
	}
	if (net_likely(hdr->gso_type == NET_GSO_NONE)) {
		hdr->hdr_len = 0;
		hdr->gso_size = 0;
	} else if (hdr->hdr_len > len) {
		hdr->hdr_len = (uint16_t)(len < UINT16_MAX ? len : UINT16_MAX);
	}
}

/* Does a header ask for nothing? */
static inline bool plain(const struct net_hdr *hdr)
{
	return net_likely(!(hdr->flags & NET_F_NEEDS_CSUM) && hdr->gso_type == NET_GSO_NONE);
}

/* Bytes of frame behind the header; 0: not a frame, *@why is NET_DROP_*. */
static inline uint32_t frame_len(const struct net_dev *dev, uint64_t bytes, uint32_t *why)
{
	uint32_t hdr_len = dev->hdr_len;

	if (net_unlikely(bytes < hdr_len + NET_ETH)) {
		*why = NET_DROP_RUNT;
		return 0;
	}
	if (net_unlikely(bytes - hdr_len > NET_FRAME_MAX)) {
		*why = NET_DROP_GIANT;
		return 0;
	}
	return (uint32_t)bytes - hdr_len;
}

/* The header is there, and the head: is it true? */
static inline bool frame_done(const struct net_dev *dev, struct net_frame *f, uint32_t *why)
{
	if (plain(&f->hdr)) {
		memset(&f->hdr, 0, sizeof(f->hdr));
		return true;
	}
	*why = net_check_hdr(&f->hdr, f->len, dev->allowed);
	if (net_unlikely(*why != NET_DROP_NONE))
		return false;
	clean_hdr(&f->hdr, f->len);
	return true;
}

/* As below, of a chain of one piece. */
static inline bool frame_of_piece(const struct net_dev *dev, const struct ring_iov *iov, struct net_frame *f, uint32_t *why)
{
	uint32_t len = frame_len(dev, iov->len, why), head = len < NET_HEAD ? len : NET_HEAD;

	if (net_unlikely(!len))
		return false;
	shm_copy_in(&f->hdr, iov->base, sizeof(f->hdr));
	net_copy_head(f->head, (const uint8_t *)iov->base + dev->hdr_len, head);
	f->head_len = (uint16_t)head;
	f->len = len;
	f->nr_iov = 1;
	f->skip = dev->hdr_len;
	f->iov = iov;
	return frame_done(dev, f, why);
}

bool net_frame_of_chain(const struct net_dev *dev, const struct ring_chain *chain, struct net_frame *f, uint32_t *why)
{
	const struct ring_iov *iov = chain->iov;
	uint32_t nr = chain->nr_out;
	uint32_t hdr_len = dev->hdr_len;
	uint32_t len, head;
	uint64_t skip = hdr_len;

	if (nr == 1)
		return frame_of_piece(dev, iov, f, why);
	len = frame_len(dev, chain->out_bytes, why);
	if (net_unlikely(!len))
		return false;
	head = len < NET_HEAD ? len : NET_HEAD;
	if (net_likely(iov->len >= hdr_len + head)) {
		shm_copy_in(&f->hdr, iov->base, sizeof(f->hdr));
		net_copy_head(f->head, (const uint8_t *)iov->base + hdr_len, head);
	} else {
		ring_chain_read(chain, 0, &f->hdr, sizeof(f->hdr));
		ring_chain_read(chain, hdr_len, f->head, head);
		while (iov->len <= skip) {	/* ends: out_bytes > hdr_len */
			skip -= iov->len;
			iov++;
			nr--;
		}
	}
	f->head_len = (uint16_t)head;
	f->len = len;
	f->nr_iov = nr;
	f->skip = (uint32_t)skip;
	f->iov = iov;
	return frame_done(dev, f, why);
}

static void capture(struct net_txq *q, int n)
{
	int i;

	for (i = 0; i < n; i++)
		net_capture_frame(q->dev->port.capture, q->list[i], true);
}

static void pass_on(struct net_txq *q, int n, uint64_t bytes)
{
	struct net_port *port = &q->dev->port;

	if (net_unlikely(net_is_down(port) || !q->enabled)) {
		ring_count(&q->stats.dropped[NET_DROP_DOWN], (uint64_t)n);
		return;
	}
	if (net_unlikely(!port->peer)) {
		ring_count(&q->stats.dropped[NET_DROP_NO_PEER], (uint64_t)n);
		return;
	}
	if (net_unlikely(port->capture != NULL))
		capture(q, n);
	ring_count(&q->stats.out_frames, (uint64_t)n);
	ring_count(&q->stats.out_bytes, bytes);
	port->peer->ops->send(port->peer, q->list, n);
}

/* The first line is on its way since the chain was popped: the second, or where the frame is if that is the header. */
static inline void fetch_frame(const struct ring_chain *chain)
{
	const struct ring_iov *iov = chain->iov;

	if (net_likely(iov->len > NET_HDR_HASH))
		__builtin_prefetch((const uint8_t *)iov->base + 64);
	else if (chain->nr_out > 1)
		__builtin_prefetch(iov[1].base);
}

/* Frames whose chains are of one piece each: no chain is made of them. As ring_vq_peek(). */
static int poll_span(struct net_txq *q, int budget)
{
	struct ring_vq *vq = q->source.vq;
	int n = ring_vq_peek(vq, &q->span, budget < NET_BATCH ? budget : NET_BATCH, 0);
	uint64_t bytes = 0;
	int i, good = 0;

	if (n <= 0)
		return n;
	for (i = 0; i < n && i < NET_SPAN_AHEAD; i++)
		net_fetch(&q->span, i, false);
	for (i = 0; i < n; i++) {
		struct net_frame *f = &q->frames[good];
		uint32_t why;

		if (i + NET_SPAN_AHEAD < n)
			net_fetch(&q->span, i + NET_SPAN_AHEAD, false);
		if (net_unlikely(!frame_of_piece(q->dev, &q->span.iov[i], f, &why))) {
			ring_count(&q->stats.dropped[why], 1);
			continue;
		}
		f->pair = (uint16_t)q->pair;
		q->list[good++] = f;
		bytes += f->len;
	}
	if (net_likely(good))
		pass_on(q, good, bytes);
	ring_vq_consume(vq, &q->span, NULL, n);
	ring_vq_flush(vq);
	return n;
}

static int poll_chains(struct net_txq *q, int budget)
{
	struct ring_chain *chains[NET_BATCH];
	struct ring_vq *vq = q->source.vq;
	uint64_t bytes = 0;
	int n, i, good = 0;

	n = ring_vq_pop(vq, chains, budget < NET_BATCH ? budget : NET_BATCH);
	if (n <= 0)
		return n;
	for (i = 0; i < n; i++) {
		struct net_frame *f = &q->frames[good];
		uint32_t why;

		if (i + NET_AHEAD < n)
			fetch_frame(chains[i + NET_AHEAD]);

		if (net_unlikely(!net_frame_of_chain(q->dev, chains[i], f, &why))) {
			ring_count(&q->stats.dropped[why], 1);
			continue;
		}
		f->pair = (uint16_t)q->pair;
		q->list[good++] = f;
		bytes += f->len;
	}
	if (net_likely(good))
		pass_on(q, good, bytes);
	ring_vq_push_batch(vq, chains, NULL, n);
	ring_vq_flush(vq);
	return n;
}

static int tx_poll(struct ring_source *source, int budget)
{
	struct net_txq *q = (struct net_txq *)(void *)source;
	int n = -1;

	if (q->rest) {
		q->rest--;
		return 0;
	}
	if (q->empty && q->loaded && q->packed && ring_vq_ready(source->vq)) {
		q->empty = 0;
		q->rest = NET_GATHER;
		return 0;
	}
	if (net_likely(!q->chains))
		n = poll_span(q, budget);
	if (n < 0) {
		n = poll_chains(q, budget);
		q->chains = q->chains ? q->chains - 1 : NET_CHAINS;
	}
	if (n <= 0) {
		if (q->loaded) {
			q->rest = NET_REST;
			if (++q->empty == NET_PATIENCE || !q->packed)
				q->loaded = false;
		}
		return n;
	}
	q->loaded = n >= NET_LOADED;
	q->empty = 0;
	return n;
}

static void tx_flush(struct ring_source *source)
{
	ring_vq_flush(source->vq);
}

static int tx_arm(struct ring_source *source)
{
	struct net_txq *q = (struct net_txq *)(void *)source;

	q->rest = 0;
	q->loaded = false;
	return ring_vq_kicks_on(source->vq);
}

const struct ring_source_ops net_tx_ops = {
	.poll = tx_poll,
	.flush = tx_flush,
	.arm = tx_arm,
};

struct ring_source *net_txq_new(struct net_dev *dev, struct ring_vq *vq, uint32_t pair)
{
	struct net_txq *q = ring_source_new(sizeof(*q), &net_tx_ops, vq);

	if (!q)
		return NULL;
	q->dev = dev;
	q->pair = pair;
	q->enabled = true;
	q->packed = dev->features >> NET_V_PACKED & 1;
	dev->tx[pair] = q;
	return &q->source;
}

void net_txq_free(struct net_txq *q)
{
	if (q->dev->tx[q->pair] == q)	/* a new connection's may have taken its place */
		q->dev->tx[q->pair] = NULL;
	net_stats_add(&q->dev->past, &q->stats);
	free(q);
}
