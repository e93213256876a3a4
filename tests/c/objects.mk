# Objects of the C parts, for programs here and in tests/fuzz: $(OUT)/PART/NAME.o as built with -O2, $(OUT)/PART-asan/NAME.o under
# ASan and UBSan. Who includes it sets OUT; one OUT for all compiles each once.

ROOT := ../..
CC ?= gcc
CSTD = -std=gnu11 -D_GNU_SOURCE -I$(ROOT)
WARN = -Wall -Wextra -Wshadow -Wconversion -Wvla -Wstrict-prototypes -Werror
OPT = -O2 -g
SAN = -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
HEADERS = $(wildcard $(ROOT)/ring/csrc/*.h $(ROOT)/devices/*/csrc/*.h) $(wildcard *.h) Makefile $(ROOT)/tests/c/objects.mk

define objects
$$(OUT)/$(1)/%.o: $$(ROOT)/$(2)/csrc/%.c $$(HEADERS)
	@mkdir -p $$(@D)
	$$(CC) $$(CSTD) $$(WARN) $$(OPT) -c $$< -o $$@

$$(OUT)/$(1)-asan/%.o: $$(ROOT)/$(2)/csrc/%.c $$(HEADERS)
	@mkdir -p $$(@D)
	$$(CC) $$(CSTD) $$(WARN) $$(SAN) -c $$< -o $$@
endef
$(eval $(call objects,ring,ring))
$(foreach part,net fs gpu,$(eval $(call objects,$(part),devices/$(part))))
