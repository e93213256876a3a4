/* SPDX-License-Identifier: Apache-2.0 */
/*
 * capture.c - what passes ports, into rings that a thread empties into a file (pcapng.c).
 *
 * Theory of operation
 *   Each interface has a ring of bytes. A worker reserves room by moving @head (compare and swap: rings of a port with
 *   several queue pairs may be filled by several workers), copies the frame and then stores the record's length, which
 *   was 0: that publishes it. The file's thread takes the oldest record of all rings; where a length is 0 it goes no
 *   further. It zeroes what it took and moves @tail. So a worker neither waits nor makes a system call, but for one
 *   write to an eventfd where the thread sleeps: it sleeps only after some milliseconds without frames.
 *
 * Threads: producers are workers; the consumer and everything about files is the thread, which has no lock while it
 * writes; control hands it interfaces and wishes under @lock, which workers do not know.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "devices/net/csrc/capture_int.h"

enum {
	NAP_NS = 1000000,
	NAPS = 20,			/* without a frame, before it sleeps */
	BURST = 4096,			/* records between two looks at what control wants */

	RECORD_PAD = 1,			/* bit 0 of a record's length, which is a multiple of 8: nothing in it */
};

/* --- workers -------------------------------------------------------------------------------------------------- */

static void wake(struct net_capture_file *file)
{
	const uint64_t one = 1;

	if (atomic_exchange(&file->asleep, 0))
		(void)!write(file->event_fd, &one, sizeof(one));	/* cannot fail: the counter is far from full */
}

/* Room for @bytes in one piece, or NULL. */
static struct capture_record *reserve(struct net_capture *c, uint32_t bytes)
{
	uint64_t head = atomic_load_explicit(&c->head, memory_order_relaxed), all;
	uint32_t at, pad;

	do {
		/* pairs with consume(): what was there is zeroed */
		uint64_t tail = atomic_load_explicit(&c->tail, memory_order_acquire);

		at = (uint32_t)head & (c->size - 1);
		pad = at + bytes > c->size ? c->size - at : 0;
		all = (uint64_t)pad + bytes;
		/* a stale head may be behind tail: the exchange fails then */
		if (head >= tail && head - tail + all > c->size)
			return NULL;
	} while (!atomic_compare_exchange_weak_explicit(&c->head, &head, head + all, memory_order_relaxed,
							memory_order_relaxed));
	if (!pad)
		return (struct capture_record *)(void *)(c->ring + at);
	atomic_store_explicit(&((struct capture_record *)(void *)(c->ring + at))->bytes, pad | RECORD_PAD,
			      memory_order_release);
	return (struct capture_record *)(void *)c->ring;
}

void net_capture_frame(struct net_capture *c, const struct net_frame *f, bool out)
{
	uint32_t kept = f->len < c->snaplen ? f->len : c->snaplen;
	uint32_t bytes = (uint32_t)(sizeof(struct capture_record) + kept + 7) & ~7u;
	struct capture_record *record;
	struct timespec now;

	if (!atomic_load_explicit(&c->on, memory_order_relaxed))
		return;
	record = bytes <= c->size / 2 ? reserve(c, bytes) : NULL;
	if (!record) {
		atomic_fetch_add_explicit(&c->lost, 1, memory_order_relaxed);
		return;
	}
	clock_gettime(CLOCK_REALTIME, &now);
	record->len = f->len;
	record->ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	record->kept = kept;
	record->flags = out ? CAPTURE_OUT : CAPTURE_IN;
	net_frame_copy(f, 0, record + 1, kept);
	atomic_fetch_add_explicit(&c->frames, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&c->bytes, f->len, memory_order_relaxed);
	atomic_store_explicit(&record->bytes, bytes, memory_order_release);
	shm_mb();	/* the record before the look at asleep; pairs with sleep_until_woken() */
	if (net_unlikely(atomic_load_explicit(&c->file->asleep, memory_order_relaxed)))
		wake(c->file);
}

/* --- the thread: its loop ------------------------------------------------------------------------------------- */

static void consume(struct net_capture *c, struct capture_record *r)
{
	uint32_t bytes = atomic_load_explicit(&r->bytes, memory_order_relaxed) & ~7u;

	memset((void *)r, 0, bytes);
	/* pairs with reserve() */
	atomic_fetch_add_explicit(&c->tail, bytes, memory_order_release);
}

/* The next record of an interface, or NULL. */
static struct capture_record *peek(struct net_capture *c)
{
	for (;;) {
		uint64_t tail = atomic_load_explicit(&c->tail, memory_order_relaxed);
		struct capture_record *r = (struct capture_record *)(void *)(c->ring + (tail & (c->size - 1)));
		/* pairs with the store that published it */
		uint32_t bytes = atomic_load_explicit(&r->bytes, memory_order_acquire);

		if (!bytes)
			return NULL;
		if (!(bytes & RECORD_PAD))
			return r;
		consume(c, r);
	}
}

/* At most BURST records, the oldest of all interfaces first. Are there any? */
static bool drain(struct net_capture_file *file)
{
	int n = 0;

	while (n < BURST) {
		uint64_t first_ns = UINT64_MAX, limit = UINT64_MAX;
		struct net_capture *first = NULL;
		struct capture_record *r;

		for (struct net_capture *c = file->list; c; c = c->next) {
			r = peek(c);
			if (r && r->ns < first_ns) {
				limit = first_ns;
				first_ns = r->ns;
				first = c;
			} else if (r && r->ns < limit) {
				limit = r->ns;
			}
		}
		if (!first)
			break;
		for (; n < BURST && (r = peek(first)) && r->ns <= limit; n++) {
			pcapng_record(file, first, r);
			consume(first, r);
		}
	}
	return n > 0;
}

static void free_interface(struct net_capture *c)
{
	munmap(c->ring, c->size);
	free(c);
}

/* Interfaces that no port has, and that are empty. */
static void drop_gone(struct net_capture_file *file)
{
	struct net_capture **at = &file->list, *c;

	while ((c = *at)) {
		bool gone = atomic_load(&c->gone);	/* before the last look at its ring */

		if (!gone || peek(c)) {
			at = &c->next;
			continue;
		}
		if (!capture_failed(file))
			pcapng_statistics(file, c);
		*at = c->next;
		free_interface(c);
	}
}

static bool any_ready(const struct net_capture_file *file)
{
	for (const struct net_capture *c = file->list; c; c = c->next) {
		const struct capture_record *r = (const void *)(c->ring + (atomic_load(&c->tail) & (c->size - 1)));

		if (atomic_load_explicit(&r->bytes, memory_order_acquire) || atomic_load(&c->gone))
			return true;
	}
	return false;
}

/* Nothing came for a while: sleep until something does. */
static void sleep_until_woken(struct net_capture_file *file)
{
	struct pollfd fd = { .fd = file->event_fd, .events = POLLIN };
	uint64_t count;
	bool ready;

	atomic_store(&file->asleep, 1);
	shm_mb();	/* asleep before the look at rings and wishes; pairs with net_capture_frame() and poke() */
	pthread_mutex_lock(&file->lock);
	ready = file->stop || file->want != file->done || file->fresh;
	pthread_mutex_unlock(&file->lock);
	if (!ready && !any_ready(file))
		(void)poll(&fd, 1, -1);
	atomic_store(&file->asleep, 0);
	(void)!read(file->event_fd, &count, sizeof(count));
}

/* New interfaces and wishes. True: stop. */
static bool look_at_control(struct net_capture_file *file)
{
	struct net_capture *c;
	bool stop;

	pthread_mutex_lock(&file->lock);
	stop = file->stop;
	while ((c = file->fresh)) {
		file->fresh = c->next;
		c->next = file->list;
		file->list = c;
	}
	if (file->syncing == file->done && file->want != file->done) {
		file->syncing = file->want;
		for (c = file->list; c; c = c->next)
			c->target = atomic_load(&c->head);
	}
	pthread_mutex_unlock(&file->lock);
	return stop;
}

/* A sync is done when all that was reserved before it has been taken and written. */
static void look_at_sync(struct net_capture_file *file)
{
	if (file->syncing == file->done)	/* nobody else writes either */
		return;
	for (const struct net_capture *c = file->list; c; c = c->next) {
		if (atomic_load_explicit(&c->tail, memory_order_relaxed) < c->target)
			return;
	}
	pcapng_flush(file);
	pthread_mutex_lock(&file->lock);
	file->done = file->syncing;
	pthread_cond_broadcast(&file->synced);
	pthread_mutex_unlock(&file->lock);
}

static void *run(void *arg)
{
	const struct timespec nap = { .tv_nsec = NAP_NS };
	struct net_capture_file *file = arg;
	int naps = 0;

	for (;;) {
		bool stop = look_at_control(file);
		bool any;

		pcapng_interfaces(file);	/* a file without frames is one that can be read, too */
		any = drain(file);

		drop_gone(file);
		look_at_sync(file);
		if (any) {
			naps = 0;
			continue;
		}
		pcapng_flush(file);
		if (stop)
			return NULL;
		if (naps < NAPS) {
			naps++;
			nanosleep(&nap, NULL);
		} else {
			naps = 0;
			sleep_until_woken(file);
		}
	}
}

/* --- control -------------------------------------------------------------------------------------------------- */

static int start_thread(struct net_capture_file *file)
{
	sigset_t all, old;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	error = pthread_create(&file->thread, NULL, run, file);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (!error)
		pthread_setname_np(file->thread, "vhost-capture");
	return error;
}

struct net_capture_file *net_capture_open(const char *path, const struct net_capture_options *options, int *error)
{
	struct net_capture_file *file;

	*error = ENAMETOOLONG;
	if (strlen(path) >= NET_CAPTURE_PATH)
		return NULL;
	*error = EINVAL;
	if (options->ring_bytes < NET_CAPTURE_RING_MIN || options->ring_bytes > NET_CAPTURE_RING_MAX ||
	    options->ring_bytes & (options->ring_bytes - 1))
		return NULL;
	*error = ENOMEM;
	file = calloc(1, sizeof(*file));
	if (!file)
		return NULL;
	file->options = *options;
	strcpy(file->path, path);
	file->fd = -1;
	pthread_mutex_init(&file->lock, NULL);
	pthread_cond_init(&file->synced, NULL);
	file->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	*error = file->event_fd < 0 ? errno : pcapng_open_next(file);
	if (!*error)
		*error = start_thread(file);
	if (!*error)
		return file;
	if (file->fd >= 0)
		close(file->fd);
	if (file->event_fd >= 0)
		close(file->event_fd);
	free(file);
	return NULL;
}

static void poke(struct net_capture_file *file)
{
	shm_mb();
	wake(file);
}

int net_capture_close(struct net_capture_file *file)
{
	struct net_capture *c;
	int error;

	pthread_mutex_lock(&file->lock);
	file->stop = true;
	pthread_mutex_unlock(&file->lock);
	poke(file);
	pthread_join(file->thread, NULL);
	(void)look_at_control(file);	/* interfaces that came after its last look */
	pcapng_interfaces(file);
	if (!capture_failed(file)) {
		for (c = file->list; c; c = c->next)
			pcapng_statistics(file, c);
	}
	pcapng_end_file(file);
	while ((c = file->list)) {
		file->list = c->next;
		free_interface(c);
	}
	error = atomic_load(&file->error);
	close(file->event_fd);
	pthread_cond_destroy(&file->synced);
	pthread_mutex_destroy(&file->lock);
	free(file);
	return error;
}

struct net_capture *net_capture_add(struct net_capture_file *file, const char *name)
{
	struct net_capture *c = aligned_alloc(64, (sizeof(*c) + 63) & ~63ul);

	if (!c)
		return NULL;
	memset(c, 0, sizeof(*c));
	c->size = file->options.ring_bytes;
	c->ring = mmap(NULL, c->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (c->ring == MAP_FAILED) {
		free(c);
		return NULL;
	}
	c->file = file;
	c->snaplen = NET_FRAME_MAX;
	if (file->options.snaplen && file->options.snaplen < NET_FRAME_MAX)
		c->snaplen = file->options.snaplen;
	c->id = CAPTURE_NO_ID;
	c->on = 1;
	snprintf(c->name, sizeof(c->name), "%s", name);
	pthread_mutex_lock(&file->lock);
	c->next = file->fresh;
	file->fresh = c;
	pthread_mutex_unlock(&file->lock);
	return c;
}

void net_capture_remove(struct net_capture *c)
{
	struct net_capture_file *file = c->file;

	atomic_store(&c->gone, true);	/* the thread may free it from here on */
	poke(file);
}

void net_capture_set_on(struct net_capture *c, int on)
{
	atomic_store_explicit(&c->on, on != 0, memory_order_relaxed);
}

void net_capture_stats(const struct net_capture *c, struct net_capture_stats *out)
{
	out->frames = atomic_load_explicit(&c->frames, memory_order_relaxed);
	out->bytes = atomic_load_explicit(&c->bytes, memory_order_relaxed);
	out->lost = atomic_load_explicit(&c->lost, memory_order_relaxed);
}

void net_capture_file_stats(const struct net_capture_file *file, struct net_capture_file_stats *out)
{
	out->bytes = atomic_load_explicit(&file->written, memory_order_relaxed);
	out->files = atomic_load_explicit(&file->files, memory_order_relaxed);
	out->error = atomic_load_explicit(&file->error, memory_order_relaxed);
}

void net_capture_sync(struct net_capture_file *file)
{
	uint64_t mine;

	pthread_mutex_lock(&file->lock);
	mine = ++file->want;
	pthread_mutex_unlock(&file->lock);
	poke(file);
	pthread_mutex_lock(&file->lock);
	while (file->done < mine)
		pthread_cond_wait(&file->synced, &file->lock);
	pthread_mutex_unlock(&file->lock);
}

void net_port_set_capture(struct net_port *port, struct net_capture *c)
{
	port->capture = c;
}
