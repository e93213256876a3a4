/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slirp_mss.h - how large libslirp makes a guest's segments: as large as it likes, for they are cut later.
 *
 * libslirp goes by the size that the guest's SYN offers. What it is told is a multiple of that, and what the guest is
 * told is what its network takes.
 */
#ifndef NET_SLIRP_MSS_H
#define NET_SLIRP_MSS_H

#include <stddef.h>
#include <stdint.h>

/* @frame, if it is a SYN: the guest's, on its way to libslirp. @mtu: largest packet of the network. */
void slirp_mss_raise(uint8_t *frame, size_t len, uint32_t mtu);
/* The same for libslirp's, on its way to the guest. */
void slirp_mss_lower(uint8_t *frame, size_t len, uint32_t mtu);

#endif
