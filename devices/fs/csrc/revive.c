/* SPDX-License-Identifier: Apache-2.0 */
/*
 * revive.c - passthrough: what an earlier process left in the file that outlives it, and the clean end that leaves more.
 */
#include <stdlib.h>
#include <string.h>

#include "devices/fs/csrc/keep_int.h"
#include "devices/fs/csrc/state_int.h"

struct old {
	struct pass_keep *keep;
	const struct keep_head *head;
	uint8_t *chunk;			/* KEEP_STRIDE bytes */
	struct state_bytes to;
	struct keep_note *notes;
	size_t nr_notes, room;
};

static void revive_inode(struct old *o, const struct pass_inode *inode)
{
	struct inode_record r = {
		.nodeid = (inode->word & ~(uint64_t)UINT32_MAX) | inode->index,
		.nlookup = inode->nlookup,
		.ino = inode->ino,
		.btime = inode->btime,
		.type = inode->type,
		.handle_type = inode->handle_type,
		.handle_len = inode->handle_len,
		.in_root = inode->mount == o->head->root_mount,
	};

	if (!inode->nlookup || inode->gone || inode->index == o->head->root_index)
		return;
	if (inode->handle_len > PASS_HANDLE_INLINE)
		r.handle_len = 0;	/* it was in the memory of that process */
	state_put_record(&o->to, RECORD_INODE, sizeof(r) + r.handle_len);
	state_put(&o->to, &r, sizeof(r));
	state_put(&o->to, inode->handle, r.handle_len);
	state_put_padding(&o->to);
}

static void revive_file(struct old *o, const struct pass_file *file)
{
	struct file_record r = {
		.fh = (file->word & ~(uint64_t)UINT32_MAX) | file->index,
		.nodeid = file->nodeid,
		.flags = (uint32_t)file->flags,
		.flock = file->flock,
	};

	if (!file->open)
		return;
	state_put_record(&o->to, RECORD_FILE, sizeof(r));
	state_put(&o->to, &r, sizeof(r));
}

/* They come last, in the order in which they were taken. */
static void collect_note(struct old *o, const struct keep_note *note)
{
	if (o->nr_notes == o->room) {
		size_t room = o->room ? o->room * 2 : 256;
		struct keep_note *more = realloc(o->notes, room * sizeof(*more));

		if (!more) {
			o->to.failed = true;
			return;
		}
		o->notes = more;
		o->room = room;
	}
	memcpy(&o->notes[o->nr_notes++], note, sizeof(*note));
}

static int by_seq(const void *a, const void *b)
{
	const struct keep_note *x = a, *y = b;

	return x->seq < y->seq ? -1 : x->seq > y->seq;
}

static void revive_locks(struct old *o)
{
	size_t i;

	if (o->nr_notes)
		qsort(o->notes, o->nr_notes, sizeof(*o->notes), by_seq);
	for (i = 0; i < o->nr_notes; i++) {
		const struct keep_note *note = &o->notes[i];
		struct locks_record r = { note->nodeid, note->owner, note->pid, 1 };
		struct range_record range = { note->start, note->end, note->type };

		state_put_record(&o->to, RECORD_LOCKS, sizeof(r) + sizeof(range));
		state_put(&o->to, &r, sizeof(r));
		state_put(&o->to, &range, sizeof(range));
	}
}

static int revive_chunk(struct old *o, uint32_t nr, uint32_t kind)
{
	size_t item = kind == PASS_KIND_INODES ? sizeof(struct pass_inode) :
		      kind == PASS_KIND_FILES ? sizeof(struct pass_file) : sizeof(struct keep_note);
	off_t at = keep_at(o->keep->old) + (off_t)(KEEP_HEAD + nr * KEEP_STRIDE);
	uint32_t i;

	if (pread(o->keep->fd, o->chunk, PASS_CHUNK * item, at) != (ssize_t)(PASS_CHUNK * item))
		return -EINVAL;
	for (i = 0; i < PASS_CHUNK; i++) {
		const void *slot = o->chunk + i * item;
		uint64_t word;

		memcpy(&word, slot, sizeof(word));
		if (!(uint32_t)word)
			continue;
		if (kind == PASS_KIND_INODES)
			revive_inode(o, slot);
		else if (kind == PASS_KIND_FILES)
			revive_file(o, slot);
		else
			collect_note(o, slot);
	}
	return 0;
}

static int revive_tables(struct old *o)
{
	static const uint32_t kinds[] = { PASS_KIND_INODES, PASS_KIND_FILES, PASS_KIND_NOTES };
	const struct keep_head *head = o->head;
	struct state_header h = {
		.magic = STATE_MAGIC, .bytes = sizeof(h), .minor = head->minor, .flags = head->flags,
		.offered = head->offered, .driver_minor = head->driver_minor, .max_write = head->max_write,
		.fs_type = head->fs_type, .fs_id = head->fs_id,
	};
	uint32_t i, k;
	int rc = 0;

	state_put(&o->to, &h, sizeof(h));
	for (k = 0; k < 3; k++)
		for (i = 0; i < head->nr_chunks && !rc; i++)
			if (head->chunks[i] >> 24 == kinds[k])
				rc = revive_chunk(o, i, kinds[k]);
	revive_locks(o);
	state_put_record(&o->to, RECORD_END, 0);
	return rc;
}

/* What was written at a clean end. */
static int revive_clean(struct old *o)
{
	off_t at = keep_at(o->keep->old) + (off_t)(KEEP_HEAD + o->head->nr_chunks * KEEP_STRIDE);
	size_t len = o->head->clean;

	o->to.bytes = len < KEEP_AREA ? malloc(len) : NULL;
	if (!o->to.bytes)
		return -ENOMEM;
	for (o->to.len = 0; o->to.len < len;) {
		ssize_t n = pread(o->keep->fd, o->to.bytes + o->to.len, len - o->to.len, at + (off_t)o->to.len);

		if (n <= 0)
			return -EINVAL;
		o->to.len += (size_t)n;
	}
	return 0;
}

static int revive(struct pass *fs, struct old *o, struct keep_head *head, const struct state_means *means,
		  struct pass_state *report)
{
	int rc;

	if (pread(o->keep->fd, head, sizeof(*head), keep_at(o->keep->old)) != sizeof(*head))
		return -EINVAL;
	if (head->magic != KEEP_MAGIC || head->inode_bytes != sizeof(struct pass_inode) ||
	    head->file_bytes != sizeof(struct pass_file) || head->note_bytes != sizeof(struct keep_note) ||
	    head->chunk_slots != PASS_CHUNK || head->nr_chunks > KEEP_CHUNKS)
		return -EPROTO;
	o->head = head;
	if (!head->minor)
		return 0;
	rc = head->clean ? revive_clean(o) : revive_tables(o);
	if (!rc && o->to.failed)
		rc = -ENOMEM;
	if (!rc)
		rc = state_load(&fs->server, o->to.bytes, o->to.len, means, report);
	return rc ? rc : 1;
}

int pass_keep_load(struct fs_server *server, int handles, const int *fds, uint32_t nr, struct pass_state *report)
{
	struct state_means means = { .handles = handles != 0, .fds = fds, .nr = nr };
	struct pass *fs = pass_of(server);
	struct keep_head *head = malloc(sizeof(*head));
	struct old o = { .keep = fs->keep, .chunk = malloc(KEEP_STRIDE) };
	int rc = -ENOMEM, err;

	memset(report, 0, sizeof(*report));
	if (head && o.chunk)
		rc = o.keep->old ? revive(fs, &o, head, &means, report) : 0;
	free(head);
	free(o.chunk);
	free(o.to.bytes);
	free(o.notes);
	if (rc == -ENOMEM)
		return rc;	/* it is still there for a process that has memory */
	err = pass_keep_activate(fs->keep);
	return err ? err : rc;
}

int pass_keep_end(struct fs_server *server)
{
	struct pass *fs = pass_of(server);
	struct pass_keep *keep = fs->keep;
	struct pass_state state;
	uint64_t done = 0;
	off_t at;
	int rc;

	if (!keep || !server->minor)
		return 0;
	rc = pass_state_save(server, &state);
	if (rc)
		return rc;
	at = keep_at(keep->area) + (off_t)(KEEP_HEAD + keep->head->nr_chunks * KEEP_STRIDE);
	while (done < state.len) {
		ssize_t n = pwrite(keep->fd, state.bytes + done, state.len - done, at + (off_t)done);

		if (n <= 0) {
			rc = n < 0 ? -errno : -ENOSPC;
			break;
		}
		done += (uint64_t)n;
	}
	if (!rc)
		__atomic_store_n(&keep->head->clean, state.len, __ATOMIC_RELEASE);
	pass_state_free(&state);
	return rc;
}

void pass_keep_again(struct fs_server *server)
{
	struct pass *fs = pass_of(server);

	if (fs->keep)
		__atomic_store_n(&fs->keep->head->clean, 0, __ATOMIC_RELEASE);
}
