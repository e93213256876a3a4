/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slirp_pieces.c - see slirp_pieces.h. Frames are private copies.
 */
#include <stdlib.h>
#include <string.h>

#include "devices/net/csrc/slirp_packet.h"
#include "devices/net/csrc/slirp_pieces.h"

enum {
	SLOTS = 8,		/* datagrams in the making; the oldest makes room */
	OFFSET = 0x1fff,

	/* in an IPv4 header [RFC 791] */
	LENGTH = 2,
	ID = 4,
	FLAGS = 6,
	PROTOCOL = 9,
	CHECKSUM = 10,
	ADDRESSES = 12,
};

struct slot {
	uint32_t len;		/* of @data; 0: none */
	uint32_t head;		/* bytes of it before the payload */
	uint8_t data[ETH + IP_MAX];
};

struct slirp_pieces {
	uint32_t oldest;
	struct slot slots[SLOTS];
};

struct slirp_pieces *slirp_pieces_new(void)
{
	return calloc(1, sizeof(struct slirp_pieces));
}

void slirp_pieces_free(struct slirp_pieces *p)
{
	free(p);
}

static struct slot *find(struct slirp_pieces *p, const uint8_t *ip)
{
	for (uint32_t i = 0; i < SLOTS; i++) {
		const uint8_t *other = p->slots[i].data + ETH;

		if (p->slots[i].len && memcmp(other + ID, ip + ID, 2) == 0 && other[PROTOCOL] == ip[PROTOCOL] &&
		    memcmp(other + ADDRESSES, ip + ADDRESSES, 8) == 0)
			return &p->slots[i];
	}
	return NULL;
}

static void begin(struct slirp_pieces *p, struct slot *slot, const uint8_t *frame, uint32_t head, uint32_t total)
{
	if (!slot) {
		slot = &p->slots[p->oldest];
		p->oldest = (p->oldest + 1) % SLOTS;
	}
	slot->head = ETH + head;
	slot->len = ETH + total;
	memcpy(slot->data, frame, slot->len);
}

static void finish(struct slot *slot)
{
	uint8_t *ip = slot->data + ETH;

	put16(ip + LENGTH, slot->len - ETH);
	put16(ip + FLAGS, 0);
	put16(ip + CHECKSUM, 0);
	put16(ip + CHECKSUM, checksum(ip, slot->head - ETH));
}

const uint8_t *slirp_pieces_take(struct slirp_pieces *p, const uint8_t *frame, uint32_t *len, bool *bad)
{
	const uint8_t *ip = frame + ETH;
	uint32_t head, total, offset, size;
	struct slot *slot;
	bool more;

	*bad = false;
	if (*len < ETH + IP4 || get16(frame + ETH - 2) != ETH_IPV4 || !(get16(ip + FLAGS) & (MORE | OFFSET)))
		return frame;
	*bad = true;
	head = (ip[0] & 15) * 4u;
	total = get16(ip + LENGTH);
	if (ip[0] >> 4 != 4 || head < IP4 || total <= head || ETH + total > *len || checksum(ip, head))
		return NULL;
	more = get16(ip + FLAGS) & MORE;
	offset = (get16(ip + FLAGS) & OFFSET) * 8;
	size = total - head;
	if (more && size % 8)
		return NULL;
	slot = find(p, ip);
	if (!offset) {
		begin(p, slot, frame, head, total);
		*bad = false;
		return NULL;
	}
	if (!slot)
		return NULL;
	if (slot->len - slot->head != offset || slot->len + size > sizeof(slot->data)) {
		slot->len = 0;
		return NULL;
	}
	*bad = false;
	memcpy(slot->data + slot->len, ip + head, size);
	slot->len += size;
	if (more)
		return NULL;
	finish(slot);
	*len = slot->len;
	slot->len = 0;
	return slot->data;
}
