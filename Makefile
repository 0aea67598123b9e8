# `make check` is what CI runs. Everything works from an environment made by `make setup`.
PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin
PACKAGES = packages/osqueue-storage packages/osqueue-client packages/osqueue-broker packages/osqueue-worker
SOURCES = $(PACKAGES:%=%/src)
PROTO = packages/osqueue-client
GENERATED = src/osqueue_client/_generated

.PHONY: setup check format lint types layers generated test test-ceph simulate bench bench-storage bench-peers bench-clients bench-cost generate pins

setup:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements/dev.txt
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip install --quiet --no-deps --no-build-isolation $(PACKAGES:%=./%)

check: format lint layers types generated test

format:
	$(BIN)/ruff format --check .

lint:
	$(BIN)/ruff check .

layers:
	PYTHONPATH=$$(echo $(SOURCES) | tr ' ' ':') $(BIN)/lint-imports

# Two runs: the examples' `broker` and `worker` are modules, those of the tests are folders.
types:
	MYPYPATH=examples $(BIN)/mypy $(SOURCES) examples
	$(BIN)/mypy tests tools benchmarks

# The committed messages must be those that the .proto files give today.
generated:
	$(BIN)/python tools/check_generated.py

generate:
	cd $(PROTO) && PATH="$(abspath $(BIN)):$$PATH" buf generate

test:
	$(BIN)/python -m pytest

# The same suite on Ceph RGW, from the Debian packages that tests/storage/servers/ceph.py names.
test-ceph:
	OSQUEUE_TEST_CEPH=1 $(BIN)/python -m pytest tests/storage/test_ceph.py

# make simulate SEEDS=10000 FIRST=0; make simulate REPLAY=17 tells the whole history of one seed.
SEEDS ?= 1000
FIRST ?= 0
simulate:
	PYTHONPATH=tests $(BIN)/python -m simulation $(if $(REPLAY),--replay $(REPLAY),--seeds $(SEEDS) --first $(FIRST))

bench:
	$(BIN)/python benchmarks/bench.py

bench-storage:
	$(BIN)/python benchmarks/storage.py

bench-clients:
	$(BIN)/python benchmarks/clients.py

bench-cost:
	$(BIN)/python benchmarks/cost.py

# Beside PgQueuer, taskiq and Huey: needs the Debian packages postgresql and redis-server, and says so.
bench-peers:
	PYTHONPATH=benchmarks$${PYTHONPATH:+:$$PYTHONPATH} $(BIN)/python -m peers

# Hash-pinned and without addresses: uv.lock records where it downloaded from, these files do not.
pins:
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url \
		--no-emit-package osqueue-storage --no-emit-package osqueue-client \
		--no-emit-package osqueue-broker --no-emit-package osqueue-worker \
		--quiet pyproject.toml --group build -o requirements/run.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url \
		--no-emit-package osqueue-storage --no-emit-package osqueue-client \
		--no-emit-package osqueue-broker --no-emit-package osqueue-worker \
		--quiet pyproject.toml --group build --group test -o requirements/test.txt -c requirements/run.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url \
		--no-emit-package osqueue-storage --no-emit-package osqueue-client \
		--no-emit-package osqueue-broker --no-emit-package osqueue-worker \
		--quiet pyproject.toml --group dev --group bench -o requirements/dev.txt -c requirements/test.txt
