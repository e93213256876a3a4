/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pass_int.h - inside of passthrough: inodes, open files, who does it, one function per opcode.
 *
 * Theory of operation
 *   A nodeid is index | generation << 32 of a slot in a table whose memory never moves and is never freed while the
 *   server lives. A slot's first word holds {generation, references}: pass_inode_get() takes a reference only where the
 *   generation fits, so that any number a guest makes up is refused, and a slot in use never changes under its user.
 *   Lookups by nodeid and by fh take no lock.
 *
 *   The table's own reference lasts as long as the guest knows the inode (nlookup > 0). What identifies a file on the
 *   host, (mount, inode number, time of birth), is found in a hash, cut into shards of a lock each (inode.c).
 *
 *   An inode is reached by its file handle, or by an O_PATH fd that stays open where there is none, or, when there are too
 *   many of those, by its name. Fds that a handle or a name can bring back are kept in a clock of bounded size (fdcache.c).
 *
 * Rules
 * - Every path is one name below an fd: no '/', neither "." nor ".."; links are never followed (pass_name_ok()).
 * - Device nodes, FIFOs and sockets are never opened, only looked at (pass_inode_open()).
 * - Locks, outermost first: pass_dir.lock, shard, mount, table, fd clock. No system call that may wait under shard or table.
 */
#ifndef FS_PASS_INT_H
#define FS_PASS_INT_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

#include "devices/fs/csrc/fs_int.h"
#include "devices/fs/csrc/pass.h"

enum {
	PASS_CHUNK = 4096,		/* slots that are allocated at once */
	PASS_CHUNKS = 16384,
	PASS_SHARDS = 64,
	PASS_HANDLE_INLINE = 24,	/* bytes of a file handle in the slot: ext4 8, xfs 12, tmpfs 12, btrfs 20 */
	PASS_MOUNTS = 4096,		/* places of the table of mounts, a power of two */
	PASS_DIR_BYTES = 32768,		/* of getdents64 at once */
	PASS_OWN_GROUPS = 64,		/* most supplementary groups of this process */
	PASS_WINDOW_SHIFT = 21,		/* log2 of PASS_WINDOW_UNIT */
	PASS_BY_NAME = 255,		/* no file handle is as long */
	PASS_OVERFLOW_ID = 65534,	/* who the guest must not see */
	PASS_SMALL = 16 << 20,		/* bytes of a file that goes without a thread */
	PASS_SMALL_SHIFT = 8,		/* log2 of the names that are known to be small */
	PASS_LISTED_SHIFT = 12,		/* log2 of the folders whose listings may be used again */
};

#define PASS_ROOT_ID 1ull		/* FUSE_ROOT_ID */

struct pass_locks;			/* lock.c: those of an inode */
struct lock_owner;
struct pass_keep;
struct pass_window;

/* pass_table.kind */
enum {
	PASS_KIND_INODES = 1,
	PASS_KIND_FILES = 2,
	PASS_KIND_NOTES = 3,
};

/* A host file system as it is mounted below the folder; also each btrfs subvolume of it. Never freed, see @inodes. */
struct pass_mount {
	uint64_t id;			/* stx_mnt_id */
	uint64_t dev;			/* stx_dev */
	_Atomic bool used;		/* this place of the table is filled */
	_Atomic uint32_t inodes;	/* @fd is closed when the last one goes, so that the host can unmount it */
	int fd;				/* for open_by_handle_at(); -1: not open */
	_Atomic int handles;		/* 1: yes; 0: not tried; -errno: none */
	bool waits;			/* on the network: any call may wait long */
	bool btime;			/* a time of birth tells files apart that had the same inode number */
	bool memory;			/* nothing to wait for, and no RWF_NOWAIT */
	bool tells;			/* a folder has another ctime whenever names come or go in it */
};

/* A file that the guest knows. About 96 bytes: there are millions. */
struct pass_inode {
	_Atomic uint64_t word;		/* generation << 32 | references */
	_Atomic uint64_t fdword;	/* fdcache.c: users << 32 | recent << 31 | fd + 1 */
	uint64_t ino;			/* with @mount and @btime: the file on the host */
	uint64_t btime;			/* ns; 0: unknown */
	uint64_t nlookup;		/* shard lock */
	_Atomic(struct pass_locks *) locks;	/* lock.c */
	uint32_t index;			/* of the slot */
	uint32_t next;			/* in its bucket of the hash (shard lock), or in the free list (table lock) */
	uint32_t place;			/* in the clock of fds; UINT32_MAX: not there */
	uint16_t mount;			/* index in pass.mounts */
	uint8_t type;			/* S_IFMT >> 12: never changes */
	uint8_t flags;			/* PASS_HASHED … */
	_Atomic uint8_t gone;		/* its handle no longer leads to it */
	_Atomic uint8_t checked;	/* its handle was seen to lead to it */
	uint8_t handle_len;		/* bytes; 0: it has none, the fd stays open; PASS_BY_NAME */
	uint8_t pad;
	int32_t handle_type;
	union {
		uint8_t handle[PASS_HANDLE_INLINE];
		uint8_t *handle_far;	/* longer ones */
		struct {		/* PASS_BY_NAME; under the clock's lock */
			uint64_t parent;	/* its nodeid */
			char *name;
		} by;
	};
};

/* An open file or folder of the guest. */
struct pass_file {
	_Atomic uint64_t word;		/* generation << 32 | references */
	uint32_t index;
	uint32_t next;			/* in the free list */
	int fd;
	int flags;			/* it was opened with, those of the host */
	_Atomic bool open;		/* the guest has not released it */
	bool is_dir;
	bool direct;			/* io.c: O_DIRECT on the host */
	uint32_t small;			/* small.c: the number since which it is; 0: it is not known to be */
	struct pass_inode *inode;	/* a reference is held */
	uint64_t nodeid;		/* of @inode, which means nothing to another process */
	_Atomic(struct pass_dir *) dir;	/* folders that were read; dir.c */
	_Atomic uint8_t flock;		/* lock.c: LOCK_SH or LOCK_EX that it holds; 0: none */
};

/* A table of slots that never move: inodes, files (table.c). */
struct pass_table {
	size_t item;			/* bytes; each begins with { word, …, index, next } */
	size_t index_at, next_at;	/* offsets of those */
	uint32_t limit;			/* most slots */
	_Atomic uint32_t top;		/* slots that were ever used; slot 0 never is */
	_Atomic uint32_t live;
	pthread_mutex_t lock;
	uint32_t free;			/* first of the free list; 0: none */
	_Atomic(uint8_t *) *chunks;	/* PASS_CHUNKS of them */
	struct pass_keep *keep;		/* chunks lie in its file; NULL: in memory */
	uint8_t kind;			/* PASS_KIND_*, with @keep */
	uint32_t generation;		/* of slots that are new: no number means what it meant to an earlier process */
};

struct pass_shard {
	_Alignas(64) pthread_mutex_t lock;
	uint32_t *heads;		/* index of the first inode in each bucket; 0: none */
	uint32_t nr_heads;		/* a power of two */
	uint32_t nr;			/* inodes */
};

/* The fds that handles can bring back: second chance (fdcache.c). */
struct pass_fds {
	pthread_mutex_t lock;
	uint32_t *ring;			/* inode of each place; 0: free */
	uint32_t *spare;		/* free places, a stack */
	uint32_t nr_spare;
	uint32_t size;
	uint32_t hand;
	_Atomic uint32_t kept;		/* places in use */
	_Atomic uint32_t pinned;	/* fds of inodes without a handle */
	_Atomic uint32_t named;		/* inodes that have neither */
	_Atomic uint64_t opened, evicted, scarce;
};

/* Files that nobody has to ask how big they are (small.c). */
struct pass_small {
	_Alignas(64) _Atomic uint32_t growth;	/* how often the guest made a file big, from 1 */
	_Atomic uint32_t seen;		/* the last number that something is known to be small since */
	_Atomic uint64_t names[1 << PASS_SMALL_SHIFT];
};

/* A folder that the guest's kernel has a listing of (listed.c). */
struct pass_listed {
	_Atomic uint64_t nodeid;
	_Atomic uint64_t mark;		/* of it, and of its ctime */
	_Atomic uint64_t until;		/* ns: names that came with attributes are trusted; UINT64_MAX: that does not matter */
};

/* One that is being made. */
struct pass_listing {
	uint64_t ctime;			/* ns, when it began; 0: nobody can tell when it is no longer good */
	uint64_t began;
	uint32_t names, plus;		/* told; those with attributes */
};

struct pass {
	struct fs_server server;
	struct pass_options opt;	/* what it points to is ours */
	int root_fd;			/* O_PATH */
	int proc_fd;			/* /proc/self/fd */
	bool privileged;		/* may act as others: CAP_SETUID, CAP_SETGID, CAP_CHOWN */
	uint32_t own_uid, own_gid;
	uint32_t root_mount;
	struct pass_inode *root;
	struct pass_table inodes;
	struct pass_table files;
	struct pass_shard shards[PASS_SHARDS];
	struct pass_fds fds;
	struct pass_small small;
	struct pass_listed *listed;	/* 1 << PASS_LISTED_SHIFT of them, with opt.relist */
	pthread_mutex_t mount_lock;
	struct pass_mount *mounts;	/* PASS_MOUNTS */
	uint32_t nr_mounts;		/* mount_lock */
	_Atomic uint64_t stale;
	_Atomic uint64_t nr_locks;	/* lock.c */
	struct lock_waits *waits;	/* likewise: who waits for whom */
	struct pass_window *window;	/* window.c; NULL: no DAX */
	struct pass_keep *keep;		/* keep.c; NULL: nothing outlives this process */
	struct pass_table notes;	/* likewise: locks that are held */
};

/* The server of a request as what it is. */
static inline struct pass *pass_of(struct fs_server *server)
{
	return (struct pass *)(void *)server;	/* its first member */
}

/* --- table.c --------------------------------------------------------------------------------------------------- */

int pass_table_init(struct pass_table *t, size_t item, size_t index_at, size_t next_at, uint32_t limit);
void pass_table_free(struct pass_table *t);
/* Slot @index, in use or not; NULL: it never was. */
void *pass_table_slot(const struct pass_table *t, uint32_t index);
/* A slot that nobody else can get until its word has references. NULL: limit, out of memory. */
void *pass_table_alloc(struct pass_table *t);
/* Back: its references are gone, or it never had any. */
void pass_table_release(struct pass_table *t, void *slot);
/* A reference on the slot that @id names, or NULL. */
void *pass_table_get(const struct pass_table *t, uint64_t id);

/* --- inode.c --------------------------------------------------------------------------------------------------- */

/* A reference on the inode, or NULL: the guest does not know it (any more), -ESTALE. */
struct pass_inode *pass_inode_get(struct pass *fs, uint64_t nodeid);
void pass_inode_put(struct pass *fs, struct pass_inode *inode);
/* Another one, where one is held. */
static inline void pass_inode_hold(struct pass_inode *inode)
{
	atomic_fetch_add_explicit(&inode->word, 1, memory_order_relaxed);
}

static inline uint64_t pass_inode_id(const struct pass_inode *inode)
{
	return (atomic_load_explicit(&inode->word, memory_order_relaxed) & ~(uint64_t)UINT32_MAX) | inode->index;
}

static inline mode_t pass_inode_type(const struct pass_inode *inode)
{
	return (mode_t)inode->type << 12;
}

static inline struct pass_mount *pass_inode_mount(struct pass *fs, const struct pass_inode *inode)
{
	return &fs->mounts[inode->mount];
}

/* A file by its name below @dir_fd, or (@name NULL) by @dir_fd itself, O_PATH or open. */
struct pass_where {
	int dir_fd;
	const char *name;
	const char *called;	/* its name in the folder @parent; NULL: unknown */
	uint64_t parent;
};

/*
 * The inode of @stx, which was found at @where. It counts as looked up once more by the guest. 0 and a reference in *@out;
 * @stx is renewed where another file had the name in the meantime. -ENOENT: the name went; -ENFILE, -ENOMEM …
 */
int pass_inode_learn(struct pass *fs, struct statx *stx, struct pass_where where, struct pass_inode **out);
/* Likewise, but only if the guest knows it already; else NULL. */
struct pass_inode *pass_inode_known(struct pass *fs, const struct statx *stx);
/* The guest forgets @n lookups of it; the caller holds a reference. */
void pass_inode_forget(struct pass *fs, struct pass_inode *inode, uint64_t n);

int pass_inodes_init(struct pass *fs);
void pass_inodes_reset(struct pass *fs);	/* all but the root */
void pass_inodes_free(struct pass *fs);
uint64_t pass_inodes_bytes(const struct pass *fs);

/* --- mount.c --------------------------------------------------------------------------------------------------- */

/* Index of the mount of @stx if it is known, else -ENOENT. */
int pass_mount_find(const struct pass *fs, const struct statx *stx);
/* Likewise, made known: @where is in it. One more inode of it. -ENOSPC: too many mounts; -errno. */
int pass_mount_get(struct pass *fs, const struct statx *stx, struct pass_where where);
void pass_mount_put(struct pass *fs, uint32_t mount);
void pass_mounts_free(struct pass *fs);

/* --- fdcache.c ------------------------------------------------------------------------------------------------- */

/* An O_PATH fd of it, valid until pass_inode_fd_put(); -ESTALE: it is gone; -ENFILE … */
int pass_inode_fd(struct pass *fs, struct pass_inode *inode);
void pass_inode_fd_put(struct pass *fs, struct pass_inode *inode, int fd);
/*
 * Open it anew (O_CLOEXEC and O_NOCTTY are added; no O_CREAT), the caller's fd. -EACCES, -ELOOP: it is neither a regular file
 * nor a folder.
 */
int pass_inode_open(struct pass *fs, struct pass_inode *inode, int flags);
/* Likewise what @fd, O_PATH, stands for, which is known to be such. With the rights this thread has now. */
int pass_fd_reopen(struct pass *fs, int fd, int flags);
/* "/proc/self/fd/N" below fs->proc_fd: the name for calls that take a path and no AT_EMPTY_PATH. */
const char *pass_fd_name(int fd, char name[16]);
/* The system has no descriptors left (-EMFILE, -ENFILE): close some. True: try again. */
bool pass_fds_relieve(struct pass *fs, int error);

int pass_fds_init(struct pass *fs);
void pass_fds_free(struct pass *fs);
void pass_inode_fd_drop(struct pass *fs, struct pass_inode *inode);	/* inode.c: nobody holds it */
/* inode.c: @fd (O_PATH, taken over) is all that leads to it. -ENFILE: too many of those. */
int pass_inode_fd_pin(struct pass *fs, struct pass_inode *inode, int fd);
/*
 * openat(2) of one name below @dir_fd by openat2(), which itself sees to it that nothing leads elsewhere, where the kernel
 * has it; O_CLOEXEC is added. -1 with errno.
 */
int pass_open_below(int dir_fd, const char *name, int flags, mode_t mode);
/* inode.c: too many of those; it is reached by its name from now on. Also: it has another name. 0, -ENFILE, -ENOMEM. */
int pass_inode_fd_name(struct pass *fs, struct pass_inode *inode, struct pass_where where);
/* names.c: @name of the folder, which @fd is, has become that of what is there now. */
void pass_inode_renamed(struct pass *fs, const struct pass_inode *dir, int fd, const char *name);
/* An O_PATH fd of @where, the caller's. -errno. */
int pass_open_path(struct pass *fs, struct pass_where where);

/* --- files.c --------------------------------------------------------------------------------------------------- */

/* A reference on an open file, NULL: -EBADF. */
struct pass_file *pass_file_get(struct pass *fs, uint64_t fh);
/* Likewise for reading; where guests need not open, fh 0 is the inode itself. */
struct pass_file *pass_file_at(struct pass *fs, struct pass_inode *inode, uint64_t fh);
/* The guest was told not to open. */
static inline bool pass_no_open(const struct pass *fs, uint64_t flag)
{
	return fs_unlikely(fs->opt.no_open) && fs->server.flags & flag;
}
void pass_file_put(struct pass *fs, struct pass_file *file);
/* Takes over @fd where it succeeds. @flags: those of open(2) that it was opened with; O_CREAT: that made it. -ENFILE: too many open. */
int pass_file_new(struct pass *fs, struct pass_inode *inode, int fd, int flags, uint64_t *fh);
/* RELEASE: the guest's reference goes; false: it was not open. The caller holds a reference of its own. */
bool pass_file_release(struct pass *fs, struct pass_file *file);

int pass_files_init(struct pass *fs);
void pass_files_reset(struct pass *fs);
void pass_files_free(struct pass *fs);

/* --- small.c --------------------------------------------------------------------------------------------------- */

/* The number for what is small from now on. */
uint32_t pass_small_now(struct pass *fs);
void pass_small_grown(struct pass *fs);
/* Before the guest makes a file reach up to @end; UINT64_MAX: to its end and beyond. */
static inline void pass_grows(struct pass *fs, uint64_t end)
{
	if (fs_unlikely(end > PASS_SMALL))
		pass_small_grown(fs);
}
/* It is no bigger than PASS_SMALL; false: it may be. */
static inline bool pass_file_is_small(const struct pass *fs, const struct pass_file *file)
{
	return file->small != 0 && file->small == atomic_load_explicit(&fs->small.growth, memory_order_relaxed);
}
/* @name of the folder is that of a new file. */
void pass_small_name(struct pass *fs, const struct pass_inode *dir, const char *name, uint32_t len);
/* Likewise, of something else by now. */
void pass_small_not(struct pass *fs, const struct pass_inode *dir, const char *name, uint32_t len);
/* What @name stands for is small; false: it may be big. */
bool pass_small_is(struct pass *fs, const struct pass_inode *dir, const char *name, uint32_t len);

/* --- listed.c -------------------------------------------------------------------------------------------------- */

/* The folder's names are about to be read from the first on. */
void pass_listing_begins(struct pass *fs, const struct pass_file *file, struct pass_listing *l);
/* The guest has been told the last one. */
void pass_listing_ends(struct pass *fs, const struct pass_file *file, const struct pass_listing *l);
/* What the guest was told last is still so; @fd: the folder, open. */
bool pass_listing_holds(struct pass *fs, const struct pass_inode *inode, int fd);

/* --- cred.c ---------------------------------------------------------------------------------------------------- */

/* What a thread was before it acted for a guest's process. */
struct pass_cred {
	bool ids;			/* restore them */
	bool groups;
	bool caps;
	uint32_t nr_own;
	uint32_t uid, gid;
	uint64_t effective;		/* capabilities */
	gid_t own[PASS_OWN_GROUPS];
};

void pass_cred_init(struct pass *fs);

/*
 * This thread makes files as @req's user, group and groups do, with @umask; until pass_cred_leave(). @strict: it may do
 * no more than they may, even where their groups are not known. 0; -EPERM: that user is forbidden; -errno.
 */
int pass_cred_enter(struct pass *fs, const struct fs_req *req, mode_t umask, bool strict, struct pass_cred *cred);
void pass_cred_leave(struct pass *fs, struct pass_cred *cred);
/* This thread is without CAP_FSETID, so that the host clears SUID and SGID; until pass_cred_leave(). 0, -errno. */
int pass_cred_no_fsetid(struct pass *fs, struct pass_cred *cred);

/* Translation of ids. To the host: 0, or -EPERM. */
int pass_uid_to_host(const struct pass *fs, uint32_t uid, uint32_t *out);
int pass_gid_to_host(const struct pass *fs, uint32_t gid, uint32_t *out);
uint32_t pass_uid_to_guest(const struct pass *fs, uint32_t uid);
uint32_t pass_gid_to_guest(const struct pass *fs, uint32_t gid);

/* --- attr.c ---------------------------------------------------------------------------------------------------- */

#define PASS_STATX_MASK (STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID)

/* statx(2), links not followed, no automounts. 0 or -errno. */
int pass_statx(int fd, const char *name, struct statx *stx);
/* A time as the two fields of a reply. */
static inline void pass_time(uint64_t ns, uint64_t *sec, uint32_t *nsec)
{
	*sec = ns / 1000000000;
	*nsec = (uint32_t)(ns % 1000000000);
}

/* What the guest sees of it. */
void pass_attr(const struct pass *fs, const struct statx *stx, struct fuse_attr *attr);

/* --- lookup.c -------------------------------------------------------------------------------------------------- */

/* The one name below a folder that a call may have: not empty, ".", "..", nothing with a '/'. */
static inline bool pass_name_ok(const char *name, uint32_t len)
{
	if (fs_unlikely(len == 0 || len > FS_NAME_MAX))
		return false;
	if (fs_unlikely(name[0] == '.' && (len == 1 || (len == 2 && name[1] == '.'))))
		return false;
	return memchr(name, '/', len) == NULL;
}

/* Look @name up below @parent, whose fd is @dir_fd; the guest knows it once more. Fills @out. 0 or -errno. */
int pass_lookup_at(struct pass *fs, const struct pass_inode *parent, int dir_fd, const char *name,
		   struct fuse_entry_out *out);
/*
 * Likewise for what was opened or made as @fd (not taken over), @called NULL: without a name; a reference in *@inode, unless
 * that is NULL.
 */
int pass_entry_of_fd(struct pass *fs, const struct pass_inode *parent, int fd, const char *called,
		     struct fuse_entry_out *out, struct pass_inode **inode);
void pass_entry_fill(const struct pass *fs, const struct pass_inode *parent, const struct pass_inode *inode,
		     const struct statx *stx, struct fuse_entry_out *out);

/* --- dir.c ----------------------------------------------------------------------------------------------------- */

/* What was read ahead of it. */
void pass_dir_free(struct pass_file *file);

/* --- io.c ------------------------------------------------------------------------------------------------------ */

/* How a file is opened on the host for a guest that opens or creates it with @flags; no O_CREAT, O_EXCL. */
int pass_open_flags(const struct pass *fs, uint32_t flags);
/* fuse_open_out.open_flags of a file that was opened so; @waits: its mount is on the network. */
uint32_t pass_open_answer(const struct pass *fs, int flags, bool waits);

/* --- lock.c ---------------------------------------------------------------------------------------------------- */

int pass_locks_init(struct pass *fs);
void pass_locks_exit(struct pass *fs);
/* The inode goes: let go of the locks (inode->locks), nobody uses it. */
void pass_locks_free(struct pass *fs, struct pass_inode *inode);

/* --- window.c -------------------------------------------------------------------------------------------------- */

int pass_window_init(struct pass *fs);
void pass_window_free(struct pass *fs);
/* The guest has mounted anew, or is gone: nothing is mapped any more. */
void pass_window_reset(struct pass *fs);

/* --- keep.c ---------------------------------------------------------------------------------------------------- */

/* Before the tables are used: they are to lie in the file of opt.keep_fd. 0, -errno. pass_keep_free() in any case. */
int pass_keep_open(struct pass *fs);
void pass_keep_root(struct pass *fs);
void pass_keep_free(struct pass *fs);
/* Zeroed memory of the file for chunk @index of a table, NULL: none. */
void *pass_keep_chunk(struct pass_keep *keep, uint8_t kind, uint32_t index, size_t bytes);
void pass_keep_chunk_free(void *chunk, size_t bytes);
/* fs_server_ops.settled: INIT agreed on something else. */
void pass_keep_session(struct fs_server *server);
/* What the owner holds has changed, under the lock of its inode's locks; all goes. Both do nothing without a file. */
void pass_keep_lock(struct pass *fs, const struct pass_inode *inode, struct lock_owner *owner);
void pass_keep_unlock(struct pass *fs, struct lock_owner *owner);

/* --- state.c --------------------------------------------------------------------------------------------------- */

/* table.c: the first slot from @from on that somebody refers to; 0: none. */
uint32_t pass_table_next(const struct pass_table *t, uint32_t from);
/* table.c: a slot of a number that is known, all others become free with the settling. */
void *pass_table_place(struct pass_table *t, uint64_t id);
void pass_table_settle(struct pass_table *t);
/*
 * inode.c: the guest knows @fd (O_PATH, not taken over) as @nodeid. -ESTALE: the number means nothing any more, as it does
 * without @stx; -EINVAL: it is taken or out of range.
 */
int pass_inode_restore(struct pass *fs, uint64_t nodeid, uint64_t nlookup, struct statx *stx, int fd);
/* files.c: likewise open files. @fd is taken over where it succeeds; -EBADF: there is none. */
int pass_file_restore(struct pass *fs, struct pass_inode *inode, int fd, int flags, uint64_t fh);

/* --- xattr.c --------------------------------------------------------------------------------------------------- */

/* The host's name of the guest's @name: 0, -EPERM, -ENOTSUP, -ERANGE (longer than FS_NAME_MAX). */
int pass_xattr_to_host(const struct pass *fs, const char *name, char out[256]);
/*
 * The contents or the owner changed, by @fd (O_PATH or open): file capabilities go, as the host does it by itself unless
 * security.capability has another name there.
 */
void pass_xattr_drop_caps(struct pass *fs, int fd);

/* The guest's @name of what @fd (O_PATH or open) stands for: 0 or -errno. */
int pass_xattr_set(struct pass *fs, int fd, const char *name, const void *value, size_t size);

/* --- opcodes --------------------------------------------------------------------------------------------------- */

/*
 * One function per opcode, as fs_server_ops.handle(). @inode: that of in.nodeid, held by the caller; its mount is not on the
 * network unless @pool. NULL: pass.c says so, the fh leads to it. Changes of a read-only file system were refused already.
 */
typedef int pass_op(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool);

/* lookup.c; both FORGETs take nodeids of their own: @inode is NULL */
pass_op pass_lookup, pass_forget, pass_batch_forget;
/* attr.c */
pass_op pass_getattr, pass_setattr, pass_statx_op, pass_access;
/* dir.c */
pass_op pass_opendir, pass_readdir, pass_readdirplus, pass_releasedir, pass_fsyncdir;
/* create.c */
pass_op pass_create, pass_mknod, pass_mkdir, pass_symlink, pass_tmpfile;
/* names.c */
pass_op pass_link, pass_unlink, pass_rmdir, pass_rename, pass_rename2, pass_readlink;
/* io.c */
pass_op pass_open, pass_read, pass_write, pass_release, pass_flush, pass_fsync;
/* space.c */
pass_op pass_fallocate, pass_copy_file_range, pass_lseek, pass_statfs, pass_syncfs, pass_ioctl, pass_poll;
/* lock.c */
pass_op pass_getlk, pass_setlk, pass_setlkw;
/* window.c */
pass_op pass_setupmapping, pass_removemapping;
/* xattr.c */
pass_op pass_setxattr, pass_getxattr, pass_listxattr, pass_removexattr;

#endif
