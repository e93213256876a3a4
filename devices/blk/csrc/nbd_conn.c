/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nbd_conn.c - one connection to an NBD server, and the thread that keeps it.
 *
 * States
 *	DOWN		no handle; at next_try_ns one is made			-> CONNECTING
 *	CONNECTING	libnbd connects and negotiates, until until_ns		-> UP, DOWN
 *	UP		commands are sent					-> DOWN
 * In DOWN and CONNECTING requests wait in @todo; from down_since_ns + reconnect_ms on they fail instead.
 * A libnbd handle whose connection is lost is of no further use: each attempt makes a new one.
 */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "devices/blk/csrc/nbd_int.h"

void nbd_conn_wake(struct nbd_conn *conn)
{
	uint64_t one = 1;

	if (conn->wake_fd >= 0 && write(conn->wake_fd, &one, sizeof(one)) < 0)
		return;	/* full: it is readable, which is all that is wanted */
}

/* --- telling ---------------------------------------------------------------------------------------------------- */

/* In libnbd's words, which are only good until its next call. */
static void note_failure(struct nbd_conn *conn)
{
	const char *text = nbd_get_error();

	conn->failure.at = conn->at;
	conn->failure.code = nbd_get_errno();
	snprintf(conn->failure.text, sizeof(conn->failure.text), "%s", text ? text : "");
}

static void note_words(struct nbd_conn *conn, int code, const char *words)
{
	conn->failure.at = conn->at;
	conn->failure.code = code;
	snprintf(conn->failure.text, sizeof(conn->failure.text), "%s", words);
}

static void news(struct nbd_conn *conn)
{
	struct nbd_store *s = conn->store;
	uint64_t one = 1;

	pthread_mutex_lock(&s->lock);
	snprintf(s->text, sizeof(s->text), "%s", conn->failure.text);
	pthread_mutex_unlock(&s->lock);
	if (s->config.news_fd >= 0 && write(s->config.news_fd, &one, sizeof(one)) < 0)
		return;	/* full: then it is readable */
}

/* --- connecting ------------------------------------------------------------------------------------------------- */

void nbd_conn_close(struct nbd_conn *conn)
{
	if (conn->h)
		nbd_close(conn->h);
	conn->h = NULL;
}

static int set_up_handle(struct nbd_conn *conn)
{
	struct nbd_handle *h = nbd_create();

	if (!h)
		return -1;
	conn->h = h;
	/* guest pages hold what the guest has put there: nothing of ours can leak by a short answer */
	if (nbd_set_pread_initialize(h, false) < 0)
		return -1;
	/* rotational and other hints, block sizes */
	if (nbd_set_full_info(h, true) < 0)
		return -1;
	/* tls-certificates=, tls-psk-file=: whoever writes the URI starts the server */
	if (nbd_set_uri_allow_local_file(h, true) < 0)
		return -1;
	return nbd_aio_connect_uri(h, conn->store->uri);
}

/* -> CONNECTING, or -1. */
static int begin(struct nbd_conn *conn)
{
	conn->at = BLK_NBD_AT_URI;
	conn->failing = false;
	conn->failure.text[0] = '\0';
	conn->worked = false;
	if (set_up_handle(conn) < 0) {
		note_failure(conn);
		/* libnbd connects at once, and may be refused at once */
		if (conn->failure.code != EINVAL)
			conn->failure.at = BLK_NBD_AT_CONNECT;
		nbd_conn_close(conn);
		return -1;
	}
	conn->at = BLK_NBD_AT_CONNECT;
	conn->state = NBD_CONNECTING;
	conn->until_ns = ring_now_ns() + (uint64_t)conn->store->config.connect_ms * 1000000;
	return 0;
}

/* A dead peer is found out even if its host is: by keepalive, and by data that nobody acknowledges. */
static void tune_socket(struct nbd_conn *conn)
{
	int fd = nbd_aio_get_fd(conn->h);
	unsigned timeout = conn->store->config.reconnect_ms > 5000 ? conn->store->config.reconnect_ms : 5000;
	int on = 1, idle = 10, interval = 5, count = 3, domain = 0;
	socklen_t len = sizeof(domain);

	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) < 0 || (domain != AF_INET && domain != AF_INET6))
		return;
	if (setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on)) < 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle)) < 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval)) < 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count)) < 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, sizeof(timeout)) < 0)
		return;	/* it works without, only slower to find out */
}

int nbd_conn_info(struct nbd_conn *conn, struct blk_nbd_info *info)
{
	struct nbd_handle *h = conn->h;
	int64_t size = nbd_get_size(h);
	int64_t min = nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM);
	int64_t preferred = nbd_get_block_size(h, LIBNBD_SIZE_PREFERRED);
	int64_t max = nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM);

	conn->at = BLK_NBD_AT_HANDSHAKE;
	if (size < 0) {
		note_failure(conn);
		return -1;
	}
	info->size = (uint64_t)size;
	info->block_min = min > 0 && min <= 65536 && (min & (min - 1)) == 0 ? (uint32_t)min : 1;
	info->block_preferred = preferred > 0 && preferred <= NBD_DATA ? (uint32_t)preferred : 4096;
	info->block_max = max > 0 && max < NBD_DATA ? (uint32_t)max : NBD_DATA;
	info->block_max -= info->block_max % info->block_min;
	if (!info->block_max)
		info->block_max = info->block_min;
	info->read_only = nbd_is_read_only(h) != 0;
	info->can_flush = nbd_can_flush(h) > 0;
	info->can_fua = nbd_can_fua(h) > 0;
	info->can_trim = nbd_can_trim(h) > 0;
	info->can_zero = nbd_can_zero(h) > 0;
	info->can_multi_conn = nbd_can_multi_conn(h) > 0;
	info->tls = nbd_get_tls_negotiated(h) > 0;
	info->rotational = nbd_is_rotational(h) > 0;
	return 0;
}

/* Another server, or another image, under the same address would be somebody else's disk. */
static const char *differs(const struct nbd_store *s, const struct blk_nbd_info *now)
{
	if (now->size < s->info.size)
		return "the export is smaller than it was";
	if (now->read_only && s->store.can)
		return "the export is read-only now";
	if (now->block_min > s->info.block_min)
		return "the export wants larger blocks than it did";
	if (now->block_max < s->info.block_max)
		return "the export takes smaller requests than it did";
	if (now->can_flush < s->info.can_flush || now->can_fua < s->info.can_fua || now->can_trim < s->info.can_trim ||
	    now->can_zero < s->info.can_zero)
		return "the export no longer offers what it did (flush, FUA, trim or zeroes)";
	return NULL;
}

/* CONNECTING, after something happened. 1: ready, 0: not yet, -1: failed. */
static int progress(struct nbd_conn *conn, int rc)
{
	struct nbd_handle *h = conn->h;

	if (rc < 0)
		note_failure(conn);
	if (nbd_aio_is_ready(h))
		return 1;
	if (nbd_aio_is_dead(h) || nbd_aio_is_closed(h)) {
		if (rc >= 0)
			note_words(conn, 0, "the server closed the connection");
		return -1;
	}
	if (rc < 0)
		return -1;
	if (ring_now_ns() >= conn->until_ns) {
		note_words(conn, ETIMEDOUT, "no answer in time");
		return -1;
	}
	return 0;
}

/* --- waiting ---------------------------------------------------------------------------------------------------- */

static short wanted(struct nbd_handle *h)
{
	unsigned direction = nbd_aio_get_direction(h);

	return (short)((direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
		       (direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0));
}

/* Give libnbd what poll() found. */
static int notify(struct nbd_conn *conn, short revents)
{
	struct nbd_handle *h = conn->h;
	unsigned direction = nbd_aio_get_direction(h);

	if (conn->state == NBD_CONNECTING && (revents & POLLIN) && !(revents & POLLERR))
		conn->at = BLK_NBD_AT_HANDSHAKE;
	if ((revents & (POLLIN | POLLHUP | POLLERR)) && (direction & LIBNBD_AIO_DIRECTION_READ))
		return nbd_aio_notify_read(h);
	if ((revents & (POLLOUT | POLLHUP | POLLERR)) && (direction & LIBNBD_AIO_DIRECTION_WRITE))
		return nbd_aio_notify_write(h);
	return 0;
}

static int poll_until(struct pollfd *fds, nfds_t nr, uint64_t until_ns)
{
	uint64_t now_ns = ring_now_ns();
	uint64_t ns = until_ns > now_ns ? until_ns - now_ns : 0;
	struct timespec ts = { .tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000) };

	return ppoll(fds, nr, until_ns == UINT64_MAX ? NULL : &ts, NULL);
}

int nbd_conn_open(struct nbd_conn *conn)
{
	int rc;

	if (begin(conn) < 0)
		return -1;
	while ((rc = progress(conn, 0)) == 0) {
		struct pollfd pfd = { .fd = nbd_aio_get_fd(conn->h), .events = wanted(conn->h) };

		if (poll_until(&pfd, 1, conn->until_ns) > 0) {
			rc = progress(conn, notify(conn, pfd.revents));
			if (rc)
				break;
		}
	}
	if (rc < 0) {
		nbd_conn_close(conn);
		conn->state = NBD_DOWN;
		return -1;
	}
	conn->state = NBD_UP;
	atomic_store(&conn->up, 1);
	tune_socket(conn);
	return 0;
}

/* --- the thread ------------------------------------------------------------------------------------------------- */

static void back_off(struct nbd_conn *conn)
{
	nbd_conn_close(conn);
	conn->state = NBD_DOWN;
	conn->next_try_ns = ring_now_ns() + (uint64_t)conn->backoff_ms * 1000000;
	conn->backoff_ms *= 2;
	if (conn->backoff_ms > NBD_BACKOFF_MAX_MS)
		conn->backoff_ms = NBD_BACKOFF_MAX_MS;
}

/* UP -> DOWN. What was under way is back in @todo. */
static void lost(struct nbd_conn *conn)
{
	if (conn->worked)
		conn->backoff_ms = NBD_BACKOFF_MIN_MS;
	conn->down_since_ns = ring_now_ns();
	atomic_store(&conn->up, 0);
	atomic_fetch_add(&conn->store->losses, 1);
	back_off(conn);
	nbd_ops_settle(conn);
	nbd_ops_requeue(conn);
	news(conn);
}

/* CONNECTING -> UP, or DOWN if this is not what we know. */
static void connected(struct nbd_conn *conn)
{
	struct blk_nbd_info now;
	const char *why;

	memset(&now, 0, sizeof(now));
	if (nbd_conn_info(conn, &now) < 0) {
		back_off(conn);
		return;
	}
	why = differs(conn->store, &now);
	if (why) {
		note_words(conn, ESTALE, why);
		back_off(conn);
		return;
	}
	tune_socket(conn);
	conn->state = NBD_UP;
	conn->down_since_ns = 0;
	atomic_store(&conn->expired, 0);
	atomic_store(&conn->up, 1);
	atomic_fetch_add(&conn->store->reconnects, 1);
	news(conn);
}

static uint64_t expires_ns(const struct nbd_conn *conn)
{
	return conn->down_since_ns + (uint64_t)conn->store->config.reconnect_ms * 1000000;
}

/* While there is no server. */
static void without_server(struct nbd_conn *conn)
{
	uint64_t now_ns = ring_now_ns();

	if (!atomic_load(&conn->expired) && now_ns >= expires_ns(conn)) {
		atomic_store(&conn->expired, 1);
		news(conn);
	}
	if (atomic_load(&conn->expired))
		nbd_ops_fail(conn);
	if (conn->state == NBD_DOWN && now_ns >= conn->next_try_ns && begin(conn) < 0)
		back_off(conn);
}

static uint64_t wake_at(const struct nbd_conn *conn)
{
	uint64_t until_ns;

	if (conn->state == NBD_UP)
		return UINT64_MAX;
	until_ns = conn->state == NBD_DOWN ? conn->next_try_ns : conn->until_ns;
	if (!atomic_load(&conn->expired) && expires_ns(conn) < until_ns)
		until_ns = expires_ns(conn);
	return until_ns;
}

/* Returns what poll() found on the socket. */
static short wait_events(struct nbd_conn *conn)
{
	struct pollfd fds[2] = { { .fd = conn->wake_fd, .events = POLLIN }, { .fd = -1 } };
	uint64_t until_ns = wake_at(conn);
	uint64_t count;
	int n;

	if (conn->h) {
		fds[1].fd = nbd_aio_get_fd(conn->h);
		fds[1].events = wanted(conn->h);
	}
	/* pairs with nbd.c, nbd_start() */
	atomic_store(&conn->sleeping, 1);
	if (atomic_load(&conn->posted))
		until_ns = 0;
	n = poll_until(fds, 2, until_ns);
	atomic_store_explicit(&conn->sleeping, 0, memory_order_relaxed);
	if (n <= 0)
		return 0;
	if (fds[0].revents && read(conn->wake_fd, &count, sizeof(count)) < 0)
		return fds[1].revents;
	return fds[1].revents;
}

static void handle_socket(struct nbd_conn *conn, short revents)
{
	int rc = revents ? notify(conn, revents) : 0;

	if (conn->state == NBD_CONNECTING) {
		rc = progress(conn, rc);
		if (rc > 0)
			connected(conn);
		else if (rc < 0)
			back_off(conn);
		return;
	}
	if (rc < 0) {
		note_failure(conn);
		conn->failing = true;
	} else if (nbd_aio_is_dead(conn->h) || nbd_aio_is_closed(conn->h)) {
		note_words(conn, 0, "the server closed the connection");
		conn->failing = true;
	}
}

/* UP: send what is there and settle what came, until nothing moves. */
static void with_server(struct nbd_conn *conn)
{
	do {
		nbd_ops_settle(conn);
		nbd_ops_send(conn);
	} while (conn->finished.first);
	if (!conn->failing && !nbd_aio_is_dead(conn->h) && !nbd_aio_is_closed(conn->h))
		return;
	if (!conn->failure.text[0])
		note_words(conn, 0, "the server went away");
	lost(conn);
}

/* A server that is told can clean up; one that does not answer is not waited for long. */
static void say_goodbye(struct nbd_conn *conn)
{
	uint64_t until_ns = ring_now_ns() + (uint64_t)NBD_GOODBYE_MS * 1000000;

	if (conn->state != NBD_UP || nbd_aio_disconnect(conn->h, 0) < 0)
		return;
	while (!nbd_aio_is_dead(conn->h) && !nbd_aio_is_closed(conn->h) && ring_now_ns() < until_ns) {
		struct pollfd pfd = { .fd = nbd_aio_get_fd(conn->h), .events = wanted(conn->h) };

		if (poll_until(&pfd, 1, until_ns) > 0 && notify(conn, pfd.revents) < 0)
			return;
	}
}

void *nbd_conn_main(void *arg)
{
	struct nbd_conn *conn = arg;
	struct nbd_store *s = conn->store;

	while (!atomic_load(&s->stop)) {
		short revents;

		nbd_ops_take(conn);
		if (conn->state == NBD_UP)
			with_server(conn);
		else
			without_server(conn);
		revents = wait_events(conn);
		if (conn->h)
			handle_socket(conn, revents);
	}
	say_goodbye(conn);
	nbd_conn_close(conn);
	return NULL;
}
