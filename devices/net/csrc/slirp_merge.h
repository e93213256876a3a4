/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slirp_merge.h - segments of TCP streams that libslirp sends one by one become large frames, to be cut only where the
 * guest does not take them whole: a guest pays by the frame.
 *
 * Joined is what Linux would join (GRO): segments without a gap, that differ in sequence number, length, checksum, PSH and
 * FIN alone. All but the last are of one size, so that cutting gives the same segments again. What libslirp makes larger
 * than the guest's network takes (slirp_mss.h) is to be cut to what it takes; datagrams are cut here.
 */
#ifndef NET_SLIRP_MERGE_H
#define NET_SLIRP_MERGE_H

#include <stdint.h>
#include <sys/uio.h>

#define SLIRP_HEADER 12		/* bytes of virtio header in front of each frame */

struct slirp_merge;

/*
 * @out gets each frame with its header, of @segments segments, valid until it returns. @mtu: bytes of the largest packet of the
 * guest's network. NULL without memory.
 */
struct slirp_merge *slirp_merge_new(void (*out)(void *opaque, struct iovec *iov, int nr, uint32_t segments),
				    void *opaque, uint32_t mtu);
void slirp_merge_free(struct slirp_merge *m);

/* From libslirp: passed on now, or kept for slirp_merge_flush(). The order within a stream stays. */
void slirp_merge_frame(struct slirp_merge *m, const uint8_t *frame, size_t len);
/* Pass on all that is kept. */
void slirp_merge_flush(struct slirp_merge *m);

#endif
