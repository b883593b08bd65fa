# `make train` runs the main job and `make test` every check; both first make .venv where it is missing or outdated.

PYTHON ?=
PROCESSES ?= 4
ARGS ?=
NAME ?= list
QUICK :=

BIN := .venv/bin
READY := .venv/.ready
READY_DEV := .venv/.ready-dev
READY_LOWEST := .venv-lowest/.ready
# A worker a core takes file after file: half of them wait for processes that start, or for a timeout.
PYTEST := pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

# A stamp that names another folder came here with a copied or moved checkout.
ifneq "$(shell cat $(READY) 2>/dev/null)" "$(CURDIR)"
.PHONY: $(READY) $(READY_DEV)
endif
ifneq "$(shell cat $(READY_LOWEST) 2>/dev/null)" "$(CURDIR)"
.PHONY: $(READY_LOWEST)
endif

.NOTPARALLEL:
.PHONY: help train test test-quick test-long test-lowest lint types tests format bench clean
.DEFAULT_GOAL := help

help:
	@echo "make train       run the main job: $(PROCESSES) processes, handwritten digits; PROCESSES=2 ARGS=\"--epochs 3\""
	@echo "make test        run lint, types and all tests but the long ones"
	@echo "make test-quick  the same without the tests that start processes: within a minute"
	@echo "make test-long   what takes long: every placement resumed by every other, faults at random, fuzzing"
	@echo "make test-lowest some tests with the lowest versions that setup.cfg allows, in .venv-lowest"
	@echo "make lint        ruff and codespell"
	@echo "make types       mypy, strict"
	@echo "make tests       pytest; ARGS=\"-k exact\""
	@echo "make format      let ruff mend what it can"
	@echo "make bench       list the benchmarks, or run one: NAME=throughput ARGS=--quick"
	@echo "make clean       remove .venv, caches and build files, never data or runs"
	@echo "The first of them makes .venv; PYTHON=python3.12 picks the interpreter, from 3.11 to 3.13."

# torchrun would set the variable itself, and warn; the threads of a run do not follow it. Its default rendezvous takes
# a port, where --standalone unpickles what anybody sends.
train: $(READY)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/torchrun --master_port=$$(tools/free-port) --nproc_per_node=$(PROCESSES) launch/pipeline_train.py $(ARGS)

test: lint types tests

test-quick: QUICK := -m "not runs and not bench"
test-quick: lint types tests

test-lowest: $(READY_LOWEST)
	.venv-lowest/bin/$(PYTEST) -m "(not runs and not bench) or lowest" $(ARGS)

test-long: $(READY_DEV)
	FUZZ=20000 RANDOM_NETWORKS=500 $(BIN)/$(PYTEST) -m "long or fuzz" $(ARGS)

lint: $(READY_DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell

types: $(READY_DEV)
	$(BIN)/mypy

tests: $(READY_DEV)
	$(BIN)/$(PYTEST) $(QUICK) $(ARGS)

format: $(READY_DEV)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY)
	$(BIN)/python -m benchmarks $(NAME) $(ARGS)

clean:
	rm -rf .venv .venv-lowest build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find pipeline launch benchmarks tests -name __pycache__ -prune -exec rm -rf {} +

$(READY): setup.cfg pyproject.toml
	@PYTHON="$(PYTHON)" tools/make-venv

$(READY_DEV): setup.cfg pyproject.toml
	@PYTHON="$(PYTHON)" tools/make-venv dev

$(READY_LOWEST): setup.cfg tools/lowest-versions
	@PYTHON="$(PYTHON)" tools/make-venv lowest
