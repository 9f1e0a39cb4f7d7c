# What a person types in a checkout. Each target sets up what it lacks and is cheap the next time.
#
#   make demo    the main job on a hub of its own: up, backup, disk lost, restore, compared
#   make test    every tier: style, types, then unit, clients, contract and e2e tests
#   make check   style and types only, in seconds
#
# Servers: official images where they can be pulled, the lab's own builds elsewhere; `lab status`
# says which. What is built is kept outside the checkout, in ~/.cache/iotops-lab (tests/lab/).

READY := .venv/.ready
BIN := .venv/bin
LAB := $(BIN)/python tests/lab/lab.py
DEMO_ARGS ?=
TEST_ARGS ?=
# Two processes, a file of tests at a time: much of a test is waiting for a server.
TEST_PROCESSES ?= -n 2 --dist loadfile

.PHONY: help as-root demo test check docs picture up down
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile

# The environment is made again only when the list of dependencies changed.
$(READY): pyproject.toml tests/support/make-venv
	@tests/support/make-venv .venv
	@touch $@

demo: as-root $(READY)
	@$(LAB) run -- sh -c '$(LAB) status && exec $(BIN)/iotops demo \
		--override "$$(dirname "$$IOTOPS_LAB")/compose.override.yaml" $(DEMO_ARGS)'

as-root:
	@[ "$$(id -u)" = 0 ] || { echo "the demo needs root: each service owns its files; nothing was changed" >&2; \
		echo "next:  sudo make demo" >&2; exit 1; }

test: check
	@$(LAB) run -- sh -c '$(LAB) status; exec $(BIN)/python -m pytest $(TEST_PROCESSES) $(TEST_ARGS)'

check: $(READY)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy

# The generated pages: the command line and the settings.
docs: $(READY)
	@$(BIN)/python -m tests.support.reference --write

# The terminal picture of the README, from a real run.
picture: $(READY)
	@$(LAB) run -- $(BIN)/python -m tests.support.svg

up down: $(READY)
	@$(LAB) $@
