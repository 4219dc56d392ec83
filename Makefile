# Two commands do everything on a fresh clone: make quickstart, make test.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# Two test processes on two cores, one thread each.
# Neighbours share fixtures: a process takes tests from the other's end.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist=worksteal
PAGES := README.md docs/*.md
COG := $(BIN)/cog -I docs -I . --verbosity=1

.PHONY: quickstart study study-quick figures bench bench-promote gpu tables \
  check-tables docs wheel test test-slow test-faults mutants \
  test-algoperf lint check format clean

# Three runs for each of two seeds, two at a time: a few minutes. The folder is
# ignored; results/quickstart/ has the committed runs.
quickstart: $(INSTALLED)
	$(BIN)/python -m lab.studies quickstart \
	  --output_dir=results/quickstart/local $(ARGS)

# Every claim of the papers (338 runs, hours; ARGS=--dry_run counts them), or
# with STUDY=steps (45 runs, an hour on two quiet cores), auto (180 runs, hours), ...
# another study. Started again, a study makes the runs that are missing;
# ARGS=--report_only reports on the finished ones.
STUDY ?= claims
study: $(INSTALLED)
	$(BIN)/python -m lab.studies $(STUDY) $(ARGS)

# All claims on short runs of two workloads, into the ignored
# results/study/quick/: a test of the study in a quarter of an hour.
study-quick: $(INSTALLED)
	$(BIN)/python -m lab.studies claims --quick $(ARGS)

# Draws the figures in results/ from the committed rows.
figures: $(INSTALLED)
	for study in steps horizon gains auto quickstart \
	  $(if $(wildcard results/primal/primal.json),primal) \
	  $(if $(wildcard results/primal/robustness.json),robustness) \
	  $(if $(wildcard results/study/claims.json),claims); do \
	  $(BIN)/python -m lab.studies $$study --report_only > /dev/null || exit; \
	done

# Measures this machine, into the ignored results/bench/local/.
bench: $(INSTALLED)
	$(BIN)/python -m pip install -q --disable-pip-version-check \
	  -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.time_breakdown

# Makes this machine's measurements the committed ones.
bench-promote: $(INSTALLED)
	$(BIN)/python -m benchmarks.promote
	$(MAKE) tables

# Needs a GPU; nine minutes at most. PYTHON names an interpreter with torch, of
# a wheel or of the system. Writes results/gpu/.
gpu:
	$(PYTHON) -m benchmarks.gpu $(ARGS)

# Fills the tables of README.md and docs/ from results/ and the configuration.
tables: $(INSTALLED)
	$(COG) -r $(PAGES)

check-tables: $(INSTALLED)
	$(COG) --check --check-fail-msg='Run "make tables".' $(PAGES)

# Builds site/; a warning, such as a broken link, is an error.
docs: $(INSTALLED)
	$(BIN)/python -m pip install -q --disable-pip-version-check \
	  -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# dist/ gets a wheel that holds weightavg alone.
wheel: $(INSTALLED)
	$(BIN)/python -m build --wheel

test: $(INSTALLED)
	$(PYTEST) -m 'not slow and not algoperf and not faults'

test-slow: $(INSTALLED)
	$(PYTEST) -m 'slow and not algoperf'

# Half an hour. Counts in results/faults/; started again at the same code, it
# makes the tests that are missing.
test-faults: $(INSTALLED)
	WEIGHTAVG_FAULTS=results/faults $(PYTEST) tests/faults $(ARGS)

# Half an hour on a quiet core. Counts in results/faults/; interrupted, it
# goes on with the mutants that are left. `mutmut show NAME` prints a mutant.
mutants: $(INSTALLED)
	$(BIN)/python -m pip install -q --disable-pip-version-check \
	  -c constraints.txt -e '.[mutation]'
	$(BIN)/python tests/support/fault_mutants.py

# Hours. Needs an environment into which AlgoPerf is installed: PYTHON names it.
# Interrupted, it goes on with the tests that have not passed at this code.
test-algoperf:
	CUDA_VISIBLE_DEVICES= WEIGHTAVG_REQUIRE_ALGOPERF=1 OMP_NUM_THREADS=1 \
	  WEIGHTAVG_ALGOPERF_MATRIX=results/algoperf/matrix.json \
	  $(PYTHON) -m pytest -m algoperf

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

check: lint check-tables test

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV)

# timm without torchvision, whose wheels do not load beside a CPU build of torch:
# benchmarks.timm_ema reads the one file of it that is compared with.
$(INSTALLED): constraints.txt setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "Python %d.%d found. Must be 3.11 or newer: make PYTHON=..." \
	  % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check \
	  -c constraints.txt -e '.[test]'
	$(BIN)/python -m pip install -q --disable-pip-version-check \
	  -c constraints.txt --no-deps timm
	touch $@
