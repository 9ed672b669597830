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
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[cpu,dicom,train,demo,dev]'
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

test: lint
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered

demo: install
	$(BIN)/udean-demo

# The embedded model again from nothing: cohort, LR scans, an hour of training, export. RUN keeps it all.
RUN ?= runs/default
default-model: install
	$(BIN)/python -m udean.trainer.synthetic $(RUN)/source --heads 20 --first 0
	$(BIN)/python -m udean.trainer.synthetic $(RUN)/target-hr --heads 20 --first 20
	$(BIN)/python -m udean.trainer.synthetic $(RUN)/validation-hr --heads 4 --first 40
	$(BIN)/udean-simulate $(RUN)/target-hr -o $(RUN)/target --scale 2x2x2
	$(BIN)/udean-simulate $(RUN)/validation-hr -o $(RUN)/validation --scale 2x2x2
	cd $(RUN) && OMP_NUM_THREADS=1 $(CURDIR)/$(BIN)/udean-train --preset compact --config $(CURDIR)/benchmarks/default_model.toml --out run
	$(BIN)/udean-export $(RUN)/run/best.pt -o $(RUN)
	$(BIN)/python -m udean.benchmarks.default_model $(RUN)/run $(RUN)/best.onnx

clean:
	rm -rf $(VENV) demo build *.egg-info
