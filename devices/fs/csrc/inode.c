// SPDX-License-Identifier: Apache-2.0
/*
 * inode.c - the inodes that the guest knows, and the hash that finds them again.
 */
#include "devices/fs/csrc/pass_int.h"

#include <stdlib.h>

enum {
	PASS_HASHED = 1,		/* pass_inode.flags, shard lock */
	PASS_HEADS_MIN = 64,
};

/* --- the hash -------------------------------------------------------------------------------------------------- */

static uint64_t key_hash(uint64_t ino, uint64_t btime, uint32_t mount)
{
	uint64_t h = ino * 0x9e3779b97f4a7c15ull ^ btime * 0xc2b2ae3d27d4eb4full ^ (uint64_t)mount << 17;

	h ^= h >> 29;
	h *= 0xbf58476d1ce4e5b9ull;
	return h ^ h >> 32;
}

static uint64_t inode_hash(const struct pass_inode *inode)
{
	return key_hash(inode->ino, inode->btime, inode->mount);
}

static struct pass_shard *shard_of(struct pass *fs, uint64_t hash)
{
	return &fs->shards[hash % PASS_SHARDS];
}

static uint32_t *bucket_of(struct pass_shard *shard, uint64_t hash)
{
	return &shard->heads[hash / PASS_SHARDS & (shard->nr_heads - 1)];
}

static struct pass_inode *slot_of(const struct pass *fs, uint32_t index)
{
	return pass_table_slot(&fs->inodes, index);
}

/* Twice the buckets, where memory is to be had; longer chains do as well. */
static void shard_grow(struct pass *fs, struct pass_shard *shard)
{
	struct pass_shard bigger = {.nr_heads = shard->nr_heads * 2};

	bigger.heads = calloc(bigger.nr_heads, sizeof(*bigger.heads));
	if (bigger.heads == NULL)
		return;
	for (uint32_t i = 0; i < shard->nr_heads; i++) {
		uint32_t at = shard->heads[i];

		while (at != 0) {
			struct pass_inode *inode = slot_of(fs, at);
			uint32_t *head = bucket_of(&bigger, inode_hash(inode)), next = inode->next;

			inode->next = *head;
			*head = at;
			at = next;
		}
	}
	free(shard->heads);
	shard->heads = bigger.heads;
	shard->nr_heads = bigger.nr_heads;
}

static void hash_add(struct pass *fs, struct pass_shard *shard, uint64_t hash, struct pass_inode *inode)
{
	uint32_t *head;

	if (shard->nr >= shard->nr_heads)
		shard_grow(fs, shard);
	head = bucket_of(shard, hash);
	inode->next = *head;
	*head = inode->index;
	inode->flags |= PASS_HASHED;
	shard->nr++;
}

static void hash_remove(struct pass *fs, struct pass_shard *shard, uint64_t hash, struct pass_inode *inode)
{
	uint32_t *at = bucket_of(shard, hash);

	if (!(inode->flags & PASS_HASHED))
		return;
	while (*at != inode->index)
		at = &slot_of(fs, *at)->next;
	*at = inode->next;
	inode->flags &= (uint8_t)~PASS_HASHED;
	shard->nr--;
}

struct key {
	uint64_t ino, btime, hash;
	uint32_t mount;
};

static struct key key_of(const struct pass *fs, const struct statx *stx, uint32_t mount)
{
	struct key key = {.ino = stx->stx_ino, .mount = mount};

	if (fs->mounts[mount].btime && stx->stx_mask & STATX_BTIME)
		key.btime = (uint64_t)stx->stx_btime.tv_sec * 1000000000 + stx->stx_btime.tv_nsec;
	key.hash = key_hash(key.ino, key.btime, mount);
	return key;
}

/* Under the shard's lock: a reference on what the guest knows already, and one more lookup of it. */
static struct pass_inode *hash_find(struct pass *fs, struct pass_shard *shard, const struct key *key)
{
	for (uint32_t at = *bucket_of(shard, key->hash); at != 0;) {
		struct pass_inode *inode = slot_of(fs, at);

		at = inode->next;
		if (inode->ino != key->ino || inode->btime != key->btime || inode->mount != key->mount)
			continue;
		if (atomic_load_explicit(&inode->gone, memory_order_relaxed)) {
			/* the guest may know it still; another takes its place */
			hash_remove(fs, shard, key->hash, inode);
			continue;
		}
		inode->nlookup++;
		pass_inode_hold(inode);
		return inode;
	}
	return NULL;
}

/* --- inodes ---------------------------------------------------------------------------------------------------- */

struct pass_inode *pass_inode_get(struct pass *fs, uint64_t nodeid)
{
	return pass_table_get(&fs->inodes, nodeid);
}

static void inode_destroy(struct pass *fs, struct pass_inode *inode)
{
	if (atomic_load_explicit(&inode->locks, memory_order_relaxed) != NULL)
		pass_locks_free(fs, inode);
	atomic_store_explicit(&inode->locks, NULL, memory_order_relaxed);
	pass_inode_fd_drop(fs, inode);
	if (inode->handle_len == PASS_BY_NAME) {
		atomic_fetch_sub_explicit(&fs->fds.named, 1, memory_order_relaxed);
		free(inode->by.name);
	} else if (inode->handle_len > PASS_HANDLE_INLINE) {
		free(inode->handle_far);
	}
	inode->handle_len = 0;
	pass_mount_put(fs, inode->mount);
	pass_table_release(&fs->inodes, inode);
}

void pass_inode_put(struct pass *fs, struct pass_inode *inode)
{
	uint64_t was = atomic_fetch_sub_explicit(&inode->word, 1, memory_order_acq_rel);

	if (fs_unlikely((uint32_t)was == 1))
		inode_destroy(fs, inode);
}

void pass_inode_forget(struct pass *fs, struct pass_inode *inode, uint64_t n)
{
	uint64_t hash = inode_hash(inode);
	struct pass_shard *shard = shard_of(fs, hash);
	bool last = false;

	if (inode == fs->root)
		return;
	pthread_mutex_lock(&shard->lock);
	if (n < inode->nlookup) {
		inode->nlookup -= n;
	} else if (inode->nlookup != 0) {
		inode->nlookup = 0;
		hash_remove(fs, shard, hash, inode);
		last = true;
	}
	pthread_mutex_unlock(&shard->lock);
	if (last)
		pass_inode_put(fs, inode);
}

/* The handle of what is at @where, into @inode. 0, or -errno: it has none that can be used. */
static int take_handle(struct pass *fs, struct pass_inode *inode, struct pass_where where)
{
	union {
		struct file_handle h;
		uint8_t room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} u;
	const struct pass_mount *mount = pass_inode_mount(fs, inode);
	int mount_id, handles = atomic_load_explicit(&mount->handles, memory_order_acquire);

	if (handles <= 0)
		return handles < 0 ? handles : -EOPNOTSUPP;
	u.h.handle_bytes = MAX_HANDLE_SZ;
	if (name_to_handle_at(where.dir_fd, where.name != NULL ? where.name : "", &u.h, &mount_id,
			      where.name != NULL ? 0 : AT_EMPTY_PATH) < 0)
		return -errno;
	if (u.h.handle_bytes > PASS_HANDLE_INLINE) {
		inode->handle_far = malloc(u.h.handle_bytes);
		if (inode->handle_far == NULL)
			return -ENOMEM;
		memcpy(inode->handle_far, u.h.f_handle, u.h.handle_bytes);
	} else {
		memcpy(inode->handle, u.h.f_handle, u.h.handle_bytes);
	}
	inode->handle_type = u.h.handle_type;
	inode->handle_len = (uint8_t)u.h.handle_bytes;
	return 0;
}

static bool same_file(const struct statx *a, const struct statx *b)
{
	return a->stx_ino == b->stx_ino && a->stx_dev_major == b->stx_dev_major &&
	       a->stx_dev_minor == b->stx_dev_minor && a->stx_mnt_id == b->stx_mnt_id;
}

/* An fd is all that leads to it. -EAGAIN: *@stx has been renewed, another file has the name by now. */
static int take_fd(struct pass *fs, struct pass_inode *inode, struct statx *stx, struct pass_where where)
{
	struct statx now;
	int fd = pass_open_path(fs, where), err;

	if (fd < 0)
		return fd;
	err = pass_statx(fd, NULL, &now);
	if (err == 0 && !same_file(stx, &now)) {
		*stx = now;
		err = -EAGAIN;
	}
	if (err == 0)
		err = pass_inode_fd_pin(fs, inode, fd);
	if (err < 0)
		close(fd);
	return err == -ENFILE ? pass_inode_fd_name(fs, inode, where) : err;
}

/* What leads to it again: a handle, or an fd. */
static int take_hold(struct pass *fs, struct pass_inode *inode, struct statx *stx, struct pass_where where)
{
	int err = fs->opt.handles == PASS_HANDLES_NEVER ? -EOPNOTSUPP : take_handle(fs, inode, where);

	if (err == 0 || err == -ENOENT || err == -ENOMEM || fs->opt.handles == PASS_HANDLES_ALWAYS)
		return err;
	return take_fd(fs, inode, stx, where);
}

static void inode_fill(struct pass_inode *inode, const struct statx *stx, const struct key *key, uint64_t nlookup)
{
	inode->ino = key->ino;
	inode->btime = key->btime;
	inode->mount = (uint16_t)key->mount;
	inode->type = (uint8_t)(stx->stx_mode >> 12);
	inode->nlookup = nlookup;
	inode->flags = 0;
	atomic_store_explicit(&inode->gone, 0, memory_order_relaxed);
	atomic_store_explicit(&inode->checked, 0, memory_order_relaxed);
}

/* A new inode that nobody else sees yet, in the mount whose count was raised for it. */
static int inode_make(struct pass *fs, struct statx *stx, struct pass_where where, uint32_t mount,
		      struct pass_inode **out)
{
	struct pass_inode *inode = pass_table_alloc(&fs->inodes);
	struct key key = key_of(fs, stx, mount);
	int err;

	if (inode == NULL) {
		pass_mount_put(fs, mount);
		return -ENFILE;
	}
	inode_fill(inode, stx, &key, 1);
	err = take_hold(fs, inode, stx, where);
	if (err < 0) {
		inode_destroy(fs, inode);
		return err;
	}
	*out = inode;
	return 0;
}

/* Known by its numbers: is it still that file? Where no time of birth tells, only an open fd or its handle does. */
static bool still_there(struct pass *fs, struct pass_inode *inode)
{
	int fd;

	if (fs_likely(inode->btime != 0) || inode->handle_len == 0 || inode->handle_len == PASS_BY_NAME)
		return true;
	fd = pass_inode_fd(fs, inode);
	if (fd >= 0)
		pass_inode_fd_put(fs, inode, fd);
	return fd != -ESTALE;
}

static int learn_new(struct pass *fs, struct statx *stx, struct pass_where where, struct pass_inode **out)
{
	struct pass_inode *inode, *other;
	struct pass_shard *shard;
	struct key key;
	int err, mount = pass_mount_get(fs, stx, where);

	if (mount < 0)
		return mount;
	err = inode_make(fs, stx, where, (uint32_t)mount, &inode);
	if (err < 0)
		return err;
	key = key_of(fs, stx, (uint32_t)mount);
	shard = shard_of(fs, key.hash);
	pthread_mutex_lock(&shard->lock);
	other = hash_find(fs, shard, &key);
	if (other == NULL) {
		/* one reference is the table's, one the caller's */
		uint64_t word = atomic_load_explicit(&inode->word, memory_order_relaxed);

		hash_add(fs, shard, key.hash, inode);
		atomic_store_explicit(&inode->word, word + 2, memory_order_release);
	}
	pthread_mutex_unlock(&shard->lock);
	if (other != NULL)
		inode_destroy(fs, inode);	/* somebody else was quicker */
	*out = other != NULL ? other : inode;
	return 0;
}

struct pass_inode *pass_inode_known(struct pass *fs, const struct statx *stx)
{
	int mount = pass_mount_find(fs, stx);
	struct pass_inode *inode;
	struct pass_shard *shard;
	struct key key;

	if (fs_unlikely(mount < 0))
		return NULL;
	key = key_of(fs, stx, (uint32_t)mount);
	shard = shard_of(fs, key.hash);
	for (;;) {
		pthread_mutex_lock(&shard->lock);
		inode = hash_find(fs, shard, &key);
		pthread_mutex_unlock(&shard->lock);
		if (inode == NULL || fs_likely(still_there(fs, inode)))
			return inode;
		pass_inode_forget(fs, inode, 1);
		pass_inode_put(fs, inode);
	}
}

int pass_inode_learn(struct pass *fs, struct statx *stx, struct pass_where where, struct pass_inode **out)
{
	int err = -EAGAIN;

	for (int tries = 0; tries < 8 && err == -EAGAIN; tries++) {
		*out = pass_inode_known(fs, stx);
		if (fs_likely(*out != NULL)) {
			if (fs_unlikely((*out)->handle_len == PASS_BY_NAME))
				pass_inode_fd_name(fs, *out, where);
			return 0;
		}
		err = learn_new(fs, stx, where, out);
	}
	return err == -EAGAIN ? -ENOENT : err;
}

void pass_inode_renamed(struct pass *fs, const struct pass_inode *dir, int fd, const char *name)
{
	struct pass_where where = {.dir_fd = fd, .name = name, .called = name, .parent = pass_inode_id(dir)};
	struct pass_inode *inode;
	struct statx stx;

	if (fs_likely(atomic_load_explicit(&fs->fds.named, memory_order_relaxed) == 0) || pass_statx(fd, name, &stx) < 0)
		return;
	inode = pass_inode_known(fs, &stx);
	if (inode == NULL)
		return;
	if (inode->handle_len == PASS_BY_NAME)
		pass_inode_fd_name(fs, inode, where);
	pass_inode_forget(fs, inode, 1);
	pass_inode_put(fs, inode);
}

int pass_inode_restore(struct pass *fs, uint64_t nodeid, uint64_t nlookup, struct statx *stx, int fd)
{
	struct pass_where where = {.dir_fd = fd};
	struct pass_inode *inode = pass_table_place(&fs->inodes, nodeid);
	struct pass_shard *shard;
	uint64_t hash;
	int mount, err = -ESTALE;

	if (inode == NULL)
		return -EINVAL;
	mount = stx != NULL ? pass_mount_get(fs, stx, where) : -ESTALE;
	if (mount >= 0) {
		struct key key = key_of(fs, stx, (uint32_t)mount);

		inode_fill(inode, stx, &key, nlookup);
		err = take_hold(fs, inode, stx, where);
		if (err < 0)
			pass_mount_put(fs, (uint32_t)mount);
	}
	if (err < 0) {
		/* the number is nobody's any more, also when the slot is used again */
		atomic_store(&inode->word, ((nodeid >> 32) + 1) << 32);
		return err == -ENOMEM ? err : -ESTALE;
	}
	hash = inode_hash(inode);
	shard = shard_of(fs, hash);
	pthread_mutex_lock(&shard->lock);
	hash_add(fs, shard, hash, inode);
	pthread_mutex_unlock(&shard->lock);
	atomic_store(&inode->word, (nodeid & ~(uint64_t)UINT32_MAX) | 1);
	return 0;
}

static int root_make(struct pass *fs)
{
	struct pass_where where = {.dir_fd = fs->root_fd};
	struct pass_inode *inode;
	struct statx stx;
	struct key key;
	int fd, mount, err = pass_statx(fs->root_fd, NULL, &stx);

	if (err < 0)
		return err;
	mount = pass_mount_get(fs, &stx, where);
	if (mount < 0)
		return mount;
	fs->root_mount = (uint32_t)mount;
	key = key_of(fs, &stx, fs->root_mount);
	inode = pass_table_alloc(&fs->inodes);
	if (inode == NULL)
		return -ENOMEM;
	inode->ino = key.ino;
	inode->btime = key.btime;
	inode->mount = (uint16_t)mount;
	inode->type = S_IFDIR >> 12;
	inode->nlookup = 1;
	fd = pass_open_path(fs, where);
	if (fd < 0)
		return fd;
	err = pass_inode_fd_pin(fs, inode, fd);
	if (err < 0) {
		close(fd);
		return err;
	}
	hash_add(fs, shard_of(fs, key.hash), key.hash, inode);
	atomic_store_explicit(&inode->word, 1, memory_order_release);
	fs->root = inode;
	return 0;
}

int pass_inodes_init(struct pass *fs)
{
	int err = pass_table_init(&fs->inodes, sizeof(struct pass_inode), offsetof(struct pass_inode, index),
				  offsetof(struct pass_inode, next), fs->opt.max_inodes);

	if (err < 0)
		return err;
	for (int i = 0; i < PASS_SHARDS; i++) {
		struct pass_shard *shard = &fs->shards[i];

		pthread_mutex_init(&shard->lock, NULL);
		shard->nr_heads = PASS_HEADS_MIN;
		shard->heads = calloc(shard->nr_heads, sizeof(*shard->heads));
		if (shard->heads == NULL)
			return -ENOMEM;
	}
	return root_make(fs);
}

void pass_inodes_reset(struct pass *fs)
{
	for (uint32_t i = pass_table_next(&fs->inodes, 1); i != 0; i = pass_table_next(&fs->inodes, i + 1))
		pass_inode_forget(fs, slot_of(fs, i), UINT64_MAX);
	/* the root stays, and the guest's locks on it go */
	if (fs->root != NULL && atomic_load(&fs->root->locks) != NULL)
		pass_locks_free(fs, fs->root);
}

void pass_inodes_free(struct pass *fs)
{
	if (fs->inodes.chunks == NULL)
		return;
	pass_inodes_reset(fs);
	if (fs->root != NULL)
		inode_destroy(fs, fs->root);
	for (int i = 0; i < PASS_SHARDS; i++) {
		if (fs->shards[i].nr_heads == 0)
			continue;
		free(fs->shards[i].heads);
		pthread_mutex_destroy(&fs->shards[i].lock);
	}
	pass_table_free(&fs->inodes);
}

uint64_t pass_inodes_bytes(const struct pass *fs)
{
	uint64_t chunks = (atomic_load(&fs->inodes.top) + PASS_CHUNK - 1) / PASS_CHUNK;
	uint64_t bytes = chunks * PASS_CHUNK * sizeof(struct pass_inode) + PASS_CHUNKS * sizeof(void *);

	for (int i = 0; i < PASS_SHARDS; i++) {
		struct pass_shard *shard = (struct pass_shard *)(uintptr_t)&fs->shards[i];

		pthread_mutex_lock(&shard->lock);
		bytes += shard->nr_heads * sizeof(*shard->heads);
		pthread_mutex_unlock(&shard->lock);
	}
	return bytes;
}
