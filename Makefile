# Two commands matter: `make demo` and `make test`.  Both set up a virtual environment in .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.setup-done

.PHONY: demo test check setup clean bench

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(wildcard edge/inspection/kernels/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed (PYTHON=python3.x make …)"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "the venv module is missing: apt install python3-venv"; exit 2; }
	@command -v c++ >/dev/null || { echo "a C++ compiler is missing: apt install g++"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "== installing the build tools, then the project with its training and test extras (a few minutes the first time)"
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt "scikit-build-core>=0.10" cmake ninja
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/python deploy/demo.py

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python tests/benchmarks/bench_station.py

clean:
	rm -rf build dist $(VENV) .pytest_cache .mypy_cache .ruff_cache
