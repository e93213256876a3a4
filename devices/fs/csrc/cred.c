// SPDX-License-Identifier: Apache-2.0
/*
 * cred.c - acting for a guest's process: user, group, groups, umask and capabilities of this thread alone.
 *
 * By raw system calls: those of libc change all threads of the process. What a thread was, its umask aside, is restored
 * before the request ends, so that whatever else it serves is served as before.
 */
#include "devices/fs/csrc/pass_int.h"

#include <linux/capability.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/syscall.h>

#define CAP_BIT(cap) (1ull << (cap))

/*
 * The umask is shared by the threads of a process until one of them asks for its own. From then on it stays as it was
 * set last: whoever makes files here says which it wants, and most want the same.
 */
static _Thread_local bool own_umask;
static _Thread_local mode_t last_umask;

static int cap_get(uint64_t *effective, struct __user_cap_data_struct data[2])
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};

	if (syscall(SYS_capget, &head, data) < 0)
		return -errno;
	*effective = (uint64_t)data[1].effective << 32 | data[0].effective;
	return 0;
}

static int cap_set(uint64_t effective, struct __user_cap_data_struct data[2])
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};

	data[0].effective = (uint32_t)effective;
	data[1].effective = (uint32_t)(effective >> 32);
	return syscall(SYS_capset, &head, data) < 0 ? -errno : 0;
}

/* --- translation of ids ---------------------------------------------------------------------------------------- */

static int translate(const struct pass_range *ranges, uint32_t nr, uint32_t id, uint32_t *out)
{
	*out = id;
	for (uint32_t i = 0; i < nr; i++) {
		if (id < ranges[i].from || id - ranges[i].from >= ranges[i].count)
			continue;
		if (ranges[i].kind == PASS_RANGE_FORBID)
			return -EPERM;
		*out = ranges[i].to + (ranges[i].kind == PASS_RANGE_MAP ? id - ranges[i].from : 0);
		return 0;
	}
	return 0;
}

int pass_uid_to_host(const struct pass *fs, uint32_t uid, uint32_t *out)
{
	return translate(fs->opt.uid_to_host, fs->opt.nr_uid_to_host, uid, out);
}

int pass_gid_to_host(const struct pass *fs, uint32_t gid, uint32_t *out)
{
	return translate(fs->opt.gid_to_host, fs->opt.nr_gid_to_host, gid, out);
}

uint32_t pass_uid_to_guest(const struct pass *fs, uint32_t uid)
{
	uint32_t out;

	return translate(fs->opt.uid_to_guest, fs->opt.nr_uid_to_guest, uid, &out) == 0 ? out : PASS_OVERFLOW_ID;
}

uint32_t pass_gid_to_guest(const struct pass *fs, uint32_t gid)
{
	uint32_t out;

	return translate(fs->opt.gid_to_guest, fs->opt.nr_gid_to_guest, gid, &out) == 0 ? out : PASS_OVERFLOW_ID;
}

/* --- a thread's own -------------------------------------------------------------------------------------------- */

static int set_umask(mode_t mask)
{
	if (fs_likely(own_umask && last_umask == mask))
		return 0;
	if (!own_umask && unshare(CLONE_FS) < 0)
		return -errno;
	own_umask = true;
	umask(mask);
	last_umask = mask;
	return 0;
}

/* The guest's groups instead of ours, which must not lend it theirs. */
static int set_groups(struct pass *fs, const struct fs_req *req, struct pass_cred *cred)
{
	uint32_t groups[FS_GROUPS_MAX];
	int n = getgroups(PASS_OWN_GROUPS, cred->own);

	if (n < 0)
		return -errno;
	for (uint32_t i = 0; i < req->nr_groups; i++) {
		int err = pass_gid_to_host(fs, req->groups[i], &groups[i]);

		if (err < 0)
			return err;
	}
	if (n == 0 && req->nr_groups == 0)
		return 0;
	if (syscall(SYS_setgroups, req->nr_groups, groups) < 0)
		return -errno;
	cred->nr_own = (uint32_t)n;
	cred->groups = true;
	return 0;
}

/* The calls do not say whether they worked. */
static int set_ids(struct pass *fs, uint32_t uid, uint32_t gid, struct pass_cred *cred)
{
	cred->ids = true;
	cred->uid = fs->own_uid;
	cred->gid = fs->own_gid;
	syscall(SYS_setfsgid, gid);
	if ((uint32_t)syscall(SYS_setfsgid, -1) != gid)
		return -EPERM;
	syscall(SYS_setfsuid, uid);
	return (uint32_t)syscall(SYS_setfsuid, -1) != uid ? -EPERM : 0;
}

/* Its kernel did not say which groups it is in: it has checked permissions by itself, and ours may not say no. */
static int keep_override(struct pass_cred *cred)
{
	struct __user_cap_data_struct data[2];
	int err = cap_get(&cred->effective, data);

	if (err < 0 || cred->effective & CAP_BIT(CAP_DAC_OVERRIDE) || !(data[0].permitted & CAP_BIT(CAP_DAC_OVERRIDE)))
		return err;
	/* going back to our user brings back what it had, and no more */
	return cap_set(cred->effective | CAP_BIT(CAP_DAC_OVERRIDE), data);
}

int pass_cred_enter(struct pass *fs, const struct fs_req *req, mode_t mask, bool strict, struct pass_cred *cred)
{
	uint32_t uid, gid;
	int err;

	cred->ids = cred->groups = cred->caps = false;
	err = pass_uid_to_host(fs, req->in.uid, &uid);
	if (err == 0)
		err = pass_gid_to_host(fs, req->in.gid, &gid);
	if (err == 0)
		err = set_umask(mask);
	if (err < 0 || !fs->privileged || (uid == fs->own_uid && gid == fs->own_gid))
		goto out;
	err = set_groups(fs, req, cred);
	if (err == 0)
		err = set_ids(fs, uid, gid, cred);
	if (err == 0 && !strict && !(fs->server.flags & FUSE_CREATE_SUPP_GROUP))
		err = keep_override(cred);
out:
	if (err < 0)
		pass_cred_leave(fs, cred);
	return err;
}

int pass_cred_no_fsetid(struct pass *fs, struct pass_cred *cred)
{
	struct __user_cap_data_struct data[2];
	int err;

	(void)fs;
	*cred = (struct pass_cred){0};
	err = cap_get(&cred->effective, data);
	if (err < 0 || !(cred->effective & CAP_BIT(CAP_FSETID)))
		return err;
	err = cap_set(cred->effective & ~CAP_BIT(CAP_FSETID), data);
	cred->caps = err == 0;
	return err;
}

/* What a thread cannot get back it must not go on with: every later request would be done as somebody else. */
void pass_cred_leave(struct pass *fs, struct pass_cred *cred)
{
	struct __user_cap_data_struct data[2];
	uint64_t now;

	(void)fs;
	if (cred->ids) {
		syscall(SYS_setfsuid, cred->uid);
		syscall(SYS_setfsgid, cred->gid);
		if ((uint32_t)syscall(SYS_setfsuid, -1) != cred->uid || (uint32_t)syscall(SYS_setfsgid, -1) != cred->gid)
			abort();
	}
	if (cred->groups && syscall(SYS_setgroups, cred->nr_own, cred->own) < 0)
		abort();
	if (cred->caps && (cap_get(&now, data) < 0 || cap_set(cred->effective, data) < 0))
		abort();
}

void pass_cred_init(struct pass *fs)
{
	struct __user_cap_data_struct data[2];
	uint64_t need = CAP_BIT(CAP_SETUID) | CAP_BIT(CAP_SETGID), effective = 0;

	fs->own_uid = geteuid();
	fs->own_gid = getegid();
	fs->privileged = cap_get(&effective, data) == 0 && (effective & need) == need;
}
