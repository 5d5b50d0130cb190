# Needs Python 3.11 or newer, with its venv module; everything else is installed into a virtual environment:
# .venv, or .venv-VERSION for a Python named by `make ... PYTHON=/path/to/python3.12`.
# All paths are relative, so that the checkout may lie in a folder with spaces in its name.

ifeq ($(origin PYTHON),undefined)
PYTHON := python3
VENV := .venv
else
VERSION := $(shell "$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>&1)
ifneq ($(words $(subst ., ,$(VERSION))),2)
$(error PYTHON=$(PYTHON): this is no Python: $(VERSION))
endif
VENV := .venv-$(VERSION)
endif

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
RUN := $(BIN)/python -m diffenc.run --gin_file=gin/quickstart.gin --workdir=runs/quickstart

# Minutes: the authors' arrays, checkpoints, the train step, several processes, and the command from config to evaluation.
SHORT := tests/golden/test_golden.py tests/diffenc/checkpoint/test_checkpoints.py tests/diffenc/training/test_gradient.py tests/diffenc/parallel/test_distributed.py tests/diffenc/evaluation/test_commands.py tests/diffenc/cli/test_run.py

.PHONY: help install quickstart test test-short test-slow test-docs mutations check docs notebook release clean
.NOTPARALLEL:

help:
	@echo "make quickstart   train a small model on the CPU (minutes), evaluate it, draw samples"
	@echo "make install      the virtual environment .venv alone, to be activated"
	@echo "make test         lint, types and tests"
	@echo "make test-short   a few minutes of the tests, to see whether another Python will do"
	@echo "make test-slow    the tests that make test leaves out"
	@echo "make test-docs    execute every block of README and docs, scaled down"
	@echo "make docs         build the documentation into site/"
	@echo "make notebook     execute docs/first_hour.py, and write docs/first_hour.ipynb"
	@echo "make release      sdist, wheel, the study's models and checksums of the last commit, into dist/"
	@echo "make mutations    plant faults in copies of the code, and show which test kills each"
	@echo "make check        lint and types alone"
	@echo "make clean        remove the virtual environment, caches and build outputs"
	@echo "Each takes PYTHON=/path/to/python (3.11 or newer)."

install: $(VENV)/run.stamp
	@echo "Now: source $(BIN)/activate"

quickstart: $(VENV)/run.stamp
	$(RUN) --mode=train
	$(RUN) --mode=evaluate --gin_bindings='evaluate.passes = 32'
	@echo "The samples are in runs/quickstart/samples, everything else beside that folder."

test: check
	$(BIN)/python -m pytest -m "not slow and not docs" -n 2 --dist loadfile

test-short: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile $(SHORT)

test-slow: $(VENV)/dev.stamp
	XLA_FLAGS="$${XLA_FLAGS-}" $(BIN)/python -m pytest -m slow

test-docs: $(VENV)/notebook.stamp
	$(BIN)/python -m pytest -m docs -n 2 --dist load

docs: $(VENV)/dev.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "The first page is site/index.html."

notebook: $(VENV)/notebook.stamp
	rm -rf runs/notebook
	mkdir -p runs/notebook
	$(BIN)/jupytext --to ipynb --output runs/notebook/first_hour.ipynb docs/first_hour.py
	$(BIN)/jupyter-execute --inplace runs/notebook/first_hour.ipynb
	cp runs/notebook/first_hour.ipynb docs/first_hour.ipynb

release: $(VENV)/dev.stamp
	$(BIN)/python -m experiments.release --output=dist

mutations: $(VENV)/dev.stamp
	$(BIN)/python tests/mutations.py

check: $(VENV)/dev.stamp
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/basedpyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) .cache .hypothesis .pytest_cache .ruff_cache build dist site diffenc.egg-info

comma := ,

# A stamp is written last, so an interrupted installation is taken up again.
TOO_OLD := error: $(PYTHON) is older than Python 3.11; name a newer one: make ... PYTHON=/path/to/python3.12
define install
@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "$(TOO_OLD)")'
@echo "installing into $(VENV) (minutes the first time)"
@"$(PYTHON)" -m venv $(VENV)
$(INSTALL) --editable '$(1)'
@touch $(2)
endef

$(VENV)/run.stamp: pyproject.toml constraints.txt
	$(call install,.,$@)

$(VENV)/dev.stamp: pyproject.toml constraints.txt
	$(call install,.[dev],$(VENV)/run.stamp $@)

$(VENV)/notebook.stamp: $(VENV)/dev.stamp
	$(call install,.[dev$(comma)notebook],$@)
