# Every target makes the environment it needs; `telemetry` does the work.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev

.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-14s %s\n", $$1, $$2}'

demo: $(RUNTIME) ## a demo population's events become metrics; ARGS="--once --json" runs it headless
	@$(BIN)/telemetry demo $(ARGS) || test $$? -eq 130 # 130: Ctrl-C

dev: $(RUNTIME) ## the local stack for your own events
	@$(BIN)/telemetry dev $(ARGS) || test $$? -eq 130

test: $(DEV) ## every test; ARGS goes to pytest
	@$(BIN)/python -m pytest $(ARGS)

services: ## fetch and build into .cache/ what the tests run for real: Collector, Kafka, Redis
	@$(PYTHON) services/fetch.py

bench-ingest: $(DEV) ## what ingest costs beside the Collector, rotel and the engine's floor; SEED, ARGS="--records n"
	@$(BIN)/python -m bench.ingest $(ARGS)

chaos: $(DEV) ## kill and pause everything at every edge, then count; KILLS=100 SEED=1 SOURCE=file|kafka|redis
	@PYTHONPATH=tests $(BIN)/python -m chaos

check: $(DEV) ## format, lint, types, SQL lint, layering, stale generated files
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/sqlfluff lint dbt_project --config dbt_project/.sqlfluff --disable-progress-bar
	@$(BIN)/python requirements/lock.py --check

format: $(DEV) ## write the format that `make check` wants
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: $(DEV) ## resolve pyproject.toml anew into requirements/*.lock
	@$(BIN)/python requirements/lock.py

clean: ## everything that was built or written, .data/ included
	rm -rf $(VENV) .data .cache dbt_project/target dbt_project/logs

$(RUNTIME): requirements/runtime.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=") if sys.version_info < (3, 11) else 0'
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "installing the environment into $(VENV) (once; a minute or two)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/runtime.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): requirements/dev.lock $(RUNTIME)
	@echo "installing the development tools into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/dev.lock
	@touch $@

.PHONY: help demo dev test services bench-ingest chaos check format lock clean
