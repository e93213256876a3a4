// SPDX-License-Identifier: Apache-2.0
#include "vhost/sandbox/csrc/seccomp.h"

#include <errno.h>
#include <seccomp.h>
#include <string.h>

/* Newer than the library may be; the same numbers everywhere. */
static const struct {
	const char *name;
	int number;
} late[] = {
	{ "setxattrat", 463 },
	{ "getxattrat", 464 },
	{ "listxattrat", 465 },
	{ "removexattrat", 466 },
};

static int number_of(const char *name)
{
	int number = seccomp_syscall_resolve_name(name);

	for (size_t i = 0; number == __NR_SCMP_ERROR && i < sizeof(late) / sizeof(late[0]); i++)
		if (!strcmp(late[i].name, name))
			number = late[i].number;
	return number;
}

static int allow(scmp_filter_ctx filter, const struct filter_call *call)
{
	struct scmp_arg_cmp compare = {
		.arg = (unsigned int)call->arg,
		.op = SCMP_CMP_MASKED_EQ,
		.datum_a = call->mask,
		.datum_b = call->value,
	};
	int number = number_of(call->name);

	if (number == __NR_SCMP_ERROR || number < 0)
		return 0;
	return seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, number, call->mask ? 1 : 0, &compare);
}

int filter_apply(const struct filter_call *calls, int nr, int others)
{
	uint32_t action = others == FILTER_KILL ? SCMP_ACT_KILL_PROCESS :
			  others == FILTER_LOG	? SCMP_ACT_LOG :
						  SCMP_ACT_ERRNO(EPERM);
	scmp_filter_ctx filter = seccomp_init(action);
	int ret = 0;

	if (!filter)
		return -ENOMEM;
	for (int i = 0; !ret && i < nr; i++)
		ret = allow(filter, &calls[i]);
	if (!ret && others != FILTER_LOG) {
		/* arguments behind a pointer cannot be looked at: programs then use clone(), whose flags can */
		int number = seccomp_syscall_resolve_name("clone3");

		if (number >= 0)
			ret = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), number, 0);
	}
	if (!ret)
		ret = seccomp_load(filter);
	seccomp_release(filter);
	return ret;
}
