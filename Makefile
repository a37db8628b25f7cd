.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help
help:  ## Show what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 …" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'

.venv/.run: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[cli]'
	@touch $@

.venv/.dev: .venv/.run
	$(BIN)/python -m pip install --quiet --editable '.[cli,postgres,otel,testing]' --group dev
	@touch $@

.venv/.bench: .venv/.dev
	$(BIN)/python -m pip install --quiet --group bench
	@touch $@

.PHONY: run
run: .venv/.run  ## Set up, then index the example home (or CODEX_HOME=…), list its threads, finish a memory job
	$(BIN)/python examples/run.py

.PHONY: test
test: .venv/.dev  ## Set up, then run every test that gates, on SQLite and PostgreSQL
	@# More than small machines have cores: many tests only wait, for leases that must end.
	@# The processes that tests start would compile everything again if they weren't allowed to keep it.
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest --numprocesses 5 --dist worksteal -m 'not proof' $(ARGS)

.PHONY: proofs
proofs: .venv/.dev  ## Try the laws at random, and the tests themselves: chaos and mutants in small (a minute or two)
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest --numprocesses 2 -m proof $(ARGS)

.PHONY: check
check: .venv/.dev  ## Lint, types, import contracts, and models = migrations on both databases
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests/typing/service.py
	MYPYPATH=examples $(BIN)/mypy --package agent_service
	$(BIN)/basedpyright --project pyproject.toml --pythonpath $(BIN)/python --level error
	$(BIN)/lint-imports
	$(BIN)/python tests/check_migrations.py

.PHONY: format
format: .venv/.dev  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: reference
reference: .venv/.dev  ## Write docs/reference.md from the code
	$(BIN)/python tests/reference.py

.PHONY: bench
bench: .venv/.bench  ## Measure against floors taken in the same run
	$(BIN)/python -m benchmarks $(ARGS)

.PHONY: chaos
chaos: .venv/.dev  ## Kill, pause and race workers, and kill their server, for MINUTES (default 3) with SEED
	$(BIN)/python -m tests.chaos.run --minutes $(or $(MINUTES),3) $(if $(SEED),--seed $(SEED)) $(ARGS)

.PHONY: mutants
mutants: .venv/.dev  ## Plant every bug in the lease core and show which check notices it (a minute or two)
	$(BIN)/python -m tests.mutants $(ARGS)

.PHONY: dist
dist: .venv/.dev  ## Build the wheel and the sdist
	$(BIN)/python -m build

.PHONY: clean
clean:  ## Remove everything that was made here
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
