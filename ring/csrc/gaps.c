/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gaps.c - how long a source that found nothing is polled: what a worker learns from the times between requests.
 *
 *   The window. What polling can gain is known only by trying: whether the next request comes within the window. Two
 *   kinds of waiting are told apart, for the driver and for the device (io_uring), because they have nothing to do with
 *   each other. A window that found nothing doubles the number of windows left out afterwards (a driver on the same CPU
 *   cannot run while we poll: it is then polled hardly ever). One that found something makes the next one a few times
 *   as long as the gaps seen lately.
 *
 *   Naps. Gaps longer than any window but much alike (a load at a steady rate) are not polled through: the source sleeps,
 *   with kicks wanted, until shortly before the next request is due and is polled from then on. That costs a part of the gap, at most
 *   NAP_SHARE, and finds the request as soon as polling all the time would. A nap after which nothing came in
 *   time doubles the number of naps left out.
 */
#include "ring/csrc/vq.h"
#include "ring/csrc/worker_int.h"

enum {
	WINDOW_MIN_NS = 4000,	/* below it the clock and the arming cost as much */
	WINDOW_GAPS = 4,	/* window in mean gaps: 98 % of exponential ones */
	SKIP_MAX = 8,		/* log2 of the most windows left out */
	SKIP_SLOW = 64,		/* windows left out while gaps are longer than any window */
	NAP_LONGEST_NS = 1000000,	/* gaps from there on are not predicted */
	NAP_ALIKE = 8,		/* gaps that must have been alike */
	NAP_SHARE = 8,		/* polled part of a gap: at most 3 of so many */
	NAP_JITTER_NS = 1000,	/* differences that are nothing special */
	NAP_LATE_MAX_NS = 40000,
	NAP_SKIP_MAX = 7,	/* log2 of the most naps left out */
	GAP_SHORT_NS = 100,	/* taken for a gap that ended before it was */
};

static uint64_t window_max(const struct ring_worker *w)
{
	return (uint64_t)(w->options.max_poll_us ? w->options.max_poll_us : WORKER_POLL_MAX_US) * 1000;
}

uint64_t gaps_window(const struct ring_worker *w, struct ring_gaps *g)
{
	uint64_t max = window_max(w);
	uint64_t window;

	if (w->options.poll_us >= 0)
		return (uint64_t)w->options.poll_us * 1000;
	if (g->skip) {
		g->skip--;
		return 0;
	}
	if (g->ewma_ns > max) {
		g->skip = SKIP_SLOW;
		return max;
	}
	window = (uint64_t)WINDOW_GAPS * g->ewma_ns;
	if (!g->ewma_ns || window > max)
		return max;
	return window < WINDOW_MIN_NS ? WINDOW_MIN_NS : window;
}

/* Would the next window be longer than nothing? */
bool gaps_window_opens(const struct ring_worker *w, const struct ring_gaps *g)
{
	return w->options.poll_us > 0 || (w->options.poll_us < 0 && !g->skip);
}

/* When to wake before the next request; 0: sleeping until then does not pay. @until: polled that long. */
uint64_t gaps_nap(const struct ring_worker *w, const struct ring_source *s, struct ring_gaps *g, uint64_t *until)
{
	uint64_t lead, tail;

	if (w->options.poll_us >= 0 || g->alike < NAP_ALIKE || g->mean_ns <= window_max(w))
		return 0;
	lead = 2 * w->late_ns + 2 * (uint64_t)g->dev_ns;
	tail = WINDOW_MIN_NS + 2 * (uint64_t)g->dev_ns;
	if (lead + tail > g->mean_ns / NAP_SHARE * 3)
		return 0;
	if (g->nap_skip) {
		g->nap_skip--;
		return 0;
	}
	*until = s->came_ns + g->mean_ns + tail;
	return s->came_ns + g->mean_ns - lead;
}

void gaps_nap_missed(struct ring_source *s)
{
	struct ring_gaps *g = &s->gaps[s->gap_kind];

	if (g->nap_misses < NAP_SKIP_MAX)
		g->nap_misses++;
	g->nap_skip = (uint8_t)(1u << g->nap_misses);
}

/*
 * A request came: learn how long it took since the one before, and how much alike these times are. One that is far off
 * (a stall, and what catches up after it) counts like one that is not.
 */
static void came(struct ring_worker *w, struct ring_source *s, struct ring_gaps *g)
{
	uint64_t now = s->slept && w->now_ns > w->late_ns ? w->now_ns - w->late_ns : w->now_ns;
	uint64_t gap = now > s->came_ns ? now - s->came_ns : 0;
	int64_t diff = (int64_t)gap - (int64_t)g->mean_ns, most = 2 * (int64_t)g->dev_ns + NAP_JITTER_NS;

	s->came_ns = now;
	if (gap >= NAP_LONGEST_NS) {
		g->alike = 0;
		return;
	}
	if (!g->alike) {
		g->mean_ns = (uint32_t)gap;
		g->dev_ns = (uint32_t)gap / 2;
	} else {
		diff = diff > most ? most : diff < -most ? -most : diff;
		g->mean_ns = (uint32_t)((int64_t)g->mean_ns + diff / 8);
		g->dev_ns = (uint32_t)((int64_t)g->dev_ns + ((diff < 0 ? -diff : diff) - (int64_t)g->dev_ns) / 8);
	}
	if (g->alike < UINT16_MAX)
		g->alike++;
}

/* Something came after a gap. What was seen asleep includes the time to wake up: it counts less. */
void gaps_ended(struct ring_worker *w, struct ring_source *s)
{
	struct ring_gaps *g = &s->gaps[s->gap_kind];
	uint64_t gap = w->now_ns > s->idle_since_ns ? w->now_ns - s->idle_since_ns : 0;
	uint64_t cap = 4 * window_max(w);
	int64_t diff;

	if (s->idle_since_ns == GAP_UNMEASURED)
		gap = GAP_SHORT_NS;
	else if (gap > cap)
		gap = cap;
	if (s->gap_kind == GAP_DRIVER)
		came(w, s, g);
	if (s->nap_ns && !s->slept)
		g->nap_misses = 0;
	s->nap_ns = 0;
	diff = (int64_t)gap - (int64_t)g->ewma_ns;
	if (s->slept) {
		diff /= 8;
	} else {
		diff /= 2;
		g->misses = 0;
		g->skip = 0;
	}
	g->ewma_ns = (uint32_t)((int64_t)g->ewma_ns + diff) | 1;	/* 0: nothing known yet */
	s->idle_since_ns = 0;
	s->slept = false;
}

void gaps_window_missed(struct ring_source *s)
{
	struct ring_gaps *g = &s->gaps[s->gap_kind];

	if (g->misses < SKIP_MAX)
		g->misses++;
	if (g->skip < 1u << g->misses)
		g->skip = (uint16_t)(1u << g->misses);
}

/* A nap is over: the source is polled from now on. */
void gaps_nap_ended(struct ring_worker *w, struct ring_source *s)
{
	uint64_t late = w->now_ns - s->nap_ns;

	if (late > NAP_LATE_MAX_NS)
		late = NAP_LATE_MAX_NS;
	w->late_ns += late / 8 - w->late_ns / 8;
	s->slept = false;
}
