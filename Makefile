.PHONY: help check test test-all

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

check:  ## style and types
	ruff check . && ruff format --check . && mypy

test:  ## the default tests, under 3 minutes on two cores
	pytest -m "not slow"

test-all:  ## all tests
	pytest
