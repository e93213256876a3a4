// SPDX-License-Identifier: Apache-2.0
#include "vhost/sandbox/csrc/caps.h"

#include <cap-ng.h>
#include <errno.h>

int caps_number(const char *name)
{
	return capng_name_to_capability(name);
}

int caps_has(int number)
{
	capng_get_caps_process();
	return capng_have_capability(CAPNG_EFFECTIVE, (unsigned int)number);
}

int caps_keep(const int *numbers, int nr)
{
	const capng_type_t both = CAPNG_EFFECTIVE | CAPNG_PERMITTED;
	int kept[64], keep = 0, bounding;

	if (nr > 64)
		return -EINVAL;
	if (capng_get_caps_process() < 0)
		return -EIO;
	bounding = capng_have_capability(CAPNG_EFFECTIVE, CAP_SETPCAP);
	for (int i = 0; i < nr; i++)
		if (capng_have_capability(CAPNG_PERMITTED, (unsigned int)numbers[i]))
			kept[keep++] = numbers[i];
	capng_clear(bounding ? CAPNG_SELECT_BOTH : CAPNG_SELECT_CAPS);
	for (int i = 0; i < keep; i++)
		if (capng_update(CAPNG_ADD, bounding ? both | CAPNG_BOUNDING_SET : both, (unsigned int)kept[i]) < 0)
			return -EINVAL;
	/* the bounding set first, while there is the capability for it */
	if (bounding && capng_apply(CAPNG_SELECT_BOUNDS) < 0)
		return -EPERM;
	return capng_apply(CAPNG_SELECT_CAPS) < 0 ? -EPERM : 0;
}
