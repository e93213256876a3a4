// SPDX-License-Identifier: Apache-2.0
/*
 * dir.c - folders: OPENDIR, READDIR, READDIRPLUS, RELEASEDIR, FSYNCDIR.
 *
 * An open folder keeps what getdents64 gave until the guest has taken it; a guest that goes back a little, as its kernel
 * does when a reader's buffer was full, finds it there. Going back to the start always looks anew.
 */
#include "devices/fs/csrc/pass_int.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

enum {
	DIR_INLINE = 128 * 1024,	/* bytes of names and attributes that a worker gets together */
};

/* What getdents64 gives. */
struct entry {
	uint64_t ino;
	int64_t off;		/* where the next one begins */
	uint16_t reclen;
	uint8_t type;
	char name[];
} __attribute__((packed));

struct pass_dir {
	pthread_mutex_t lock;
	int64_t start;		/* of the buffer */
	int64_t pos;		/* of the entry at @at */
	uint32_t at;		/* bytes */
	uint32_t have;
	struct pass_listing listing;
	_Alignas(8) uint8_t buf[PASS_DIR_BYTES];
};

void pass_dir_free(struct pass_file *file)
{
	struct pass_dir *dir = atomic_load(&file->dir);

	if (dir == NULL)
		return;
	pthread_mutex_destroy(&dir->lock);
	free(dir);
}

static struct pass_dir *dir_of(struct pass_file *file)
{
	struct pass_dir *dir = atomic_load_explicit(&file->dir, memory_order_acquire), *made;

	if (fs_likely(dir != NULL))
		return dir;
	made = malloc(sizeof(*made));
	if (made == NULL)
		return NULL;
	pthread_mutex_init(&made->lock, NULL);
	made->start = made->pos = 0;
	made->at = made->have = 0;
	made->listing.ctime = 0;
	if (atomic_compare_exchange_strong(&file->dir, &dir, made))
		return made;
	pthread_mutex_destroy(&made->lock);	/* two at once, and the other was first */
	free(made);
	return dir;
}

/* --- the reply ------------------------------------------------------------------------------------------------- */

/* The guest's pages, from the front. */
struct sink {
	const struct ring_iov *iov;
	size_t skip;		/* bytes of *@iov that are filled */
	uint32_t done;
	uint32_t room;
};

static void sink_put(struct sink *s, const uint8_t *from, uint32_t len)
{
	s->done += len;
	while (len > 0) {
		size_t n = s->iov->len - s->skip;

		if (n > len)
			n = len;
		shm_copy_out((SHM uint8_t *)s->iov->base + s->skip, from, n);
		from += n;
		len -= (uint32_t)n;
		s->skip += n;
		if (s->skip == s->iov->len) {
			s->iov++;
			s->skip = 0;
		}
	}
}

/* What comes behind @skip bytes is about to be written: without that the next system call waits for its lines. */
static inline void sink_expect(const struct sink *s, size_t skip, size_t len)
{
	size_t at = s->skip + skip, end = at + len;

	if (s->done == s->room)
		return;
	for (; at < end && at < s->iov->len; at += SHM_LINE)
		shm_prefetch_write((SHM uint8_t *)s->iov->base + at);
}

static bool is_dots(const char *name)
{
	return name[0] == '.' && (name[1] == '\0' || (name[1] == '.' && name[2] == '\0'));
}

/* The guest gets to know what lies behind a name; where it cannot, for whatever reason, it still gets the name. */
static void fill_plus(struct pass *fs, struct pass_file *file, const char *name, struct fuse_entry_out *out)
{
	memset(out, 0, sizeof(*out));
	if (is_dots(name))
		return;
	if (pass_lookup_at(fs, file->inode, file->fd, name, out) < 0)
		memset(out, 0, sizeof(*out));
}

/* False: it does not fit any more. */
static bool emit(struct pass *fs, struct pass_file *file, const struct entry *entry, bool plus, struct sink *sink)
{
	struct {
		struct fuse_entry_out out;
		struct fuse_dirent dirent;
		char name[FS_NAME_MAX + 8];
	} e;
	uint32_t len = (uint32_t)strlen(entry->name);
	uint32_t size = (uint32_t)FUSE_DIRENT_ALIGN(sizeof(e.dirent) + len);

	if (len > FS_NAME_MAX)
		return true;		/* nobody could name it */
	if (sink->room - sink->done < size + (plus ? sizeof(e.out) : 0))
		return false;
	if (plus) {
		sink_expect(sink, sizeof(e.out) + size, sizeof(e.out) + size);
		fill_plus(fs, file, entry->name, &e.out);
	}
	e.dirent.ino = entry->ino;
	e.dirent.off = (uint64_t)entry->off;
	e.dirent.namelen = len;
	e.dirent.type = entry->type;
	/* what the folder itself lies in is not the guest's business */
	if (fs_unlikely(file->inode == fs->root) && len == 2 && is_dots(entry->name))
		e.dirent.ino = fs->root->ino;
	memcpy(e.name, entry->name, len);
	memset(e.name + len, 0, 8);
	if (plus)
		sink_put(sink, (const uint8_t *)&e, (uint32_t)sizeof(e.out) + size);
	else
		sink_put(sink, (const uint8_t *)&e.dirent, size);
	return true;
}

/* --- reading --------------------------------------------------------------------------------------------------- */

/* More entries into the buffer: bytes, 0 at the end, -errno. */
static int refill(struct pass_file *file, struct pass_dir *dir)
{
	long n = syscall(SYS_getdents64, file->fd, dir->buf, sizeof(dir->buf));

	dir->start = dir->pos;
	dir->at = 0;
	dir->have = n > 0 ? (uint32_t)n : 0;
	return n < 0 ? -errno : (int)n;
}

/* Go on at @pos, which the guest says. */
static int seek(struct pass_file *file, struct pass_dir *dir, int64_t pos)
{
	uint32_t at = 0;

	if (pos == dir->pos && (pos != 0 || dir->have == 0))
		return 0;
	if (pos != 0 && pos == dir->start && dir->have > 0) {
		dir->at = 0;
		dir->pos = pos;
		return 0;
	}
	while (pos != 0 && at < dir->have) {
		const struct entry *entry = (const void *)(dir->buf + at);

		at += entry->reclen;
		if (entry->off != pos)
			continue;
		dir->at = at;
		dir->pos = pos;
		return 0;
	}
	dir->at = dir->have = 0;
	if (lseek(file->fd, pos, SEEK_SET) < 0)
		return -errno;
	dir->pos = dir->start = pos;
	return 0;
}

static int read_locked(struct pass *fs, struct pass_file *file, struct pass_dir *dir, int64_t pos, bool plus,
		       struct sink *sink)
{
	int err = seek(file, dir, pos);

	if (err < 0)
		return err;
	if (pos == 0)
		pass_listing_begins(fs, file, &dir->listing);
	for (;;) {
		const struct entry *entry = (const void *)(dir->buf + dir->at);

		if (dir->at == dir->have) {
			err = refill(file, dir);
			if (err > 0)
				continue;
			if (err == 0 && sink->done == 0)
				pass_listing_ends(fs, file, &dir->listing);
			return sink->done > 0 ? 0 : err;
		}
		if (!emit(fs, file, entry, plus, sink))
			return sink->done > 0 ? 0 : -EINVAL;
		dir->listing.names++;
		dir->listing.plus += plus;
		dir->at += entry->reclen;
		dir->pos = entry->off;
	}
}

static bool waits(struct pass *fs, const struct pass_file *file)
{
	return pass_inode_mount(fs, file->inode)->waits;
}

static int read_dir(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool plus, bool pool)
{
	const struct fuse_read_in *in = FS_ARG(req, fuse_read_in);
	struct sink sink = {.iov = req->room, .room = req->room_len};
	struct pass_file *file = pass_file_at(fs, inode, in->fh);
	struct pass_dir *dir;
	int err;

	if (file == NULL)
		return -EBADF;
	if (!file->is_dir) {
		err = -ENOTDIR;
	} else if (!pool && (waits(fs, file) || (plus && req->room_len > DIR_INLINE))) {
		err = FS_SLOW;
	} else if (in->offset > INT64_MAX) {
		err = -EINVAL;
	} else if ((dir = dir_of(file)) == NULL) {
		err = -ENOMEM;
	} else {
		pthread_mutex_lock(&dir->lock);
		err = read_locked(fs, file, dir, (int64_t)in->offset, plus, &sink);
		pthread_mutex_unlock(&dir->lock);
	}
	pass_file_put(fs, file);
	req->in_place = true;
	return err < 0 ? err : (int)sink.done;
}

int pass_readdir(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	return read_dir(fs, req, inode, false, pool);
}

int pass_readdirplus(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	return read_dir(fs, req, inode, true, pool);
}

int pass_opendir(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	struct fuse_open_out *out = FS_OUT(req, fuse_open_out);
	int fd, err, flags = O_RDONLY | O_DIRECTORY;
	uint32_t open_flags = fs->opt.dir_flags;

	(void)pool;
	if (pass_no_open(fs, FUSE_NO_OPENDIR_SUPPORT))
		return -ENOSYS;
	if (pass_inode_type(inode) != S_IFDIR)
		return -ENOTDIR;
	fd = pass_inode_open(fs, inode, flags);
	if (fd < 0)
		return fd;
	if (pass_listing_holds(fs, inode, fd))
		open_flags |= FOPEN_KEEP_CACHE;
	err = pass_file_new(fs, inode, fd, flags, &out->fh);
	if (err < 0) {
		close(fd);
		return err;
	}
	*out = (struct fuse_open_out){.fh = out->fh, .open_flags = open_flags};
	return sizeof(*out);
}

int pass_releasedir(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	struct pass_file *file = pass_file_get(fs, FS_ARG(req, fuse_release_in)->fh);
	bool was_open;

	(void)inode;
	(void)pool;
	if (file == NULL)
		return -EBADF;
	was_open = file->is_dir && pass_file_release(fs, file);
	pass_file_put(fs, file);
	return was_open ? 0 : -EBADF;
}

int pass_fsyncdir(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	const struct fuse_fsync_in *in = FS_ARG(req, fuse_fsync_in);
	struct pass_file *file;
	int err = 0;

	(void)inode;
	if (!pool)
		return FS_SLOW;
	file = pass_file_get(fs, in->fh);
	if (file == NULL)
		return -EBADF;
	if ((in->fsync_flags & FUSE_FSYNC_FDATASYNC ? fdatasync(file->fd) : fsync(file->fd)) < 0)
		err = -errno;
	pass_file_put(fs, file);
	return err;
}
