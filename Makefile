# The one entry point. `make` alone lists the targets.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready

# The tool is pinned here; what it installs is pinned by uv.lock.
UV_VERSION := 0.13.9
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
# Use the Python that is here: never fetch another, and never link into a cache that may vanish.
export UV_PYTHON_DOWNLOADS := never
export UV_PROJECT_ENVIRONMENT := .venv
export UV_LINK_MODE := copy
# Hundreds of processes start in the tests, and Dagster's libraries take seconds to compile: compile each once, also
# where the shell forbids Python to write bytecode.
export UV_COMPILE_BYTECODE := 1
export PYTHONDONTWRITEBYTECODE :=

# The exact libraries of Databricks Runtime 16.4; pandas 1.5.3 has wheels up to Python 3.11.
RUNTIME := .venv-runtime
RUNTIME_PYTHON ?= python3.11
RUNTIME_TESTS := pm_dagster_tests/runtime

# Other versions of databricks-sdk than the locked one, each with what it requires.
VERSIONS := .versions
VERSIONS_TESTS := pm_dagster_tests/versions
VERSIONS_LOCKS := $(wildcard $(VERSIONS_TESTS)/*.lock)

# The tests wait for servers half of their time, so that two workers for each core are done sooner than one.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(2 * (os.cpu_count() or 1))' 2>/dev/null || echo auto)

# Each marker that stands here has a target of its own.
UNMARKED := not browser and not bundle and not runtime and not versions and not chaos and not slow

# What builds the site of docs/.
DOCS := .venv-docs

# What the trials of `make chaos` found, from which the page is made.
PROOF := .proof

# For the time of a test only: the licence of the CLI and of this package is not open source.
BUNDLES := databricks-bundles==1.22.1

.PHONY: python-is-new-enough help setup demo dev test coverage test-slow test-browser test-bundle test-runtime test-versions chaos bench release-check docs audit check format lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

setup: $(STAMP)  ## install everything into .venv (quick when nothing changed)

$(STAMP): pyproject.toml uv.lock | python-is-new-enough $(if $(findstring .uv/,$(UV)),.uv/bin/uv)
	$(UV) sync --locked --all-extras --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')"
	@touch $@

.uv/bin/uv: | python-is-new-enough
	@$(PYTHON) -m venv .uv
	@.uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

# Written for any Python, so that an old one can still say what is wrong.
python-is-new-enough:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not there. Python 3.11 to 3.14 is needed." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 15) else \
	  "Python 3.11 to 3.14 is needed; $(PYTHON) is %d.%d. Try: make PYTHON=python3.12 setup" % v)'

demo: setup  ## a control table, a workspace and a dispatch on this machine, told step by step
	$(BIN)/pm sandbox demo

dev: setup  ## the sandbox and the Dagster UI, until Ctrl-C
	$(BIN)/pm sandbox up

test: setup  ## the tests, but for those that have a target of their own
	$(BIN)/python -m pytest -n $(WORKERS) -m "$(UNMARKED)"

coverage: setup  ## the same tests, measured; fails below the floor in pyproject.toml
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n $(WORKERS) -m "$(UNMARKED)"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

test-slow: setup  ## the tests that take longest: whole processes, a daemon, time-outs that must pass
	$(BIN)/python -m pytest -n $(WORKERS) -m "slow and not chaos"

test-browser: setup  ## the tests that drive a real browser
	$(BIN)/python -m pytest -m browser

test-bundle: setup  ## the tests that need the Databricks CLI on PATH
	@command -v databricks >/dev/null || { echo "The Databricks CLI is not on PATH. Install 1.3 or newer:" \
	  "https://docs.databricks.com/dev-tools/cli/install.html" >&2; exit 1; }
	$(UV) run --no-sync --with $(BUNDLES) python -m pytest -m bundle

test-runtime: setup $(RUNTIME)/.ready  ## the cluster's program under the cluster's own libraries, Spark included
	$(BIN)/python -m pytest -n auto -m runtime

$(RUNTIME)/.ready: $(RUNTIME_TESTS)/requirements.lock $(RUNTIME_TESTS)/place.py $(RUNTIME_TESTS)/jdbc_driver.py | $(STAMP)
	@command -v $(RUNTIME_PYTHON) >/dev/null || { echo "$(RUNTIME_PYTHON) is not there: the cluster's libraries need" \
	  "Python 3.11. Try: make RUNTIME_PYTHON=/path/to/python3.11 test-runtime" >&2; exit 1; }
	$(UV) venv --quiet --clear --python "$$($(RUNTIME_PYTHON) -c 'import sys; print(sys.executable)')" $(RUNTIME)
	$(UV) pip sync --quiet --require-hashes --python $(RUNTIME)/bin/python $<
	$(BIN)/python -m pm_dagster_tests.runtime.jdbc_driver
	@touch $@

test-versions: setup $(VERSIONS)/.ready  ## dispatches with databricks-sdk 0.30 to the newest
	$(BIN)/python -m pytest -n auto -m versions

$(VERSIONS)/.ready: $(VERSIONS_LOCKS) | $(STAMP)
	rm -rf $(VERSIONS)
	@for lock in $(VERSIONS_LOCKS); do $(UV) pip install --quiet --require-hashes --python $(BIN)/python \
	  --target "$(VERSIONS)/$$(basename "$$lock" .lock)" --requirement "$$lock" || exit 1; done
	@touch $@

chaos: setup  ## the long form of the proof; writes docs/proof.md
	rm -rf $(PROOF)
	$(BIN)/python -m pm_dagster_tests.chaos.stamp $(PROOF)
	PROOF_RECORDS=$(CURDIR)/$(PROOF) $(BIN)/python -m pytest -n auto -m chaos
	PROOF_RECORDS=$(CURDIR)/$(PROOF) $(BIN)/python -m pytest -n auto -k broken_variant pm_dagster_tests/model
	$(BIN)/python -m pm_dagster_tests.chaos.report $(PROOF)

bench: setup  ## measure how fast a dispatch is; CASES="limits mixed-*" measures only these
	@mkdir -p build
	@$(BIN)/python -m pm_dagster_tests.bench --json build/bench.json --plot build/bench.svg $(CASES)

release-check: setup  ## build the wheel, look at it, and do the demo from it in an empty environment
	$(BIN)/python -m pm_dagster_tests.release_check "$(abspath $(shell command -v $(UV)))"

docs: $(DOCS)/.ready  ## build the site of docs/ in build/docs; a warning is an error
	$(DOCS)/bin/python -m sphinx -E -W --keep-going -n -q -b html docs build/docs
	@echo "build/docs/index.html"

# An environment of its own: the site needs nothing of ours, and we nothing of the site's.
$(DOCS)/.ready: pyproject.toml uv.lock | $(STAMP)
	UV_PROJECT_ENVIRONMENT=$(DOCS) $(UV) sync --quiet --locked --only-group docs --python "$$($(BIN)/python -c 'import sys; print(sys.executable)')"
	@touch $@

audit: setup  ## known vulnerabilities of what is locked; asks api.osv.dev
	$(UV) audit --preview-features audit-command --locked $(if $(OSV_URL),--service-url $(OSV_URL))

check: setup  ## format, lint, types, import contracts; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## format, and fix what can be fixed safely
	$(BIN)/ruff check --fix-only --exit-zero .
	$(BIN)/ruff format .

lock:  ## resolve the dependencies anew within their bounds
	$(UV) lock --upgrade
	$(UV) pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 --custom-compile-command "make lock" \
	  -o $(RUNTIME_TESTS)/requirements.lock $(RUNTIME_TESTS)/requirements.in
	@for each in $(VERSIONS_LOCKS); do $(UV) pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 \
	  --custom-compile-command "make lock" -o "$$each" "$${each%.lock}.in" || exit 1; done

clean:  ## remove what the other targets made, the sandbox's data included
	@# Ends what still runs there first: a server must not lose its folder.
	@if [ -d .sandbox ] && [ -x $(BIN)/pm ]; then $(BIN)/pm sandbox reset; fi
	rm -rf .venv .venv-docs .venv-runtime .versions .pgbouncer .uv .sandbox .proof .databricks build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.*
	find pm_dagster pm_dagster_tests -name __pycache__ -prune -exec rm -rf {} +
