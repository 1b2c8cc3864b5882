# Two commands on a fresh machine: `make demo` and `make test`. Python 3.11 or newer is all they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Two test processes of one thread each: small models gain nothing from more threads.
TEST_PROCESSES ?= 2

.PHONY: demo test check parity mini clean

demo: $(VENV)/.installed
	rm -rf demo_output
	$(BIN)/paliglass caption assets/scene.png --model mini
	$(BIN)/paliglass ask assets/scene.png "what colour is the circle?" --model mini
	$(BIN)/paliglass detect assets/scene.png "dog ; apple" --model mini --out demo_output
	@echo "drawn: demo_output/drawings/scene.detect.png"
	$(BIN)/paliglass read assets/sign.png --model mini

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES)

check: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# How far from transformers and from the original: the README's table.
parity: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks.parity_table

# Trains the shipped model from nothing (an hour and a half on two cores; the artwork comes by npm);
# RUN keeps its checkpoints, and a run that was stopped goes on. Threads that wait must not spin for
# long: the process that draws the scenes needs their core.
RUN ?= runs/mini
mini: $(VENV)/.installed-test
	GOMP_SPINCOUNT=20000 $(BIN)/python -m paliglass.training.pretrain --out $(RUN) --minutes 86

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis demo_output dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are newer than pyproject.toml once what it asks for is installed.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --editable '.[train,test,dev]'
	touch $@ $(VENV)/.installed
