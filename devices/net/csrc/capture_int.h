/* SPDX-License-Identifier: Apache-2.0 */
/*
 * capture_int.h - inside of captures: rings and their thread (capture.c), blocks and files (pcapng.c).
 */
#ifndef NET_CAPTURE_INT_H
#define NET_CAPTURE_INT_H

#include <pthread.h>

#include "devices/net/csrc/capture.h"
#include "devices/net/csrc/net_int.h"

enum {
	CAPTURE_BUFFER = 512 * 1024,
	CAPTURE_NO_ID = UINT32_MAX,

	/* struct capture_record.flags, as in pcapng */
	CAPTURE_IN = 1,
	CAPTURE_OUT = 2,
};

struct capture_record {
	_Atomic uint32_t bytes;		/* of the record, header included; 0: not written yet */
	uint32_t len;			/* of the frame */
	uint64_t ns;			/* since the epoch */
	uint32_t kept;
	uint32_t flags;			/* CAPTURE_IN, CAPTURE_OUT */
};

struct net_capture {
	/* constant */
	struct net_capture_file *file;
	uint8_t *ring;
	uint32_t size;
	uint32_t snaplen;
	char name[NET_CAPTURE_NAME];

	/* workers */
	_Atomic uint64_t head __attribute__((aligned(64)));	/* bytes ever reserved */
	_Atomic uint64_t frames, bytes, lost;
	_Atomic uint32_t on;

	/* the thread */
	_Atomic uint64_t tail __attribute__((aligned(64)));	/* bytes ever taken */
	uint64_t lost_told;
	uint64_t target;		/* a sync waits for @tail to be here */
	uint32_t id;			/* in the current file; CAPTURE_NO_ID: not described yet */
	struct net_capture *next;

	atomic_bool gone;		/* set by control */
};

struct net_capture_file {
	struct net_capture_options options;
	char path[NET_CAPTURE_PATH];
	pthread_t thread;
	int event_fd;			/* wakes the thread */
	_Atomic uint32_t asleep;

	pthread_mutex_t lock;		/* what follows */
	pthread_cond_t synced;
	struct net_capture *fresh;	/* interfaces that the thread does not have yet */
	uint64_t want, done;		/* syncs asked for, syncs done */
	bool stop;

	/* the thread */
	struct net_capture *list;
	uint64_t syncing;		/* the @want being worked at */
	int fd;
	uint32_t number;		/* of the file, from 1 */
	uint32_t nr_ids;		/* interfaces described in it */
	uint64_t in_file;		/* bytes of it, without @used */
	uint32_t used;			/* bytes in @buffer, whole blocks */
	bool regular;
	_Atomic uint64_t written, files;
	_Atomic int32_t error;
	uint8_t buffer[CAPTURE_BUFFER];
};

static inline bool capture_failed(const struct net_capture_file *file)
{
	return atomic_load_explicit(&file->error, memory_order_relaxed) != 0;
}

/* pcapng.c: only the thread; and control where there is none. */
int pcapng_open_next(struct net_capture_file *file);	/* 0 or errno */
void pcapng_flush(struct net_capture_file *file);
void pcapng_end_file(struct net_capture_file *file);
void pcapng_interfaces(struct net_capture_file *file);	/* describe those that are not yet */
void pcapng_statistics(struct net_capture_file *file, const struct net_capture *c);
void pcapng_record(struct net_capture_file *file, struct net_capture *c, const struct capture_record *r);

#endif
