# make demo | test | test-long | test-official | lab | clean. Each makes its environment by itself, .venv, or .venv-official for test-official,
# when it is missing or older than what it is made from.
#   PYTHON=python3.12            another interpreter (3.10 to 3.12)
#   PYTHON310=/path/to/python    the Python 3.10 of test-official, where none is found
#   LAB_ARGS='--no-browser --ip 0.0.0.0'   anything for jupyter lab, say on a server; without it, notebook 00 opens
#   PIP_ARGS='--index-url ...'   anything for pip, say an index of CPU-only torch wheels: without one, PyPI's torch brings CUDA

PYTHON ?= python3
PIP_ARGS ?=
LAB_ARGS ?= 00_explore_data.ipynb
# Threads that wait must not spin for long: on a busy machine that makes everything many times slower.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 3000
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OFFICIAL := .venv-official
OFFICIAL_STAMP := $(OFFICIAL)/.installed
PYTHON310 ?= $(shell .ci/python310)
NOTEBOOKS = $(wildcard notebooks/*.ipynb)
# Two workers of one thread each; the tests of a file share what they make.
PARALLEL = -n 2 --dist loadfile
test test-long test-official: export OMP_NUM_THREADS ?= 1

.DELETE_ON_ERROR:
.PHONY: demo test test-long test-official lab clean

demo: $(STAMP)
	$(BIN)/python -m kdlib run demo

test: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/nbstripout --verify --keep-id --extra-keys "metadata.papermill cell.metadata.papermill" $(NOTEBOOKS)
	$(BIN)/python -m pytest $(PARALLEL)

# What takes minutes by nature: kills, 10,000 damaged files, full-size models, more chains of notebooks.
test-long: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) -m "long and not official"

# Everything once more on Python 3.10, numpy 1.21 and Waymo's own package, and against that package.
test-official: $(OFFICIAL_STAMP)
	KDLIB_OFFICIAL_PYTHON="$(CURDIR)/$(OFFICIAL)/bin/python" $(OFFICIAL)/bin/python -m pytest $(PARALLEL) -m ''

lab: $(STAMP)
	cd notebooks && ../$(BIN)/jupyter lab $(LAB_ARGS)

# The stamp holds the folder it was made in: scripts in .venv/bin name their interpreter by its full path, so a checkout that was
# moved, like one whose interpreter is gone, gets a new .venv.
ifneq ($(shell cat $(STAMP) 2>/dev/null && $(BIN)/python -c '' 2>/dev/null || echo broken),$(CURDIR))
.PHONY: $(STAMP)
endif

# JupyterLab opens without its two questions: whether to build itself anew (for an extension of dash, which open3d brings and nobody
# here needs), and about news. A user's own settings come first.
LAB_CONFIG = .ci/labconfig

$(STAMP): pyproject.toml .ci/constraints.txt $(wildcard $(LAB_CONFIG)/*/*.json)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null || { \
	  echo "kdlib needs Python 3.10, 3.11 or 3.12 (open3d 0.19 has wheels for no newer one), but '$(PYTHON) --version' says:" \
	    "$$($(PYTHON) --version 2>&1 | head -n 1). Name another interpreter: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make environments, lacking 'venv' or 'ensurepip'. On Debian, Ubuntu: apt-get install python3-venv;" \
	    "or name another interpreter: make PYTHON=python3.12" >&2; exit 1; }
	@if [ -e $@ ] && [ "$$(cat $@)" != "$(CURDIR)" ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  echo "making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear $(VENV); fi
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c .ci/constraints.txt -e '.[cpu,dev,browser,export,tensorboard]'
	@mkdir -p $(VENV)/etc/jupyter && cp -r $(LAB_CONFIG) $(VENV)/etc/jupyter/
	@echo "$(CURDIR)" > $@

ifneq ($(shell cat $(OFFICIAL_STAMP) 2>/dev/null && $(OFFICIAL)/bin/python -c '' 2>/dev/null || echo broken),$(CURDIR))
.PHONY: $(OFFICIAL_STAMP)
endif

$(OFFICIAL_STAMP): environment.yml pyproject.toml .ci/official_requirements.py .ci/official-constraints.txt
	@[ -n "$(PYTHON310)" ] || { \
	  echo "Waymo's package runs on Python 3.10 only, and none was found. Name one: make test-official PYTHON310=/path/to/python3.10" >&2; \
	  exit 1; }
	@$(PYTHON310) -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 10))' 2>/dev/null || { \
	  echo "PYTHON310 must be a Python 3.10 with 'venv' and 'ensurepip', but '$(PYTHON310) --version' says:" \
	    "$$($(PYTHON310) --version 2>&1 | head -n 1)" >&2; exit 1; }
	@if [ -e $@ ] && [ "$$(cat $@)" != "$(CURDIR)" ] || ! $(OFFICIAL)/bin/python -m pip --version >/dev/null 2>&1; then \
	  echo "making $(OFFICIAL) with $$($(PYTHON310) --version)"; $(PYTHON310) -m venv --clear $(OFFICIAL); fi
	$(PYTHON310) .ci/official_requirements.py environment.yml > $(OFFICIAL)/requirements.txt
	$(OFFICIAL)/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c .ci/official-constraints.txt pip
	$(OFFICIAL)/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c .ci/official-constraints.txt \
	  -r $(OFFICIAL)/requirements.txt
	@echo "$(CURDIR)" > $@

clean:
	rm -rf $(VENV) $(OFFICIAL) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find kdlib tests notebooks -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
