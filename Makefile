# Everything a person or a machine does with this repository. `make` alone lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup setup-test extract spark cuda demo test test-all soak docs bench lint format types check requirements requirements-check clean distclean

# Settable on the command line: make setup EXTRA=cuda PYTHON=3.10, make test ARGS="tests/cm3_dist/loss/test_cm3_loss.py -x".
# EXTRA is cpu or cuda; once installed, it stays what it is until named again.
EXTRA ?= $(if $(wildcard .venv/installed-cuda),cuda,cpu)
PYTHON := >=3.10,<3.12
ARGS :=
# Tests at a time. Each may start up to 4 ranks, so more take memory: some 3 GB each.
WORKERS := 2
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# Of the examples that fuzzing draws in test-all; it prints the number, so that a failure can be repeated.
SEED := $(shell date +%s)

# uv from the PATH, else fetched into .tools. Without a terminal it draws no progress, so it need not speak either.
UV := $(shell command -v uv || echo .tools/bin/uv)
QUIET := $(shell test -t 2 || echo --quiet)
BIN := .venv/bin

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-20s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup ## Make data, cut it into 4 parts, train on 2 processes, evaluate.
	$(BIN)/python -m jobs.demo

test: setup-test ## Run the tests (ARGS goes to pytest), WORKERS files at a time; 8 minutes.
	$(PYTEST) $(ARGS)

test-all: setup-test ## Run the long tests too, with random fuzzing (SEED); 28 minutes. ARGS="-m slow": only those.
	@echo "SEED=$(SEED)"
	$(PYTEST) -m "not soak" --durations=15 --hypothesis-profile=random --hypothesis-seed=$(SEED) $(ARGS)

soak: setup-test ## Break a running training for half an hour.
	$(BIN)/python -m pytest -m soak $(ARGS)

docs: setup ## Write docs/settings.md from the typed settings; draw docs/images/architecture.svg where Graphviz is.
	$(BIN)/python -m cm3_dist.config.reference > docs/settings.md
	! command -v dot > /dev/null || for each in architecture packages; do dot -Tsvg docs/images/$$each.dot > docs/images/$$each.svg; done

bench: setup-test ## Measure speed against the plain implementation (ARGS goes to benchmarks.speed).
	$(BIN)/python -m benchmarks.speed $(ARGS)

setup: .venv/installed-$(EXTRA) ## Install the pinned requirements and this package into .venv.

setup-test: .venv/installed-$(EXTRA)-dev ## Install what tests, lint and types need as well.

extract: $(if $(wildcard .venv/installed-$(EXTRA)-dev),setup-test,.venv/installed-$(EXTRA)-extract) ## Install what `partition extract` needs as well.

spark: $(if $(wildcard .venv/installed-$(EXTRA)-dev),setup-test,.venv/installed-$(EXTRA)-spark) ## Install what `partition build --engine spark-local` needs as well; Java 17 apart.

cuda: ## Install for NVIDIA GPUs; demo and test then use that.
	@$(MAKE) --no-print-directory setup EXTRA=cuda

lint: setup-test ## Check format, lint, import layers, spelling and shell scripts.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell
	$(BIN)/shellcheck --severity=warning slurm/*.sh slurm/*.sbatch .ci/run

format: setup-test ## Rewrite to the format, mend what lint can mend.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: setup-test ## Check types.
	$(BIN)/mypy

check: lint types test ## Lint, types and tests.

# pip sync, not install: it removes the other extra's fbgemm-gpu, which lies in the same folder, before it adds this one.
define install
	@echo "Installing $(1) into .venv (the first time 3 GB to download, 5 GB unpacked)"
	@$(BIN)/python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 12))' 2>/dev/null \
		|| { rm -rf .venv && $(UV) venv --quiet --python '$(PYTHON)' .venv; }
	@rm -f .venv/installed-*
	@$(UV) pip sync $(QUIET) --python $(BIN)/python $(1)
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
endef

.venv/installed-$(EXTRA): requirements/$(EXTRA).txt pyproject.toml setup.py | $(filter .tools/bin/uv,$(UV))
	$(call install,requirements/$(EXTRA).txt)
	@touch $@

.venv/installed-$(EXTRA)-extract: requirements/$(EXTRA).txt requirements/extract.txt pyproject.toml setup.py | $(filter .tools/bin/uv,$(UV))
	$(call install,requirements/$(EXTRA).txt requirements/extract.txt)
	@touch .venv/installed-$(EXTRA) $@

.venv/installed-$(EXTRA)-spark: requirements/$(EXTRA).txt requirements/spark.txt pyproject.toml setup.py | $(filter .tools/bin/uv,$(UV))
	$(call install,requirements/$(EXTRA).txt requirements/spark.txt)
	@touch .venv/installed-$(EXTRA) $@

.venv/installed-$(EXTRA)-dev: requirements/$(EXTRA).txt requirements/extract.txt requirements/spark.txt requirements/dev.txt pyproject.toml setup.py | $(filter .tools/bin/uv,$(UV))
	$(call install,requirements/$(EXTRA).txt requirements/extract.txt requirements/spark.txt requirements/dev.txt)
	@touch .venv/installed-$(EXTRA) $@

.tools/bin/uv:
	@echo "Fetching uv into .tools"
	@{ python3 -m venv .tools && .tools/bin/python -m pip install --quiet uv; } \
		|| { rm -rf .tools && python3 -m pip install --quiet --target .tools uv; } \
		|| { echo "uv could not be fetched: check the network, install Python's venv or pip, or put uv on the PATH" >&2; exit 1; }

# The committed files are their own lock: a pin moves when pyproject.toml asks for it, all of them with UPGRADE=1.
# Pins of Pythons that this project does not support are left out.
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.10 --no-header --no-annotate $(if $(UPGRADE),--upgrade)
requirements: | $(filter .tools/bin/uv,$(UV)) ## Refresh the pinned requirements from pyproject.toml (UPGRADE=1: the newest).
	$(COMPILE) pyproject.toml --extra cpu --output-file requirements/cpu.txt
	$(COMPILE) pyproject.toml --extra cuda --constraint requirements/cpu.txt --output-file requirements/cuda.txt
	$(COMPILE) pyproject.toml --extra extract --constraint requirements/cpu.txt --output-file requirements/extract.txt
	$(COMPILE) pyproject.toml --extra spark --constraint requirements/extract.txt --output-file requirements/spark.txt
	$(COMPILE) --group pyproject.toml:dev --constraint requirements/extract.txt --constraint requirements/spark.txt --output-file requirements/dev.txt
	sed -i "/python_full_version >= '3.12'/d; s/== '3.11.\*'/>= '3.11'/" requirements/*.txt

requirements-check: setup-test ## Check the pinned requirements against pyproject.toml.
	$(BIN)/python -m pytest tests/repository/test_packaging.py

clean: ## Remove caches and built packages.
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

distclean: clean ## Remove the environment too (not data/, prepared/ and runs/).
	rm -rf .venv .tools
