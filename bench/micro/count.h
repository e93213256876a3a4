/* SPDX-License-Identifier: Apache-2.0 */
/*
 * count.h - instructions of marked stretches of code, counted by callgrind; without it the marks cost nothing to speak of.
 *
 *	valgrind --tool=callgrind --collect-atstart=no PROGRAM count
 *
 * count_begin() and count_end() bracket what is counted; count_dump(name) writes what came together to a file of its own
 * whose "desc: Trigger" line holds the name, and starts anew.
 */
#ifndef MICRO_COUNT_H
#define MICRO_COUNT_H

#include <stdio.h>
#include <stdlib.h>

#if defined(__has_include) && __has_include(<valgrind/callgrind.h>)
#include <valgrind/callgrind.h>
#define COUNT_POSSIBLE 1
#else
#define COUNT_POSSIBLE 0
#define CALLGRIND_TOGGLE_COLLECT
#define CALLGRIND_ZERO_STATS
#define CALLGRIND_DUMP_STATS_AT(name) ((void)(name))
#define RUNNING_ON_VALGRIND 0
#endif

static inline void count_begin(void)
{
	CALLGRIND_TOGGLE_COLLECT;
}

static inline void count_end(void)
{
	CALLGRIND_TOGGLE_COLLECT;
}

static inline void count_clear(void)
{
	CALLGRIND_ZERO_STATS;
}

static inline void count_dump(const char *name)
{
	CALLGRIND_DUMP_STATS_AT(name);
}

/* Ends the program where nothing could be counted. */
static inline void count_need(void)
{
	if (!COUNT_POSSIBLE) {
		fprintf(stderr, "built without valgrind/callgrind.h; install the Debian package valgrind and build again\n");
		exit(2);
	}
	if (!RUNNING_ON_VALGRIND) {
		fprintf(stderr, "count: to be run under valgrind --tool=callgrind --collect-atstart=no\n");
		exit(2);
	}
}

#endif
