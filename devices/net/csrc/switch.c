/* SPDX-License-Identifier: Apache-2.0 */
/*
 * switch.c - a learning switch; theory in switch.h.
 *
 * Rules
 * - Decisions first, for the whole batch; then deliveries, grouped by destination. Between a frame that is flooded and others
 *   the order stays.
 * - A plain port without rules takes the short way: two table look-ups per frame at most, none while source
 *   and destination stay the same.
 */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "devices/net/csrc/fdb.h"
#include "devices/net/csrc/switch.h"
#include "devices/net/csrc/vlan.h"

enum {
	DEPTH = 2,			/* an echo at a port answers while we deliver; two of them would go on forever */
	BURST_MS = 10,
	RATE_SHIFT = 16,
};

/* Generic cell rate algorithm: the time at which the bucket is full again. */
struct limit {
	uint64_t cost;			/* ns per unit << RATE_SHIFT; 0: no limit */
	uint64_t tat_ns;
	uint64_t frac;
};

struct sw_port {
	struct net_port port;
	struct net_switch *sw;
	uint32_t number;
	bool rules_in, rules_out;	/* the long way */
	bool tagged;			/* access or trunk: tags mean something */
	bool isolated;
	uint32_t native;		/* VLAN of frames without a tag; 0: plain, or none */
	uint32_t learn_max;
	uint64_t pin;			/* address; 0: none */
	uint64_t src_key;		/* last source, which is in the table */
	uint32_t src_tick, src_gen;
	uint64_t burst_ns;
	struct limit in_frames, in_bytes, out_frames, out_bytes, in_floods;
	struct net_switch_config config;
	uint64_t carries[64];
};

struct net_switch {
	struct fdb fdb;
	struct sw_port *ports[NET_SWITCH_PORTS];
	uint32_t top;			/* ports[top] and above are NULL */
	uint32_t pins;
	uint32_t depth;
	uint32_t skipped;		/* ticks */
	uint64_t now_ns;		/* of this batch; 0: nobody asked yet */
	uint64_t refused, floods;	/* any thread reads */
	struct vlan_frames *retagged[DEPTH];
};

/* Of one batch. */
struct batch {
	const struct net_frame *const *frames;
	int n;
	struct sw_port *dest[NET_BATCH];	/* NULL: dropped; flood_to() */
	uint32_t what[NET_BATCH];		/* VLAN_* */
	uint64_t last_key;
	struct sw_port *last_dest;
};

static inline struct sw_port *sw_port_of(struct net_port *port)
{
	return (struct sw_port *)(void *)port;
}

/* Stands for all ports. */
static inline struct sw_port *flood_to(struct net_switch *sw)
{
	return (struct sw_port *)(void *)sw;
}

static inline uint64_t load_mac(const uint8_t *p)
{
	uint64_t mac;

	memcpy(&mac, p, sizeof(mac));
	return mac & FDB_MAC_MASK;
}

static inline void dropped(struct sw_port *p, uint32_t why)
{
	ring_count(&p->port.stats.dropped[why], 1);
}

static bool carries(const struct sw_port *p, uint32_t vlan)
{
	return p->carries[vlan / 64] >> (vlan % 64) & 1;
}

/* --- time and limits -------------------------------------------------------------------------------------------- */

static void look_at_clock(struct net_switch *sw)
{
	struct timespec ts;
	uint32_t tick;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
	tick = (uint32_t)(((uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec) >> FDB_TICK_SHIFT) + sw->skipped;
	if (net_unlikely(tick != sw->fdb.now))
		fdb_set_now(&sw->fdb, tick);
	sw->now_ns = 0;
}

static uint64_t now_ns(struct net_switch *sw)
{
	if (!sw->now_ns)
		sw->now_ns = ring_now_ns();
	return sw->now_ns;
}

static void set_limit(struct limit *l, uint64_t rate)
{
	memset(l, 0, sizeof(*l));
	if (rate)
		l->cost = ((uint64_t)1000000000u << RATE_SHIFT) / rate;
}

static bool has_room(const struct sw_port *p, const struct limit *l)
{
	return !l->cost || l->tat_ns <= now_ns(p->sw) + p->burst_ns;
}

/* @units at most 2^17: the largest frame in bytes, or the segments it is cut into. */
static void charge(const struct sw_port *p, struct limit *l, uint64_t units)
{
	uint64_t sum, from;

	if (!l->cost)
		return;
	from = now_ns(p->sw);
	if (from < l->tat_ns)
		from = l->tat_ns;
	sum = l->cost * units + l->frac;
	l->tat_ns = from + (sum >> RATE_SHIFT);
	l->frac = sum & ((1u << RATE_SHIFT) - 1);
}

/* A segment that is still to be cut counts as what it will be. */
static uint64_t frames_in(const struct net_frame *f)
{
	if (net_likely(f->hdr.gso_type == NET_GSO_NONE || !f->hdr.gso_size))
		return 1;
	return (f->len + f->hdr.gso_size - 1) / f->hdr.gso_size;
}

static bool within(const struct sw_port *p, struct limit *frames, struct limit *bytes, const struct net_frame *f)
{
	if (!has_room(p, frames) || !has_room(p, bytes))
		return false;
	charge(p, frames, frames_in(f));
	charge(p, bytes, f->len);
	return true;
}

/* --- where a frame goes ----------------------------------------------------------------------------------------- */

/* The port that @mac is pinned to. */
static struct sw_port *pinned_to(const struct net_switch *sw, uint64_t mac)
{
	const struct fdb_entry *e = sw->pins ? fdb_find(&sw->fdb, fdb_key(mac, FDB_PIN_VLAN)) : NULL;

	return e ? sw->ports[e->port] : NULL;
}

/* @mac was seen at @p. False: it must not be there. */
static __attribute__((noinline)) bool learn(struct sw_port *p, uint64_t mac, uint32_t vlan)
{
	struct net_switch *sw = p->sw;
	struct fdb *fdb = &sw->fdb;
	uint64_t key = fdb_key(mac, vlan);
	struct sw_port *owner;
	struct fdb_entry *e;

	owner = pinned_to(sw, mac);
	if (mac & 1 || !mac || (p->pin && mac != p->pin) || (owner && owner != p)) {
		dropped(p, NET_DROP_FILTER);
		return false;
	}
	e = fdb_find(fdb, key);
	if (e && e->port == p->number) {
		if (e->tick != fdb->now)
			e->tick = fdb->now;
	} else if (fdb->count[p->number] >= p->learn_max) {
		ring_count(&sw->refused, 1);
		return true;
	} else if (e) {
		fdb_move(fdb, e, p->number);
	} else if (!fdb_put(fdb, key, p->number)) {
		ring_count(&sw->refused, 1);
		return true;
	}
	p->src_key = key;
	p->src_tick = fdb->now;
	p->src_gen = fdb->gen;
	return true;
}

static struct sw_port *flood(struct sw_port *p, const struct net_frame *f)
{
	if (net_unlikely(p->in_floods.cost)) {
		if (!has_room(p, &p->in_floods)) {
			dropped(p, NET_DROP_LIMIT);
			return NULL;
		}
		charge(p, &p->in_floods, frames_in(f));
	}
	ring_count(&p->sw->floods, 1);
	return flood_to(p->sw);
}

/* Not where the last frame went. */
static __attribute__((noinline)) struct sw_port *look_up(struct sw_port *p, struct batch *b, const struct net_frame *f,
							  uint64_t mac, uint32_t vlan)
{
	struct net_switch *sw = p->sw;
	struct sw_port *dest;
	struct fdb_entry *e;

	if (mac & 1) {
		/* IEEE 802.1Q, 8.6.3: these stay on their link */
		if ((mac & 0xf0ffffffffffull) == 0xc28001) {
			dropped(p, NET_DROP_FILTER);
			return NULL;
		}
		return flood(p, f);
	}
	e = fdb_find(&sw->fdb, fdb_key(mac, vlan));
	dest = e ? sw->ports[e->port] : pinned_to(sw, mac);
	if (!dest)
		return flood(p, f);
	if (dest == p || (p->isolated && dest->isolated)) {
		dropped(p, NET_DROP_ISOLATED);
		return NULL;
	}
	if (!carries(dest, vlan)) {	/* pinned, in another VLAN */
		dropped(p, NET_DROP_VLAN);
		return NULL;
	}
	b->last_key = fdb_key(mac, vlan);
	b->last_dest = dest;
	return dest;
}

static inline struct sw_port *route(struct sw_port *p, struct batch *b, const struct net_frame *f, uint32_t vlan)
{
	const struct fdb *fdb = &p->sw->fdb;
	uint64_t src = load_mac(f->head + 6), dst = load_mac(f->head);

	if (net_unlikely(fdb_key(src, vlan) != p->src_key || p->src_tick != fdb->now || p->src_gen != fdb->gen) &&
	    !learn(p, src, vlan))
		return NULL;
	if (net_likely(fdb_key(dst, vlan) == b->last_key))
		return b->last_dest;
	return look_up(p, b, f, dst, vlan);
}

/* Which VLAN is @f in? NET_DROP_*. */
static uint32_t classify(const struct sw_port *p, const struct net_frame *f, uint32_t *what)
{
	uint32_t vlan = p->native;

	*what = 0;
	if (!p->tagged)
		return NET_DROP_NONE;
	if (vlan_is_tagged(f)) {
		uint32_t id;

		if (f->head_len < NET_ETH + VLAN_TAG)
			return NET_DROP_RUNT;
		id = ((uint32_t)f->head[VLAN_AT + 2] << 8 | f->head[VLAN_AT + 3]) & VLAN_ID;
		*what = VLAN_TAGGED;
		if (!id)
			*what |= VLAN_PRIORITY;
		else if (p->config.flags & NET_SWITCH_TRUNK)
			vlan = id;
		else
			return NET_DROP_VLAN;
	} else if (vlan_is_tag(f, VLAN_AT)) {
		return NET_DROP_VLAN;
	}
	if (!vlan || !carries(p, vlan))
		return NET_DROP_VLAN;
	*what |= vlan;
	return NET_DROP_NONE;
}

static void decide_by_rules(struct sw_port *p, struct batch *b)
{
	int i;

	for (i = 0; i < b->n; i++) {
		const struct net_frame *f = b->frames[i];
		uint32_t why = classify(p, f, &b->what[i]);

		b->dest[i] = NULL;
		if (why == NET_DROP_NONE && !within(p, &p->in_frames, &p->in_bytes, f))
			why = NET_DROP_LIMIT;
		if (why != NET_DROP_NONE)
			dropped(p, why);
		else
			b->dest[i] = route(p, b, f, b->what[i] & VLAN_ID);
	}
}

/* --- deliveries ------------------------------------------------------------------------------------------------- */

static uint64_t bytes_of(const struct net_frame *const *frames, int n)
{
	uint64_t bytes = 0;
	int i;

	for (i = 0; i < n; i++)
		bytes += frames[i]->len;
	return bytes;
}

static void hand_over(struct sw_port *d, const struct net_frame *const *frames, int n)
{
	int i;

	if (!n)
		return;
	if (net_unlikely(d->port.capture != NULL))
		for (i = 0; i < n; i++)
			net_capture_frame(d->port.capture, frames[i], false);
	ring_count(&d->port.stats.out_frames, (uint64_t)n);
	ring_count(&d->port.stats.out_bytes, bytes_of(frames, n));
	d->port.peer->ops->send(d->port.peer, frames, n);
}

static void deliver_by_rules(struct sw_port *d, const struct net_frame *const *frames, const uint32_t *what, int n)
{
	struct vlan_frames *retagged = d->sw->retagged[d->sw->depth - 1];
	bool trunk = d->config.flags & NET_SWITCH_TRUNK;
	const struct net_frame *list[NET_BATCH];
	int i, nr = 0, rc;

	vlan_begin(retagged);
	for (i = 0; i < n; i++) {
		const struct net_frame *f = frames[i];

		if (!within(d, &d->out_frames, &d->out_bytes, f)) {
			dropped(d, NET_DROP_LIMIT);
			continue;
		}
		if (d->tagged) {
			bool tag = trunk && (what[i] & VLAN_ID) != d->native;

			rc = vlan_frame(retagged, frames[i], what[i], tag, &f);
			if (rc == VLAN_FRAME_FLUSH) {
				hand_over(d, list, nr);
				nr = 0;
				vlan_begin(retagged);
				rc = vlan_frame(retagged, frames[i], what[i], tag, &f);
			}
			if (rc != VLAN_FRAME_DONE) {
				dropped(d, (uint32_t)rc);
				continue;
			}
		}
		list[nr++] = f;
	}
	hand_over(d, list, nr);
}

static inline void deliver(struct sw_port *d, const struct net_frame *const *frames, const uint32_t *what, int n)
{
	if (net_unlikely(net_is_down(&d->port)))
		ring_count(&d->port.stats.dropped[NET_DROP_DOWN], (uint64_t)n);
	else if (net_unlikely(!d->port.peer))
		ring_count(&d->port.stats.dropped[NET_DROP_NO_PEER], (uint64_t)n);
	else if (net_unlikely(d->rules_out))
		deliver_by_rules(d, frames, what, n);
	else
		hand_over(d, frames, n);
}

/* Frames @from to @to of the batch, all of one VLAN, to all ports that may have them. */
static void deliver_floods(struct sw_port *p, const struct batch *b, int from, int to)
{
	uint32_t vlan = b->what[from] & VLAN_ID;
	struct net_switch *sw = p->sw;
	uint32_t i;

	for (i = 0; i < sw->top; i++) {
		struct sw_port *d = sw->ports[i];

		if (d && d != p && d->port.peer && !net_is_down(&d->port) && carries(d, vlan) &&
		    !(d->isolated && p->isolated))
			deliver(d, b->frames + from, b->what + from, to - from);
	}
}

/* Frames @from to @to, none of them flooded: one group for each destination. */
static void deliver_groups(struct batch *b, int from, int to)
{
	const struct net_frame *list[NET_BATCH];
	uint32_t what[NET_BATCH];
	int i, k, nr;

	for (i = from; i < to; i++) {
		struct sw_port *d = b->dest[i];

		if (!d)
			continue;
		for (k = i, nr = 0; k < to; k++) {
			if (b->dest[k] != d)
				continue;
			list[nr] = b->frames[k];
			what[nr++] = b->what[k];
			b->dest[k] = NULL;
		}
		deliver(d, list, what, nr);
	}
}

static void deliver_all(struct sw_port *p, struct batch *b)
{
	struct sw_port *everywhere = flood_to(p->sw);
	int i, from = 0;

	for (i = 0; i < b->n; i++) {
		int end = i + 1;

		if (b->dest[i] != everywhere)
			continue;
		deliver_groups(b, from, i);
		while (end < b->n && b->dest[end] == everywhere && !((b->what[end] ^ b->what[i]) & VLAN_ID))
			end++;
		deliver_floods(p, b, i, end);
		from = end;
		i = end - 1;
	}
	deliver_groups(b, from, b->n);
}

/* Without rules: a frame with the addresses of the one before goes where that went. Returns whether all go to one port. */
static bool decide_plain(struct sw_port *p, struct batch *b)
{
	struct sw_port *again = NULL;
	uint64_t was_first = 0;
	uint32_t was_second = 0;
	bool same = true;
	int i;

	memset(b->what, 0, (size_t)b->n * sizeof(b->what[0]));
	for (i = 0; i < b->n; i++) {
		const uint8_t *head = b->frames[i]->head;
		uint64_t first;
		uint32_t second;

		memcpy(&first, head, sizeof(first));
		memcpy(&second, head + sizeof(first), sizeof(second));
		if (net_unlikely(!again || first != was_first || second != was_second)) {
			b->dest[i] = route(p, b, b->frames[i], 0);
			again = b->dest[i] == b->last_dest ? b->last_dest : NULL;
			was_first = first;
			was_second = second;
			same &= b->dest[i] == b->dest[0];
			continue;
		}
		b->dest[i] = again;
	}
	return same;
}

/* True: all go to one port. */
static bool decide(struct sw_port *p, struct batch *b)
{
	bool same = true;
	int i;

	if (net_unlikely(p->rules_in)) {
		decide_by_rules(p, b);
		for (i = 1; i < b->n; i++)
			same &= b->dest[i] == b->dest[0];
	} else {
		same = decide_plain(p, b);
	}
	return same && b->dest[0] && b->dest[0] != flood_to(p->sw);
}

static void switch_send(struct net_port *port, const struct net_frame *const *frames, int n)
{
	struct sw_port *p = sw_port_of(port);
	struct net_switch *sw = p->sw;
	struct batch b;
	int i;

	if (net_unlikely(net_is_down(port) || sw->depth == DEPTH)) {
		ring_count(&port->stats.dropped[sw->depth == DEPTH ? NET_DROP_ERROR : NET_DROP_DOWN], (uint64_t)n);
		return;
	}
	if (net_unlikely(port->capture != NULL))
		for (i = 0; i < n; i++)
			net_capture_frame(port->capture, frames[i], true);
	ring_count(&port->stats.in_frames, (uint64_t)n);
	ring_count(&port->stats.in_bytes, bytes_of(frames, n));
	if (!sw->depth++)
		look_at_clock(sw);
	b.frames = frames;
	b.n = n;
	b.last_key = UINT64_MAX;	/* no address in any VLAN */
	b.last_dest = NULL;
	if (net_likely(decide(p, &b)))
		deliver(b.dest[0], frames, b.what, n);
	else
		deliver_all(p, &b);
	sw->depth--;
}

/* --- control ---------------------------------------------------------------------------------------------------- */

static uint64_t pin_of(const struct net_switch_config *config)
{
	uint64_t mac = 0;

	memcpy(&mac, config->mac, sizeof(config->mac));
	return config->flags & NET_SWITCH_PINNED ? mac : 0;
}

/* Can @config be, on a port that has @number? 0 or -errno. */
static int check(const struct net_switch *sw, const struct net_switch_config *config, uint32_t number)
{
	uint64_t pin = pin_of(config);
	struct sw_port *owner = pin ? pinned_to(sw, pin) : NULL;

	if (config->vlan > NET_SWITCH_VLAN_MAX)
		return -EINVAL;
	if (config->flags & NET_SWITCH_TRUNK && (config->trunk[0] & 1 || config->trunk[63] >> 63))
		return -EINVAL;
	if (config->flags & NET_SWITCH_PINNED && (!pin || pin & 1))
		return -EINVAL;
	return owner && owner->number != number ? -EEXIST : 0;
}

static void forget_mac(struct net_switch *sw, uint64_t mac)
{
	uint32_t vlan;

	for (vlan = 0; vlan <= NET_SWITCH_VLAN_MAX; vlan++)
		fdb_remove(&sw->fdb, fdb_key(mac, vlan));
}

static int set_pin(struct sw_port *p, uint64_t pin)
{
	struct net_switch *sw = p->sw;

	if (pin == p->pin)
		return 0;
	if (pin) {
		forget_mac(sw, pin);
		if (!fdb_put(&sw->fdb, fdb_key(pin, FDB_PIN_VLAN), p->number))
			return -ENOSPC;
		sw->pins++;
	}
	if (p->pin) {
		fdb_remove(&sw->fdb, fdb_key(p->pin, FDB_PIN_VLAN));
		sw->pins--;
	}
	p->pin = pin;
	return 0;
}

static void set_vlans(struct sw_port *p, const struct net_switch_config *config)
{
	bool trunk = config->flags & NET_SWITCH_TRUNK;

	p->tagged = trunk || config->vlan;
	p->native = config->vlan;
	memset(p->carries, 0, sizeof(p->carries));
	if (trunk)
		memcpy(p->carries, config->trunk, sizeof(p->carries));
	if (!trunk || config->vlan)
		p->carries[config->vlan / 64] |= (uint64_t)1 << config->vlan % 64;
}

int net_switch_port_set(struct net_port *port, const struct net_switch_config *config)
{
	struct sw_port *p = sw_port_of(port);
	uint64_t burst = config->burst_ms ? config->burst_ms : BURST_MS;
	int rc = check(p->sw, config, p->number);

	if (!rc)
		rc = set_pin(p, pin_of(config));
	if (rc)
		return rc;
	if (p->config.vlan != config->vlan || memcmp(p->config.trunk, config->trunk, sizeof(config->trunk)) ||
	    (p->config.flags ^ config->flags) & (NET_SWITCH_TRUNK | NET_SWITCH_PINNED))
		fdb_flush(&p->sw->fdb, p->number);
	p->config = *config;
	p->isolated = config->flags & NET_SWITCH_ISOLATED;
	p->learn_max = config->learn_max;
	p->burst_ns = burst * 1000000;
	p->src_key = UINT64_MAX;
	set_vlans(p, config);
	set_limit(&p->in_frames, config->in_frames);
	set_limit(&p->in_bytes, config->in_bytes);
	set_limit(&p->out_frames, config->out_frames);
	set_limit(&p->out_bytes, config->out_bytes);
	set_limit(&p->in_floods, config->in_floods);
	p->rules_in = p->tagged || p->in_frames.cost || p->in_bytes.cost;
	p->rules_out = p->tagged || p->out_frames.cost || p->out_bytes.cost;
	return 0;
}

static void switch_port_free(struct net_port *port)
{
	struct sw_port *p = sw_port_of(port);
	struct net_switch *sw = p->sw;

	set_pin(p, 0);
	fdb_flush(&sw->fdb, p->number);
	sw->ports[p->number] = NULL;
	while (sw->top && !sw->ports[sw->top - 1])
		sw->top--;
	free(p);
}

static const struct net_port_ops switch_ops = {
	.send = switch_send,
	.free = switch_port_free,
};

struct net_port *net_switch_port_new(struct net_switch *sw, const struct net_switch_config *config, int *error)
{
	struct sw_port *p;
	uint32_t number = 0;

	while (number < NET_SWITCH_PORTS && sw->ports[number])
		number++;
	*error = -ENOSPC;
	if (number == NET_SWITCH_PORTS)
		return NULL;
	*error = -ENOMEM;
	p = aligned_alloc(64, (sizeof(*p) + 63) / 64 * 64);
	if (!p)
		return NULL;
	memset(p, 0, sizeof(*p));
	p->port.ops = &switch_ops;
	p->port.takes = NET_TAKES_CSUM | NET_TAKES_TSO4 | NET_TAKES_TSO6 | NET_TAKES_ECN | NET_TAKES_USO | NET_TAKES_UFO;
	p->sw = sw;
	p->number = number;
	*error = net_switch_port_set(&p->port, config);
	if (*error) {
		free(p);
		return NULL;
	}
	sw->ports[number] = p;
	if (sw->top <= number)
		sw->top = number + 1;
	return &p->port;
}

struct net_switch *net_switch_new(uint32_t entries, uint64_t seed)
{
	struct net_switch *sw = calloc(1, sizeof(*sw));
	int i;

	if (!sw)
		return NULL;
	if (entries > NET_SWITCH_ENTRIES_MAX)
		entries = NET_SWITCH_ENTRIES_MAX;
	if (fdb_init(&sw->fdb, entries, NET_SWITCH_PORTS, seed) < 0)
		goto out;
	for (i = 0; i < DEPTH; i++) {
		sw->retagged[i] = calloc(1, sizeof(*sw->retagged[i]));
		if (!sw->retagged[i])
			goto out;
	}
	look_at_clock(sw);
	return sw;
out:
	net_switch_free(sw);
	return NULL;
}

void net_switch_free(struct net_switch *sw)
{
	int i;

	for (i = 0; i < DEPTH; i++)
		free(sw->retagged[i]);
	fdb_fini(&sw->fdb);
	free(sw);
}

void net_switch_set_ageing(struct net_switch *sw, uint32_t seconds)
{
	sw->fdb.ageing = (uint32_t)((uint64_t)seconds * 1000000000u >> FDB_TICK_SHIFT);
}

uint32_t net_switch_port_number(const struct net_port *port)
{
	return ((const struct sw_port *)(const void *)port)->number;
}

uint32_t net_switch_port_learnt(const struct net_port *port)
{
	const struct sw_port *p = (const struct sw_port *)(const void *)port;

	return __atomic_load_n(&p->sw->fdb.count[p->number], __ATOMIC_RELAXED);
}

void net_switch_flush(struct net_switch *sw, struct net_port *port)
{
	fdb_flush(&sw->fdb, port ? sw_port_of(port)->number : UINT32_MAX);
}

uint32_t net_switch_table(const struct net_switch *sw, struct net_switch_entry *out, uint32_t max)
{
	const struct fdb *fdb = &sw->fdb;
	uint32_t nr = 0;
	uint64_t at;

	for (at = 0; at < (fdb->mask + 1) * FDB_WAYS; at++) {
		const struct fdb_entry *e = &fdb->buckets[at / FDB_WAYS].way[at % FDB_WAYS];

		if (!e->key || fdb_aged(fdb, e))
			continue;
		if (nr < max) {
			bool pin = fdb_is_pin(e->key);

			memcpy(out[nr].mac, &e->key, sizeof(out[nr].mac));
			out[nr].vlan = (uint16_t)(pin ? 0 : e->key >> 48);
			out[nr].port = e->port;
			out[nr].age = pin ? 0 : (uint32_t)(((uint64_t)(fdb->now - e->tick) << FDB_TICK_SHIFT) / 1000000000u);
			out[nr].kind = pin ? NET_SWITCH_PIN : NET_SWITCH_LEARNT;
		}
		nr++;
	}
	return nr;
}

void net_switch_stats(const struct net_switch *sw, struct net_switch_stats *out)
{
	out->entries = __atomic_load_n(&sw->fdb.entries, __ATOMIC_RELAXED);
	out->learnt = __atomic_load_n(&sw->fdb.learnt, __ATOMIC_RELAXED);
	out->moved = __atomic_load_n(&sw->fdb.moved, __ATOMIC_RELAXED);
	out->evicted = __atomic_load_n(&sw->fdb.evicted, __ATOMIC_RELAXED);
	out->refused = __atomic_load_n(&sw->refused, __ATOMIC_RELAXED);
	out->floods = __atomic_load_n(&sw->floods, __ATOMIC_RELAXED);
}

void net_switch_skip(struct net_switch *sw, uint32_t seconds)
{
	sw->skipped += (uint32_t)((uint64_t)seconds * 1000000000u >> FDB_TICK_SHIFT);
	look_at_clock(sw);
}
