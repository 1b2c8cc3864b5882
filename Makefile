# Two commands on a fresh machine: `make demo` and `make test`. Python 3.11 or newer is all they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt
# Two test processes of one thread each: small models gain nothing from more threads.
TEST_PROCESSES ?= 2

.PHONY: demo test check parity bench docs mini clean

demo: $(VENV)/.installed
	rm -rf demo_output
	$(BIN)/paliglass caption assets/scene.png --model mini
	$(BIN)/paliglass ask assets/scene.png "what colour is the star?" --model mini
	$(BIN)/paliglass detect assets/scene.png "tractor ; doughnut" --model mini --out demo_output/detect
	$(BIN)/paliglass segment assets/scene.png "tractor ; doughnut" --model mini --out demo_output/segment
	@echo "drawn: demo_output/detect/drawings/scene.detect.png, demo_output/segment/drawings/scene.segment.png"
	$(BIN)/paliglass read assets/sign.png --model mini

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES)

check: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# How far from transformers and from the original: the README's table.
parity: $(VENV)/.installed-test
	$(BIN)/python -m workshop.parity_table

# Speed and memory beside transformers, and llama.cpp where it is installed: 3B with random weights,
# some 8.5 GB in BENCH and 20 GB of memory.
BENCH ?= .cache/checkpoint-3b
bench: $(VENV)/.installed-test
	test -d $(BENCH) || $(BIN)/python -m workshop.random_checkpoint paligemma-3b-224 $(BENCH)
	$(BIN)/python -m workshop.peers $(BENCH) --markdown --chart docs/bench.svg

# The lessons' outputs and figures, from real tensors, and the source that the lessons show.
docs: $(VENV)/.installed-test
	$(BIN)/python docs/lessons/outputs.py
	$(BIN)/python docs/lessons/figures.py
	$(BIN)/python docs/architecture.py
	$(BIN)/cog -r -I docs README.md docs/commands.md
	$(BIN)/cog -r -I docs/lessons -p "from sources import show" docs/lessons/*.md

# Trains models like those shipped from nothing (about six hours on two cores; the artwork comes
# by npm; mini itself went on from there on a GPU, see its card): the mask codec; a dual encoder; from its vision tower the model, which first looks and then
# talks; the calibration of its scores; and the dual encoder that ships. RUN keeps the checkpoints; a
# run that was stopped goes on. SHARE=0.03 tries the whole chain in ten minutes of training.
SHARE ?= 1
RUN ?= runs/mini$(if $(filter-out 1,$(SHARE)),-$(SHARE))
minutes = --minutes $(shell awk 'BEGIN { print $(1) * $(SHARE) }')
CODEC = $(RUN)/codec/mask_codec.safetensors
DUAL = OMP_NUM_THREADS=1 $(BIN)/python -m workshop.contrastive
PRETRAIN = OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node 2 -m workshop.pretrain
mini: $(VENV)/.installed-test
	mkdir -p $(RUN)
	test -f $(CODEC) || $(BIN)/python -m workshop.codec --out $(RUN)/codec $(call minutes,8) --resume
	test -d $(RUN)/vit/model || $(DUAL) --out $(RUN)/vit --text cbow --loss clip --batch-size 64 $(call minutes,8) --resume
	test -d $(RUN)/first/model || $(PRETRAIN) --out $(RUN)/first --image-size 128 --vision $(RUN)/vit/model --vision-warmup 1 $(call minutes,30) --resume
	test -d $(RUN)/second/model || $(PRETRAIN) --out $(RUN)/second --image-size 128 --weights $(RUN)/first/model --codec $(CODEC) --vision-warmup 0 --unpacked-share 0.25 $(call minutes,120) --resume
	test -d $(RUN)/third/model || $(PRETRAIN) --out $(RUN)/third --image-size 128 --weights $(RUN)/second/model --codec $(CODEC) --vision-warmup 0 --unpacked-share 0.3 --rate 0.5 --seed 2 $(call minutes,36) --resume
	test -d $(RUN)/fourth/model || $(PRETRAIN) --out $(RUN)/fourth --weights $(RUN)/third/model --codec $(CODEC) --vision-warmup 0 --unpacked-share 0.3 --rate 0.7 --seed 3 --more segment=1.5 --more ocr=1.5 $(call minutes,88) --resume
	test -f $(RUN)/fourth/model/mask_codec.safetensors || cp $(CODEC) $(RUN)/fourth/model
	$(BIN)/python -m workshop.calibrate $(RUN)/fourth/model --scenes 150
	test -d $(RUN)/dual/model || $(DUAL) --out $(RUN)/dual --vision $(RUN)/fourth/model --text cbow --loss clip --batch-size 128 --learning-rate 1e-3 $(call minutes,75) --resume

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis demo_output dist
	find src tests workshop -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are newer than pyproject.toml once what it asks for is installed.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[train,test,dev]'
	$(INSTALL) --no-deps moondream  # a client of the server; what it asks for takes gigabytes
	touch $@ $(VENV)/.installed
