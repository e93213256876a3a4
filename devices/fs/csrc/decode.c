/* SPDX-License-Identifier: Apache-2.0 */
/*
 * decode.c - what a guest asks for: one look at header, arguments, names and lengths of every opcode.
 *
 * Rules
 * - The request is the first in.len readable bytes, wherever descriptors begin and end; the reply begins with the first
 *   writable byte. Everything small is copied once; data and large replies stay in the guest's pages.
 * - A length that does not fit is -EINVAL and reaches no server. What is too much (after a name, behind data) is left out.
 * - Pieces are cut to data and room where they lie, in the chain, and mended by fs_reply(): the ring logs them.
 */
#include <string.h>

#include "devices/fs/csrc/fs_int.h"

enum data {
	DATA_NONE,
	DATA_WRITE,	/* fuse_write_in.size bytes */
	DATA_XATTR,	/* fuse_setxattr_in.size bytes, after the name */
	DATA_IOCTL,	/* fuse_ioctl_in.in_size bytes */
	DATA_FORGETS,	/* fuse_batch_forget_in.count entries */
	DATA_MAPPINGS,	/* fuse_removemapping_in.count entries */
	DATA_REST,	/* what there is */
};

enum room {
	ROOM_ANY,	/* as it is */
	ROOM_READ,	/* at most fuse_read_in.size bytes */
	ROOM_XATTR,	/* at most fuse_getxattr_in.size bytes; 0: a fuse_getxattr_out */
	ROOM_IOCTL,	/* fuse_ioctl_out and fuse_ioctl_in.out_size bytes */
};

struct shape {
	uint8_t flags;		/* FS_SHAPE_* */
	uint8_t arg;		/* bytes of the fixed arguments */
	uint8_t arg_min;	/* of older minors; the rest is zero then */
	uint8_t names;
	uint8_t data;		/* enum data */
	uint8_t room;		/* enum room */
	uint16_t reply;		/* bytes of room that the reply needs */
};

#define IN(type) sizeof(struct fuse_##type##_in)
#define OUT(type) sizeof(struct fuse_##type##_out)
#define ARG(type) .arg = IN(type), .arg_min = IN(type)
#define KNOWN .flags = FS_SHAPE_KNOWN
#define WITH(f) .flags = FS_SHAPE_KNOWN | (f)

static const struct shape shapes[FS_OPS] = {
	[FUSE_LOOKUP] = { KNOWN, .names = 1, .reply = OUT(entry) },
	[FUSE_FORGET] = { WITH(FS_SHAPE_SILENT | FS_SHAPE_HIPRIO), ARG(forget) },
	[FUSE_GETATTR] = { KNOWN, ARG(getattr), .reply = OUT(attr) },
	[FUSE_SETATTR] = { KNOWN, ARG(setattr), .reply = OUT(attr) },
	[FUSE_READLINK] = { WITH(FS_SHAPE_ROOM) },
	[FUSE_SYMLINK] = { WITH(FS_SHAPE_EXT), .names = 2, .reply = OUT(entry) },
	[FUSE_MKNOD] = { WITH(FS_SHAPE_EXT), ARG(mknod), .names = 1, .reply = OUT(entry) },
	[FUSE_MKDIR] = { WITH(FS_SHAPE_EXT), ARG(mkdir), .names = 1, .reply = OUT(entry) },
	[FUSE_UNLINK] = { KNOWN, .names = 1 },
	[FUSE_RMDIR] = { KNOWN, .names = 1 },
	[FUSE_RENAME] = { KNOWN, ARG(rename), .names = 2 },
	[FUSE_LINK] = { KNOWN, ARG(link), .names = 1, .reply = OUT(entry) },
	[FUSE_OPEN] = { KNOWN, ARG(open), .reply = OUT(open) },
	[FUSE_READ] = { WITH(FS_SHAPE_ROOM), ARG(read), .room = ROOM_READ },
	[FUSE_WRITE] = { KNOWN, ARG(write), .data = DATA_WRITE, .reply = OUT(write) },
	[FUSE_STATFS] = { KNOWN, .reply = OUT(statfs) },
	[FUSE_RELEASE] = { KNOWN, ARG(release) },
	[FUSE_FSYNC] = { KNOWN, ARG(fsync) },
	[FUSE_SETXATTR] = { KNOWN, .arg = IN(setxattr), .arg_min = FUSE_COMPAT_SETXATTR_IN_SIZE, .names = 1,
			    .data = DATA_XATTR },
	[FUSE_GETXATTR] = { WITH(FS_SHAPE_ROOM), ARG(getxattr), .names = 1, .room = ROOM_XATTR },
	[FUSE_LISTXATTR] = { WITH(FS_SHAPE_ROOM), ARG(getxattr), .room = ROOM_XATTR },
	[FUSE_REMOVEXATTR] = { KNOWN, .names = 1 },
	[FUSE_FLUSH] = { KNOWN, ARG(flush) },
	/* 7.36 made it longer; major and minor are all that other majors have in common */
	[FUSE_INIT] = { WITH(FS_SHAPE_CORE), .arg = IN(init), .arg_min = 8, .reply = FUSE_COMPAT_22_INIT_OUT_SIZE },
	[FUSE_OPENDIR] = { KNOWN, ARG(open), .reply = OUT(open) },
	[FUSE_READDIR] = { WITH(FS_SHAPE_ROOM), ARG(read), .room = ROOM_READ },
	[FUSE_RELEASEDIR] = { KNOWN, ARG(release) },
	[FUSE_FSYNCDIR] = { KNOWN, ARG(fsync) },
	[FUSE_GETLK] = { KNOWN, ARG(lk), .reply = OUT(lk) },
	[FUSE_SETLK] = { KNOWN, ARG(lk) },
	[FUSE_SETLKW] = { KNOWN, ARG(lk) },
	[FUSE_ACCESS] = { KNOWN, ARG(access) },
	[FUSE_CREATE] = { WITH(FS_SHAPE_EXT), ARG(create), .names = 1, .reply = OUT(entry) + OUT(open) },
	[FUSE_INTERRUPT] = { WITH(FS_SHAPE_CORE | FS_SHAPE_SILENT | FS_SHAPE_HIPRIO), ARG(interrupt) },
	[FUSE_BMAP] = { KNOWN, ARG(bmap), .reply = OUT(bmap) },
	[FUSE_DESTROY] = { WITH(FS_SHAPE_CORE) },
	[FUSE_IOCTL] = { WITH(FS_SHAPE_ROOM), ARG(ioctl), .data = DATA_IOCTL, .room = ROOM_IOCTL, .reply = OUT(ioctl) },
	[FUSE_POLL] = { KNOWN, ARG(poll), .reply = OUT(poll) },
	[FUSE_NOTIFY_REPLY] = { WITH(FS_SHAPE_SILENT), .arg = sizeof(struct fuse_notify_retrieve_in),
				.arg_min = sizeof(struct fuse_notify_retrieve_in), .data = DATA_REST },
	[FUSE_BATCH_FORGET] = { WITH(FS_SHAPE_SILENT | FS_SHAPE_HIPRIO), ARG(batch_forget), .data = DATA_FORGETS },
	[FUSE_FALLOCATE] = { KNOWN, ARG(fallocate) },
	[FUSE_READDIRPLUS] = { WITH(FS_SHAPE_ROOM), ARG(read), .room = ROOM_READ },
	[FUSE_RENAME2] = { KNOWN, ARG(rename2), .names = 2 },
	[FUSE_LSEEK] = { KNOWN, ARG(lseek), .reply = OUT(lseek) },
	[FUSE_COPY_FILE_RANGE] = { KNOWN, ARG(copy_file_range), .reply = OUT(write) },
	[FUSE_SETUPMAPPING] = { KNOWN, ARG(setupmapping) },
	[FUSE_REMOVEMAPPING] = { KNOWN, ARG(removemapping), .data = DATA_MAPPINGS },
	[FUSE_SYNCFS] = { KNOWN, ARG(syncfs) },
	[FUSE_TMPFILE] = { WITH(FS_SHAPE_EXT), ARG(create), .names = 1, .reply = OUT(entry) + OUT(open) },
	[FUSE_STATX] = { KNOWN, ARG(statx), .reply = OUT(statx) },
	[FUSE_COPY_FILE_RANGE_64] = { KNOWN, ARG(copy_file_range), .reply = OUT(copy_file_range) },
};

_Static_assert(IN(setattr) <= FS_ARG_MAX && IN(init) <= FS_ARG_MAX, "the largest arguments");

/* --- pieces ----------------------------------------------------------------------------------------------------- */

/* Where the next byte of the request is. */
struct cursor {
	struct ring_iov *iov;
	uint32_t nr;		/* pieces from @iov on */
	uint32_t left;		/* bytes of the request */
	size_t skip;		/* bytes of the first piece that are done */
};

/* @len, no more than what is left, to private memory. */
static __attribute__((noinline)) void take_pieces(struct cursor *c, void *dst, uint32_t len)
{
	uint8_t *to = dst;

	while (len && c->nr) {
		size_t n = c->iov->len - c->skip;

		if (n > len)
			n = len;
		shm_copy_in(to, (const SHM uint8_t *)c->iov->base + c->skip, n);
		to += n;
		len -= (uint32_t)n;
		c->skip += n;
		if (c->skip == c->iov->len) {
			c->iov++;
			c->nr--;
			c->skip = 0;
		}
	}
}

/* Likewise: nearly always all of the rest of a piece, or of its beginning. */
static inline void take(struct cursor *c, void *dst, uint32_t len)
{
	c->left -= len;
	if (fs_unlikely(c->nr == 0 || c->iov->len - c->skip < len)) {
		take_pieces(c, dst, len);
		return;
	}
	shm_copy_in(dst, (const SHM uint8_t *)c->iov->base + c->skip, len);
	c->skip += len;
	if (c->skip == c->iov->len) {
		c->iov++;
		c->nr--;
		c->skip = 0;
	}
}

static void cut(struct fs_req *req, struct ring_iov *piece, size_t skip, size_t len)
{
	req->cut[req->nr_cut] = piece;
	req->whole[req->nr_cut++] = *piece;
	piece->base = (uint8_t *)piece->base + skip;
	piece->len = len;
}

/* The pieces that hold exactly @len bytes after the first @skip of @iov; cut where they have to be. Returns their number. */
static uint32_t slice(struct fs_req *req, struct ring_iov *iov, uint32_t nr, size_t skip, size_t len,
		      const struct ring_iov **first)
{
	uint32_t n = 0;

	while (nr && skip >= iov->len) {
		skip -= iov->len;
		iov++;
		nr--;
	}
	*first = iov;
	while (len && n < nr) {
		size_t here = iov[n].len - skip;

		if (here > len)
			here = len;
		if (here != iov[n].len)
			cut(req, &iov[n], skip, here);
		skip = 0;
		len -= here;
		n++;
	}
	return n;
}

static void mend(struct fs_req *req)
{
	while (req->nr_cut) {
		req->nr_cut--;
		*req->cut[req->nr_cut] = req->whole[req->nr_cut];
	}
}

/* --- parts of a request ----------------------------------------------------------------------------------------- */

/* A NUL-terminated name of at most @max bytes in [*@text, @end): 0, and *@text is behind it. */
static int one_name(char **text, const char *end, uint32_t max, const char **name, uint32_t *len)
{
	char *nul = *text < end ? memchr(*text, 0, (size_t)(end - *text)) : NULL;

	if (!nul)
		return (size_t)(end - *text) > max ? -ENAMETOOLONG : -EINVAL;
	if ((size_t)(nul - *text) > max)
		return -ENAMETOOLONG;
	if (nul == *text)
		return -EINVAL;
	*name = *text;
	*len = (uint32_t)(nul - *text);
	*text = nul + 1;
	return 0;
}

static size_t aligned(uint32_t n)
{
	return ((size_t)n + 7) & ~(size_t)7;	/* wider than what a guest can say */
}

/* struct fuse_secctx_header and what follows, @len bytes with it. */
static int security_context(struct fs_req *req, char *at, uint32_t len)
{
	struct fuse_secctx_header head;
	struct fuse_secctx ctx;
	char *name, *end = at + len;
	uint32_t name_len;
	int rc;

	memcpy(&head, at, sizeof(head));
	if (head.nr_secctx == 0)
		return 0;
	if (head.nr_secctx > 1 || len < sizeof(head) + sizeof(ctx))	/* one is what Linux sends */
		return -EINVAL;
	memcpy(&ctx, at + sizeof(head), sizeof(ctx));
	name = at + sizeof(head) + sizeof(ctx);
	rc = one_name(&name, end, FS_NAME_MAX, &req->secctx_name, &name_len);
	if (rc)
		return rc;
	if (ctx.size > (size_t)(end - name))
		return -EINVAL;
	req->secctx = true;
	req->secctx_value = (const uint8_t *)name;
	req->secctx_len = ctx.size;
	return 0;
}

static int groups(struct fs_req *req, const char *at, uint32_t len)
{
	struct fuse_supp_groups head;

	if (len < sizeof(struct fuse_ext_header) + sizeof(head))
		return -EINVAL;
	memcpy(&head, at + sizeof(struct fuse_ext_header), sizeof(head));
	if (head.nr_groups > FS_GROUPS_MAX ||
	    head.nr_groups * sizeof(uint32_t) > len - sizeof(struct fuse_ext_header) - sizeof(head))
		return -EINVAL;
	memcpy(req->groups, at + sizeof(struct fuse_ext_header) + sizeof(head), head.nr_groups * sizeof(uint32_t));
	req->nr_groups = head.nr_groups;
	return 0;
}

/* Extensions in [@at, @end): each a fuse_ext_header, whose type below FUSE_MAX_NR_SECCTX is a number of contexts. */
static int extensions(struct fs_req *req, char *at, char *end)
{
	while ((size_t)(end - at) >= sizeof(struct fuse_ext_header)) {
		struct fuse_ext_header head;
		int rc = 0;

		memcpy(&head, at, sizeof(head));
		if (head.size < sizeof(head) || aligned(head.size) > (size_t)(end - at))
			return -EINVAL;
		if (head.type <= FUSE_MAX_NR_SECCTX)
			rc = security_context(req, at, head.size);
		else if (head.type == FUSE_EXT_GROUPS)
			rc = groups(req, at, head.size);
		if (rc)
			return rc;
		at += aligned(head.size);
	}
	return 0;
}

static int names(struct fs_req *req, const struct shape *shape, struct cursor *c)
{
	uint32_t ext = (uint32_t)req->in.total_extlen * 8;
	uint32_t len = c->left;
	char *at = req->text, *end;
	int rc;

	if (len > FS_TEXT_MAX)
		return shape->flags & FS_SHAPE_EXT && ext ? -E2BIG : -ENAMETOOLONG;
	take(c, req->text, len);
	end = at + len;
	if (shape->flags & FS_SHAPE_EXT && ext) {
		if (ext > len)
			return -EINVAL;
		end -= ext;
	}
	rc = one_name(&at, end, FS_NAME_MAX, &req->name, &req->name_len);
	if (!rc && shape->names > 1)
		rc = one_name(&at, end, req->in.opcode == FUSE_SYMLINK ? FS_PATH_MAX - 1 : FS_NAME_MAX, &req->name2,
			      &req->name2_len);
	if (rc || !(shape->flags & FS_SHAPE_EXT))
		return rc;
	if (ext)
		return extensions(req, end, end + ext);
	/* 7.36 and 7.37 have no length of extensions: the context just follows */
	if (req->server->flags & FUSE_SECURITY_CTX && (size_t)(end - at) >= sizeof(struct fuse_secctx_header))
		return security_context(req, at, (uint32_t)(end - at));
	return 0;
}

/* The name of SETXATTR, which data follows. */
static int name_before_data(struct fs_req *req, struct cursor *c)
{
	struct cursor behind = *c;
	uint32_t len = c->left < FS_NAME_MAX + 1 ? c->left : FS_NAME_MAX + 1;
	char *at = req->text;
	int rc;

	take(&behind, req->text, len);
	rc = one_name(&at, req->text + len, FS_NAME_MAX, &req->name, &req->name_len);
	if (rc)
		return len == FS_NAME_MAX + 1 ? -ENAMETOOLONG : rc;
	/* not read again: skipped */
	len = req->name_len + 1;
	c->left -= len;
	c->skip += len;
	while (c->nr && c->skip >= c->iov->len) {
		c->skip -= c->iov->len;
		c->iov++;
		c->nr--;
	}
	return 0;
}

static int data(struct fs_req *req, const struct shape *shape, struct cursor *c)
{
	uint64_t len = 0;

	switch ((enum data)shape->data) {
	case DATA_NONE:
		return 0;
	case DATA_WRITE:
		len = FS_ARG(req, fuse_write_in)->size;
		break;
	case DATA_XATTR:
		len = FS_ARG(req, fuse_setxattr_in)->size;
		break;
	case DATA_IOCTL:
		len = FS_ARG(req, fuse_ioctl_in)->in_size;
		break;
	case DATA_FORGETS:
		len = (uint64_t)FS_ARG(req, fuse_batch_forget_in)->count * sizeof(struct fuse_forget_one);
		break;
	case DATA_MAPPINGS:
		len = (uint64_t)FS_ARG(req, fuse_removemapping_in)->count * sizeof(struct fuse_removemapping_one);
		break;
	case DATA_REST:
		len = c->left;
		break;
	}
	if (len > c->left)
		return -EINVAL;
	req->data_len = (uint32_t)len;
	req->nr_data = slice(req, c->iov, c->nr, c->skip, (size_t)len, &req->data);
	return 0;
}

/* Where a reply of any length goes. */
static int room(struct fs_req *req, const struct shape *shape, struct ring_chain *chain)
{
	uint32_t most = req->room_len;
	uint64_t need;

	switch ((enum room)shape->room) {
	case ROOM_ANY:
		break;
	case ROOM_READ:
		most = FS_ARG(req, fuse_read_in)->size;
		break;
	case ROOM_XATTR:
		most = FS_ARG(req, fuse_getxattr_in)->size;
		if (!most) {
			most = OUT(getxattr);
			if (req->room_len < most)
				return -EINVAL;
		}
		break;
	case ROOM_IOCTL:
		need = OUT(ioctl) + (uint64_t)FS_ARG(req, fuse_ioctl_in)->out_size;
		if (need > req->room_len)
			return -EINVAL;
		most = (uint32_t)need;
		break;
	}
	if (req->room_len > most)
		req->room_len = most;
	req->nr_room = slice(req, chain->iov + chain->nr_out, chain->nr_in, sizeof(struct fuse_out_header),
			     req->room_len, &req->room);
	return 0;
}

static int arguments(struct fs_req *req, const struct shape *shape, struct cursor *c)
{
	uint32_t len = shape->arg;

	if (fs_unlikely(len != shape->arg_min)) {
		if (req->in.opcode == FUSE_SETXATTR)
			len = req->server->flags & FUSE_SETXATTR_EXT ? shape->arg : shape->arg_min;
		else if (c->left < len)
			len = c->left > shape->arg_min ? c->left : shape->arg_min;
		memset(req->arg.bytes, 0, shape->arg);
	}
	if (fs_unlikely(c->left < len))
		return -EINVAL;
	take(c, req->arg.bytes, len);
	return 0;
}

static void forget_last(struct fs_req *req, struct ring_chain *chain)
{
	req->chain = chain;
	req->shape = 0;
	req->nr_cut = 0;
	req->in_place = false;
	req->name = req->name2 = NULL;
	req->name_len = req->name2_len = 0;
	req->data = req->room = NULL;
	req->nr_data = req->data_len = req->nr_room = req->room_len = 0;
	req->nr_groups = 0;
	req->secctx = false;
	req->secctx_len = 0;
}

int fs_decode(struct fs_req *req, struct ring_chain *chain)
{
	struct cursor c = { .iov = chain->iov, .nr = chain->nr_out, .left = chain->out_bytes };
	const struct shape *shape;
	uint32_t opcode;
	bool silent;
	int rc = 0;

	forget_last(req, chain);
	if (fs_unlikely(chain->out_bytes < sizeof(req->in))) {
		memset(&req->in, 0, sizeof(req->in));
		return -EPROTO;
	}
	take(&c, &req->in, sizeof(req->in));
	opcode = req->in.opcode < FS_OPS ? req->in.opcode : 0;
	shape = &shapes[opcode];
	req->shape = shape->flags;
	silent = shape->flags & FS_SHAPE_SILENT;
	if (fs_unlikely(chain->in_bytes < sizeof(struct fuse_out_header) && !silent))
		return -EPROTO;
	if (fs_unlikely(!(shape->flags & FS_SHAPE_KNOWN)))
		return -ENOSYS;
	if (fs_unlikely(req->in.len < sizeof(req->in) || req->in.len > chain->out_bytes))
		return -EINVAL;
	c.left = req->in.len - (uint32_t)sizeof(req->in);
	if (!silent) {
		req->room_len = chain->in_bytes - (uint32_t)sizeof(struct fuse_out_header);
		if (fs_unlikely(req->room_len < shape->reply))
			return -EINVAL;
	}
	if (shape->arg)
		rc = arguments(req, shape, &c);
	if (!rc && shape->names)
		rc = shape->data == DATA_XATTR ? name_before_data(req, &c) : names(req, shape, &c);
	if (!rc && shape->data)
		rc = data(req, shape, &c);
	if (!rc && shape->flags & FS_SHAPE_ROOM)
		rc = room(req, shape, chain);
	return rc;
}

/* The out header and @copy bytes with it: in one piece, or, as Linux has it, the header in one of its own. */
static inline void put_reply(const struct ring_chain *chain, const struct fs_req *req, uint32_t copy)
{
	const struct ring_iov *first = chain->iov + chain->nr_out;
	uint32_t rest = copy - (uint32_t)sizeof(req->head);

	if (fs_likely(first->len == sizeof(req->head) && (rest == 0 || (chain->nr_in > 1 && first[1].len >= rest)))) {
		shm_copy_out(first->base, &req->head, sizeof(req->head));
		if (rest)
			shm_copy_out(first[1].base, req->out, rest);
	} else if (first->len >= copy) {
		shm_copy_out(first->base, &req->head, copy);
	} else {
		ring_chain_write(chain, 0, &req->head, copy);
	}
}

uint32_t fs_reply(struct fs_req *req, int result)
{
	struct ring_chain *chain = req->chain;
	uint32_t bytes = 0, copy;

	if (fs_unlikely(req->nr_cut))
		mend(req);
	if (result == FS_NONE || chain->in_bytes < sizeof(req->head))
		return 0;
	if (fs_unlikely(result > 0 && (uint32_t)result > chain->in_bytes - sizeof(req->head)))
		result = -ERANGE;
	if (result >= 0)
		bytes = (uint32_t)result;
	else if (fs_unlikely(result < -511))	/* the driver takes no others */
		result = -EIO;
	req->head.len = (uint32_t)sizeof(req->head) + bytes;
	req->head.error = result < 0 ? result : 0;
	req->head.unique = req->in.unique;
	copy = (uint32_t)sizeof(req->head) + (req->in_place ? 0 : bytes);
	if (fs_unlikely(copy > sizeof(req->head) + FS_OUT_MAX)) {	/* a server said more than it wrote */
		copy = req->head.len = sizeof(req->head);
		req->head.error = -EIO;
	}
	put_reply(chain, req, copy);
	return req->head.len;
}
