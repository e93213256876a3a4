/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ring_fuzz.c - a virtqueue whose memory, geometry and history are chosen by a fuzzer.
 *
 * An input is (fields little-endian, see struct input below):
 *	configuration, region table, number of calls, calls of four bytes each, memory image
 * The image fills the regions one after the other, then the inflight record. Regions are heap blocks of exactly their
 * length, so that the sanitizers see every byte beyond; what they cannot see, check_chain() asserts: pieces lie inside
 * regions that are there, writable ones not in read-only memory, sums and limits hold.
 *
 * With -DREPLAY it is a program that runs files instead of a libFuzzer target; it prints how many chains each popped.
 */
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ring/csrc/ring.h"
#include "tests/fuzz/fuzz.h"

enum {
	MAX_REGIONS = 4,
	MAX_HELD = 1024,
	MAX_CALLS = 255,
	GPA_UNIT = 64,	/* of a region's address and length in the input */
	LOG_BYTES = 65536 * GPA_UNIT * 2 / RING_LOG_PAGE / 8,

	/* input.flags */
	IN_PACKED = 1,
	IN_INDIRECT = 2,
	IN_EVENT_IDX = 4,
	IN_IN_ORDER = 8,
	IN_IOTLB = 16,
	IN_LOG = 32,
	IN_INFLIGHT = 64,
	IN_FROM_USED = 128,
};

struct input {
	uint8_t flags;		/* IN_* */
	uint8_t nr_regions;	/* modulo, at least one */
	uint16_t size;		/* of the queue */
	uint32_t base;
	uint16_t desc, avail, used;	/* gpa / 16, / 2, / 4 */
	uint16_t inflight_bytes;
};

struct input_region {
	uint16_t gpa, len;	/* in GPA_UNIT, len at least one */
	uint16_t uaddr;
	uint16_t flags;		/* bit 0: read-only */
};

struct call {
	uint8_t what, a;
	uint16_t b;
};

enum what {
	POP, PUSH, PUSH_OLDEST, FLUSH, UNPOP, KICKS, POKE8, POKE16, POKE32, POKE64, AVAIL, TOUCH, RESTART, REMAP, REMOVE,
	ADD, LOG, TLB_ADD, TLB_DEL, BREAK, LOOK, NR_CALLS
};

struct region {
	uint8_t *mem;
	struct input_region in;
	bool there;
};

static struct state {
	struct input in;
	struct region region[MAX_REGIONS];
	uint32_t nr_regions;
	struct ring_mem *mem;
	struct ring_vq *vq;
	struct ring_iotlb *tlb;
	uint8_t *inflight;
	struct ring_chain *held[MAX_HELD];
	uint32_t nr_held;
	int log_fd;
	int event_fd;
	uint64_t popped;	/* over all runs of the queue */
} s;

static void fail(const char *what)
{
	fprintf(stderr, "ring_fuzz: %s\n", what);
	abort();
}

static uint64_t gpa_of(const struct region *r)
{
	return (uint64_t)r->in.gpa * GPA_UNIT;
}

static uint64_t len_of(const struct region *r)
{
	return ((uint64_t)r->in.len + 1) * GPA_UNIT;
}

/* A piece may lie in memory that was removed while the chain was in flight, never elsewhere. */
static void check_piece(const struct ring_iov *iov, bool write)
{
	uintptr_t at = (uintptr_t)iov->base;

	for (uint32_t i = 0; i < s.nr_regions; i++) {
		const struct region *r = &s.region[i];
		uintptr_t start = (uintptr_t)r->mem;

		if (at - start < len_of(r) && iov->len <= len_of(r) - (at - start)) {
			if (write && r->in.flags & 1)
				fail("a writable piece in read-only memory");
			if (!iov->len)
				fail("an empty piece");
			return;
		}
	}
	fail("a piece outside of guest memory");
}

static void check_chain(const struct ring_chain *chain)
{
	uint64_t out = 0, in = 0;

	if (chain->nr_out + chain->nr_in > RING_IOV_MAX)
		fail("too many pieces");
	if (chain->id >= s.in.size)
		fail("an id beyond the queue");
	for (uint32_t i = 0; i < (uint32_t)chain->nr_out + chain->nr_in; i++) {
		check_piece(&chain->iov[i], i >= chain->nr_out);
		*(i < chain->nr_out ? &out : &in) += chain->iov[i].len;
	}
	if (out != chain->out_bytes || in != chain->in_bytes)
		fail("sums are wrong");
	for (uint32_t i = 0; i < s.nr_held; i++)
		if (s.held[i] == chain)
			fail("a chain twice");
}

static void pop(int max)
{
	struct ring_chain *chains[RING_BATCH_MAX];
	int state = ring_vq_state(s.vq);
	int n = ring_vq_pop(s.vq, chains, max);

	if (n > max && n > 0)
		fail("more than asked for");
	if (n < 0 && n != -RING_MISS && ring_vq_state(s.vq) == RING_VQ_RUNNING)
		fail("an error that does not break");
	if (state != RING_VQ_RUNNING && n >= 0)
		fail("a pop from a queue that does not run");
	if (n > 0)
		s.popped += (uint64_t)n;
	for (int i = 0; i < n; i++) {
		check_chain(chains[i]);
		if (s.nr_held == MAX_HELD)
			fail("more in flight than the queue holds");
		s.held[s.nr_held++] = chains[i];
	}
	if (ring_vq_in_flight(s.vq) != s.nr_held)
		fail("in_flight is wrong");
}

static void push(uint32_t which, uint32_t written)
{
	struct ring_chain *chain;

	if (!s.nr_held)
		return;
	which %= s.nr_held;
	chain = s.held[which];
	memmove(&s.held[which], &s.held[which + 1], (s.nr_held - which - 1) * sizeof(chain));
	s.nr_held--;
	ring_vq_push(s.vq, chain, written);
	if (ring_vq_in_flight(s.vq) != s.nr_held)
		fail("in_flight is wrong after a push");
}

/* What devices do with chains, every byte of them. */
static void touch(uint32_t which, uint32_t offset)
{
	static uint8_t buffer[65536];
	const struct ring_chain *chain;
	uint32_t n;

	if (!s.nr_held)
		return;
	chain = s.held[which % s.nr_held];
	n = ring_chain_read(chain, offset, buffer, sizeof(buffer));
	if (offset > chain->out_bytes ? n != 0 : n > chain->out_bytes - offset)
		fail("read beyond the end");
	memset(buffer, 0x5a, sizeof(buffer));
	n = ring_chain_write(chain, offset, buffer, sizeof(buffer));
	if (offset > chain->in_bytes ? n != 0 : n > chain->in_bytes - offset)
		fail("write beyond the end");
}

static void start(uint32_t base)
{
	const struct input *in = &s.in;
	struct ring_vq_config cfg = {
		.size = in->size,
		.base = base,
		.features = (in->flags & IN_PACKED ? 1ULL << 34 : 0) | (in->flags & IN_INDIRECT ? 1ULL << 28 : 0) |
			    (in->flags & IN_EVENT_IDX ? 1ULL << 29 : 0) | (in->flags & IN_IN_ORDER ? 1ULL << 35 : 0) |
			    (in->flags & IN_LOG ? 1ULL << 26 : 0),
		.desc = 16ULL * in->desc,
		.avail = 2ULL * in->avail,
		.used = 4ULL * in->used,
		.addr_kind = RING_ADDR_GPA,
		.log = in->flags & IN_LOG ? 1 : 0,
		.log_addr = 4ULL * in->used,
		.iotlb = in->flags & IN_IOTLB ? s.tlb : NULL,
		.inflight = s.inflight,
		.inflight_bytes = s.in.inflight_bytes,
		.call_fd = s.event_fd,
		.err_fd = s.event_fd,
		.news_fd = s.event_fd,
		.base_from_used = in->flags & IN_FROM_USED ? 1 : 0,
	};

	s.nr_held = 0;
	(void)ring_vq_start(s.vq, &cfg);
}

static void add_region(struct region *r)
{
	/* overlaps are refused; which of two is there does not matter */
	r->there = r->there || ring_mem_add_mapped(s.mem, r->mem, gpa_of(r), len_of(r), (uint64_t)r->in.uaddr * GPA_UNIT,
						   r->in.flags & 1 ? RING_MEM_RO : 0) == 0;
}

static void log_on(bool on)
{
	if (on && s.log_fd < 0) {
		s.log_fd = memfd_create("log", MFD_CLOEXEC);
		if (s.log_fd < 0 || ftruncate(s.log_fd, LOG_BYTES) < 0)
			fail("no memory for a log");
		(void)ring_mem_log_set(s.mem, s.log_fd, LOG_BYTES, 0);
	} else if (!on && s.log_fd >= 0) {
		ring_mem_log_clear(s.mem);
		close(s.log_fd);
		s.log_fd = -1;
	}
	if (ring_vq_state(s.vq) == RING_VQ_RUNNING)
		ring_vq_set_logging(s.vq, on, on, 4ULL * s.in.used);
}

/* The guest writes @n bytes at gpa @at, if that is memory. */
static void poke(uint64_t at, uint64_t value, size_t n)
{
	for (uint32_t i = 0; i < s.nr_regions; i++) {
		struct region *r = &s.region[i];
		uint64_t off = at - gpa_of(r);

		if (off < len_of(r) && n <= len_of(r) - off)
			memcpy(r->mem + off, &value, n);
	}
}

static void restart(uint32_t base)
{
	uint32_t own = ring_vq_base(s.vq);

	ring_vq_stop(s.vq);
	start(base ? base : own);
}

static void look(void)
{
	struct ring_vq_stats stats;
	struct ring_iotlb_miss misses[4];
	uint64_t detail;

	ring_vq_stats(s.vq, &stats);
	if (stats.pushed > stats.popped + stats.resubmitted)
		fail("more pushed than popped");
	(void)ring_vq_ready(s.vq);
	(void)ring_vq_error(s.vq, &detail);
	(void)ring_vq_base(s.vq);
	(void)ring_iotlb_misses(s.tlb, misses, 4);
	for (uint32_t i = 0; i < s.nr_regions; i++)
		(void)ring_vq_overlaps(s.vq, s.region[i].mem, len_of(&s.region[i]));
}

static void one_call(const struct call *c)
{
	struct region *r = &s.region[c->a % s.nr_regions];
	int n;

	switch (c->what % NR_CALLS) {
	case POP:
		pop(c->a);
		break;
	case PUSH:
		push(c->a, c->b);
		break;
	case PUSH_OLDEST:
		push(0, c->b | (uint32_t)c->a << 24);
		break;
	case FLUSH:
		(void)ring_vq_flush(s.vq);
		break;
	case UNPOP:
		n = ring_vq_unpop(s.vq, c->a);
		if (n > 0)
			s.nr_held -= (uint32_t)n;	/* the newest: pushes keep the order of the rest */
		break;
	case KICKS:
		if (c->a & 1)
			(void)ring_vq_kicks_on(s.vq);
		else
			ring_vq_kicks_off(s.vq);
		break;
	case POKE8:
		poke(c->b, c->a, 1);
		break;
	case POKE16:
		poke(2ULL * c->b, c->a, 2);
		break;
	case POKE32:
		poke(4ULL * c->b, c->a * 0x01010101ULL, 4);
		break;
	case POKE64:
		poke(8ULL * c->b, 1ULL << (c->a & 63), 8);
		break;
	case AVAIL:	/* more, or fewer, are available */
		poke(2ULL * s.in.avail + 2, ring_vq_base(s.vq) + c->a, 2);
		break;
	case TOUCH:
		touch(c->a, c->b);
		break;
	case RESTART:
		restart(c->b | (uint32_t)c->a << 24);
		break;
	case REMAP:
		if (ring_vq_state(s.vq) == RING_VQ_RUNNING)
			(void)ring_vq_remap(s.vq);
		break;
	case REMOVE:
		if (r->there && !ring_mem_remove(s.mem, gpa_of(r), len_of(r), (uint64_t)r->in.uaddr * GPA_UNIT))
			r->there = false;
		if (ring_vq_state(s.vq) == RING_VQ_RUNNING)
			(void)ring_vq_remap(s.vq);	/* as every user of the library must */
		break;
	case ADD:
		add_region(r);
		if (ring_vq_state(s.vq) == RING_VQ_RUNNING)
			(void)ring_vq_remap(s.vq);
		break;
	case LOG:
		log_on(c->a & 1);
		break;
	case TLB_ADD:
		(void)ring_iotlb_update(s.tlb, 16ULL * c->b, 16ULL * c->a, (uint64_t)r->in.uaddr * GPA_UNIT,
					1 + c->a % 3);
		break;
	case TLB_DEL:
		(void)ring_iotlb_invalidate(s.tlb, 16ULL * c->b, 16ULL * c->a + 1);
		break;
	case BREAK:
		ring_vq_break(s.vq, RING_E_DEVICE, c->b);
		break;
	case LOOK:
		look();
		break;
	}
}

static void set_up(const uint8_t **data, size_t *left)
{
	memset(&s, 0, sizeof(s));
	s.log_fd = -1;
	s.event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	take(data, left, &s.in, sizeof(s.in));
	s.in.size %= 65;	/* the allocator, not the ring, would be busy with more */
	s.nr_regions = 1 + s.in.nr_regions % MAX_REGIONS;
	for (uint32_t i = 0; i < s.nr_regions; i++) {
		take(data, left, &s.region[i].in, sizeof(s.region[i].in));
		s.region[i].in.len %= 1024;
	}
}

static void fill(const uint8_t **data, size_t *left)
{
	s.mem = ring_mem_new();
	s.tlb = ring_iotlb_new();
	if (s.mem == NULL || s.tlb == NULL)
		fail("no memory");
	for (uint32_t i = 0; i < s.nr_regions; i++) {
		struct region *r = &s.region[i];

		r->mem = malloc(len_of(r));
		if (r->mem == NULL)
			fail("no memory");
		take(data, left, r->mem, len_of(r));
		add_region(r);
		/* half of the address space is there from the start: the front-end's addresses, one to one */
		(void)ring_iotlb_update(s.tlb, gpa_of(r), len_of(r), (uint64_t)r->in.uaddr * GPA_UNIT,
					r->in.flags & 2 ? RING_PERM_READ : RING_PERM_READ | RING_PERM_WRITE);
	}
	s.vq = ring_vq_new(s.mem, 0);
	if (s.vq == NULL)
		fail("no memory");
	if (s.in.flags & IN_INFLIGHT) {
		s.inflight = malloc(s.in.inflight_bytes + 1UL);
		if (s.inflight == NULL)
			fail("no memory");
		take(data, left, s.inflight, s.in.inflight_bytes);
	}
	if (s.in.flags & IN_LOG)
		log_on(true);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct call calls[MAX_CALLS];
	uint8_t nr_calls;

	set_up(&data, &size);
	take(&data, &size, &nr_calls, 1);
	take(&data, &size, calls, nr_calls * sizeof(calls[0]));
	fill(&data, &size);
	start(s.in.base);
	for (uint32_t i = 0; i < nr_calls; i++)
		one_call(&calls[i]);
	look();
	log_on(false);
	ring_vq_free(s.vq);
	ring_mem_free(s.mem);
	ring_iotlb_free(s.tlb);
	for (uint32_t i = 0; i < s.nr_regions; i++)
		free(s.region[i].mem);
	free(s.inflight);
	close(s.event_fd);
	return 0;
}

FUZZ_REPLAY(s.popped)
