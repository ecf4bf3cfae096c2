# Two commands do everything on a machine with python3, git and make:
#   make demo   install, run the main job, print a table, write a page
#   make test   install, lint, type-check, test
# and one measures: make bench, χ side by side with devinterp (installs it beside; an hour on an idle core)
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench clean

demo: $(STAMP)
	$(VENV)/bin/patterning run superposition

test: lint
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright

bench: $(VENV)-peer/.installed
	$(VENV)-peer/bin/python benchmarks/response.py

$(VENV)-peer/.installed: pyproject.toml constraints.txt
	test -x $(VENV)-peer/bin/python || python3 -m venv $(VENV)-peer
	$(VENV)-peer/bin/python -m pip install --quiet torch==2.13.0 --editable '.[peer]'
	touch $@

$(STAMP): pyproject.toml constraints.txt
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-peer .pytest_cache .ruff_cache
