# make search [ARGS="--seed 1"]   install what running needs, then search for an architecture
# make lab                        install what developing needs, then open the notebooks in JupyterLab
# make test                       install what developing needs, then run every test
# make readme                     write README.md from nbs/index.ipynb
# make hooks                      let git check notebooks before each commit (CONTRIBUTING.md)
# make docs                       the documentation site as pages to look at, in _docs/
# make gpu [PIECE=600]            on a GPU: its tests, PIECE seconds of each large recipe (again: goes on), nbs/benchmarks/gpu.ipynb
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV   ?= .venv
BIN    := $(abspath $(VENV))/bin
# What is to be installed, by content: `nbdev-export` touches pyproject.toml, so times say nothing.
NEEDS  := $(shell cat settings.ini setup.py pyproject.toml | cksum | tr -d ' ')
RUN    := $(VENV)/.run-$(NEEDS)
DEV    := $(VENV)/.dev-$(NEEDS)
DOCS   := $(VENV)/.docs-$(NEEDS)
export PATH := $(BIN):$(PATH)

.PHONY: search lab test gpu readme docs dev hooks
search: $(RUN)
	$(BIN)/enas-search $(ARGS)

# Of a notebook that is not trusted, JupyterLab shows no widget and no SVG.
lab: $(DEV)
	$(BIN)/jupyter trust nbs/*.ipynb nbs/*/*.ipynb > /dev/null
	$(BIN)/jupyter lab $(ARGS) nbs/00_enas.ipynb

test: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/nbdev-test
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --dist loadfile

# DEVICE=cpu with small RECIPES tries it without a GPU. A run that is stopped is no failure.
DEVICE  ?= cuda
RECIPES ?= cifar10-micro cifar10-macro ptb-lm
PIECE   ?= 600
gpu: $(DEV)
	ENAS_NB_DEVICE=$(DEVICE) $(BIN)/pytest -q tests/test_device.py tests/test_gpu_ready.py
	for o in $(RECIPES); do \
	  if [ -e runs/gpu/$$o ]; then ARGS="--resume runs/gpu/$$o"; else ARGS="$$o --out runs/gpu/$$o --device $(DEVICE)"; fi; \
	  timeout -s INT $(PIECE) $(BIN)/enas-search $$ARGS || [ $$? = 124 ] || exit 1; done
	ENAS_NB_DEVICE=$(DEVICE) $(BIN)/jupyter execute --inplace --timeout=3600 nbs/benchmarks/gpu.ipynb

# Links of a notebook are relative to nbs/, those of README.md are not.
readme: $(DEV)
	$(BIN)/jupyter nbconvert --to markdown --stdout --RegexRemovePreprocessor.patterns='^#\|\s*hide' nbs/index.ipynb > $(VENV)/readme.md
	sed -E 's#\]\(([a-z0-9_/-]+\.(ipynb|svg))#](nbs/\1#g' $(VENV)/readme.md > README.md

# Quarto publishes the site (.github/workflows/deploy.yaml). Here smalldocs renders what nbdev processed. The command
# `nbdev-proc-nbs` does the same, but would install Quarto first, as root.
docs: $(DOCS)
	$(BIN)/python -c "from nbdev.serve import proc_nbs; __name__=='__main__' and proc_nbs()"
	$(BIN)/smalldocs render --quiet _proc > _proc/.log 2>&1 || (cat _proc/.log && false) # it warns of what only Quarto reads
	rm -rf _docs && mv _proc/_docs _docs
	@echo "The first page is _docs/index.html"

dev: $(DEV)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(RUN): | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e .
	rm -f $(VENV)/.run-* $(VENV)/.dev-* $(VENV)/.docs-* && touch $@

$(DEV): | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e '.[dev]'
	rm -f $(VENV)/.run-* $(VENV)/.dev-* $(VENV)/.docs-* && touch $(RUN) $@

$(DOCS): $(DEV)
	$(BIN)/python -m pip install -q -e '.[docs]'
	touch $@

hooks: $(DEV)
	git config core.hooksPath .githooks
	@echo 'git checks each commit now. To stop: git config --unset core.hooksPath'
