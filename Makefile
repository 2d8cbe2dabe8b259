# Two commands do everything on a fresh machine: `make book` and `make test`.
# They need Python 3.11 or newer and make; everything else goes into .venv.
# What takes long runs side by side on the cores there are, at most 16 (a gigabyte of memory each);
# CORES=1 runs one thing at a time.

PYTHON ?= python3
PORT ?= 8000
BIN = .venv/bin
PY = $(BIN)/python
CORES = $(shell $(PY) -c 'from joblib import cpu_count; print(min(cpu_count(), 16))')
CHAPTERS = $(wildcard chapters/*.ipynb)
SPHINX = $(BIN)/jupyter-book build . -n -W --keep-going
PYTEST = $(BIN)/pytest -n $(CORES) --dist
STAMP = .venv/.installed
BENCH = .venv-bench
# Progress bars are for people at a kernel; a page would keep their first frame.
export TQDM_DISABLE = 1

# One process a core, each with one thread.
check test: export OMP_NUM_THREADS = 1

.DEFAULT_GOAL = help
.PHONY: imports help book serve pdf slides student nbgrader check lint test test-colab bench reproduce weigh weights lock fork clean

help:  ## say what there is (this list)
	@echo "make TARGET, where TARGET is one of"
	@grep -E '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{printf "  %-11s %s\n", $$1, $$2}'

book: $(STAMP)  ## run the chapters that changed and build the site, its slides and student copies
	@mkdir -p _build && find _build -mindepth 1 -maxdepth 1 ! -name executed -exec rm -rf {} +
	@$(PY) book/_ext/run_notebooks.py $(CORES)
	@$(call stage,Building the pages)
	@$(SPHINX) --all -q
	@$(MAKE) --no-print-directory slides student
	@cp -R _build/deck _build/html/slides
	@rm _build/html/slides/index.html  # a redirect for a book, not for decks
	@cp -R _build/student _build/html/student
	@$(call stage,Done)
	@echo "Open _build/html/index.html, or type: make serve"

serve: book  ## build the book, then show it at http://localhost:8000 (PORT=… to change)
	@echo "== http://localhost:$(PORT) (Ctrl-C to stop) =="
	@$(PY) -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

pdf: $(STAMP) _build/html/index.html  ## print the built book into _build/book.pdf (needs Chromium)
	@echo "== Printing the book =="
	@$(PY) book/_tools/pdf.py

_build/html/index.html:
	@$(MAKE) --no-print-directory book

slides: $(STAMP)  ## write each chapter's slides into _build/deck (runs only chapters that changed)
	@echo "== Writing the slides =="
	@$(SPHINX) -q --builder custom --custom-builder deck
	@ls _build/deck/[0-9]*.html

student: $(STAMP)  ## copy the chapters without solutions into _build/student
	@echo "== Writing the student copies =="
	@$(PY) book/_ext/chapter_cells.py student _build/student $(CHAPTERS)

nbgrader: $(STAMP)  ## write the chapters as an nbgrader course into _build/nbgrader
	@echo "== Writing the nbgrader course =="
	@$(PY) book/_ext/chapter_cells.py nbgrader _build/nbgrader $(CHAPTERS)

check: lint  ## lint, fast tests of the code and the theorems, and what a chapter promises, without running one
	@$(call stage,Fast tests)
	@$(PYTEST) worksteal tests --ignore=tests/site -m "not slow"
	@$(call stage,All checks passed)

lint: $(STAMP)  ## look for errors of form in code, text and notebooks
	@$(call stage,Lint)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/codespell
	@$(BIN)/nbstripout --keep-id --verify $(CHAPTERS)

test: lint  ## run all tests: lint, unit, theorems, chapters, and the built site in a browser
	@$(call stage,Unit tests and theorems)
	@$(PYTEST) worksteal tests --ignore=tests/notebooks --ignore=tests/site
	@$(call stage,Every cell of every chapter as its author has it)
	@$(PYTEST) loadfile --nbval-lax --nbval-current-env chapters
	@$(call stage,What students get, what chapters promise, and the errata)
	@$(PYTEST) loadgroup tests/notebooks
	@$(call stage,The book from what has just run)
	@$(MAKE) --no-print-directory book
	@$(call stage,The built site in a browser)
	@$(PYTEST) loadgroup tests/site
	@$(call stage,All tests passed)

test-colab: $(STAMP)  ## run the chapters with Colab's own versions, and note their times in book/benchmarks.md
	@bash tests/colab/run.sh
	@$(PY) -m benchmarks bench

bench: $(BENCH)/.installed  ## compare with other libraries, write book/benchmarks.md (PART=speed for a part)
	@OMP_NUM_THREADS=1 $(BENCH)/bin/python -m benchmarks bench $(or $(PART),all)

reproduce: $(STAMP)  ## write book/reproduced.md from the kept results (PART=mnist runs a part again, PART=all all)
	@OMP_NUM_THREADS=1 $(PY) -m benchmarks reproduce $(PART)

weigh: $(STAMP)  ## time every chapter, before and after it was made light, for book/benchmarks.md
	@$(PY) -m benchmarks.weight

imports: $(STAMP)  ## draw which module imports which, for CONTRIBUTING.md
	@$(PY) book/_tools/import_graph.py

weights: $(STAMP)  ## train the networks that the package ships for the digits again
	@$(PY) book/_tools/weights.py

lock: $(STAMP)  ## pin everything beneath requirements.txt in .ci/requirements.lock
	@( echo "# Every package of the book's environment, for Python 3.11 and later, made by \`make lock\`."; \
	   grep -v '^-c' requirements.txt | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	     --no-header --no-annotate - pyproject.toml ) > .ci/requirements.new && mv .ci/requirements.new .ci/requirements.lock

fork:  ## rewrite the book's public address for a fork: make fork URL=https://github.com/you/fork
	@$(PYTHON) book/_tools/repository.py "$(URL)"

clean:  ## delete what was built and what the chapters have shown; the environment in .venv stays
	rm -rf _build

# The environment, made once and again when what it is made from changes.
$(STAMP): requirements.txt .ci/requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "This book needs Python 3.11 or newer: install it, or name it with make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "This book needs Python 3.11 or newer, and $(PYTHON) is older: name a newer one, as in make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module is missing: install it (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	@echo "== Making the environment in .venv (once) =="
	@echo "   On Linux PyTorch brings its CUDA libraries, several GB. Without a GPU this is smaller:"
	@echo "   UV_TORCH_BACKEND=cpu make book"
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@test -x $(BIN)/uv || $(PY) -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --python $(PY) -r requirements.txt -e .
	@touch $(STAMP)

# The environment of the benchmarks: what adv_lib needs, and the libraries that it is compared with. One
# that cannot be installed is missing in the tables, which say so.
$(BENCH)/.installed: $(STAMP) benchmarks/peers.txt
	@echo "== Making the environment of the benchmarks in $(BENCH) =="
	@test -x $(BENCH)/bin/python || $(PY) -m venv --without-pip $(BENCH)
	@$(BIN)/uv pip install --python $(BENCH) -r pyproject.toml -c .ci/requirements.lock
	@grep -v -e '^#' -e '^$$' benchmarks/peers.txt | while read -r peer; do \
	  $(BIN)/uv pip install --quiet --python $(BENCH) --no-deps $$peer || echo "   could not install $$peer"; done
	@touch $@

# A heading, and the time since the first make began.
export STARTED := $(or $(STARTED),$(shell date +%s))
stage = printf '\n== %s (after %d s) ==\n' "$(1)" $$(( $$(date +%s) - $(STARTED) ))
