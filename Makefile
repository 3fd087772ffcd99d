# Start with `make demo` or `make test`; both install what they need in .venv.
BIN := .venv/bin

# The first Python that is new enough; choose another with make PYTHON=python3.12
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
ifeq ($(origin PYTHON),undefined)
  PYTHON := $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
    $$python -c '$(NEW_ENOUGH)' 2> /dev/null && echo $$python && exit; done; echo python3)
endif

.PHONY: demo test check help fmt bench docs man lock clean setup setup-dev
.DEFAULT_GOAL := demo
.NOTPARALLEL:

# Tests start gpt hundreds of times: without bytecode each start compiles its modules anew.
unexport PYTHONDONTWRITEBYTECODE

## demo: build a corpus, a tokenizer and shards; train a small GPT for a few minutes; sample from
## it, evaluate it and estimate its cost
demo: setup
	@$(MAKE) --no-print-directory -C examples/quickstart FROM="$(or $(PWD),$(CURDIR))"

## test: run the whole test suite
test: setup-dev
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

## check: run everything that a change must pass before it is merged
check: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

## help: list the targets
help:
	@sed -n 's/^## //p' Makefile

fmt: setup-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

## bench: compare speed with other implementations (see tests/benchmarks/README.md)
bench: setup-dev
	$(BIN)/python -m tests.benchmarks all

## docs: build the documentation as a website that opens from disk
docs: setup
	@$(BIN)/python -c "import material" 2> /dev/null || { \
	  echo "installing mkdocs-material, a download of 25 MB"; \
	  $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[docs]'; }
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict -f examples/docs/mkdocs.yml
	@echo "open examples/docs/out/site/index.html"

## lock: record the installed versions in requirements.lock
lock: setup-dev
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' \
	  | grep -iv '^\(nvidia\|cuda\|triton\)' > requirements.lock

## man: write manual pages to build/man; show one with `man build/man/gpt-train.1`
man: setup
	@$(BIN)/python -c "from pathlib import Path; from gptcli.cli.help_panels import write_man_pages; \
	  print(*write_man_pages(Path('build/man')), sep='\n')"

## setup, setup-dev: only make .venv, with the versions of requirements.lock (see bootstrap.py)
setup: EXTRA := base
setup-dev: EXTRA := dev
setup setup-dev:
	@command -v $(PYTHON) > /dev/null || { \
	  echo "There is no $(PYTHON): install Python 3.11 or newer, or name it: make PYTHON=python3.12" \
	  >&2; exit 1; }
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { \
	  echo "gpt needs Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) bootstrap.py $(EXTRA) $(if $(filter command,$(origin PYTHON)),--this-python)

clean:
	rm -rf .venv examples/*/out
