# make demo | test | lab | clean. Each makes .venv by itself when it is missing or older than what it is made from.
#   PYTHON=python3.12            another interpreter (3.10 to 3.12)
#   PIP_ARGS='--index-url ...'   anything for pip, say an index of CPU-only torch wheels: without one, PyPI's torch brings CUDA

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NOTEBOOKS = $(wildcard notebooks/*.ipynb)

.DELETE_ON_ERROR:
.PHONY: demo test lab clean

demo: $(STAMP)
	$(BIN)/python -m kdlib run demo

test: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/nbstripout --verify --keep-id --extra-keys "metadata.papermill cell.metadata.papermill" $(NOTEBOOKS)
	$(BIN)/python -m pytest

lab: $(STAMP)
	cd notebooks && ../$(BIN)/jupyter lab

# The stamp holds the folder it was made in: scripts in .venv/bin name their interpreter by its full path, so a checkout that was
# moved, like one whose interpreter is gone, gets a new .venv.
ifneq ($(shell cat $(STAMP) 2>/dev/null && $(BIN)/python -c '' 2>/dev/null || echo broken),$(CURDIR))
.PHONY: $(STAMP)
endif

$(STAMP): pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null || { \
	  echo "kdlib needs Python 3.10, 3.11 or 3.12 (open3d 0.19 has wheels for no newer one), but '$(PYTHON) --version' says:" \
	    "$$($(PYTHON) --version 2>&1 | head -n 1). Name another interpreter: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make environments, lacking 'venv' or 'ensurepip'. On Debian, Ubuntu: apt-get install python3-venv;" \
	    "or name another interpreter: make PYTHON=python3.12" >&2; exit 1; }
	@if [ -e $@ ] && [ "$$(cat $@)" != "$(CURDIR)" ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  echo "making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear $(VENV); fi
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c .ci/constraints.txt -e '.[cpu,dev]'
	@echo "$(CURDIR)" > $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find kdlib tests notebooks -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
