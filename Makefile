# `make demo` and `make test` set everything up in .venv; a second run does not install again.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo device-check docs test test-plugins test-oldest chaos fuzz lint format benchmark mutants clean

.venv/ready: pyproject.toml constraints.txt plugins/mvkit-datasets/pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "mvkit needs Python 3.11 or newer; set PYTHON="'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]' --editable plugins/mvkit-datasets
	touch $@

demo: .venv/ready
	$(BIN)/mvkit demo

test: .venv/ready
	$(BIN)/python -m pytest -n 2 tests mvkit plugins/mvkit-datasets

.venv/docs: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

# the documentation, in docs/_build/html: no network, and a warning is an error
docs: .venv/docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

chaos: .venv/ready
	MVKIT_CHAOS=200 $(BIN)/python -m pytest tests/test_chaos.py -k killed

fuzz: .venv/ready
	MVKIT_FUZZ=10000 $(BIN)/python -m pytest tests/test_chaos.py -k altered

test-plugins: .venv/ready
	for package in plugins/*/; do \
	  $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable "$$package[test]" && \
	  $(BIN)/python -m pytest -c pyproject.toml --rootdir $$package $$package/tests || exit 1; \
	done
	$(BIN)/python -m pytest tests/test_docs.py -k 08_search

# the oldest versions that pyproject.toml allows, in an environment of their own
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --constraint constraints.txt --constraint constraints-oldest.txt --editable '.[dev]' --editable plugins/mvkit-datasets
	.venv-oldest/bin/python -m pytest -n 2 tests mvkit plugins/mvkit-datasets

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy --strict mvkit/ plugins/mvkit-datasets/src plugins/mvkit-sklearn/src

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# hours: which small faults in the core the tests notice
mutants: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt cosmic-ray
	$(BIN)/python benchmarks/mutants.py

# on a machine with CUDA, at most eight minutes: tests, and a table in docs/benchmarks.md
device-check: .venv/ready
	$(BIN)/python benchmarks/device_check.py

benchmark: .venv/ready
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf .venv .venv-oldest
