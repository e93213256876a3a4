// SPDX-License-Identifier: Apache-2.0
#include "vhost/sandbox/csrc/confine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <sched.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	PATH_BYTES = 4096,
	/* Landlock rights by the ABI that brought them; the header may be older than the kernel */
	LL_READ_FILE = 1 << 2,
	LL_READ_DIR = 1 << 3,
	LL_FS_1 = (1 << 13) - 1,
	LL_REFER = 1 << 13,
	LL_TRUNCATE = 1 << 14,
	LL_IOCTL_DEV = 1 << 15,
};

static int result(long r)
{
	return r < 0 ? -errno : 0;
}

int confine_unshare(int what, int user)
{
	int flags = what ? CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS : 0;

	return result(unshare(user ? flags | CLONE_NEWUSER : flags));
}

/* mkdir -p below @root. */
static int make_folders(int root, const char *path)
{
	char copy[PATH_BYTES];
	size_t len = strlen(path);

	if (path[0] != '/' || len >= sizeof(copy))
		return -EINVAL;
	memcpy(copy, path, len + 1);
	for (size_t i = 1; i <= len; i++) {
		if (copy[i] != '/' && copy[i] != '\0')
			continue;
		copy[i] = '\0';
		if (mkdirat(root, copy + 1, 0755) < 0 && errno != EEXIST)
			return -errno;
		if (i < len)
			copy[i] = '/';
	}
	return 0;
}

static int show(int root, const char *path)
{
	struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV};
	int tree, ret = make_folders(root, path);

	if (ret < 0)
		return ret;
	/* with what is mounted below: in a user namespace that may not be uncovered */
	tree = open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
	if (tree < 0)
		return -errno;
	ret = result(mount_setattr(tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof(attr)));
	if (!ret)
		ret = result(move_mount(tree, "", root, path + 1, MOVE_MOUNT_F_EMPTY_PATH));
	close(tree);
	return ret;
}

int confine_root(const char *const *paths, int nr, const char **step)
{
	int root, ret;

	*step = "making mounts private";
	ret = result(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	if (ret)
		return ret;
	*step = "mounting an empty file system";
	/* on /proc, which is there everywhere; it is gone with the old root */
	ret = result(mount("vhost", "/proc", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0755,size=1m,nr_inodes=4096"));
	if (ret)
		return ret;
	root = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root < 0)
		return -errno;
	for (int i = 0; !ret && i < nr; i++) {
		*step = paths[i];
		ret = show(root, paths[i]);
	}
	if (!ret) {
		*step = "changing the root";
		ret = result(fchdir(root));
	}
	if (!ret)
		ret = result(syscall(SYS_pivot_root, ".", "."));
	if (!ret)
		ret = result(umount2(".", MNT_DETACH));
	if (!ret)
		ret = result(chdir("/"));
	if (!ret) {
		*step = "making the root read-only";
		ret = result(mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
	}
	close(root);
	return ret;
}

int confine_chroot(int fd)
{
	if (fchdir(fd) < 0 || chroot(".") < 0 || chdir("/") < 0)
		return -errno;
	return 0;
}

int confine_no_new_privs(void)
{
	return result(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

int confine_landlock_abi(void)
{
	long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);

	return abi < 0 ? -errno : (int)abi;
}

static uint64_t rights(int abi)
{
	uint64_t all = LL_FS_1;

	if (abi >= 2)
		all |= LL_REFER;
	if (abi >= 3)
		all |= LL_TRUNCATE;
	if (abi >= 5)
		all |= LL_IOCTL_DEV;
	return all;
}

int confine_landlock(const int *fds, const uint32_t *allow, int nr)
{
	int abi = confine_landlock_abi(), set, ret = 0;
	uint64_t handled;

	if (abi < 0)
		return abi;
	handled = rights(abi);
	set = (int)syscall(SYS_landlock_create_ruleset, &handled, sizeof(handled), 0);
	if (set < 0)
		return -errno;
	for (int i = 0; !ret && i < nr; i++) {
		struct landlock_path_beneath_attr rule = {.parent_fd = fds[i]};

		if (allow[i] & CONFINE_ALL)
			rule.allowed_access = handled;
		else if (allow[i] & CONFINE_READ)
			/* shared libraries are mapped executable, which is not EXECUTE */
			rule.allowed_access = LL_READ_FILE | LL_READ_DIR;
		if (rule.allowed_access)
			ret = result(syscall(SYS_landlock_add_rule, set, LANDLOCK_RULE_PATH_BENEATH, &rule, 0));
	}
	if (!ret)
		ret = result(syscall(SYS_landlock_restrict_self, set, 0));
	close(set);
	return ret;
}
