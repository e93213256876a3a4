/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pcapng.c - blocks and files (draft-ietf-opsawg-pcapng). A file is a section; what a reader needs to understand it is
 * in it: interfaces are described again in the next one. Blocks are gathered in a buffer and written whole.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "devices/net/csrc/capture_int.h"

enum {
	BLOCK_MAX = 128 * 1024,		/* the largest block, with room to spare */

	/* blocks and options of pcapng */
	PCAPNG_SECTION = 0x0a0d0d0a,
	PCAPNG_INTERFACE = 1,
	PCAPNG_STATISTICS = 5,
	PCAPNG_PACKET = 6,
	PCAPNG_MAGIC = 0x1a2b3c4d,
	PCAPNG_ETHERNET = 1,
	OPT_END = 0,
	OPT_USERAPPL = 4,
	OPT_IF_NAME = 2,
	OPT_IF_TSRESOL = 9,
	OPT_EPB_FLAGS = 2,
	OPT_EPB_DROPCOUNT = 4,
	OPT_ISB_IFRECV = 4,
	OPT_ISB_IFDROP = 5,
};

/* --- blocks --------------------------------------------------------------------------------------------------- */

static void fail(struct net_capture_file *file, int error)
{
	if (!capture_failed(file))
		atomic_store_explicit(&file->error, error, memory_order_relaxed);
	file->used = 0;
}

static bool stopping(struct net_capture_file *file)
{
	bool stop;

	pthread_mutex_lock(&file->lock);
	stop = file->stop;
	pthread_mutex_unlock(&file->lock);
	return stop;
}

/* A pipe that is full: wait for its reader, unless we are to stop. */
static bool wait_writable(struct net_capture_file *file)
{
	struct pollfd fd = { .fd = file->fd, .events = POLLOUT };

	while (!stopping(file)) {
		if (poll(&fd, 1, 100) > 0)
			return true;
	}
	return false;
}

void pcapng_flush(struct net_capture_file *file)
{
	uint32_t at = 0;

	if (capture_failed(file))
		file->used = 0;
	while (at < file->used) {
		ssize_t n = write(file->fd, file->buffer + at, file->used - at);

		if (n >= 0) {
			at += (uint32_t)n;
			continue;
		}
		if (errno == EINTR || (errno == EAGAIN && wait_writable(file)))
			continue;
		/* readers want whole blocks */
		if (file->regular)
			(void)!ftruncate(file->fd, (off_t)file->in_file);
		fail(file, errno);
		return;
	}
	file->in_file += at;
	atomic_fetch_add_explicit(&file->written, at, memory_order_relaxed);
	file->used = 0;
}

static void put(struct net_capture_file *file, const void *p, uint32_t n)
{
	memcpy(file->buffer + file->used, p, n);
	file->used += n;
}

static void put32(struct net_capture_file *file, uint32_t v)
{
	put(file, &v, sizeof(v));
}

static void put_padded(struct net_capture_file *file, const void *p, uint32_t n)
{
	static const uint8_t zeros[4];

	put(file, p, n);
	put(file, zeros, -n & 3);
}

static void put_option(struct net_capture_file *file, uint16_t code, const void *p, uint16_t n)
{
	put32(file, code | (uint32_t)n << 16);
	put_padded(file, p, n);
}

/* A block begins at what this returns; its length is filled in by end_block(). */
static uint32_t begin_block(struct net_capture_file *file, uint32_t type)
{
	uint32_t at;

	if (file->used > CAPTURE_BUFFER - BLOCK_MAX)
		pcapng_flush(file);
	at = file->used;
	put32(file, type);
	put32(file, 0);
	return at;
}

static void end_block(struct net_capture_file *file, uint32_t at)
{
	uint32_t len = file->used + 4 - at;

	put32(file, len);
	memcpy(file->buffer + at + 4, &len, sizeof(len));
}

static void put_time(struct net_capture_file *file, uint64_t ns)
{
	put32(file, (uint32_t)(ns >> 32));
	put32(file, (uint32_t)ns);
}

static void put_section(struct net_capture_file *file)
{
	static const char us[] = "vhostkit";
	static const uint16_t version[2] = { 1, 0 };
	static const int64_t unknown = -1;
	uint32_t at = begin_block(file, PCAPNG_SECTION);

	put32(file, PCAPNG_MAGIC);
	put(file, version, sizeof(version));
	put(file, &unknown, sizeof(unknown));
	put_option(file, OPT_USERAPPL, us, sizeof(us) - 1);
	put32(file, OPT_END);
	end_block(file, at);
}

static void put_interface(struct net_capture_file *file, struct net_capture *c)
{
	static const uint8_t nanoseconds = 9;
	uint32_t at = begin_block(file, PCAPNG_INTERFACE);

	put32(file, PCAPNG_ETHERNET);
	put32(file, file->options.snaplen);
	put_option(file, OPT_IF_NAME, c->name, (uint16_t)strlen(c->name));
	put_option(file, OPT_IF_TSRESOL, &nanoseconds, 1);
	put32(file, OPT_END);
	end_block(file, at);
	c->id = file->nr_ids++;
}

void pcapng_interfaces(struct net_capture_file *file)
{
	struct net_capture *c;

	for (c = file->list; c && !capture_failed(file); c = c->next) {
		if (c->id == CAPTURE_NO_ID)
			put_interface(file, c);
	}
}

void pcapng_statistics(struct net_capture_file *file, const struct net_capture *c)
{
	uint64_t lost = atomic_load_explicit(&c->lost, memory_order_relaxed);
	uint64_t seen = atomic_load_explicit(&c->frames, memory_order_relaxed) + lost;
	struct timespec now;
	uint32_t at;

	if (c->id == CAPTURE_NO_ID)
		return;
	clock_gettime(CLOCK_REALTIME, &now);
	at = begin_block(file, PCAPNG_STATISTICS);
	put32(file, c->id);
	put_time(file, (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
	put_option(file, OPT_ISB_IFRECV, &seen, sizeof(seen));
	put_option(file, OPT_ISB_IFDROP, &lost, sizeof(lost));
	put32(file, OPT_END);
	end_block(file, at);
}

static void put_packet(struct net_capture_file *file, struct net_capture *c, const struct capture_record *r)
{
	uint64_t lost = atomic_load_explicit(&c->lost, memory_order_relaxed);
	uint32_t at = begin_block(file, PCAPNG_PACKET);

	put32(file, c->id);
	put_time(file, r->ns);
	put32(file, r->kept);
	put32(file, r->len);
	put_padded(file, r + 1, r->kept);
	put_option(file, OPT_EPB_FLAGS, &r->flags, sizeof(r->flags));
	if (lost != c->lost_told) {
		uint64_t since = lost - c->lost_told;

		put_option(file, OPT_EPB_DROPCOUNT, &since, sizeof(since));
		c->lost_told = lost;
	}
	put32(file, OPT_END);
	end_block(file, at);
}

/* --- files ---------------------------------------------------------------------------------------------------- */

/* The name of file @number: FILE, or with a ring of files its number before the suffix. */
static void name_of(const struct net_capture_file *file, uint32_t number, char *name, size_t size)
{
	const char *base = strrchr(file->path, '/'), *dot = strrchr(base ? base : file->path, '.');
	int stem;

	if (!dot || dot == file->path || dot[-1] == '/')
		dot = file->path + strlen(file->path);
	stem = (int)(dot - file->path);
	if (file->options.file_bytes)
		snprintf(name, size, "%.*s-%05u%s", stem, file->path, number, dot);
	else
		snprintf(name, size, "%s", file->path);
}

/* 0 or errno. */
int pcapng_open_next(struct net_capture_file *file)
{
	char name[NET_CAPTURE_PATH + 16];
	struct stat st;

	name_of(file, file->number + 1, name, sizeof(name));
	/* what passes a port is nobody else's business; a pipe without a reader is refused and not waited for */
	file->fd = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0600);
	if (file->fd < 0)
		return errno;
	file->regular = fstat(file->fd, &st) == 0 && S_ISREG(st.st_mode);
	file->number++;
	file->in_file = 0;
	file->nr_ids = 0;
	atomic_fetch_add_explicit(&file->files, 1, memory_order_relaxed);
	put_section(file);
	if (file->options.file_bytes && file->options.files && file->number > file->options.files) {
		name_of(file, file->number - file->options.files, name, sizeof(name));
		(void)unlink(name);	/* somebody else may have moved it */
	}
	return 0;
}

void pcapng_end_file(struct net_capture_file *file)
{
	pcapng_flush(file);
	if (file->fd >= 0 && close(file->fd) < 0)
		fail(file, errno);
	file->fd = -1;
}

/* The next file of the ring. */
static void rotate(struct net_capture_file *file)
{
	struct net_capture *c;
	int error;

	for (c = file->list; c; c = c->next)
		pcapng_statistics(file, c);
	pcapng_end_file(file);
	for (c = file->list; c; c = c->next)
		c->id = CAPTURE_NO_ID;
	error = capture_failed(file) ? 0 : pcapng_open_next(file);
	if (error)
		fail(file, error);
}

void pcapng_record(struct net_capture_file *file, struct net_capture *c, const struct capture_record *r)
{
	uint64_t limit = file->options.file_bytes;

	if (limit && !capture_failed(file) && file->in_file + file->used >= limit)
		rotate(file);
	if (!capture_failed(file) && c->id == CAPTURE_NO_ID)
		put_interface(file, c);
	if (!capture_failed(file)) {
		put_packet(file, c, r);
		return;
	}
	atomic_fetch_add_explicit(&c->lost, 1, memory_order_relaxed);
	atomic_fetch_sub_explicit(&c->frames, 1, memory_order_relaxed);
	atomic_fetch_sub_explicit(&c->bytes, r->len, memory_order_relaxed);
}
