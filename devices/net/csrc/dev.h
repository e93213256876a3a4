/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dev.h - inside of a guest's card: net.c rx.c feed.c tx.c ctrl.c, nobody else.
 *
 * Theory of operation
 *   A card has up to NET_PAIRS_MAX pairs of rings, each a source of its own. Both rings of a pair run on one worker; of
 *   other pairs, which may run elsewhere, a worker touches nothing (unless the card is @shared: all on one). What is
 *   counted is counted per ring, therefore.
 *
 *   Transmit: poll pops a batch, makes frames of it, hands them to the peer and gives all chains back: they are done.
 *   Receive: nothing is polled. Whoever has a frame calls send(); buffers are popped for as many frames as there are,
 *   stay in the stash until the end of the worker's turn, and what is left over then goes back into the ring. Kicks are
 *   off: that a guest has offered buffers matters only to a feeder that was refused for want of them (@starved).
 */
#ifndef NET_DEV_H
#define NET_DEV_H

#include "devices/net/csrc/net_int.h"
#include "devices/net/csrc/rss.h"
#include "ring/csrc/span.h"

enum {
	/* virtio feature bits: VIRTIO 1.3, 5.1.3 */
	NET_V_CSUM = 0,
	NET_V_GUEST_CSUM = 1,
	NET_V_CTRL_GUEST_OFFLOADS = 2,
	NET_V_GUEST_TSO4 = 7,
	NET_V_GUEST_TSO6 = 8,
	NET_V_GUEST_ECN = 9,
	NET_V_GUEST_UFO = 10,
	NET_V_HOST_TSO4 = 11,
	NET_V_HOST_TSO6 = 12,
	NET_V_HOST_ECN = 13,
	NET_V_HOST_UFO = 14,
	NET_V_MRG_RXBUF = 15,
	NET_V_CTRL_VQ = 17,
	NET_V_CTRL_RX = 18,
	NET_V_CTRL_VLAN = 19,
	NET_V_CTRL_RX_EXTRA = 20,
	NET_V_GUEST_ANNOUNCE = 21,
	NET_V_MQ = 22,
	NET_V_CTRL_MAC_ADDR = 23,
	NET_V_VERSION_1 = 32,
	NET_V_PACKED = 34,
	NET_V_GUEST_USO4 = 54,
	NET_V_GUEST_USO6 = 55,
	NET_V_HOST_USO = 56,
	NET_V_HASH_REPORT = 57,
	NET_V_RSS = 60,

	NET_HDR_LEGACY = 10,
	NET_HDR_HASH = 20,

	/* net_filter.mode */
	NET_MODE_PROMISC = 1,
	NET_MODE_ALLMULTI = 2,
	NET_MODE_ALLUNI = 4,
	NET_MODE_NOMULTI = 8,
	NET_MODE_NOUNI = 16,
	NET_MODE_NOBCAST = 32,
	NET_MODE_MANY_UNI = 64,		/* the driver's table is larger than ours, or being changed */
	NET_MODE_MANY_MULTI = 128,
	NET_MODE_VLAN = 256,		/* tags are filtered */
	NET_TABLE_UNI = 0,
	NET_TABLE_MULTI = 1,
	NET_TABLES = 2,
	NET_MACS = 64,			/* of a table */
	NET_MAC = 6,
	NET_VLAN_WORDS = 4096 / 64,

	NET_STASH = 512,	/* receive buffers popped at once, two full pops */
	NET_MERGE_MAX = 256,	/* buffers one frame may take */
	NET_AHEAD = 3,			/* frames that are fetched ahead of the one being copied */
	NET_SPAN_AHEAD = 8,		/* of a span, of which nothing was fetched before */
	NET_CHAINS = 64,		/* polls that do not try for a span, after one that found other chains */
	NET_REST = 16,		/* polls left out after a full load: a driver sends, and refills, in batches; to look at the
				 * ring while it writes there costs both sides more than the wait */
	NET_PATIENCE = 64,	/* packed: empty polls after which a load is over */
	NET_LOADED = 16,	/* frames at once that are a full load */
	NET_GATHER = 32,	/* packed: polls left out when a driver under full load begins to send again: it makes frames
				 * available one by one, and whoever reads their lines meanwhile takes them from it */
};

/* A ring's source; the kind is told by its ops. */
struct net_rxq {
	struct ring_source source;
	struct net_dev *dev;
	uint32_t pair;
	uint32_t nr, at;		/* stash: chains[at] … chains[nr - 1] are popped and unused */
	uint32_t done;			/* chains[done] … chains[at - 1] are filled and not pushed yet */
	uint32_t hdr_len;
	bool mergeable;
	bool enabled;
	bool starved;			/* kicks are on */
	bool hungry;			/* the feeder is to be called when there are buffers */
	uint32_t need;			/* bytes that it was starved of */
	uint32_t rest;			/* polls to leave out: net_rx_offer() */
	struct net_feeder *feeder;
	struct net_finish *fin;
	uint32_t batch_frames;		/* delivered since the last note in @stats */
	uint64_t batch_bytes;
	struct net_port_stats stats;
	struct ring_chain *chains[NET_STASH];
	uint32_t written[NET_STASH];	/* bytes, of those that are filled; or of the span */
	struct ring_span span;
	struct ring_iov iov[RING_IOV_MAX];
};

struct net_txq {
	struct ring_source source;
	struct net_dev *dev;
	uint32_t pair;
	bool enabled;
	bool packed;
	bool loaded;			/* the last poll that found frames found many */
	uint32_t empty;			/* polls since that found none */
	uint32_t rest;			/* polls to leave out */
	uint32_t chains;		/* polls that try for no span */
	struct net_port_stats stats;
	struct ring_span span;
	const struct net_frame *list[NET_BATCH];
	struct net_frame frames[NET_BATCH];
};

/* What the driver wants to receive: written on the control queue's worker, read on all. MAC addresses as loaded. */
struct net_filter {
	uint32_t mode;
	uint32_t nr[NET_TABLES];
	uint64_t mac;
	uint64_t macs[NET_TABLES][NET_MACS];
	uint64_t vlans[NET_VLAN_WORDS];
};

struct net_dev {
	struct net_port port;
	uint32_t pairs;
	uint32_t hdr_len;		/* of the driver's headers, both ways */
	uint32_t allowed;		/* NET_TAKES_*: what it may send unfinished */
	bool mergeable;
	bool shared;
	uint64_t features;
	struct net_rxq *rx[NET_PAIRS_MAX];	/* NULL: not running; changes while parked */
	struct net_txq *tx[NET_PAIRS_MAX];
	uint32_t active;		/* pairs in use, 1 to @pairs; any thread reads */
	uint32_t announce;		/* the driver is asked to announce itself; any thread */
	struct net_filter filter;
	struct net_rss rss;
	struct net_port_stats past;	/* of rings that are gone */
};

/* The first fields are on the wire in this order. */
struct net_wire {
	struct net_hdr hdr;
	uint16_t num_buffers;
	uint32_t hash_value;
	uint16_t hash_report;
	uint16_t pad;
};

_Static_assert(sizeof(struct net_hdr) == NET_HDR_LEGACY && sizeof(struct net_wire) == NET_HDR_HASH,
	       "headers are as VIRTIO 1.3, 5.1.6 has them");

/* A frame's first bytes, NET_ETH to NET_HEAD of them: a call would cost more than the copy. */
static inline void net_copy_head(SHM void *to, const SHM void *from, uint32_t len)
{
	uint8_t *t = to;
	const uint8_t *f = from;
	uint32_t at = 0;

	if (net_unlikely(len < 16)) {
		memcpy(t, f, len);
	} else {
		if (net_likely(len >= 64)) {
			__builtin_memcpy(t, f, 64);
			at = 64;
		}
		for (; at + 16 <= len; at += 16)
			__builtin_memcpy(t + at, f + at, 16);
		if (at < len)
			__builtin_memcpy(t + len - 16, f + len - 16, 16);
	}
	__asm__ __volatile__("" : : "r"(t) : "memory");	/* once: see shm_copy_in() */
}

static inline struct net_dev *net_dev_of(struct net_port *port)
{
	return (struct net_dev *)(void *)port;
}

/* Buffer @i of a span will be looked at, or written: both lines of it that the smallest frame has with its header. */
static inline void net_fetch(const struct ring_span *span, int i, bool write)
{
	const uint8_t *base = span->iov[i].base;
	bool two = span->iov[i].len > 64;

	if (write) {
		shm_prefetch_write(base);
		if (net_likely(two))
			shm_prefetch_write(base + 64);
	} else {
		shm_prefetch(base);
		if (net_likely(two))
			shm_prefetch(base + 64);
	}
}

/* net.c: NET_TAKES_* of the GUEST_* bits of @features */
uint32_t net_takes_of(uint64_t features);

/* rx.c */
struct ring_source *net_rxq_new(struct net_dev *dev, struct ring_vq *vq, uint32_t pair);
void net_rxq_free(struct net_rxq *q);
void net_rx_send(struct net_port *port, const struct net_frame *const *frames, int n);
/* On the worker, for a feeder: as many of @n equal frames as there are buffers for; 0: it is called when there are. */
int net_rx_offer(struct net_dev *dev, uint32_t pair, const struct net_frame *const *frames, int n);
extern const struct ring_source_ops net_rx_ops;

/* tx.c */
struct ring_source *net_txq_new(struct net_dev *dev, struct ring_vq *vq, uint32_t pair);
void net_txq_free(struct net_txq *q);
extern const struct ring_source_ops net_tx_ops;

/* ctrl.c */
struct ring_source *net_ctrlq_new(struct net_dev *dev, struct ring_vq *vq);
void net_ctrlq_free(struct ring_source *source);
bool net_filter_passes(const struct net_filter *fl, const struct net_frame *f);
extern const struct ring_source_ops net_ctrl_ops;

#endif
