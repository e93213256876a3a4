/* SPDX-License-Identifier: Apache-2.0 */
/*
 * port.c - what all ports have in common.
 */
#include "devices/net/csrc/net_int.h"

void net_port_connect(struct net_port *a, struct net_port *b)
{
	if (a)
		a->peer = b;
	if (b)
		b->peer = a;
}

void net_port_set_down(struct net_port *port, int down)
{
	__atomic_store_n(&port->down, down != 0, __ATOMIC_RELAXED);
}

void net_stats_add(struct net_port_stats *sum, const struct net_port_stats *from)
{
	const uint64_t *f = (const uint64_t *)from;
	uint64_t *s = (uint64_t *)sum;
	size_t i;

	for (i = 0; i < sizeof(*sum) / sizeof(*s); i++)
		s[i] += __atomic_load_n(&f[i], __ATOMIC_RELAXED);
}

void net_port_stats(const struct net_port *port, struct net_port_stats *out)
{
	memset(out, 0, sizeof(*out));
	net_stats_add(out, &port->stats);
	if (port->ops->add_stats)
		port->ops->add_stats(port, out);
}

void net_port_free(struct net_port *port)
{
	if (port)
		port->ops->free(port);
}
