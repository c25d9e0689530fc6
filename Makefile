# Every target first installs what is missing (tools/setup). Results go to build/.
SHELL := /bin/bash
PYTHON := .venv/bin/python
# Two at a time, those in the lab first: each keeps about one CPU busy. One idle process takes from the other.
PYTEST_OPTIONS = --numprocesses=2 --dist=worksteal --durations=15 --junitxml=build/junit-$@.xml
PYTEST = $(PYTHON) -m pytest $(PYTEST_OPTIONS)

.DEFAULT_GOAL := help
.PHONY: help setup lint check test test-full conformance test-minimum demo lab bench clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup:  ## Install what is missing: Debian packages, .venv/, the test guest
	@tools/setup

lint: setup  ## Style and types
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy

check: lint  ## Lint and quick tests: no root, about a minute
	$(PYTEST) --tier quick

test: lint  ## Everything that fits twenty minutes; what CI runs
	$(PYTEST) --tier ci

test-full: lint  ## The same, exhaustive: an hour or more
	$(PYTEST) --tier full --override-ini=faulthandler_timeout=4000

conformance: lint  ## Every check on every driver here: on this machine, and in the lab on one host and on two
	$(PYTEST) --tier full --override-ini=faulthandler_timeout=9500 $(wildcard tests/test_conform*.py)

test-minimum: setup  ## Quick tests with the oldest libraries that pyproject.toml allows
	tools/minimum build/minimum
	build/minimum/bin/python -m pytest $(PYTEST_OPTIONS) --tier quick

demo: setup  ## Extend a volume while a guest uses it
	$(PYTHON) demo/demo.py

lab: setup  ## Start virtual machines with real LVM, iSCSI and NFS; see docs/lab.md
	.venv/bin/voldrivers lab up

bench: setup  ## Print the figures: extend, start-up, listing, packages, images, the services, the lab
	$(PYTHON) tools/bench
	$(PYTHON) tools/bench-image
	$(PYTHON) tools/bench-service
	$(PYTHON) tools/bench-lab
	$(PYTHON) tools/bench-lvm

clean:  ## Remove results and caches; .venv/ stays
	rm -rf build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find voldrivers tests -name __pycache__ -type d -prune -exec rm -rf {} +
