# Two commands do everything on a machine with python3, git and make:
#   make demo   install, run the main job, print a table, write a page
#   make test   install, lint, type-check, test
# For those who change the package:
#   make long   tests of whole experiments and of kills, two minutes
#   make docs   the site into build/site, its code and notebooks executed, warnings as errors
#   make dist   wheel and source archive into dist, checked and installed into an empty environment
#   make pages  every kind of page in headless Chromium, where there is one
#   make device   tests on a pretended GPU, half a minute
#   make cluster  tests on a Ray cluster of two machines, simulated on this one
#   make bench  χ side by side with devinterp (installs it beside; an hour on an idle core)
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Modules are compiled when they are first imported: a third of the installation would go into those that never are.
PIP := $(PYTHON) -m pip install --quiet --no-compile --constraint constraints.txt --editable
export OMP_NUM_THREADS := 1
# Tests start hundreds of processes. Where compiled modules may not be kept, each of them compiles all that it imports.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test long lint docs dist pages device cluster figures bench clean

demo: $(STAMP)
	$(VENV)/bin/patterning run superposition

test: $(STAMP)  # lint leaves a core idle: it runs beside the tests, and its output comes last
	@mkdir -p build
	@$(MAKE) --no-print-directory lint > build/lint.log 2>&1 & lint=$$!; \
	$(PYTHON) -m pytest -n 2 --dist loadfile --ignore tests/device --durations 12; tests=$$?; \
	wait $$lint; lint=$$?; cat build/lint.log; test $$tests -eq 0 -a $$lint -eq 0

long: $(STAMP)
	$(PYTHON) -m pytest -n 2 --dist load --ignore tests/device -m 'long and not slow' --durations 12

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright

docs: $(VENV)/.docs
	$(PYTHON) tools/sentences.py
	$(PYTHON) -m pytest tests/test_snippets.py -m site -n 2
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet

dist: $(VENV)/.dist
	rm -rf dist build/lib
	$(PYTHON) -m build --no-isolation --outdir dist .
	$(PYTHON) -m twine check --strict dist/*
	$(PYTHON) tools/check_wheel.py

pages: $(VENV)/.pages
	$(PYTHON) -m pytest tests/pages -m pages

device: $(STAMP)
	$(PYTHON) -m pytest tests/device -m ''

cluster: $(VENV)/.cluster
	$(PYTHON) -m pytest tests/cluster -m 'cluster and not slow'

figures: $(STAMP)
	$(PYTHON) tools/figures.py

bench: $(VENV)-peer/.installed
	$(VENV)-peer/bin/python benchmarks/response.py

$(VENV)-peer/.installed: pyproject.toml constraints.txt
	test -x $(VENV)-peer/bin/python || python3 -m venv $(VENV)-peer
	$(VENV)-peer/bin/python -m pip install --quiet torch==2.13.0 --editable '.[peer]'
	touch $@

$(STAMP): pyproject.toml constraints.txt
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PIP) '.[dev]'
	touch $@

$(VENV)/.docs: $(STAMP)
	$(PIP) '.[docs]'
	touch $@

$(VENV)/.pages: $(STAMP)
	$(PIP) '.[dev,pages]'
	touch $@

$(VENV)/.cluster: $(STAMP)
	$(PIP) '.[dev,cluster]'
	touch $@

$(VENV)/.dist: $(STAMP)
	$(PIP) '.[dist]' 'setuptools>=77'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-peer build dist .pytest_cache .ruff_cache
