/* SPDX-License-Identifier: Apache-2.0 */
/*
 * keep.c - tables in a file that outlives this process; reading them again is revive.c's.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statfs.h>

#include "devices/fs/csrc/keep_int.h"

void pass_keep_punch(const struct pass_keep *keep, uint32_t area)
{
	fallocate(keep->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, keep_at(area), (off_t)KEEP_AREA);
}

/* Room in the file, mapped; NULL with errno. Allocated before: a full disk must not become a SIGBUS. */
static void *map(const struct pass_keep *keep, off_t at, size_t bytes)
{
	void *found;

	if (fallocate(keep->fd, 0, at, (off_t)bytes) < 0)
		return NULL;
	found = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, keep->fd, at);
	return found == MAP_FAILED ? NULL : found;
}

/* Which area counts; 0: none, or it is no file of ours. */
static uint32_t active(const struct pass_keep *keep)
{
	struct keep_front front;

	if (pread(keep->fd, &front, sizeof(front), 0) != sizeof(front) || front.magic != KEEP_MAGIC)
		return 0;
	return front.active <= 2 ? (uint32_t)front.active : 0;
}

/* Of the area of the process before. */
static uint64_t epoch(const struct pass_keep *keep)
{
	uint64_t found;
	off_t at = keep_at(keep->old) + (off_t)offsetof(struct keep_head, epoch);

	return pread(keep->fd, &found, sizeof(found), at) == sizeof(found) ? found : 0;
}

int pass_keep_activate(struct pass_keep *keep)
{
	struct keep_front front = { KEEP_MAGIC, keep->area };

	if (pwrite(keep->fd, &front, sizeof(front), 0) != sizeof(front))
		return -errno;
	if (keep->old)
		pass_keep_punch(keep, keep->old);
	keep->old = 0;
	return 0;
}

int pass_keep_open(struct pass *fs)
{
	struct pass_keep *keep = calloc(1, sizeof(*keep));
	int err;

	if (!keep)
		return -ENOMEM;
	keep->fd = fcntl(fs->opt.keep_fd, F_DUPFD_CLOEXEC, 0);
	if (keep->fd < 0) {
		err = -errno;
		free(keep);
		return err;
	}
	pthread_mutex_init(&keep->lock, NULL);
	fs->keep = keep;
	keep->old = active(keep);
	keep->area = keep->old == 1 ? 2 : 1;
	pass_keep_punch(keep, keep->area);
	keep->head = map(keep, keep_at(keep->area), KEEP_HEAD);
	if (!keep->head)
		return -errno;
	keep->head->magic = KEEP_MAGIC;
	keep->head->inode_bytes = sizeof(struct pass_inode);
	keep->head->file_bytes = sizeof(struct pass_file);
	keep->head->note_bytes = sizeof(struct keep_note);
	keep->head->chunk_slots = PASS_CHUNK;
	err = pass_table_init(&fs->notes, sizeof(struct keep_note), offsetof(struct keep_note, index),
			      offsetof(struct keep_note, next), KEEP_NOTES);
	fs->notes.keep = fs->files.keep = fs->inodes.keep = keep;
	keep->head->epoch = keep->old ? epoch(keep) + 1 : 0;
	fs->notes.generation = fs->files.generation = fs->inodes.generation = (uint32_t)keep->head->epoch << 20;
	fs->inodes.kind = PASS_KIND_INODES;
	fs->files.kind = PASS_KIND_FILES;
	fs->notes.kind = PASS_KIND_NOTES;
	return err;
}

/* The root is known. */
void pass_keep_root(struct pass *fs)
{
	struct keep_head *head = fs->keep->head;
	struct statfs sb;

	head->root_mount = fs->root_mount;
	head->root_index = fs->root->index;
	if (fstatfs(fs->root_fd, &sb) == 0) {
		head->fs_type = (uint64_t)sb.f_type;
		memcpy(&head->fs_id, &sb.f_fsid, sizeof(head->fs_id));
	}
}

void pass_keep_free(struct pass *fs)
{
	struct pass_keep *keep = fs->keep;

	if (!keep)
		return;
	pass_table_free(&fs->notes);
	if (keep->head)
		munmap(keep->head, KEEP_HEAD);
	pthread_mutex_destroy(&keep->lock);
	close(keep->fd);
	free(keep);
	fs->keep = NULL;
}

void *pass_keep_chunk(struct pass_keep *keep, uint8_t kind, uint32_t index, size_t bytes)
{
	struct keep_head *head = keep->head;
	void *chunk = NULL;

	pthread_mutex_lock(&keep->lock);
	if (head->nr_chunks < KEEP_CHUNKS) {
		off_t at = keep_at(keep->area) + (off_t)(KEEP_HEAD + head->nr_chunks * KEEP_STRIDE);

		chunk = map(keep, at, bytes);
		if (chunk) {
			head->chunks[head->nr_chunks] = (uint32_t)kind << 24 | index;
			__atomic_store_n(&head->nr_chunks, head->nr_chunks + 1, __ATOMIC_RELEASE);
		}
	}
	pthread_mutex_unlock(&keep->lock);
	return chunk;
}

void pass_keep_chunk_free(void *chunk, size_t bytes)
{
	if (chunk)
		munmap(chunk, bytes);
}

void pass_keep_session(struct fs_server *server)
{
	struct pass *fs = pass_of(server);
	struct keep_head *head;

	if (!fs->keep)
		return;
	head = fs->keep->head;
	head->flags = server->flags;
	head->offered = server->offered;
	head->driver_minor = server->driver_minor;
	head->max_write = server->max_write;
	__atomic_store_n(&head->minor, server->minor, __ATOMIC_RELEASE);
}

uint32_t pass_keep_deleted(struct fs_server *server, int *fds, uint32_t room)
{
	struct pass *fs = pass_of(server);
	uint32_t i, nr = 0;
	struct stat st;

	for (i = pass_table_next(&fs->files, 1); i; i = pass_table_next(&fs->files, i + 1)) {
		const struct pass_file *slot = pass_table_slot(&fs->files, i);
		struct pass_file *file = pass_file_get(fs, (atomic_load(&slot->word) & ~(uint64_t)UINT32_MAX) | i);

		if (!file)
			continue;
		if (atomic_load(&file->open) && fstat(file->fd, &st) == 0 && !st.st_nlink) {
			if (nr < room)
				fds[nr] = fcntl(file->fd, F_DUPFD_CLOEXEC, 0);
			nr++;
		}
		pass_file_put(fs, file);
	}
	return nr;
}

/* --- locks ------------------------------------------------------------------------------------------------------ */

static void forget_notes(struct pass *fs, const struct lock_owner *owner, uint32_t nr)
{
	uint32_t i;

	for (i = 0; i < nr; i++)
		pass_table_release(&fs->notes, pass_table_slot(&fs->notes, owner->notes[i]));
}

void pass_keep_lock(struct pass *fs, const struct pass_inode *inode, struct lock_owner *owner)
{
	uint32_t *notes, i, old = owner->nr_notes;
	uint64_t seq;

	if (!fs->keep)
		return;
	notes = realloc(owner->notes, ((size_t)old + owner->nr + 1) * sizeof(*notes));
	if (!notes)
		return;		/* after a kill it would be an older lock */
	owner->notes = notes;
	pthread_mutex_lock(&fs->keep->lock);
	seq = ++fs->keep->head->seq;
	pthread_mutex_unlock(&fs->keep->lock);
	/* the new ones first: a kill in between leaves both, and later ones win */
	for (i = 0; i < owner->nr; i++) {
		struct keep_note *note = pass_table_alloc(&fs->notes);

		if (!note)
			break;
		note->seq = seq;
		note->nodeid = pass_inode_id(inode);
		note->owner = owner->owner;
		note->start = owner->ranges[i].start;
		note->end = owner->ranges[i].end;
		note->type = owner->ranges[i].type;
		note->pid = owner->pid;
		atomic_fetch_add_explicit(&note->word, 1, memory_order_release);
		notes[old + i] = note->index;
	}
	forget_notes(fs, owner, old);
	memmove(notes, notes + old, i * sizeof(*notes));
	owner->nr_notes = i;
}

void pass_keep_unlock(struct pass *fs, struct lock_owner *owner)
{
	if (fs->keep)
		forget_notes(fs, owner, owner->nr_notes);
	free(owner->notes);
	owner->notes = NULL;
	owner->nr_notes = 0;
}
