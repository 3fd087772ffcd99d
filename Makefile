# Two commands are all a newcomer needs: `make demo` and `make test`. Both set up what they need in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check fmt bench lock clean
.DEFAULT_GOAL := demo

## demo: build a corpus, a tokenizer, shards, train a small GPT for two to three minutes, sample, evaluate, price
demo: .venv/base
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(MAKE) --no-print-directory -C examples/quickstart

## test: the whole suite
test: .venv/dev
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

## check: exactly what a change must pass before it lands
check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

fmt: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

## bench: measure speed against the peers (see tests/benchmarks/README.md)
bench: .venv/dev
	$(BIN)/python -m tests.benchmarks

## lock: write down the versions that are installed now
lock: .venv/dev
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' | grep -iv '^\(nvidia\|cuda\|triton\)' > requirements.lock

# --- setting up: pip and the standard library's venv, versions pinned by requirements.lock ---
.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("gpt needs Python 3.11 or newer; name one: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

.venv/base: .venv/bin/python pyproject.toml requirements.lock
	$(BIN)/pip install --disable-pip-version-check -q -c requirements.lock -e .
	@touch $@

.venv/dev: .venv/base
	$(BIN)/pip install --disable-pip-version-check -q -c requirements.lock -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv examples/*/out
