/* SPDX-License-Identifier: Apache-2.0 */
/*
 * python.h - requests for file systems written in Python: decoded and answered by the same C as all others.
 *
 * A slot holds one request from fs_py_decode() until one of the answers, which write the reply into the chain's room and
 * return the bytes written, for ring_vq_push(). A chain whose queue has stopped is not answered. One thread, Python's.
 */
#ifndef FS_PYTHON_H
#define FS_PYTHON_H

#include <stdint.h>

/* cffi:begin */
struct fs_py_server;
struct fs_py_slot;
struct ring_chain;

/* What a request says; zero where its opcode has no such field. Times in nanoseconds since 1970. */
struct fs_py_req {
	uint32_t opcode;
	uint32_t uid, gid, pid;		/* of the caller */
	uint64_t unique;
	uint64_t nodeid;
	uint64_t fh;
	uint64_t offset;		/* bytes; READDIR: number of the next entry */
	uint64_t length;		/* bytes to read, write, allocate, copy; SETATTR: new size */
	uint64_t owner;			/* of a lock */
	uint64_t nodeid2;		/* RENAME: new folder; LINK: what is linked; COPY_FILE_RANGE: target */
	uint64_t fh2, offset2;		/* COPY_FILE_RANGE: target */
	uint64_t start, end;		/* lock: first and last byte */
	int64_t atime_ns, mtime_ns, ctime_ns;
	uint32_t lock_type, lock_pid;
	uint32_t flags;			/* of the system call: open, rename, setxattr, fallocate's mode, lseek's whence */
	uint32_t fuse_flags;		/* FUSE_* flags of the opcode */
	uint32_t valid;			/* SETATTR: FATTR_* */
	uint32_t mode, umask, rdev;
	uint32_t new_uid, new_gid;	/* SETATTR */
	uint32_t name_len, name2_len;	/* bytes without the NUL */
	uint32_t data_len;		/* bytes for fs_py_read() */
	uint32_t room_len;		/* bytes of a reply */
	const char *name;		/* NUL: none */
	const char *name2;
};

struct fs_py_attr {
	uint64_t inode, size, blocks;
	int64_t atime_ns, mtime_ns, ctime_ns, btime_ns;
	uint64_t generation;
	uint64_t attr_ns, entry_ns;	/* how long the guest may keep them, and the name it found */
	uint32_t mode, nlink, uid, gid, rdev, blksize;
};

struct fs_py_statfs {
	uint64_t blocks, bfree, bavail, files, ffree;
	uint32_t bsize, frsize, namelen;
};

/* @can: FUSE INIT flags that the file system implements. NULL without memory. */
struct fs_py_server *fs_py_server_new(uint64_t can);
void fs_py_server_free(struct fs_py_server *server);
/* Whether there was an INIT, and the flags that it has settled. */
int fs_py_ready(const struct fs_py_server *server);
uint64_t fs_py_flags(const struct fs_py_server *server);
/* As before the first INIT. */
void fs_py_reset(struct fs_py_server *server);

struct fs_py_slot *fs_py_slot_new(struct fs_py_server *server);
void fs_py_slot_free(struct fs_py_slot *slot);
struct fs_py_req *fs_py_req(struct fs_py_slot *slot);

/* 0: it is in fs_py_req(); -errno: answer so with fs_py_fail(). */
int fs_py_decode(struct fs_py_slot *slot, struct ring_chain *chain);
/* Copy of the request's data (WRITE, SETXATTR …); the bytes copied. */
uint32_t fs_py_read(const struct fs_py_req *req, uint32_t offset, void *dst, uint32_t len);
/* Entry @index of a BATCH_FORGET: 1, 0 beyond the last. */
int fs_py_forget(const struct fs_py_req *req, uint32_t index, uint64_t *nodeid, uint64_t *nlookup);

/* answers */
uint32_t fs_py_init(struct fs_py_slot *slot);	/* INIT, negotiated; fs_py_flags() tells with what */
uint32_t fs_py_none(struct fs_py_slot *slot);	/* opcodes without a reply */
uint32_t fs_py_fail(struct fs_py_slot *slot, int error);	/* errno of either sign; 0: success without data */
uint32_t fs_py_data(struct fs_py_slot *slot, const void *data, uint32_t len);	/* -ERANGE if it does not fit */
/* LOOKUP and what makes names. @attr->inode 0: there is no such name, to be remembered for @attr->entry_ns. */
uint32_t fs_py_entry(struct fs_py_slot *slot, const struct fs_py_attr *attr);
uint32_t fs_py_attr(struct fs_py_slot *slot, const struct fs_py_attr *attr);	/* GETATTR, SETATTR, STATX */
uint32_t fs_py_opened(struct fs_py_slot *slot, uint64_t fh, uint32_t flags);	/* @flags: FOPEN_* */
uint32_t fs_py_created(struct fs_py_slot *slot, const struct fs_py_attr *attr, uint64_t fh, uint32_t flags);
uint32_t fs_py_count(struct fs_py_slot *slot, uint32_t bytes);	/* WRITE, COPY_FILE_RANGE; sizes of xattrs */
uint32_t fs_py_offset(struct fs_py_slot *slot, uint64_t offset);	/* LSEEK */
uint32_t fs_py_statfs(struct fs_py_slot *slot, const struct fs_py_statfs *st);
uint32_t fs_py_lock(struct fs_py_slot *slot, uint64_t start, uint64_t end, uint32_t type, uint32_t pid);	/* GETLK */
/*
 * One more entry of a listing: 1, 0 if there is no room for it. @next: offset behind it. @type: DT_*. @attr: READDIRPLUS
 * only; NULL: the guest is to look it up itself. Then fs_py_listed().
 */
int fs_py_dirent(struct fs_py_slot *slot, uint64_t inode, uint64_t next, uint32_t type, const char *name, uint32_t len,
		 const struct fs_py_attr *attr);
uint32_t fs_py_listed(struct fs_py_slot *slot);
/* cffi:end */

#endif
