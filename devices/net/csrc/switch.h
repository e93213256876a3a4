/* SPDX-License-Identifier: Apache-2.0 */
/*
 * switch.h - a learning Ethernet switch between ports of one worker.
 *
 * Theory of operation
 *   A switch port is the peer of a guest's card, a tap or a NAT. What that side sends, its send() gets; the switch decides
 *   where each frame goes on the private copy of its head and hands the frames, as they are, to the peers of the ports they go to:
 *   a frame between two guests is copied once. Receivers drop what they have no room for, so nobody waits for them.
 *
 *   VLANs: a port is plain, access or trunk. Plain ports make up one network in which tags are payload; it never meets
 *   a VLAN. What leaves an access port for a trunk gets a tag, the other way it loses it. A frame that would show a
 *   tag of its own after that is dropped: nobody hops into another VLAN.
 *
 *   Addresses are learnt per VLAN, forgotten when they age, and there is a limit to how many of them a port may have. A
 *   table without room takes it from the port that has most.
 *
 * All ports of a switch are on one worker. Everything here but statistics is called while that worker is parked.
 */
#ifndef NET_SWITCH_H
#define NET_SWITCH_H

#include "devices/net/csrc/net.h"

/* cffi:begin */
enum {
	NET_SWITCH_PORTS = 256,		/* ports of a switch */
	NET_SWITCH_VLAN_MAX = 4094,	/* IEEE 802.1Q: 0 and 4095 are no VLANs */
	NET_SWITCH_ENTRIES_MAX = 1048576,

	/* struct net_switch_config.flags */
	NET_SWITCH_ISOLATED = 1,	/* reaches ports that are not isolated, and only those */
	NET_SWITCH_PINNED = 2,		/* sends from @mac only, and nobody else does */
	NET_SWITCH_TRUNK = 4,		/* carries the VLANs of @trunk, tagged */

	/* struct net_switch_entry.kind */
	NET_SWITCH_LEARNT = 0,
	NET_SWITCH_PIN = 1,
};

/* A port. Zero is a plain port without limits that learns nothing. */
struct net_switch_config {
	uint32_t flags;
	uint32_t vlan;		/* access: its VLAN; trunk: the one without tag, 0: none; plain: 0 */
	uint64_t trunk[64];	/* bit per VLAN */
	uint8_t mac[6];
	uint32_t learn_max;	/* addresses that may be learnt on it */
	uint32_t burst_ms;	/* what limits let through at once: so many milliseconds' worth */
	/* per second; 0: no limit. In is what the station at the port sends */
	uint64_t in_frames;
	uint64_t in_bytes;
	uint64_t out_frames;
	uint64_t out_bytes;
	uint64_t in_floods;	/* broadcast, multicast, and to addresses that are not known */
};

struct net_switch_entry {
	uint8_t mac[6];
	uint16_t vlan;
	uint32_t port;		/* net_switch_port_number() */
	uint32_t age;		/* seconds since it was heard of, about */
	uint32_t kind;
};

struct net_switch_stats {
	uint64_t entries;	/* learnt ones now, aged ones that were not cleared away yet included */
	uint64_t learnt;
	uint64_t moved;		/* from port to port */
	uint64_t refused;	/* not learnt: the port's limit */
	uint64_t evicted;	/* to make room for another port's */
	uint64_t floods;	/* frames */
};

struct net_switch;

/* Room for about @entries addresses; @seed: anything that guests cannot guess. NULL without memory. */
struct net_switch *net_switch_new(uint32_t entries, uint64_t seed);
/* Only without ports. */
void net_switch_free(struct net_switch *sw);
/* Learnt addresses that were not heard of for so long are forgotten; 1 to 1000000 seconds, to the second or so. */
void net_switch_set_ageing(struct net_switch *sw, uint32_t seconds);
/*
 * A port, freed (and all it learnt forgotten) by net_port_free(). NULL: *@error is -EINVAL (VLANs that cannot be), -EEXIST (the
 * address is pinned to another port), -ENOSPC (NET_SWITCH_PORTS), -ENOMEM.
 */
struct net_port *net_switch_port_new(struct net_switch *sw, const struct net_switch_config *config, int *error);
/* Other rules for @port; what it learnt under its old VLANs is forgotten. 0, -EINVAL, -EEXIST, -ENOSPC: as it was. */
int net_switch_port_set(struct net_port *port, const struct net_switch_config *config);
uint32_t net_switch_port_number(const struct net_port *port);
uint32_t net_switch_port_learnt(const struct net_port *port);	/* any thread: addresses */
/* Forget what was learnt on @port; NULL: everywhere. */
void net_switch_flush(struct net_switch *sw, struct net_port *port);
/* Up to @max entries of the table; returns how many there are. */
uint32_t net_switch_table(const struct net_switch *sw, struct net_switch_entry *out, uint32_t max);
void net_switch_stats(const struct net_switch *sw, struct net_switch_stats *out);	/* any thread */
/* Time passes for tests: what it is now is @seconds later. */
void net_switch_skip(struct net_switch *sw, uint32_t seconds);
/* cffi:end */

#endif
