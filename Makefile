# Works with GNU Make 3.81, the one that macOS ships. Needs only a python3 (3.11-3.13) to start.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo lab test lint bench clean venv-demo venv-dev

PY := .venv/bin/python
PYTEST := $(PY) -m pytest

# pyright's wrapper asks a registry for a newer version at every start, unless told not to.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

help: ## show this list
	@echo "macluster: turn the Macs on a desk into one notebook"
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | \
	  awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'
	@echo
	@echo "The first run makes .venv in this folder (a few minutes); later runs start at once."

demo: venv-demo ## run the quickstart notebook here and save what it shows in build/demo
	@$(PY) scripts/demo.py

lab: venv-demo ## open the notebooks in JupyterLab (more options: make lab ARGS="--port=9999")
	@PATH="$(CURDIR)/.venv/bin:$$PATH" $(PY) -m jupyterlab --ServerApp.root_dir=notebooks $(ARGS)

# The server tests (an event loop of their own) and the browser tests (Playwright's loop) can not
# share one process. The browser tests come last: they stand on all the others.
test: lint ## lint, then every test (one test: .venv/bin/python -m pytest -k NAME)
	@$(PYTEST) tests/unit -n auto --dist loadgroup
	@$(PYTEST) tests/cluster
	@if [ -d tests/server ]; then $(PYTEST) tests/server -p pytest_jupyter.jupyter_server; fi
	@if [ -d tests/ui ]; then $(PYTEST) tests/ui; fi

lint: venv-dev ## ruff, mypy --strict and pyright
	@echo "ruff check"; $(PY) -m ruff check --quiet .
	@echo "ruff format --check"; $(PY) -m ruff format --check --quiet . || \
	  { echo "To put this right: $(PY) -m ruff format ."; exit 1; }
	@echo "mypy"; $(PY) -m mypy -p macluster
	@echo "pyright"; $(PY) -m pyright

bench: venv-dev ## run every benchmark in bench/, one after another (half an hour)
	@for f in bench/[!_]*.py; do \
	  if [ -e "$$f" ]; then echo "== $$f"; $(PY) "$$f" || exit 1; else echo "bench/ has none yet"; fi; \
	done

clean: ## remove .venv and everything else that make and the tools made
	rm -rf .venv build dist .cache .mypy_cache .pytest_cache .ruff_cache test-results .coverage
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

venv-demo:
	@sh scripts/bootstrap.sh demo

venv-dev:
	@sh scripts/bootstrap.sh dev
