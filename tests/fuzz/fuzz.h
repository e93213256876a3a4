/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz.h - what fuzz targets share: reading their input, and the program that runs files instead of libFuzzer.
 *
 * A target ends with FUZZ_REPLAY(number): with -DREPLAY that is main(), which prints each file's name and number, what
 * the target made of it.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The next @n bytes of the input, or what is left of it and zeros. Returns how many there were. */
static inline size_t take(const uint8_t **data, size_t *left, void *to, size_t n)
{
	size_t got = n < *left ? n : *left;

	memset(to, 0, n);
	if (got)
		memcpy(to, *data, got);
	*data += got;
	*left -= got;
	return got;
}

#ifdef REPLAY
/* Run the input in file @path. False if it cannot be read. */
static inline bool fuzz_replay(const char *path)
{
	static uint8_t data[1 << 20];
	FILE *file = fopen(path, "rb");
	uint8_t *copy;
	size_t n;

	if (file == NULL) {
		perror(path);
		return false;
	}
	n = fread(data, 1, sizeof(data), file);
	fclose(file);
	/* a block of just this size: reading beyond it is seen */
	copy = malloc(n ? n : 1);
	if (copy == NULL)
		return false;
	memcpy(copy, data, n);
	LLVMFuzzerTestOneInput(copy, n);
	free(copy);
	return true;
}

#define FUZZ_REPLAY(number)                                                                                            \
	int main(int argc, char **argv)                                                                                \
	{                                                                                                              \
		for (int i = 1; i < argc; i++) {                                                                       \
			if (!fuzz_replay(argv[i]))                                                                     \
				return 1;                                                                              \
			printf("%s %llu\n", argv[i], (unsigned long long)(number));                                    \
			fflush(stdout);                                                                                \
		}                                                                                                      \
		return 0;                                                                                              \
	}
#else
#define FUZZ_REPLAY(number)
#endif

#endif
