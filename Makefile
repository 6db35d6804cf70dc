# Thin front to pip, pytest and the command line. All state is in .venv/ and build/.
#
#   make run        install into .venv and run the main job
#   make test       install, run the C++ suites and the default Python tests
#   make test-slow  the tests left out of the default run
#   make bench      benchmarks; tables in build/bench
#   make lint       ruff, mypy, clang-format
#   make clean      remove .venv and build
#
# PYTHON=/path/to/python3.12 picks the interpreter for a new .venv.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.SUFFIXES:
.NOTPARALLEL:

# What is installed elsewhere must not leak in.
unexport PYTHONPATH
unexport PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK := 1

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
BUILD_DIR := build/venv
TEST_RUNNER := $(BUILD_DIR)/ubfabric/ns3/ub-fabric-test-runner

# The same list as [build-system] requires in pyproject.toml (a test compares them).
# Installed once into .venv, since isolated builds would fetch and compile the ns3
# package and cppyy (500 MB, minutes) a second time.
BUILD_REQUIRES := "scikit-build-core>=0.10" "cmake>=3.24" "ninja>=1.10" "ns3==3.44.post0"

SOURCES := CMakeLists.txt pyproject.toml $(shell find ubfabric topologies traffic -type f -not -name '*.py[co]')

.PHONY: run test test-cpp test-slow bench lint install clean

run: $(VENV)/.installed
	$(BIN)/ubfabric run --overwrite

test: $(VENV)/.installed-test test-cpp
	$(BIN)/pytest

test-slow: $(VENV)/.installed-test
	$(BIN)/pytest -m slow

bench: $(VENV)/.installed-test
	$(BIN)/pytest -m benchmark --benchmark-quiet tests/bench

# One process a suite, as ns-3 wants it: it has one clock a process.
test-cpp: $(VENV)/.installed
	$(BIN)/cmake --build $(BUILD_DIR) --target ub-fabric-test-runner
	@suites=$$($(TEST_RUNNER) --list); [[ -n $$suites ]]; failed=; \
	for suite in $$suites; do \
	  $(TEST_RUNNER) --suite=$$suite || failed="$$failed $$suite"; \
	done; \
	if [[ -n $$failed ]]; then echo "failed C++ suites:$$failed" >&2; exit 1; fi

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(find ubfabric/ns3 -name '*.cc' -o -name '*.h')

install: $(VENV)/.installed

# pytest and the command line are started as .venv/bin/..., never as `python -m`, which
# would put this folder first on the path and the sources before the installed package.
$(VENV)/.installed: $(VENV)/.build-requires $(SOURCES)
	$(PIP) install --quiet --no-build-isolation --config-settings=build-dir=$(BUILD_DIR) .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) install --quiet "ubfabric[test]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet "ubfabric[test,dev]"
	touch $@

$(VENV)/.build-requires: | $(VENV)/.created
	@echo "Installing the ns3 package; its cppyy part is compiled the first time, which takes some minutes."
	$(PIP) install --quiet $(BUILD_REQUIRES)
	touch $@

$(VENV)/.created:
	bash .ci/make-venv $(VENV) $(PYTHON)
	touch $@

clean:
	rm -rf $(VENV) build
