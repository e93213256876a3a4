// SPDX-License-Identifier: Apache-2.0
/*
 * xkb.c - reads a keyboard layout once, before anything is served. It is the host's data, not a guest's.
 */
#include "devices/input/csrc/xkb.h"

#include <stdbool.h>
#include <stddef.h>

#include <xkbcommon/xkbcommon.h>

#define EVDEV 8u	/* XKB's numbers of keys are Linux's and this */
#define MASKS 16u

struct walk {
	struct stroke *out;
	uint32_t max, count;
	xkb_mod_mask_t shift, alt_gr;
};

/* What is held to write a key's level: false where it takes something else, such as Num Lock. */
static bool held_for(const struct walk *walk, struct xkb_keymap *keymap, xkb_keycode_t key, xkb_level_index_t level,
		     uint32_t *held)
{
	xkb_mod_mask_t masks[MASKS];
	size_t nr = xkb_keymap_key_get_mods_for_level(keymap, key, 0, level, masks, MASKS);

	for (size_t i = 0; i < nr; i++) {
		if (masks[i] & ~(walk->shift | walk->alt_gr))
			continue;
		*held = (masks[i] & walk->shift ? (uint32_t)STROKE_SHIFT : 0) |
			(masks[i] & walk->alt_gr ? (uint32_t)STROKE_ALT_GR : 0);
		return true;
	}
	return false;
}

static void on_key(struct xkb_keymap *keymap, xkb_keycode_t key, void *data)
{
	struct walk *walk = data;
	xkb_level_index_t levels = xkb_keymap_num_levels_for_key(keymap, key, 0);

	for (xkb_level_index_t level = 0; level < levels && key > EVDEV; level++) {
		const xkb_keysym_t *syms;
		uint32_t held, text;

		if (xkb_keymap_key_get_syms_by_level(keymap, key, 0, level, &syms) != 1 ||
		    !held_for(walk, keymap, key, level, &held))
			continue;
		text = xkb_keysym_to_utf32(syms[0]);
		if (walk->count < walk->max)
			walk->out[walk->count] = (struct stroke){
				.code = key - EVDEV, .held = held, .keysym = syms[0], .text = text,
				.alias = text ? xkb_utf32_to_keysym(text) : 0,
			};
		walk->count++;
	}
}

int32_t xkb_strokes(const char *layout, const char *variant, struct stroke *out, uint32_t max)
{
	const struct xkb_rule_names names = {.rules = "evdev", .model = "pc105", .layout = layout, .variant = variant};
	struct xkb_context *context = xkb_context_new(XKB_CONTEXT_NO_ENVIRONMENT_NAMES);
	struct xkb_keymap *keymap;
	struct walk walk = {.out = out, .max = max};
	int32_t count = -1;

	if (!context)
		return -1;
	xkb_context_set_log_level(context, XKB_LOG_LEVEL_CRITICAL);	/* what is wrong is said by our caller */
	keymap = xkb_keymap_new_from_names(context, &names, XKB_KEYMAP_COMPILE_NO_FLAGS);
	if (keymap) {
		walk.shift = (xkb_mod_mask_t)1 << xkb_keymap_mod_get_index(keymap, XKB_MOD_NAME_SHIFT);
		walk.alt_gr = (xkb_mod_mask_t)1 << xkb_keymap_mod_get_index(keymap, "Mod5");
		xkb_keymap_key_for_each(keymap, on_key, &walk);
		count = (int32_t)walk.count;
	}
	xkb_keymap_unref(keymap);
	xkb_context_unref(context);
	return count;
}
