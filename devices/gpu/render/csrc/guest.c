// SPDX-License-Identifier: Apache-2.0
/*
 * guest.c - the guest's memory as a renderer has it: its own mappings of the same files. A file that the front-end truncates
 * ends the renderer (SIGBUS), which is that guest's loss alone.
 */
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "devices/gpu/render/csrc/render_int.h"

int render_region_add(struct render *r, const struct wire_region *what, int fd)
{
	struct render_region *to = &r->regions[r->nr_regions];
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), skip = what->offset & (page - 1), end;
	struct stat st;
	void *base;

	if (r->nr_regions == RENDER_REGIONS)
		return -ENOSPC;
	if (!what->len || __builtin_add_overflow(what->gpa, what->len, &end) ||
	    __builtin_add_overflow(what->offset, what->len, &end))
		return -EINVAL;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode) || st.st_size < 0 || end > (uint64_t)st.st_size)
		return -EINVAL;
	for (uint32_t i = 0; i < r->nr_regions; i++) {
		const struct render_region *other = &r->regions[i];

		if (what->gpa < other->gpa + other->len && other->gpa < what->gpa + what->len)
			return -EEXIST;
	}
	base = mmap(NULL, what->len + skip, what->read_only ? PROT_READ : PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
		    fd, (off_t)(what->offset - skip));
	if (base == MAP_FAILED)
		return -errno;
	madvise(base, what->len + skip, MADV_DONTDUMP);
	*to = (struct render_region){
		.gpa = what->gpa,
		.len = what->len,
		.base = base,
		.skip = skip,
		.mapped = what->len + skip,
		.read_only = what->read_only != 0,
	};
	r->nr_regions++;
	return 0;
}

void render_region_remove(struct render *r, uint64_t gpa)
{
	for (uint32_t i = 0; i < r->nr_regions; i++) {
		if (r->regions[i].gpa != gpa)
			continue;
		munmap(r->regions[i].base, r->regions[i].mapped);
		r->regions[i] = r->regions[--r->nr_regions];
		return;
	}
}

/* A piece of a page that lies in one region; its length. */
static uint64_t piece(const struct render *r, uint64_t gpa, uint64_t len, struct iovec *out)
{
	for (uint32_t i = 0; i < r->nr_regions; i++) {
		const struct render_region *region = &r->regions[i];
		uint64_t off = gpa - region->gpa;

		if (gpa < region->gpa || off >= region->len || region->read_only)
			continue;
		if (len > region->len - off)
			len = region->len - off;
		*out = (struct iovec){region->base + region->skip + off, len};
		return len;
	}
	return 0;
}

bool render_resolve(const struct render *r, struct render_resource *res)
{
	uint32_t room = res->nr_pages + RENDER_REGIONS;
	struct iovec *iov = calloc(room, sizeof(*iov));
	uint32_t nr = 0;

	free(res->iov);
	res->iov = NULL;
	res->nr_iov = 0;
	if (!iov)
		return false;
	for (uint32_t i = 0; i < res->nr_pages; i++) {
		uint64_t gpa = res->pages[i].gpa, len = res->pages[i].len;

		while (len) {
			uint64_t n = nr < room ? piece(r, gpa, len, &iov[nr]) : 0;

			if (!n) {
				free(iov);
				return false;
			}
			nr++;
			gpa += n;
			len -= n;
		}
	}
	res->iov = iov;
	res->nr_iov = (int)nr;
	return true;
}
