.PHONY: help check test test-all faults peers

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

check:  ## style and types
	ruff check . && ruff format --check . && mypy

test:  ## the default tests, under 3 minutes on two cores
	pytest -m "not slow"

test-all:  ## all tests
	pytest

faults:  ## every fault the suite knows, and how many were survived; about twenty minutes on two cores
	python -m tests.faults

peers:  ## the same work through vggexp and its peers (pip install -e '.[bench]'); a quarter of an hour
	python -m benchmarks.peers
