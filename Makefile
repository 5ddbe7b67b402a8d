# `make test-fast` (two minutes), `make test` (ten) and `make demo`: each makes .venv on first use; later runs install
# nothing unless the versions change.
# Another Python: `make test PYTHON=python3.12`. Without a GPU, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# in the environment spares the CUDA libraries (3 GB).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two processes of one thread each, one test file in each at a time, in the order of tests/conftest.py.
PYTEST_ARGS ?= --numprocesses 2 --dist loadfile --no-loadscope-reorder
# --no-compile: Python compiles the few modules it uses at their first import; all of torch and transformers
# would take most of a minute.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt
SOURCES := mergekit_mm tests examples hatch_build.py

export HF_HUB_OFFLINE := 1
export OMP_WAIT_POLICY := PASSIVE
export TOKENIZERS_PARALLELISM := false
# What --no-compile leaves out is compiled once, not at every start of Python: some ten seconds of torch and transformers.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-fast lint browser evidence-check soak dist clean

demo: $(VENV)/.demo
	$(BIN)/python -m examples.easy_vqa.run
	$(BIN)/python -m examples.omni.run --methods optmerge_modality --count 150

test: lint browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

# Something of every room of the package, in two minutes on two cores: what to run first and often.
test-fast: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

browser:
	@.ci/browser

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v < (3, 14) or sys.exit(f"Python 3.10 to 3.13 is needed, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.11")'
	@echo "[1/3] making the environment $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "[2/3] installing torch and torchvision (the largest part: some minutes)"
	@$(PIP) torch torchvision
	@echo "[3/3] installing mergekit-mm[$*] and what it needs (a minute or two)"
	@$(PIP) --editable '.[$*]'
	@touch $@

# By hand, before a release: the quick variant of examples/minibench anew, compared with its committed results.
EVIDENCE := out/evidence-check
COMMITTED := examples/minibench/results/quick
evidence-check: $(VENV)/.test
	@test -f $(COMMITTED)/results.json || { echo "$(COMMITTED) has no results.json: nothing to compare with" >&2; exit 1; }
	rm -rf $(EVIDENCE)
	$(BIN)/python -m examples.minibench --quick --out $(EVIDENCE)
	$(BIN)/python -m examples.minibench.evidence.check $(EVIDENCE)/report-quick $(COMMITTED)

# Merges that are killed at fifty random moments, over nothing and over an earlier output, drawn anew each time; and ten
# thousand configs.
soak: $(VENV)/.test
	MERGEKIT_MM_SOAK=$${MERGEKIT_MM_SOAK:-50} MERGEKIT_MM_SOAK_SEED=$${MERGEKIT_MM_SOAK_SEED:-$$(date +%s)} \
	MERGEKIT_MM_CONFIGS=$${MERGEKIT_MM_CONFIGS:-10000} \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) tests/execution/test_soak.py tests/plan/test_any_config.py

# A release, see docs/releasing.md. OWNER stands for the repository's address until that is known.
dist: $(VENV)/.test
	@! grep -rn --exclude releasing.md github.com/OWNER README.md CONTRIBUTING.md pyproject.toml docs || { echo "put the repository's owner in the place of OWNER first: docs/releasing.md" >&2; exit 1; }
	$(PIP) build twine
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf $(VENV)
