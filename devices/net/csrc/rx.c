/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rx.c - to a guest: frames are copied into the buffers its driver offered.
 */
#include <stdlib.h>

#include "devices/net/csrc/rx_int.h"

/* --- the stash: buffers popped and unused ----------------------------------------------------------------------- */

void net_rx_push_filled(struct net_rxq *q)
{
	if (q->at == q->done)
		return;
	ring_vq_push_batch(q->source.vq, q->chains + q->done, q->written + q->done, (int)(q->at - q->done));
	q->done = q->at;
}

/* At least one more buffer, @want of them if there are so many. False: none. */
static bool refill(struct net_rxq *q, uint32_t want)
{
	int n;

	if (q->at == q->nr || q->nr + want > NET_STASH) {
		net_rx_push_filled(q);
		memmove(q->chains, q->chains + q->at, (q->nr - q->at) * sizeof(*q->chains));
		q->nr -= q->at;
		q->at = 0;
		q->done = 0;
	}
	if (want > NET_STASH - q->nr)
		want = NET_STASH - q->nr;
	n = ring_vq_pop(q->source.vq, q->chains + q->nr, (int)want);
	if (n <= 0)
		return false;
	q->nr += (uint32_t)n;
	ring_source_completed(&q->source);	/* what is left over goes back at the end of the turn */
	return true;
}

/* One buffer that can hold something, chains[at]. Those that cannot are given back empty. */
static bool usable(struct net_rxq *q, uint32_t want)
{
	for (;;) {
		if (q->at == q->nr && !refill(q, want))
			return false;
		if (net_likely(q->chains[q->at]->in_bytes >= q->hdr_len + NET_ETH))
			return true;
		net_rx_fill(q, 0);
	}
}

uint32_t net_rx_reserve(struct net_rxq *q, uint32_t bytes, uint32_t want, uint32_t *why)
{
	uint64_t room;
	uint32_t n;

	if (net_unlikely(!usable(q, want))) {
		*why = NET_DROP_NO_BUFFER;
		return 0;
	}
	room = q->chains[q->at]->in_bytes;
	if (net_likely(room >= bytes))
		return 1;
	if (!q->mergeable) {
		*why = NET_DROP_TOO_SMALL;
		return 0;
	}
	for (n = 1; room < bytes; n++) {
		if (n == NET_MERGE_MAX) {
			*why = NET_DROP_TOO_SMALL;
			return 0;
		}
		if (q->at + n == q->nr) {
			uint64_t more = (bytes - room) / (q->chains[q->nr - 1]->in_bytes | 1u) + 1;
			uint32_t left = NET_MERGE_MAX - n;

			if (!refill(q, more < left ? (uint32_t)more : left)) {
				*why = NET_DROP_NO_BUFFER;
				return 0;
			}
		}
		room += q->chains[q->at + n]->in_bytes;
	}
	return n;
}

void net_rx_give_back(struct net_rxq *q)
{
	net_rx_push_filled(q);
	if (q->nr != q->at)
		ring_vq_unpop(q->source.vq, (int)(q->nr - q->at));
	q->nr = 0;
	q->at = 0;
	q->done = 0;
}

/* --- a frame into its buffers ----------------------------------------------------------------------------------- */

void net_rx_put(struct net_rx_cursor *c, const void *src, size_t len)
{
	const uint8_t *from = src;

	while (len) {
		const struct ring_chain *chain = *c->chain;
		const struct ring_iov *iov;
		size_t n;

		if (c->piece == chain->nr_in) {
			c->chain++;
			c->piece = 0;
			continue;
		}
		iov = &chain->iov[chain->nr_out + c->piece];
		n = iov->len - c->off < len ? iov->len - c->off : len;
		shm_copy_out((uint8_t *)iov->base + c->off, from, n);
		from += n;
		len -= n;
		c->off += n;
		if (c->off == iov->len) {
			c->piece++;
			c->off = 0;
		}
	}
}

/* What of @f is not in its head. */
static void put_rest(struct net_rx_cursor *c, const struct net_frame *f)
{
	const struct ring_iov *iov = f->iov;
	size_t skip = (size_t)f->skip + f->head_len;
	size_t left = f->len - f->head_len;

	while (left) {
		size_t n;

		if (skip >= iov->len) {
			skip -= iov->len;
			iov++;
			continue;
		}
		n = iov->len - skip < left ? iov->len - skip : left;
		net_rx_put(c, (const uint8_t *)iov->base + skip, n);
		left -= n;
		iov++;
		skip = 0;
	}
}

static inline void make_header(const struct net_rxq *q, const struct net_frame *f, uint32_t buffers, struct net_wire *w)
{
	uint32_t takes = __atomic_load_n(&q->dev->port.takes, __ATOMIC_RELAXED);

	w->hdr = f->hdr;
	if (net_unlikely(!(takes & NET_TAKES_CSUM)))
		w->hdr.flags = 0;	/* VIRTIO 1.3, 5.1.6.4.1: DATA_VALID is for those who know GUEST_CSUM */
	w->num_buffers = (uint16_t)buffers;
	w->hash_value = 0;
	w->hash_report = 0;
	w->pad = 0;
	if (net_unlikely(q->hdr_len == NET_HDR_HASH))
		w->hash_report = (uint16_t)net_rss_hash(&q->dev->rss, f->head, f->head_len, &w->hash_value);
}

/* The first line of a buffer is on its way since it was popped; with the header, the smallest frame has two. */
static inline void fetch_second(const struct ring_chain *chain)
{
	if (net_likely(chain->nr_in))
		shm_prefetch_write((const uint8_t *)chain->iov[chain->nr_out].base + 64);
}

/* @f has gone to the driver. */
static inline void delivered(struct net_rxq *q, const struct net_frame *f)
{
	q->batch_frames++;
	q->batch_bytes += f->len;
	if (net_unlikely(q->dev->port.capture != NULL))
		net_capture_frame(q->dev->port.capture, f, false);
}

/* Frame @f, whole and finished, to the driver; one buffer or more. */
static __attribute__((noinline)) void deliver(struct net_rxq *q, const struct net_frame *f, uint32_t want)
{
	uint32_t need = q->hdr_len + f->len;
	struct net_rx_cursor c = { .chain = NULL };
	struct net_wire w;
	uint32_t why, n;

	n = net_rx_reserve(q, need, want, &why);
	if (net_unlikely(!n)) {
		ring_count(&q->stats.dropped[why], 1);
		return;
	}
	make_header(q, f, n, &w);
	c.chain = &q->chains[q->at];
	net_rx_put(&c, &w, q->hdr_len);
	net_rx_put(&c, f->head, f->head_len);
	put_rest(&c, f);
	while (n--) {
		uint32_t room = q->chains[q->at]->in_bytes, written = room < need ? room : need;

		net_rx_fill(q, written);
		need -= written;
	}
	delivered(q, f);
}

/*
 * The same for what nearly every frame is: it has a usual header, fits the first piece of the next buffer, and what is not in its
 * head is all in one piece. False: deliver() it.
 */
static inline bool deliver_fast(struct net_rxq *q, const struct net_frame *f)
{
	uint32_t rest = f->len - f->head_len, need = NET_HDR_V1 + f->len;
	size_t from = (size_t)f->skip + f->head_len;
	const struct ring_chain *chain;
	const struct ring_iov *iov;
	struct net_wire w;
	uint8_t *to;

	if (net_unlikely(q->at == q->nr || q->hdr_len != NET_HDR_V1))
		return false;
	chain = q->chains[q->at];
	iov = &chain->iov[chain->nr_out];
	if (net_unlikely(!chain->nr_in || iov->len < need || (rest && f->iov->len < from + rest)))
		return false;
	if (net_likely(q->at + NET_AHEAD < q->nr))
		fetch_second(q->chains[q->at + NET_AHEAD]);
	to = iov->base;
	make_header(q, f, 1, &w);
	shm_copy_out(to, &w, NET_HDR_V1);
	net_copy_head(to + NET_HDR_V1, f->head, f->head_len);
	if (rest)
		shm_copy_out(to + NET_HDR_V1 + f->head_len, (const uint8_t *)f->iov->base + from, rest);
	net_rx_fill(q, need);
	delivered(q, f);
	return true;
}

struct emit {
	struct net_rxq *q;
	uint32_t want;
	bool segments;
};

static void emit(void *arg, const struct net_frame *f)
{
	struct emit *e = arg;

	ring_count(e->segments ? &e->q->stats.in_segments : &e->q->stats.in_checksums, 1);
	deliver(e->q, f, e->want);
}

static void finish(struct net_rxq *q, const struct net_frame *f, uint32_t takes, uint32_t want)
{
	struct emit e = { .q = q, .want = want, .segments = f->hdr.gso_type != NET_GSO_NONE };
	uint32_t why = net_finish(q->fin, f, takes, emit, &e);

	if (why != NET_DROP_NONE)
		ring_count(&q->stats.dropped[why], 1);
}

/* The fewest checks that a header gets: it asks for nothing. */
static inline bool asks_nothing(const struct net_hdr *hdr)
{
	return net_likely(!hdr->flags && hdr->gso_type == NET_GSO_NONE);
}

/*
 * As many frames from @frames on as are what nearly all are, each into a buffer of its own that needs no chain: finished, in
 * the first piece and its head. Nothing is popped. Returns their number.
 */
static int deliver_span(struct net_rxq *q, const struct net_frame *const *frames, int n)
{
	uint32_t takes = __atomic_load_n(&q->dev->port.takes, __ATOMIC_RELAXED);
	struct ring_vq *vq = q->source.vq;
	struct ring_span *span = &q->span;
	uint64_t bytes = 0;
	int i, nr;

	nr = ring_vq_peek(vq, span, n, 1);
	for (i = 0; i < nr && i < NET_SPAN_AHEAD; i++)
		net_fetch(span, i, true);
	for (i = 0; i < nr; i++) {
		const struct net_frame *f = frames[i];
		uint32_t rest = f->len - f->head_len, need = NET_HDR_V1 + f->len;
		size_t from = (size_t)f->skip + f->head_len;
		uint8_t *to = span->iov[i].base;

		if (i + NET_SPAN_AHEAD < nr)
			net_fetch(span, i + NET_SPAN_AHEAD, true);
		if (net_unlikely(span->iov[i].len < need || (rest && f->iov->len < from + rest)))
			break;
		if (asks_nothing(&f->hdr)) {
			static const struct net_wire none = { .num_buffers = 1 };

			shm_copy_out(to, &none, NET_HDR_V1);
		} else {
			struct net_wire w;

			if (net_unlikely(net_unfinished(f, takes)))
				break;
			make_header(q, f, 1, &w);
			shm_copy_out(to, &w, NET_HDR_V1);
		}
		net_copy_head(to + NET_HDR_V1, f->head, f->head_len);
		if (rest)
			shm_copy_out(to + NET_HDR_V1 + f->head_len, (const uint8_t *)f->iov->base + from, rest);
		q->written[i] = need;
		bytes += f->len;
	}
	if (net_unlikely(!i))
		return 0;
	ring_vq_consume(vq, span, q->written, i);
	ring_source_completed(&q->source);
	q->batch_frames += (uint32_t)i;
	q->batch_bytes += bytes;
	return i;
}

/* May deliver_span() be asked? Nothing is in the stash then. */
static inline bool spans(const struct net_rxq *q)
{
	return q->at == q->nr && q->hdr_len == NET_HDR_V1 && !q->dev->port.capture &&
	       __atomic_load_n(&q->dev->filter.mode, __ATOMIC_RELAXED) & NET_MODE_PROMISC;
}

/* deliver_span(), where it may be asked. */
static inline int try_span(struct net_rxq *q, const struct net_frame *const *frames, int n)
{
	if (net_unlikely(!spans(q) || net_unfinished(frames[0], q->dev->port.takes)))
		return 0;
	return deliver_span(q, frames, n);
}

static void note_batch(struct net_rxq *q)
{
	if (q->batch_frames) {
		ring_count(&q->stats.in_frames, q->batch_frames);
		ring_count(&q->stats.in_bytes, q->batch_bytes);
		q->batch_frames = 0;
		q->batch_bytes = 0;
	}
}

static void deliver_chains(struct net_rxq *q, const struct net_frame *const *frames, int n)
{
	uint32_t takes = __atomic_load_n(&q->dev->port.takes, __ATOMIC_RELAXED);
	bool filter = !(__atomic_load_n(&q->dev->filter.mode, __ATOMIC_RELAXED) & NET_MODE_PROMISC);
	uint32_t k;
	int i;

	if (q->at == q->nr)
		refill(q, (uint32_t)n);
	for (k = q->at; k < q->nr && k < q->at + NET_AHEAD; k++)
		fetch_second(q->chains[k]);
	for (i = 0; i < n; i++) {
		const struct net_frame *f = frames[i];

		if (net_unlikely(filter) && !net_filter_passes(&q->dev->filter, f))
			ring_count(&q->stats.dropped[NET_DROP_FILTER], 1);
		else if (net_unlikely(net_unfinished(f, takes)))
			finish(q, f, takes, (uint32_t)(n - i));
		else if (net_unlikely(!deliver_fast(q, f)))
			deliver(q, f, (uint32_t)(n - i));
	}
	net_rx_push_filled(q);
}

void net_rx_deliver(struct net_rxq *q, const struct net_frame *const *frames, int n)
{
	int done = try_span(q, frames, n);

	if (net_unlikely(done < n))
		deliver_chains(q, frames + done, n - done);
	note_batch(q);
}

int net_rx_deliver_some(struct net_rxq *q, const struct net_frame *const *frames, int n)
{
	int done = try_span(q, frames, n);

	note_batch(q);
	return done;
}

/* --- the port --------------------------------------------------------------------------------------------------- */

/* The pair that @f goes to, or NULL. A pair that may run on another worker is not even looked at. */
static struct net_rxq *choose(const struct net_dev *dev, const struct net_frame *f)
{
	uint32_t active = __atomic_load_n(&dev->active, __ATOMIC_RELAXED);
	uint32_t pair = f->pair;
	struct net_rxq *q;

	if (!dev->shared)
		return pair < dev->pairs ? dev->rx[pair] : NULL;
	if (net_unlikely(net_rss_steers(&dev->rss)))
		pair = net_rss_pair(&dev->rss, f);
	else if (net_unlikely(pair >= active))
		pair %= active;
	q = dev->rx[pair];
	return net_likely(net_rx_runs(q)) ? q : dev->rx[0];
}

void net_rx_send(struct net_port *port, const struct net_frame *const *frames, int n)
{
	struct net_dev *dev = net_dev_of(port);
	bool steers = net_rss_steers(&dev->rss);
	struct net_rxq *q, *next = choose(dev, frames[0]);
	int i, end;

	for (i = 0; i < n; i = end) {
		q = next;
		for (end = i + 1; end < n; end++) {
			if (net_likely(!steers && frames[end]->pair == frames[i]->pair))
				continue;
			next = choose(dev, frames[end]);
			if (next != q)
				break;
		}
		if (net_unlikely(!net_rx_runs(q) || net_is_down(port)))
			net_count_shared(&port->stats.dropped[NET_DROP_DOWN], (uint64_t)(end - i));
		else
			net_rx_deliver(q, frames + i, end - i);
	}
}

/* --- the source ------------------------------------------------------------------------------------------------- */

static int rx_poll(struct ring_source *source, int budget)
{
	struct net_rxq *q = (struct net_rxq *)(void *)source;
	int n;

	if (net_likely(!q->hungry) || !q->feeder || !budget || !net_rx_runs(q))
		return 0;
	q->hungry = false;	/* it is again if it is refused again */
	n = q->feeder->feed(q->feeder, budget);
	if (n > 0)
		q->hungry = true;
	return n;
}

static void rx_flush(struct ring_source *source)
{
	struct net_rxq *q = (struct net_rxq *)(void *)source;

	net_rx_give_back(q);
	ring_vq_flush(source->vq);
}

/* Only one who was refused waits for buffers. */
static int rx_arm(struct ring_source *source)
{
	struct net_rxq *q = (struct net_rxq *)(void *)source;
	bool more;

	if (!q->hungry || !q->feeder || !net_rx_runs(q))
		return 0;
	more = net_rx_ask(q);
	net_rx_give_back(q);
	return more;
}

static void rx_disarm(struct ring_source *source)
{
	struct net_rxq *q = (struct net_rxq *)(void *)source;

	if (q->starved) {
		q->starved = false;
		ring_vq_kicks_off(source->vq);
	}
}

const struct ring_source_ops net_rx_ops = {
	.poll = rx_poll,
	.flush = rx_flush,
	.arm = rx_arm,
	.disarm = rx_disarm,
};

struct ring_source *net_rxq_new(struct net_dev *dev, struct ring_vq *vq, uint32_t pair)
{
	struct net_rxq *q = ring_source_new(sizeof(*q), &net_rx_ops, vq);

	if (!q)
		return NULL;
	q->fin = net_finish_new();
	if (!q->fin) {
		free(q);
		return NULL;
	}
	q->dev = dev;
	q->pair = pair;
	q->enabled = true;
	q->hdr_len = dev->hdr_len;
	q->mergeable = dev->mergeable;
	ring_vq_kicks_off(vq);
	dev->rx[pair] = q;
	return &q->source;
}

void net_rxq_free(struct net_rxq *q)
{
	if (q->dev->rx[q->pair] == q)	/* a new connection's may have taken its place */
		q->dev->rx[q->pair] = NULL;
	net_stats_add(&q->dev->past, &q->stats);
	net_finish_free(q->fin);
	free(q);
}
