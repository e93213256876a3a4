/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slirp_mss.c - see slirp_mss.h. Frames are private copies.
 */
#include "devices/net/csrc/slirp_mss.h"
#include "devices/net/csrc/slirp_packet.h"

enum {
	SYN = 2,

	OPT_END = 0,
	OPT_NOP = 1,
	OPT_MSS = 2,
	OPT_MSS_LEN = 4,

	/*
	 * Bytes of a segment, about. Larger ones are not worth their risk: libslirp tells the guest of room again only when two
	 * would fit, and it offers 64 KiB.
	 */
	LARGE = 16384,
};

/* Where the size is said, from the beginning of the frame, and the header sizes that go with it; 0: it is not. */
struct said {
	uint32_t at;
	uint32_t tcp;		/* offset of the TCP header */
};

static struct said find(const uint8_t *frame, size_t len)
{
	const uint8_t *ip = frame + ETH;
	struct said said = { 0, 0 };
	uint32_t at, end;

	if (len < ETH + IP4 + TCP)
		return said;
	if (get16(frame + 12) == ETH_IPV4 && ip[0] >> 4 == 4 && ip[9] == PROTO_TCP && !(get16(ip + 6) & 0x3fff))
		said.tcp = ETH + (ip[0] & 15) * 4u;
	else if (get16(frame + 12) == ETH_IPV6 && ip[0] >> 4 == 6 && ip[6] == PROTO_TCP)
		said.tcp = ETH + IP6;
	if (said.tcp < ETH + IP4 || len < said.tcp + TCP || !(frame[said.tcp + 13] & SYN))
		return said;
	end = said.tcp + (frame[said.tcp + 12] >> 4) * 4u;
	if (end > len)
		return said;
	for (at = said.tcp + TCP; at + OPT_MSS_LEN <= end && frame[at] != OPT_END;) {
		if (frame[at] == OPT_MSS && frame[at + 1] == OPT_MSS_LEN) {
			said.at = at + 2;
			return said;
		}
		if (frame[at] != OPT_NOP && frame[at + 1] < 2)
			break;
		at += frame[at] == OPT_NOP ? 1 : frame[at + 1];
	}
	return said;
}

/* And the checksum with it (RFC 1624). */
static void say(uint8_t *frame, struct said said, uint32_t mss)
{
	uint8_t *csum = frame + said.tcp + 16;
	uint32_t was = get16(frame + said.at), now = mss;

	put16(frame + said.at, mss);
	if ((said.at - said.tcp) & 1) {	/* it lies across two of the summed words */
		was = (was & 0xff) << 8 | was >> 8;
		now = (now & 0xff) << 8 | now >> 8;
	}
	put16(csum, ~fold((~get16(csum) & 0xffff) + (~was & 0xffff) + now) & 0xffff);
}

/* What a packet of @mtu bytes holds. */
static uint32_t segment(const uint8_t *frame, uint32_t mtu)
{
	return mtu - TCP - (get16(frame + 12) == ETH_IPV4 ? IP4 : IP6);
}

void slirp_mss_raise(uint8_t *frame, size_t len, uint32_t mtu)
{
	struct said said = find(frame, len);
	uint32_t one;

	if (!said.at)
		return;
	one = segment(frame, mtu);
	/* a guest that wants smaller ones gets them */
	if (get16(frame + said.at) >= one && LARGE / one > 1)
		say(frame, said, LARGE / one * one);
}

void slirp_mss_lower(uint8_t *frame, size_t len, uint32_t mtu)
{
	struct said said = find(frame, len);

	if (said.at && get16(frame + said.at) > segment(frame, mtu))
		say(frame, said, segment(frame, mtu));
}
