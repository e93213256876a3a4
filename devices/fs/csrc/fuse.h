/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuse.h - the FUSE protocol up to 7.45: the system's header, and what an older one lacks.
 */
#ifndef FS_FUSE_H
#define FS_FUSE_H

#include <linux/fuse.h>
#include <stddef.h>
#include <stdint.h>

/* Ours, whatever the header's is. */
#define FS_FUSE_MAJOR 7
#define FS_FUSE_MINOR 45
#define FS_FUSE_MINOR_MIN 31	/* the first of virtio-fs drivers */

#if FUSE_KERNEL_MINOR_VERSION < 38
#error "linux/fuse.h is older than FUSE 7.38 (Linux 6.2); install newer kernel headers (Debian: linux-libc-dev)"
#endif

#ifndef FUSE_CREATE_SUPP_GROUP
#define FUSE_CREATE_SUPP_GROUP	(1ULL << 34)
#define FUSE_EXT_GROUPS		32
struct fuse_supp_groups {
	uint32_t nr_groups;
	uint32_t groups[];
};
#endif

/* 7.39 */
#if FUSE_KERNEL_MINOR_VERSION < 39
#define FUSE_STATX 52
struct fuse_statx_in {
	uint32_t getattr_flags;
	uint32_t reserved;
	uint64_t fh;
	uint32_t sx_flags;
	uint32_t sx_mask;
};
struct fuse_sx_time {
	int64_t tv_sec;
	uint32_t tv_nsec;
	int32_t __reserved;
};
struct fuse_statx {
	uint32_t mask;
	uint32_t blksize;
	uint64_t attributes;
	uint32_t nlink;
	uint32_t uid;
	uint32_t gid;
	uint16_t mode;
	uint16_t __spare0[1];
	uint64_t ino;
	uint64_t size;
	uint64_t blocks;
	uint64_t attributes_mask;
	struct fuse_sx_time atime;
	struct fuse_sx_time btime;
	struct fuse_sx_time ctime;
	struct fuse_sx_time mtime;
	uint32_t rdev_major;
	uint32_t rdev_minor;
	uint32_t dev_major;
	uint32_t dev_minor;
	uint64_t __spare2[14];
};
struct fuse_statx_out {
	uint64_t attr_valid;
	uint32_t attr_valid_nsec;
	uint32_t flags;
	uint64_t spare[2];
	struct fuse_statx stat;
};
#endif
#ifndef FUSE_DIRECT_IO_ALLOW_MMAP
#define FUSE_DIRECT_IO_ALLOW_MMAP	(1ULL << 36)	/* DIRECT_IO_RELAX of 6.6 */
#endif

/* 7.40 */
#ifndef FUSE_PASSTHROUGH
#define FUSE_PASSTHROUGH	(1ULL << 37)
#endif
#ifndef FUSE_NO_EXPORT_SUPPORT
#define FUSE_NO_EXPORT_SUPPORT	(1ULL << 38)
#endif
#ifndef FUSE_HAS_RESEND
#define FUSE_HAS_RESEND		(1ULL << 39)
#endif
#ifndef FUSE_ALLOW_IDMAP
#define FUSE_ALLOW_IDMAP	(1ULL << 40)
#endif
#ifndef FUSE_OVER_IO_URING
#define FUSE_OVER_IO_URING	(1ULL << 41)
#endif
#ifndef FUSE_REQUEST_TIMEOUT
#define FUSE_REQUEST_TIMEOUT	(1ULL << 42)
#endif

/* 7.45 */
#if FUSE_KERNEL_MINOR_VERSION < 45
#define FUSE_COPY_FILE_RANGE_64 53
struct fuse_copy_file_range_out {
	uint64_t bytes_copied;
};
#endif

_Static_assert(sizeof(struct fuse_in_header) == 40, "request header");
_Static_assert(sizeof(struct fuse_out_header) == 16, "reply header");
_Static_assert(sizeof(struct fuse_statx_in) == 24 && sizeof(struct fuse_statx_out) == 288, "statx");
_Static_assert(sizeof(struct fuse_init_in) == 64 && sizeof(struct fuse_init_out) == 64, "init");

#endif
