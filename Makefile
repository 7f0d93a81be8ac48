# One file of commands; `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-ray test-slow torture fuzz bench feast check format clean

help: ## list the commands
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv and install everything at pinned versions (about three minutes, then nothing to do)

$(STAMP): pyproject.toml constraints.txt Makefile
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, {sys.executable} is {v[0]}.{v[1]}; name another: make PYTHON=python3.12 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[query,search,probe,dbn,train,serve,notebook,mirdata,dev]'
	touch $(STAMP)

demo: setup ## embed a dozen real clips with a small model, then query the store
	$(BIN)/python demo/run_demo.py

test: setup ## run the tests but for those of Ray, of a browser, and the longest (five minutes on two cores)
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile

test-ray: setup ## run those of Ray that are not long (ten minutes)
	$(BIN)/python -m pytest -m 'ray and not slow'

test-slow: setup ## run the others: a browser, runs broken on purpose, clusters of several nodes, S3 with faults (most of an hour)
	$(BIN)/python -m pytest -m slow

torture: setup ## break runs at twenty random moments, and compare with an undisturbed one (five to fifteen minutes)
	TORTURE_KILLS=20 $(BIN)/python -m pytest -s -m 'slow or ray' tests/integration/test_torture.py

fuzz: setup ## damage 10,000 sound files and hold what is decoded against FFmpeg (an hour; FUZZ="--files 500 --seed 3")
	$(BIN)/python -m tests.fuzz $(FUZZ)

bench: setup ## stages, whole runs, the model, memory, precision, and how the store grows (REFERENCE=checkout of musicfm)
	$(BIN)/python -m benchmarks $(if $(REFERENCE),--reference $(REFERENCE))
	$(BIN)/python -m benchmarks.ledger
	$(BIN)/python -m benchmarks.point_read

feast: setup ## serve the table of tracks through Feast, in an environment of its own, and test it
	test -x .venv-feast/bin/python || $(PYTHON) -m venv .venv-feast
	.venv-feast/bin/python -m pip install --quiet --disable-pip-version-check 'feast==0.67.*' 'deltalake>=1.6.6,<2'
	$(BIN)/python -m pytest tests/examples/test_feast.py

check: setup ## lint, format check, strict types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## sort imports and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and what the demo wrote
	rm -rf $(VENV) demo/store
