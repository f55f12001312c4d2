# Everything from a fresh clone: `make quickstart` trains, `make test` tests. Both set up .venv first.
# `make test-runs` trains, kills and continues whole runs, `make test-commands` runs what the documentation shows,
# `make test-oracles` compares the algorithms with those of other trainers; `make sglang` adds SGLang, `make test-sglang`
# tests against real SGLang servers; `make test-slurm` against a real Slurm, SGLang and NeMo-Run, `make test-megatron` with
# the other Megatron-Core; `make wheelhouse` gathers the packages for machines without internet. Another Python, in an
# environment of its own: `make PYTHON=python3.12 VENV=.venv312 test`.

VENV ?= .venv
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit((3, 11) > sys.version_info[:2] or sys.version_info[:2] > (3, 12))' 2>/dev/null \
	&& { echo $$p; break; }; done)
ARGS ?=
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 8 ? n : 8)))

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -qq --prefer-binary --no-compile -c constraints.txt
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
CPU_WHEELS := https://download.pytorch.org/whl/cpu

# A run is several processes, each of which imports torch and Megatron: with bytecode in 4 seconds instead of 9.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: quickstart test test-runs test-commands test-oracles test-megatron test-eval sglang test-sglang \
	test-sglang-versions test-gpu test-slurm test-report report nemo wheelhouse lint clean
.DELETE_ON_ERROR:

quickstart: $(VENV)/installed
	$(BIN)/megatron-rl train quickstart $(ARGS)

# Files of tests side by side, as many as there are cores (at most 8), in the order of their names: the longest are early.
test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-runs: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/runs $(ARGS)

test-commands: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/documented $(ARGS)

test-oracles: $(VENV)/oracles
	PYTHONPATH=$(abspath $(VENV))/oracles OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/oracles $(ARGS)

# What says most about Megatron-Core, with the version that constraints.txt has for other Pythons: Python 3.11 runs the
# newest, too.
MEGATRON_TESTS := tests/versions tests/actor/test_training.py tests/actor/test_parity.py
test-megatron: $(VENV)/megatron
	@echo "With $$(ls -d $(VENV)/megatron/megatron_core-*.dist-info | sed 's/.*megatron_core-/Megatron-Core /;s/.dist-info//'):"
	PYTHONPATH=$(abspath $(VENV))/megatron OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(MEGATRON_TESTS) $(ARGS)

sglang: $(VENV)/installed-sglang

test-sglang: $(VENV)/installed-dev $(VENV)/installed-sglang
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/sglang $(ARGS)

# The tests of one server with every version that is supported, each beside the pinned one and on its packages.
VERSIONS := $(foreach n,12 13 14 15 16 17 18 19 20 21 22 23,0.5.$(n))
test-sglang-versions: $(VENV)/installed-dev $(VENV)/installed-sglang
	@for v in $(VERSIONS); do echo "== SGLang $$v"; \
	$(PIP) install -qq --no-deps --upgrade --target $(VENV)/sglang-$$v sglang==$$v \
	&& PYTHONPATH=$(abspath $(VENV))/sglang-$$v OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/sglang/test_engine.py \
	|| exit 1; done

# lm-eval through this project's engine against lm-eval's own.
test-eval: $(VENV)/eval
	PYTHONPATH=$$(echo $(abspath $(VENV))/eval/lib/python*/site-packages) OMP_NUM_THREADS=1 \
	$(BIN)/python -m pytest tests/commands/test_evaluate_lm_eval.py $(ARGS)

report: $(VENV)/installed-report

# The page of a report in a headless browser.
test-report: $(VENV)/browser
	$(BIN)/python -m pytest tests/browser $(ARGS)

# Each test says why it is skipped where there is no GPU, or too few.
test-gpu: $(VENV)/installed-dev $(VENV)/installed-sglang
	$(BIN)/python -m pytest -rs tests/gpu $(ARGS)

# A real Slurm on this machine: Debian's, which root may install here.
test-slurm: $(VENV)/installed-dev $(VENV)/installed-sglang $(VENV)/slurm nemo
	NEMO=$(abspath $(VENV)-nemo) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs tests/slurm $(ARGS)

nemo: $(VENV)-nemo/installed

# Every package that a machine without internet needs, for the Python and the system of this one:
#   make wheelhouse [EXTRAS=math,report] [CUDA=1]    CUDA=1: torch with CUDA, several gigabytes
# and there: pip install --no-index --find-links wheelhouse -c constraints.txt 'megatron-rl[math,report]'
EXTRAS ?= math,puzzles,report
WHEELHOUSE ?= wheelhouse
WHEELS := $(PIP) wheel -q --prefer-binary -c constraints.txt --wheel-dir $(WHEELHOUSE) '.[$(EXTRAS)]'

wheelhouse: $(VENV)/torch
	@if [ -n "$(CUDA)" ]; then $(WHEELS) torch==$(TORCH); else $(WHEELS) torch==$(TORCH)+cpu 2>/dev/null \
	|| $(WHEELS) torch==$(TORCH)+cpu --extra-index-url $(CPU_WHEELS); fi
	@echo "$(WHEELHOUSE): $$(ls $(WHEELHOUSE) | wc -l) wheels, $$(du -sh $(WHEELHOUSE) | cut -f1)"

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VENV)-nemo wheelhouse build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache

# Without a GPU the CPU build of torch, wherever pip is configured to look and else from PyTorch's own list: the
# default build brings several gigabytes of CUDA.
$(VENV)/torch: constraints.txt
	@test -n "$(PYTHON)" || { echo "megatron_rl needs Python 3.11 or 3.12; install one, or run make PYTHON=/path/to/python"; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version): torch $(TORCH) (a minute or two) …"
	@$(PYTHON) -m venv $(VENV)
	@if nvidia-smi -L 2>/dev/null | grep -q GPU; then $(INSTALL) torch==$(TORCH); \
	else $(INSTALL) torch==$(TORCH)+cpu 2>/dev/null || $(INSTALL) --index-url $(CPU_WHEELS) torch==$(TORCH)+cpu; fi
	@touch $@

$(VENV)/installed: $(VENV)/torch setup.py
	@echo "Installing megatron_rl and its requirements (a minute or two) …"
	@$(INSTALL) -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "Installing what the tests need …"
	@$(INSTALL) -e '.[dev]'
	@touch $@

$(VENV)/megatron: $(VENV)/installed-dev
	@here=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("megatron-core"))') \
	&& other=$$(sed -n 's/^megatron-core==\([^;]*\);.*/\1/p' constraints.txt | grep -vFx "$$here") && rm -rf $@ \
	&& $(PIP) install -qq --no-deps --only-binary :all: --python-version 3.12 --ignore-requires-python --target $@ megatron-core==$$other
	@touch $@

# In a folder of its own: it brings scikit-learn, which transformers imports wherever it is, two seconds of every process.
$(VENV)/eval: $(VENV)/installed-dev
	@echo "Installing lm-eval …"
	@rm -rf $@.new && $(INSTALL) --prefix $(abspath $@).new lm-eval
	@rm -rf $@ && mv $@.new $@

$(VENV)/installed-report: $(VENV)/installed
	@$(INSTALL) -e '.[report]'
	@touch $@

# A browser: one that is here, else Debian's where that can be installed, else Playwright's own.
$(VENV)/browser: $(VENV)/installed-dev
	@echo "Installing what drives a browser, and one …"
	@$(INSTALL) -e '.[dev,browser]'
	@command -v chromium || command -v google-chrome \
	|| { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium > /dev/null; } \
	|| $(BIN)/playwright install --with-deps --only-shell chromium
	@touch $@

SLURM_PACKAGES := slurmctld slurmd slurmdbd slurm-client munge mariadb-server shellcheck
$(VENV)/slurm: $(VENV)/installed-dev
	@PATH=$$PATH:/usr/sbin; for p in slurmctld slurmd slurmdbd sbatch munged mariadbd shellcheck; do \
	command -v $$p > /dev/null || lacking="$$lacking $$p"; done; \
	test -z "$$lacking" || { test "$$(id -u)" = 0 && apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	apt-get install -y -qq --no-install-recommends $(SLURM_PACKAGES) > /dev/null; } \
	|| { echo "These tests need$$lacking: apt-get install $(SLURM_PACKAGES), as root"; exit 1; }
	@command -v ch-run > /dev/null || { test "$$(id -u)" = 0 && apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	apt-get install -y -qq --no-install-recommends charliecloud-runtime > /dev/null; } \
	|| echo "Without Charliecloud (charliecloud-runtime) the test of containers is skipped."
	@touch $@

# NeMo-Run asks for other versions of what serves here.
$(VENV)-nemo/installed: constraints-nemo.txt setup.py
	@$(MAKE) --no-print-directory VENV=$(VENV)-nemo $(VENV)-nemo/torch
	@echo "Installing NeMo-Run (a minute or two) …"
	@$(VENV)-nemo/bin/python -m pip install -qq --disable-pip-version-check --prefer-binary -c constraints-nemo.txt -e '.[nemo]'
	@touch $@

# In a folder of their own, without what they would bring along: they ask for other versions of what trains here.
ORACLES := verl trl ray tensordict accelerate codetiming dill hydra-core antlr4-python3-runtime attrs cloudpickle jsonschema \
	jsonschema-specifications msgpack orjson pyvers referencing rpds-py
$(VENV)/oracles: $(VENV)/installed-dev
	@echo "Installing the trainers to compare with …"
	@rm -rf $@.new && $(INSTALL) --no-deps --target $@.new $(ORACLES)
	@rm -rf $@ && mv $@.new $@

# Without a GPU SGLang must not bring its CUDA packages along: what its servers need on a CPU, then SGLang alone. Its
# torchvision lies apart, for the servers only: a CUDA build, which would break transformers in the other processes.
SERVER_PACKAGES := triton xgrammar compressed-tensors torch_memory_saver sglang

$(VENV)/installed-sglang: $(VENV)/installed
	@echo "Installing SGLang (a few minutes) …"
	@if nvidia-smi -L 2>/dev/null | grep -q GPU; then $(INSTALL) -e '.[sglang]'; else \
	$(INSTALL) -e '.[sglang-cpu]' && $(INSTALL) --no-deps $(SERVER_PACKAGES) \
	&& $(INSTALL) --no-deps --upgrade --target $(VENV)/sglang-cpu torchvision; fi
	@touch $@
