/* SPDX-License-Identifier: Apache-2.0 */
/*
 * netio - traffic whose every byte is known to both ends, in guests and on the host.
 *
 *   netio listen PORT                        serve both below, TCP and UDP, IPv4 and IPv6, until SIGTERM
 *   netio tcp HOST PORT UP DOWN [PAUSE_US]   UP bytes there and DOWN bytes back at the same time; `-' for both: until
 *                                            SIGTERM, and a line "moved BYTES" of what came back 5 times a second
 *   netio udp HOST PORT COUNT SIZE [SEGMENT] [PAUSE_US]
 *                                            COUNT datagrams of SIZE bytes; SEGMENT: so many of them in each send,
 *                                            which the kernel or the card cuts; the far end says what arrived
 *
 * HOST is an address, fe80::1%eth0 included. Status 0: all bytes were right at both ends (for UDP: of what arrived).
 * A TCP server that finds a wrong byte resets the connection, so that its client fails.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

enum { CHUNK = 64 << 10, DATAGRAM_MAX = 65507, TRACKED = 1 << 20 };

static const uint64_t FOREVER = UINT64_MAX, MAGIC = 0x6f69746e74736f76, QUERY = 0x7972657571746576;
static atomic_bool stop;

struct hello {
	uint64_t magic, seed, up, down;
	uint64_t pause_us;
};

/* One direction's position. */
struct side {
	int fd;
	uint64_t seed, want, pause_us;
	atomic_ullong done;
	atomic_bool *end;	/* FOREVER: until this is set */
	bool bad;
};

static void on_term(int number)
{
	(void)number;
	atomic_store(&stop, true);
}

static void die(const char *what)
{
	fprintf(stderr, "netio: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t number(const char *text)
{
	return strcmp(text, "-") ? strtoull(text, NULL, 0) : FOREVER;
}

static uint64_t word(uint64_t seed, uint64_t index)
{
	uint64_t x = (index + seed) * 0x9e3779b97f4a7c15;

	return x ^ x >> 31;
}

/* @len bytes of stream @seed from @at on, both multiples of 8 or the stream's end. */
static void fill(uint64_t *buf, uint64_t seed, uint64_t at, size_t len)
{
	for (size_t i = 0; i < (len + 7) / 8; i++)
		buf[i] = word(seed, at / 8 + i);
}

static bool check(const unsigned char *buf, uint64_t seed, uint64_t at, size_t len)
{
	for (size_t i = 0; i < len;) {
		uint64_t want = word(seed, (at + i) / 8);
		size_t skip = (at + i) % 8, n = 8 - skip < len - i ? 8 - skip : len - i;

		if (memcmp(buf + i, (unsigned char *)&want + skip, n)) {
			fprintf(stderr, "netio: wrong byte at or after %llu\n", (unsigned long long)(at + i));
			return false;
		}
		i += n;
	}
	return true;
}

static bool send_all(int fd, const void *data, size_t len)
{
	const char *at = data;

	while (len) {
		ssize_t n = send(fd, at, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		at += n;
		len -= (size_t)n;
	}
	return true;
}

static void *writer(void *arg)
{
	struct side *s = arg;
	uint64_t *buf = malloc(CHUNK);

	while (s->done < s->want && !(s->want == FOREVER && atomic_load(s->end))) {
		size_t len = s->want - s->done < CHUNK ? (size_t)(s->want - s->done) : CHUNK;

		fill(buf, s->seed, s->done, len);
		if (!send_all(s->fd, buf, len)) {
			s->bad = true;
			break;
		}
		s->done += len;
		if (s->pause_us)
			usleep((useconds_t)s->pause_us);
	}
	free(buf);
	return NULL;
}

/* Read until the other end is done, or all that is wanted is there. */
static void *reader(void *arg)
{
	struct side *s = arg;
	unsigned char *buf = malloc(CHUNK);

	while (s->done < s->want) {
		ssize_t n = recv(s->fd, buf, CHUNK, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			perror("netio: recv");
		if (n < 0 || !check(buf, s->seed, s->done, (size_t)n))
			s->bad = true;
		if (n <= 0 || s->bad)
			break;
		s->done += (unsigned long long)n;
	}
	if (s->want != FOREVER && s->done != s->want)
		s->bad = true;
	free(buf);
	return NULL;
}

static bool recv_all(int fd, void *data, size_t len)
{
	return recv(fd, data, len, MSG_WAITALL) == (ssize_t)len;
}

static void *serve_tcp(void *arg)
{
	int fd = (int)(intptr_t)arg;
	struct linger reset = { .l_onoff = 1 };
	struct hello h;
	struct side in = { .fd = fd }, out = { .fd = fd };
	atomic_bool ended = false;
	pthread_t thread;

	if (recv_all(fd, &h, sizeof(h)) && h.magic == MAGIC) {
		in.seed = h.seed;
		in.want = h.up;
		out.seed = ~h.seed;
		out.want = h.down;
		out.pause_us = h.pause_us;
		out.end = &ended;
		pthread_create(&thread, NULL, writer, &out);
		reader(&in);
		atomic_store(&ended, true);
		if (in.bad)	/* the writer may wait for room that never comes */
			shutdown(fd, SHUT_RDWR);
		pthread_join(thread, NULL);
		shutdown(fd, SHUT_WR);
		/* the client closes last: NATs cut off what is on its way when both ends have said that they are done */
		if (!in.bad && recv(fd, &h, 1, 0) != 0)
			in.bad = true;
		if (in.bad)
			setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		printf("tcp got=%llu bad=%d sent=%llu\n", in.done, in.bad, out.done);
	}
	close(fd);
	return NULL;
}

struct flow {
	uint64_t seed, received, bad, doubled;
	unsigned char *seen;
};

static struct flow *flow_of(uint64_t seed)
{
	static struct flow flows[16];
	static unsigned int next;

	for (int i = 0; i < 16; i++)
		if (flows[i].seen && flows[i].seed == seed)
			return &flows[i];
	struct flow *f = &flows[next++ % 16];
	free(f->seen);
	*f = (struct flow){ .seed = seed, .seen = calloc(1, TRACKED / 8) };
	return f;
}

static void *serve_udp(void *arg)
{
	int fd = (int)(intptr_t)arg;
	static uint64_t buf[DATAGRAM_MAX / 8 + 1];

	for (;;) {
		struct sockaddr_storage from;
		socklen_t size = sizeof(from);
		ssize_t n = recvfrom(fd, buf, sizeof(buf), 0, (void *)&from, &size);

		if (n < 24)
			continue;
		struct flow *f = flow_of(buf[1]);

		if (buf[0] == QUERY) {
			uint64_t answer[] = { QUERY, f->seed, f->received, f->bad, f->doubled };

			sendto(fd, answer, sizeof(answer), 0, (void *)&from, size);
			continue;
		}
		if (buf[0] != MAGIC || buf[2] >= TRACKED || !check((void *)(buf + 3), f->seed, buf[2] * 8, (size_t)n - 24)) {
			f->bad++;
			continue;
		}
		if (f->seen[buf[2] / 8] & 1 << buf[2] % 8)
			f->doubled++;
		else
			f->received++;
		f->seen[buf[2] / 8] |= (unsigned char)(1 << buf[2] % 8);
	}
	return NULL;
}

static int bound(int type, uint16_t port)
{
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	struct sockaddr_in any4 = { .sin_family = AF_INET, .sin_port = htons(port) };
	int one = 1, zero = 0, fd = socket(AF_INET6, type, 0);
	bool six = fd >= 0;

	if (!six)
		fd = socket(AF_INET, type, 0);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (six)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero));
	if (six ? bind(fd, (void *)&any, sizeof(any)) : bind(fd, (void *)&any4, sizeof(any4)))
		die("bind");
	return fd;
}

static int do_listen(uint16_t port)
{
	int tcp = bound(SOCK_STREAM, port), udp = bound(SOCK_DGRAM, port), room = 4 << 20;
	pthread_t thread;

	setsockopt(udp, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room));
	if (listen(tcp, 16))
		die("listen");
	pthread_create(&thread, NULL, serve_udp, (void *)(intptr_t)udp);
	printf("listening\n");
	for (;;) {
		struct pollfd p = { .fd = tcp, .events = POLLIN };

		if (atomic_load(&stop))
			return 0;
		if (poll(&p, 1, 200) != 1)
			continue;
		int fd = accept(tcp, NULL, NULL);

		if (fd >= 0 && pthread_create(&thread, NULL, serve_tcp, (void *)(intptr_t)fd) == 0)
			pthread_detach(thread);
	}
}

static int joined(const char *host, uint16_t port, int type)
{
	struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	struct sockaddr_in four = { .sin_family = AF_INET, .sin_port = htons(port) };
	char text[80];
	char *scope;
	int fd, done;

	snprintf(text, sizeof(text), "%s", host);
	scope = strchr(text, '%');
	if (scope) {
		*scope++ = 0;
		six.sin6_scope_id = if_nametoindex(scope);
	}
	bool is_six = inet_pton(AF_INET6, text, &six.sin6_addr) == 1;

	if (!is_six && inet_pton(AF_INET, text, &four.sin_addr) != 1) {
		errno = EINVAL;
		die(host);
	}
	fd = socket(is_six ? AF_INET6 : AF_INET, type, 0);
	done = is_six ? connect(fd, (void *)&six, sizeof(six)) : connect(fd, (void *)&four, sizeof(four));
	if (fd < 0 || done)
		die("connect");
	return fd;
}

static uint64_t fresh_seed(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return ((uint64_t)now.tv_nsec << 20 ^ (uint64_t)now.tv_sec ^ (uint64_t)getpid() << 50) & ~7ULL;
}

struct ticker {
	struct side *in;
	atomic_bool end;
};

static void *progress(void *arg)
{
	struct ticker *t = arg;

	while (!atomic_load(&t->end)) {
		printf("moved %llu\n", t->in->done);
		usleep(200000);
	}
	return NULL;
}

static int do_tcp(const char *host, uint16_t port, uint64_t up, uint64_t down, uint64_t pause_us)
{
	struct hello h = { MAGIC, fresh_seed(), up, down, pause_us };
	int fd = joined(host, port, SOCK_STREAM);
	struct side out = { .fd = fd, .seed = h.seed, .want = up, .pause_us = pause_us, .end = &stop };
	struct side in = { .fd = fd, .seed = ~h.seed, .want = down };
	struct ticker ticker = { .in = &in };
	pthread_t thread, reading, ticks;

	if (!send_all(fd, &h, sizeof(h)))
		die("send");
	pthread_create(&thread, NULL, writer, &out);
	if (up == FOREVER)
		pthread_create(&ticks, NULL, progress, &ticker);
	pthread_create(&reading, NULL, reader, &in);
	pthread_join(thread, NULL);
	if (up == FOREVER)
		shutdown(fd, SHUT_WR);
	pthread_join(reading, NULL);
	if (up == FOREVER) {	/* the last line is the verdict */
		atomic_store(&ticker.end, true);
		pthread_join(ticks, NULL);
	}
	if (up != FOREVER && recv(fd, &h, 1, 0) != 0)	/* a reset where the far end found a wrong byte */
		in.bad = true;
	printf("tcp sent=%llu got=%llu bad=%d\n", out.done, in.done, in.bad || out.bad);
	return in.bad || out.bad;
}

static int do_udp(const char *host, uint16_t port, uint64_t count, size_t size, uint64_t together, uint64_t pause_us)
{
	int fd = joined(host, port, SOCK_DGRAM), segment = (int)size, room = 4 << 20;
	uint64_t seed = fresh_seed(), answer[5], query[] = { QUERY, seed, 0 };
	struct timeval patience = { .tv_usec = 200000 };
	unsigned char *buf = calloc(1, size * together + 8), *one = calloc(1, size + 8);

	if (size < 24 || size % 8 || size * together > DATAGRAM_MAX || count >= TRACKED)
		return 2;
	if (together > 1 && setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &segment, sizeof(segment)))
		die("UDP_SEGMENT");
	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	for (uint64_t i = 0; i < count;) {
		uint64_t n = count - i < together ? count - i : together;

		for (uint64_t k = 0; k < n; k++) {
			uint64_t head[3] = { MAGIC, seed, i + k };

			memcpy(one, head, sizeof(head));
			fill((uint64_t *)(one + 24), seed, (i + k) * 8, size - 24);
			memcpy(buf + k * size, one, size);
		}
		if (send(fd, buf, n * size, 0) < 0 && errno != ENOBUFS && errno != ECONNREFUSED)
			die("send");
		i += n;
		if (pause_us)
			usleep((useconds_t)pause_us);
	}
	usleep(100000);
	for (int try = 0; try < 30; try++) {
		send(fd, query, sizeof(query), 0);
		if (recv(fd, answer, sizeof(answer), 0) == sizeof(answer) && answer[0] == QUERY && answer[1] == seed) {
			printf("udp sent=%llu received=%llu bad=%llu doubled=%llu\n", (unsigned long long)count,
			       (unsigned long long)answer[2], (unsigned long long)answer[3], (unsigned long long)answer[4]);
			return answer[3] || !answer[2];
		}
		usleep(50000);
	}
	fprintf(stderr, "netio: the far end does not say what arrived\n");
	return 1;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_term };

	setvbuf(stdout, NULL, _IOLBF, 0);
	sigaction(SIGTERM, &action, NULL);
	if (argc == 3 && !strcmp(argv[1], "listen"))
		return do_listen((uint16_t)number(argv[2]));
	if (argc >= 6 && !strcmp(argv[1], "tcp"))
		return do_tcp(argv[2], (uint16_t)number(argv[3]), number(argv[4]), number(argv[5]),
			      argc > 6 ? number(argv[6]) : 0);
	if (argc >= 6 && !strcmp(argv[1], "udp"))
		return do_udp(argv[2], (uint16_t)number(argv[3]), number(argv[4]), number(argv[5]),
			      argc > 6 ? number(argv[6]) : 1, argc > 7 ? number(argv[7]) : 0);
	fprintf(stderr, "usage: netio listen PORT | tcp HOST PORT UP DOWN [PAUSE_US] | "
			"udp HOST PORT COUNT SIZE [SEGMENT] [PAUSE_US]\n");
	return 2;
}
