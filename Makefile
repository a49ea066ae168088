# Most targets run `setup` first, which does nothing when nothing changed.
# Variables: ARGS (further arguments), PYTHON (path of Python 3.11), LAM_SPARK_HOROVOD_GPU=NCCL (Horovod's GPU build)

BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long bench-smoke lint docs lock wheel clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## Create .venv, build the Horovod wheel, download the jars (first time: some minutes)
	@PYTHON="$(PYTHON)" sh tools/setup.sh

demo: setup  ## Run every nightly stage on the retailer's data; ARGS="..." goes to `lam-spark run`
	@sh tools/demo.sh $(ARGS)

test: setup lint  ## Check style and types, run the tests in two processes; ARGS="..." goes to pytest
	$(BIN)/python -m pytest -q -n 2 --no-loadscope-reorder -m "not long" $(ARGS)

test-long: setup  ## Run the tests that take minutes each: launchers, executors, many nights, the tutorial
	$(BIN)/python -m pytest -q -n 2 --no-loadscope-reorder -m long $(ARGS)

bench-smoke: setup  ## Run every benchmark at its smallest size; ARGS="..." selects scripts
	$(BIN)/python -m benchmarks.smoke $(ARGS)

lint: setup  ## Check style and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup  ## Generate docs/configuration.md, docs/tables.md, jobs/ and the stage table of README.md
	$(BIN)/python tools/docs.py

lock:  ## Resolve requirements.lock and requirements-build.lock; ARGS=--upgrade upgrades versions
	@PYTHON="$(PYTHON)" sh tools/setup.sh lock $(ARGS)

wheel: setup  ## Build this project's wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation

clean:  ## Remove the generated files of this checkout (the cache folder stays)
	rm -rf .venv build dist out .mypy_cache .pytest_cache .ruff_cache .hypothesis
