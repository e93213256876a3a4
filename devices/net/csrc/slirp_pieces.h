/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slirp_pieces.h - IPv4 datagrams that a guest sends in pieces are put together before libslirp sees them.
 *
 * libslirp's own reassembly, as Debian compiled 4.7, writes where a guest says once the last piece of a datagram comes
 * first. It gets no pieces any more.
 */
#ifndef NET_SLIRP_PIECES_H
#define NET_SLIRP_PIECES_H

#include <stdbool.h>
#include <stdint.h>

struct slirp_pieces;

/* NULL without memory. */
struct slirp_pieces *slirp_pieces_new(void);
void slirp_pieces_free(struct slirp_pieces *p);

/*
 * What is to be done with @frame of *@len bytes: itself where it is no piece; where it is the last one of a datagram, that one,
 * valid until the next call, and *@len is its; NULL where it waits for others, or does not fit to them and is lost (*@bad).
 * Pieces are taken in the order of the datagram only, which is how they are sent and how they come.
 */
const uint8_t *slirp_pieces_take(struct slirp_pieces *p, const uint8_t *frame, uint32_t *len, bool *bad);

#endif
