# What a person who has cloned the project needs. GNU make 3.81 is enough. Only tests/system-packages uses apt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test lint docs bench soak servers clean system-packages

help:
	@echo "make demo    crawl a local shop, no server needed"
	@echo "make test    lint, types and all tests"
	@echo "make lint    ruff and mypy"
	@echo "make bench   what a page costs, beside plain Scrapy"
	@echo "make soak    every test in full, for hours"
	@echo "make docs    write the generated tables anew"
	@echo "make servers RabbitMQ, Kafka, Redis and PostgreSQL, until Ctrl-C"
	@echo "make clean   remove .venv and caches"

demo: $(VENV)/installed
	$(BIN)/crawlbus demo

# What the servers need is fetched and built beside the lint.
test: system-packages $(VENV)/installed-dev
	@$(BIN)/python -m tests.servers prepare & $(MAKE) --no-print-directory lint; result=$$?; wait; exit $$result
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --durations 25 $(PYTEST)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/installed
	sed '/^| `crawlbus.toml`/,$$d' docs/settings.md > docs/settings.md.new
	$(BIN)/python -c 'from bus.settings import reference; print(reference(), end="")' >> docs/settings.md.new
	mv docs/settings.md.new docs/settings.md
	$(BIN)/python -m tests.capabilities

bench: $(VENV)/installed-dev
	$(BIN)/python -m tests.bench $(BENCH)

soak: system-packages $(VENV)/installed-dev
	$(BIN)/python -m tests.soak
	$(BIN)/python -m tests.soak.consumers
	CRAWLBUS_SOAK=1 $(BIN)/python -m pytest --timeout 0 $(PYTEST)

servers: system-packages $(VENV)/installed-dev
	$(BIN)/python -m tests.servers

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

system-packages:
	@sh tests/system-packages

# Stamps: nothing is installed again until pyproject.toml changes.
$(VENV)/installed: $(VENV)/made pyproject.toml
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/made pyproject.toml
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/installed

$(VENV)/made:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is missing: apt install python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: $(PYTHON) is older than 3.11: name a newer one, as in: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "make: Python's venv is missing: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@
