/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes, reads, discards and zeroes a vhost-user-blk disk through libblkio and compares all it reads.
 *
 *	blkio_client PATH [queues=N] [poll-queues=N] [queue-size=N] [depth=N] [requests=N] [seed=N] [regions=N]
 *			[events=0|1] [read-only=0|1] [discard=0|1] [block=512] [wipe=0|1]
 *
 * The disk must read as zeroes at first, unless it is to be wiped. Each request in flight has a slice of the disk and of the memory to itself,
 * so what a read must give is known. Prints one line of facts and ends with 0, or one line of what is wrong and 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <blkio.h>

#define SECTOR 512u		/* the unit of all accounts; requests are multiples of block= */
#define SLICE 256u		/* most sectors of a slice: 128 KiB */
#define MOST_IOV 4
#define UNKNOWN UINT32_MAX	/* a discarded sector: may read as anything */
#define TIMEOUT_MS 20000

enum what { READ, WRITE, ZERO, DISCARD, FLUSH };

struct slot {
	struct queue *queue;
	uint64_t first;			/* sector of its slice */
	uint8_t *memory;
	struct iovec iov[MOST_IOV];
	enum what what;
	uint32_t at, count;		/* of the request, sectors in the slice */
	uint32_t version;		/* of what it writes */
	uint32_t holds[SLICE];		/* version of each sector; 0: zeroes */
};

struct queue {
	struct blkioq *q;
	int polled;
	int in_flight;
};

static struct {
	const char *path;
	int queues, poll_queues, queue_size, depth, requests, seed, regions, events, read_only, discard, block, wipe;
} opt = { .block = 512, .queues = 1, .depth = 8, .requests = 2000, .seed = 1, .regions = 1, .discard = 1 };

static struct blkio *disk;
static struct queue queues[64];
static struct slot *slots;
static int num_queues, num_slots;
static uint32_t slice;			/* sectors per slot */
static uint64_t rng, done[5];

static void __attribute__((noreturn, format(printf, 1, 2))) fail(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	exit(1);
}

static void check(int ret, const char *what)
{
	if (ret < 0)
		fail("%s: %s: %s", what, strerror(-ret), blkio_get_error_msg());
}

static uint32_t any(uint32_t below)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return (uint32_t)(rng >> 32) % below;
}

/* What word `i` of `sector` holds after write number `version`. */
static uint64_t word(uint64_t sector, uint32_t version, uint32_t i)
{
	uint64_t x = (sector << 32 | version) * 0x9e3779b97f4a7c15u + i;

	return version ? x ^ x >> 29 : 0;
}

static void fill(uint8_t *at, uint64_t sector, uint32_t version)
{
	for (uint32_t i = 0; i < SECTOR / 8; i++) {
		uint64_t value = word(sector, version, i);

		memcpy(at + 8 * i, &value, 8);
	}
}

static void compare(const uint8_t *at, uint64_t sector, uint32_t version)
{
	for (uint32_t i = 0; version != UNKNOWN && i < SECTOR / 8; i++) {
		uint64_t value;

		memcpy(&value, at + 8 * i, 8);
		if (value != word(sector, version, i))
			fail("sector %" PRIu64 " word %u reads %016" PRIx64 ", not %016" PRIx64 " (write %u)", sector, i,
			     value, word(sector, version, i), version);
	}
}

/* Cut the request's memory into one to four pieces. Returns their number. */
static int scatter(struct slot *slot)
{
	uint32_t unit = (uint32_t)opt.block / SECTOR, left = slot->count, at = 0;
	int n = 0;

	while (left) {
		uint32_t part = n == MOST_IOV - 1 ? left : (1 + any(left / unit)) * unit;

		slot->iov[n].iov_base = slot->memory + (size_t)at * SECTOR;
		slot->iov[n++].iov_len = (size_t)part * SECTOR;
		at += part;
		left -= part;
	}
	return n;
}

static void submit(struct slot *slot, enum what what, uint32_t at, uint32_t count)
{
	struct blkioq *q = slot->queue->q;
	uint64_t offset = (slot->first + at) * SECTOR;
	uint64_t length = (uint64_t)count * SECTOR;

	slot->what = what;
	slot->at = at;
	slot->count = count;
	slot->version++;
	slot->queue->in_flight++;
	switch (what) {
	case READ:
		memset(slot->memory, 0xa5, length);
		blkioq_readv(q, offset, slot->iov, scatter(slot), slot, 0);
		break;
	case WRITE:
		for (uint32_t i = 0; i < count; i++)
			fill(slot->memory + (size_t)i * SECTOR, slot->first + at + i, slot->version);
		blkioq_writev(q, offset, slot->iov, scatter(slot), slot, any(8) ? 0 : BLKIO_REQ_FUA);
		break;
	case ZERO:
		blkioq_write_zeroes(q, offset, length, slot, any(2) ? BLKIO_REQ_NO_UNMAP : 0);
		break;
	case DISCARD:
		blkioq_discard(q, offset, length, slot, 0);
		break;
	case FLUSH:
		blkioq_flush(q, slot, 0);
		break;
	}
}

static void completed(const struct blkio_completion *completion)
{
	struct slot *slot = completion->user_data;

	if (completion->ret)
		fail("request kind %d of %u sectors at %" PRIu64 ": %s (%s)", slot->what, slot->count,
		     slot->first + slot->at, strerror(-completion->ret),
		     completion->error_msg ? completion->error_msg : "no words");
	slot->queue->in_flight--;
	done[slot->what]++;
	for (uint32_t i = slot->at; i < slot->at + slot->count; i++) {
		if (slot->what == READ)
			compare(slot->memory + (size_t)(i - slot->at) * SECTOR, slot->first + i, slot->holds[i]);
		else if (slot->what == WRITE)
			slot->holds[i] = slot->version;
		else if (slot->what == ZERO)
			slot->holds[i] = 0;
		else if (slot->what == DISCARD)
			slot->holds[i] = UNKNOWN;
	}
}

static void next(struct slot *slot)
{
	uint32_t unit = (uint32_t)opt.block / SECTOR, blocks = slice / unit, from = any(blocks);
	uint32_t at = from * unit, count = (1 + any(blocks - from)) * unit, dice = any(100);

	if (opt.read_only || dice < 45)
		submit(slot, READ, at, count);
	else if (dice < 85 || !opt.discard)
		submit(slot, WRITE, at, count);
	else if (dice < 92)
		submit(slot, ZERO, at, count);
	else if (dice < 97)
		submit(slot, DISCARD, at, count);
	else
		submit(slot, FLUSH, 0, 0);
}

/* Take what came back on `queue`, waiting for one. Returns their number in `out`. */
static int take(struct queue *queue, struct blkio_completion *out, int most)
{
	struct timespec limit = { .tv_sec = TIMEOUT_MS / 1000 };
	struct pollfd fd;
	uint64_t bytes;
	int ret;

	if (!opt.events || queue->polled) {
		ret = blkioq_do_io(queue->q, out, 1, most, &limit);
		check(ret, "blkioq_do_io");
		return ret;
	}
	for (;;) {
		ret = blkioq_do_io(queue->q, out, 0, most, NULL);
		check(ret, "blkioq_do_io");
		if (ret)
			return ret;
		fd = (struct pollfd){ .fd = blkioq_get_completion_fd(queue->q), .events = POLLIN };
		if (poll(&fd, 1, TIMEOUT_MS) != 1)
			fail("no completion event within %d ms with %d requests in flight", TIMEOUT_MS, queue->in_flight);
		if (read(fd.fd, &bytes, 8) != 8)
			fail("completion fd: %s", strerror(errno));
	}
}

static void drain(void)
{
	struct blkio_completion out[64];

	for (int i = 0; i < num_queues; i++)
		while (queues[i].in_flight)
			for (int n = take(&queues[i], out, 64); n > 0; n--)
				completed(&out[n - 1]);
}

static void run(int requests)
{
	struct blkio_completion out[64];

	for (int i = 0; i < num_slots; i++, requests--)
		next(&slots[i]);
	while (requests > 0)
		for (int i = 0; i < num_queues; i++) {
			int n = take(&queues[i], out, 64);

			for (int j = 0; j < n; j++, requests--) {
				completed(&out[j]);
				next(out[j].user_data);
			}
		}
	drain();
}

static void read_all(void)
{
	for (int i = 0; i < num_slots; i++)
		submit(&slots[i], READ, 0, slice);
	drain();
}

static void parse(int argc, char **argv)
{
	static const struct { const char *name; int *value; } known[] = {
		{ "queues", &opt.queues }, { "poll-queues", &opt.poll_queues }, { "queue-size", &opt.queue_size },
		{ "depth", &opt.depth }, { "requests", &opt.requests }, { "seed", &opt.seed },
		{ "regions", &opt.regions }, { "events", &opt.events }, { "read-only", &opt.read_only },
		{ "discard", &opt.discard }, { "block", &opt.block }, { "wipe", &opt.wipe },
	};

	if (argc < 2)
		fail("usage: blkio_client PATH [name=value]...");
	opt.path = argv[1];
	for (int i = 2; i < argc; i++) {
		char *equals = strchr(argv[i], '=');
		size_t j = 0;

		while (equals && j < sizeof(known) / sizeof(*known) &&
		       (strncmp(argv[i], known[j].name, (size_t)(equals - argv[i])) ||
			known[j].name[equals - argv[i]]))
			j++;
		if (!equals || j == sizeof(known) / sizeof(*known))
			fail("no option %s", argv[i]);
		*known[j].value = atoi(equals + 1);
	}
	num_queues = opt.queues + opt.poll_queues;
	num_slots = num_queues * opt.depth;
	if (opt.block < (int)SECTOR || opt.block > (int)(SLICE * SECTOR) || opt.block % (int)SECTOR)
		fail("block is a multiple of %u", SECTOR);
	if (num_queues < 1 || num_queues > 64 || opt.depth < 1 || opt.depth > 64 || opt.regions < 1)
		fail("queues and depth are 1 to 64");
	rng = 0x2545f4914f6cdd1du ^ (uint64_t)opt.seed;
}

static uint64_t open_disk(void)
{
	uint64_t capacity;
	int most;

	check(blkio_create("virtio-blk-vhost-user", &disk), "blkio_create");
	check(blkio_set_str(disk, "path", opt.path), "path");
	if (opt.read_only)
		check(blkio_set_bool(disk, "read-only", true), "read-only");
	check(blkio_connect(disk), "blkio_connect");
	check(blkio_get_int(disk, "max-queues", &most), "max-queues");
	if (num_queues > most)
		fail("the disk has %d queues, %d are wanted", most, num_queues);
	check(blkio_set_int(disk, "num-queues", opt.queues), "num-queues");
	check(blkio_set_int(disk, "num-poll-queues", opt.poll_queues), "num-poll-queues");
	if (opt.queue_size)
		check(blkio_set_int(disk, "queue-size", opt.queue_size), "queue-size");
	check(blkio_start(disk), "blkio_start");
	check(blkio_get_uint64(disk, "capacity", &capacity), "capacity");
	return capacity;
}

static void make_slots(uint64_t capacity, struct blkio_mem_region *regions)
{
	int per_region = (num_slots + opt.regions - 1) / opt.regions;
	uint64_t share = capacity / SECTOR / (uint64_t)num_slots;

	share -= share % ((uint64_t)opt.block / SECTOR);
	slice = share > SLICE ? SLICE : (uint32_t)share;
	slots = calloc((size_t)num_slots, sizeof(*slots));
	if (!slots || !slice)
		fail("a disk of %" PRIu64 " bytes is too small for %d requests", capacity, num_slots);
	for (int i = 0; i < opt.regions; i++) {
		size_t size = ((size_t)per_region * SLICE * SECTOR + 0x1fffff) & ~(size_t)0x1fffff;

		check(blkio_alloc_mem_region(disk, &regions[i], size), "blkio_alloc_mem_region");
		check(blkio_map_mem_region(disk, &regions[i]), "blkio_map_mem_region");
	}
	for (int i = 0; i < num_slots; i++) {
		slots[i].queue = &queues[i % num_queues];
		slots[i].first = (uint64_t)i * share;
		slots[i].memory = (uint8_t *)regions[i / per_region].addr + (size_t)(i % per_region) * SLICE * SECTOR;
	}
}

int main(int argc, char **argv)
{
	struct blkio_mem_region *regions;
	uint64_t capacity;
	uint64_t most_regions;
	int queue_size;

	setvbuf(stdout, NULL, _IOLBF, 0);
	parse(argc, argv);
	alarm(120);
	capacity = open_disk();
	check(blkio_get_uint64(disk, "max-mem-regions", &most_regions), "max-mem-regions");
	check(blkio_get_int(disk, "queue-size", &queue_size), "queue-size");
	if ((uint64_t)opt.regions > most_regions)
		opt.regions = (int)most_regions;
	regions = calloc((size_t)opt.regions, sizeof(*regions));
	if (!regions)
		fail("no memory");
	for (int i = 0; i < num_queues; i++) {
		queues[i].polled = i >= opt.queues;
		queues[i].q = queues[i].polled ? blkio_get_poll_queue(disk, i - opt.queues) : blkio_get_queue(disk, i);
		if (!queues[i].q)
			fail("no queue %d", i);
		if (opt.events && !queues[i].polled)
			blkioq_set_completion_fd_enabled(queues[i].q, true);
	}
	make_slots(capacity, regions);
	for (int i = 0; opt.wipe && i < num_slots; i++)
		submit(&slots[i], ZERO, 0, slice);
	drain();
	run(opt.requests / 2);
	/* memory comes and goes while the queues are running */
	for (int i = 0; i < opt.regions; i++) {
		blkio_unmap_mem_region(disk, &regions[i]);
		check(blkio_map_mem_region(disk, &regions[i]), "blkio_map_mem_region again");
	}
	run(opt.requests - opt.requests / 2);
	read_all();
	if (!opt.read_only) {
		submit(&slots[0], FLUSH, 0, 0);
		drain();
	}
	blkio_destroy(&disk);
	printf("capacity=%" PRIu64 " queue-size=%d regions=%d of=%" PRIu64 " reads=%" PRIu64 " writes=%" PRIu64 " zeroes=%" PRIu64
	       " discards=%" PRIu64 " flushes=%" PRIu64 "\n",
	       capacity, queue_size, opt.regions, most_regions, done[READ], done[WRITE], done[ZERO], done[DISCARD], done[FLUSH]);
	free(slots);
	free(regions);
	return 0;
}
