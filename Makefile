# Needs Python >= 3.11 with pip and venv, and make. Everything else goes into .venv.
#   make book          run every notebook (preset quick), render _build/html, print its address
#   make test          all that CI checks
#   make archive       the whole book as one file to read offline, with a checksum
#   make app           the explorer of chapter 8 in the browser
#   make lab           JupyterLab on the notebooks
#   make bench         ratios against peers
#   make colab         every notebook where only the package is installed, at Colab's versions
#   make release       VERSION=0.2.0: number and tag everywhere, then the archive
#   make constraints   pin the whole environment anew in constraints.txt
#   make clean         remove _build (make distclean: .venv too)
# Other settings: make book PRESET=laptop, make book PYTHON=python3.12, make app PORT=8867

PYTHON ?= python3
PRESET ?= quick
COLAB_PYTHON ?= python3.13
PORT ?= 8866
VENV := .venv
EXTRAS := radio,sky,features,book,app,dask,test,bench
BIN := $(VENV)/bin

.DEFAULT_GOAL := book
.PHONY: env book archive test app lab bench colab release constraints clean distclean

env: $(VENV)/.stamp

# The stamp is older than its sources when the environment must be brought up to date.
$(VENV)/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "galnb needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || echo not found)."; \
	  echo "Name a newer one, for example: make book PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || { echo "Creating $(VENV) ..."; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the environment (a few gigabytes the first time, mostly PyTorch) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@

book: env
	$(BIN)/python -m book.build --preset $(PRESET)

archive: env
	$(BIN)/python -m book.build --preset $(PRESET) --archive

test: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not book"
	$(BIN)/python -m book.build --preset quick
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --nbmake --nbmake-timeout=900 --nbmake-kernel=python3 notebooks
	$(BIN)/python -m pytest -m book

app: env
	$(BIN)/python -m book.app --port $(PORT)

lab: env
	$(BIN)/jupyter lab --notebook-dir=. notebooks/01_images.ipynb

bench: env
	$(BIN)/python -m benchmarks

colab: env
	$(BIN)/python -m book.colab --python $(COLAB_PYTHON)

release: env
	$(BIN)/python -m book.release $(VERSION)

# uv only resolves here (for Python 3.11 and newer, all platforms in one file); pip installs.
constraints:
	$(PYTHON) -m venv $(VENV)-constraints
	$(VENV)-constraints/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)-constraints/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links pyproject.toml --output-file constraints.new
	@{ echo "# Exact version of every package of the environment, for Python 3.11 and newer."; \
	   echo "# Made by 'make constraints' from pyproject.toml; not edited by hand."; cat constraints.new; } > constraints.txt
	rm -r constraints.new $(VENV)-constraints

clean:
	rm -rf _build notebooks/galnb_output .pytest_cache .ruff_cache

distclean: clean
	rm -rf $(VENV)
