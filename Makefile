# Everything a person or a machine does with this repository. `make` alone lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup setup-test demo test test-slow requirements lint format types check clean

# uv from the PATH, else one fetched into .tools; Python 3.11 or 3.10 from this machine, else fetched by uv.
UV := $(shell command -v uv || echo .tools/bin/uv)
PYTHON := $(shell for p in python3.11 python3.10 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))' 2>/dev/null && { command -v $$p; break; }; \
	done || true)
EXTRA ?= cpu
BIN := .venv/bin
# uv warns when the cache and .venv lie on different file systems; copying is what it then does anyway.
export UV_LINK_MODE := copy

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -ts $$'\t'

.tools/bin/uv:
	@python3 -m venv .tools && .tools/bin/pip install --quiet uv

.venv/installed-$(EXTRA): requirements/$(EXTRA).txt pyproject.toml | $(filter .tools/bin/uv,$(UV))
	@test -x $(BIN)/python || $(UV) venv --quiet --python "$(or $(PYTHON),3.11)" .venv
	$(UV) pip install --quiet --python $(BIN)/python --no-deps -r requirements/$(EXTRA).txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@rm -f .venv/installed-* && touch $@

.venv/installed-dev: requirements/dev.txt .venv/installed-$(EXTRA)
	$(UV) pip install --quiet --python $(BIN)/python --no-deps -r requirements/dev.txt
	@touch $@

setup: .venv/installed-$(EXTRA) ## Install into .venv (EXTRA=cuda for NVIDIA GPUs).

setup-test: .venv/installed-dev ## Install what tests, lint and types need as well.

demo: setup ## Prepare synthetic data, cut it into 4 parts, train on 2 ranks, evaluate.
	$(BIN)/python -m jobs.demo

test: setup-test ## Run the tests.
	$(BIN)/python -m pytest

test-slow: setup-test ## Run the long tests too.
	$(BIN)/python -m pytest -m "slow or not slow"

lint: setup-test ## Check format and lint.
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

format: setup-test ## Rewrite to the format.
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

types: setup-test ## Check types.
	$(BIN)/mypy

check: lint types test ## All three.

# The pins hold for Python 3.10 and 3.11; --no-header and --no-emit-index-url keep this machine out of them.
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.10 --no-header --no-annotate --no-emit-index-url pyproject.toml
requirements: | $(filter .tools/bin/uv,$(UV)) ## Refresh the pinned requirements from pyproject.toml.
	$(COMPILE) --extra cpu --output-file requirements/cpu.txt
	$(COMPILE) --extra cuda --output-file requirements/cuda.txt
	$(COMPILE) --extra cpu --group dev --output-file requirements/dev.all
	@grep -vxFf requirements/cpu.txt requirements/dev.all > requirements/dev.txt; rm requirements/dev.all

clean: ## Remove what the targets made (not runs/ and prepared/).
	rm -rf .venv .tools build *.egg-info .pytest_cache .mypy_cache .ruff_cache
