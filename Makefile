# make app     start the explorer in a browser        make app ARGS="--port 8000"
# make test    run every test                         make test ARGS="tests/zoo -x"
# make bench   measure switching speed, the explore loop and eight visitors (about ten minutes); quality and
#              baselines, which need a text file, are benchmarks/quality.py and benchmarks/baselines.py
# make lint    check style                            make format    apply it
#
# Each makes the virtual environment it needs in .venv, once, and again when the requirements change.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN = $(VENV)/bin

.PHONY: app test bench lint format chromium clean

app: $(VENV)/installed
	$(BIN)/python app.py $(ARGS)

test: $(VENV)/installed-test chromium
	$(BIN)/python -m pytest $(ARGS)

bench: $(VENV)/installed-test chromium
	$(BIN)/python benchmarks/switching.py
	$(BIN)/python benchmarks/explore_loop.py
	$(BIN)/python benchmarks/visitors.py

lint: $(VENV)/installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Stamps: written last, so that an interrupted installation is taken up again.
$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "quept needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[test]'
	touch $@

# The browser tests drive Chromium. Where it cannot be installed from here they say so and skip; in CI they fail.
chromium:
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    export DEBIAN_FRONTEND=noninteractive; apt-get update && apt-get install -y chromium; \
	fi || echo "Chromium could not be installed with apt-get; the browser tests will skip." >&2

clean:
	rm -rf $(VENV)
