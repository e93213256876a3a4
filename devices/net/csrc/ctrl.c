/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ctrl.c - the control queue (VIRTIO 1.3, 5.1.6.5): receive filter, MAC address, pairs in use and flows' hashes, offloads of
 * the guest.
 *
 * Only front-ends that leave it to us have one here (crosvm); QEMU and cloud-hypervisor keep it to themselves.
 *
 * Commands run on the control queue's worker, frames pass the filter on any. All they share are whole words, and where
 * a table changes the filter passes everything meanwhile.
 */
#include <errno.h>
#include <stdlib.h>

#include "devices/net/csrc/dev.h"

enum {
	CLASS_RX = 0,
	CLASS_MAC = 1,
	CLASS_VLAN = 2,
	CLASS_ANNOUNCE = 3,
	CLASS_MQ = 4,
	CLASS_OFFLOADS = 5,

	MAC_TABLE_SET = 0,
	MAC_ADDR_SET = 1,
	VLAN_ADD = 0,
	VLAN_DEL = 1,
	MQ_PAIRS = 0,
	MQ_RSS = 1,
	MQ_HASH = 2,

	ACK_OK = 0,
	ACK_ERR = 1,
	HEADER = 2,		/* class, command */
	BATCH = 16,
};

/* NET_MODE_* by command of CLASS_RX */
static const uint32_t modes[] = {
	NET_MODE_PROMISC, NET_MODE_ALLMULTI, NET_MODE_ALLUNI, NET_MODE_NOMULTI, NET_MODE_NOUNI, NET_MODE_NOBCAST,
};

struct net_ctrlq {
	struct ring_source source;
	struct net_dev *dev;
};

/* --- the filter ------------------------------------------------------------------------------------------------- */

static uint64_t mac_of(const uint8_t *p)
{
	uint64_t mac = 0;

	memcpy(&mac, p, NET_MAC);
	return mac;
}

static bool in_table(const struct net_filter *fl, uint32_t table, uint64_t mac)
{
	uint32_t n = __atomic_load_n(&fl->nr[table], __ATOMIC_ACQUIRE), i;

	for (i = 0; i < n; i++) {
		if (__atomic_load_n(&fl->macs[table][i], __ATOMIC_RELAXED) == mac)
			return true;
	}
	return false;
}

static bool vlan_passes(const struct net_filter *fl, const struct net_frame *f)
{
	uint32_t id;

	if (f->head_len < 18 || f->head[12] != 0x81 || f->head[13] != 0)
		return true;
	id = ((uint32_t)f->head[14] << 8 | f->head[15]) & 0xfff;
	return __atomic_load_n(&fl->vlans[id / 64], __ATOMIC_RELAXED) >> (id % 64) & 1;
}

bool net_filter_passes(const struct net_filter *fl, const struct net_frame *f)
{
	uint32_t mode = __atomic_load_n(&fl->mode, __ATOMIC_RELAXED);
	uint64_t dst = mac_of(f->head);

	if (mode & NET_MODE_PROMISC)
		return true;
	if (mode & NET_MODE_VLAN && !vlan_passes(fl, f))
		return false;
	if (dst == 0xffffffffffff)
		return !(mode & NET_MODE_NOBCAST);
	if (f->head[0] & 1) {
		if (mode & NET_MODE_NOMULTI)
			return false;
		return mode & (NET_MODE_ALLMULTI | NET_MODE_MANY_MULTI) || in_table(fl, NET_TABLE_MULTI, dst);
	}
	if (mode & NET_MODE_NOUNI)
		return false;
	return mode & (NET_MODE_ALLUNI | NET_MODE_MANY_UNI) || dst == __atomic_load_n(&fl->mac, __ATOMIC_RELAXED) ||
	       in_table(fl, NET_TABLE_UNI, dst);
}

static void set_mode(struct net_filter *fl, uint32_t bits, bool on)
{
	uint32_t mode = fl->mode;

	__atomic_store_n(&fl->mode, on ? mode | bits : mode & ~bits, __ATOMIC_RELEASE);
}

void net_dev_set_mac(struct net_dev *dev, const uint8_t *mac)
{
	__atomic_store_n(&dev->filter.mac, mac_of(mac), __ATOMIC_RELAXED);
}

void net_dev_get_mac(const struct net_dev *dev, uint8_t *mac)
{
	uint64_t now = __atomic_load_n(&dev->filter.mac, __ATOMIC_RELAXED);

	memcpy(mac, &now, NET_MAC);
}

void net_dev_reset(struct net_dev *dev, const uint8_t *mac)
{
	int i;

	/* VIRTIO 1.3 leaves it open; a driver that has no filter gets everything */
	__atomic_store_n(&dev->filter.mode, NET_MODE_PROMISC, __ATOMIC_RELEASE);
	for (i = 0; i < NET_TABLES; i++)
		__atomic_store_n(&dev->filter.nr[i], 0, __ATOMIC_RELAXED);
	for (i = 0; i < NET_VLAN_WORDS; i++)
		__atomic_store_n(&dev->filter.vlans[i], 0, __ATOMIC_RELAXED);
	net_rss_stop(&dev->rss);
	__atomic_store_n(&dev->announce, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&dev->active, dev->pairs, __ATOMIC_RELAXED);
	net_dev_set_mac(dev, mac);
	__atomic_store_n(&dev->port.takes, net_takes_of(dev->features), __ATOMIC_RELAXED);
}

void net_dev_set_announce(struct net_dev *dev, int on)
{
	__atomic_store_n(&dev->announce, on != 0, __ATOMIC_RELAXED);
}

int net_dev_announce(const struct net_dev *dev)
{
	return __atomic_load_n(&dev->announce, __ATOMIC_RELAXED) != 0;
}

/* --- commands --------------------------------------------------------------------------------------------------- */

static bool has(const struct net_dev *dev, int bit)
{
	return dev->features >> bit & 1;
}

/* Exactly @len bytes of the command's data. */
static bool take(const struct ring_chain *chain, void *data, uint32_t len)
{
	return chain->out_bytes == HEADER + len && ring_chain_read(chain, HEADER, data, len) == len;
}

static bool rx_mode(struct net_dev *dev, uint8_t command, const struct ring_chain *chain)
{
	uint8_t on;

	if (command >= sizeof(modes) / sizeof(modes[0]) ||
	    !has(dev, command < 2 ? NET_V_CTRL_RX : NET_V_CTRL_RX_EXTRA) || !take(chain, &on, sizeof(on)) || on > 1)
		return false;
	set_mode(&dev->filter, modes[command], on);
	return true;
}

/*
 * One of the two tables: @n entries of six bytes at @at of the command. More than we keep: all of that kind pass (VIRTIO
 * 1.3, 5.1.6.5.2: the filter may let too much through).
 */
static void mac_table(struct net_filter *fl, uint32_t table, const struct ring_chain *chain, uint32_t at, uint32_t n)
{
	uint32_t many = table == NET_TABLE_UNI ? NET_MODE_MANY_UNI : NET_MODE_MANY_MULTI;
	uint8_t mac[NET_MAC] = { 0 };
	uint32_t i;

	set_mode(fl, many, true);
	if (n > NET_MACS)
		return;
	for (i = 0; i < n; i++) {
		ring_chain_read(chain, at + i * NET_MAC, mac, NET_MAC);
		__atomic_store_n(&fl->macs[table][i], mac_of(mac), __ATOMIC_RELAXED);
	}
	__atomic_store_n(&fl->nr[table], n, __ATOMIC_RELEASE);
	set_mode(fl, many, false);
}

static bool mac_tables(struct net_dev *dev, const struct ring_chain *chain)
{
	uint32_t n[NET_TABLES], at[NET_TABLES], i;
	uint64_t end = HEADER;

	for (i = 0; i < NET_TABLES; i++) {	/* both are right, or nothing changes */
		if (end + sizeof(n[i]) > chain->out_bytes ||
		    ring_chain_read(chain, (uint32_t)end, &n[i], sizeof(n[i])) != sizeof(n[i]))
			return false;
		at[i] = (uint32_t)end + (uint32_t)sizeof(n[i]);
		end += sizeof(n[i]) + (uint64_t)n[i] * NET_MAC;
	}
	if (end != chain->out_bytes)
		return false;
	for (i = 0; i < NET_TABLES; i++)
		mac_table(&dev->filter, i, chain, at[i], n[i]);
	return true;
}

static bool mac_command(struct net_dev *dev, uint8_t command, const struct ring_chain *chain)
{
	uint8_t mac[NET_MAC];

	if (command == MAC_TABLE_SET && has(dev, NET_V_CTRL_RX))
		return mac_tables(dev, chain);
	if (command != MAC_ADDR_SET || !has(dev, NET_V_CTRL_MAC_ADDR) || !take(chain, mac, sizeof(mac)) || mac[0] & 1)
		return false;
	net_dev_set_mac(dev, mac);
	return true;
}

static bool vlan_command(struct net_dev *dev, uint8_t command, const struct ring_chain *chain)
{
	struct net_filter *fl = &dev->filter;
	uint16_t id;
	uint64_t word;

	if (command > VLAN_DEL || !has(dev, NET_V_CTRL_VLAN) || !take(chain, &id, sizeof(id)) || id > 0xfff)
		return false;
	word = fl->vlans[id / 64];
	word = command == VLAN_ADD ? word | 1ull << (id % 64) : word & ~(1ull << (id % 64));
	__atomic_store_n(&fl->vlans[id / 64], word, __ATOMIC_RELAXED);
	return true;
}

static bool pairs_command(struct net_dev *dev, const struct ring_chain *chain)
{
	uint16_t pairs;

	if (!has(dev, NET_V_MQ) || !take(chain, &pairs, sizeof(pairs)) || !pairs || pairs > dev->pairs)
		return false;
	__atomic_store_n(&dev->rss.steer, 0, __ATOMIC_RELEASE);	/* VIRTIO 1.3, 5.1.6.5.6: from now on it is ours to choose */
	__atomic_store_n(&dev->active, pairs, __ATOMIC_RELAXED);
	return true;
}

/* The key, length first, is all that is left of the command at @at. */
static bool read_key(const struct ring_chain *chain, uint32_t at, uint8_t *key, uint8_t *len)
{
	return at < chain->out_bytes && ring_chain_read(chain, at, len, 1) == 1 && *len <= NET_RSS_KEY &&
	       chain->out_bytes == at + 1 + *len && ring_chain_read(chain, at + 1, key, *len) == *len;
}

static void start_hash(struct net_dev *dev, uint32_t types, const uint8_t *key, uint32_t len)
{
	net_rss_set_key(&dev->rss, key, len);
	__atomic_store_n(&dev->rss.types, types, __ATOMIC_RELEASE);
}

static bool hash_command(struct net_dev *dev, const struct ring_chain *chain)
{
	uint8_t key[NET_RSS_KEY], len;
	struct {
		uint32_t types;
		uint16_t reserved[4];
	} conf;

	if (!has(dev, NET_V_HASH_REPORT) || ring_chain_read(chain, HEADER, &conf, sizeof(conf)) != sizeof(conf) ||
	    conf.types & ~(uint32_t)NET_HASH_TYPES || !read_key(chain, HEADER + sizeof(conf), key, &len))
		return false;
	__atomic_store_n(&dev->rss.types, 0, __ATOMIC_RELEASE);
	start_hash(dev, conf.types, key, len);
	return true;
}

static bool rss_command(struct net_dev *dev, const struct ring_chain *chain)
{
	struct net_rss *rss = &dev->rss;
	uint16_t table[NET_RSS_TABLE], tx;
	uint8_t key[NET_RSS_KEY], len;
	uint32_t at = HEADER, bytes, i;
	struct {
		uint32_t types;
		uint16_t mask;
		uint16_t unclassified;
	} conf;

	if (!has(dev, NET_V_RSS) || ring_chain_read(chain, at, &conf, sizeof(conf)) != sizeof(conf))
		return false;
	at += (uint32_t)sizeof(conf);
	if (conf.types & ~(uint32_t)NET_HASH_TYPES || conf.mask >= NET_RSS_TABLE || conf.mask & (conf.mask + 1) ||
	    conf.unclassified >= dev->pairs)
		return false;
	bytes = (conf.mask + 1u) * (uint32_t)sizeof(table[0]);
	if (at + bytes + sizeof(tx) > chain->out_bytes || ring_chain_read(chain, at, table, bytes) != bytes ||
	    ring_chain_read(chain, at + bytes, &tx, sizeof(tx)) != sizeof(tx) || !tx || tx > dev->pairs ||
	    !read_key(chain, at + bytes + (uint32_t)sizeof(tx), key, &len))
		return false;
	for (i = 0; i <= conf.mask; i++) {
		if (table[i] >= dev->pairs)
			return false;
	}
	net_rss_stop(rss);
	for (i = 0; i <= conf.mask; i++)
		__atomic_store_n(&rss->table[i], (uint8_t)table[i], __ATOMIC_RELAXED);
	__atomic_store_n(&rss->mask, conf.mask, __ATOMIC_RELAXED);
	__atomic_store_n(&rss->unclassified, conf.unclassified, __ATOMIC_RELAXED);
	__atomic_store_n(&dev->active, tx, __ATOMIC_RELAXED);
	start_hash(dev, conf.types, key, len);
	__atomic_store_n(&rss->steer, 1, __ATOMIC_RELEASE);
	return true;
}

static bool mq_command(struct net_dev *dev, uint8_t command, const struct ring_chain *chain)
{
	switch (command) {
	case MQ_PAIRS:
		return pairs_command(dev, chain);
	case MQ_RSS:
		return rss_command(dev, chain);
	case MQ_HASH:
		return hash_command(dev, chain);
	default:
		return false;
	}
}

static bool offloads_command(struct net_dev *dev, uint8_t command, const struct ring_chain *chain)
{
	const uint64_t may = 1ull << NET_V_GUEST_CSUM | 1ull << NET_V_GUEST_TSO4 | 1ull << NET_V_GUEST_TSO6 |
			     1ull << NET_V_GUEST_ECN | 1ull << NET_V_GUEST_UFO | 1ull << NET_V_GUEST_USO4 |
			     1ull << NET_V_GUEST_USO6;
	uint64_t wanted;

	if (command != 0 || !has(dev, NET_V_CTRL_GUEST_OFFLOADS) || !take(chain, &wanted, sizeof(wanted)) ||
	    wanted & ~(dev->features & may))
		return false;
	__atomic_store_n(&dev->port.takes, net_takes_of(wanted), __ATOMIC_RELAXED);
	return true;
}

static bool obey(struct net_dev *dev, const struct ring_chain *chain)
{
	uint8_t header[HEADER];

	if (ring_chain_read(chain, 0, header, HEADER) != HEADER)
		return false;
	switch (header[0]) {
	case CLASS_RX:
		return rx_mode(dev, header[1], chain);
	case CLASS_MAC:
		return mac_command(dev, header[1], chain);
	case CLASS_VLAN:
		return vlan_command(dev, header[1], chain);
	case CLASS_ANNOUNCE:
		if (header[1] != 0 || !has(dev, NET_V_GUEST_ANNOUNCE))
			return false;
		net_dev_set_announce(dev, 0);
		return true;
	case CLASS_MQ:
		return mq_command(dev, header[1], chain);
	case CLASS_OFFLOADS:
		return offloads_command(dev, header[1], chain);
	default:
		return false;
	}
}

/* --- the source ------------------------------------------------------------------------------------------------- */

static int ctrl_poll(struct ring_source *source, int budget)
{
	struct net_ctrlq *q = (struct net_ctrlq *)(void *)source;
	struct ring_chain *chains[BATCH];
	int n, i;

	n = ring_vq_pop(source->vq, chains, budget < BATCH ? budget : BATCH);
	if (n <= 0)
		return n;
	for (i = 0; i < n; i++) {
		uint8_t ack = obey(q->dev, chains[i]) ? ACK_OK : ACK_ERR;

		ring_vq_push(source->vq, chains[i], ring_chain_write(chains[i], 0, &ack, sizeof(ack)));
	}
	ring_vq_flush(source->vq);
	return n;
}

static void ctrl_flush(struct ring_source *source)
{
	ring_vq_flush(source->vq);
}

const struct ring_source_ops net_ctrl_ops = {
	.poll = ctrl_poll,
	.flush = ctrl_flush,
};

struct ring_source *net_ctrlq_new(struct net_dev *dev, struct ring_vq *vq)
{
	struct net_ctrlq *q = ring_source_new(sizeof(*q), &net_ctrl_ops, vq);

	if (!q)
		return NULL;
	q->dev = dev;
	/* VIRTIO 1.3, 5.1.6.5.3: from now on tags are filtered */
	set_mode(&dev->filter, NET_MODE_VLAN, has(dev, NET_V_CTRL_VLAN));
	return &q->source;
}

void net_ctrlq_free(struct ring_source *source)
{
	free(source);
}
