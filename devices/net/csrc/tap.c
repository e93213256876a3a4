/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tap.c - what a tap may give unfinished.
 */
#include <errno.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>

#include "devices/net/csrc/fdlink.h"
#include "devices/net/csrc/net_int.h"

/* since Linux 6.2; headers may be older than the kernel */
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

static int set(int fd, uint32_t takes)
{
	unsigned long flags = 0;

	if (takes & NET_TAKES_CSUM)
		flags |= TUN_F_CSUM;
	if (takes & NET_TAKES_TSO4)
		flags |= TUN_F_TSO4;
	if (takes & NET_TAKES_TSO6)
		flags |= TUN_F_TSO6;
	if (takes & NET_TAKES_ECN)
		flags |= TUN_F_TSO_ECN;
	if (takes & NET_TAKES_USO)
		flags |= TUN_F_USO4 | TUN_F_USO6;
	return ioctl(fd, TUNSETOFFLOAD, flags) < 0 ? -errno : (int)takes;
}

int net_tap_set_offload(int fd, uint32_t takes)
{
	int rc;

	if (!(takes & NET_TAKES_CSUM))
		takes = 0;	/* all others need it */
	/* nothing is made of whole UDP datagrams but by old kernels, which do it without being asked */
	takes &= ~(uint32_t)NET_TAKES_UFO;
	if (!(takes & (NET_TAKES_TSO4 | NET_TAKES_TSO6)))
		takes &= ~(uint32_t)NET_TAKES_ECN;	/* the kernel takes it with these only */
	rc = set(fd, takes);
	if (rc == -EINVAL && takes & NET_TAKES_USO)
		rc = set(fd, takes & ~(uint32_t)NET_TAKES_USO);
	return rc;
}

uint32_t net_tap_takes(int fd)
{
	uint32_t takes = NET_TAKES_CSUM | NET_TAKES_TSO4 | NET_TAKES_TSO6 | NET_TAKES_ECN;

	/* a kernel that makes them cuts them too */
	if (set(fd, takes | NET_TAKES_USO) >= 0)
		takes |= NET_TAKES_USO;
	set(fd, 0);
	return takes;
}
