# Two commands: `make repro` and `make test`. Both set up what they need first.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export TOKENIZERS_PARALLELISM := true

.PHONY: setup repro sweeps test lint ui profile clean

repro: $(READY)  ## rebuild the whole pipeline (only what has changed)
	dvc repro

sweeps: $(READY)  ## what the default run leaves out (sweeps/dvc.yaml)
	dvc repro sweeps/dvc.yaml

test: $(READY) lint  ## lint, types, tests
	env -u DVC_ROOT -u DVC_EXP_NAME -u DVC_STAGE pytest

lint: $(READY)
	ruff check .
	ruff format --check .
	mypy

ui: $(READY)  ## browse the runs at http://127.0.0.1:5000
	dlm-ui

profile: $(READY)  ## make profile NAME=alpaca-cpu: write params.yaml from a profile and show what changed
	python -m dlm.profiles $(NAME)

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; run make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

clean:  ## remove what the pipeline built (the DVC cache stays)
	rm -rf build .cache
