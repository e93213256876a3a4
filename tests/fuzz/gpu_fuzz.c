/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu_fuzz.c - what a guest asks of a display: commands one after the other, in any pieces, of any length, and somebody
 * who looks in between.
 *
 * An input is a byte of flags and, for each command: struct step below, the length of its bytes behind the header and
 * those bytes. Pieces are heap blocks of exactly their length, and the guest's memory is one, too, so that the sanitizers
 * see every byte beyond. What they cannot see is asserted: limits hold, what is shown lies in what there is.
 *
 * With -DREPLAY it is a program that runs files instead of a libFuzzer target; it prints how many commands were done.
 */
#include "devices/gpu/csrc/gpu_int.h"
#include "ring/csrc/mem.h"
#include "tests/fuzz/fuzz.h"

enum {
	STEPS = 64,
	SCANOUTS = 2,
	GUEST_GPA = 0x100000,
	GUEST_BYTES = 64 << 10,
	LIMIT_BYTES = 1 << 20,
	LIMIT_RESOURCES = 16,

	/* step.how */
	CURSOR = 1,		/* on the cursor queue */
	LOOK = 2,		/* and somebody looks afterwards */
	FENCED = 4,
	NO_PAGES = 8,		/* the guest's memory goes */
};

struct step {
	uint8_t how;
	uint8_t cut;		/* bytes of the first piece */
	uint16_t type;
	uint16_t len;		/* bytes behind the header; those that are not there are zeros */
};

static struct state {
	struct gpu *gpu;
	struct ring_mem *mem;
	uint8_t *pages;
	unsigned long long done;
} s;

static void fail(const char *what)
{
	fprintf(stderr, "gpu_fuzz: %s\n", what);
	abort();
}

static void run(const struct step *step, const uint8_t *bytes, uint32_t len)
{
	const uint32_t cut = step->cut < len ? step->cut : len;
	struct ring_iov iov[2];
	struct ring_chain chain = {.iov = iov, .out_bytes = len};
	struct gpu_cmd cmd;
	uint32_t reply;

	for (uint32_t at = 0, n = cut; at < len; at += n, n = len - at) {
		if (!n)
			continue;
		iov[chain.nr_out] = (struct ring_iov){malloc(n), n};
		memcpy(iov[chain.nr_out++].base, bytes + at, n);
	}
	memset(&cmd, 0xa5, sizeof(cmd));
	cmd.chain = &chain;
	memset(&cmd.in.hdr, 0, sizeof(cmd.in.hdr));
	cmd.in_len = ring_chain_read(&chain, 0, &cmd.in, sizeof(cmd.in));
	cmd.out_len = sizeof(cmd.out.hdr);
	if (step->how & CURSOR) {
		gpu_cursor_command(s.gpu, &cmd);
	} else if (cmd.in_len >= sizeof(cmd.in.hdr)) {
		reply = gpu_command(s.gpu, &cmd);
		if (reply < VIRTIO_GPU_RESP_OK_NODATA || reply > VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER)
			fail("a reply that there is not");
		if (cmd.out_len > sizeof(cmd.out))
			fail("a reply longer than there is room");
		s.done += reply < VIRTIO_GPU_RESP_ERR_UNSPEC;
	}
	for (uint32_t i = 0; i < chain.nr_out; i++)
		free(iov[i].base);
}

static void look(uint32_t scanout)
{
	struct gpu_picture now;
	struct gpu_rect rect;
	struct gpu_shot *shot;
	uint8_t *pixels;

	gpu_picture(s.gpu, scanout, &now);
	gpu_take_damage(s.gpu, scanout);
	if (!now.width)
		return;
	if (now.damage.width &&
	    ((uint64_t)now.damage.x + now.damage.width > now.width || (uint64_t)now.damage.y + now.damage.height > now.height))
		fail("damage outside of the picture");
	if ((uint64_t)now.width * now.height > 1 << 20)
		return;
	rect = (struct gpu_rect){0, 0, now.width, now.height};
	pixels = malloc((size_t)now.width * now.height * GPU_PIXEL);
	gpu_read(s.gpu, scanout, &rect, pixels, (uint64_t)now.width * GPU_PIXEL, 1);
	free(pixels);
	shot = gpu_shot_new(s.gpu, scanout, &rect);
	if (shot)
		gpu_shot_free(shot);
}

static void check(void)
{
	struct gpu_stats stats;

	gpu_stats(s.gpu, &stats);
	if (stats.bytes > LIMIT_BYTES || stats.resources > LIMIT_RESOURCES)
		fail("more than the limit");
}

static void steps(const uint8_t *data, size_t size)
{
	struct step step;
	uint8_t *bytes;

	for (int i = 0; i < STEPS && size; i++) {
		struct virtio_gpu_ctrl_hdr hdr = {0};

		take(&data, &size, &step, sizeof(step));
		step.len %= 4096;
		bytes = malloc(sizeof(hdr) + step.len);
		hdr.type = step.type;
		hdr.flags = step.how & FENCED ? VIRTIO_GPU_FLAG_FENCE : 0;
		memcpy(bytes, &hdr, sizeof(hdr));
		take(&data, &size, bytes + sizeof(hdr), step.len);
		run(&step, bytes, (uint32_t)sizeof(hdr) + step.len);
		free(bytes);
		if (step.how & NO_PAGES)
			ring_mem_clear(s.mem);
		check();
		if (step.how & LOOK) {
			for (uint32_t scanout = 0; scanout < SCANOUTS; scanout++)
				look(scanout);
		}
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct gpu_limits limits = {.resources = LIMIT_RESOURCES, .bytes = LIMIT_BYTES};
	struct gpu_stats stats;
	uint8_t flags;

	memset(&s, 0, sizeof(s));
	take(&data, &size, &flags, sizeof(flags));
	s.gpu = gpu_new(SCANOUTS, &limits);
	s.mem = ring_mem_new();
	s.pages = calloc(1, GUEST_BYTES);
	if (!s.gpu || !s.mem || !s.pages ||
	    ring_mem_add_mapped(s.mem, s.pages, GUEST_GPA, GUEST_BYTES, GUEST_GPA, 0) < 0)
		fail("no memory");
	s.gpu->mem = s.mem;
	gpu_set_features(s.gpu, flags);
	steps(data, size);
	gpu_reset(s.gpu);
	gpu_stats(s.gpu, &stats);
	if (stats.bytes || stats.resources)
		fail("something is left");
	gpu_free(s.gpu);
	ring_mem_free(s.mem);
	free(s.pages);
	return 0;
}

FUZZ_REPLAY(s.done)
