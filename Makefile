# Everything a person or CI runs. PYTHON is the interpreter that makes the environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DURATION ?= 60
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench schema clean help

help:
	@echo "make demo [DURATION=60]  the whole loop against a simulated fleet on a real NATS server"
	@echo "make test                all tests"
	@echo "make lint                formatting, lints, types, import rules, drift of generated files"
	@echo "make bench               benchmarks (prints numbers)"
	@echo "make schema              write JSON Schemas, AsyncAPI and the README's topic table"

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -c "from services.perfmodel.queueing_models.chains import warm_up; warm_up()"
	touch $@

demo: $(STAMP)
	$(BIN)/stoker up --duration $(DURATION)

# In the order of the folders: the long tests are in the first, so that both workers end at about the same time.
test: $(STAMP) .cache/asyncapi/node_modules
	$(BIN)/pytest -n 2 --dist loadscope --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/stoker schema export --check
	$(BIN)/stoker bus permissions --check

bench: $(STAMP)
	$(BIN)/python -m benchmarks

schema: $(STAMP)
	$(BIN)/stoker schema export
	$(BIN)/stoker bus permissions

# The official AsyncAPI parser, for one contract test; without npm that test says so and is skipped.
.cache/asyncapi/node_modules: tests/contract/asyncapi/package.json
	mkdir -p .cache/asyncapi
	cp tests/contract/asyncapi/package.json tests/contract/asyncapi/validate.mjs .cache/asyncapi/
	-cd .cache/asyncapi && npm install --silent --no-audit --no-fund && touch node_modules

clean:
	rm -rf $(VENV) .cache build dist *.egg-info
