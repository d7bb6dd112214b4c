# make demo   trains on the built-in Fashion-MNIST and leaves a grid of samples, a run folder and a report
# make test   installs what the tests need and runs them
# make lint | types | docs | site    the other checks that .ci/run makes; site leaves the documentation in site/
# make clean  removes the environment and the caches; trained runs stay
# Nothing has to be done first: each makes the environment it needs. `make PYTHON=python3.12 demo` takes another Python,
# `make CONSTRAINTS= demo` the newest libraries (and the torch build with GPU support where pip offers one).

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
TORCH := $(if $(CONSTRAINTS),$(shell grep '^torch==' $(CONSTRAINTS)),torch)

.PHONY: demo test lint types docs site clean

demo: $(VENV)/.installed
	$(BIN)/sfumato demo $(ARGS)

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .

types: $(VENV)/.installed-test
	$(BIN)/mypy

docs: $(VENV)/.installed
	$(BIN)/python scripts/check_docs.py

site: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict -q

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis src/*.egg-info
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'pass' 2>/dev/null || { echo "sfumato: '$(PYTHON)' does not start; name a Python of 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "sfumato: needs Python 3.11 or newer, and '$(PYTHON)' is older; name another: make PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "sfumato: '$(PYTHON)' cannot make an environment, because its venv and ensurepip modules are missing; install them (Debian and Ubuntu: apt install python3-venv) or name another Python: make PYTHON=/path/to/python3" >&2; exit 2; }
	@echo "sfumato: making the environment in $(VENV) (once; torch is large, this takes a minute or two)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# The torch build is chosen first and alone, so that nothing that merely needs torch can choose another.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) $(VENV)/.made
	@$(PIP) $(TORCH)
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@$(PIP) -e '.[test]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed-test
	@$(PIP) -e '.[docs]'
	@touch $@
