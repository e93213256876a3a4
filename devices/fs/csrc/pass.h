/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pass.h - passthrough: a folder of this machine as a file system (what Python sees).
 */
#ifndef FS_PASS_H
#define FS_PASS_H

#include "devices/fs/csrc/fs.h"

/* cffi:begin */
enum {
	/* pass_options.handles */
	PASS_HANDLES_NEVER = 0,		/* an open fd for each inode */
	PASS_HANDLES_PREFER = 1,	/* file handles where the file system and our privileges allow them */
	PASS_HANDLES_ALWAYS = 2,	/* what has no file handle cannot be looked up */

	/* pass_range.kind */
	PASS_RANGE_MAP = 0,		/* from + n becomes to + n */
	PASS_RANGE_SQUASH = 1,		/* all become @to */
	PASS_RANGE_FORBID = 2,		/* -EPERM where the guest sets it, the overflow id where it sees it */

	/* pass_xattr_rule.type, as virtiofsd's --xattrmap has them */
	PASS_XATTR_PREFIX = 0,		/* names that begin with @key get @prepend in front on the host, and lose it on the way back */
	PASS_XATTR_OK = 1,		/* passes as it is */
	PASS_XATTR_BAD = 2,		/* refused, -EPERM; hidden from lists */
	PASS_XATTR_UNSUPPORTED = 3,	/* refused, -ENOTSUP; hidden from lists */

	/* pass_xattr_rule.scope */
	PASS_XATTR_CLIENT = 1,		/* names from the guest that begin with @key */
	PASS_XATTR_SERVER = 2,		/* names on the host that begin with @prepend */
	PASS_XATTR_ALL = 3,
};

/* Ids [@from, @from + @count); the first range that holds an id decides, others stay as they are. */
struct pass_range {
	uint32_t kind;		/* PASS_RANGE_* */
	uint32_t from;
	uint32_t to;
	uint32_t count;
};

/* The first rule that fits decides; a name that no rule fits is refused (-EPERM). No rules: all names pass. */
struct pass_xattr_rule {
	uint32_t type;		/* PASS_XATTR_* */
	uint32_t scope;		/* PASS_XATTR_CLIENT | PASS_XATTR_SERVER */
	const char *key;
	const char *prepend;
};

/* Copied by pass_new(), with all it points to. */
struct pass_options {
	int32_t root_fd;	/* the folder, O_PATH | O_DIRECTORY; pass_new() makes copies of it */
	int32_t proc_fd;	/* /proc/self/fd, O_PATH | O_DIRECTORY, of this process; likewise */
	int32_t keep_fd;	/* a file for what outlives this process, likewise, if @keep; nobody else uses it */
	uint32_t handles;	/* PASS_HANDLES_* */
	uint32_t max_fds;	/* descriptors kept for inodes */
	uint32_t max_files;	/* files and folders that guests hold open */
	uint32_t max_inodes;
	uint64_t entry_ns;	/* how long guests trust a name */
	uint64_t attr_ns;	/* likewise attributes */
	uint64_t negative_ns;	/* likewise that a name is not there; 0: not at all */
	uint64_t dax_from;	/* bytes: files of this size and more are mapped in the guest, with @dax */
	uint32_t file_flags;	/* FOPEN_* of open files */
	uint32_t dir_flags;	/* FOPEN_* of open folders */
	bool dax;		/* window.h */
	bool keep;
	bool relist;		/* guests may use a listing again that is still good, with FOPEN_CACHE_DIR in @dir_flags */
	bool no_open;		/* nothing ever changes, @read_only: files and folders need not be opened before they are read */
	bool read_only;
	bool readdirplus;
	bool submounts;		/* announce them, FUSE_ATTR_SUBMOUNT */
	bool writeback;		/* the guest may cache writes */
	bool allow_direct_io;	/* pass O_DIRECT on to host files; otherwise it only bypasses the guest's cache */
	bool killpriv_v2;
	bool posix_lock;	/* locks of guests lock on the host */
	bool flock;
	bool xattr;
	bool posix_acl;		/* needs @xattr */
	bool security_label;	/* security contexts of new files */
	uint32_t nr_xattr_rules;
	const struct pass_xattr_rule *xattr_rules;
	uint32_t nr_uid_to_host, nr_uid_to_guest, nr_gid_to_host, nr_gid_to_guest;
	const struct pass_range *uid_to_host, *uid_to_guest, *gid_to_host, *gid_to_guest;
};

struct pass_stats {
	uint64_t inodes;	/* known now, the root among them */
	uint64_t inode_bytes;	/* memory they take, tables included */
	uint64_t files;		/* open now, folders among them */
	uint64_t fds;		/* kept for inodes now */
	uint64_t fds_opened;	/* for inodes, since the start */
	uint64_t fds_evicted;	/* closed to keep to the bound */
	uint64_t fds_short;	/* times the system had no descriptor left for us */
	uint64_t stale;		/* inodes found gone when they were used */
	uint64_t mounts;	/* host mounts seen below the folder */
	uint64_t mounts_without_handles;
	uint64_t locks;		/* lock owners with a file of their own */
};

struct fs_server;

/* NULL with *@error (-errno): out of memory, or the folder cannot be used. */
struct fs_server *pass_new(const struct pass_options *options, int *error);
/* Any time. */
void pass_get_stats(const struct fs_server *server, struct pass_stats *out);
/* File handles: 0, or why the folder has none (-EPERM: no CAP_DAC_READ_SEARCH, -EOPNOTSUPP: its file system). */
int pass_try_handles(int root_fd);
/* cffi:end */

#endif
