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
	$(BIN)/nbstripout --verify --extra-keys "metadata.papermill cell.metadata.papermill" $(NOTEBOOKS)
	$(BIN)/python -m pytest

lab: $(STAMP)
	cd notebooks && ../$(BIN)/jupyter lab

# An interpreter that moved or was removed leaves a .venv that cannot start: such a one is made anew.
$(STAMP): pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || { \
	  echo "kdlib needs Python 3.10, 3.11 or 3.12 (open3d has no wheels for others); '$(PYTHON)' is" \
	    "$$($(PYTHON) --version 2>&1 || true). Name another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make environments: it lacks 'venv' or 'ensurepip' (Debian, Ubuntu: apt-get install python3-venv," \
	    "or name another interpreter: make PYTHON=...)" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c .ci/constraints.txt -e '.[cpu,dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find kdlib tests notebooks -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
