# make        the first run: install, train v8 on the embedded base, say where its table and page are
# make test   everything CI runs
# make test-unit  what starts no process: two to four minutes
# make check  formatting, types, lint, dry run
# make docs   write docs/params.md from the schema
# make findings  what the write-ups claim, put to the test on the embedded base: docs/findings.md (an hour or two on a CPU)
# make browser  Debian's Chromium: for the selenium source, and for make test
# make servers  Debian's Slurm and sshd: for make test
# make bench  time training: benchmarks/results/train.csv and docs/benchmarks.md (options: BENCH="--steps 3")
# make base   train the embedded base anew (hours on a CPU; WORK=folder: where states are kept, to go on from)
# make PYTHON=python3.12   with another Python: 3.11 to 3.13
# make TORCH_LOCK=requirements-cuda.lock   the package index's torch, with CUDA on Linux, by hash
# make TORCH_INDEX=https://download.pytorch.org/whl/cu126   torch from another index: for an older driver or card
# make sbom   what is locked, as CycloneDX: sbom.cdx.json
# make audit  what is locked against the advisory databases; without a network a sentence says what was left out
# make lock   both lock files anew (with the uv of .venv)
PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
TORCH_LOCK ?=
WORK ?= models/.work
BIN := .venv/bin
INSTALLED := .venv/installed
SHELL := /bin/bash
# Where it is set, as in many images, each of the tests' processes would compile every library and test for itself.
export PYTHONDONTWRITEBYTECODE :=
.DEFAULT_GOAL := run
.PHONY: run test test-unit check format docs findings browser servers base bench sbom audit lock clean

# Packages are taken as they were locked, by hash; three have no wheel and are built, with a locked builder. pip takes
# torch, from whatever its configuration names; uv takes the others, in a tenth of pip's time.
FROM_SOURCE := antlr4-python3-runtime connection_pool jsonpath-rw
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation
UV := $(BIN)/uv
BY_HASH := --require-hashes --no-deps --only-binary :all:
COMPILE := pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make lock"

$(INSTALLED): requirements.lock requirements-build.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11, 3.12 or 3.13 is needed, this is %s; say make PYTHON=python3.12" % sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(PIP) $(if $(TORCH_LOCK),$(BY_HASH) -r $(TORCH_LOCK),$(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH))
	$(PIP) $(BY_HASH) -r requirements-build.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-build-isolation $(BY_HASH) $(FROM_SOURCE:%=--no-binary %) -r requirements.lock
	$(PIP) --no-deps -e .
	$(BIN)/pip check
	@touch $@

run: $(INSTALLED)
	@began=$$SECONDS; \
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --cores 1 results/v8/metrics.csv results/v8/report/index.html && \
	echo && echo "done in $$((SECONDS - began)) s after installation" && \
	echo "table:  results/v8/metrics.csv" && \
	echo "page:   results/v8/report/index.html" && \
	$(BIN)/python -c 'import json; print("best:  ", json.load(open("results/v8/best.json"))["why"])'

# While mypy has one core the other compiles what all of pytest's processes would compile, each for itself.
test: $(INSTALLED) browser servers
	@$(BIN)/python -m pytest --collect-only --quiet > /dev/null & $(MAKE) --no-print-directory check && wait
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder --durations=10

test-unit: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n 2 -m unit

browser: $(INSTALLED)
	@found='from sdlora.stages.scrape import selenium; print(selenium.installed())'; \
	$(BIN)/python -c "$$found" 2>/dev/null && exit 0; \
	as_root=; [ "$$(id -u)" = 0 ] || as_root="sudo -n"; \
	if command -v apt-get >/dev/null && $$as_root true 2>/dev/null; then \
	  $$as_root apt-get update -qq && \
	  $$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium && \
	  $(BIN)/python -c "$$found"; \
	else \
	  echo "Chromium is needed; say: sudo apt-get install chromium"; exit 1; \
	fi

# A cluster of one node and a remote over SSH, which tests start and stop; where they cannot be had those tests say so.
servers:
	@PATH="$$PATH:/usr/sbin"; command -v sbatch >/dev/null && command -v munged >/dev/null && command -v sshd >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge openssh-server; \
	else \
	  echo "no Slurm or no sshd here, and installing them needs root: their tests are left out"; \
	fi

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile
	@echo "snakemake --lint (rules run in .venv, not in containers: that lint is left out)"
	@! PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --lint 2>&1 | grep -E '^ +\* |rror' | grep -v 'Specify a conda environment'
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake -n --quiet rules

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

docs: $(INSTALLED)
	$(BIN)/sdlora docs > docs/params.md

findings: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --cores 2 studies
	$(BIN)/python -m tools.tiny_base.agreement captain results/study-*
	cat results/studies/findings.md results/studies/agreement.md > docs/findings.md

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.train $(BENCH)

# glibc keeps freed blocks of up to 32 MiB: a seventh of a step is saved
base: $(INSTALLED)
	MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=1073741824 $(BIN)/python -u -m tools.tiny_base.make --work $(WORK)
	$(BIN)/python -u -m tools.tiny_base.datasets
	$(BIN)/python -u -m tools.tiny_base.quality
	cp results/base/sheet.png docs/images/base.png
	$(BIN)/python -m tools.tiny_base.cards

clean:
	rm -rf .venv .snakemake logs

# From the locks alone; the tools are no part of what they list. `installed` is written last, so an installation that
# failed is begun anew. A pin that two locks have is listed once.
AUDIT := .venv/audit
LOCKS := requirements.lock requirements-build.lock requirements-cuda.lock
INSTALL_AUDIT = [ -e $(AUDIT)/installed ] || { $(PYTHON) -m venv $(AUDIT) && \
	said=$$($(AUDIT)/bin/pip install --quiet --disable-pip-version-check --retries 1 cyclonedx-bom==7.5.0 pip-audit==2.10.1 2>&1) && \
	touch $(AUDIT)/installed; }

sbom:
	@$(INSTALL_AUDIT) || { echo "sbom.cdx.json is not written: its tool cannot be installed here ($${said##*ERROR: })"; exit 1; }
	awk '/^[^ ]/ {keep = !seen[$$1]++} keep' $(LOCKS) | $(AUDIT)/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --of JSON -o sbom.cdx.json -

audit:
	@skip() { echo "not audited: $(LOCKS); $$1"; exit 0; }; \
	$(INSTALL_AUDIT) || skip "the tool cannot be installed here ($${said##*ERROR: })"; \
	said=$$($(AUDIT)/bin/pip-audit --no-deps --disable-pip $(LOCKS:%=-r %) 2>&1); code=$$?; \
	case "$$said" in *ConnectionError*|*"Could not connect"*) skip "the advisory databases cannot be reached from here";; esac; \
	echo "$$said"; exit $$code

lock:
	$(UV) $(COMPILE) --all-extras --no-emit-package torch pyproject.toml -o requirements.lock
	echo 'torch==2.13.0' | $(UV) --no-config $(COMPILE) -c requirements.lock - -o requirements-cuda.lock
