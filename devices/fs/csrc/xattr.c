/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xattr.c - extended attributes and POSIX ACLs: names by the rules of --xattrmap, ids translated.
 *
 * An O_PATH descriptor has no f*xattr calls. The calls with a folder (Linux 6.13) take its name in /proc/self/fd, which
 * leads to the very file, links and special files too. Before those, what can be opened is opened for the call.
 */
#include <linux/posix_acl.h>
#include <linux/posix_acl_xattr.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/xattr.h>

#include "devices/fs/csrc/pass_int.h"

#ifndef SYS_setxattrat
#define SYS_setxattrat 463
#define SYS_getxattrat 464
#define SYS_listxattrat 465
#define SYS_removexattrat 466
#endif

enum {
	XATTR_VALUE_MAX = 65536,	/* XATTR_SIZE_MAX, XATTR_LIST_MAX */
};

/* struct xattr_args of linux/xattr.h */
struct xattr_call {
	uint64_t value;
	uint32_t size;
	uint32_t flags;
};

/* --- names ----------------------------------------------------------------------------------------------------- */

static bool begins(const char *text, const char *with)
{
	return strncmp(text, with, strlen(with)) == 0;
}

static bool is_acl(const char *name)
{
	return strcmp(name, "system.posix_acl_access") == 0 || strcmp(name, "system.posix_acl_default") == 0;
}

int pass_xattr_to_host(const struct pass *fs, const char *name, char out[256])
{
	const struct pass_xattr_rule *rule = fs->opt.xattr_rules;
	size_t len = strlen(name), prefix = 0;
	uint32_t i;

	if (is_acl(name) && !fs->opt.posix_acl)
		return -EOPNOTSUPP;
	for (i = 0; i < fs->opt.nr_xattr_rules; i++, rule++)
		if ((rule->scope & PASS_XATTR_CLIENT) && begins(name, rule->key))
			break;
	if (fs->opt.nr_xattr_rules) {
		if (i == fs->opt.nr_xattr_rules || rule->type == PASS_XATTR_BAD)
			return -EPERM;
		if (rule->type == PASS_XATTR_UNSUPPORTED)
			return -EOPNOTSUPP;
		if (rule->type == PASS_XATTR_PREFIX)
			prefix = strlen(rule->prepend);
	}
	if (prefix + len > FS_NAME_MAX)
		return -ERANGE;
	if (prefix)
		memcpy(out, rule->prepend, prefix);
	memcpy(out + prefix, name, len + 1);
	return 0;
}

/* What the guest is shown of the host's name, within @name; NULL: nothing. */
static const char *to_guest(const struct pass *fs, const char *name)
{
	const struct pass_xattr_rule *rule = fs->opt.xattr_rules;
	uint32_t i;

	if (!fs->opt.nr_xattr_rules)
		return is_acl(name) && !fs->opt.posix_acl ? NULL : name;
	for (i = 0; i < fs->opt.nr_xattr_rules; i++, rule++) {
		if (!(rule->scope & PASS_XATTR_SERVER) || !begins(name, rule->prepend))
			continue;
		if (rule->type == PASS_XATTR_OK)
			break;
		if (rule->type != PASS_XATTR_PREFIX)
			return NULL;
		/* another rule may have put the same in front of other names */
		if (begins(name + strlen(rule->prepend), rule->key)) {
			name += strlen(rule->prepend);
			break;
		}
	}
	if (i == fs->opt.nr_xattr_rules || (is_acl(name) && !fs->opt.posix_acl))
		return NULL;
	return name;
}

/* --- calls ----------------------------------------------------------------------------------------------------- */

enum call { CALL_SET, CALL_GET, CALL_LIST, CALL_REMOVE };

static ssize_t call_open(int fd, enum call call, const char *name, void *value, size_t size, int flags)
{
	switch (call) {
	case CALL_SET:
		return fsetxattr(fd, name, value, size, flags);
	case CALL_GET:
		return fgetxattr(fd, name, value, size);
	case CALL_LIST:
		return flistxattr(fd, value, size);
	default:
		return fremovexattr(fd, name);
	}
}

static ssize_t call_path(const char *path, enum call call, const char *name, void *value, size_t size, int flags)
{
	switch (call) {
	case CALL_SET:
		return setxattr(path, name, value, size, flags);
	case CALL_GET:
		return getxattr(path, name, value, size);
	case CALL_LIST:
		return listxattr(path, value, size);
	default:
		return removexattr(path, name);
	}
}

static long call_at(int dir, const char *at, enum call call, const char *name, void *value, size_t size, int flags)
{
	struct xattr_call args = { (uint64_t)(uintptr_t)value, (uint32_t)size, (uint32_t)flags };

	switch (call) {
	case CALL_SET:
		return syscall(SYS_setxattrat, dir, at, 0, name, &args, sizeof(args));
	case CALL_GET:
		return syscall(SYS_getxattrat, dir, at, 0, name, &args, sizeof(args));
	case CALL_LIST:
		return syscall(SYS_listxattrat, dir, at, 0, value, size);
	default:
		return syscall(SYS_removexattrat, dir, at, 0, name);
	}
}

/* Of whatever @fd is, O_PATH or open. Bytes, or -errno. */
static ssize_t call_fd(struct pass *fs, int fd, enum call call, const char *name, void *value, size_t size, int flags)
{
	static _Atomic bool lacks_at;
	char number[16], path[32];
	ssize_t n = -1;

	if (!atomic_load_explicit(&lacks_at, memory_order_relaxed)) {
		n = call_at(fs->proc_fd, pass_fd_name(fd, number), call, name, value, size, flags);
		if (n < 0 && errno == ENOSYS)
			atomic_store_explicit(&lacks_at, true, memory_order_relaxed);
		else
			return n < 0 ? -errno : n;
	}
	snprintf(path, sizeof(path), "/proc/self/fd/%s", pass_fd_name(fd, number));
	n = call_path(path, call, name, value, size, flags);
	return n < 0 ? -errno : n;
}

/* Likewise of an inode. */
static ssize_t call_inode(struct pass *fs, struct pass_inode *inode, enum call call, const char *name, void *value,
			  size_t size, int flags)
{
	int fd = pass_inode_fd(fs, inode);
	ssize_t n;

	if (fd < 0)
		return fd;
	n = call_fd(fs, fd, call, name, value, size, flags);
	pass_inode_fd_put(fs, inode, fd);
	if (n != -ENOENT && n != -ENOTDIR)
		return n;
	/* no /proc to be seen */
	fd = pass_inode_open(fs, inode, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return -EOPNOTSUPP;
	n = call_open(fd, call, name, value, size, flags);
	n = n < 0 ? -errno : n;
	close(fd);
	return n;
}

int pass_xattr_set(struct pass *fs, int fd, const char *name, const void *value, size_t size)
{
	char host[256];
	int rc = pass_xattr_to_host(fs, name, host);

	return rc ? rc : (int)call_fd(fs, fd, CALL_SET, host, (void *)(uintptr_t)value, size, 0);
}

void pass_xattr_drop_caps(struct pass *fs, int fd)
{
	char name[256];

	if (fs_likely(!fs->opt.nr_xattr_rules || !fs->opt.xattr))
		return;
	if (pass_xattr_to_host(fs, "security.capability", name) == 0 && strcmp(name, "security.capability") != 0)
		call_fd(fs, fd, CALL_REMOVE, name, NULL, 0, 0);
}

/* --- ACLs ------------------------------------------------------------------------------------------------------ */

static bool translates(const struct pass *fs)
{
	return fs->opt.nr_uid_to_host || fs->opt.nr_uid_to_guest || fs->opt.nr_gid_to_host || fs->opt.nr_gid_to_guest;
}

/* Ids of users and groups that a private copy of an ACL names. 0, -EINVAL: not an ACL, -EPERM. */
static int translate_acl(const struct pass *fs, uint8_t *acl, size_t len, bool to_host)
{
	struct posix_acl_xattr_entry entry;
	size_t at;

	if (len < sizeof(struct posix_acl_xattr_header) ||
	    (len - sizeof(struct posix_acl_xattr_header)) % sizeof(entry) || len > XATTR_VALUE_MAX)
		return -EINVAL;
	for (at = sizeof(struct posix_acl_xattr_header); at < len; at += sizeof(entry)) {
		uint32_t id;
		int rc = 0;

		memcpy(&entry, acl + at, sizeof(entry));
		id = entry.e_id;
		if (entry.e_tag == ACL_USER && to_host)
			rc = pass_uid_to_host(fs, id, &id);
		else if (entry.e_tag == ACL_GROUP && to_host)
			rc = pass_gid_to_host(fs, id, &id);
		else if (entry.e_tag == ACL_USER)
			id = pass_uid_to_guest(fs, id);
		else if (entry.e_tag == ACL_GROUP)
			id = pass_gid_to_guest(fs, id);
		if (rc)
			return rc;
		entry.e_id = id;
		memcpy(acl + at, &entry, sizeof(entry));
	}
	return 0;
}

/* The guest's kernel says that setting the ACL takes SGID away: its user is not of the file's group. */
static void drop_sgid(struct pass *fs, struct pass_inode *inode)
{
	int fd = pass_inode_fd(fs, inode);
	char number[16];
	struct stat st;

	if (fd < 0)
		return;
	if (fstat(fd, &st) == 0 && (st.st_mode & S_ISGID))
		fchmodat(fs->proc_fd, pass_fd_name(fd, number), st.st_mode & 07777 & ~(mode_t)S_ISGID, 0);
	pass_inode_fd_put(fs, inode, fd);
}

/* --- requests -------------------------------------------------------------------------------------------------- */

static void gather(uint8_t *to, const struct ring_iov *iov, uint32_t nr, size_t len)
{
	uint32_t i;

	for (i = 0; i < nr && len; i++) {
		size_t part = iov[i].len < len ? iov[i].len : len;

		shm_copy_in(to, iov[i].base, part);
		to += part;
		len -= part;
	}
}

static void scatter(const struct ring_iov *iov, uint32_t nr, const uint8_t *from, size_t len)
{
	uint32_t i;

	for (i = 0; i < nr && len; i++) {
		size_t part = iov[i].len < len ? iov[i].len : len;

		shm_copy_out(iov[i].base, from, part);
		from += part;
		len -= part;
	}
}

int pass_setxattr(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	const struct fuse_setxattr_in *in = FS_ARG(req, fuse_setxattr_in);
	bool acl = is_acl(req->name);
	uint8_t *copy = NULL;
	void *value = NULL;
	char name[256];
	int rc;

	(void)pool;
	if (!fs->opt.xattr)
		return -ENOSYS;
	if (in->flags & ~(uint32_t)(XATTR_CREATE | XATTR_REPLACE))
		return -EINVAL;
	if (req->data_len > XATTR_VALUE_MAX)
		return -E2BIG;
	rc = pass_xattr_to_host(fs, req->name, name);
	if (rc)
		return rc;
	if (req->nr_data == 1 && !acl) {
		value = req->data[0].base;	/* the kernel copies it, once */
	} else if (req->data_len) {
		value = copy = malloc(req->data_len);
		if (!copy)
			return -ENOMEM;
		gather(copy, req->data, req->nr_data, req->data_len);
	}
	if (acl && copy && translates(fs))
		rc = translate_acl(fs, copy, req->data_len, true);
	if (!rc)
		rc = (int)call_inode(fs, inode, CALL_SET, name, value, req->data_len, req->replay ? 0 : (int)in->flags);
	if (!rc && acl && (fs->server.flags & FUSE_SETXATTR_EXT) && (in->setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID))
		drop_sgid(fs, inode);
	free(copy);
	return rc;
}

/* The size alone, or the bytes. */
static int answer(struct fs_req *req, uint32_t want, const uint8_t *bytes, size_t len)
{
	if (!want) {
		*FS_OUT(req, fuse_getxattr_out) = (struct fuse_getxattr_out){ .size = (uint32_t)len };
		return sizeof(struct fuse_getxattr_out);
	}
	if (len > want || len > req->room_len)
		return -ERANGE;
	scatter(req->room, req->nr_room, bytes, len);
	req->in_place = true;
	return (int)len;
}

int pass_getxattr(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	const struct fuse_getxattr_in *in = FS_ARG(req, fuse_getxattr_in);
	bool acl = is_acl(req->name) && translates(fs);
	uint32_t size = in->size < XATTR_VALUE_MAX ? in->size : XATTR_VALUE_MAX;
	uint8_t *copy;
	char name[256];
	ssize_t n;
	int rc;

	(void)pool;
	if (!fs->opt.xattr)
		return -ENOSYS;
	rc = pass_xattr_to_host(fs, req->name, name);
	if (rc)
		return rc;
	if (!size) {
		n = call_inode(fs, inode, CALL_GET, name, NULL, 0, 0);
		return n < 0 ? (int)n : answer(req, 0, NULL, (size_t)n);
	}
	if (!acl && req->nr_room && req->room[0].len >= size) {
		n = call_inode(fs, inode, CALL_GET, name, req->room[0].base, size, 0);
		req->in_place = n >= 0;
		return (int)n;
	}
	copy = malloc(size);
	if (!copy)
		return -ENOMEM;
	n = call_inode(fs, inode, CALL_GET, name, copy, size, 0);
	rc = n < 0 ? (int)n : 0;
	if (!rc && acl)
		rc = translate_acl(fs, copy, (size_t)n, false);
	if (!rc)
		rc = answer(req, size, copy, (size_t)n);
	free(copy);
	return rc;
}

/* The names that the guest may see, as it sees them, in place: none becomes longer. Bytes. */
static size_t filter(const struct pass *fs, char *names, size_t len)
{
	size_t at = 0, kept = 0;

	while (at < len) {
		size_t size = strnlen(names + at, len - at) + 1;
		const char *shown = at + size <= len ? to_guest(fs, names + at) : NULL;

		if (shown) {
			size_t n = strlen(shown) + 1;

			memmove(names + kept, shown, n);
			kept += n;
		}
		at += size;
	}
	return kept;
}

int pass_listxattr(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	const struct fuse_getxattr_in *in = FS_ARG(req, fuse_getxattr_in);
	char *names;
	ssize_t n;

	(void)pool;
	if (!fs->opt.xattr)
		return -ENOSYS;
	names = malloc(XATTR_VALUE_MAX);
	if (!names)
		return -ENOMEM;
	n = call_inode(fs, inode, CALL_LIST, NULL, names, XATTR_VALUE_MAX, 0);
	if (n >= 0)
		n = answer(req, in->size, (const uint8_t *)names, filter(fs, names, (size_t)n));
	free(names);
	return (int)n;
}

int pass_removexattr(struct pass *fs, struct fs_req *req, struct pass_inode *inode, bool pool)
{
	char name[256];
	int rc;

	(void)pool;
	if (!fs->opt.xattr)
		return -ENOSYS;
	rc = pass_xattr_to_host(fs, req->name, name);
	if (!rc)
		rc = (int)call_inode(fs, inode, CALL_REMOVE, name, NULL, 0, 0);
	return rc == -ENODATA && req->replay ? 0 : rc;
}
