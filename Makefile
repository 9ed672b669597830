PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# One environment for everything; versions are exactly those of constraints.txt.
INSTALLED := $(VENV)/.installed

.PHONY: install test lint demo default-model clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt pip setuptools
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[cpu,train,demo,dev]'
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

test: lint
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered

demo: install
	$(BIN)/udean-demo

clean:
	rm -rf $(VENV) demo build *.egg-info
