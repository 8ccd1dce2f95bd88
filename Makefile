# make demo   install, then run the quickstart
# make test   install, then run the tests: those without vLLM, then those with its engine
# make test-vllm
#             install vLLM for the CPU beside the rest, then run the tests with its engine
# make test-python PYTHON=python3.13
#             install all of it for another Python in an environment of its own, then run the
#             tests without vLLM there; torch may bring CUDA libraries (5 GB)
# make test-transforms PYTHON=python3.13
#             install what transforms/ needs for another Python, then run its tests there
# make test-gpu PYTHON=python3
#             the tests that take a GPU, in the environment of that Python, which has torch's CUDA
#             build and the packages of `.[test]`; fails where there is no GPU
# make sweep-models
#             every architecture of transformers, its inputs and its padding: about six minutes
# make fuzz MINUTES=60
#             compare random programs with plain hooks for some time; prints each difference, shrunk
# make clients
#             install programs that others wrote for nnsight, and nnsight itself, in an environment
#             of its own, then run their tests with both and print what passed: half an hour
# make lint   install, then check style, types and layers
# make interrupts
#             interrupt 3,000 runs at random places, in some minutes
# make mutants
#             put 35 faults into copies of the tree, one at a time, and tell which ones no test
#             notices, in some minutes
# make bench  install other libraries beside the rest, then run the benchmarks beside them and
#             write docs/benchmarks.md
# make bench-quick
#             the benchmarks that have a target, in under two minutes
# make clean  remove caches and build results; `rm -rf .venv` starts from nothing

PYTHON ?= python3
MINUTES ?= 60
VENV := .venv
BIN := $(VENV)/bin
PEERS := $(VENV)/peers
CLIENTS := $(VENV)/clients
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INPUTS := pyproject.toml constraints.txt

# Processes that share the tests: one for each processor, but not more than memory is there for.
WORKERS ?= logical
PYTEST_CORE := -m pytest --ignore=tests/vllm --numprocesses=$(WORKERS) --maxprocesses=4 --dist=worksteal

# $(call new_environment,FOLDER): make a virtual environment, or say why that cannot be done.
define new_environment
@command -v $(PYTHON) >/dev/null || { \
	echo "there is no '$(PYTHON)' on the path; install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; \
	exit 1; }
@$(PYTHON) -c 'import sys; v = sys.version_info[:3]; v >= (3, 11) or sys.exit( \
	"$(PYTHON) is Python %d.%d.%d, and 3.11 or newer is needed; name another: make PYTHON=python3.12" % v)'
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	echo "$(PYTHON) has no 'venv' that can install pip; install it (Debian, Ubuntu: apt-get install python3-venv)" >&2; \
	exit 1; }
$(PYTHON) -m venv $(1)
endef

.PHONY: demo test test-core test-vllm test-python test-transforms test-gpu sweep-models interrupts fuzz mutants clients lint bench bench-quick clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/python examples/quickstart.py

test: test-core test-vllm

test-core: $(VENV)/.installed-test
	$(BIN)/python $(PYTEST_CORE)

test-vllm: $(VENV)/.installed-vllm
	$(BIN)/python -m pytest tests/vllm

test-gpu:
	$(PYTHON) -m pytest tests/gpu

sweep-models: $(VENV)/.installed-test
	NNSIGHT_DSL_SWEEP=all $(BIN)/python -m pytest tests/equivalence/test_padding_sweep.py \
		tests/equivalence/test_forward_arguments.py

OTHER := $(VENV)/$(notdir $(PYTHON))

test-python: $(OTHER)/.installed
	$(OTHER)/bin/python $(PYTEST_CORE)

# transforms/ needs no torch, so its tests run on a Python that no torch is installed for.
SMALL := $(VENV)/transforms-$(notdir $(PYTHON))

test-transforms: $(SMALL)/.installed
	$(SMALL)/bin/python -m pytest tests/transforms

interrupts: $(VENV)/.installed-test
	$(BIN)/python -m tests.interrupts --count 3000

fuzz: $(VENV)/.installed-test
	$(BIN)/python -m tests.differential.fuzz --minutes $(MINUTES)

mutants: $(VENV)/.installed-test
	$(BIN)/python -m tests.mutants

clients: $(CLIENTS)/.installed
	$(CLIENTS)/bin/python -m tests.clients $(CLIENTS)

lint: $(VENV)/.installed-lint
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-vllm $(PEERS)/.installed
	$(BIN)/python -m benchmarks --write

bench-quick: $(VENV)/.installed $(PEERS)/.installed
	$(BIN)/python -m benchmarks --quick

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find nnsight_dsl transforms runtime tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# The stamps lie inside .venv, so that removing it removes them too.
$(VENV)/.made:
	$(call new_environment,$(VENV))
	@touch $@

# First, alone and at an exact version: a range lets pip prefer a newer build that brings
# gigabytes of CUDA libraries, even where this version is at hand without them.
$(VENV)/.installed-torch: $(VENV)/.made constraints.txt
	@echo "installing into $(VENV); the first time takes some minutes"
	$(PIP) install -c constraints.txt $$(grep '^torch==' constraints.txt)
	@touch $@

$(VENV)/.installed: $(VENV)/.installed-torch $(INPUTS)
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test $(VENV)/.installed-lint: $(VENV)/.installed-%: $(VENV)/.installed-torch $(INPUTS)
	$(PIP) install -c constraints.txt -e '.[$*]'
	@touch $@

# Without what its parts ask for: they disagree on versions that vLLM runs with all the same.
$(VENV)/.installed-vllm: $(VENV)/.installed-test constraints-vllm.txt
	$(PIP) install --no-deps -r constraints-vllm.txt
	@touch $@

# As in .venv, torch comes first: see there.
$(OTHER)/.installed: $(INPUTS)
	$(call new_environment,$(OTHER))
	@echo "installing into $(OTHER); the first time takes some minutes"
	$(OTHER)/bin/python -m pip --disable-pip-version-check --quiet install \
		-c constraints.txt $$(grep '^torch==' constraints.txt)
	$(OTHER)/bin/python -m pip --disable-pip-version-check --quiet install -c constraints.txt -e '.[test]'
	@touch $@

$(SMALL)/.installed: constraints.txt
	$(call new_environment,$(SMALL))
	$(SMALL)/bin/python -m pip --disable-pip-version-check --quiet install -c constraints.txt \
		bytecode hypothesis libcst pytest pytest-timeout
	@touch $@

# The libraries that the benchmarks compare with, in an environment of their own.
$(PEERS)/.installed: constraints-peers.txt
	$(call new_environment,$(PEERS))
	@echo "installing into $(PEERS); the first time takes some minutes"
	$(PEERS)/bin/python -m pip --disable-pip-version-check --quiet install \
		-c constraints-peers.txt $$(grep '^torch==' constraints-peers.txt)
	$(PEERS)/bin/python -m pip --disable-pip-version-check --quiet install \
		-c constraints-peers.txt matplotlib nnsight pyvene rich transformer-lens
	@touch $@

# Clients of nnsight. They are installed without it, so that `import nnsight` finds a version only
# in the runs that put its folder on the path.
NNSIGHTS := 0.6.3 0.7.0 0.8.1
PIP_CLIENTS := $(CLIENTS)/bin/python -m pip --disable-pip-version-check --quiet install

$(CLIENTS)/.installed: $(INPUTS) constraints-clients.txt
	$(call new_environment,$(CLIENTS))
	@echo "installing into $(CLIENTS); the first time takes some minutes"
	$(PIP_CLIENTS) -c constraints.txt $$(grep '^torch==' constraints.txt)
	$(PIP_CLIENTS) -c constraints.txt -e '.[test]'
	$(PIP_CLIENTS) --no-deps -r constraints-clients.txt
	$(PIP_CLIENTS) -c constraints.txt astor beartype cloudpickle einops httpx 'jaxtyping<=0.2.36' \
		matplotlib nltk pandas pymdown-extensions 'python-socketio[client]' requests \
		scikit-learn scipy toml websocket-client zstandard
	set -e; for version in $(NNSIGHTS); do \
		$(PIP_CLIENTS) --no-deps --target $(CLIENTS)/nnsight-$$version nnsight==$$version; done
	@touch $@
