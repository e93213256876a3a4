/* SPDX-License-Identifier: Apache-2.0 */
/* caps.h - capabilities, by libcap-ng. */
#ifndef SANDBOX_CAPS_H
#define SANDBOX_CAPS_H

/* cffi:begin */
/* The number of capability @name ("chown"), or -1. */
int caps_number(const char *name);
/* 1 if the calling thread has capability @number in its effective set. */
int caps_has(int number);
/* Keep only @numbers, of those it has, in all sets. 0 or -errno. */
int caps_keep(const int *numbers, int nr);
/* cffi:end */

#endif
