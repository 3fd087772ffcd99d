# Included by every example, so that each runs without activation: `gpt` and `python` come from the
# repository's .venv if `make` has finished it, and otherwise from the installed package.
ifneq ($(wildcard ../../.venv/ready.json),)
  python := python
  export PATH := $(abspath ../../.venv/bin):$(PATH)
  # A shell other than make's default keeps make 3.81 from looking up commands in the old PATH.
  SHELL := /bin/../bin/sh
else ifneq ($(shell command -v gpt),)
  # the Python that runs gpt, from the first line of its script
  python := $(filter %python %python3,$(shell sed -n '1s/^#!//p' "$$(command -v gpt)"))
else ifeq ($(filter clean,$(MAKECMDGOALS))$(findstring n,$(firstword $(filter-out --%,-$(MAKEFLAGS)))),)
  $(error gpt is not installed: run `make setup` in $(abspath ../..), or see "Install" in its README.md)
endif
python := $(or $(python),python3)

# Recipe: download the target from the URL $(1); $(2) says how to do without.
define download
	@mkdir -p $(@D)
	$(python) -c "from urllib.request import urlretrieve; urlretrieve('$(1)', '$@')" 2> /dev/null || { \
	  echo "$(1) could not be downloaded: $(2)" >&2; exit 1; }
endef

# Andrej Karpathy's tiny Shakespeare, 1.1 MB
SHAKESPEARE := https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt
