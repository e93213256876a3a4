/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uffd.c - see uffd.h. Control thread only; nothing here is on the hot path.
 */
#include "ring/csrc/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Since Linux 6.1: access is a matter of the device file's permissions instead of a capability. */
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

static int uffd_new(void)
{
	long fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	int dev, err;

	if (fd >= 0)
		return (int)fd;
	if (errno != EPERM)
		return -errno;
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev < 0)
		return -EPERM;
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	err = errno;
	close(dev);
	return fd < 0 ? -err : (int)fd;
}

int ring_uffd_open(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = uffd_new();

	if (fd < 0)
		return fd;
	if (ioctl(fd, UFFDIO_API, &api)) {
		int err = errno;

		close(fd);
		return -err;
	}
	return fd;
}

int ring_uffd_register(int uffd, uint64_t hva, uint64_t len)
{
	struct uffdio_register reg = {
		.range = { .start = hva, .len = len },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	if (ioctl(uffd, UFFDIO_REGISTER, &reg))
		return -errno;
	if (!(reg.ioctls & (1ULL << _UFFDIO_COPY))) {
		ring_uffd_unregister(uffd, hva, len);
		return -EOPNOTSUPP;
	}
	return 0;
}

int ring_uffd_unregister(int uffd, uint64_t hva, uint64_t len)
{
	struct uffdio_range range = { .start = hva, .len = len };

	return ioctl(uffd, UFFDIO_UNREGISTER, &range) ? -errno : 0;
}

int ring_uffd_copy(int uffd, uint64_t hva, uint64_t src, uint64_t len)
{
	struct uffdio_copy copy = { .dst = hva, .src = src, .len = len };

	return ioctl(uffd, UFFDIO_COPY, &copy) ? -errno : 0;
}

int ring_uffd_wake(int uffd, uint64_t hva, uint64_t len)
{
	struct uffdio_range range = { .start = hva, .len = len };

	return ioctl(uffd, UFFDIO_WAKE, &range) ? -errno : 0;
}

int ring_uffd_read(int uffd, uint64_t *addr)
{
	struct uffd_msg msg;
	ssize_t n = read(uffd, &msg, sizeof(msg));

	if (n < 0)
		return errno == EAGAIN ? 0 : -errno;
	if ((size_t)n != sizeof(msg) || msg.event != UFFD_EVENT_PAGEFAULT)
		return -EPROTO;
	*addr = msg.arg.pagefault.address & ~(uint64_t)(sysconf(_SC_PAGESIZE) - 1);
	return 1;
}
