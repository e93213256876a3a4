/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nbd_op.c - requests at a connection: cut into commands, sent, settled, sent again after a loss.
 *
 * Theory of operation
 *   An NBD command has one buffer. A request of few large pieces becomes one command per piece, straight from and to the
 *   guest's pages; many small pieces, or pieces that are no multiple of the server's block, go through a buffer of ours.
 *   A round is what was sent at once; a request may be done in part, io.c asks again for the rest. Ranges (trim, zero)
 *   go round by round until all of it is done, because io.c takes no part of them.
 *
 *   Durable writes carry FUA, or where the server has none are followed by a flush.
 *
 *   The callback of a command runs inside libnbd, which holds the handle's lock: it only counts.
 */
#include <stdlib.h>

#include "devices/blk/csrc/nbd_int.h"

/* --- lists ------------------------------------------------------------------------------------------------------ */

static void put_last(struct nbd_list *list, struct nbd_op *op)
{
	op->next = NULL;
	op->prev = list->last;
	if (list->last)
		list->last->next = op;
	else
		list->first = op;
	list->last = op;
}

static void put_first(struct nbd_list *list, struct nbd_op *op)
{
	op->prev = NULL;
	op->next = list->first;
	if (list->first)
		list->first->prev = op;
	else
		list->last = op;
	list->first = op;
}

static void take_out(struct nbd_list *list, struct nbd_op *op)
{
	if (op->prev)
		op->prev->next = op->next;
	else
		list->first = op->next;
	if (op->next)
		op->next->prev = op->prev;
	else
		list->last = op->prev;
}

/* --- to and from workers ---------------------------------------------------------------------------------------- */

/* On the worker's thread. */
static void run_done(struct ring_task *task)
{
	struct blk_req *req = (struct blk_req *)(void *)((char *)task - offsetof(struct blk_req, task));

	req->done(req, (int)(int64_t)req->scratch[1]);
}

static void answer(struct blk_req *req, int res)
{
	struct ring_worker *w;

	if (!req->q) {	/* blk_nbd_sync() */
		req->done(req, res);
		return;
	}
	w = req->q->source.worker;
	req->scratch[1] = (uint64_t)(int64_t)res;
	req->task.run = run_done;
	ring_worker_head(w)->api->post(w, &req->task);	/* from here on the request is the worker's */
}

static void give_buffer(struct nbd_op *op)
{
	struct nbd_conn *conn = op->conn;

	if (!op->buffer)
		return;
	conn->buffers[conn->nr_buffers++] = op->buffer;
	op->buffer = NULL;
}

/* @op is in no list. */
static void finish(struct nbd_op *op, int res)
{
	struct nbd_conn *conn = op->conn;
	struct blk_req *req = op->req;

	give_buffer(op);
	op->next = conn->spare;
	conn->spare = op;
	answer(req, res);
}

static struct nbd_op *new_op(struct nbd_conn *conn, struct blk_req *req)
{
	struct nbd_op *op = conn->spare;

	if (op)
		conn->spare = op->next;
	else
		op = malloc(sizeof(*op));
	if (op)
		*op = (struct nbd_op){ .conn = conn, .req = req };
	return op;
}

void nbd_ops_take(struct nbd_conn *conn)
{
	struct blk_req *newest = atomic_exchange(&conn->posted, NULL);
	struct blk_req *oldest = NULL;

	while (newest) {
		struct blk_req *next = (struct blk_req *)(uintptr_t)newest->scratch[0];

		newest->scratch[0] = (uintptr_t)oldest;
		oldest = newest;
		newest = next;
	}
	while (oldest) {
		struct blk_req *next = (struct blk_req *)(uintptr_t)oldest->scratch[0];
		struct nbd_op *op = new_op(conn, oldest);

		if (op)
			put_last(&conn->todo, op);
		else
			answer(oldest, -ENOMEM);
		oldest = next;
	}
}

/* --- commands --------------------------------------------------------------------------------------------------- */

/* Inside libnbd: no call of libnbd here. */
static int command_done(void *arg, int *error)
{
	struct nbd_op *op = arg;

	if (*error && !op->error)
		op->error = *error;
	if (--op->pending == 0) {
		take_out(&op->conn->active, op);
		put_last(&op->conn->finished, op);
	}
	return 1;	/* retire the command */
}

/* One command of @op. @buf: of reads and writes. */
static void send_command(struct nbd_op *op, uint32_t sub, void *buf, uint64_t count, uint64_t offset, uint32_t flags)
{
	const nbd_completion_callback done = { .callback = command_done, .user_data = op };
	struct nbd_handle *h = op->conn->h;
	int64_t cookie;

	op->pending++;
	switch (sub) {
	case BLK_READ:
		cookie = nbd_aio_pread(h, buf, count, offset, done, flags);
		break;
	case BLK_WRITE:
		cookie = nbd_aio_pwrite(h, buf, count, offset, done, flags);
		break;
	case BLK_FLUSH:
		cookie = nbd_aio_flush(h, done, flags);
		break;
	case BLK_DISCARD:
		cookie = nbd_aio_trim(h, count, offset, done, flags);
		break;
	default:
		cookie = nbd_aio_zero(h, count, offset, done, flags);
		break;
	}
	atomic_fetch_add_explicit(&op->conn->store->commands, 1, memory_order_relaxed);
	if (cookie >= 0)
		return;
	/* not taken, and the callback will not come */
	op->pending--;
	if (!op->error)
		op->error = nbd_aio_is_dead(h) || nbd_aio_is_closed(h) ? ENOTCONN : nbd_get_errno();
	if (!op->error)
		op->error = EIO;
}

static void copy_pieces(const struct blk_req *req, uint8_t *buf, uint64_t n, bool to_guest)
{
	const struct ring_iov *piece = req->x_iov;

	while (n) {
		uint64_t part = piece->len < n ? piece->len : n;

		if (to_guest)
			shm_copy_out(piece->base, buf, part);
		else
			shm_copy_in(buf, piece->base, part);
		buf += part;
		n -= part;
		piece++;
	}
}

static uint32_t write_flags(const struct nbd_op *op)
{
	return op->req->sub == BLK_WRITE && op->req->durable && op->conn->store->info.can_fua ? LIBNBD_CMD_FLAG_FUA : 0;
}

/* One buffer is better than one command per piece, or the only way. */
static bool wants_buffer(const struct nbd_op *op)
{
	const struct blk_req *req = op->req;
	uint32_t min = op->conn->store->info.block_min;
	uint64_t pieces = 0;
	uint32_t i;

	if (req->x_nr <= 1)
		return false;
	if (req->x_len / req->x_nr < NBD_SMALL)
		return true;
	for (i = 0; i < req->x_nr; i++)
		pieces |= req->x_iov[i].len;
	return (pieces & (min - 1)) != 0;
}

static int send_by_buffer(struct nbd_op *op)
{
	struct nbd_conn *conn = op->conn;
	struct blk_req *req = op->req;
	uint64_t max = conn->store->info.block_max;

	if (!op->buffer) {
		if (!conn->nr_buffers)
			return BLK_LATER;
		op->buffer = conn->buffers[--conn->nr_buffers];
		atomic_fetch_add_explicit(&conn->store->bounced, 1, memory_order_relaxed);
	}
	op->round = req->x_len;
	if (op->round > NBD_BUFFER_BYTES)
		op->round = NBD_BUFFER_BYTES;
	if (op->round > max)
		op->round = max;
	if (req->sub == BLK_WRITE)
		copy_pieces(req, op->buffer, op->round, false);
	send_command(op, req->sub, op->buffer, op->round, req->offset, write_flags(op));
	return 0;
}

/* Each piece from where it lies. The first error ends the round: what was sent is waited for. */
static void send_in_place(struct nbd_op *op)
{
	const struct blk_req *req = op->req;
	uint64_t max = op->conn->store->info.block_max;
	uint32_t flags = write_flags(op);
	uint32_t nr = 0;
	uint32_t i;

	op->round = 0;
	for (i = 0; i < req->x_nr; i++) {
		uint8_t *base = req->x_iov[i].base;
		uint64_t left = req->x_iov[i].len;

		while (left) {
			uint64_t part = left < max ? left : max;

			if (nr++ == NBD_COMMANDS || op->error || op->round + part > INT32_MAX)
				return;
			send_command(op, req->sub, base, part, req->offset + op->round, flags);
			op->round += part;
			base += part;
			left -= part;
		}
	}
}

static void send_range(struct nbd_op *op)
{
	const struct blk_req *req = op->req;
	uint64_t left = req->x_len - op->pos;
	uint32_t flags = req->sub == BLK_ZERO && !req->unmap ? LIBNBD_CMD_FLAG_NO_HOLE : 0;

	op->round = left < NBD_RANGE ? left : NBD_RANGE;
	send_command(op, req->sub, NULL, op->round, req->offset + op->pos, flags);
}

static void send_flush(struct nbd_op *op)
{
	op->round = 0;
	send_command(op, BLK_FLUSH, NULL, 0, 0, 0);
}

/* @op was taken from @todo. BLK_LATER: no buffer is free; it is in no list then. */
static int send_op(struct nbd_op *op)
{
	const struct blk_nbd_info *info = &op->conn->store->info;
	const struct blk_req *req = op->req;
	bool data = req->sub <= BLK_WRITE && !op->flushing;
	int rc = 0;

	if (!op->flushing && ((req->sub == BLK_FLUSH && !info->can_flush) || (req->sub > BLK_FLUSH && !req->x_len))) {
		finish(op, 0);	/* what such a server has answered it has written */
		return 0;
	}
	if ((req->sub == BLK_DISCARD && !info->can_trim) || (req->sub == BLK_ZERO && !info->can_zero) ||
	    req->sub > BLK_ZERO) {
		finish(op, -EOPNOTSUPP);
		return 0;
	}
	op->error = 0;
	/* commands may be answered while they are being sent: one more keeps the op where it is */
	op->pending = 1;
	put_last(&op->conn->active, op);
	if (!data && req->sub > BLK_FLUSH)
		send_range(op);
	else if (!data)
		send_flush(op);
	else if (wants_buffer(op))
		rc = send_by_buffer(op);
	else
		send_in_place(op);
	if (rc == BLK_LATER) {
		take_out(&op->conn->active, op);
		return rc;
	}
	if (--op->pending == 0) {
		take_out(&op->conn->active, op);
		put_last(&op->conn->finished, op);
	}
	return 0;
}

void nbd_ops_send(struct nbd_conn *conn)
{
	while (conn->todo.first && !conn->failing) {
		struct nbd_op *op = conn->todo.first;

		take_out(&conn->todo, op);
		if (send_op(op) == BLK_LATER) {
			put_first(&conn->todo, op);
			return;
		}
	}
}

/* --- the end of a round ----------------------------------------------------------------------------------------- */

/* The server is gone or about to go: the request itself is not to blame. */
static bool is_loss(int error)
{
	return error == ENOTCONN || error == ESHUTDOWN;
}

/* It will be sent once more, on another connection. */
static void again(struct nbd_op *op)
{
	give_buffer(op);	/* whoever stands in front of it may need one */
	op->pending = 0;
	op->flushing = false;	/* the server may have forgotten what it had only in its cache: written again first */
	op->attempts++;
	atomic_fetch_add_explicit(&op->conn->store->replayed, 1, memory_order_relaxed);
}

static void settle(struct nbd_op *op)
{
	struct nbd_conn *conn = op->conn;
	struct blk_req *req = op->req;

	if (is_loss(op->error)) {
		conn->failing = true;
		again(op);
		put_last(&conn->todo, op);
		return;
	}
	conn->worked = true;
	if (op->error) {
		/* io.c knows some errors as its own signals: what the server says is not among them */
		finish(op, op->error == EOPNOTSUPP ? -EOPNOTSUPP : op->error == ENOSPC ? -ENOSPC : -EIO);
		return;
	}
	if (req->sub > BLK_FLUSH) {
		op->pos += op->round;
		if (op->pos < req->x_len)
			put_first(&conn->todo, op);
		else
			finish(op, 0);
		return;
	}
	if (op->flushing || req->sub == BLK_FLUSH) {
		finish(op, req->sub == BLK_FLUSH ? 0 : (int)op->pos);
		return;
	}
	if (op->buffer && req->sub == BLK_READ)
		copy_pieces(req, op->buffer, op->round, true);
	if (req->sub == BLK_WRITE && req->durable && !conn->store->info.can_fua && conn->store->info.can_flush) {
		op->pos = op->round;	/* what is written, answered after the flush */
		op->flushing = true;
		give_buffer(op);
		put_first(&conn->todo, op);
		return;
	}
	finish(op, (int)op->round);
}

void nbd_ops_settle(struct nbd_conn *conn)
{
	struct nbd_op *op;

	while ((op = conn->finished.first) != NULL) {
		take_out(&conn->finished, op);
		settle(op);
	}
}

static void give_up(struct nbd_op *op)
{
	atomic_fetch_add_explicit(&op->conn->store->failed, 1, memory_order_relaxed);
	take_out(&op->conn->todo, op);
	finish(op, -EIO);
}

void nbd_ops_requeue(struct nbd_conn *conn)
{
	struct nbd_op *op, *next;

	while ((op = conn->active.last) != NULL) {
		take_out(&conn->active, op);
		again(op);
		put_first(&conn->todo, op);
	}
	for (op = conn->todo.first; op; op = next) {
		next = op->next;
		if (op->attempts > NBD_ATTEMPTS)
			give_up(op);
	}
}

void nbd_ops_fail(struct nbd_conn *conn)
{
	while (conn->todo.first)
		give_up(conn->todo.first);
}

void nbd_ops_free(struct nbd_conn *conn)
{
	struct nbd_list *lists[] = { &conn->todo, &conn->active, &conn->finished };
	struct nbd_op *op;
	size_t i;

	for (i = 0; i < sizeof(lists) / sizeof(lists[0]); i++) {
		while ((op = lists[i]->first) != NULL) {
			take_out(lists[i], op);
			free(op);
		}
	}
	while ((op = conn->spare) != NULL) {
		conn->spare = op->next;
		free(op);
	}
}
