/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slirp_packet.h - packets as the parts around libslirp see them: slirp_merge.c slirp_mss.c slirp_pieces.c, nobody else. They are
 * private copies.
 */
#ifndef NET_SLIRP_PACKET_H
#define NET_SLIRP_PACKET_H

#include "devices/net/csrc/bytes.h"

enum {
	ETH = 14,
	ETH_IPV4 = 0x0800,
	ETH_IPV6 = 0x86dd,
	IP4 = 20,
	IP6 = 40,
	IP_MAX = 65535,
	MORE = 0x2000,		/* of IPv4's flags and offset [RFC 791] */
	PROTO_TCP = 6,
	TCP = 20,
};

static inline uint32_t fold(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* The ones' complement sum of @len bytes, an even number, folded. */
static inline uint32_t sum(const uint8_t *at, uint32_t len, uint32_t start)
{
	uint32_t i;

	for (i = 0; i < len; i += 2)
		start += get16(at + i);
	return fold(start);
}

/* Of an IPv4 header, which has an even length: 0 where its checksum is in it and right. */
static inline uint32_t checksum(const uint8_t *ip, uint32_t len)
{
	return ~sum(ip, len, 0) & 0xffff;
}

#endif
