# `make demo` and `make test` work as the only command on a machine with Python >= 3.10, git and make.
# Everything they install lies in .venv/ and, where the machine has no uv, in .uv/; `make clean` removes both.

PYTHON ?= python3
BIN := .venv/bin
# Two processes, each file of tests in one of them. One that dies ends the run and is named: were it replaced, xdist would
# wait for ever for the rest of its file.
PYTEST_ARGS ?= -n 2 --dist loadfile --max-worker-restart 0

# An environment that happens to be active, or settings made for other projects, must not change what is installed here.
unexport CONDA_PREFIX PYTHONHOME PYTHONPATH VIRTUAL_ENV
unexport UV_EXTRA UV_FROZEN UV_ISOLATED UV_LOCKED UV_NO_DEFAULT_GROUPS UV_NO_DEV UV_NO_EDITABLE UV_NO_GROUP UV_NO_INSTALL_PROJECT
unexport UV_NO_SYNC UV_ONLY_DEV UV_PROJECT UV_PROJECT_ENVIRONMENT UV_PYTHON UV_WORKING_DIR UV_WORKING_DIRECTORY
unexport UV_CONSTRAINT UV_EXCLUDE_NEWER UV_OVERRIDE UV_PRERELEASE UV_RESOLUTION

.PHONY: help demo test lint typecheck docs linkcheck check build clean sync

help:
	@echo "make demo       train on contaminated images, test, export to OpenVINO, run the export (10 minutes on 2 cores)"
	@echo "make test       run the tests (15 minutes on 2 cores)"
	@echo "make lint       check style and formatting"
	@echo "make typecheck  check types"
	@echo "make docs       build the documentation into build/docs; warnings and dead links inside of it are errors"
	@echo "make linkcheck  ask every other site that the documentation links to (needs a network)"
	@echo "make build      build the wheel and the source distribution into dist/"
	@echo "make clean      remove the environment, caches and builds; results and downloaded data stay"

demo: sync
	$(BIN)/python -m anomalib_comet.demo

test: sync
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: sync
	$(BIN)/ruff check
	$(BIN)/ruff format --check

typecheck: sync
	$(BIN)/mypy

# Links between pages, to headings and to files of this repository are checked by the build itself, offline. On Python
# 3.10 there is no documentation to build: the present Sphinx asks for 3.11.
docs: sync
	@if [ ! -x $(BIN)/sphinx-build ]; then \
		echo "The documentation is built on Python 3.11 and later; .venv has an older one."; \
	else \
		$(BIN)/sphinx-build -c docs -E -n -q -W --keep-going . build/docs; \
	fi

linkcheck: sync
	$(BIN)/sphinx-build -c docs -b linkcheck . build/linkcheck

build:
	@uv=$$($(PYTHON) tools/find_uv.py) && "$$uv" build

clean:
	rm -rf .venv .uv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} +

# The exact environment of uv.lock; takes no time when nothing has changed. `make test PYTHON_VERSION=3.12` for another
# Python than the first one that fits.
sync:
	@uv=$$($(PYTHON) tools/find_uv.py) && "$$uv" sync --locked $(if $(PYTHON_VERSION),--python $(PYTHON_VERSION))
