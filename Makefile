# Every target installs into .venv when it must. A stamp is touched only after its step succeeded, so an interrupted install is taken up again.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
OUT    ?= audit_out
THREADS ?= 2
export OMP_NUM_THREADS ?= $(THREADS)

.PHONY: audit test test-slow lint types format bench clean install browser help

help:            ## this list
	@grep -E '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/'

audit: $(VENV)/.installed   ## audit the embedded German credit model and print where the report is
	$(BIN)/lde audit german_credit --out $(OUT)

test: $(VENV)/.installed-dev browser   ## the test suite (without the slow campaigns)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

test-slow: $(VENV)/.installed-dev browser   ## the long campaigns
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile -m slow

lint: $(VENV)/.installed-dev   ## ruff: lint and format check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev   ## ruff: rewrite in house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-dev   ## mypy, strict on the three packages
	$(BIN)/mypy

bench: $(VENV)/.installed   ## every benchmark, side by side with its rivals
	$(BIN)/lde bench all --out bench_out

install: $(VENV)/.installed   ## only install

clean:           ## remove what was built here
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis $(OUT) bench_out

$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip
	$(PIP) install --quiet -r constraints.txt
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PIP) install --quiet -c constraints.txt -e .
	$(PIP) install --quiet --no-deps auto_LiRPA==0.3
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet -c constraints.txt -e ".[dev]"
	touch $@

# The report is looked at in a real browser. Where none is found and none can be installed, those tests say so and are skipped.
browser:
	@command -v chromium >/dev/null 2>&1 || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 && \
	  { apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium chromium-driver; } >/dev/null 2>&1; } || \
	  echo "no chromium on this machine: the browser tests will be skipped"
