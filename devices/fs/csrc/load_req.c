/* SPDX-License-Identifier: Apache-2.0 */
/*
 * load_req.c - the load generator's requests, laid out as Linux lays them out, and what their replies must be.
 *
 * A slot's piece holds the in header, behind it arguments and name in a piece of their own, then the room for the out
 * header and, again apart, for what follows it. Data are pages of their own.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <sys/stat.h>

#include "devices/fs/csrc/load_int.h"

enum {
	ARGS_AT = 64,
	OUT_AT = 256,
	REPLY_AT = OUT_AT + sizeof(struct fuse_out_header),
	ENTRY = offsetof(struct fuse_direntplus, dirent),
	NR_BUFS = 4 + FS_LOAD_PIECES,
	NO_FLUSH = 1 << 5,	/* FOPEN_NOFLUSH, not in all headers */
	DIGITS = 6,		/* of a file's number in its name */
	PID = 1,

	/* steps of FS_LOAD_CREATE */
	STEP_CREATE = 0,
	STEP_WRITE,
	STEP_FLUSH,
	STEP_RELEASE,
	STEP_UNLINK,
};

_Static_assert(REPLY_AT + sizeof(struct fuse_entry_out) + sizeof(struct fuse_open_out) <= FS_LOAD_SLOT_BYTES, "");
_Static_assert(ARGS_AT + sizeof(struct fuse_create_in) + FS_LOAD_NAME <= OUT_AT, "");

/* A request while it is made. */
struct making {
	uint32_t opcode;
	uint64_t node;
	uint32_t args;		/* bytes, name included */
	uint32_t reply;		/* bytes after the out header, in the slot */
	bool data_out, data_in;
};

static inline uint64_t word_at(const struct fs_load *load, uint32_t file, uint64_t offset)
{
	return measure_mix(load->cfg.seed ^ (uint64_t)file << 40 ^ offset / 8);
}

static void fill(const struct fs_load *load, SHM uint8_t *data, const struct load_slot *slot)
{
	for (uint32_t at = 0; at < load->cfg.block_bytes; at += 8)
		shm_store64(data + at, word_at(load, slot->file, slot->offset + at));
}

static bool matches(const struct fs_load *load, const SHM uint8_t *data, const struct load_slot *slot)
{
	for (uint32_t at = 0; at < load->cfg.block_bytes; at += 8)
		if (shm_load64(data + at) != word_at(load, slot->file, slot->offset + at))
			return false;
	return true;
}

static SHM uint8_t *data_of(const struct load_queue *q, uint16_t nr)
{
	return q->data + nr * q->data_stride;
}

/* --- choosing */

/* Blocks in order: this queue's files one after the other. */
static bool next_block(struct fs_load *load, struct load_queue *q, struct load_slot *slot)
{
	uint32_t size = load->cfg.block_bytes;

	if (q->gen.over)
		return false;
	slot->file = q->file;
	slot->offset = q->block * size;
	if ((++q->block + 1) * size > load->files[q->file].size) {
		q->block = 0;
		q->file += q->total;
		if (q->file >= load->nr_files) {
			q->file = q->number % load->nr_files;
			q->gen.over = load->gen.mode == GEN_ONCE;
		}
	}
	return true;
}

bool load_begin_op(struct fs_load *load, struct load_queue *q, struct load_slot *slot)
{
	slot->step = 0;
	switch (load->cfg.op) {
	case FS_LOAD_GETATTR:
	case FS_LOAD_LOOKUP:
		if (load->cfg.random) {
			slot->file = (uint32_t)measure_draw_below(&load->random, load->nr_files);
		} else {
			slot->file = q->file;
			q->file = q->file + 1 == load->nr_files ? 0 : q->file + 1;
		}
		return true;
	case FS_LOAD_READ:
	case FS_LOAD_WRITE:
		if (!load->cfg.random || load->gen.mode == GEN_ONCE)
			return next_block(load, q, slot);
		slot->file = q->number % load->nr_files;
		if (q->total < load->nr_files)
			slot->file += q->total * (uint32_t)measure_draw_below(&load->random, (load->nr_files - 1 - slot->file) / q->total + 1);
		slot->offset = load->cfg.block_bytes *
			       measure_draw_below(&load->random, load->files[slot->file].size / load->cfg.block_bytes);
		return true;
	default:
		return true;
	}
}

/* --- making */

static void put(const struct load_queue *q, uint16_t nr, size_t at, const void *from, size_t len)
{
	shm_copy_out(q->slots + (size_t)nr * FS_LOAD_SLOT_BYTES + at, from, len);
}

/* Name of a file that CREATE makes: the slot's own. */
static uint32_t put_own_name(const struct fs_load *load, struct load_queue *q, uint16_t nr, size_t at)
{
	struct load_slot *slot = &q->slot[nr];

	if (slot->own_len == 0)
		slot->own_len = 1 + (uint32_t)snprintf(slot->own, sizeof(slot->own), "c%u-%u-%u", load->cfg.number, q->number, nr);
	put(q, nr, at, slot->own, slot->own_len);
	return slot->own_len;
}

static void make_data(const struct fs_load *load, const struct load_queue *q, uint16_t nr, struct making *m, bool writes)
{
	const struct load_slot *slot = &q->slot[nr];

	if (writes) {
		struct fuse_write_in in = { .fh = slot->fh, .offset = slot->offset, .size = load->cfg.block_bytes };

		m->opcode = FUSE_WRITE;
		m->args = sizeof(in);
		m->reply = sizeof(struct fuse_write_out);
		m->data_out = true;
		put(q, nr, ARGS_AT, &in, sizeof(in));
		if (load->cfg.verify)
			fill(load, data_of(q, nr), slot);
	} else {
		struct fuse_read_in in = { .fh = slot->fh, .offset = slot->offset, .size = load->cfg.block_bytes };

		m->opcode = load->cfg.op == FS_LOAD_LIST ? FUSE_READDIRPLUS : FUSE_READ;
		m->args = sizeof(in);
		m->data_in = true;
		put(q, nr, ARGS_AT, &in, sizeof(in));
		if (load->cfg.verify)
			shm_store64(data_of(q, nr), ~word_at(load, slot->file, slot->offset));
	}
}

/* The requests of FS_LOAD_CREATE. */
static void make_step(const struct fs_load *load, struct load_queue *q, uint16_t nr, struct making *m)
{
	const struct load_slot *slot = &q->slot[nr];

	m->node = slot->node;
	switch (slot->step) {
	case STEP_CREATE: {
		struct fuse_create_in in = { .flags = O_CREAT | O_EXCL | O_RDWR, .mode = S_IFREG | 0644, .umask = 022 };

		m->opcode = FUSE_CREATE;
		m->node = load->cfg.folder;
		m->reply = sizeof(struct fuse_entry_out) + sizeof(struct fuse_open_out);
		put(q, nr, ARGS_AT, &in, sizeof(in));
		m->args = (uint32_t)sizeof(in) + put_own_name(load, q, nr, ARGS_AT + sizeof(in));
		break;
	}
	case STEP_WRITE:
		make_data(load, q, nr, m, true);
		break;
	case STEP_FLUSH: {
		struct fuse_flush_in in = { .fh = slot->fh };

		m->opcode = FUSE_FLUSH;
		m->args = sizeof(in);
		put(q, nr, ARGS_AT, &in, sizeof(in));
		break;
	}
	case STEP_RELEASE: {
		struct fuse_release_in in = { .fh = slot->fh, .flags = O_RDWR };

		m->opcode = FUSE_RELEASE;
		m->args = sizeof(in);
		put(q, nr, ARGS_AT, &in, sizeof(in));
		break;
	}
	default:
		m->opcode = FUSE_UNLINK;
		m->node = load->cfg.folder;
		m->args = put_own_name(load, q, nr, ARGS_AT);
	}
}

static void make(struct fs_load *load, struct load_queue *q, uint16_t nr, struct making *m)
{
	struct load_slot *slot = &q->slot[nr];
	const struct fs_load_file *file = load->nr_files ? &load->files[slot->file] : NULL;

	switch (load->cfg.op) {
	case FS_LOAD_GETATTR: {
		struct fuse_getattr_in in = { 0 };

		m->opcode = FUSE_GETATTR;
		m->node = file->node;
		m->args = sizeof(in);
		m->reply = sizeof(struct fuse_attr_out);
		put(q, nr, ARGS_AT, &in, sizeof(in));
		break;
	}
	case FS_LOAD_LOOKUP:
		m->opcode = FUSE_LOOKUP;
		m->node = load->cfg.folder;
		m->args = (uint32_t)strlen(file->name) + 1;
		m->reply = sizeof(struct fuse_entry_out);
		put(q, nr, ARGS_AT, file->name, m->args);
		break;
	case FS_LOAD_READ:
	case FS_LOAD_WRITE:
		slot->fh = file->fh;
		m->node = file->node;
		make_data(load, q, nr, m, load->cfg.op == FS_LOAD_WRITE);
		break;
	case FS_LOAD_LIST:
		m->node = load->cfg.folder;
		make_data(load, q, nr, m, false);
		break;
	default:
		make_step(load, q, nr, m);
	}
}

/* Pieces of the block behind @nr bufs. Returns how many there are then. */
static uint32_t add_data(const struct fs_load *load, const struct load_queue *q, uint16_t slot,
			 struct ring_drv_buf *bufs, uint32_t nr)
{
	uint32_t left = load->cfg.block_bytes, piece = load->cfg.piece_bytes;
	uint64_t gpa = q->data_gpa + slot * q->data_stride;

	if (piece == 0)
		piece = left;
	for (uint32_t len; left > 0; left -= len, gpa += len) {
		len = left < piece ? left : piece;
		bufs[nr++] = (struct ring_drv_buf){ .addr = gpa, .len = len };
	}
	return nr;
}

bool load_request(struct fs_load *load, struct load_queue *q, uint16_t nr)
{
	struct load_slot *slot = &q->slot[nr];
	uint64_t gpa = q->slots_gpa + (uint64_t)nr * FS_LOAD_SLOT_BYTES;
	struct ring_drv_buf bufs[NR_BUFS];
	struct making m = { 0 };
	struct fuse_in_header in;
	uint32_t nr_out = 2, nr_in;

	make(load, q, nr, &m);
	slot->opcode = m.opcode;
	slot->unique = load->unique += 2;	/* the lowest bit is for interrupts */
	bufs[0] = (struct ring_drv_buf){ .addr = gpa, .len = sizeof(in) };
	bufs[1] = (struct ring_drv_buf){ .addr = gpa + ARGS_AT, .len = m.args };
	if (m.data_out)
		nr_out = add_data(load, q, nr, bufs, nr_out);
	nr_in = nr_out;
	bufs[nr_in++] = (struct ring_drv_buf){ .addr = gpa + OUT_AT, .len = sizeof(struct fuse_out_header) };
	if (m.reply)
		bufs[nr_in++] = (struct ring_drv_buf){ .addr = gpa + REPLY_AT, .len = m.reply };
	if (m.data_in)
		nr_in = add_data(load, q, nr, bufs, nr_in);
	in = (struct fuse_in_header){
		.len = (uint32_t)sizeof(in) + m.args + (m.data_out ? load->cfg.block_bytes : 0),
		.opcode = m.opcode, .unique = slot->unique, .nodeid = m.node,
		.uid = load->cfg.uid, .gid = load->cfg.gid, .pid = PID,
	};
	put(q, nr, 0, &in, sizeof(in));
	/* what is never written is not taken for a reply */
	shm_store64(q->slots + (size_t)nr * FS_LOAD_SLOT_BYTES + OUT_AT + 8, 0);
	if (ring_drv_add(q->gen.drv, bufs, nr_out, nr_in - nr_out, nr, (int)load->cfg.indirect) < 0)
		return false;
	q->gen.dirty++;
	return true;
}

void load_forget(struct fs_load *load, uint64_t node)
{
	struct load_hiprio *h = &load->hiprio;
	struct ring_drv_used used[FS_LOAD_FORGETS];
	struct ring_drv_buf bufs[2];
	struct {
		struct fuse_in_header header;
		struct fuse_forget_in arg;
	} in = {
		.header = { .len = sizeof(in), .opcode = FUSE_FORGET, .unique = load->unique += 2, .nodeid = node },
		.arg = { .nlookup = 1 },
	};
	uint16_t nr;

	while (h->nr_free == 0 && !load->gen.broken && !__atomic_load_n(&load->gen.stop, __ATOMIC_RELAXED)) {
		int n = ring_drv_poll(h->drv, used, FS_LOAD_FORGETS);

		if (n < 0)
			load->gen.broken = -EIO;
		for (int i = 0; i < n; i++)
			h->free[h->nr_free++] = (uint16_t)used[i].token;
		if (n == 0)
			measure_relax();
	}
	if (h->nr_free == 0)
		return;
	nr = h->free[--h->nr_free];
	shm_copy_out(h->slots + (size_t)nr * FS_LOAD_SLOT_BYTES, &in, sizeof(in));
	bufs[0] = (struct ring_drv_buf){
		.addr = h->slots_gpa + (uint64_t)nr * FS_LOAD_SLOT_BYTES, .len = sizeof(in.header)
	};
	bufs[1] = (struct ring_drv_buf){ .addr = bufs[0].addr + sizeof(in.header), .len = sizeof(in.arg) };
	if (ring_drv_add(h->drv, bufs, 2, 0, nr, 0) < 0)
		load->gen.broken = -EIO;
	h->dirty++;
}

/* --- replies */

static void check_inode(struct fs_load *load, const struct load_slot *slot, const SHM uint8_t *attr)
{
	const struct fs_load_file *file = &load->files[slot->file];
	uint64_t g_ino = shm_load64(attr), g_size = shm_load64(attr + offsetof(struct fuse_attr, size));

	if (g_ino != file->ino || g_size != file->size)
		gen_fail(load->gen.stats, FS_LOAD_E_INODE, g_ino);
}

/* The number in "f000123"; anything else counts 0. */
static uint64_t number_of(const SHM uint8_t *name, uint32_t len)
{
	uint64_t number = 0;

	if (len != DIGITS + 1 || shm_load8(name) != 'f')
		return 0;
	for (uint32_t i = 1; i <= DIGITS; i++) {
		uint8_t g_digit = shm_load8(name + i);

		number = number * 10 + (uint64_t)(g_digit - '0') % 10;
	}
	return number;
}

/* Entries of @len bytes of a listing; goes on behind the last of them, or from the beginning after the end. */
static void walk_listing(struct fs_load *load, struct load_queue *q, uint16_t nr, uint32_t len)
{
	struct load_slot *slot = &q->slot[nr];
	const SHM uint8_t *data = data_of(q, nr);
	uint64_t want = load->nr_files;
	uint32_t at = 0;

	/* as a guest's kernel, which reads all of it in one go, and does not wait for each line by itself */
	for (uint32_t line = 0; line < len; line += SHM_LINE)
		shm_prefetch(data + line);
	while (len - at >= ENTRY + FUSE_NAME_OFFSET) {
		const SHM uint8_t *entry = data + at;
		uint32_t g_name = shm_load32(entry + ENTRY + offsetof(struct fuse_dirent, namelen));
		uint64_t number;

		if (g_name == 0 || g_name > len - at - ENTRY - FUSE_NAME_OFFSET)
			break;
		slot->offset = shm_load64(entry + ENTRY + offsetof(struct fuse_dirent, off));
		load->stats.entries++;
		if (load->cfg.verify && shm_load8(entry + ENTRY + FUSE_NAME_OFFSET) == 'f') {
			number = number_of(entry + ENTRY + FUSE_NAME_OFFSET, g_name);
			slot->seen++;
			slot->sum += number;
			if (shm_load64(entry) != 0 &&
			    shm_load64(entry + offsetof(struct fuse_entry_out, attr)) != shm_load64(entry + ENTRY))
				gen_fail(load->gen.stats, FS_LOAD_E_INODE, number);
		}
		at += (uint32_t)FUSE_REC_ALIGN(ENTRY + FUSE_NAME_OFFSET + g_name);
		if (at >= len)
			return;
	}
	if (len != 0) {
		gen_fail(load->gen.stats, FS_LOAD_E_LISTING, slot->seen);
		return;
	}
	if (load->cfg.verify && (slot->seen != want || slot->sum != want * (want - 1) / 2))
		gen_fail(load->gen.stats, FS_LOAD_E_LISTING, slot->seen);
	slot->offset = slot->seen = slot->sum = 0;
}

/* A reply without error, of @len bytes after the out header. Returns whether its length is right. */
static bool take_reply(struct fs_load *load, struct load_queue *q, uint16_t nr, uint32_t len)
{
	struct load_slot *slot = &q->slot[nr];
	const SHM uint8_t *reply = q->slots + (size_t)nr * FS_LOAD_SLOT_BYTES + REPLY_AT;

	switch (slot->opcode) {
	case FUSE_GETATTR:
		if (load->cfg.verify)
			check_inode(load, slot, reply + offsetof(struct fuse_attr_out, attr));
		return len == sizeof(struct fuse_attr_out);
	case FUSE_LOOKUP:
		if (load->cfg.verify)
			check_inode(load, slot, reply + offsetof(struct fuse_entry_out, attr));
		return len == sizeof(struct fuse_entry_out);
	case FUSE_READ:
		if (load->cfg.verify && !matches(load, data_of(q, nr), slot))
			gen_fail(load->gen.stats, GEN_E_DATA, slot->offset);
		load->stats.bytes += len;
		return len == load->cfg.block_bytes;
	case FUSE_READDIRPLUS:
		if (len > load->cfg.block_bytes)
			return false;
		load->stats.bytes += len;
		walk_listing(load, q, nr, len);
		return true;
	case FUSE_WRITE:
		load->stats.bytes += shm_load32(reply);
		return len == sizeof(struct fuse_write_out) && shm_load32(reply) == load->cfg.block_bytes;
	case FUSE_CREATE:
		slot->node = shm_load64(reply);
		slot->fh = shm_load64(reply + sizeof(struct fuse_entry_out));
		slot->offset = 0;
		return len == sizeof(struct fuse_entry_out) + sizeof(struct fuse_open_out);
	default:
		return len == 0;
	}
}

/* The next step of FS_LOAD_CREATE. True: it was the last. */
static bool step_over(struct fs_load *load, struct load_queue *q, uint16_t nr)
{
	struct load_slot *slot = &q->slot[nr];
	const SHM uint8_t *reply = q->slots + (size_t)nr * FS_LOAD_SLOT_BYTES + REPLY_AT;

	if (slot->step == STEP_CREATE) {
		uint32_t g_flags = shm_load32(reply + sizeof(struct fuse_entry_out) + offsetof(struct fuse_open_out, open_flags));

		/* kept where FLUSH will look: the slot's file number is free in this kind of load */
		slot->file = (g_flags & NO_FLUSH) != 0;
	}
	if (slot->step == STEP_UNLINK) {
		load_forget(load, slot->node);
		return true;
	}
	slot->step++;
	if (slot->step == STEP_FLUSH && slot->file)
		slot->step++;
	return false;
}

bool load_reply(struct fs_load *load, struct load_queue *q, uint16_t nr, uint32_t len)
{
	struct load_slot *slot = &q->slot[nr];
	const SHM uint8_t *out = q->slots + (size_t)nr * FS_LOAD_SLOT_BYTES + OUT_AT;
	uint32_t g_len = shm_load32(out);
	int32_t g_error = (int32_t)shm_load32(out + 4);

	load->stats.requests++;
	if (len < sizeof(struct fuse_out_header) || g_len != len) {
		gen_fail(load->gen.stats, GEN_E_LENGTH, len);
	} else if (shm_load64(out + 8) != slot->unique) {
		gen_fail(load->gen.stats, FS_LOAD_E_UNIQUE, slot->opcode);
	} else if (g_error && !(slot->opcode == FUSE_FLUSH && g_error == -ENOSYS)) {
		gen_fail(load->gen.stats, FS_LOAD_E_STATUS, (uint64_t)-(int64_t)g_error);
	} else if (!g_error && !take_reply(load, q, nr, len - (uint32_t)sizeof(struct fuse_out_header))) {
		gen_fail(load->gen.stats, GEN_E_LENGTH, len);
	} else {
		return load->cfg.op != FS_LOAD_CREATE || step_over(load, q, nr);
	}
	return true;
}
