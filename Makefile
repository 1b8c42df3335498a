# `make demo` and `make test` are all a newcomer needs: each installs first if needed, into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test lint bench

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "expected Python 3.11 to 3.13, got $$($(PYTHON) --version): name another, as in: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	@n=0; out=demo; while [ -e $$out ]; do n=$$((n + 1)); out=demo-$$n; done; $(BIN)/compress-ssl demo --out $$out

test: install
	$(BIN)/python -m pytest -n 2

lint: install
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

bench: install
	@for file in objective demo_seeds loader step two_processes; do echo "== $$file"; $(BIN)/python benchmarks/$$file.py || exit 1; done
