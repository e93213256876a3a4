/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_int.h - inside of virtio-net: frames, ports, and who hands what to whom.
 *
 * Theory of operation
 *   Everything that frames come from or go to is a port (struct net_port): a guest's card, a tap, a switch. A port hands
 *   a batch of frames to its peer's send(), which is done with them when it returns: what a guest sent is copied once,
 *   from its pages to where it goes. Nobody waits: what finds no room is dropped and counted.
 *
 *   All ports that may reach each other belong to one worker at a time (a switch: one worker for all of it; a tap queue:
 *   the worker of its pair of rings), so that there is no lock. Links between ports change while that worker is parked.
 *
 * Rules
 * - The first bytes of a frame are copied once, into @head; every decision (addresses, VLAN, protocol, checksum place) is made on that
 *   copy, and that copy is what is delivered. The rest is copied from where it lies.
 * - @hdr is checked by who made the frame: offsets lie inside the frame, gso_type is known and has a size. Takers trust
 *   it so far, and nothing else.
 */
#ifndef NET_INT_H
#define NET_INT_H

#include <stdatomic.h>

#include "devices/net/csrc/net.h"
#include "ring/csrc/shm.h"
#include "ring/csrc/stats.h"
#include "ring/csrc/worker.h"

#define net_likely(x) __builtin_expect(!!(x), 1)
#define net_unlikely(x) __builtin_expect(!!(x), 0)

enum {
	NET_BATCH = 64,			/* frames handed over at once */
	NET_HEAD = 128,			/* bytes of a frame looked at: Ethernet, VLAN tags, IP, TCP with options */
	NET_ETH = 14,
	NET_HDR_MAX = 24,		/* virtio header with hash report, padded */
	NET_HDR_V1 = 12,		/* VIRTIO 1.3, 5.1.6: with num_buffers */
	NET_FRAME_MAX = NET_FRAME_BYTES_MAX,

	/* struct net_hdr.flags and gso_type: VIRTIO 1.3, 5.1.6 */
	NET_F_NEEDS_CSUM = 1,
	NET_F_DATA_VALID = 2,
	NET_GSO_NONE = 0,
	NET_GSO_TCPV4 = 1,
	NET_GSO_UDP = 3,
	NET_GSO_TCPV6 = 4,
	NET_GSO_UDP_L4 = 5,
	NET_GSO_ECN = 0x80,
};

/* As on the wire, little-endian, without num_buffers and hash. */
struct net_hdr {
	uint8_t flags;
	uint8_t gso_type;
	uint16_t hdr_len;
	uint16_t gso_size;
	uint16_t csum_start;
	uint16_t csum_offset;
};

/* A frame on its way. Lives until send() returns. */
struct net_frame {
	struct net_hdr hdr;
	uint16_t head_len;		/* bytes in @head: min(len, NET_HEAD) */
	uint16_t pair;			/* queue pair, or tap queue, it came from */
	uint32_t len;			/* bytes, from the destination address on */
	uint32_t nr_iov;
	uint32_t skip;			/* bytes of @iov before the frame begins */
	const struct ring_iov *iov;	/* where all of it lies; shared memory */
	uint8_t head[NET_HEAD];
};

struct net_port;
struct net_capture;

struct net_port_ops {
	/*
	 * Take @n frames, 1 to NET_BATCH, from another port. Copies; drops what does not fit, and counts it in
	 * @port->stats. Only on the port's worker.
	 */
	void (*send)(struct net_port *port, const struct net_frame *const *frames, int n);
	void (*free)(struct net_port *port);
	/* Add what is counted elsewhere than in @port->stats (per queue, where several workers count). May be NULL. */
	void (*add_stats)(const struct net_port *port, struct net_port_stats *sum);
};

struct net_port {
	const struct net_port_ops *ops;
	struct net_port *peer;		/* where what comes from here goes; NULL: nowhere, dropped. Changes while parked */
	struct net_capture *capture;	/* NULL: none. Changes while parked */
	uint32_t takes;			/* NET_TAKES_*: frames it takes unfinished */
	uint32_t down;			/* link is down: everything is dropped; __atomic, relaxed */
	struct net_port_stats stats;	/* written by the worker, read by any thread: ring_count() */
};

/* Counted by several threads: for what is rare. */
static inline void net_count_shared(uint64_t *stat, uint64_t n)
{
	__atomic_fetch_add(stat, n, __ATOMIC_RELAXED);
}

/* port.c: add up. @from is written by its worker meanwhile. */
void net_stats_add(struct net_port_stats *sum, const struct net_port_stats *from);

static inline bool net_is_down(const struct net_port *port)
{
	return __atomic_load_n(&port->down, __ATOMIC_RELAXED) != 0;
}

/* --- net.c: a guest's card ------------------------------------------------------------------------------------- */

/*
 * Somebody who reads frames straight into a guest's buffers (a tap queue). feed() is called on the pair's worker when
 * buffers may have come, until it returns 0.
 */
struct net_feeder {
	int (*feed)(struct net_feeder *feeder, int budget);	/* frames delivered */
};

/* tx.c: read a chain's header and head into @f. False: not a frame; *@why is NET_DROP_*. */
bool net_frame_of_chain(const struct net_dev *dev, const struct ring_chain *chain, struct net_frame *f, uint32_t *why);
/* tx.c: is @hdr true of a frame of @len bytes, with the offloads of @allowed (NET_TAKES_*)? 0 or NET_DROP_*. */
uint32_t net_check_hdr(const struct net_hdr *hdr, uint32_t len, uint32_t allowed);

/* rx.c: the guest's port. Everything about receive buffers is there. */
/*
 * One frame straight from a file into receive buffers of pair @pair: room for @max bytes of frame is taken from the ring
 * (mergeable: as many buffers as that needs), @read(@arg, iov, nr) is called once with the header's NET_HDR_V1 bytes first and then the
 * buffers; what it returns, header included, is published at the end of the turn. Returns bytes, -EAGAIN where @read
 * said so, -ENOBUFS: no buffers now (kicks are asked for), other -errno of @read.
 */
int net_rx_read(struct net_dev *dev, uint32_t pair, uint32_t max,
		ssize_t (*read)(void *arg, const struct ring_iov *iov, int nr), void *arg);
void net_rx_set_feeder(struct net_dev *dev, uint32_t pair, struct net_feeder *feeder);	/* parked; NULL: none */
struct net_dev *net_port_dev(struct net_port *port);	/* NULL: not a guest's */
bool net_dev_steers(const struct net_dev *dev);		/* its driver says which pair a frame goes to: only send() knows */

/* --- offload.c: finishing what a taker cannot take ---------------------------------------------------------- */

/* Room for finished frames; one per worker thread or port. */
struct net_finish;
struct net_finish *net_finish_new(void);
void net_finish_free(struct net_finish *fin);
/* Does @f have to be finished for a port that takes @takes? */
static inline bool net_unfinished(const struct net_frame *f, uint32_t takes);
/*
 * Give @emit whole frames of @f that need nothing that @takes lacks: checksums filled in, segments cut. @emit is called
 * any number of times, each with a frame that lives until it returns. Returns 0 or NET_DROP_* (nothing was emitted).
 */
uint32_t net_finish(struct net_finish *fin, const struct net_frame *f, uint32_t takes,
		    void (*emit)(void *arg, const struct net_frame *f), void *arg);
/* Copy [@at, @at + @len) of a frame: head from the copy, the rest from memory. @at + @len <= f->len. */
void net_frame_copy(const struct net_frame *f, uint32_t at, void *dst, uint32_t len);
/* Describe @len bytes of private memory as a frame. */
void net_frame_of_memory(struct net_frame *f, struct ring_iov *iov, void *mem, uint32_t len, const struct net_hdr *hdr);

/* --- capture.c (pcapng) ---------------------------------------------------------------------------------------- */

/* @out: the frame leaves the port's owner (a guest sends); otherwise it is delivered to it. Never waits. */
void net_capture_frame(struct net_capture *c, const struct net_frame *f, bool out);

static inline bool net_unfinished(const struct net_frame *f, uint32_t takes)
{
	static const uint8_t need[8] = {
		[NET_GSO_TCPV4] = NET_TAKES_TSO4, [NET_GSO_UDP] = NET_TAKES_UFO, [NET_GSO_TCPV6] = NET_TAKES_TSO6,
		[NET_GSO_UDP_L4] = NET_TAKES_USO,
	};
	uint32_t needs = f->hdr.flags & NET_F_NEEDS_CSUM ? NET_TAKES_CSUM : 0;

	needs |= need[f->hdr.gso_type & 7];
	if (f->hdr.gso_type & NET_GSO_ECN)
		needs |= NET_TAKES_ECN;
	return needs & ~takes;
}

#endif
