/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uring.c - see uring.h.
 *
 * Every entry handed out comes back as exactly one completion; multishot operations are not used. That makes
 * issued - done the number of operations under way.
 */
#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "ring/csrc/uring.h"
#include "ring/csrc/vq.h"

#define PIN_UNTRIED INT_MIN

static int setup(struct io_uring *ring, unsigned entries, unsigned flags)
{
	struct io_uring_params p;

	memset(&p, 0, sizeof(p));
	p.flags = flags | IORING_SETUP_CQSIZE;
	p.cq_entries = entries * 4 > URING_CQ_MIN ? entries * 4 : URING_CQ_MIN;
	return io_uring_queue_init_params(entries, ring, &p);
}

void ring_uring_probe(struct ring_uring *u, unsigned entries)
{
	/* from the best to what every kernel with io_uring takes */
	static const unsigned tries[] = {
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN |
			IORING_SETUP_TASKRUN_FLAG,
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		0,
	};
	struct io_uring ring;
	size_t i;

	u->entries = 0;
	if (!entries)
		return;
	for (i = 0; i < sizeof(tries) / sizeof(tries[0]); i++) {
		int rc = setup(&ring, entries, tries[i]);

		if (rc == -EINVAL)
			continue;	/* a flag this kernel does not know */
		if (rc < 0)
			return;
		/* older than 5.7: reads could block the submitter, and a full completion queue lose events */
		if ((ring.features & IORING_FEAT_FAST_POLL) && (ring.features & IORING_FEAT_NODROP)) {
			u->flags = tries[i];
			u->entries = entries;
		}
		io_uring_queue_exit(&ring);
		return;
	}
}

int ring_uring_open(struct ring_uring *u)
{
	int rc;

	if (!u->entries)
		return 0;
	u->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (u->event_fd < 0)
		return -errno;
	rc = setup(&u->ring, u->entries, u->flags);
	if (rc == 0) {
		rc = io_uring_register_eventfd(&u->ring, u->event_fd);
		if (rc < 0)
			io_uring_queue_exit(&u->ring);
	}
	if (rc < 0) {
		close(u->event_fd);
		return rc;
	}
	ring_uring_deaf(u);
	u->live = true;
	u->issued = 0;
	u->done = 0;
	memset(u->files, 0, sizeof(u->files));
	u->buffers_asked = false;
	/* refused where RLIMIT_NOFILE is smaller, or by kernels before 5.19: plain fds do then */
	u->have_files = io_uring_register_files_sparse(&u->ring, URING_FILES) == 0;
	return 0;
}

void ring_uring_close(struct ring_uring *u)
{
	if (!u->live)
		return;
	/* now; a ring's own end comes later, from a work queue */
	if (u->have_files)
		io_uring_unregister_files(&u->ring);
	if (u->buffers_asked && !u->buffers_error)
		io_uring_unregister_buffers(&u->ring);
	while (u->pins) {
		struct ring_pins *pins = u->pins;

		u->pins = pins->next;
		free(pins);
	}
	io_uring_queue_exit(&u->ring);
	close(u->event_fd);
	u->live = false;
}

int ring_uring_file(struct ring_uring *u, struct ring_source *owner, int fd)
{
	int slot;
	int rc;

	if (!u->live || !u->have_files)
		return -ENXIO;
	for (slot = 0; slot < URING_FILES && u->files[slot].owner; slot++)
		;
	if (slot == URING_FILES)
		return -ENFILE;
	rc = io_uring_register_files_update(&u->ring, (unsigned)slot, &fd, 1);
	if (rc < 0)
		return rc;
	u->files[slot].owner = owner;
	return slot;
}

static void drop_files(struct ring_uring *u, const struct ring_source *owner)
{
	int none = -1;
	unsigned slot;

	for (slot = 0; slot < URING_FILES; slot++) {
		if (u->files[slot].owner != owner)
			continue;
		u->files[slot].owner = NULL;
		if (u->live)
			io_uring_register_files_update(&u->ring, slot, &none, 1);
	}
}

/* --- registered buffers ----------------------------------------------------------------------------------------- */

/*
 * Whether the memory can be pinned at all: not what is mapped for reading (the kernel pins for writing), nor what comes
 * from another host page by page (it would be waited for).
 */
static bool pinnable(const struct ring_region *r)
{
	return !(r->flags & (RING_MEM_RO | RING_MEM_NOTOUCH));
}

/* Once per change of a memory: the allocation is not on the way of requests. */
static struct ring_pins *make_pins(const struct ring_memtab *tab)
{
	struct ring_pins *pins;
	uint64_t nr = 0;
	uint32_t i;

	for (i = 0; i < tab->nr; i++) {
		if (pinnable(&tab->by_gpa[i]))
			nr += (tab->by_gpa[i].len - 1) / URING_CHUNK + 1;
	}
	if (nr > URING_BUFFERS)	/* a file may be as big as a front-end likes, it costs nothing */
		nr = URING_BUFFERS;
	pins = calloc(1, sizeof(*pins) + nr * sizeof(pins->pin[0]));
	if (!pins)
		return NULL;
	pins->gen = tab->gen;
	for (i = 0; i < tab->nr; i++) {
		const struct ring_region *r = &tab->by_gpa[tab->by_hva[i]];
		uint64_t at;

		for (at = 0; pinnable(r) && at < r->len && pins->nr < nr; at += URING_CHUNK) {
			struct ring_pin *pin = &pins->pin[pins->nr++];

			pin->base = (uintptr_t)r->hva + at;
			pin->len = r->len - at < URING_CHUNK ? r->len - at : URING_CHUNK;
			pin->slot = PIN_UNTRIED;
		}
	}
	return pins;
}

static void unpin(struct ring_uring *u, struct ring_source *source)
{
	struct ring_pins *pins = source->pins;
	struct ring_pins **link = &u->pins;
	struct iovec none = { NULL, 0 };
	__u64 tag = 0;
	uint32_t i;

	source->pins = NULL;
	if (!pins || --pins->users)
		return;
	while (*link != pins)
		link = &(*link)->next;
	*link = pins->next;
	for (i = 0; i < pins->nr; i++) {
		int slot = pins->pin[i].slot;

		if (slot < 0)
			continue;
		/* operations under way keep the pages till they end */
		io_uring_register_buffers_update_tag(&u->ring, (unsigned)slot, &none, &tag, 1);
		u->free_buffers[u->nr_free_buffers++] = (uint16_t)slot;
	}
	free(pins);
}

/* The table of buffers, once. Kernels before 5.19 have none that starts empty. */
static int ask_for_table(struct ring_uring *u)
{
	uint32_t i;

	if (u->buffers_asked)
		return u->buffers_error;
	u->buffers_asked = true;
	u->buffers_error = io_uring_register_buffers_sparse(&u->ring, URING_BUFFERS);
	for (i = 0; i < URING_BUFFERS; i++)
		u->free_buffers[i] = (uint16_t)(URING_BUFFERS - 1 - i);
	u->nr_free_buffers = URING_BUFFERS;
	return u->buffers_error;
}

static int share_pins(struct ring_uring *u, struct ring_source *source)
{
	const struct ring_memtab *tab = source->vq->mem->tab;
	struct ring_pins *pins = u->pins;
	int rc = ask_for_table(u);

	if (rc < 0)
		return rc;
	while (pins && pins->gen != tab->gen)
		pins = pins->next;
	if (!pins) {
		pins = make_pins(tab);
		if (!pins)
			return -ENOMEM;
		pins->next = u->pins;
		u->pins = pins;
	}
	pins->users++;
	source->pins = pins;
	return 0;
}

static struct ring_pin *find_pin(struct ring_pins *pins, uintptr_t at)
{
	uint32_t from = 0, to = pins->nr;

	if (!pins->nr)
		return NULL;
	if (at - pins->pin[pins->last].base < pins->pin[pins->last].len)
		return &pins->pin[pins->last];
	while (to - from > 1) {
		uint32_t mid = from + (to - from) / 2;

		if (pins->pin[mid].base <= at)
			from = mid;
		else
			to = mid;
	}
	if (at - pins->pin[from].base >= pins->pin[from].len)
		return NULL;
	pins->last = from;
	return &pins->pin[from];
}

static void pin_now(struct ring_uring *u, struct ring_pin *pin)
{
	struct iovec iov = { (void *)pin->base, pin->len };
	__u64 tag = 0;
	int rc;

	if (!u->nr_free_buffers) {
		pin->slot = -ENOENT;
		return;
	}
	pin->slot = u->free_buffers[u->nr_free_buffers - 1];
	rc = io_uring_register_buffers_update_tag(&u->ring, (unsigned)pin->slot, &iov, &tag, 1);
	if (rc == 1)
		u->nr_free_buffers--;
	else
		pin->slot = rc < 0 ? rc : -EFAULT;
}

int ring_uring_buffer(struct ring_uring *u, struct ring_source *source, const void *base, size_t len)
{
	uintptr_t at = (uintptr_t)base;
	struct ring_pin *pin;
	int rc;

	if (!u->live || !source->vq)
		return -ENOENT;
	ring_uring_unpin_changed(u, source);
	if (vq_unlikely(!source->pins)) {
		rc = share_pins(u, source);
		if (rc < 0)
			return rc;
	}
	pin = find_pin(source->pins, at);
	if (!pin || len > pin->len - (at - pin->base))
		return -ENOENT;
	if (vq_unlikely(pin->slot == PIN_UNTRIED))
		pin_now(u, pin);
	return pin->slot;
}

void ring_uring_unpin_changed(struct ring_uring *u, struct ring_source *source)
{
	if (source->pins && source->pins->gen != source->vq->mem->tab->gen)
		unpin(u, source);
}

void ring_uring_drop(struct ring_uring *u, struct ring_source *source)
{
	drop_files(u, source);
	if (u->live)
		unpin(u, source);
}

unsigned ring_uring_reap(struct ring_uring *u)
{
	struct io_uring_cqe *cqes[URING_REAP];
	unsigned total = 0;
	unsigned n, i;

	do {
		/* also runs deferred task work, where the kernel says that there is some */
		n = io_uring_peek_batch_cqe(&u->ring, cqes, URING_REAP);
		for (i = 0; i < n; i++) {
			struct ring_io *io = io_uring_cqe_get_data(cqes[i]);

			io->done(io, cqes[i]->res);
		}
		io_uring_cq_advance(&u->ring, n);
		u->done += n;
		total += n;
	} while (n == URING_REAP && total < 4 * URING_REAP);
	return total;
}

int ring_uring_submit(struct ring_uring *u)
{
	if (!io_uring_sq_ready(&u->ring))
		return 0;
	/* what the kernel does not take now (out of memory, completions overflowed) stays for the next time */
	if (u->flags & IORING_SETUP_DEFER_TASKRUN)
		io_uring_submit_and_get_events(&u->ring);
	else
		io_uring_submit(&u->ring);
	return 1;
}

struct io_uring_sqe *ring_uring_sqe(struct ring_uring *u)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

	if (!sqe) {
		io_uring_submit(&u->ring);
		sqe = io_uring_get_sqe(&u->ring);
		if (!sqe)
			return NULL;
	}
	u->issued++;
	return sqe;
}

bool ring_uring_listen(struct ring_uring *u)
{
	io_uring_cq_eventfd_toggle(&u->ring, true);
	/* pairs with the kernel, which posts (or marks deferred work) before it looks whether we listen */
	atomic_thread_fence(memory_order_seq_cst);
	return io_uring_cq_ready(&u->ring) ||
	       (IO_URING_READ_ONCE(*u->ring.sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW));
}

void ring_uring_deaf(struct ring_uring *u)
{
	io_uring_cq_eventfd_toggle(&u->ring, false);
}
