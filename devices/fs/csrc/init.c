/* SPDX-License-Identifier: Apache-2.0 */
/*
 * init.c - FUSE_INIT: what both sides can, and nothing else.
 *
 * A server says what it can (fs_server.can); here it is cut to what the driver offers, to what this core carries, and to
 * sets of flags that make sense together.
 */
#include <string.h>

#include "devices/fs/csrc/fs_int.h"

enum {
	PAGE = 4096,
	READAHEAD_MAX = FS_WRITE_MAX,	/* bytes */
	BACKGROUND = 65535,	/* requests without a waiting caller: the queue's size is the limit */
	CONGESTED = BACKGROUND / 4 * 3,
	LONG_INIT_OUT = 64,	/* since 7.23 */
};

/* The core's own part: sizes, and that requests may come in any order and from many threads. */
#define FS_ALWAYS (FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_MAX_PAGES | FUSE_INIT_EXT | FUSE_PARALLEL_DIROPS | \
		   FUSE_ABORT_ERROR)

/* What servers may ask for. Not among them: what needs a device of the kernel's (splice, passthrough, io_uring). */
#define FS_CAN ((uint64_t)(FUSE_POSIX_LOCKS | FUSE_ATOMIC_O_TRUNC | FUSE_EXPORT_SUPPORT | FUSE_DONT_MASK | \
	FUSE_FLOCK_LOCKS | FUSE_HAS_IOCTL_DIR | FUSE_AUTO_INVAL_DATA | FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO | \
	FUSE_ASYNC_DIO | FUSE_WRITEBACK_CACHE | FUSE_NO_OPEN_SUPPORT | FUSE_HANDLE_KILLPRIV | FUSE_POSIX_ACL | \
	FUSE_CACHE_SYMLINKS | FUSE_NO_OPENDIR_SUPPORT | FUSE_EXPLICIT_INVAL_DATA | FUSE_MAP_ALIGNMENT | \
	FUSE_SUBMOUNTS | FUSE_HANDLE_KILLPRIV_V2 | FUSE_SETXATTR_EXT) | \
	FUSE_SECURITY_CTX | FUSE_HAS_INODE_DAX | FUSE_CREATE_SUPP_GROUP | FUSE_HAS_EXPIRE_ONLY | \
	FUSE_DIRECT_IO_ALLOW_MMAP | FUSE_NO_EXPORT_SUPPORT | FUSE_ALLOW_IDMAP)

/* Flags that need others, or exclude them. */
static uint64_t agree(uint64_t flags)
{
	/* ACLs: the umask is the file system's business, and SGID goes by a flag of SETXATTR */
	if (!(flags & FUSE_DONT_MASK) || !(flags & FUSE_SETXATTR_EXT))
		flags &= ~(uint64_t)FUSE_POSIX_ACL;
	if (!(flags & FUSE_DO_READDIRPLUS))
		flags &= ~(uint64_t)FUSE_READDIRPLUS_AUTO;
	if (flags & FUSE_HANDLE_KILLPRIV_V2)
		flags &= ~(uint64_t)FUSE_HANDLE_KILLPRIV;
	if (flags & FUSE_EXPLICIT_INVAL_DATA)
		flags &= ~(uint64_t)FUSE_AUTO_INVAL_DATA;
	if (flags & FUSE_EXPORT_SUPPORT)
		flags &= ~FUSE_NO_EXPORT_SUPPORT;
	if (!(flags & FUSE_MAP_ALIGNMENT))
		flags &= ~FUSE_HAS_INODE_DAX;
	return flags;
}

uint64_t fs_flags(const struct fs_server *server)
{
	return FS_ALWAYS | (FS_CAN & server->can);
}

/* The driver knows what a reply has by its length. */
static int answer(struct fs_req *req)
{
	return req->room_len < LONG_INIT_OUT ? FUSE_COMPAT_22_INIT_OUT_SIZE : LONG_INIT_OUT;
}

int fs_init(struct fs_server *server, struct fs_req *req)
{
	const struct fuse_init_in *in = FS_ARG(req, fuse_init_in);
	struct fuse_init_out *out = FS_OUT(req, fuse_init_out);
	uint64_t offered = in->flags, flags;
	uint32_t pages;

	memset(out, 0, sizeof(*out));
	out->major = FS_FUSE_MAJOR;
	out->minor = FS_FUSE_MINOR;
	if (in->major > FS_FUSE_MAJOR)
		return answer(req);	/* it comes again with a major that we know */
	if (in->major < FS_FUSE_MAJOR || in->minor < FS_FUSE_MINOR_MIN)
		return -EPROTO;
	if (in->flags & FUSE_INIT_EXT)
		offered |= (uint64_t)in->flags2 << 32;
	flags = agree(offered & fs_flags(server) & ~server->cannot);
	pages = flags & FUSE_MAX_PAGES ? FS_WRITE_MAX / PAGE : 32;

	out->minor = in->minor < FS_FUSE_MINOR ? in->minor : FS_FUSE_MINOR;
	out->max_readahead = in->max_readahead < READAHEAD_MAX ? in->max_readahead : READAHEAD_MAX;
	out->flags = (uint32_t)flags;
	out->flags2 = (uint32_t)(flags >> 32);
	out->max_background = BACKGROUND;
	out->congestion_threshold = CONGESTED;
	out->max_write = pages * PAGE;
	out->time_gran = 1;	/* ns */
	out->max_pages = (uint16_t)pages;
	out->map_alignment = flags & FUSE_MAP_ALIGNMENT ? (uint16_t)server->map_align : 0;

	server->offered = offered;
	server->driver_minor = in->minor;
	server->flags = flags;
	server->max_write = out->max_write;
	server->minor = out->minor;
	return answer(req);
}
