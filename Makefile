# Every command a user or a contributor needs; `make` alone lists them.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# torch and torchvision from whatever index pip is configured for. CPU only:
#   make install TORCH_PIN="torch torchvision --index-url https://download.pytorch.org/whl/cpu"
TORCH_PIN ?= 'torch>=2.10' 'torchvision>=0.25'
STAMP := $(VENV)/.installed-$(shell cat requirements/dev.lock pyproject.toml 2>/dev/null | cksum | cut -d' ' -f1)
# More than two cores need: tests wait for processes as often as they compute
PYTEST_WORKERS ?= 3
# In the order of their folders: long acceptance tests begin early, short unit tests fill the end
IN_PARALLEL = -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder
# Real photographs and weights, and where benchmarks of a GPU write their figures
SHARED ?= ../shared
REAL_DATA = --archive $(SHARED)/data/hymenoptera.zip --weights $(SHARED)/weights
FIGURES ?= .

export DATA CATALOG BACKBONE

.DEFAULT_GOAL := help
.PHONY: help install run demo check format test test-postgres gpu cover bench bench-gpu soak mutants abuse scorecard lock clean

help: ## List these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 16

install: $(STAMP) ## Create the environment in .venv

$(STAMP): requirements/dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH_PIN)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.installed-*
	@touch $@

run: install ## Start the service (Ctrl-C ends it); GRAFT_... settings apply
	@$(BIN)/graft serve

demo: install ## Upload photographs, fine-tune, predict, stop; DATA=, CATALOG=, BACKBONE= choose
	@$(BIN)/graft demo

check: install ## Format, lint, types and layers; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: install ## Run the tests (those of the real images need ../shared)
	$(BIN)/pytest -m "not gpu" $(IN_PARALLEL)

test-postgres: install ## Run the tests that have a database, on a real PostgreSQL server
	GRAFT_TEST_DATABASE=postgresql $(BIN)/pytest -m "database and not one_database and not gpu" $(IN_PARALLEL)

gpu: install ## Run the tests that need a CUDA device; without one they fail, and say so
	GRAFT_REQUIRE_GPU=1 $(BIN)/pytest -m gpu tests/gpu

cover: install ## Run the tests with branch coverage
	$(BIN)/pytest -m "not gpu" $(IN_PARALLEL) --cov --cov-report=term-missing:skip-covered

bench: install ## Print ratios measured side by side; needs ../shared
	$(BIN)/python benchmarks/head_vs_tutorial.py $(REAL_DATA)

bench-gpu: install ## Print what a CUDA device is worth, and what might be faster on it; needs ../shared
	@for name in cpu_vs_gpu features decode head_vs_tutorial; do \
	  $(BIN)/python benchmarks/$$name.py $(REAL_DATA) --device cuda --json $(FIGURES)/$$name.json || exit 1; done
	$(BIN)/python benchmarks/step_overhead.py --archive $(SHARED)/data/hymenoptera.zip --device cuda \
	  --steps 30 --json $(FIGURES)/step_overhead.json

soak: install ## Kill processes at random (KILLS=200), strike every fault point, damage files (FUZZES=5000) for long
	GRAFT_TEST_KILLS=$${KILLS:-200} $(BIN)/pytest -m "not gpu" tests/acceptance/test_kills.py -s
	GRAFT_TEST_SOAK=1 $(BIN)/pytest -m "not gpu" tests/faults -s
	$(BIN)/python -m tests.faults.mutants
	GRAFT_TEST_COLLECTIONS=$${COLLECTIONS:-2000} $(BIN)/pytest -m "not gpu" tests/integration/test_garbage.py -k race
	GRAFT_TEST_FUZZES=$${FUZZES:-5000} $(BIN)/pytest -m "not gpu" tests/integration/test_array_fuzz.py -s
	GRAFT_TEST_SCHEMA_EXAMPLES=$${EXAMPLES:-200} $(BIN)/pytest -m "not gpu" tests/abuse/test_schemathesis.py -s
	GRAFT_TEST_STRUCTURES=$${STRUCTURES:-20000} $(BIN)/pytest tests/abuse/test_structures.py -s
	GRAFT_TEST_IMAGES=api,worker-cpu,worker-cuda $(BIN)/pytest tests/integration/test_image_build.py
	GRAFT_TEST_DATABASE=postgresql $(BIN)/pytest -m "one_database and not gpu" $(IN_PARALLEL)

mutants: install ## Make seeded mistakes one by one; the tests must notice each
	$(BIN)/python -m tests.faults.mutants

abuse: install ## Send every hostile request there is, on both databases; figures to build/scorecard
	$(BIN)/python -m tests.abuse build/scorecard/abuse.json

scorecard: install ## Put the figures of the last long runs together, as JSON and in docs/reliability.md
	$(BIN)/python -m tests.scorecard

lock: ## Pin every package with hashes (needs uv)
	uv pip compile pyproject.toml --extra onnx --extra postgres --extra telemetry --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-package torch --no-emit-package torchvision -o requirements/base.lock
	uv pip compile pyproject.toml --extra onnx --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-emit-package torch --no-emit-package torchvision -o requirements/dev.lock
	uv pip compile requirements/build.in --universal --python-version 3.11 --generate-hashes --no-header \
	  -o requirements/build.lock
	uv pip compile requirements/torch-cuda.in --constraint requirements/base.lock --universal \
	  --python-version 3.11 --generate-hashes --no-header -o requirements/torch-cuda.lock

clean: ## Remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
