/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uffd.h - userfaultfd for postcopy migration: pages of guest memory that have not arrived yet.
 *
 * The fd goes to the front-end, which hears of our faults, brings the page and wakes us. We only register ranges.
 */
#ifndef RING_UFFD_H
#define RING_UFFD_H

#include <stdint.h>

/* cffi:begin */
/*
 * A userfaultfd (close-on-exec, non-blocking) whose API handshake is done, or -errno. -EPERM: neither the system call
 * (sysctl vm.unprivileged_userfaultfd) nor /dev/userfaultfd is allowed to us. Faults of the kernel itself (reads and
 * writes on guest buffers) must be caught too, so a user-mode-only fd is no use.
 */
int ring_uffd_open(void);
/* Report missing pages in [hva, hva + len), page-aligned. 0 or -errno; -EOPNOTSUPP: this memory cannot be filled so. */
int ring_uffd_register(int uffd, uint64_t hva, uint64_t len);
/* No longer; whoever waits there is woken. 0 or -errno. */
int ring_uffd_unregister(int uffd, uint64_t hva, uint64_t len);
/* Place @len bytes from @src at @hva: what a front-end does (tests). 0 or -errno. */
int ring_uffd_copy(int uffd, uint64_t hva, uint64_t src, uint64_t len);
/* Wake whoever waits for a page in the range: the page came by another mapping. 0 or -errno. */
int ring_uffd_wake(int uffd, uint64_t hva, uint64_t len);
/* Next fault: 1 and its page-aligned address, 0 if there is none, -errno. */
int ring_uffd_read(int uffd, uint64_t *addr);
/* cffi:end */

#endif
