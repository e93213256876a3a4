// SPDX-License-Identifier: Apache-2.0
/*
 * resource.c - what a guest makes: images, blobs, and the pages behind them.
 */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "devices/gpu/csrc/remote.h"
#include "ring/csrc/mem.h"

enum {
	ENTRIES = 64,		/* of a list of pages, read at once */
	HUGE = 2 << 20,
	IMAGE_AT = 64,		/* of an image, behind its head */
	PAGE = 4096,
};

struct image_head {
	_Atomic uint32_t holders;
	uint64_t mapped;	/* bytes; 0: allocated */
};

static struct image_head *head_of(uint8_t *image)
{
	return (struct image_head *)(void *)(image - IMAGE_AT);
}

uint8_t *gpu_image_new(uint64_t bytes)
{
	uint8_t *all = calloc(1, bytes + IMAGE_AT);

	if (!all)
		return NULL;
	head_of(all + IMAGE_AT)->holders = 1;
	return all + IMAGE_AT;
}

uint8_t *gpu_image_hold(uint8_t *image)
{
	atomic_fetch_add(&head_of(image)->holders, 1);
	return image;
}

void gpu_image_drop(uint8_t *image)
{
	if (!image || atomic_fetch_sub(&head_of(image)->holders, 1) != 1)
		return;
	if (head_of(image)->mapped)
		munmap(image - PAGE, head_of(image)->mapped);
	else
		free(image - IMAGE_AT);
}

/* The head is ours alone: a page before what is shared. */
uint8_t *gpu_image_map(int fd, uint64_t bytes)
{
	uint8_t *all = mmap(NULL, PAGE + bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (all == MAP_FAILED)
		return NULL;
	if (mmap(all + PAGE, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
		munmap(all, PAGE + bytes);
		return NULL;
	}
	head_of(all + PAGE)->holders = 1;
	head_of(all + PAGE)->mapped = PAGE + bytes;
	return all + PAGE;
}

static struct gpu_resource **bucket_of(struct gpu *gpu, uint32_t id)
{
	return &gpu->buckets[(id * 2654435761u >> 16) & (GPU_BUCKETS - 1)];
}

struct gpu_resource *gpu_resource_find(struct gpu *gpu, uint32_t id)
{
	struct gpu_resource *res = *bucket_of(gpu, id);

	while (res && res->id != id)
		res = res->next;
	return res;
}

bool gpu_resource_charge(struct gpu *gpu, struct gpu_resource *res, uint64_t cost)
{
	if (cost > gpu->limits.bytes - gpu->bytes)
		return false;
	gpu->bytes += cost;
	res->cost += cost;
	__atomic_store_n(&gpu->stats.bytes, gpu->bytes, __ATOMIC_RELAXED);
	return true;
}

void gpu_resource_refund(struct gpu *gpu, struct gpu_resource *res, uint64_t cost)
{
	gpu->bytes -= cost;
	res->cost -= cost;
	__atomic_store_n(&gpu->stats.bytes, gpu->bytes, __ATOMIC_RELAXED);
}

static void count_resources(struct gpu *gpu, uint32_t nr)
{
	gpu->nr_resources = nr;
	__atomic_store_n(&gpu->stats.resources, nr, __ATOMIC_RELAXED);
}

uint32_t gpu_resource_make(struct gpu *gpu, uint32_t id, uint64_t image, struct gpu_resource **out)
{
	struct gpu_resource **bucket = bucket_of(gpu, id), *res;

	if (!id || gpu_resource_find(gpu, id))
		return VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID;
	if (gpu->nr_resources >= gpu->limits.resources)
		return VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY;
	res = calloc(1, sizeof(*res));
	if (!res)
		return VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY;
	if (!gpu_resource_charge(gpu, res, sizeof(*res) + image)) {
		free(res);
		return VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY;
	}
	if (image) {
		res->image = gpu_image_new(image);
		if (!res->image) {
			gpu_resource_refund(gpu, res, res->cost);
			free(res);
			return VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY;
		}
	}
	res->id = id;
	res->serial = ++gpu->serial;
	res->size = image;
	res->next = *bucket;
	*bucket = res;
	count_resources(gpu, gpu->nr_resources + 1);
	*out = res;
	return VIRTIO_GPU_RESP_OK_NODATA;
}

void gpu_resource_drop(struct gpu *gpu, struct gpu_resource *res)
{
	struct gpu_resource **at = bucket_of(gpu, res->id);

	for (uint32_t i = 0; i < gpu->nr_scanouts; i++) {
		if (gpu->scanouts[i].resource == res)
			gpu_scanout_off(gpu, i);
	}
	gpu_3d_unmap(gpu, res);
	while (*at != res)
		at = &(*at)->next;
	*at = res->next;
	gpu_backing_drop(gpu, res);
	gpu_resource_refund(gpu, res, res->cost);
	count_resources(gpu, gpu->nr_resources - 1);
	gpu_image_drop(res->image);
	if (res->exported.state == GPU_EXPORTED)
		close(res->exported.fd);
	free(res);
}

/* --- pages ------------------------------------------------------------------------------------------------------ */

void gpu_backing_drop(struct gpu *gpu, struct gpu_resource *res)
{
	gpu_resource_refund(gpu, res, (uint64_t)res->backing.nr * sizeof(*res->backing.pages));
	free(res->backing.pages);
	memset(&res->backing, 0, sizeof(res->backing));
}

/* One more page; neighbours become one. */
static bool add_page(struct gpu_backing *b, uint64_t gpa, uint32_t len)
{
	struct gpu_page *last = b->nr ? &b->pages[b->nr - 1] : NULL;
	uint64_t end;

	if (!len || __builtin_add_overflow(gpa, len, &end))
		return false;
	if (last && last->gpa + last->len == gpa && last->len <= UINT32_MAX - len)
		last->len += len;
	else
		b->pages[b->nr++] = (struct gpu_page){.gpa = gpa, .start = b->len, .len = len};
	b->len += len;
	return true;
}

uint32_t gpu_backing_take(struct gpu *gpu, struct gpu_resource *res, const struct ring_chain *chain, uint32_t at,
			  uint32_t nr)
{
	struct virtio_gpu_mem_entry entries[ENTRIES];
	struct gpu_backing b = {0};
	uint64_t cost = (uint64_t)nr * sizeof(*b.pages);
	struct gpu_page *fewer;

	if (res->backing.pages)
		return VIRTIO_GPU_RESP_ERR_UNSPEC;
	if (!nr || (uint64_t)nr * sizeof(entries[0]) > chain->out_bytes - at)
		return VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
	if (!gpu_resource_charge(gpu, res, cost))
		return VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY;
	b.pages = malloc(cost);
	if (!b.pages) {
		gpu_resource_refund(gpu, res, cost);
		return VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY;
	}
	for (uint32_t i = 0; i < nr; i += ENTRIES) {
		uint32_t n = nr - i < ENTRIES ? nr - i : ENTRIES;

		ring_chain_read(chain, at + i * (uint32_t)sizeof(entries[0]), entries, n * (uint32_t)sizeof(entries[0]));
		for (uint32_t j = 0; j < n; j++) {
			if (!add_page(&b, entries[j].addr, entries[j].length)) {
				free(b.pages);
				gpu_resource_refund(gpu, res, cost);
				return VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER;
			}
		}
	}
	fewer = realloc(b.pages, b.nr * sizeof(*b.pages));
	if (fewer)
		b.pages = fewer;
	gpu_resource_refund(gpu, res, cost - b.nr * sizeof(*b.pages));
	res->backing = b;
	return VIRTIO_GPU_RESP_OK_NODATA;
}

/* The page that holds byte @at, which lies in it. */
static const struct gpu_page *page_of(const struct gpu_backing *b, uint64_t at)
{
	uint32_t lo = 0, hi = b->nr;

	while (hi - lo > 1) {
		uint32_t mid = lo + (hi - lo) / 2;

		if (b->pages[mid].start <= at)
			lo = mid;
		else
			hi = mid;
	}
	return &b->pages[lo];
}

bool gpu_backing_copy(struct gpu *gpu, const struct gpu_resource *res, uint64_t from, uint8_t *to, uint64_t len)
{
	const struct gpu_backing *b = &res->backing;
	const struct ring_memtab *tab = gpu->mem ? gpu->mem->tab : NULL;
	const struct gpu_page *page;

	if (!tab || from > b->len || len > b->len - from)
		return false;
	if (!len)
		return true;
	page = page_of(b, from);
	while (len) {
		uint64_t skip = from - page->start;
		const struct ring_region *r = ring_memtab_find(tab, page->gpa + skip, &gpu->hint);
		uint64_t off, n;

		if (!r)
			return false;
		off = page->gpa + skip - r->gpa;
		n = page->len - skip;
		if (n > r->len - off)
			n = r->len - off;
		if (n > len)
			n = len;
		shm_copy_in(to, r->hva + off, n);
		to += n;
		from += n;
		len -= n;
		if (from == page->start + page->len)
			page++;
	}
	return true;
}
