# vhostkit: `make demo` and `make test` set up everything they need; `make help` lists the rest.

PY := .venv/bin/python
PYTEST := .venv/bin/pytest

.DEFAULT_GOAL := help
.PHONY: help build demo test test-fast test-guest test-long lint types check asan stress fuzz bench dist clean distclean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

build: ## set up .venv and build the C extensions in the tree
	@tools/setup build

demo: ## boot a Debian guest in QEMU and let it use our devices
	@tools/setup demo
	@PYTHONPATH=tests $(PY) tools/demo.py

test: ## everything: ruff, mypy, fast tests, then real guests
	@tools/setup suite
	@$(PY) tools/run_tests.py

test-fast: ## the tests that boot nothing
	@tools/setup test
	@$(PYTEST) -q -m "not guest"

test-guest: ## all tests that boot QEMU and User-mode Linux
	@tools/setup test
	@$(PYTEST) -q -m guest

test-long: ## combinations of guests, rings and QEMUs that `make test` leaves out
	@tools/setup test
	@$(PYTEST) -q -m long

lint: ## ruff
	@tools/setup build
	@.venv/bin/ruff check .

types: ## mypy --strict
	@tools/setup build
	@.venv/bin/mypy

check: lint types ## lint and types

asan: ## the C tests and fast tests under ASan and UBSan, half an hour; FILES="tests/…" for a part
	@tools/setup test
	@tools/sanitize $(FILES)

stress: ## minutes of driver and device threads on one ring, plain and under sanitizers; PARTS="tsan plain sanitized" for some of it
	@tools/setup build
	@$(MAKE) --no-print-directory -s -C tests/c OUT=$(CURDIR)/.cache/tests-c long

fuzz: ## random input to rings, frames and session for FUZZ_SECONDS (60) each
	@tools/setup fuzz
	@tools/fuzz $${FUZZ_SECONDS:-60}

bench: ## measure our disk beside its peers and baselines, some minutes
	@tools/setup test
	@$(PY) -m bench

dist: ## sdist and wheel in dist/
	@tools/setup build
	@rm -rf dist && $(PY) -m build

clean: ## remove what was built, keep downloads and .venv
	rm -rf build dist *.egg-info ring/_ring*.so ring/_ring.c devices/*/_*.so devices/*/_*.c vhost/sandbox/_*.so vhost/sandbox/_*.c .cache/extensions.stamp
	rm -rf .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## also remove .venv and the cache
	rm -rf .venv .cache
