/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuse_fuzz.c - what a guest asks of a file system: any request, in any pieces, with any room for the answer.
 *
 * An input is struct input below, little-endian, the lengths of the pieces, and the bytes of the request. Pieces are heap
 * blocks of exactly their length, so that the sanitizers see every byte beyond. What they cannot see is asserted: what
 * was decoded lies where it may, is as long as it says, and after the answer the chain is as it was.
 *
 * With -DREPLAY it is a program that runs files instead of a libFuzzer target; it prints how many bytes each was answered.
 */
#include "devices/fs/csrc/fs_int.h"
#include "tests/fuzz/fuzz.h"

enum {
	MAX_PIECES = 16,

	/* input.flags */
	LONG_XATTR = 1,		/* FUSE_SETXATTR_EXT was negotiated */
	CONTEXT = 2,		/* FUSE_SECURITY_CTX */
	CHANGES = 4,		/* the guest writes to its pages after they were looked at */
	FAILS = 8,		/* the server says -ENOENT */
};

struct input {
	uint8_t flags;
	uint8_t nr_out;		/* pieces but one, modulo */
	uint8_t nr_in;
	uint8_t zeros;		/* hundreds of zeros behind the request's bytes */
	uint16_t reply;		/* bytes that the server answers with, modulo what it may */
	uint16_t room;		/* bytes of the last writable piece; the others' lengths follow */
};

static struct state {
	struct input in;
	struct fs_server server;
	struct fs_req req;
	struct ring_chain chain;
	struct ring_iov iov[2 * MAX_PIECES + 2];
	struct ring_iov before[2 * MAX_PIECES + 2];
	char *text;
	unsigned long long total;
} s;

static void fail(const char *what)
{
	fprintf(stderr, "fuse_fuzz: opcode %u: %s\n", s.req.in.opcode, what);
	abort();
}

/* --- the chain ---------------------------------------------------------------------------------------------------- */

static struct ring_iov *add_piece(size_t len)
{
	struct ring_iov *iov = &s.iov[s.chain.nr_out + s.chain.nr_in];

	if (!len)
		return NULL;	/* chains have none: walk.c leaves them out */
	iov->base = calloc(1, len);
	iov->len = len;
	return iov;
}

static void add_out(const uint8_t **data, size_t *left, size_t len)
{
	struct ring_iov *iov = add_piece(len);

	if (!iov)
		return;
	take(data, left, iov->base, len);
	s.chain.out_bytes += (uint32_t)len;
	s.chain.nr_out++;
}

static void add_in(size_t len)
{
	if (!add_piece(len))
		return;
	s.chain.in_bytes += (uint32_t)len;
	s.chain.nr_in++;
}

static void make_chain(const uint8_t *data, size_t left)
{
	uint16_t lens[2 * MAX_PIECES];
	uint32_t i, out = s.in.nr_out % MAX_PIECES, in = s.in.nr_in % MAX_PIECES;
	size_t all;

	memset(lens, 0, sizeof(lens));
	take(&data, &left, lens, (out + in) * sizeof(lens[0]));
	for (i = 0; i < out; i++)
		add_out(&data, &left, lens[i]);
	all = left + 100u * s.in.zeros;
	add_out(&data, &left, all);
	for (i = 0; i < in; i++)
		add_in(lens[out + i]);
	add_in(s.in.room);
}

/* --- what was decoded --------------------------------------------------------------------------------------------- */

/* Pieces lie in those of the chain from @first on, behind @skip bytes of them, @len bytes in all. */
static void check_pieces(const struct ring_iov *pieces, uint32_t nr, uint32_t len, uint32_t first, uint32_t count,
			 int fill)
{
	uint64_t sum = 0;
	uint32_t i, k;

	for (i = 0; i < nr; i++) {
		const uint8_t *base = pieces[i].base;

		sum += pieces[i].len;
		for (k = first; k < first + count; k++) {
			const uint8_t *from = s.before[k].base;

			if (base >= from && base + pieces[i].len <= from + s.before[k].len)
				break;
		}
		if (k == first + count)
			fail("a piece that is none of the chain's");
		if (fill >= 0)
			memset(pieces[i].base, fill, pieces[i].len);
		else if (pieces[i].len && base[0] + base[pieces[i].len - 1] > 510)
			fail("cannot be");
	}
	if (sum != len)
		fail("pieces that are not as long as they are said to be");
}

static bool in_text(const void *at, size_t len)
{
	const char *from = at;

	return from >= s.text && len <= FS_TEXT_MAX && from + len <= s.text + FS_TEXT_MAX;
}

static void check_name(const char *name, uint32_t len, uint32_t most)
{
	if (!name) {
		if (len)
			fail("the length of no name");
		return;
	}
	if (!len || len > most || !in_text(name, len + 1) || strlen(name) != len)
		fail("a name that is none");
}

static void check(void)
{
	struct fs_req *req = &s.req;
	uint32_t i, sum = 0;

	check_name(req->name, req->name_len, FS_NAME_MAX);
	check_name(req->name2, req->name2_len, FS_PATH_MAX - 1);
	if (req->nr_groups > FS_GROUPS_MAX)
		fail("too many groups");
	for (i = 0; i < req->nr_groups; i++)
		sum += req->groups[i];
	if (req->secctx) {
		if (!in_text(req->secctx_name, strlen(req->secctx_name) + 1) || !in_text(req->secctx_value, req->secctx_len))
			fail("a security context outside the request");
		for (i = 0; i < req->secctx_len; i++)
			sum += req->secctx_value[i];
	}
	if (sum == 1 && !req->nr_groups && !req->secctx)
		fail("cannot be");
	if (req->data_len > s.chain.out_bytes - sizeof(req->in))
		fail("more data than came");
	check_pieces(req->data, req->nr_data, req->data_len, 0, s.chain.nr_out, -1);
	if (req->shape & FS_SHAPE_SILENT)
		return;
	if (req->room_len > s.chain.in_bytes - sizeof(req->head))
		fail("more room than there is");
	if (req->shape & FS_SHAPE_ROOM)
		check_pieces(req->room, req->nr_room, req->room_len, s.chain.nr_out, s.chain.nr_in, 0x5a);
}

/* A server answers. */
static int serve(void)
{
	struct fs_req *req = &s.req;
	uint32_t most = req->room_len;

	if (req->shape & FS_SHAPE_SILENT)
		return FS_NONE;
	if (s.in.flags & FAILS)
		return -ENOENT;
	if (req->in.opcode == FUSE_INIT)
		return fs_init(&s.server, req);
	req->in_place = req->shape & FS_SHAPE_ROOM;
	if (!req->in_place && most > FS_OUT_MAX)
		most = FS_OUT_MAX;
	memset(req->out, 0x5a, FS_OUT_MAX);
	return (int)(s.in.reply % (most + 1));
}

/* The bytes of the room, from @skip on. */
static void check_reply(uint32_t written, int result)
{
	struct fuse_out_header head;
	uint32_t i, bytes = result > 0 ? (uint32_t)result : 0;
	uint8_t byte;

	if (memcmp(s.iov, s.before, sizeof(s.iov[0]) * (s.chain.nr_out + s.chain.nr_in)))
		fail("the chain is not as it was");
	if (!written) {
		if (result != FS_NONE && s.chain.in_bytes >= sizeof(head))
			fail("no answer");
		return;
	}
	ring_chain_read(&(struct ring_chain){ .iov = s.chain.iov + s.chain.nr_out, .nr_out = s.chain.nr_in }, 0, &head,
			sizeof(head));
	if (written != sizeof(head) + bytes || head.len != written || head.unique != s.req.in.unique ||
	    head.error != (result < 0 ? result : 0))
		fail("the header of the answer");
	if (s.req.in.opcode == FUSE_INIT)
		return;
	for (i = 0; i < bytes; i++) {
		ring_chain_read(&(struct ring_chain){ .iov = s.chain.iov + s.chain.nr_out, .nr_out = s.chain.nr_in },
				(uint32_t)sizeof(head) + i, &byte, 1);
		if (byte != 0x5a)
			fail("the answer's bytes");
	}
}

static void guest_writes(void)
{
	for (uint32_t i = 0; i < s.chain.nr_out; i++)
		memset(s.iov[i].base, 0xff, s.iov[i].len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint32_t written;
	int result;

	memset(&s, 0, sizeof(s));
	take(&data, &size, &s.in, sizeof(s.in));
	s.chain.iov = s.iov;
	make_chain(data, size);
	memcpy(s.before, s.iov, sizeof(s.iov));
	s.server.can = UINT64_MAX;
	s.server.flags = (s.in.flags & LONG_XATTR ? FUSE_SETXATTR_EXT : 0) | (s.in.flags & CONTEXT ? FUSE_SECURITY_CTX : 0);
	s.text = malloc(FS_TEXT_MAX);
	s.req.server = &s.server;
	s.req.text = s.text;
	memset(&s.req.arg, 0xa5, sizeof(s.req.arg));

	result = fs_decode(&s.req, &s.chain);
	if (s.in.flags & CHANGES)
		guest_writes();
	if (!result) {
		check();
		result = serve();
	} else if (result == -EPROTO) {
		result = FS_NONE;
	} else if (result != -ENOSYS && result != -EINVAL && result != -ENAMETOOLONG && result != -E2BIG) {
		fail("an error that it does not make");
	}
	if (s.req.shape & FS_SHAPE_SILENT)
		result = FS_NONE;
	written = fs_reply(&s.req, result);
	check_reply(written, result);
	s.total = s.req.shape && result >= FS_NONE ? written + 1 : 0;
	free(s.text);
	for (uint32_t i = 0; i < s.chain.nr_out + s.chain.nr_in; i++)
		free(s.iov[i].base);
	return 0;
}

FUZZ_REPLAY(s.total)
