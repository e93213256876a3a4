/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fdlink.c - frames to and from files: taps and packet sockets.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "devices/net/csrc/bytes.h"
#include "devices/net/csrc/fdlink.h"
#include "devices/net/csrc/net_int.h"

enum {
	IOV_INLINE = 32,	/* pieces of a frame written in place; more are copied together first */
	READ_BATCH = 32,	/* frames read into private memory before they are handed on */
	IDLE_SKIP = 8,		/* polls left out after one that found nothing: it is a system call */
	SLOT = 65664,		/* bytes of private memory per frame; no power of two, lest they share cache sets */
};

_Static_assert(SLOT >= NET_FRAME_MAX + NET_FD_HEADER && SLOT % 64 == 0, "a slot holds any frame");

/* One file. All of it belongs to the worker of its pair. */
struct fd_queue {
	struct ring_source source;
	struct net_feeder feeder;
	struct fd_port *port;
	uint32_t index;
	int fd;
	uint32_t gives;		/* NET_TAKES_* that frames from it may need */
	uint32_t skip;		/* polls to leave out */
	bool socket;		/* not a tap */
	bool running;
	bool empty;		/* when it was read last */
	bool starved;		/* the guest has no buffers; feed() is waited for */
	int error;		/* __atomic, relaxed */
	struct net_finish *fin;
	uint8_t *slots;		/* READ_BATCH of SLOT bytes; then one that nobody looks at */
	struct net_port_stats stats;
	struct ring_iov iovs[READ_BATCH];
	struct net_frame frames[READ_BATCH];
};

struct fd_port {
	struct net_port port;	/* must be first */
	uint32_t nr;
	uint32_t header;
	uint32_t gives;
	uint32_t max_frame;
	bool whole_tcp;
	struct fd_queue *queues[NET_PAIRS_MAX];
};

struct wire {
	struct net_hdr hdr;
	uint16_t num_buffers;
};

_Static_assert(sizeof(struct wire) == NET_FD_HEADER, "as VIRTIO 1.3, 5.1.6 has it");

static struct fd_port *fd_port_of(struct net_port *port)
{
	return (struct fd_port *)(void *)port;
}

/* --- to the file ------------------------------------------------------------------------------------------------ */

static ssize_t put(const struct fd_queue *q, struct iovec *iov, int nr)
{
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = (size_t)nr };

	if (!q->socket)
		return writev(q->fd, iov, nr);
	return sendmsg(q->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* Pieces of @f behind its head, at @iov; their number, or -1: too many. */
static int rest_of(const struct net_frame *f, struct iovec *iov, int max)
{
	const struct ring_iov *from = f->iov;
	size_t skip = (size_t)f->skip + f->head_len;
	size_t left = f->len - f->head_len;
	int n = 0;

	while (left) {
		size_t len;

		if (skip >= from->len) {
			skip -= from->len;
			from++;
			continue;
		}
		if (n == max)
			return -1;
		len = from->len - skip < left ? from->len - skip : left;
		iov[n].iov_base = (uint8_t *)from->base + skip;
		iov[n++].iov_len = len;
		left -= len;
		skip = 0;
		from++;
	}
	return n;
}

static void write_frame(struct fd_queue *q, const struct net_frame *f)
{
	struct wire wire = { .hdr = f->hdr };
	struct iovec iov[IOV_INLINE];
	int nr = 0, rest;

	if (q->port->header) {
		iov[nr].iov_base = &wire;
		iov[nr++].iov_len = sizeof(wire);
	}
	iov[nr].iov_base = (void *)(uintptr_t)f->head;
	iov[nr++].iov_len = f->head_len;
	rest = rest_of(f, iov + nr, IOV_INLINE - nr);
	if (net_unlikely(rest < 0)) {
		uint8_t *whole = q->slots + (size_t)READ_BATCH * SLOT;

		net_frame_copy(f, 0, whole, f->len);
		nr = q->port->header != 0;
		iov[nr].iov_base = whole;
		iov[nr].iov_len = f->len;
		rest = 1;
	}
	if (net_likely(put(q, iov, nr + rest) >= 0)) {
		ring_count(&q->stats.in_frames, 1);
		ring_count(&q->stats.in_bytes, f->len);
	} else if (errno == EAGAIN || errno == ENOBUFS) {
		ring_count(&q->stats.dropped[NET_DROP_FULL], 1);
	} else {
		ring_count(&q->stats.dropped[NET_DROP_ERROR], 1);
	}
}

struct emit {
	struct fd_queue *q;
	bool segments;
};

static void emit(void *arg, const struct net_frame *f)
{
	struct emit *e = arg;

	ring_count(e->segments ? &e->q->stats.in_segments : &e->q->stats.in_checksums, 1);
	write_frame(e->q, f);
}

/*
 * Is @f, to be cut, a true IP packet as it is, but for its checksum? Linux makes them so; what is not is cut. Untagged,
 * and without extension headers: others are rare.
 */
static bool true_as_it_is(const struct net_frame *f)
{
	const uint8_t *ip = f->head + NET_ETH;
	uint32_t l4;

	if (f->head_len < NET_ETH + 40 || f->len > UINT16_MAX + NET_ETH)
		return false;
	if (f->hdr.gso_type == NET_GSO_TCPV4) {
		l4 = (ip[0] & 15) * 4u;
		if (get16(f->head + 12) != 0x0800 || ip[0] >> 4 != 4 || l4 < 20 || ip[9] != 6 ||
		    get16(ip + 2) != f->len - NET_ETH)
			return false;
	} else if (f->hdr.gso_type == NET_GSO_TCPV6) {
		l4 = 40;
		if (get16(f->head + 12) != 0x86dd || ip[0] >> 4 != 6 || ip[6] != 6 ||
		    get16(ip + 4) != f->len - NET_ETH - 40)
			return false;
	} else {
		return false;
	}
	return f->hdr.csum_start == NET_ETH + l4 && f->hdr.csum_offset == 16;
}

static void write_unfinished(struct fd_queue *q, const struct net_frame *f)
{
	struct emit e = { .q = q, .segments = f->hdr.gso_type != NET_GSO_NONE };
	uint32_t why;

	if (q->port->whole_tcp && e.segments && true_as_it_is(f)) {
		struct net_frame whole = *f;

		whole.hdr.gso_type = NET_GSO_NONE;
		e.segments = false;
		why = net_finish(q->fin, &whole, q->port->port.takes, emit, &e);
	} else {
		why = net_finish(q->fin, f, q->port->port.takes, emit, &e);
	}
	if (why != NET_DROP_NONE)
		ring_count(&q->stats.dropped[why], 1);
}

static void fd_send(struct net_port *port, const struct net_frame *const *frames, int n)
{
	struct fd_port *p = fd_port_of(port);
	uint32_t takes = port->takes;
	int i;

	for (i = 0; i < n; i++) {
		const struct net_frame *f = frames[i];
		struct fd_queue *q = p->queues[f->pair % p->nr];

		if (net_unlikely(net_is_down(port))) {
			ring_count(&q->stats.dropped[NET_DROP_DOWN], 1);
			continue;
		}
		if (net_unlikely(port->capture != NULL))
			net_capture_frame(port->capture, f, false);
		if (net_unlikely(net_unfinished(f, takes)))
			write_unfinished(q, f);
		else
			write_frame(q, f);
	}
}

/* --- from the file ---------------------------------------------------------------------------------------------- */

static void sent(struct fd_queue *q, uint64_t bytes)
{
	ring_count(&q->stats.out_frames, 1);
	ring_count(&q->stats.out_bytes, bytes);
}

static int failed(struct fd_queue *q, int error)
{
	__atomic_store_n(&q->error, error, __ATOMIC_RELAXED);
	return error > 0 ? -error : -EPIPE;
}

static ssize_t get(const struct fd_queue *q, struct iovec *iov, int nr)
{
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = (size_t)nr };
	ssize_t n;

	if (!q->socket)
		n = readv(q->fd, iov, nr);
	else	/* the length that it had, not what was room for */
		n = recvmsg(q->fd, &msg, MSG_DONTWAIT | MSG_TRUNC);
	if (n < 0)
		return errno == EINTR ? -EAGAIN : -errno;
	return n ? n : -EPIPE;
}

/* Copy the header out of, or zeros into, the first bytes of a guest's buffers. */
static void header_bytes(const struct ring_iov *iov, int nr, struct wire *wire, bool in)
{
	uint8_t *at = (uint8_t *)wire;
	size_t left = sizeof(*wire);

	for (; left && nr; iov++, nr--) {
		size_t n = iov->len < left ? iov->len : left;

		if (in)
			shm_copy_in(at, iov->base, n);
		else
			shm_copy_out(iov->base, at, n);
		at += n;
		left -= n;
	}
}

/*
 * A tap cuts off what there is no room for without a word, so what is read reaches into memory that nobody looks at
 * where the buffers may be too small: the length then tells. Pieces at @out; their number.
 */
static int with_slack(const struct fd_queue *q, const struct ring_iov *iov, int nr, size_t skip, struct iovec *out)
{
	int i, n = 0;

	for (i = 0; i < nr; i++) {
		size_t drop = skip < iov[i].len ? skip : iov[i].len;

		skip -= drop;
		if (iov[i].len == drop)
			continue;
		out[n].iov_base = (uint8_t *)iov[i].base + drop;
		out[n++].iov_len = iov[i].len - drop;
	}
	if (!q->socket && n < RING_IOV_MAX) {
		out[n].iov_base = q->slots + (size_t)READ_BATCH * SLOT;
		out[n++].iov_len = SLOT;
	}
	return n;
}

/* net_rx_read()'s: one frame into a guest's buffers, header first. */
static ssize_t read_direct(void *arg, const struct ring_iov *iov, int nr)
{
	struct fd_queue *q = arg;
	struct wire wire = { .num_buffers = 0 };
	struct iovec out[RING_IOV_MAX];
	ssize_t n;

	if (q->port->header) {
		n = get(q, out, with_slack(q, iov, nr, 0, out));
		if (n < (ssize_t)sizeof(wire))
			return n < 0 ? n : -EBADMSG;
		header_bytes(iov, nr, &wire, true);
		if (net_check_hdr(&wire.hdr, (uint32_t)n - NET_FD_HEADER, q->gives) != NET_DROP_NONE)
			return -EBADMSG;
		/* DATA_VALID is for those who know of checksums (VIRTIO 1.3, 5.1.6.4.1) */
		if (net_unlikely(wire.hdr.flags && !(q->gives & NET_TAKES_CSUM))) {
			wire.hdr.flags = 0;
			header_bytes(iov, nr, &wire, false);
		}
		return n;
	}
	n = get(q, out, with_slack(q, iov, nr, sizeof(wire), out));
	if (n < 0)
		return n;
	header_bytes(iov, nr, &wire, false);
	return n + (ssize_t)sizeof(wire);
}

/* One frame into slot @i of private memory, described in frames[i]. Its length, 0: no good, or -errno. */
static ssize_t read_private(struct fd_queue *q, int i)
{
	uint8_t *slot = q->slots + (size_t)i * SLOT;
	struct iovec iov = { .iov_base = slot, .iov_len = SLOT };
	struct wire wire = { .num_buffers = 0 };
	struct net_frame *f = &q->frames[i];
	uint32_t header = q->port->header;
	uint32_t why = NET_DROP_NONE;
	ssize_t n = get(q, &iov, 1);
	uint32_t len;

	if (n < 0)
		return n;
	len = (uint32_t)n - header;
	if ((size_t)n < header + NET_ETH)
		why = NET_DROP_RUNT;
	else if (len > NET_FRAME_MAX)
		why = NET_DROP_GIANT;
	else if (header) {
		memcpy(&wire, slot, sizeof(wire));
		why = net_check_hdr(&wire.hdr, len, q->gives);
	}
	if (net_unlikely(why != NET_DROP_NONE)) {
		ring_count(&q->stats.dropped[why], 1);
		return 0;
	}
	net_frame_of_memory(f, &q->iovs[i], slot + header, len, &wire.hdr);
	f->pair = (uint16_t)q->index;
	return (ssize_t)len;
}

/* Frames read, or -errno: the file is of no further use. */
static int pump_private(struct fd_queue *q, int budget)
{
	struct net_port *port = &q->port->port, *peer = port->peer;
	const struct net_frame *list[READ_BATCH];
	int did, good = 0, i;
	ssize_t n = 0;

	if (budget > READ_BATCH)
		budget = READ_BATCH;
	for (did = 0; did < budget; did++) {
		n = read_private(q, good);
		if (n < 0)
			break;
		if (!n)
			continue;
		if (net_unlikely(net_is_down(port) || !peer)) {
			ring_count(&q->stats.dropped[peer ? NET_DROP_DOWN : NET_DROP_NO_PEER], 1);
			continue;
		}
		sent(q, (uint64_t)n);
		list[good] = &q->frames[good];
		good++;
	}
	if (net_unlikely(port->capture != NULL)) {
		for (i = 0; i < good; i++)
			net_capture_frame(port->capture, list[i], true);
	}
	if (good)
		peer->ops->send(peer, list, good);
	if (n < 0 && n != -EAGAIN && !did)
		return failed(q, (int)-n);
	return did;
}

static int pump_direct(struct fd_queue *q, struct net_dev *dev, int budget)
{
	/* what is not to be cut may be as large as can be */
	uint32_t max = q->gives & ~(uint32_t)NET_TAKES_CSUM ? (uint32_t)NET_FRAME_MAX : q->port->max_frame;
	int did, n;

	for (did = 0; did < budget; did++) {
		n = net_rx_read(dev, q->index, max, read_direct, q);
		if (net_likely(n > NET_FD_HEADER)) {
			sent(q, (uint32_t)n - NET_FD_HEADER);
			continue;
		}
		if (n == -EAGAIN)
			break;
		if (n == -ENOBUFS) {
			q->starved = true;
			break;
		}
		if (n == -EBADMSG) {
			ring_count(&q->stats.dropped[NET_DROP_HEADER], 1);
			continue;
		}
		if (n < 0)
			return did ? did : failed(q, -n);
	}
	return did;
}

/* Does @peer take what comes as it is, and does nobody want to see it? */
static struct net_dev *direct_peer(const struct fd_queue *q)
{
	struct net_port *peer = q->port->port.peer;
	struct net_dev *dev;
	uint32_t takes;

	if (!peer || net_is_down(peer) || net_is_down(&q->port->port) || peer->capture || q->port->port.capture)
		return NULL;
	takes = __atomic_load_n(&peer->takes, __ATOMIC_RELAXED);
	if (q->gives & ~takes)
		return NULL;
	dev = net_port_dev(peer);
	return dev && !net_dev_steers(dev) ? dev : NULL;
}

static int pump(struct fd_queue *q, int budget)
{
	struct net_dev *dev = direct_peer(q);

	return dev ? pump_direct(q, dev, budget) : pump_private(q, budget);
}

/* --- the source and the feeder ---------------------------------------------------------------------------------- */

static bool readable(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return poll(&p, 1, 0) != 0;
}

static int fd_poll(struct ring_source *source, int budget)
{
	struct fd_queue *q = (struct fd_queue *)(void *)source;
	int n;

	if (q->starved || !budget)
		return 0;
	if (q->skip) {
		q->skip--;
		return 0;
	}
	/* buffers that are taken and given back for nothing cost more than asking */
	n = q->empty && !readable(q->fd) ? 0 : pump(q, budget);
	q->empty = n < budget;
	if (!n)
		q->skip = IDLE_SKIP;
	return n;
}

static void fd_flush(struct ring_source *source)
{
	(void)source;	/* nothing of it is ever completed */
}

/* Polls were left out: what came meanwhile may have been told already, while nobody waited for it. */
static int fd_arm(struct ring_source *source)
{
	struct fd_queue *q = (struct fd_queue *)(void *)source;
	bool more = q->skip != IDLE_SKIP && !q->starved;

	q->skip = 0;
	return more;
}

static const struct ring_source_ops fd_source_ops = {
	.poll = fd_poll,
	.flush = fd_flush,
	.arm = fd_arm,
};

/* The guest has buffers again. */
static int fd_feed(struct net_feeder *feeder, int budget)
{
	struct fd_queue *q = (struct fd_queue *)((uint8_t *)feeder - offsetof(struct fd_queue, feeder));
	int n;

	if (!q->running)
		return 0;
	q->starved = false;
	n = pump(q, budget);
	return n < 0 ? 0 : n;
}

/* --- life ------------------------------------------------------------------------------------------------------- */

static void fd_add_stats(const struct net_port *port, struct net_port_stats *sum)
{
	const struct fd_port *p = (const struct fd_port *)(const void *)port;
	uint32_t i;

	for (i = 0; i < p->nr; i++)
		net_stats_add(sum, &p->queues[i]->stats);
}

static void queue_free(struct fd_queue *q)
{
	if (q->slots)
		munmap(q->slots, (size_t)(READ_BATCH + 1) * SLOT);
	net_finish_free(q->fin);
	free(q);
}

static void fd_free(struct net_port *port)
{
	struct fd_port *p = fd_port_of(port);
	uint32_t i;

	for (i = 0; i < p->nr; i++)
		queue_free(p->queues[i]);
	free(p);
}

static const struct net_port_ops fd_port_ops = {
	.send = fd_send,
	.free = fd_free,
	.add_stats = fd_add_stats,
};

static struct fd_queue *queue_new(struct fd_port *p, uint32_t index, int fd)
{
	struct fd_queue *q = ring_source_new(sizeof(*q), &fd_source_ops, NULL);
	struct stat st;
	void *slots;

	if (!q)
		return NULL;
	q->source.kick_fd = fd;
	q->feeder.feed = fd_feed;
	q->port = p;
	q->index = index;
	q->fd = fd;
	q->socket = fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode);
	q->fin = net_finish_new();
	/* what no frame ever reached costs nothing */
	slots = mmap(NULL, (size_t)(READ_BATCH + 1) * SLOT, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (slots != MAP_FAILED)
		q->slots = slots;
	if (!q->fin || !q->slots) {
		queue_free(q);
		return NULL;
	}
	return q;
}

struct net_port *net_fdlink_new(const struct net_fdlink_config *config)
{
	struct fd_port *p;

	if (!config->queues || config->queues > NET_PAIRS_MAX || (config->header && config->header != NET_FD_HEADER))
		return NULL;
	p = calloc(1, sizeof(*p));
	if (!p)
		return NULL;
	p->port.ops = &fd_port_ops;
	p->port.takes = config->takes;
	p->header = config->header;
	p->gives = config->gives;
	p->whole_tcp = config->whole_tcp != 0;
	net_fdlink_set_max_frame(&p->port, config->max_frame);
	for (p->nr = 0; p->nr < config->queues; p->nr++) {
		p->queues[p->nr] = queue_new(p, p->nr, config->fds[p->nr]);
		if (!p->queues[p->nr]) {
			fd_free(&p->port);
			return NULL;
		}
	}
	return &p->port;
}

struct ring_source *net_fdlink_start(struct net_port *port, uint32_t queue, int offload)
{
	struct fd_port *p = fd_port_of(port);
	struct net_port *peer = port->peer;
	struct net_dev *dev = peer ? net_port_dev(peer) : NULL;
	struct fd_queue *q;
	int gives;

	if (port->ops != &fd_port_ops || queue >= p->nr)
		return NULL;
	q = p->queues[queue];
	if (p->header && q->socket) {
		q->gives = p->gives;
	} else if (p->header) {
		gives = offload ? net_tap_set_offload(q->fd, peer ? peer->takes : 0) : 0;
		/* not a tap that can be told: it may give anything */
		q->gives = gives >= 0 ? (uint32_t)gives : p->port.takes;
	}
	q->starved = false;
	q->running = true;
	if (dev)
		net_rx_set_feeder(dev, queue, &q->feeder);
	return &q->source;
}

void net_fdlink_stop(struct net_port *port, uint32_t queue)
{
	struct fd_port *p = fd_port_of(port);
	struct net_dev *dev = port->peer ? net_port_dev(port->peer) : NULL;

	if (port->ops != &fd_port_ops || queue >= p->nr)
		return;
	p->queues[queue]->running = false;
	if (dev)
		net_rx_set_feeder(dev, queue, NULL);
}

void net_fdlink_set_max_frame(struct net_port *port, uint32_t bytes)
{
	fd_port_of(port)->max_frame = !bytes || bytes > NET_FRAME_MAX ? NET_FRAME_MAX : bytes;
}

int net_fdlink_error(const struct net_port *port, uint32_t queue)
{
	const struct fd_port *p = (const struct fd_port *)(const void *)port;

	return queue < p->nr ? __atomic_load_n(&p->queues[queue]->error, __ATOMIC_RELAXED) : EINVAL;
}
