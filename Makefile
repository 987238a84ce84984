# make demo: the whole path on a CPU.  make test: the tests.  Elsewhere than Linux with a CPU build of torch at hand:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin

.PHONY: demo test lint bench clean

.venv: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[test]"
	@touch .venv

demo: .venv
	$(BIN)/toto demo --output out/demo

test: .venv
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

lint: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv
	$(BIN)/python benchmarks/bench.py train --json

clean:
	rm -rf .venv out build *.egg-info
