/* SPDX-License-Identifier: Apache-2.0 */
/*
 * capture_unit - frames from several threads into pcapng files, read back block by block: nothing torn, nothing twice,
 * what is missing is counted; rings of files, snap length, failing and stalling files.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include "devices/net/csrc/capture.h"
#include "devices/net/csrc/net_int.h"
#include "tests/c/rig.h"

enum { PRODUCERS = 3 };

static char dir[] = "/tmp/vhostkit-capture-XXXXXX";
static char path[sizeof(dir) + 32];

static const char *in_dir(const char *name)
{
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return path;
}

/* --- reading back ------------------------------------------------------------------------------------------------- */

struct seen {
	uint32_t sections, interfaces, packets, statistics;
	uint64_t recv, drop, dropcount;	/* of the last statistics; sum of the packets' */
	uint32_t next[PRODUCERS];
	uint32_t longest;
};

static uint32_t word(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, 4);
	return v;
}

static uint64_t number(const uint8_t *p)
{
	return word(p) | (uint64_t)word(p + 4) << 32;
}

/* The option @code of those in [@p, @end), or NULL. */
static const uint8_t *option(const uint8_t *p, const uint8_t *end, uint32_t code)
{
	while (p + 4 <= end) {
		uint32_t n = word(p) >> 16;

		if ((word(p) & 0xffff) == code)
			return p + 4;
		if ((word(p) & 0xffff) == 0)
			break;
		p += 4 + ((n + 3) & ~3u);
	}
	return NULL;
}

/* Byte 12 of a frame: its producer; 16: its number, which also says its length and its bytes. */
static uint32_t length_of(uint32_t i)
{
	return 20 + i * 37 % (i % 50 ? 1500 : 60000);
}

static uint8_t byte_of(uint32_t i, uint32_t at)
{
	return (uint8_t)(i * 7 + at);
}

static void check_packet(const uint8_t *p, uint32_t len, uint32_t snaplen, struct seen *s)
{
	uint32_t kept = word(p + 20), full = word(p + 24), who, i;
	const uint8_t *frame = p + 28, *opt, *end = p + len - 4;
	uint64_t ns = (uint64_t)word(p + 12) << 32 | word(p + 16);

	CHECK(word(p + 8) < s->interfaces);
	CHECK(28 + kept <= len && kept <= full && kept == (full < snaplen ? full : snaplen));
	who = frame[12];
	i = word(frame + 16);
	CHECK(who < PRODUCERS && i >= s->next[who]);
	CHECK_EQ(full, length_of(i));
	s->next[who] = i + 1;
	for (uint32_t at = 20; at < kept; at++)
		CHECK(frame[at] == byte_of(i, at));
	opt = option(frame + ((kept + 3) & ~3u), end, 2);
	CHECK(opt && word(opt) == (i & 1 ? 2 : 1));
	opt = option(frame + ((kept + 3) & ~3u), end, 4);
	s->dropcount += opt ? number(opt) : 0;
	CHECK(ns > 1500000000000000000ULL && ns < 4000000000000000000ULL);
	s->packets++;
	s->longest = kept > s->longest ? kept : s->longest;
}

static void read_back(const char *name, uint32_t snaplen, struct seen *s)
{
	struct stat st;
	int fd = open(name, O_RDONLY);
	const uint8_t *all, *p, *end;

	CHECK(fd >= 0 && fstat(fd, &st) == 0 && st.st_size > 0);
	CHECK_EQ(st.st_mode & 0777, 0600);
	all = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	CHECK(all != MAP_FAILED);
	close(fd);
	end = all + st.st_size;
	s->interfaces = 0;
	for (p = all; p < end; p += word(p + 4)) {
		uint32_t len = word(p + 4);

		CHECK(len >= 12 && len % 4 == 0 && len <= (size_t)(end - p) && word(p + len - 4) == len);
		switch (word(p)) {
		case 0x0a0d0d0a:
			CHECK(p == all && word(p + 8) == 0x1a2b3c4d && word(p + 12) == 1);
			s->sections++;
			break;
		case 1:
			CHECK(word(p + 8) == 1 && option(p + 16, p + len - 4, 9)[0] == 9);
			CHECK(memcmp(option(p + 16, p + len - 4, 2), "port", 4) == 0);
			s->interfaces++;
			break;
		case 5:
			s->statistics++;
			s->recv = number(option(p + 20, p + len - 4, 4));
			s->drop = number(option(p + 20, p + len - 4, 5));
			break;
		case 6:
			check_packet(p, len, snaplen, s);
			break;
		default:
			CHECK(false);
		}
	}
	munmap((void *)(uintptr_t)all, (size_t)st.st_size);
}

/* --- producing ---------------------------------------------------------------------------------------------------- */

struct producer {
	struct net_capture *c;
	uint8_t who;
	uint32_t frames;
	uint32_t pause_every;	/* frames; 0: never */
};

static void *produce(void *arg)
{
	static const struct net_hdr none;
	struct producer *pr = arg;
	uint8_t *data = malloc(65536);
	struct ring_iov iov;
	struct net_frame f;

	CHECK(data != NULL);
	for (uint32_t i = 0; i < pr->frames; i++) {
		uint32_t len = length_of(i);

		memset(data, 0, 20);
		data[12] = pr->who;
		memcpy(data + 16, &i, 4);
		for (uint32_t at = 20; at < len; at++)
			data[at] = byte_of(i, at);
		net_frame_of_memory(&f, &iov, data, len, &none);
		net_capture_frame(pr->c, &f, i & 1);
		if (pr->pause_every && i % pr->pause_every == 0)
			usleep(1500);
	}
	free(data);
	return NULL;
}

static struct net_capture_file *start(const char *name, struct net_capture_options options)
{
	struct net_capture_file *file;
	int error;

	options.ring_bytes = options.ring_bytes ? options.ring_bytes : NET_CAPTURE_RING_MIN;
	file = net_capture_open(name, &options, &error);
	CHECK(file != NULL);
	CHECK_EQ(error, 0);
	return file;
}

static void one(struct net_capture *c, uint8_t who, uint32_t frames)
{
	struct producer pr = { .c = c, .who = who, .frames = frames };

	produce(&pr);
}

static void test_threads(uint32_t frames)
{
	struct net_capture_file *file = start(in_dir("threads.pcapng"), (struct net_capture_options){ 0 });
	struct net_capture *c = net_capture_add(file, "port0");
	struct producer pr[PRODUCERS];
	pthread_t thread[PRODUCERS];
	struct net_capture_stats stats;
	struct seen s = { 0 };

	CHECK(c != NULL);
	for (uint8_t i = 0; i < PRODUCERS; i++) {
		pr[i] = (struct producer){ .c = c, .who = i, .frames = frames, .pause_every = i == 2 ? 100 : 0 };
		CHECK_EQ(pthread_create(&thread[i], NULL, produce, &pr[i]), 0);
	}
	for (int i = 0; i < PRODUCERS; i++)
		pthread_join(thread[i], NULL);
	net_capture_stats(c, &stats);
	CHECK_EQ(stats.frames + stats.lost, (uint64_t)PRODUCERS * frames);
	CHECK(stats.frames > 0);
	CHECK_EQ(net_capture_close(file), 0);
	read_back(path, UINT32_MAX, &s);
	CHECK_EQ(s.packets, stats.frames);
	CHECK_EQ(s.statistics, 1);
	CHECK_EQ(s.drop, stats.lost);
	CHECK_EQ(s.recv, stats.frames + stats.lost);
	CHECK(s.dropcount <= stats.lost);
	unlink(path);
}

static void test_plain(void)
{
	struct net_capture_file *file = start(in_dir("plain.pcapng"), (struct net_capture_options){ .ring_bytes = 1 << 25 });
	struct net_capture *a = net_capture_add(file, "port a"), *b;
	struct net_capture_file_stats fs;
	struct net_capture_stats stats;
	struct seen s = { 0 };

	one(a, 0, 1000);
	net_capture_sync(file);		/* all of it is in the file now */
	read_back(path, UINT32_MAX, &s);
	CHECK_EQ(s.packets, 1000);
	CHECK_EQ(s.statistics, 0);
	usleep(60000);			/* the thread sleeps */
	net_capture_set_on(a, 0);
	one(a, 0, 5);
	net_capture_set_on(a, 1);
	net_capture_stats(a, &stats);
	CHECK_EQ(stats.frames, 1000);
	CHECK_EQ(stats.lost, 0);
	net_capture_remove(a);
	b = net_capture_add(file, "port b");
	one(b, 1, 10);
	net_capture_file_stats(file, &fs);
	CHECK_EQ(fs.files, 1);
	CHECK_EQ(fs.error, 0);
	CHECK_EQ(net_capture_close(file), 0);
	memset(&s, 0, sizeof(s));
	read_back(path, UINT32_MAX, &s);
	CHECK(s.sections == 1 && s.interfaces == 2 && s.packets == 1010 && s.statistics == 2);
	CHECK(s.next[0] == 1000 && s.next[1] == 10);
	unlink(path);
}

static void test_snaplen(void)
{
	struct net_capture_file *file = start(in_dir("short"), (struct net_capture_options){ .snaplen = 67 });
	struct seen s = { 0 };

	one(net_capture_add(file, "port"), 0, 500);
	CHECK_EQ(net_capture_close(file), 0);
	read_back(path, 67, &s);
	CHECK(s.packets == 500 && s.longest == 67);
	unlink(path);
}

/* 64 KiB files: each is whole in itself, old ones go. */
static void test_ring_of_files(void)
{
	struct net_capture_options options = { .file_bytes = 65536, .files = 3, .ring_bytes = 1 << 25 };
	struct net_capture_file *file = start(in_dir("ring.d.pcapng"), options);
	struct net_capture *c = net_capture_add(file, "port");
	struct net_capture_file_stats fs;
	struct seen s = { 0 };
	char name[sizeof(path)];
	uint32_t first = 0;
	struct stat st;

	one(c, 0, 1000);
	net_capture_sync(file);
	net_capture_file_stats(file, &fs);
	CHECK_EQ(net_capture_close(file), 0);
	CHECK(fs.files > 5 && fs.files < 100);
	CHECK(stat(path, &st) < 0);
	for (uint32_t i = 1; i <= fs.files + 1; i++) {
		snprintf(name, sizeof(name), "%s/ring.d-%05u.pcapng", dir, i);
		if (i + 3 <= fs.files || i > fs.files) {
			CHECK(stat(name, &st) < 0);
			continue;
		}
		CHECK(stat(name, &st) == 0 && (st.st_size >= 65536 || i == fs.files) && st.st_size < 65536 * 2 + 1024);
		read_back(name, UINT32_MAX, &s);
		CHECK_EQ(s.sections, ++first);
		CHECK_EQ(s.interfaces, 1);
		CHECK_EQ(s.statistics, first);
		unlink(name);
	}
	CHECK_EQ(s.next[0], 1000);
	CHECK_EQ(s.recv, 1000);
	CHECK_EQ(s.drop, 0);
}

/* A file that cannot be written ends the capture and nothing else. */
static void test_failing(void)
{
	struct net_capture_options options = { .ring_bytes = NET_CAPTURE_RING_MIN };
	struct net_capture_file *file = start("/dev/full", options);
	struct net_capture *c = net_capture_add(file, "port");
	struct net_capture_file_stats fs;
	struct net_capture_stats stats;
	int error;

	one(c, 0, 100);
	net_capture_sync(file);
	one(c, 0, 100);
	net_capture_sync(file);
	net_capture_file_stats(file, &fs);
	CHECK_EQ(fs.error, ENOSPC);
	CHECK_EQ(fs.bytes, 0);
	net_capture_stats(c, &stats);
	CHECK_EQ(stats.frames + stats.lost, 200);
	CHECK(stats.lost >= 100);
	net_capture_remove(c);
	CHECK_EQ(net_capture_close(file), ENOSPC);
	CHECK(net_capture_open(in_dir("none/x"), &options, &error) == NULL && error == ENOENT);
	CHECK(net_capture_open(dir, &options, &error) == NULL && error == EISDIR);
	options.ring_bytes = 300000;
	CHECK(net_capture_open(in_dir("x"), &options, &error) == NULL && error == EINVAL);
}

/* A pipe: refused without a reader; one that does not read holds up nobody but the file. */
static void test_pipe(void)
{
	struct net_capture_options options = { .ring_bytes = NET_CAPTURE_RING_MIN };
	struct net_capture_file *file;
	struct net_capture_stats stats;
	struct net_capture *c;
	int error, reader;

	CHECK_EQ(mkfifo(in_dir("pipe"), 0600), 0);
	CHECK(net_capture_open(path, &options, &error) == NULL && error == ENXIO);
	reader = open(path, O_RDONLY | O_NONBLOCK);
	CHECK(reader >= 0);
	file = start(path, options);
	c = net_capture_add(file, "port");
	one(c, 0, 2000);
	net_capture_stats(c, &stats);
	CHECK(stats.lost > 0);		/* 1.5 MB do not fit */
	net_capture_remove(c);
	CHECK_EQ(net_capture_close(file), EAGAIN);
	close(reader);
	unlink(path);
}

int main(void)
{
	CHECK(mkdtemp(dir) != NULL);
	test_plain();
	test_snaplen();
	test_ring_of_files();
	test_failing();
	test_pipe();
	test_threads(20000);
	CHECK_EQ(rmdir(dir), 0);
	return 0;
}
