/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stress.c - two threads on one ring, as in life; and a driver that rewrites everything while the device looks.
 *
 *	stress [ROUNDS [HOSTILE_MS]]
 *
 * honest: a driver thread adds requests that carry a sequence number and data made from it, a device thread checks them,
 *   answers with data made from the number, out of order; the driver checks the answer and its length. Both sides sleep
 *   on eventfds whenever they see nothing: a wake-up that is lost shows as a timeout. ROUNDS requests per mode.
 *   In IOTLB modes a third thread takes translations away all the time and the device asks for them again.
 * hostile: one thread builds valid chains, one flips bytes anywhere in the ring and the indirect tables; the device pops
 *   and pushes for HOSTILE_MS per mode. It must neither crash, nor hang, nor hand out a piece outside guest memory, nor
 *   break the books it keeps. A broken queue is stopped and started again.
 */
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "tests/c/rig.h"

enum {
	SLOT = 256,		/* bytes of guest memory per request in flight */
	OUT_MAX = 96,		/* of these readable at most, the rest is for the answer */
	HOLD = 24,		/* chains the device keeps back to complete them out of order */
	LATEST_MS = 60000,	/* a wake-up that has not come by then is lost, even on a busy machine */
};

struct mode {
	const char *name;
	uint64_t features;
	uint32_t size;
	uint32_t base;
	int indirect;		/* percent of the requests */
	bool iotlb;
};

struct stress {
	struct rig rig;
	const struct mode *mode;
	uint64_t rounds;
	uint64_t seed;
	int kick_fd, call_fd;
	struct ring_iotlb *tlb;
	_Atomic int stop;
	_Atomic uint64_t misses;
	_Atomic uint64_t driver_sleeps, device_sleeps, popped;
	/* hostile: the device asks for a new ring by counting up, the forger answers by catching up */
	_Atomic uint64_t restarts, renewed;
	_Atomic uint32_t base;
};

static uint8_t pattern(uint64_t seq, uint32_t i)
{
	return (uint8_t)(seq * 31 + i * 7 + (seq >> 8));
}

static uint8_t answer(uint64_t seq, uint32_t i)
{
	return pattern(seq, i) ^ 0xff;
}

static void ring_bell(int fd)
{
	uint64_t one = 1;

	CHECK(write(fd, &one, sizeof(one)) == sizeof(one));
}

static void sleep_on(int fd, const char *who)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	uint64_t count;

	if (poll(&pfd, 1, LATEST_MS) != 1) {
		fprintf(stderr, "stress: the %s has slept for %d ms: lost wake-up\n", who, LATEST_MS);
		exit(1);
	}
	CHECK(read(fd, &count, sizeof(count)) == sizeof(count));
}

/* Widen the windows: sometimes wait a little, sometimes give up the CPU. */
static void dither(uint64_t *seed)
{
	uint64_t r = rig_rnd(seed);

	if (r % 64 == 0)
		sched_yield();
	else if (r % 8 == 0)
		for (volatile unsigned int i = 0; i < (r >> 8) % 200; i++)
			;
}

/* Fill slot @slot with request @seq and add it. */
static int add_request(struct stress *s, uint64_t *seed, uint64_t slot, uint64_t seq)
{
	struct rig *r = &s->rig;
	uint64_t gpa = RIG_GPA + r->data + slot * SLOT;
	uint8_t *p = r->area + r->data + slot * SLOT;
	uint32_t out_bytes = 8 + (uint32_t)(rig_rnd(seed) % (OUT_MAX - 8)), in_bytes = (uint32_t)(rig_rnd(seed) % 129);
	uint32_t split = (uint32_t)(rig_rnd(seed) % out_bytes), nr_out, nr_in = 0;
	int indirect = (int)(rig_rnd(seed) % 100) < s->mode->indirect;
	struct ring_drv_buf bufs[4];

	memcpy(p, &seq, 8);
	for (uint32_t i = 8; i < out_bytes; i++)
		p[i] = pattern(seq, i);
	memset(p + OUT_MAX, 0xee, SLOT - OUT_MAX);
	nr_out = split && (s->mode->size >= 4 || indirect) ? 2 : 1;
	if (nr_out == 2) {
		bufs[0] = (struct ring_drv_buf){ .addr = gpa, .len = split };
		bufs[1] = (struct ring_drv_buf){ .addr = gpa + split, .len = out_bytes - split };
	} else {
		bufs[0] = (struct ring_drv_buf){ .addr = gpa, .len = out_bytes };
	}
	if (in_bytes)
		bufs[nr_out + nr_in++] = (struct ring_drv_buf){ .addr = gpa + OUT_MAX, .len = in_bytes };
	return ring_drv_add(r->drv, bufs, nr_out, nr_in, slot | (uint64_t)in_bytes << 32, indirect);
}

static void check_answer(struct stress *s, const struct ring_drv_used *u)
{
	uint32_t slot = (uint32_t)u->token, in_bytes = (uint32_t)(u->token >> 32);
	const uint8_t *p = s->rig.area + s->rig.data + (uint64_t)slot * SLOT;
	uint64_t seq;

	memcpy(&seq, p, 8);
	CHECK_EQ(u->len, in_bytes);
	for (uint32_t i = 0; i < in_bytes; i++)
		CHECK(p[OUT_MAX + i] == answer(seq, i));
	for (uint32_t i = OUT_MAX + in_bytes; i < SLOT; i++)
		CHECK(p[i] == 0xee);
}

static void *driver_main(void *arg)
{
	struct stress *s = arg;
	struct ring_drv *drv = s->rig.drv;
	uint64_t seed = s->seed * 2 + 1, added = 0, done = 0;
	uint32_t nr_free = s->mode->size;
	uint16_t *slots = calloc(nr_free, sizeof(*slots));
	struct ring_drv_used used[64];

	CHECK(slots != NULL);
	for (uint32_t i = 0; i < nr_free; i++)
		slots[i] = (uint16_t)i;
	ring_drv_calls_off(drv);
	while (done < s->rounds) {
		int n;

		for (uint64_t i = rig_rnd(&seed) % 16; i > 0 && nr_free > 0 && added < s->rounds; i--) {
			if (add_request(s, &seed, slots[nr_free - 1], added) < 0)
				break;
			nr_free--;
			added++;
		}
		dither(&seed);
		if (ring_drv_publish(drv))
			ring_bell(s->kick_fd);
		n = ring_drv_poll(drv, used, 64);
		CHECK(n >= 0);
		for (int i = 0; i < n; i++) {
			check_answer(s, &used[i]);
			slots[nr_free++] = (uint16_t)used[i].token;
		}
		done += (uint64_t)n;
		if (n > 0 || ring_drv_pending(drv) == 0 || rig_rnd(&seed) % 4)
			continue;
		if (ring_drv_calls_on(drv) == 0) {
			atomic_fetch_add(&s->driver_sleeps, 1);
			sleep_on(s->call_fd, "driver");
		}
		ring_drv_calls_off(drv);
	}
	CHECK_EQ(ring_drv_pending(drv), 0);
	free(slots);
	atomic_store(&s->stop, 1);
	ring_bell(s->kick_fd);
	return NULL;
}

/* Check a request and answer it. */
static void serve(struct stress *s, struct ring_chain *chain, uint64_t *seen)
{
	uint8_t buf[SLOT];
	uint64_t seq;

	CHECK(chain->out_bytes >= 8 && chain->out_bytes <= OUT_MAX && chain->in_bytes <= SLOT - OUT_MAX);
	CHECK_EQ(ring_chain_read(chain, 0, buf, SLOT), chain->out_bytes);
	memcpy(&seq, buf, 8);
	CHECK_EQ(seq, (*seen)++);	/* none lost, none twice, in the order of adding */
	for (uint32_t i = 8; i < chain->out_bytes; i++)
		CHECK(buf[i] == pattern(seq, i));
	for (uint32_t i = 0; i < chain->in_bytes; i++)
		buf[i] = answer(seq, i);
	CHECK_EQ(ring_chain_write(chain, 0, buf, chain->in_bytes), chain->in_bytes);
	(void)s;
}

/* The front-end's part: answer what the device misses. An iova is a gpa here, a uaddr something else. */
static void answer_misses(struct stress *s)
{
	struct ring_iotlb_miss miss[32];
	int n = ring_iotlb_misses(s->tlb, miss, 32);

	for (int i = 0; i < n; i++)
		CHECK_EQ(ring_iotlb_update(s->tlb, miss[i].iova, 4096, miss[i].iova - RIG_GPA + RIG_UADDR, miss[i].perm),
			 0);
	atomic_fetch_add(&s->misses, (uint64_t)n);
}

/* ... and its other part: take translations away, of tables and data; the ring itself stays. */
static void *invalidate_main(void *arg)
{
	struct stress *s = arg;
	uint64_t seed = s->seed * 11 + 1, from = (s->rig.lay.indirect ? s->rig.lay.indirect : s->rig.data) + 4095;

	from -= from % 4096;
	while (!atomic_load(&s->stop)) {
		uint64_t at = from + rig_rnd(&seed) % (s->rig.bytes - from);

		CHECK_EQ(ring_iotlb_invalidate(s->tlb, RIG_GPA + at, 1 + rig_rnd(&seed) % 16384), 0);
		for (volatile unsigned int i = 0; i < rig_rnd(&seed) % 20000; i++)
			;
	}
	return NULL;
}

static void *device_main(void *arg)
{
	struct stress *s = arg;
	struct ring_vq *vq = s->rig.vq;
	uint64_t seed = s->seed * 2, seen = 0;
	struct ring_chain *held[HOLD + 16];
	uint32_t nr_held = 0;

	ring_vq_kicks_off(vq);
	for (;;) {
		int n = ring_vq_pop(vq, held + nr_held, (int)(1 + rig_rnd(&seed) % 16));

		if (n == -RING_MISS) {
			CHECK(s->tlb != NULL);
			answer_misses(s);
			continue;
		}
		CHECK(n >= 0);
		for (int i = 0; i < n; i++)
			serve(s, held[nr_held++], &seen);
		dither(&seed);
		/* a device that has nothing new finishes all it holds: the driver may be waiting for it */
		while (nr_held > (n == 0 ? 0 : rig_rnd(&seed) % HOLD)) {
			uint32_t at = (uint32_t)(rig_rnd(&seed) % nr_held);

			ring_vq_push(vq, held[at], held[at]->in_bytes);
			held[at] = held[--nr_held];
		}
		ring_vq_flush(vq);
		if (n > 0 || rig_rnd(&seed) % 4)
			continue;
		if (ring_vq_kicks_on(vq) == 0) {
			if (atomic_load(&s->stop))
				break;
			atomic_fetch_add(&s->device_sleeps, 1);
			sleep_on(s->kick_fd, "device");
		}
		ring_vq_kicks_off(vq);
	}
	CHECK_EQ(seen, s->rounds);
	CHECK_EQ(ring_vq_in_flight(vq), 0);
	return NULL;
}

static void honest(const struct mode *mode, uint64_t rounds, uint64_t seed)
{
	struct stress s = { .mode = mode, .rounds = rounds, .seed = seed };
	pthread_t driver, device, invalidate;

	s.kick_fd = eventfd(0, EFD_CLOEXEC);
	s.call_fd = eventfd(0, EFD_CLOEXEC);
	CHECK(s.kick_fd >= 0 && s.call_fd >= 0);
	rig_open(&s.rig, mode->size, mode->features, mode->base, (uint64_t)mode->size * SLOT);
	s.rig.cfg.call_fd = s.call_fd;
	if (mode->iotlb) {
		s.tlb = s.rig.cfg.iotlb = ring_iotlb_new();
		CHECK_EQ(ring_iotlb_update(s.tlb, RIG_GPA, s.rig.bytes, RIG_UADDR, 3), 0);
	}
	rig_start(&s.rig);
	if (mode->iotlb)
		CHECK(pthread_create(&invalidate, NULL, invalidate_main, &s) == 0);
	CHECK(pthread_create(&device, NULL, device_main, &s) == 0);
	CHECK(pthread_create(&driver, NULL, driver_main, &s) == 0);
	pthread_join(driver, NULL);
	pthread_join(device, NULL);
	if (mode->iotlb) {
		pthread_join(invalidate, NULL);
		printf("IOTLB misses answered: %llu\n", (unsigned long long)s.misses);
		CHECK(rounds < 10000 || s.misses > 0);
	}
	printf("honest  %-32s size %5u indirect %3d%%: %llu requests, sleeps: driver %llu, device %llu\n", mode->name,
	       mode->size, mode->indirect, (unsigned long long)rounds, (unsigned long long)s.driver_sleeps,
	       (unsigned long long)s.device_sleeps);
	fflush(stdout);
	/* a run in which nobody ever slept proves nothing about wake-ups */
	CHECK(rounds < 10000 || s.driver_sleeps + s.device_sleeps > 0);
	rig_close(&s.rig);
	ring_iotlb_free(s.tlb);
	close(s.kick_fd);
	close(s.call_fd);
}

/* Valid requests of all shapes; the ring is made anew, under the device's eyes, when the bytes have been turned too far. */
static void *forger_main(void *arg)
{
	struct stress *s = arg;
	struct rig *r = &s->rig;
	uint64_t seed = s->seed * 3 + 1, base, wanted, bytes = s->mode->size * (uint64_t)SLOT;
	struct ring_drv_used used[64];
	struct ring_drv_buf bufs[RING_DRV_INDIRECT_MAX];

	while (!atomic_load(&s->stop)) {
		uint32_t nr = 1 + (uint32_t)(rig_rnd(&seed) % RING_DRV_INDIRECT_MAX), out;

		for (uint32_t i = 0; i < nr; i++) {
			base = rig_rnd(&seed) % bytes;
			bufs[i] = (struct ring_drv_buf){
				.addr = RIG_GPA + r->data + base,
				.len = (uint32_t)(rig_rnd(&seed) % (bytes - base)),
			};
		}
		out = (uint32_t)(rig_rnd(&seed) % (nr + 1));
		if (ring_drv_add(r->drv, bufs, out, nr - out, 0, (int)(rig_rnd(&seed) & 1)) < 0 ||
		    rig_rnd(&seed) % 4 == 0)
			ring_drv_publish(r->drv);
		wanted = atomic_load(&s->restarts);
		if (ring_drv_poll(r->drv, used, 64) < 0 || wanted != atomic_load(&s->renewed) ||
		    rig_rnd(&seed) % 16384 == 0) {
			uint32_t at = (uint32_t)(rig_rnd(&seed) % s->mode->size);

			if (s->mode->features & RIG_PACKED)
				at = (at | (uint32_t)(rig_rnd(&seed) & 0x8000)) * 0x10001U;
			ring_drv_free(r->drv);
			r->drv = ring_drv_new(r->area, RIG_GPA, s->mode->size, s->mode->features, 0, at);
			CHECK(r->drv != NULL);
			atomic_store(&s->base, at);
			atomic_store(&s->renewed, wanted);
		}
		dither(&seed);
	}
	return NULL;
}

/* Bytes and well-chosen words, anywhere in ring and tables. */
static void *flipper_main(void *arg)
{
	static const uint64_t interesting[] = {
		0, 1, 15, 16, 17, 0x7fff, 0x8000, 0xffff, 0x10000, 0xffffffff, 0x100000000, UINT64_MAX, UINT64_MAX - 15,
		RIG_GPA, RIG_GPA - 1,
	};
	struct stress *s = arg;
	uint8_t *area = s->rig.area;
	uint64_t seed = s->seed * 5 + 1, ring_bytes = s->rig.lay.bytes;

	while (!atomic_load(&s->stop)) {
		uint64_t r = rig_rnd(&seed), v = interesting[rig_rnd(&seed) % 15], at = rig_rnd(&seed) % ring_bytes;

		if (r % 3 == 0)		/* what matters most lies at the front: descriptors, indexes */
			at %= s->rig.lay.used + 8;
		switch (r >> 8 & 7) {
		case 0:
			shm_store16(area + at / 2 * 2, (uint16_t)v);
			break;
		case 1:
			shm_store32(area + at / 4 * 4, (uint32_t)v);
			break;
		case 2:
			shm_store64(area + at / 8 * 8, v);
			break;
		default:
			shm_store8(area + at, shm_load8(area + at) ^ (uint8_t)(1U << (r >> 16 & 7)));
		}
		for (volatile unsigned int i = 0; i < (r >> 24) % 2000; i++)
			;
	}
	return NULL;
}

/* Nothing that a guest writes may make a chain point anywhere but into its memory, or its sums be wrong. */
static void check_chain(const struct stress *s, const struct ring_chain *chain)
{
	uint64_t sums[2] = { 0, 0 };
	int nr = chain->nr_out + chain->nr_in;

	CHECK(nr <= RING_IOV_MAX && chain->id < s->mode->size);
	for (int i = 0; i < nr; i++) {
		uint8_t *p = chain->iov[i].base;
		size_t len = chain->iov[i].len;

		CHECK(p >= s->rig.area && p < s->rig.area + s->rig.bytes);
		CHECK(len <= (size_t)(s->rig.area + s->rig.bytes - p));
		sums[i >= chain->nr_out] += len;
		if (len && i < chain->nr_out)
			(void)(shm_load8(p) ^ shm_load8(p + len - 1));
		else if (len && p >= s->rig.area + s->rig.data) {
			shm_store8(p, 1);
			shm_store8(p + len - 1, 2);
		}
	}
	CHECK(sums[0] == chain->out_bytes && sums[1] == chain->in_bytes);
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* For @ms, and on until there was something to take: a busy machine may let the forger wait. */
static void victim(struct stress *s, uint64_t ms)
{
	uint64_t until = now_ms() + ms;
	struct rig *r = &s->rig;
	uint64_t seed = s->seed * 7 + 1, empty = 0;
	struct ring_chain *held[RING_BATCH_MAX];
	int nr = 0;

	while (now_ms() < until || (s->popped == 0 && now_ms() < until + LATEST_MS)) {
		int n = ring_vq_pop(r->vq, held + nr, (int)(1 + rig_rnd(&seed) % 32));

		for (int i = 0; i < n; i++)
			check_chain(s, held[nr + i]);
		if (n > 0) {
			nr += n;
			atomic_fetch_add(&s->popped, (uint64_t)n);
		}
		CHECK(ring_vq_in_flight(r->vq) == (uint32_t)nr && nr <= (int)s->mode->size);
		if (n > 0 && rig_rnd(&seed) % 8 == 0) {
			ring_vq_unpop(r->vq, 1);
			nr--;
		}
		while (nr > 0 && (nr > RING_BATCH_MAX - 32 || rig_rnd(&seed) % 3)) {
			int at = (int)(rig_rnd(&seed) % (unsigned int)nr);

			ring_vq_push(r->vq, held[at], (uint32_t)(rig_rnd(&seed) % (held[at]->in_bytes + 1ULL)));
			held[at] = held[--nr];
		}
		ring_vq_flush(r->vq);
		if (rig_rnd(&seed) % 16 == 0) {
			ring_vq_kicks_on(r->vq);
			ring_vq_kicks_off(r->vq);
		}
		empty = n == 0 ? empty + 1 : 0;
		if (n < 0 || empty > 20000) {	/* broken, or the two sides no longer agree where they are */
			uint64_t wanted = atomic_fetch_add(&s->restarts, 1) + 1;

			if (n < 0)
				CHECK(ring_vq_state(r->vq) == RING_VQ_BROKEN && ring_vq_error(r->vq, NULL) > 0);
			ring_vq_stop(r->vq);
			while (atomic_load(&s->renewed) != wanted)
				sched_yield();
			r->cfg.base = atomic_load(&s->base);
			rig_start(r);
			nr = 0;
			empty = 0;
		}
	}
}

static void hostile(const struct mode *mode, uint64_t ms, uint64_t seed)
{
	struct stress s = { .mode = mode, .seed = seed };
	pthread_t forger, flipper;

	rig_open(&s.rig, mode->size, mode->features, mode->base, (uint64_t)mode->size * SLOT);
	rig_start(&s.rig);
	CHECK(pthread_create(&forger, NULL, forger_main, &s) == 0);
	CHECK(pthread_create(&flipper, NULL, flipper_main, &s) == 0);
	victim(&s, ms);
	atomic_store(&s.stop, 1);
	pthread_join(forger, NULL);
	pthread_join(flipper, NULL);
	printf("hostile %-32s size %5u: %llu chains, %llu restarts\n", mode->name, mode->size,
	       (unsigned long long)s.popped, (unsigned long long)s.restarts);
	fflush(stdout);
	CHECK(s.popped > 0);
	rig_close(&s.rig);
}

/* The available index, there and back: sane and insane. */
static void *swing_main(void *arg)
{
	struct stress *s = arg;
	uint8_t *idx = s->rig.area + s->rig.lay.avail + 2;

	while (!atomic_load(&s->stop)) {
		shm_store16(idx, 8);
		shm_store16(idx, (uint16_t)(s->mode->size + 9));
	}
	return NULL;
}

/* An index that becomes insane in the middle of a pop: what was popped by then is told, and none of it is lost. */
static void torn(uint64_t ms, uint64_t seed)
{
	static const struct mode mode = { "torn index", RIG_VERSION_1, 16, 0, 0, false };
	struct stress s = { .mode = &mode, .seed = seed };
	uint64_t until = now_ms() + ms, broken = 0, some = 0;
	struct ring_chain *chains[RING_BATCH_MAX];
	pthread_t swing;

	rig_open(&s.rig, mode.size, mode.features, mode.base, 4096);
	/* a buffer each, which the quick way takes until it finds one of two; then the index is read once more */
	for (uint16_t i = 0; i < 9; i++) {
		shm_store64(s.rig.area + s.rig.lay.desc + 16 * (size_t)i, RIG_GPA + s.rig.data);
		shm_store64(s.rig.area + s.rig.lay.desc + 16 * (size_t)i + 8, i == 4 ? 64 | 1ULL << 32 | 8ULL << 48 : 64);
		shm_store16(s.rig.area + s.rig.lay.avail + 4 + 2 * (size_t)i, i);
	}
	CHECK(pthread_create(&swing, NULL, swing_main, &s) == 0);
	do {
		int n, popped = 0;

		rig_start(&s.rig);
		do {
			n = ring_vq_pop(s.rig.vq, chains, popped ? 8 : 1);
			popped += n > 0 ? n : 0;
			CHECK(ring_vq_in_flight(s.rig.vq) == (uint32_t)popped);
		} while (n >= 0 && popped < 8);
		CHECK(n >= 0 || ring_vq_error(s.rig.vq, NULL) == -n);
		broken += n < 0;
		some += n < 0 && popped > 1;
		ring_vq_stop(s.rig.vq);
	} while (now_ms() < until);
	atomic_store(&s.stop, 1);
	pthread_join(swing, NULL);
	printf("torn index: %llu times broken, %llu in the middle\n", (unsigned long long)broken, (unsigned long long)some);
	rig_close(&s.rig);
}

int main(int argc, char **argv)
{
	static const struct mode modes[] = {
		{ "split", RIG_VERSION_1, 8, 65000, 0, false },
		{ "split", RIG_VERSION_1 | RIG_INDIRECT, 256, 0, 100, false },
		{ "split event_idx", RIG_VERSION_1 | RIG_INDIRECT | RIG_EVENT_IDX, 16, 65530, 50, false },
		{ "split event_idx", RIG_VERSION_1 | RIG_EVENT_IDX, 128, 32000, 0, false },
		{ "split in_order", RIG_VERSION_1 | RIG_INDIRECT | RIG_EVENT_IDX | RIG_IN_ORDER, 32, 1000, 50, false },
		{ "packed", RIG_VERSION_1 | RIG_PACKED, 7, 0x80008000, 0, false },
		{ "packed", RIG_VERSION_1 | RIG_PACKED | RIG_INDIRECT, 256, 0x80008000, 100, false },
		{ "packed event_idx", RIG_VERSION_1 | RIG_PACKED | RIG_INDIRECT | RIG_EVENT_IDX, 13, 0x00050005, 50, false },
		{ "packed event_idx", RIG_VERSION_1 | RIG_PACKED | RIG_EVENT_IDX, 128, 0x80008000, 0, false },
		{ "packed in_order", RIG_VERSION_1 | RIG_PACKED | RIG_INDIRECT | RIG_EVENT_IDX | RIG_IN_ORDER, 31, 0x80008000,
		  50, false },
		{ "split iotlb", RIG_VERSION_1 | RIG_INDIRECT | RIG_EVENT_IDX, 64, 0, 50, true },
		{ "packed iotlb", RIG_VERSION_1 | RIG_PACKED | RIG_INDIRECT | RIG_EVENT_IDX, 64, 0x80008000, 50, true },
	};
	uint64_t rounds = argc > 1 ? strtoull(argv[1], NULL, 10) : 30000;
	uint64_t ms = argc > 2 ? strtoull(argv[2], NULL, 10) : 300;
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	/* to repeat a run: the schedule is not in the seed, the requests are */
	uint64_t seed = getenv("STRESS_SEED") ? strtoull(getenv("STRESS_SEED"), NULL, 0) : (uint64_t)ts.tv_nsec * 2 + 1;

	setvbuf(stdout, NULL, _IOLBF, 0); /* a line for each mode, when it has ended */
	printf("STRESS_SEED=%llu\n", (unsigned long long)seed);
	for (unsigned int i = 0; i < sizeof(modes) / sizeof(modes[0]); i++)
		if (rounds)
			honest(&modes[i], rounds, seed + i);
	for (unsigned int i = 0; i < sizeof(modes) / sizeof(modes[0]); i++)
		if (ms && (modes[i].features & RIG_INDIRECT) && !modes[i].iotlb)
			hostile(&modes[i], ms, seed + i);
	if (ms)
		torn(ms, seed);
	printf("stress: ok\n");
	return 0;
}
