# make setup | demo | test | fuzz | lint | types | fmt | docs | dist | bench | clean
PYTHON ?= $(shell for v in 3.11 3.12 3.13 3.10; do command -v python$$v && break; done)
# The index serves CUDA builds to Linux on x86_64: the CPU build is asked for by name. TORCH=torch==2.13.0 takes what the index has.
TORCH ?= torch==2.13.0$(if $(findstring Linux-x86_64,$(shell uname -sm | tr ' ' -)),+cpu)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
READY := $(VENV)/.ready
LOCK = $(shell $(BIN)/python -c "import sys; print('-c requirements.lock' if sys.version_info[:2] == (3, 11) else '')")
SOURCES := $(wildcard submodules/*/setup.py submodules/*/pyproject.toml) \
	$(shell find submodules/diff-gaussian-rasterization/csrc -type f 2>/dev/null)

.PHONY: setup demo test fuzz lint types fmt docs dist bench clean
setup: $(READY)

$(READY): pyproject.toml requirements.lock Makefile $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet "setuptools>=77" wheel
	$(PIP) install --quiet "$(TORCH)" || $(PIP) install --quiet "$(TORCH)" --index-url $(TORCH_INDEX)
	$(PIP) install --quiet --no-build-isolation -e submodules/simple-knn -e submodules/diff-gaussian-rasterization
	$(PIP) install --quiet --no-build-isolation $(LOCK) -e ".[dev]"
	touch $(READY)

demo: $(READY)
	$(BIN)/unified-lift demo --out output/demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 tests

# RUNS in each group of files; SEED = another one finds other things
fuzz: $(READY)
	$(BIN)/python scripts/fuzz.py --runs $(or $(RUNS),500) --seed $(or $(SEED),0) --keep output/fuzz

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

fmt: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages of docs/ as a site, in output/site
docs: $(READY)
	$(BIN)/mkdocs build --quiet --config-file .docs/mkdocs.yml

# Wheels and source archives of the three packages, in dist/
dist: $(READY)
	rm -rf dist
	for package in . submodules/simple-knn submodules/diff-gaussian-rasterization; do \
		$(BIN)/python -m build --no-isolation --outdir dist $$package || exit 1; \
	done

bench: $(READY)
	$(BIN)/python scripts/bench_rasterizer.py

clean:
	rm -rf $(VENV) build dist output
