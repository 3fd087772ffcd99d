# Included by every example, so that each runs as it is: `gpt` and `python` are those of the
# repository's .venv once `make` there has finished it, and otherwise those that are installed.
ifneq ($(wildcard ../../.venv/ready.json),)
  python := python
  export PATH := $(abspath ../../.venv/bin):$(PATH)
  # A path that is not make's own default keeps make 3.81 from looking commands up in the old PATH.
  SHELL := /bin/../bin/sh
else ifneq ($(shell command -v gpt),)
  # the Python that gpt itself runs in, from the first line of its script
  python := $(filter %python %python3,$(shell sed -n '1s/^#!//p' "$$(command -v gpt)"))
else ifeq ($(filter clean,$(MAKECMDGOALS))$(findstring n,$(firstword $(filter-out --%,-$(MAKEFLAGS)))),)
  $(error gpt is not installed: type `make setup` in $(abspath ../..), or see Install in its README.md)
endif
python := $(or $(python),python3)
