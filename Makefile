# Everything a newcomer, a contributor and CI do with this tree. `make` lists it.
#
# All of it happens in a virtual environment, $(VENV): no Python outside is touched (PEP 668). Running a target again costs
# next to nothing: the package is installed anew only when what it is built from has changed.

PYTHON ?= python3
VENV ?= .venv
# What to run, and further arguments for pytest, the demo or the benchmarks: make test TESTS=tests/proto ARGS='-x -k atom'
TESTS ?=
ARGS ?=
# Which of benchmarks/*.py, for make bench.
BENCH ?= spawn streams sandbox lab

PY := $(VENV)/bin/python
AGENT := linx_trio/_bin/linx-agent
BUILT_FROM := pyproject.toml hatch_build.py linx_trio/_version.py linx_trio/_build_id.py \
	$(wildcard agent_c/*.c agent_c/*.h agent_c/*.def)
SETUP := PYTHON='$(PYTHON)' VENV='$(VENV)' sh .ci/setup
MAKEFLAGS += --no-print-directory

.DEFAULT_GOAL := help

help: ## list the targets
	@echo 'usage: make TARGET [PYTHON=$(PYTHON)] [VENV=$(VENV)]'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 18

demo: ## install into $(VENV) and watch workloads live and vanish
	@$(SETUP) packages build
	@$(MAKE) install-run
	@$(PY) docs/examples/demo.py $(ARGS)

test: ## install what the tests need, and run them; TESTS=… ARGS=…
	@$(SETUP) packages build test
	@$(MAKE) install-test
	$(PY) -m pytest $(ARGS) $(TESTS)

test-user: ## as root: run the tests that need no root as an ordinary user
	@$(SETUP) packages build test
	@TESTS='$(TESTS)' ARGS='$(ARGS)' bash .ci/test-user

test-pythons: ## run the tests that need no root under every other Python found
	@VENV='$(VENV)' TESTS='$(TESTS)' ARGS='$(ARGS)' bash .ci/test-pythons

test-vm: ## as root on Debian: run the tests of limits and some others in a virtual machine
	@exec env PYTHON='$(PYTHON)' VENV='$(VENV)' TESTS='$(TESTS)' ARGS='$(ARGS)' bash .ci/test-vm

lint: lint-python lint-c ## ruff, mypy --strict, and the agent with warnings as errors

lint-python:
	@$(SETUP) packages build
	@$(MAKE) install-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# -fanalyzer stands for a compiler of its own: it warns about other things than the plain run.
lint-c:
	@$(SETUP) packages build
	@$(MAKE) install-dev
	@set -e; for cc in gcc 'gcc -fanalyzer' 'musl-gcc -static' clang; do \
		if command -v $${cc%% *} >/dev/null; then echo "agent_c: $$cc -Werror"; \
			CC="$$cc" CFLAGS='-Werror' $(PY) hatch_build.py build/lint/linx-agent; \
		else echo "agent_c: no $$cc here, left out"; fi; done

bench: ## run the benchmarks; BENCH='spawn streams' ARGS=…
	@$(SETUP) packages build test
	@$(MAKE) install-bench
	@set -ex; for name in $(BENCH); do $(PY) benchmarks/$$name.py $(ARGS); done

dist: ## make the sdist, and from it the wheel, in dist/
	@$(SETUP) packages build
	@$(MAKE) install-test
	$(PY) -m build --outdir dist

clean: ## remove what was built, the caches and $(VENV)
	@$(SETUP) remove-venv
	rm -rf build dist linx_trio/_bin .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- installing ------------------------------------------------------------------------------------------------------
# Three degrees, each with the one before it: run (no extras), test, dev; and bench, which is run and the benchmarks' rivals.
# A stamp in $(VENV) says that a degree is there; it is made in a second make, since the first step may have thrown the
# environment away.

install-run install-test install-dev install-bench: install-%:
	@$(SETUP) venv
	@$(MAKE) -s $(VENV)/.installed-$*

EXTRAS_run :=
EXTRAS_test := [test]
EXTRAS_dev := [dev]
EXTRAS_bench := [bench]
IMPLIES_run := run
IMPLIES_test := run test
IMPLIES_dev := run test dev
IMPLIES_bench := run bench

$(VENV)/.installed-%: $(BUILT_FROM) $(if $(wildcard $(AGENT)),,no-agent)
	@echo "installing linx-trio$(EXTRAS_$*) into $(VENV)"
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.$(EXTRAS_$*)'
	@for degree in $(IMPLIES_$*); do pwd > $(VENV)/.installed-$$degree; done

.PHONY: help demo test test-user test-pythons test-vm lint lint-python lint-c bench dist clean \
	install-run install-test install-dev install-bench no-agent
