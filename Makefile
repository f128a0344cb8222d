# The one place that spells commands. Every target makes what it needs in .venv, once:
# a stamp file is newer than pyproject.toml and constraints.txt, or the packages are installed again.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Python compiles what is imported, when it is; to do so for all that is installed takes half a minute.
# It keeps that in .venv, also where the environment forbids it beside the sources: tests start many
# processes, and in each of them importing torch takes a second, or three where all is compiled anew.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(abspath $(VENV))/pycache
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-compile --constraint constraints.txt
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint format docs bench rl clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/'

demo: $(VENV)/.lab  ## compare the article's LSTMs with torch.nn.LSTM; writes runs/compare/report.html
	$(BIN)/flexrnn compare $(ARGS)

test: $(VENV)/.dev  ## run every test, docstring example and code block of the docs
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.dev  ## format check, lint, types, layer rule
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## rewrite the files as `make lint` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev  ## build the site into site/; a broken link fails
	$(BIN)/python docs/figures.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.lab  ## measure layers beside torch's on this machine; writes runs/bench/
	$(BIN)/flexrnn bench $(ARGS)

rl: $(VENV)/.rl  ## train a recurrent actor-critic; writes runs/actor-critic/report.html
	$(BIN)/python examples/recurrent_actor_critic.py $(ARGS)

clean:  ## remove everything that make made
	rm -rf $(VENV) site runs docs/figures

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.lab: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing flexrnn[lab] into $(VENV) (torch is large; once only) ..."
	$(PIP) --editable '.[lab]'
	@touch $@

$(VENV)/.rl: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing flexrnn[lab,rl] into $(VENV) (torch is large; once only) ..."
	$(PIP) --editable '.[lab,rl]'
	@touch $@ $(VENV)/.lab

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing flexrnn[dev] into $(VENV) (torch is large; once only) ..."
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.lab $(VENV)/.rl
