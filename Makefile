# make setup | demo | test | lint | fmt | bench | clean
PYTHON ?= python3.11
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := $(wildcard submodules/*/setup.py submodules/*/pyproject.toml) \
	$(shell find submodules/diff-gaussian-rasterization/csrc -type f 2>/dev/null)

.PHONY: setup demo test lint fmt bench clean
setup: $(READY)

$(READY): pyproject.toml Makefile $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "setuptools>=68" wheel "$(TORCH)"
	$(BIN)/python -m pip install --quiet --no-build-isolation -e submodules/simple-knn -e submodules/diff-gaussian-rasterization
	$(BIN)/python -m pip install --quiet --no-build-isolation -e ".[dev]"
	touch $(READY)

demo: $(READY)
	$(BIN)/unified-lift demo --out output/demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 tests

lint: $(READY)
	$(BIN)/ruff check .

fmt: $(READY)
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python scripts/bench_rasterizer.py

clean:
	rm -rf $(VENV) build output
