# make        the first run: install, train v8 on the embedded base, say where its table and page are
# make test   everything CI runs
# make test-unit  what starts no process: one or two minutes
# make check  formatting, types, lint, dry run
# make docs   write docs/params.md from the schema
# make findings  what the write-ups claim, put to the test on the embedded base: docs/findings.md (two hours on two cores)
# make browser  Debian's Chromium: for the selenium source, and for make test
# make servers  Debian's Slurm, sshd and chromedriver: for make test
# make bench  time training: benchmarks/results/train.csv and docs/benchmarks.md (options: BENCH="--steps 3")
# make base   train the embedded base anew (hours on a CPU; WORK=folder: where states are kept, to go on from)
# make PYTHON=python3.12   with another Python: 3.11 to 3.13. If .venv has another one, or another torch than the next two
#             ask for, it is made anew. It keeps what was asked for until something else is (TORCH_INDEX= asks for no index)
# make TORCH_LOCK=requirements-cuda.lock   the package index's torch, with CUDA on Linux, by hash
# make TORCH_INDEX=https://download.pytorch.org/whl/cu126   torch from another index: for an older driver or card
# make sbom   what is locked, as CycloneDX: sbom.cdx.json
# make audit  what is locked against the advisory databases; without a network a sentence says what was left out
# make lock   requirements.lock and requirements-cuda.lock anew (with the uv of .venv)
-include .venv/asked
# What is not asked for now is what .venv was made with.
ASKED_PYTHON := $(filter-out undefined,$(origin PYTHON))
ASKED_TORCH := $(filter-out undefined,$(origin TORCH) $(origin TORCH_INDEX) $(origin TORCH_LOCK))
ifndef ASKED_TORCH
TORCH := $(KEPT_TORCH)
TORCH_INDEX := $(KEPT_TORCH_INDEX)
TORCH_LOCK := $(KEPT_TORCH_LOCK)
endif
TO_KEEP := $(TORCH)
TORCH := $(or $(TORCH),torch==2.13.0)
PYTHON ?= $(or $(KEPT_PYTHON),python3)
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

# Words for pip, of TORCH, TORCH_INDEX and TORCH_LOCK. It takes 2.13.0+cpu for 2.13.0, hence --clear for another torch.
from = $(strip $(if $3,$(BY_HASH) -r $3,$(if $2,--index-url $2) $(or $1,torch==2.13.0)))
FROM := $(call from,$(TORCH),$(TORCH_INDEX),$(TORCH_LOCK))
ifneq ($(FROM),$(call from,$(KEPT_TORCH),$(KEPT_TORCH_INDEX),$(KEPT_TORCH_LOCK)))
ANEW := --clear
endif
HAS := $(if $(ASKED_PYTHON),$(shell sed -n 's/^version = \([0-9]*\.[0-9]*\).*/\1/p' .venv/pyvenv.cfg 2>/dev/null))
ifdef HAS
ifneq ($(HAS),$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null))
ANEW := --clear
endif
endif
ifdef ANEW
.PHONY: $(INSTALLED)
endif

$(INSTALLED): requirements.lock requirements-build.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11, 3.12 or 3.13 is needed, this is %s; say make PYTHON=python3.12" % sys.version.split()[0])'
	$(PYTHON) -m venv $(ANEW) .venv
	@printf 'KEPT_%s\n' 'PYTHON := $(PYTHON)' 'TORCH := $(TO_KEEP)' 'TORCH_INDEX := $(TORCH_INDEX)' 'TORCH_LOCK := $(TORCH_LOCK)' > .venv/asked
	$(PIP) $(FROM)
	$(PIP) $(BY_HASH) -r requirements-build.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-build-isolation $(BY_HASH) $(FROM_SOURCE:%=--no-binary %) -r requirements.lock
	$(PIP) --no-deps -e .
	$(BIN)/pip check
	@touch $@
$(INSTALLED): $(TORCH_LOCK)

run: $(INSTALLED)
	@began=$$SECONDS; \
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --cores 1 results/v8/metrics.csv results/v8/report/index.html && \
	echo && echo "done in $$((SECONDS - began)) s after installation" && \
	echo "table:  results/v8/metrics.csv" && \
	echo "page:   results/v8/report/index.html" && \
	$(BIN)/python -c 'import json; print("best:  ", json.load(open("results/v8/best.json"))["why"])'

# While mypy has one core the other compiles what all of pytest's processes would compile, each for itself, and starts
# their server. What the check says comes last; if it fails, so does this.
test: $(INSTALLED) browser servers
	@said=$$(mktemp); { $(MAKE) --no-print-directory check > $$said 2>&1; } & check=$$!; \
	$(BIN)/python -m pytest --collect-only --quiet > /dev/null; \
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder --durations=10; \
	tests=$$?; wait $$check; checked=$$?; cat $$said; rm -f $$said; [ $$tests = 0 ] && [ $$checked = 0 ]

test-unit: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m unit \
	  --ignore tests/workflow

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

# A cluster of one node, a remote over SSH and Chromium's driver, which tests start and stop; where they cannot be had
# those tests say so.
servers:
	@PATH="$$PATH:/usr/sbin"; command -v sbatch >/dev/null && command -v munged >/dev/null && command -v sshd >/dev/null && \
	command -v chromedriver >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge openssh-server \
	    chromium-driver; \
	else \
	  echo "no Slurm, no sshd or no chromedriver here, and installing them needs root: their tests are left out"; \
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
