# Every target sets up what it needs, once, in $(VENV); pyproject.toml says what that is.
# For torch without CUDA: make TORCH_INDEX=https://download.pytorch.org/whl/cpu demo
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
RUNTIME := $(VENV)/.obhut-runtime
DEV := $(VENV)/.obhut-dev

.PHONY: demo test test-all check docs conformance attacks fuzz soak kills bench bench-data bench-guard bench-large bench-memory bench-net bench-silo bench-sim fix clean

demo: $(RUNTIME)
	$(BIN)/obhut demo
	$(BIN)/obhut demo --processes

# How many processes run the tests, or read the pages.
JOBS ?= 2

test: $(DEV)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m 'not slow'

test-all: $(DEV)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

check: $(DEV)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/interrogate src
	$(BIN)/codespell

# Anew each time, since Sphinx does not see what a notebook runs.
docs: $(DEV)
	rm -rf build/docs build/doctrees build/.jupyter_cache
	$(BIN)/sphinx-build -j $(JOBS) -n -W --keep-going -d build/doctrees -b html docs build/docs
	$(BIN)/sphinx-build -j $(JOBS) -n -W --keep-going -d build/doctrees -b doctest docs build/doctest

conformance: $(DEV)
	OBHUT_CONFORMANCE=full $(BIN)/python -m pytest -n $(JOBS) tests/conformance

# How many random sequences of requests.
SEQUENCES ?= 1000

attacks: $(DEV)
	$(BIN)/python -m tests.attacks --sequences $(SEQUENCES)

# How many spoilt streams and altered programs, and how many seconds of sessions.
STREAMS ?= 10000
SECONDS ?= 600

fuzz: $(DEV)
	OBHUT_FUZZ=$(STREAMS) $(BIN)/python -m pytest --timeout 0 tests/transports/grpc/test_fuzz.py
	OBHUT_FUZZ=$(STREAMS) $(BIN)/python -m pytest -n $(JOBS) --timeout 0 -k altered_programs \
		tests/programs/test_guarded.py tests/transports/grpc/test_recorded_programs.py

soak: $(RUNTIME)
	$(BIN)/python benchmarks/soak.py --seconds $(SECONDS)

# At how many points of a training each of client, owner and aggregator is killed.
POINTS ?= 20

kills: $(DEV)
	OBHUT_KILLS=$(POINTS) $(BIN)/python -m pytest -rP --timeout 0 tests/federated/test_kills.py \
		tests/host/test_ledger_kills.py

bench: $(RUNTIME)
	$(BIN)/python benchmarks/bench.py
	PYTHONPATH=. $(BIN)/python benchmarks/bench_programs.py

bench-data: $(RUNTIME)
	$(BIN)/python benchmarks/bench_data.py

bench-guard: $(RUNTIME)
	$(BIN)/python benchmarks/bench_guard.py
	$(BIN)/python benchmarks/bench_guarded_steps.py
	$(BIN)/python benchmarks/bench_guard_memory.py

bench-memory: $(RUNTIME)
	$(BIN)/python benchmarks/bench_memory.py

# How large the data is; twice that is needed of memory, and three times of a disk.
GIGABYTES ?= 3

bench-large: $(RUNTIME)
	$(BIN)/python benchmarks/bench_large.py --gigabytes $(GIGABYTES)

bench-net: $(RUNTIME)
	$(BIN)/python benchmarks/bench_net.py

bench-silo: $(RUNTIME)
	$(BIN)/python benchmarks/bench_silo.py

# Beside Flower's where BENCH_PEERS is a folder into which flwr[simulation] was installed.
bench-sim: $(DEV)
	$(BIN)/python benchmarks/bench_sim.py

fix: $(DEV)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf build dist htmlcov .coverage .hypothesis .import_linter_cache
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# --group needs pip 25.1.
$(RUNTIME): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet 'pip>=25.1'
	$(if $(TORCH_INDEX),$(PIP) install --index-url $(TORCH_INDEX) 'torch==2.13.*')
	$(PIP) install --quiet --editable '.[demo]'
	touch $@

$(DEV): $(RUNTIME)
	$(PIP) install --quiet --group dev
	touch $@
