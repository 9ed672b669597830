PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# One environment for everything; versions are exactly those of constraints.txt.
INSTALLED := $(VENV)/.installed

.PHONY: install test coverage installs quick lint docs demo default-model through-plane-model results kernels vendor gpu-check soak bench bench-full clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt pip setuptools
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[cpu,train,export,trt-rtx,demo,dicom,mrd,cluster,bench,dev]'
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

# Two streams, a file in one of them; in their order, in which the files that take longest come early.
test: lint
	rm -f .coverage
	$(BIN)/python -m pytest $(COVER) $(BROWSER)
	$(BIN)/python -m pytest $(COVER) -n 2 --dist loadfile --no-loadscope-reorder --ignore $(BROWSER)

# The same, and which lines no test reaches. Counting them takes half as long again, and nothing depends on it.
coverage: COVER := --cov --cov-append --cov-report=term:skip-covered
coverage: test

# By itself: in a stream beside other tests Chromium has lost its renderer.
BROWSER := tests/runtime/view/test_page.py

# While you work: at most a minute and a half on two cores; no training, no server.
quick: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile $(QUICK)

QUICK := tests/test_architecture.py tests/test_docs.py tests/runtime/scan tests/runtime/pipeline tests/runtime/system \
	tests/runtime/run/test_bids.py tests/runtime/run/test_find.py tests/runtime/run/test_manifest.py \
	tests/runtime/mrd/test_messages.py tests/runtime/dicom/test_series.py \
	tests/trainer/nets tests/trainer/test_config.py tests/trainer/data

# The pages of docs/ as a site, in site/; a dead link is an error.
docs: install
	$(BIN)/mkdocs build --strict

# Every install that the README speaks of, in fresh environments: some minutes, mostly pip's. ONLY="base cpu" takes
# those rows of the matrix.
installs: install
	$(BIN)/python tests/installs.py $(ONLY)

demo: install
	$(BIN)/udean-demo

# The embedded model again: heads from label maps, a real head, training (half an hour of one core), export.
# LABELS: folder of the label maps. HEADS: the real T1. Where both are to be had: docs/default-model.md. RUN keeps all.
RUN ?= runs/default
default-model: install
	@test -n "$(LABELS)" -a -n "$(HEADS)" || { echo "make default-model LABELS=FOLDER HEADS=FILE: docs/default-model.md says where to get them."; exit 1; }
	$(BIN)/python -m udean.recipes.default_model prepare $(LABELS) $(HEADS) $(RUN)/hr
	$(BIN)/python -m udean.trainer.simulation.heads $(RUN)/hr --labels $(LABELS) --heads 20 --first 0 --spots 40000
	$(BIN)/python -m udean.trainer.simulation.heads $(RUN)/hr --labels $(LABELS) --heads 8 --first 20 --spots 40000 --spacing 1.5
	$(BIN)/python -m udean.trainer.simulation.heads $(RUN)/val --labels $(LABELS) --heads 2 --first 28
	$(BIN)/python -m udean.trainer.simulation.heads $(RUN)/dense --labels $(LABELS) --heads 8 --first 40 --spots 300000
	$(BIN)/python -m udean.trainer.simulation.heads $(RUN)/dense --labels $(LABELS) --heads 5 --first 48 --spots 300000 --spacing 1.5
	$(BIN)/python -m udean.trainer.simulation.heads $(RUN)/dense --labels $(LABELS) --heads 5 --first 53 --spots 300000
	cd $(RUN) && $(CURDIR)/$(BIN)/udean-train --preset compact --config $(CURDIR)/recipes/default_model.toml --out run
	cd $(RUN) && $(CURDIR)/$(BIN)/python -m udean.recipes.default_model widen wide
	$(BIN)/python -m udean.recipes.default_model ship $(RUN)/wide $(RUN)/run
	$(BIN)/python -m udean.trainer.simulation.heads $(RUN)/calibration --labels $(LABELS) --heads 6 --first 1000 --spacing 1.2
	cp $(RUN)/hr/real-1mm.nii.gz $(RUN)/calibration
	$(BIN)/python -m udean.recipes.error_map $(RUN)/calibration

# The embedded through-plane model again: heads from label maps, training (an hour of two cores), export. It goes on
# where it was cut off. LABELS: as above.
THROUGH_PLANE ?= runs/through-plane
through-plane-model: install
	@test -n "$(LABELS)" || { echo "make through-plane-model LABELS=FOLDER: docs/thick-slices.md says where to get them."; exit 1; }
	$(BIN)/python -m udean.trainer.simulation.heads $(THROUGH_PLANE)/hr --labels $(LABELS) --heads 48 --first 0
	$(BIN)/python -m udean.trainer.through_plane $(THROUGH_PLANE) $(THROUGH_PLANE)/hr
	$(BIN)/python -m udean.recipes.through_plane_model $(THROUGH_PLANE)

# RESULTS.md and the figures in README.md and docs/, from the JSON in benchmarks/results/.
results: install
	$(BIN)/python -m udean.benchmarks.results

# The kernels, which the driver compiles for its card. They use nothing newer than PTX 6.4, so drivers since
# CUDA 10.1 take them; nvcc would demand its own release. A test holds them to their source.
kernels: runtime/cuda/kernels.ptx.gz

runtime/cuda/kernels.ptx.gz: runtime/cuda/kernels.cu
	nvcc --ptx -arch=compute_75 -o $(@:.gz=) $<
	sed -i 's/^\.version .*/.version 6.4/' $(@:.gz=)
	gzip -9nf $(@:.gz=)

# The page's viewer from the npm registry, and the licences of what is in it. Its version: runtime/view/vendor.
vendor:
	npm ci --prefix runtime/view/vendor --omit=optional --ignore-scripts --no-audit --no-fund
	node runtime/view/vendor/vendor.mjs

# All that needs a GPU, in one call of at most 9 minutes (--minutes): a limit for each step, and results after each, with the
# device's name. It needs no installation: for any Python that has what tests/gpu_check.py names.
# GPU_CHECK="--device cpu --minutes 60 --out bench" rehearses it on a processor; --scans FOLDER trains at the end.
GPU_PYTHON ?= python3
gpu-check:
	$(GPU_PYTHON) tests/gpu_check.py $(GPU_CHECK)

# DICOM node and MRD server while a lot goes wrong for long: most of an hour. SOAK="--messages 0 --studies 20" makes it less.
soak: install
	$(BIN)/python -m tests.soak.soak $(SOAK)

# Every engine against the PyTorch path, with the figures in bench/: minutes on two cores.
bench: install
	$(BIN)/udean-bench --quick --json bench/
	$(BIN)/udean-bench --quick --model paper --json bench/

# The same at size, compiled PyTorch too: half an hour, results kept.
bench-full: install
	$(BIN)/udean-bench --shape 160,160,33 --json benchmarks/results/
	$(BIN)/udean-bench --model paper --shape 160,160,17 --json benchmarks/results/

clean:
	rm -rf $(VENV) demo bench build site *.egg-info
