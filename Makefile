PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-newest lint bench study sweep clean

# Each stamp stands for "installed with these extras"; a changed pyproject.toml installs again.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("jaxmeter needs Python 3.11 or newer; run make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

$(VENV)/.installed-lint: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lint]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/jaxmeter demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest --quiet --durations=15 -n 2 --dist loadfile

# The tests of what reads the inner workings of JAX and Keras, on the newest Python that is installed
# with what pip resolves there. Another Python gets another stamp, so a new environment.
CORE := target equations gradients factors signals shadow intake onnx_control lowering chunks
ifneq ($(filter test-newest,$(MAKECMDGOALS)),)
NEWEST := $(shell $(PYTHON) .ci/newest_python)
endif

.venv-newest/.installed-%: pyproject.toml
	$(NEWEST) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

ifdef NEWEST
test-newest: .venv-newest/.installed-$(notdir $(NEWEST))
	.venv-newest/bin/python -m pytest --quiet --durations=15 -n 2 --dist worksteal $(CORE:%=tests/test_%.py)
else
test-newest:
	@echo "make test-newest: none of the Pythons that pyproject.toml names is installed and newer than that of $(PYTHON); nothing to test"
endif

lint: $(VENV)/.installed-lint
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/gradients.py
	$(BIN)/python benchmarks/lowering.py
	$(BIN)/python benchmarks/chunks.py
	$(BIN)/python benchmarks/intake.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/fitting.py
	$(BIN)/python benchmarks/shadows.py --short
	$(BIN)/python benchmarks/harness.py
	$(BIN)/python benchmarks/results.py
	$(BIN)/python benchmarks/reference_scores.py
ifdef JAXMETER_DATA
	$(BIN)/python benchmarks/location30.py --data $(JAXMETER_DATA)/location30.npz
endif

sweep: $(VENV)/.installed
	$(BIN)/python experiments/demo.py sweep
	$(BIN)/python experiments/digits_training_size.py sweep
ifdef JAXMETER_DATA
	$(BIN)/python experiments/location30_layers.py sweep
	$(BIN)/python experiments/fcn_location30.py sweep
	$(BIN)/python experiments/alexnet_cifar100.py sweep
	$(BIN)/python experiments/alexnet_cifar100_known.py sweep
	$(BIN)/python experiments/alexnet_cifar100_layers.py sweep
endif

study: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m study -s

clean:
	rm -rf $(VENV) .venv-newest .pytest_cache .mypy_cache .ruff_cache jaxmeter-demo
