# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test browser screenshots check docs docs-serve wheels notebooks clean

install: $(VENV)/installed

demo: $(VENV)/installed
	$(BIN)/python -m samples.quickstart

test: $(VENV)/installed
	OMP_NUM_THREADS=1 TVP_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/browser  # two processes of one thread each

# The page of `tvp serve`, in Chromium. Where there is none, each test says that it is skipped.
browser: $(VENV)/installed
	OMP_NUM_THREADS=1 TVP_THREADS=1 $(BIN)/python -m pytest tests/browser

# Pictures of the page, to be looked at: build/screenshots, and that of the documentation.
screenshots: $(VENV)/installed
	$(BIN)/python -m tests.browser.screenshots

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p tvp.sdk -p tvp.trainer -p tvp.export

# Build, check and install what is published; on every Python from 3.11 on that is here, or: make wheels PYTHONS="3.11 3.13"
wheels: $(VENV)/installed
	$(BIN)/python -m tests.end_to_end.distribution $(PYTHONS)

# Run the notebooks, and write what they show into them.
notebooks: $(VENV)/installed
	$(BIN)/python -m tests.end_to_end.notebooks

docs: $(VENV)-docs/installed
	$(VENV)-docs/bin/mkdocs build --strict

docs-serve: $(VENV)-docs/installed
	$(VENV)-docs/bin/mkdocs serve

# The site is built from the text of the packages, which are not imported: this is small, and quick to install.
$(VENV)-docs/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/pip install --disable-pip-version-check --quiet --progress-bar off '.[docs]'
	touch $@

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "TVP needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --progress-bar off -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-docs build demo runs .pytest_cache .mypy_cache .ruff_cache
