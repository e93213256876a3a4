/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver_unit.c - the driver side: what it writes, by hand and against our queue; what it makes of a lying device; and
 * memory that goes away while a queue has pieces of it in flight.
 */
#include <sys/mman.h>
#include <unistd.h>

#include "tests/c/rig.h"

static uint64_t seed = 0x9e3779b97f4a7c15ULL;

/* A driver alone: we play the device by hand. */
struct alone {
	struct ring_drv_layout lay;
	uint8_t *area;
	struct ring_drv *drv;
};

static void alone_open(struct alone *a, uint32_t size, uint64_t features, uint32_t base)
{
	CHECK_EQ(ring_drv_layout(size, features, 0, &a->lay), 0);
	a->area = aligned_alloc(4096, a->lay.bytes);
	CHECK(a->area != NULL);
	a->drv = ring_drv_new(a->area, RIG_GPA, size, features, 0, base);
	CHECK(a->drv != NULL);
}

static void alone_close(struct alone *a)
{
	ring_drv_free(a->drv);
	free(a->area);
}

static int add(struct ring_drv *drv, uint32_t out, uint32_t in, uint64_t token, int indirect)
{
	struct ring_drv_buf bufs[32];

	for (uint32_t i = 0; i < out + in && i < 32; i++)
		bufs[i] = (struct ring_drv_buf){ .addr = 0x1000 * (token + 1) + i, .len = 100 + i };
	return ring_drv_add(drv, bufs, out, in, token, indirect);
}

/* Write used element @at (split), or a used descriptor at slot @at of the lap @wrap (packed). */
static void put_used(struct alone *a, uint16_t at, uint32_t id, uint32_t len)
{
	shm_store32(a->area + a->lay.used + 4 + 8ULL * at, id);
	shm_store32(a->area + a->lay.used + 8 + 8ULL * at, len);
}

static void put_used_idx(struct alone *a, uint16_t idx)
{
	shm_store16_release(a->area + a->lay.used + 2, idx);
}

static void put_used_packed(struct alone *a, uint16_t at, uint16_t id, uint32_t len, int wrap)
{
	shm_store32(a->area + 16ULL * at + 8, len);
	shm_store16(a->area + 16ULL * at + 12, id);
	/* without WRITE a length means nothing (VIRTIO 1.3, 2.8.6) */
	shm_store16_release(a->area + 16ULL * at + 14, (uint16_t)((wrap ? 0x8080 : 0) | (len ? 2 : 0)));
}

static void test_layout(void)
{
	struct ring_drv_layout lay;
	static uint8_t area[65536] __attribute__((aligned(4096)));

	CHECK_EQ(ring_drv_layout(0, 0, 0, &lay), -RING_E_SIZE);
	CHECK_EQ(ring_drv_layout(3, 0, 0, &lay), -RING_E_SIZE);
	CHECK_EQ(ring_drv_layout(65536, 0, 0, &lay), -RING_E_SIZE);
	CHECK_EQ(ring_drv_layout(32769, RIG_PACKED, 0, &lay), -RING_E_SIZE);
	CHECK_EQ(ring_drv_layout(8, RIG_INDIRECT, 40000, &lay), -RING_E_SIZE);
	CHECK_EQ(ring_drv_layout(3, RIG_PACKED, 0, &lay), 0);
	CHECK_EQ(lay.indirect, 0);
	for (uint32_t size = 1; size <= 32768; size *= 2) {
		for (int packed = 0; packed < 2; packed++) {
			uint64_t f = RIG_INDIRECT | (packed ? RIG_PACKED : 0);

			CHECK_EQ(ring_drv_layout(size, f, 5, &lay), 0);
			CHECK(lay.desc + 16ULL * size <= lay.avail);
			CHECK(lay.avail + (packed ? 4 : 6 + 2ULL * size) <= lay.used);
			CHECK(lay.used + (packed ? 4 : 6 + 8ULL * size) <= lay.indirect);
			CHECK(lay.indirect + 16ULL * 5 * size <= lay.bytes);
			CHECK(lay.avail % 4 == 0 && lay.used % 4 == 0 && lay.bytes % 4096 == 0);
		}
	}
	/* bases that cannot be */
	CHECK(ring_drv_new(area, 0, 8, 0, 0, 0x10000) == NULL);
	CHECK(ring_drv_new(area, 0, 8, RIG_PACKED, 0, 0x80080008) == NULL);	/* index >= size */
	CHECK(ring_drv_new(area, 0, 8, RIG_PACKED, 0, 0x00018000) == NULL);	/* something in flight */
	CHECK(ring_drv_new(area, 0, 7, 0, 0, 0) == NULL);
}

static void test_refusals(uint64_t features)
{
	struct alone a;

	alone_open(&a, 8, features, features & RIG_PACKED ? 0x80008000 : 0);
	CHECK_EQ(add(a.drv, 0, 0, 1, 0), -EINVAL);
	CHECK_EQ(add(a.drv, 9, 0, 1, 0), -EINVAL);
	CHECK_EQ(add(a.drv, UINT32_MAX, 1, 1, 0), -EINVAL);
	CHECK_EQ(add(a.drv, 1, 0, 1, 1), -EINVAL);	/* indirect was not negotiated */
	CHECK(add(a.drv, 4, 3, 1, 0) >= 0);
	CHECK_EQ(add(a.drv, 1, 1, 1, 0), -ENOSPC);
	CHECK(add(a.drv, 0, 1, 1, 0) >= 0);
	CHECK_EQ(ring_drv_free_slots(a.drv), 0);
	CHECK_EQ(ring_drv_pending(a.drv), 2);
	CHECK_EQ(add(a.drv, 1, 0, 1, 0), -ENOSPC);
	alone_close(&a);
	alone_open(&a, 8, features | RIG_INDIRECT, features & RIG_PACKED ? 0x80008000 : 0);
	CHECK_EQ(add(a.drv, 10, 7, 1, 1), -EINVAL);	/* longer than a table */
	for (int i = 0; i < 8; i++)
		CHECK(add(a.drv, 10, 6, 1, 1) >= 0);
	CHECK_EQ(add(a.drv, 1, 0, 1, 1), -ENOSPC);
	alone_close(&a);
}

static void test_lies_split(void)
{
	struct ring_drv_used out[8];
	struct alone a;
	int id;

	for (int lie = 0; lie < 6; lie++) {
		alone_open(&a, 8, 0, 65534);
		id = add(a.drv, 1, 1, 77, 0);
		CHECK(id >= 0);
		CHECK(add(a.drv, 1, 2, 78, 0) >= 0);
		CHECK_EQ(ring_drv_publish(a.drv), 1);
		CHECK_EQ(ring_drv_poll(a.drv, out, 8), 0);
		put_used(&a, 6, (uint32_t)id, 101);
		switch (lie) {
		case 0:		/* the honest device */
			/* the device may scribble over the descriptors: the free list is ours */
			memset(a.area + a.lay.desc, 0xff, 8 * 16);
			put_used_idx(&a, 65535);
			CHECK_EQ(ring_drv_poll(a.drv, out, 8), 1);
			CHECK(out[0].token == 77 && out[0].len == 101 && out[0].id == (uint32_t)id);
			CHECK_EQ(ring_drv_free_slots(a.drv), 5);
			CHECK_EQ(ring_drv_poll(a.drv, out, 8), 0);
			CHECK_EQ(add(a.drv, 3, 2, 79, 0), id);	/* last in, first out */
			CHECK_EQ(ring_drv_free_slots(a.drv), 0);
			break;
		case 1:
			put_used(&a, 6, 8, 0);
			put_used_idx(&a, 65535);
			CHECK_EQ(ring_drv_poll(a.drv, out, 8), -RING_E_ID);
			CHECK_EQ(add(a.drv, 1, 0, 1, 0), -RING_E_ID);	/* sticky */
			CHECK_EQ(ring_drv_publish(a.drv), 0);
			break;
		case 2:
			put_used(&a, 6, 1, 0);	/* a descriptor that is no head */
			put_used_idx(&a, 65535);
			CHECK_EQ(ring_drv_poll(a.drv, out, 8), -RING_E_DUP);
			break;
		case 3:		/* the first is good and is given out, the second a repetition */
			put_used(&a, 7, (uint32_t)id, 0);
			put_used_idx(&a, 0);
			CHECK_EQ(ring_drv_poll(a.drv, out, 8), 1);
			CHECK_EQ(ring_drv_poll(a.drv, out, 8), -RING_E_DUP);
			CHECK_EQ(ring_drv_poll(a.drv, out, 8), -RING_E_DUP);
			break;
		case 4:		/* more than were given */
			put_used_idx(&a, 1);
			CHECK_EQ(ring_drv_poll(a.drv, out, 8), -RING_E_DUP);
			break;
		case 5:
			put_used(&a, 6, (uint32_t)id, 102);
			put_used_idx(&a, 65535);
			CHECK_EQ(ring_drv_poll(a.drv, out, 8), -RING_E_LEN);
			break;
		}
		alone_close(&a);
	}
}

static void test_lies_packed(void)
{
	struct ring_drv_used out[8];
	struct alone a;
	int id;

	for (int lie = 0; lie < 5; lie++) {
		alone_open(&a, 5, RIG_PACKED, 0x80038003);	/* slot 3: the lap ends in the middle of the first */
		id = add(a.drv, 1, 2, 77, 0);
		CHECK(id >= 0);
		CHECK(add(a.drv, 1, 0, 78, 0) >= 0);
		CHECK_EQ(ring_drv_poll(a.drv, out, 8), 0);
		CHECK_EQ(shm_load16(a.area + 16 * 3 + 14) & 0x8080, 0);	/* not visible before publish */
		CHECK_EQ(ring_drv_publish(a.drv), 1);
		CHECK_EQ(shm_load16(a.area + 16 * 3 + 14), 0x0081);
		CHECK_EQ(shm_load16(a.area + 16 * 4 + 14), 0x0083);
		CHECK_EQ(shm_load16(a.area + 16 * 0 + 14), 0x8002);
		CHECK_EQ(shm_load16(a.area + 16 * 1 + 14), 0x8000);
		CHECK_EQ(ring_drv_poll(a.drv, out, 8), 0);
		switch (lie) {
		case 0:
			put_used_packed(&a, 3, (uint16_t)id, 203, 1);
			CHECK_EQ(ring_drv_poll(a.drv, out, 8), 1);
			CHECK(out[0].token == 77 && out[0].len == 203);
			CHECK_EQ(ring_drv_free_slots(a.drv), 4);
			CHECK_EQ(ring_drv_poll(a.drv, out, 8), 0);
			break;
		case 1:
			put_used_packed(&a, 3, 5, 0, 1);
			CHECK_EQ(ring_drv_poll(a.drv, out, 8), -RING_E_ID);
			CHECK_EQ(add(a.drv, 1, 0, 1, 0), -RING_E_ID);
			break;
		case 2:
			put_used_packed(&a, 3, 4, 0, 1);
			CHECK_EQ(ring_drv_poll(a.drv, out, 8), -RING_E_DUP);
			break;
		case 3:
			put_used_packed(&a, 3, (uint16_t)id, 204, 1);
			CHECK_EQ(ring_drv_poll(a.drv, out, 8), -RING_E_LEN);
			break;
		case 4:		/* used flags of the other lap: nothing there */
			put_used_packed(&a, 3, (uint16_t)id, 203, 0);
			CHECK_EQ(ring_drv_poll(a.drv, out, 8), 0);
			break;
		}
		alone_close(&a);
	}
}

/* When a kick is due, and what the device is told about calls. */
static void test_events(void)
{
	struct ring_drv_used out[8];
	struct alone a;

	alone_open(&a, 8, 0, 0);
	add(a.drv, 1, 0, 1, 0);
	CHECK_EQ(ring_drv_publish(a.drv), 1);
	CHECK_EQ(ring_drv_publish(a.drv), 0);	/* nothing new */
	shm_store16(a.area + a.lay.used, 1);
	add(a.drv, 1, 0, 1, 0);
	CHECK_EQ(ring_drv_publish(a.drv), 0);
	ring_drv_calls_off(a.drv);
	CHECK_EQ(shm_load16(a.area + a.lay.avail), 1);
	CHECK_EQ(ring_drv_calls_on(a.drv), 0);
	CHECK_EQ(shm_load16(a.area + a.lay.avail), 0);
	put_used(&a, 0, 0, 0);
	put_used_idx(&a, 1);
	CHECK_EQ(ring_drv_calls_on(a.drv), 1);
	alone_close(&a);

	alone_open(&a, 8, RIG_EVENT_IDX, 65533);
	for (int i = 0; i < 6; i++) {	/* indexes 65533 .. 2, event at 0: only the fourth passes it */
		shm_store16(a.area + a.lay.used + 4 + 64, 0);
		add(a.drv, 1, 0, 1, 0);
		CHECK_EQ(ring_drv_publish(a.drv), i == 3);
	}
	shm_store16(a.area + a.lay.used + 4 + 64, 3);
	add(a.drv, 1, 0, 1, 0);
	add(a.drv, 1, 0, 1, 0);
	CHECK_EQ(ring_drv_publish(a.drv), 1);	/* as part of a batch too */
	CHECK_EQ(ring_drv_calls_on(a.drv), 0);
	CHECK_EQ(shm_load16(a.area + a.lay.avail + 4 + 16), 65533);
	put_used(&a, 65533 % 8, 0, 0);
	put_used_idx(&a, 65534);
	CHECK_EQ(ring_drv_poll(a.drv, out, 8), 1);
	CHECK_EQ(ring_drv_calls_on(a.drv), 0);
	CHECK_EQ(shm_load16(a.area + a.lay.avail + 4 + 16), 65534);
	ring_drv_calls_off(a.drv);
	CHECK_EQ(shm_load16(a.area + a.lay.avail + 4 + 16), 65533);
	alone_close(&a);

	alone_open(&a, 5, RIG_PACKED | RIG_EVENT_IDX, 0x80038003);
	shm_store32(a.area + a.lay.used, 1U << 16);
	add(a.drv, 1, 0, 1, 0);		/* slot 3 */
	CHECK_EQ(ring_drv_publish(a.drv), 0);
	shm_store32(a.area + a.lay.used, 2U << 16 | 0x0000);	/* slot 0 of the next lap */
	add(a.drv, 1, 0, 1, 0);		/* slot 4 */
	CHECK_EQ(ring_drv_publish(a.drv), 0);
	add(a.drv, 1, 0, 1, 0);		/* slot 0 */
	CHECK_EQ(ring_drv_publish(a.drv), 1);
	add(a.drv, 1, 0, 1, 0);
	CHECK_EQ(ring_drv_publish(a.drv), 0);
	CHECK_EQ(ring_drv_calls_on(a.drv), 0);
	CHECK_EQ(shm_load32(a.area + a.lay.avail), 2U << 16 | 0x8003);
	ring_drv_calls_off(a.drv);
	CHECK_EQ(shm_load32(a.area + a.lay.avail), 1U << 16);
	put_used_packed(&a, 3, 0, 0, 1);
	CHECK_EQ(ring_drv_calls_on(a.drv), 1);
	alone_close(&a);

	/* a batch over the end of the lap passes an event in the old one */
	alone_open(&a, 5, RIG_PACKED | RIG_EVENT_IDX, 0x80038003);
	shm_store32(a.area + a.lay.used, 2U << 16 | 0x8004);
	for (int i = 0; i < 5; i++)
		add(a.drv, 1, 0, 1, 0);
	CHECK_EQ(ring_drv_publish(a.drv), 1);
	alone_close(&a);
}

/* IN_ORDER: one used entry for a whole batch (VIRTIO 1.3, 2.7.9, 2.8.9). */
static void test_in_order(void)
{
	struct ring_drv_used out[8];
	struct alone a;
	int ids[4];

	for (int packed = 0; packed < 2; packed++) {
		alone_open(&a, 8, RIG_IN_ORDER | (packed ? RIG_PACKED : 0), packed ? 0x80068006 : 6);
		for (int round = 0, at = 6, wrap = 1, expect = 0; round < 40; round++) {
			for (uint64_t i = 0; i < 4; i++) {
				ids[i] = add(a.drv, 1, 1, i, 0);
				CHECK(ids[i] >= 0);
				if (!packed) {	/* descriptors in the order of the table */
					CHECK_EQ(ids[i], expect);
					expect = (expect + 2) % 8;
				}
			}
			ring_drv_publish(a.drv);
			if (packed) {
				put_used_packed(&a, (uint16_t)at, (uint16_t)ids[3], 7, wrap);
				wrap = !wrap;	/* four chains of two: one lap */
			} else {
				put_used(&a, (uint16_t)(at % 8), (uint32_t)ids[3], 7);
				at += 4;
				put_used_idx(&a, (uint16_t)at);
			}
			CHECK_EQ(ring_drv_poll(a.drv, out, 3), 3);
			CHECK_EQ(ring_drv_calls_on(a.drv), 1);
			CHECK_EQ(ring_drv_poll(a.drv, out + 3, 3), 1);
			for (uint64_t i = 0; i < 4; i++) {
				CHECK(out[i].token == i && out[i].id == (uint32_t)ids[i]);
				CHECK_EQ(out[i].len, i == 3 ? 7 : 101);
			}
			CHECK_EQ(ring_drv_free_slots(a.drv), 8);
		}
		alone_close(&a);
	}
	/* an entry that reaches further than the index */
	alone_open(&a, 8, RIG_IN_ORDER, 0);
	add(a.drv, 1, 0, 1, 0);
	add(a.drv, 1, 0, 2, 0);
	ring_drv_publish(a.drv);
	put_used(&a, 0, 1, 0);
	put_used_idx(&a, 1);
	CHECK_EQ(ring_drv_poll(a.drv, out, 8), 1);
	CHECK_EQ(ring_drv_poll(a.drv, out, 8), -RING_E_ID);
	alone_close(&a);
}

/* Against our own device side: every piece, token and length, in any order, through many laps. */
static void roundtrip(uint32_t size, uint64_t features, uint32_t base)
{
	struct ring_chain *held[64] = { NULL };
	uint64_t next = 0, done = 0, sum = 0, want = 0;
	uint32_t nr_held = 0;
	struct rig r;

	rig_open(&r, size, features, base, 4096);
	rig_start(&r);
	while (done < 3000 + 4ULL * size) {
		struct ring_drv_used used[16];
		struct ring_chain *got[16];
		int n;

		for (uint64_t i = rig_rnd(&seed) % 8; i > 0; i--) {
			struct ring_drv_buf bufs[8];
			uint32_t out = 1 + (uint32_t)(rig_rnd(&seed) % 4), in = (uint32_t)(rig_rnd(&seed) % 4);
			int indirect = (features & RIG_INDIRECT) && rig_rnd(&seed) % 2;

			for (uint32_t k = 0; k < out + in; k++)
				bufs[k] = (struct ring_drv_buf){
					.addr = RIG_GPA + r.data + next % 64 * 32 + k,
					.len = k + 1,
				};
			if (out + in > size || ring_drv_add(r.drv, bufs, out, in, next, indirect) < 0)
				break;
			next++;
		}
		ring_drv_publish(r.drv);
		n = nr_held <= 48 ? ring_vq_pop(r.vq, got, 16) : 0;
		CHECK(n >= 0);
		for (int i = 0; i < n; i++) {
			const uint8_t *p = r.area + r.data;

			CHECK((uintptr_t)((uint8_t *)got[i]->iov[0].base - p) % 32 == 0);
			for (int k = 0; k < got[i]->nr_out + got[i]->nr_in; k++) {
				CHECK_EQ(got[i]->iov[k].len, k + 1);
				CHECK((uint8_t *)got[i]->iov[k].base == (uint8_t *)got[i]->iov[0].base + k);
			}
			held[nr_held++] = got[i];
		}
		for (uint64_t i = rig_rnd(&seed) % 12; i > 0 && nr_held > 0; i--) {
			uint32_t at = (uint32_t)(rig_rnd(&seed) % nr_held);

			want += held[at]->in_bytes;
			ring_vq_push(r.vq, held[at], held[at]->in_bytes);
			held[at] = held[--nr_held];
		}
		ring_vq_flush(r.vq);
		do {
			n = ring_drv_poll(r.drv, used, 16);
			CHECK(n >= 0);
			for (int i = 0; i < n; i++)
				sum += used[i].len;
			done += (uint64_t)n;
		} while (n == 16);
		/* with IN_ORDER what was pushed early is published later */
		CHECK(features & RIG_IN_ORDER ? sum <= want : sum == want);
		CHECK_EQ(ring_drv_pending(r.drv), next - done);
	}
	rig_close(&r);
}

/* A region goes away while a chain points into it: its address range stays ours, harmless, until the chain is back. */
static void test_remove_in_flight(void)
{
	const struct ring_drv_buf buf = { .addr = 0x10000, .len = 8192 };
	int fd = memfd_create("driver_unit", MFD_CLOEXEC);
	struct ring_chain *chain;
	unsigned char vec[4];
	uint8_t *piece;
	struct rig r;

	CHECK(fd >= 0 && ftruncate(fd, 16384) == 0);
	rig_open(&r, 8, 0, 0, 0);
	CHECK_EQ(ring_mem_add(r.mem, fd, 0x10000, 8192, 0x10000, 4096, 0), 0);
	CHECK_EQ(ring_mem_add(r.mem, fd, 0x20000, 4096, 0x20000, 12288, 0), 0);
	rig_start(&r);
	CHECK(ring_drv_add(r.drv, &buf, 0, 1, 5, 0) >= 0);
	ring_drv_publish(r.drv);
	CHECK_EQ(ring_vq_pop(r.vq, &chain, 1), 1);
	piece = chain->iov[0].base;
	memset(piece, 0x11, 8192);
	CHECK_EQ(ring_mem_remove(r.mem, 0x20000, 4096, 0x20000), 0);	/* not in flight: simply goes */
	CHECK_EQ(ring_mem_remove(r.mem, 0x10000, 8192, 0x10000), 0);
	CHECK_EQ(piece[0], 0);
	memset(piece, 0x22, 8192);	/* the late completion */
	CHECK_EQ(ftruncate(fd, 0), 0);	/* and the front-end is done with its file */
	memset(piece, 0x33, 8192);
	CHECK_EQ(ring_mem_faulted(r.mem), 0);
	CHECK_EQ(ring_mem_remove(r.mem, 0x10000, 8192, 0x10000), -RING_E_NOREGION);
	CHECK_EQ(piece[8191], 0x33);
	ring_vq_push(r.vq, chain, 8192);
	ring_vq_flush(r.vq);
	CHECK_EQ(ring_mem_remove(r.mem, 1, 1, 1), -RING_E_NOREGION);	/* any later change looks after graves */
	CHECK(mincore(piece, 8192, vec) < 0 && errno == ENOMEM);
	close(fd);
	rig_close(&r);
}

int main(void)
{
	static const uint32_t sizes[] = { 1, 2, 8, 64, 256, 1024 }, odd[] = { 1, 3, 7, 100, 255, 1023 };

	test_layout();
	test_refusals(0);
	test_refusals(RIG_PACKED);
	test_lies_split();
	test_lies_packed();
	test_events();
	test_in_order();
	for (unsigned int i = 0; i < 6; i++) {
		for (uint64_t f = 0; f < 8; f++) {
			uint64_t features = RIG_VERSION_1 | (f & 1 ? RIG_INDIRECT : 0) | (f & 2 ? RIG_EVENT_IDX : 0) |
					    (f & 4 ? RIG_IN_ORDER : 0);

			roundtrip(sizes[i], features, 0);
			roundtrip(sizes[i], features, 65000);
			roundtrip(sizes[i], features | RIG_PACKED, 0x80008000);
			roundtrip(odd[i], features | RIG_PACKED, 0x80008000);
			roundtrip(odd[i], features | RIG_PACKED, 0);
			roundtrip(odd[i], features | RIG_PACKED, (odd[i] / 2) * 0x10001U);
		}
	}
	test_remove_in_flight();
	printf("driver_unit: ok\n");
	return 0;
}
