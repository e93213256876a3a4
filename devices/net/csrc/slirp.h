/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slirp.h - user-mode NAT: libslirp on a thread of its own, joined to a card by a socket of packets.
 *
 * Theory of operation
 *   libslirp is an IP stack in one thread: frames go in, what the guest wants from the world is done with ordinary
 *   sockets of this process, and frames come out. The thread waits for those sockets, for libslirp's timers and for its
 *   end of a SOCK_SEQPACKET pair, one frame per packet, behind a virtio header as a tap's. Segments of a stream that it
 *   sends one after the other are joined (slirp_merge.h); what comes from the guest was finished before. Nobody ever waits for the thread on the data
 *   path: where the pair is full a frame is dropped, and TCP sends it again.
 *
 *   libslirp is touched by its thread alone. What others want of it (forwards, a look at connections) is posted as a
 *   command, and the caller waits until it is done: microseconds.
 */
#ifndef NET_SLIRP_H
#define NET_SLIRP_H

#include <stdint.h>

/* cffi:begin */
enum {
	NET_SLIRP_ADDR = 16,		/* bytes of an address; IPv4 uses the first four */
	NET_SLIRP_SEARCH_MAX = 16,	/* domains to search */

	NET_SLIRP_ADD = 1,
	NET_SLIRP_REMOVE = 0,
};

struct net_slirp;

/* Addresses in network order. */
struct net_slirp_config {
	int32_t fd;		/* our end of the packet socket; not owned */
	uint32_t ipv4;		/* 0: none */
	uint32_t ipv6;
	uint32_t restricted;	/* only forwards: nothing else leaves the guest */
	uint32_t no_loopback;	/* the host's address does not lead to services on its loopback */
	uint32_t no_dns;
	uint32_t no_dhcp;
	uint32_t mtu;		/* bytes of IP packets both ways; 0: 1500 */
	uint8_t net[4];
	uint8_t mask[4];
	uint8_t host[4];
	uint8_t dns[4];
	uint8_t dhcp_start[4];
	uint8_t prefix6[16];
	uint8_t host6[16];
	uint8_t dns6[16];
	uint32_t prefix6_len;	/* bits */
	const char *hostname;	/* told by DHCP; NULL: none */
	const char *domainname;
	const char *const *search;	/* ends with NULL; or NULL */
};

/* A port of the host that leads to the guest. */
struct net_slirp_forward {
	uint32_t udp;
	uint32_t ipv6;		/* of both ends */
	uint8_t host[16];
	uint8_t guest[16];	/* IPv4 zeros: the first address that DHCP gives */
	uint16_t host_port;	/* host order */
	uint16_t guest_port;
};

struct net_slirp_stats {
	uint64_t in_frames;	/* from the guest */
	uint64_t in_bytes;
	uint64_t out_frames;	/* to the guest */
	uint64_t out_bytes;
	uint64_t dropped;	/* to the guest: it was slower than its network */
	uint64_t bad;		/* frames that libslirp complained about, or that are pieces of nothing */
	uint64_t wakeups;	/* turns of the thread */
	uint64_t sockets;	/* waited for, now */
};

/* Start the thread. NULL: @error gets an errno; EINVAL: libslirp does not like the configuration. */
struct net_slirp *net_slirp_start(const struct net_slirp_config *config, int *error);
/* End the thread, close all it opened. */
void net_slirp_stop(struct net_slirp *s);

/* Any thread, while it runs; wait for the thread. 0 or -errno. */

/* @add: NET_SLIRP_ADD or _REMOVE. */
int net_slirp_forward(struct net_slirp *s, const struct net_slirp_forward *forward, int add);
/* @addr (IPv4) and @port of the network lead to the Unix socket @path; NULL: no more. */
int net_slirp_guest_forward(struct net_slirp *s, const uint8_t *addr, uint32_t port, const char *path);
/* libslirp's table of connections, cut to @len - 1 characters. Returns its length. */
int net_slirp_connections(struct net_slirp *s, char *text, uint32_t len);

void net_slirp_stats(const struct net_slirp *s, struct net_slirp_stats *out);	/* any thread, waits for nobody */
const char *net_slirp_version(void);
/* cffi:end */

#endif
