# `make demo` and `make test` install what they need; both work on a fresh Debian or Ubuntu.
VENV   := .venv
BIN    := $(VENV)/bin
PYTHON ?= python3
SUDO   := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: setup demo test test-slow power-cut bench bench-update clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@missing=""; \
	command -v cc >/dev/null || missing="$$missing gcc libc6-dev"; \
	command -v qemu-system-arm >/dev/null || missing="$$missing qemu-system-arm"; \
	command -v arm-none-eabi-gcc >/dev/null || missing="$$missing gcc-arm-none-eabi libnewlib-arm-none-eabi"; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	if [ -n "$$missing" ]; then \
		command -v apt-get >/dev/null || { echo "please install:$$missing" >&2; exit 2; }; \
		echo "installing$$missing"; \
		$(SUDO) apt-get update -q && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; \
	fi
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	$(BIN)/python -m tte.toolchain
	@touch $@

demo: setup
	$(BIN)/tte demo

test: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q -n 2

# The long sweeps: every model and scheme, more inputs.
test-slow: setup
	$(BIN)/pytest -q -n 2 -m slow

# The power goes at every operation of a save, and at 2,000 random instructions of emulated devices: what each start finds.
power-cut: setup
	PYTHONPATH=tests $(BIN)/python -m studies.powercut --kills 2000

# Instructions by operator and by model, counted in the emulator, against the tables in bench/.
bench: setup
	PYTHONPATH=tests $(BIN)/python -m benchmark

bench-update: setup
	PYTHONPATH=tests $(BIN)/python -m benchmark --update

clean:
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache
