/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vq.c - life of a virtqueue: new, start, stop, remap, and the fds it talks through. Control side only.
 *
 * Rule: all that a run needs is allocated by ring_vq_start(); its size follows from the queue size alone
 * (docs/decisions/0002-chain-limits.md).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "ring/csrc/vq.h"

enum {
	DESC_ALIGN = 16,	/* VIRTIO 1.3, 2.7 and 2.8.10.1 */
	SPLIT_AVAIL_ALIGN = 2,
	SPLIT_USED_ALIGN = 4,
	EVENT_ALIGN = 4,
	AREA_PIECES = 16,	/* a ring over more regions than this is refused */
};

struct ring_vq *ring_vq_new(struct ring_mem *mem, uint32_t index)
{
	struct ring_vq *vq = aligned_alloc(64, (sizeof(*vq) + 63) & ~(size_t)63);

	if (vq == NULL)
		return NULL;
	memset(vq, 0, sizeof(*vq));
	vq->mem = mem;
	vq->index = index;
	vq->call_fd = -1;
	vq->err_fd = -1;
	vq->news_fd = -1;
	if (ring_mem_attach(mem, vq) < 0) {
		free(vq);
		return NULL;
	}
	return vq;
}

static void free_run(struct ring_vq *vq)
{
	free(vq->arena);
	free(vq->iov_arena);
	free(vq->inflight_arena);
	vq->arena = NULL;
	vq->iov_arena = NULL;
	vq->inflight_arena = NULL;
	vq->slots = NULL;
	vq->guess = NULL;
	vq->order = NULL;
	memset(vq->pool, 0, sizeof(vq->pool));
	memset(&vq->inflight, 0, sizeof(vq->inflight));
}

void ring_vq_free(struct ring_vq *vq)
{
	if (vq == NULL)
		return;
	ring_vq_stop(vq);
	ring_mem_detach(vq->mem, vq);
	free_run(vq);
	free(vq);
}

/* ---- ring addresses ---- */

/* One ring area: in guest memory, writable if need be, in one piece here, aligned in both address spaces. */
static int map_area(struct ring_vq *vq, uint64_t addr, uint64_t len, uint32_t align, int write, SHM uint8_t **out)
{
	struct ring_iov piece[AREA_PIECES];
	uint64_t have = 0;
	int n, i;

	if (addr & (align - 1))
		return -RING_E_RING;
	if (vq->cfg.iotlb != NULL)
		n = ring_iotlb_translate(vq->cfg.iotlb, vq->mem, addr, len, write, vq->index, piece, AREA_PIECES);
	else
		n = ring_mem_translate(vq->mem, (int)vq->cfg.addr_kind, addr, len, write, piece, AREA_PIECES);
	if (n == -RING_MISS)
		return n;
	if (n <= 0)
		return -RING_E_RING;
	for (i = 0; i < n; i++) {
		if ((uint8_t *)piece[i].base != (uint8_t *)piece[0].base + have)
			return -RING_E_RING;
		have += piece[i].len;
	}
	if (have != len || (uintptr_t)piece[0].base & (align - 1))
		return -RING_E_RING;
	*out = piece[0].base;
	return 0;
}

static int map_rings(struct ring_vq *vq)
{
	const struct ring_vq_config *cfg = &vq->cfg;
	uint64_t event = vq->event_idx ? 2 : 0;
	SHM uint8_t *desc, *avail, *used;
	int rc;

	rc = map_area(vq, cfg->desc, (uint64_t)VQ_DESC_BYTES * vq->size, DESC_ALIGN, vq->packed, &desc);
	if (rc)
		return rc;
	if (vq->packed) {
		rc = map_area(vq, cfg->avail, 4, EVENT_ALIGN, 0, &avail);
		if (!rc)
			rc = map_area(vq, cfg->used, 4, EVENT_ALIGN, 1, &used);
	} else {
		rc = map_area(vq, cfg->avail, VQ_AVAIL_RING + 2 * (uint64_t)vq->size + event, SPLIT_AVAIL_ALIGN, 0,
			      &avail);
		if (!rc)
			rc = map_area(vq, cfg->used, VQ_USED_RING + 8 * (uint64_t)vq->size + event, SPLIT_USED_ALIGN,
				      1, &used);
	}
	if (rc)
		return rc;
	vq->desc = desc;
	vq->avail = avail;
	vq->used = used;
	vq->kicks = VQ_KICKS_UNKNOWN;
	return 0;
}

/* ---- start ---- */

static int check_size(uint32_t size, bool packed)
{
	if (!size || size > RING_SIZE_MAX || (!packed && size & (size - 1)))
		return -RING_E_SIZE;
	return 0;
}

static void alloc_pool(struct vq_pool *pool, uint8_t **arena, uint32_t blocks, size_t iovs)
{
	uint32_t i;

	pool->free = (struct ring_iov **)*arena;
	*arena += blocks * sizeof(*pool->free);
	for (i = 0; i < blocks; i++)	/* a stack: the first block on top */
		pool->free[blocks - 1 - i] = (struct ring_iov *)(*arena + i * iovs * sizeof(struct ring_iov));
	*arena += blocks * iovs * sizeof(struct ring_iov);
	pool->nr_free = blocks;
}

/* calloc() leaves big blocks untouched until used: what a queue does not need costs address space only. */
static int alloc_run(struct ring_vq *vq)
{
	uint32_t blocks1 = vq->size < VQ_POOL1_BLOCKS ? vq->size : VQ_POOL1_BLOCKS;
	uint32_t blocks2 = vq->size < VQ_POOL2_BLOCKS ? vq->size : VQ_POOL2_BLOCKS;
	size_t slots = (size_t)vq->size * sizeof(*vq->slots);
	uint8_t *arena;

	vq->order_mask = 1;
	while (vq->order_mask < vq->size)
		vq->order_mask <<= 1;
	vq->arena = calloc(1, slots + 64 + sizeof(*vq->order) * vq->order_mask);
	vq->iov_arena = calloc(1, blocks1 * (sizeof(void *) + VQ_POOL1_IOV * sizeof(struct ring_iov)) +
				  blocks2 * (sizeof(void *) + RING_IOV_MAX * sizeof(struct ring_iov)));
	if (vq->arena == NULL || vq->iov_arena == NULL)
		return -ENOMEM;
	arena = (uint8_t *)(((uintptr_t)vq->arena + 63) & ~(uintptr_t)63);
	vq->slots = (struct ring_chain *)arena;
	vq->order = (uint16_t *)(arena + slots);
	vq->order_mask--;
	arena = vq->iov_arena;
	alloc_pool(&vq->pool[0], &arena, blocks1, VQ_POOL1_IOV);
	alloc_pool(&vq->pool[1], &arena, blocks2, RING_IOV_MAX);
	return 0;
}

/*
 * Base 0 of a packed ring: both wrap counters 0 at slot 0, or a front-end that knows no wrap counters (User-mode Linux)
 * and means a new ring, which begins with both at 1. The ring itself tells: after a whole lap slot 0 bears the marks of
 * wrap 0 (available) or of wrap 1 (used), or, left from the middle of a list, those of a new ring's first request; then
 * the last slot is not all zero, which in a new ring it is.
 */
static bool packed_is_new(const struct ring_vq *vq)
{
	uint64_t g_first[2], g_last[2];
	bool avail, used;

	shm_load_desc(g_first, vq->desc);
	shm_load_desc(g_last, vq->desc + (size_t)VQ_DESC_BYTES * (vq->size - 1));
	avail = g_first[1] >> 48 & VQ_DESC_AVAIL;
	used = g_first[1] >> 48 & VQ_DESC_USED;
	if (used)
		return false;
	return !avail || vq->size == 1 || (!g_last[0] && !g_last[1]);
}

/* Indexes from @base as SET_VRING_BASE encodes it. */
static int set_base(struct ring_vq *vq, uint32_t base, bool from_used)
{
	vq->last_avail = 0;
	vq->used_idx = 0;
	vq->avail_pos = 0;
	vq->used_pos = 0;
	if (!vq->packed) {
		if (base > UINT16_MAX)
			return -RING_E_RING;
		vq->used_idx = shm_load16(vq->used + VQ_USED_IDX);
		vq->staged = vq->used_idx;
		vq->last_avail = from_used ? vq->used_idx : (uint16_t)base;
		return 0;
	}
	/* a packed ring holds no index to read back: the base is all there is */
	if (!base && packed_is_new(vq))
		base = 1u << 15 | 1u << 31;
	vq->avail_pos = base & 0x7fff;
	vq->avail_wrap = (uint8_t)(base >> 15 & 1);
	vq->used_pos = base >> 16 & 0x7fff;
	vq->used_wrap = (uint8_t)(base >> 31);
	if (vq->avail_pos >= vq->size || vq->used_pos >= vq->size)
		return -RING_E_RING;
	if (from_used) {
		vq->avail_pos = vq->used_pos;
		vq->avail_wrap = vq->used_wrap;
	}
	return 0;
}

static void reset_run(struct ring_vq *vq)
{
	vq->popped = 0;
	vq->order_tail = 0;
	vq->in_flight = 0;
	vq->hint = 0;
	vq->staged = 0;
	vq->kicks = VQ_KICKS_UNKNOWN;
	vq->hold = VQ_HOLD_NONE;
	vq->signal_valid = false;
	vq->held_ns = 0;
	vq->depth = 0;
	vq->hold_skip = 0;
	vq->hold_misses = 0;
	vq->staged_slots = 0;
	vq->staged_chains = 0;
	vq->taken = 0;
	vq->stride = 1;
	vq->slow = 0;
	atomic_store_explicit(&vq->error, 0, memory_order_relaxed);
	atomic_store_explicit(&vq->error_detail, 0, memory_order_relaxed);
}

int ring_vq_start(struct ring_vq *vq, const struct ring_vq_config *cfg)
{
	int rc;

	if (ring_vq_state(vq) != RING_VQ_STOPPED)
		return -RING_E_STATE;
	rc = check_size(cfg->size, cfg->features >> VQ_F_PACKED & 1);
	if (rc)
		return rc;
	free_run(vq);
	reset_run(vq);
	vq->cfg = *cfg;
	vq->size = cfg->size;
	vq->mask = cfg->size - 1;
	vq->packed = cfg->features >> VQ_F_PACKED & 1;
	vq->event_idx = cfg->features >> VQ_F_EVENT_IDX & 1;
	vq->indirect = cfg->features >> VQ_F_INDIRECT & 1;
	vq->iotlb = cfg->iotlb;
	rc = alloc_run(vq);
	if (!rc)
		rc = map_rings(vq);
	if (!rc)
		rc = set_base(vq, cfg->base, cfg->base_from_used);
	if (!rc && cfg->inflight != NULL)
		rc = inflight_start(vq);
	if (rc) {
		free_run(vq);
		return rc;
	}
	if (cfg->iotlb != NULL)
		vq->slow |= VQ_SLOW_IOTLB;
	if (cfg->features >> VQ_F_IN_ORDER & 1)
		vq->slow |= VQ_SLOW_IN_ORDER;
	ring_vq_set_logging(vq, cfg->features >> 26 & 1, cfg->log != 0, cfg->log_addr);
	ring_vq_set_call(vq, cfg->call_fd);
	ring_vq_set_err(vq, cfg->err_fd);
	vq->news_fd = cfg->news_fd;
	atomic_store_explicit(&vq->state, RING_VQ_RUNNING, memory_order_release);
	return 0;
}

void ring_vq_stop(struct ring_vq *vq)
{
	/* slots and pools stay: a device may still look at chains it did not complete */
	vq->desc = NULL;
	vq->avail = NULL;
	vq->used = NULL;
	vq->inflight.region = NULL;
	vq->inflight.nr_batch = 0;
	vq->slow &= ~(uint32_t)(VQ_SLOW_INFLIGHT | VQ_SLOW_RESUBMIT);
	vq->call_fd = -1;
	vq->err_fd = -1;
	vq->news_fd = -1;
	atomic_store_explicit(&vq->state, RING_VQ_STOPPED, memory_order_release);
}

static bool in_memory(const struct ring_memtab *tab, const SHM uint8_t *p, uint64_t len)
{
	uint32_t i;

	for (i = 0; tab != NULL && i < tab->nr; i++) {
		uint64_t off = (uintptr_t)p - (uintptr_t)tab->by_gpa[i].hva;

		if (off < tab->by_gpa[i].len && len <= tab->by_gpa[i].len - off)
			return true;
	}
	return false;
}

/* Is what the ring was mapped to still there? Regions side by side are not looked for: then it is not. */
static bool rings_in_memory(const struct ring_vq *vq)
{
	const struct ring_memtab *tab = vq->mem->tab;
	uint64_t n = vq->size;

	if (!in_memory(tab, vq->desc, VQ_DESC_BYTES * n))
		return false;
	if (vq->packed)
		return in_memory(tab, vq->avail, 4) && in_memory(tab, vq->used, 4);
	return in_memory(tab, vq->avail, VQ_AVAIL_RING + 2 * n + 2) && in_memory(tab, vq->used, VQ_USED_RING + 8 * n + 2);
}

int ring_vq_remap(struct ring_vq *vq)
{
	int rc;

	if (ring_vq_state(vq) != RING_VQ_RUNNING)
		return -RING_E_STATE;
	vq->hint = 0;
	vq->hold = VQ_HOLD_NONE;
	rc = map_rings(vq);
	if (rc == -RING_MISS && rings_in_memory(vq))	/* goes on where it is until the entry comes */
		return rc;
	if (rc)
		ring_vq_break(vq, rc == -RING_MISS ? RING_E_RING : -rc, 0);
	return rc;
}

uint32_t ring_vq_base(const struct ring_vq *vq)
{
	uint32_t used = vq->used_pos, wrap = vq->used_wrap;

	if (!vq->packed)
		return vq->last_avail;
	if (used < vq->staged_slots) {	/* what was staged but never published does not count */
		used += vq->size;
		wrap ^= 1;
	}
	used -= vq->staged_slots;
	return vq->avail_pos | (uint32_t)vq->avail_wrap << 15 | used << 16 | wrap << 31;
}

/* ---- fds, log ---- */

/* Non-blocking, so that a full pipe never stops a worker. Returns whether it is a socket. */
static bool prepare_fd(int fd)
{
	struct stat st;
	int flags;

	if (fd < 0)
		return false;
	flags = fcntl(fd, F_GETFL);
	if (flags >= 0 && !(flags & O_NONBLOCK))
		(void)fcntl(fd, F_SETFL, flags | O_NONBLOCK);
	return fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode);
}

void ring_vq_set_call(struct ring_vq *vq, int call_fd)
{
	vq->call_sock = prepare_fd(call_fd);
	vq->call_fd = call_fd;
	vq->signal_valid = false;	/* the new listener has not been told of what came before */
}

void ring_vq_set_err(struct ring_vq *vq, int err_fd)
{
	vq->err_sock = prepare_fd(err_fd);
	vq->err_fd = err_fd;
}

void ring_vq_set_logging(struct ring_vq *vq, int on, int log_used, uint64_t log_addr)
{
	vq->slow &= ~(uint32_t)(VQ_SLOW_LOG_BUFFERS | VQ_SLOW_LOG_USED);
	if (on)
		vq->slow |= VQ_SLOW_LOG_BUFFERS;
	if (log_used)
		vq->slow |= VQ_SLOW_LOG_USED;
	vq->log_addr = log_addr;
}

/* ---- words ---- */

const char *ring_strerror(int error)
{
	static const char *const words[] = {
		[RING_E_HEAD - 5000] = "available ring names a descriptor beyond the queue size",
		[RING_E_AVAIL - 5000] = "more made available than the queue holds",
		[RING_E_NEXT - 5000] = "descriptor's next lies beyond its table",
		[RING_E_LOOP - 5000] = "descriptor chain is endless or too long",
		[RING_E_INDIRECT - 5000] = "bad indirect descriptor (not negotiated, nested, with NEXT, or bad length)",
		[RING_E_ORDER - 5000] = "readable descriptor after a writable one",
		[RING_E_ADDR - 5000] = "buffer outside guest memory",
		[RING_E_LEN - 5000] = "descriptor chain of 2^32 bytes or more",
		[RING_E_DUP - 5000] = "descriptor made available again while in flight",
		[RING_E_ID - 5000] = "buffer id beyond the queue size",
		[RING_E_PERM - 5000] = "writable buffer in read-only memory",
		[RING_E_IOVECS - 5000] = "buffer in too many pieces",
		[RING_E_FAULT - 5000] = "guest memory file was truncated by the front-end",
		[RING_E_INFLIGHT - 5000] = "inflight region inconsistent or too small",
		[RING_E_RING - 5000] = "ring addresses not in guest memory, misaligned, or base out of range",
		[RING_E_SIZE - 5000] = "queue size zero, too big, or not a power of two",
		[RING_E_OVERLAP - 5000] = "memory region overlaps another",
		[RING_E_RANGE - 5000] = "address range wraps around",
		[RING_E_SHORT - 5000] = "file is shorter than the memory region it backs",
		[RING_E_SLOTS - 5000] = "too many memory regions",
		[RING_E_NOREGION - 5000] = "no such memory region",
		[RING_E_DEVICE - 5000] = "device found the request beyond repair",
		[RING_E_STATE - 5000] = "not possible in this state",
		[RING_E_LOG - 5000] = "dirty log too small for guest memory",
	};
	int code = error < 0 ? -error : error;

	if (code == RING_MISS)
		return "address not in the IOTLB yet";
	if (code > 5000 && code - 5000 < (int)(sizeof(words) / sizeof(words[0])) && words[code - 5000] != NULL)
		return words[code - 5000];
	return strerror(code);
}
