# make search [ARGS="--seed 1"]   install what running needs, then search for an architecture
# make test                       install what developing needs, then run every test
# make readme                     write README.md from nbs/index.ipynb
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV   ?= .venv
BIN    := $(abspath $(VENV))/bin
NEEDS  := settings.ini setup.py pyproject.toml
export PATH := $(BIN):$(PATH)

.PHONY: search test readme dev
search: $(VENV)/.run
	$(BIN)/enas-search $(ARGS)

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/nbdev-test
	OMP_NUM_THREADS=1 $(BIN)/pytest -q

readme: $(VENV)/.dev   # links of a notebook are relative to nbs/
	$(BIN)/jupyter nbconvert --to markdown --stdout --RegexRemovePreprocessor.patterns='^#\|\s*hide' nbs/index.ipynb > $(VENV)/readme.md
	sed -E 's#\]\(([a-z0-9_/]+\.ipynb)#](nbs/\1#g' $(VENV)/readme.md > README.md

dev: $(VENV)/.dev

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(NEEDS) | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e .
	touch $@

$(VENV)/.dev: $(NEEDS) | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $(VENV)/.run $@
