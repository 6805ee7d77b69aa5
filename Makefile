# make app           start the explorer in a browser          make app ARGS="--port 8000"
# make test          run every test                           make test ARGS="tests/zoo -x"
# make test-fast     the same without a browser, without files that take long, and with a few of many families
# make fuzz          thousands of bad inputs instead of the suite's few      make fuzz INPUTS=10000
# make sanitize      the C kernels on random shapes under the address, undefined-behavior and thread sanitizers
# make emulate       the same on a 64-bit Arm processor that qemu emulates, without sanitizers
# make bench         measure switching speed, the explore loop and eight visitors (about ten minutes); quality
#                    and baselines, which need a text file, are benchmarks/quality.py and benchmarks/baselines.py
# make lint          check style                              make format    apply it
# make constraints   renew constraints.txt: the newest versions that the requirements allow, as installed afresh
#
# Each makes the virtual environment it needs in .venv, once, and again when the requirements change. Versions are
# those of constraints.txt, with which the tests passed; CONSTRAINTS= (empty) takes the newest ones. Tests run in a
# process per core, four at most; WORKERS=0 runs them in one.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
INPUTS ?= 2500
CONSTRAINTS ?= constraints.txt
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
WORKERS ?= auto
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: app test test-fast fuzz sanitize emulate bench lint format check constraints chromium clean

app: $(VENV)/installed
	$(BIN)/python app.py $(ARGS)

test: $(VENV)/installed-test chromium
	$(PYTEST) $(ARGS)

test-fast: $(VENV)/installed-test
	$(PYTEST) -m "not slow and not browser" $(ARGS)

fuzz: $(VENV)/installed-test
	$(PYTEST) --dist load --timeout 0 tests/fuzz --fuzz-inputs $(INPUTS) $(ARGS)

sanitize: $(VENV)/installed-test
	$(BIN)/python tests/kernels/sanitized.py

emulate: $(VENV)/installed-test
	$(BIN)/python tests/kernels/emulated.py

bench: $(VENV)/installed-test chromium
	$(BIN)/python benchmarks/switching.py
	$(BIN)/python benchmarks/explore_loop.py
	$(BIN)/python benchmarks/visitors.py
	$(BIN)/python benchmarks/speed.py

lint: $(VENV)/installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# What is installed fits together, in the versions that the requirements name.
check: $(VENV)/installed-test
	$(PIP) check

# Stamps: written last, so that an interrupted installation is taken up again.
$(VENV)/installed: requirements.txt pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "quept needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(CONSTRAINTS:%=-c %) -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) install $(CONSTRAINTS:%=-c %) -e '.[test]'
	touch $@

# Libraries of one platform (CUDA, Triton) are left out: torch names their exact versions where it needs them.
constraints:
	rm -rf $(VENV)-newest
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip --disable-pip-version-check install -e '.[test]'
	$(VENV)-newest/bin/python -m pip freeze --exclude-editable | grep -viE '^(nvidia|cuda|triton)' > constraints.txt
	rm -rf $(VENV)-newest

# The browser tests drive Chromium, fastest the headless shell, which Debian has as a package. Where neither can be
# installed from here they say so and skip; in CI they fail.
chromium:
	@for name in chromium-headless-shell chromium chromium-browser google-chrome; do \
	    command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then export DEBIAN_FRONTEND=noninteractive; \
	    apt-get update && { apt-get install -y chromium-headless-shell || apt-get install -y chromium; }; \
	fi || echo "Chromium could not be installed with apt-get; the browser tests will skip." >&2

clean:
	rm -rf $(VENV)
