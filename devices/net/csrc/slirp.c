/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slirp.c - the thread that libslirp lives on.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <slirp/libslirp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "devices/net/csrc/slirp.h"
#include "devices/net/csrc/slirp_merge.h"
#include "devices/net/csrc/slirp_mss.h"
#include "devices/net/csrc/slirp_pieces.h"
#include "ring/csrc/stats.h"

#if !SLIRP_CHECK_VERSION(4, 7, 0)
#error "libslirp 4.7 or newer is needed"
#endif

enum {
	RECV_BATCH = 16,		/* frames taken from the guest by one system call */
	RECV_ROUNDS = 8,		/* of these, before sockets and timers have their turn */
	FRAME_MAX = SLIRP_HEADER + 65535 + 14 + 8,
	POLL_FIXED = 2,			/* @polls begins with the wake fd and the packet socket */
	POLLS_MIN = 64,
	GUEST_MTU = 1500,
	GUEST_MTU_MIN = 1280,		/* what IPv6 needs */
	MTU_MAX = 65521,		/* libslirp's; what is larger than the guest's is cut on its way */
	SYN_MAX = 14 + 40 + 60,
	CONFIG_VERSION = 4,
};

/* What another thread wants of libslirp, on that thread's stack. */
struct command {
	struct command *next;
	int (*run)(struct net_slirp *s, void *arg);
	void *arg;
	int result;
	bool done;
};

struct timer {
	struct timer *next;
	SlirpTimerId id;
	void *cb_opaque;
	int64_t expires_ms;	/* of CLOCK_MONOTONIC; -1: not set */
};

struct net_slirp {
	Slirp *slirp;
	struct net_slirp_config config;
	pthread_t thread;
	int wake_fd;

	/* thread only */
	struct timer *timers;
	struct pollfd *polls;
	uint32_t nr_polls;
	uint32_t max_polls;
	uint8_t *frames;	/* RECV_BATCH of FRAME_MAX bytes */
	struct slirp_pieces *pieces;
	struct slirp_merge *merge;
	bool gone;		/* the other end of the packet socket was closed */

	/* under @lock */
	pthread_mutex_t lock;
	pthread_cond_t cond;
	struct command *commands;
	bool stop;

	struct net_slirp_stats stats;	/* written by the thread */
};

/* --- what libslirp calls ---------------------------------------------------------------------------------------- */

static void pass_on(void *opaque, struct iovec *iov, int nr, uint32_t segments)
{
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = (size_t)nr };
	struct net_slirp *s = opaque;
	ssize_t n = sendmsg(s->config.fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n < 0) {
		ring_count(&s->stats.dropped, segments);
	} else {
		ring_count(&s->stats.out_frames, 1);
		ring_count(&s->stats.out_bytes, (uint64_t)n - SLIRP_HEADER);
	}
}

static ssize_t send_packet(const void *buf, size_t len, void *opaque)
{
	struct net_slirp *s = opaque;
	uint8_t small[SYN_MAX];

	if (len <= sizeof(small)) {
		memcpy(small, buf, len);
		slirp_mss_lower(small, len, s->config.mtu);
		buf = small;
	}
	slirp_merge_frame(s->merge, buf, len);
	return (ssize_t)len;	/* an error here would be printed for every frame */
}

static void guest_error(const char *msg, void *opaque)
{
	struct net_slirp *s = opaque;

	(void)msg;	/* of the guest's making, hence countless */
	ring_count(&s->stats.bad, 1);
}

static int64_t clock_get_ns(void *opaque)
{
	(void)opaque;
	return (int64_t)ring_now_ns();
}

static void *timer_new(SlirpTimerId id, void *cb_opaque, void *opaque)
{
	struct net_slirp *s = opaque;
	struct timer *t = calloc(1, sizeof(*t));

	if (!t)
		abort();	/* libslirp knows no failure here; 32 bytes, once per instance */
	t->id = id;
	t->cb_opaque = cb_opaque;
	t->expires_ms = -1;
	t->next = s->timers;
	s->timers = t;
	return t;
}

static void timer_free(void *timer, void *opaque)
{
	struct net_slirp *s = opaque;
	struct timer **p;

	for (p = &s->timers; *p; p = &(*p)->next) {
		if (*p == timer) {
			*p = (*p)->next;
			free(timer);
			return;
		}
	}
}

static void timer_mod(void *timer, int64_t expire_time, void *opaque)
{
	(void)opaque;
	((struct timer *)timer)->expires_ms = expire_time;
}

/* All are told of at every turn, by slirp_pollfds_fill(). */
static void poll_fd_nothing(int fd, void *opaque)
{
	(void)fd;
	(void)opaque;
}

/* Called on the thread only, which looks at everything in its next turn anyway. */
static void notify_nothing(void *opaque)
{
	(void)opaque;
}

static const SlirpCb callbacks = {
	.send_packet = send_packet,
	.guest_error = guest_error,
	.clock_get_ns = clock_get_ns,
	.timer_free = timer_free,
	.timer_mod = timer_mod,
	.register_poll_fd = poll_fd_nothing,
	.unregister_poll_fd = poll_fd_nothing,
	.notify = notify_nothing,
	.timer_new_opaque = timer_new,
};

/* --- waiting ---------------------------------------------------------------------------------------------------- */

static const struct { int slirp; short poll; } events_map[] = {
	{ SLIRP_POLL_IN, POLLIN }, { SLIRP_POLL_OUT, POLLOUT }, { SLIRP_POLL_PRI, POLLPRI },
	{ SLIRP_POLL_ERR, POLLERR }, { SLIRP_POLL_HUP, POLLHUP },
};

static int add_poll(int fd, int events, void *opaque)
{
	struct net_slirp *s = opaque;
	size_t i;

	if (s->nr_polls == s->max_polls) {
		struct pollfd *more = realloc(s->polls, 2 * s->max_polls * sizeof(*more));

		if (!more)
			return -1;	/* looked at in a later turn */
		s->polls = more;
		s->max_polls *= 2;
	}
	s->polls[s->nr_polls] = (struct pollfd){ .fd = fd };
	for (i = 0; i < sizeof(events_map) / sizeof(events_map[0]); i++) {
		if (events & events_map[i].slirp)
			s->polls[s->nr_polls].events |= events_map[i].poll;
	}
	return (int)s->nr_polls++;
}

static int get_revents(int idx, void *opaque)
{
	struct net_slirp *s = opaque;
	int out = 0;
	size_t i;

	if (idx < 0 || (uint32_t)idx >= s->nr_polls)
		return 0;
	for (i = 0; i < sizeof(events_map) / sizeof(events_map[0]); i++) {
		if (s->polls[idx].revents & events_map[i].poll)
			out |= events_map[i].slirp;
	}
	return out;
}

/* Milliseconds until the next timer, at most @limit. */
static uint32_t until_timer(const struct net_slirp *s, uint32_t limit)
{
	int64_t now_ms = (int64_t)ring_now_ns() / 1000000;
	const struct timer *t;

	for (t = s->timers; t; t = t->next) {
		if (t->expires_ms < 0)
			continue;
		if (t->expires_ms <= now_ms)
			return 0;
		if (t->expires_ms - now_ms < limit)
			limit = (uint32_t)(t->expires_ms - now_ms);
	}
	return limit;
}

static void run_timers(struct net_slirp *s)
{
	int64_t now_ms = (int64_t)ring_now_ns() / 1000000;
	struct timer *t, *next;

	for (t = s->timers; t; t = next) {
		next = t->next;
		if (t->expires_ms < 0 || t->expires_ms > now_ms)
			continue;
		t->expires_ms = -1;
		slirp_handle_timer(s->slirp, t->id, t->cb_opaque);
	}
}

/* --- frames from the guest -------------------------------------------------------------------------------------- */

static void take_frame(struct net_slirp *s, uint8_t *from, uint32_t len)
{
	const uint8_t *frame;
	bool bad;

	ring_count(&s->stats.in_frames, 1);
	ring_count(&s->stats.in_bytes, len);
	slirp_mss_raise(from, len, s->config.mtu);
	frame = slirp_pieces_take(s->pieces, from, &len, &bad);
	if (bad)
		ring_count(&s->stats.bad, 1);
	if (frame)
		slirp_input(s->slirp, frame, (int)len);
}

static void take_frames(struct net_slirp *s)
{
	struct mmsghdr msgs[RECV_BATCH];
	struct iovec iovs[RECV_BATCH];
	int round, n, i;

	for (round = 0; round < RECV_ROUNDS; round++) {
		memset(msgs, 0, sizeof(msgs));
		for (i = 0; i < RECV_BATCH; i++) {
			iovs[i].iov_base = s->frames + (size_t)i * FRAME_MAX;
			iovs[i].iov_len = FRAME_MAX;
			msgs[i].msg_hdr.msg_iov = &iovs[i];
			msgs[i].msg_hdr.msg_iovlen = 1;
		}
		n = recvmmsg(s->config.fd, msgs, RECV_BATCH, MSG_DONTWAIT, NULL);
		for (i = 0; i < n; i++) {
			if (!msgs[i].msg_len) {
				s->gone = true;	/* end of file; no frame is empty */
				return;
			}
			/* nothing stands in their headers: all that is to be done was done */
			if (msgs[i].msg_len > SLIRP_HEADER)
				take_frame(s, s->frames + (size_t)i * FRAME_MAX + SLIRP_HEADER,
					   msgs[i].msg_len - SLIRP_HEADER);
		}
		if (n < RECV_BATCH)
			return;
	}
}

/* --- the thread ------------------------------------------------------------------------------------------------- */

static bool run_commands(struct net_slirp *s)
{
	struct command *c;
	bool stop;

	pthread_mutex_lock(&s->lock);
	while ((c = s->commands)) {
		s->commands = c->next;
		pthread_mutex_unlock(&s->lock);
		c->result = c->run(s, c->arg);
		pthread_mutex_lock(&s->lock);
		c->done = true;
		pthread_cond_broadcast(&s->cond);
	}
	stop = s->stop;
	pthread_mutex_unlock(&s->lock);
	return stop;
}

static void turn(struct net_slirp *s)
{
	uint32_t timeout = UINT32_MAX;
	uint64_t woken;
	int rc;

	s->nr_polls = POLL_FIXED;
	s->polls[0] = (struct pollfd){ .fd = s->wake_fd, .events = POLLIN };
	s->polls[1] = (struct pollfd){ .fd = s->gone ? -1 : s->config.fd, .events = POLLIN };
	slirp_pollfds_fill(s->slirp, &timeout, add_poll, s);
	timeout = until_timer(s, timeout);
	__atomic_store_n(&s->stats.sockets, s->nr_polls - POLL_FIXED, __ATOMIC_RELAXED);
	rc = poll(s->polls, s->nr_polls, timeout > INT32_MAX ? -1 : (int)timeout);
	ring_count(&s->stats.wakeups, 1);
	if (rc > 0 && s->polls[0].revents && read(s->wake_fd, &woken, sizeof(woken)) < 0)
		rc = 0;		/* nobody else reads it: cannot be */
	slirp_pollfds_poll(s->slirp, rc < 0, get_revents, s);
	run_timers(s);
	if (rc > 0 && s->polls[1].revents)
		take_frames(s);
	slirp_merge_flush(s->merge);
}

static void *thread_main(void *arg)
{
	struct net_slirp *s = arg;

	while (!run_commands(s))
		turn(s);
	return NULL;
}

static void wake(struct net_slirp *s)
{
	uint64_t one = 1;

	if (write(s->wake_fd, &one, sizeof(one)) < 0)
		return;	/* full: it is readable, which is all that is wanted */
}

static int command(struct net_slirp *s, int (*run)(struct net_slirp *, void *), void *arg)
{
	struct command c = { .run = run, .arg = arg };
	struct command **p;

	pthread_mutex_lock(&s->lock);
	for (p = &s->commands; *p; p = &(*p)->next)
		;
	*p = &c;
	wake(s);
	while (!c.done)
		pthread_cond_wait(&s->cond, &s->lock);
	pthread_mutex_unlock(&s->lock);
	return c.result;
}

/* --- life ------------------------------------------------------------------------------------------------------- */

static Slirp *make_slirp(struct net_slirp *s)
{
	const struct net_slirp_config *from = &s->config;
	SlirpConfig c = {
		.version = CONFIG_VERSION,
		.restricted = (int)from->restricted,
		.in_enabled = from->ipv4 != 0,
		.in6_enabled = from->ipv6 != 0,
		.vprefix_len = (uint8_t)from->prefix6_len,
		.vhostname = from->hostname,
		.vdomainname = from->domainname,
		.vdnssearch = (const char **)(uintptr_t)from->search,
		.if_mtu = MTU_MAX,
		.if_mru = MTU_MAX,
		.disable_host_loopback = from->no_loopback != 0,
		.disable_dns = from->no_dns != 0,
		.disable_dhcp = from->no_dhcp != 0,
	};

	memcpy(&c.vnetwork, from->net, sizeof(from->net));
	memcpy(&c.vnetmask, from->mask, sizeof(from->mask));
	memcpy(&c.vhost, from->host, sizeof(from->host));
	memcpy(&c.vdhcp_start, from->dhcp_start, sizeof(from->dhcp_start));
	memcpy(&c.vnameserver, from->dns, sizeof(from->dns));
	memcpy(&c.vprefix_addr6, from->prefix6, sizeof(from->prefix6));
	memcpy(&c.vhost6, from->host6, sizeof(from->host6));
	memcpy(&c.vnameserver6, from->dns6, sizeof(from->dns6));
	return slirp_new(&c, &callbacks, s);
}

static void free_all(struct net_slirp *s)
{
	if (s->slirp)
		slirp_cleanup(s->slirp);
	while (s->timers)
		timer_free(s->timers, s);
	if (s->wake_fd >= 0)
		close(s->wake_fd);
	pthread_mutex_destroy(&s->lock);
	pthread_cond_destroy(&s->cond);
	free(s->polls);
	free(s->frames);
	slirp_pieces_free(s->pieces);
	slirp_merge_free(s->merge);
	free(s);
}

static int set_up(struct net_slirp *s)
{
	s->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (s->wake_fd < 0)
		return errno;
	s->max_polls = POLLS_MIN;
	s->polls = calloc(s->max_polls, sizeof(*s->polls));
	s->frames = malloc((size_t)RECV_BATCH * FRAME_MAX);
	s->pieces = slirp_pieces_new();
	s->merge = slirp_merge_new(pass_on, s, s->config.mtu);
	if (!s->polls || !s->frames || !s->pieces || !s->merge)
		return ENOMEM;
	s->slirp = make_slirp(s);
	/* what the configuration points to is the caller's; libslirp made copies */
	s->config.hostname = s->config.domainname = NULL;
	s->config.search = NULL;
	return s->slirp ? 0 : EINVAL;
}

static int start_thread(struct net_slirp *s)
{
	sigset_t all, before;
	int rc;

	/* signals are Python's; a broken TCP connection of the guest must not end us either (SIGPIPE) */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(&s->thread, NULL, thread_main, s);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!rc)
		pthread_setname_np(s->thread, "vhost-slirp");
	return rc;
}

struct net_slirp *net_slirp_start(const struct net_slirp_config *config, int *error)
{
	struct net_slirp *s;

	*error = EINVAL;
	if (config->fd < 0 || (config->mtu && (config->mtu < GUEST_MTU_MIN || config->mtu > MTU_MAX)))
		return NULL;
	s = calloc(1, sizeof(*s));
	*error = ENOMEM;
	if (!s)
		return NULL;
	s->config = *config;
	if (!s->config.mtu)
		s->config.mtu = GUEST_MTU;
	s->wake_fd = -1;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->cond, NULL);
	*error = set_up(s);
	if (!*error)
		*error = start_thread(s);
	if (*error) {
		free_all(s);
		return NULL;
	}
	return s;
}

void net_slirp_stop(struct net_slirp *s)
{
	if (!s)
		return;
	pthread_mutex_lock(&s->lock);
	s->stop = true;
	wake(s);
	pthread_mutex_unlock(&s->lock);
	pthread_join(s->thread, NULL);
	free_all(s);
}

/* --- commands --------------------------------------------------------------------------------------------------- */

struct forward_args {
	const struct net_slirp_forward *forward;
	int add;
};

static socklen_t sockaddr_of(struct sockaddr_storage *ss, uint32_t ipv6, const uint8_t *addr, uint16_t port)
{
	memset(ss, 0, sizeof(*ss));
	if (ipv6) {
		struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)ss;

		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons(port);
		memcpy(&in6->sin6_addr, addr, sizeof(in6->sin6_addr));
		return sizeof(*in6);
	} else {
		struct sockaddr_in *in = (struct sockaddr_in *)ss;

		in->sin_family = AF_INET;
		in->sin_port = htons(port);
		memcpy(&in->sin_addr, addr, sizeof(in->sin_addr));
		return sizeof(*in);
	}
}

static int do_forward(struct net_slirp *s, void *arg)
{
	const struct forward_args *args = arg;
	const struct net_slirp_forward *f = args->forward;
	int flags = (f->udp ? SLIRP_HOSTFWD_UDP : 0) | (f->ipv6 ? SLIRP_HOSTFWD_V6ONLY : 0);
	struct sockaddr_storage host, guest;
	socklen_t len = sockaddr_of(&host, f->ipv6, f->host, f->host_port);
	int rc;

	sockaddr_of(&guest, f->ipv6, f->guest, f->guest_port);
	errno = 0;
	if (args->add == NET_SLIRP_ADD)
		rc = slirp_add_hostxfwd(s->slirp, (struct sockaddr *)&host, len, (struct sockaddr *)&guest, len, flags);
	else
		rc = slirp_remove_hostxfwd(s->slirp, (struct sockaddr *)&host, len, flags);
	if (rc >= 0)
		return 0;
	return errno ? -errno : args->add == NET_SLIRP_ADD ? -EINVAL : -ENOENT;
}

int net_slirp_forward(struct net_slirp *s, const struct net_slirp_forward *forward, int add)
{
	struct forward_args args = { .forward = forward, .add = add };

	return command(s, do_forward, &args);
}

struct guest_forward_args {
	const uint8_t *addr;
	uint32_t port;
	const char *path;
};

static int do_guest_forward(struct net_slirp *s, void *arg)
{
	const struct guest_forward_args *args = arg;
	struct in_addr addr;
	int rc;

	memcpy(&addr, args->addr, sizeof(addr));
	if (args->path)
		rc = slirp_add_unix(s->slirp, args->path, &addr, (int)args->port);
	else
		rc = slirp_remove_guestfwd(s->slirp, addr, (int)args->port);
	if (rc >= 0)
		return 0;
	return args->path ? -EINVAL : -ENOENT;
}

int net_slirp_guest_forward(struct net_slirp *s, const uint8_t *addr, uint32_t port, const char *path)
{
	struct guest_forward_args args = { .addr = addr, .port = port, .path = path };

	return port && port < 65536 ? command(s, do_guest_forward, &args) : -EINVAL;
}

struct text_args {
	char *text;
	uint32_t len;
};

static int do_connections(struct net_slirp *s, void *arg)
{
	struct text_args *args = arg;
	char *all = slirp_connection_info(s->slirp);
	size_t n = strlen(all);

	if (n >= args->len)
		n = args->len - 1;
	memcpy(args->text, all, n);
	args->text[n] = '\0';
	free(all);	/* glib's allocator is malloc's */
	return (int)n;
}

int net_slirp_connections(struct net_slirp *s, char *text, uint32_t len)
{
	struct text_args args = { .text = text, .len = len };

	return len && len < INT32_MAX ? command(s, do_connections, &args) : -EINVAL;
}

void net_slirp_stats(const struct net_slirp *s, struct net_slirp_stats *out)
{
	ring_stats_copy(out, &s->stats, sizeof(*out));
}

const char *net_slirp_version(void)
{
	return slirp_version_string();
}
