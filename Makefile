# The one list of commands: contributors, hooks and continuous integration use it.
#
#   make install   .venv with the tested versions and everything for development
#   make install-oldest  .venv-oldest with the oldest versions and what the tests need;
#                  then make test PYTHON=.venv-oldest/bin/python
#   make test      fast tests and doctests, two workers
#   make coverage  the same with coverage, in half as much time again
#   make test-slow the tests that take more than 5 s
#   make test-language  those on a real language model, with the extra "language"
#   make test-gpu  those that compare a GPU with the CPU
#   make lint      style and spelling (docstrings are validated by the tests)
#   make types     mypy on the typed subpackages
#   make docs      the manual, with the gallery run: doc/_build/html
#   make dist      sdist and wheel in dist/, installed and tried in an empty environment
#   make bench     one benchmark: make bench NAME=costs.growth
#   make evidence  the page of evidence, and what it rests on, where versions are new
#   make peers     .peers/: environments of the packages that are compared with
#
# PYTHON=... chooses the interpreter. TESTFLAGS=... is passed on to pytest, as in
# make test TESTFLAGS=tests/test_layers.py

PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)
# One thread per worker: more would only compete for the same cores.
TEST_ENV = OMP_NUM_THREADS=1 SCIPY_ARRAY_API=1 MPLBACKEND=Agg

.PHONY: install install-oldest test coverage test-slow test-language test-gpu lint types docs \
  dist bench evidence peers

install: .venv/bin/python
	.venv/bin/python -m pip install -c constraints.txt -e ".[dev]"

.venv/bin/python:
	python3 -m venv .venv

install-oldest: .venv-oldest/bin/python
	.venv-oldest/bin/python -m pip install -c constraints-oldest.txt -e ".[test]"

.venv-oldest/bin/python:
	python3.11 -m venv .venv-oldest

test:
	$(TEST_ENV) $(PYTHON) -m pytest -n 2 --dist worksteal $(TESTFLAGS)

coverage:
	$(MAKE) test TESTFLAGS="--cov $(TESTFLAGS)"

test-slow:
	$(TEST_ENV) $(PYTHON) -m pytest -m "slow and not language and not gpu" $(TESTFLAGS)

test-language:
	$(TEST_ENV) HF_HUB_OFFLINE=1 $(PYTHON) -m pytest -m language $(TESTFLAGS)

test-gpu:
	$(TEST_ENV) $(PYTHON) -m pytest -m gpu $(TESTFLAGS)

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m codespell_lib
	$(PYTHON) -m pre_commit validate-config
	@! git grep --untracked -nIE '[[:space:]]+$$' || { echo 'trailing whitespace'; exit 1; }

types:
	$(PYTHON) -m mypy

docs:
	OMP_NUM_THREADS=1 $(PYTHON) -m sphinx -W --keep-going -b html doc doc/_build/html

# What a user gets: the wheel of the sdist, without the tests' packages and far from the
# sources, runs the README.
dist:
	rm -rf dist build
	$(PYTHON) -m build
	$(PYTHON) -m venv dist/.venv
	dist/.venv/bin/python -m pip install -q -c constraints.txt dist/*.whl
	awk '/^```python/ { on = 1; next } /^```/ { on = 0 } on' README.md > dist/readme.py
	cd dist && .venv/bin/python -I readme.py
	rm -rf dist/.venv dist/readme.py

evidence:
	OMP_NUM_THREADS=1 $(PYTHON) -m benchmarks.evidence --run

bench:
	@test -n "$(NAME)" || { echo 'make bench NAME=costs.growth, or another of benchmarks/README.md'; exit 2; }
	$(PYTHON) -m benchmarks.$(NAME)

REQUIREMENTS = benchmarks/peers/requirements
PEERS = $(filter-out %.no-deps,$(basename $(notdir $(wildcard $(REQUIREMENTS)/*.txt))))

peers: $(PEERS:%=.peers/%/installed)

.peers/%/installed: $(REQUIREMENTS)/%.txt
	$(PYTHON) -m venv .peers/$*
	.peers/$*/bin/python -m pip install -r $<
	@# what must come without its requirements
	if test -f $(REQUIREMENTS)/$*.no-deps.txt; then \
	  .peers/$*/bin/python -m pip install --no-deps -r $(REQUIREMENTS)/$*.no-deps.txt; \
	fi
	touch $@
