.PHONY: help check test test-all faults peers growth folders startup report-growth memory dead gpu slurm ranks docs release-check scaling

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

check:  ## style and types
	ruff check . && ruff format --check . && mypy

test:  ## the default tests, a quarter of an hour on two cores
	pytest -m "not slow"

test-all:  ## all tests
	pytest

faults:  ## every fault the suite knows, and how many were survived; an hour and more on two cores
	python -m tools.faults

slurm:  ## sweeps and runs on a real Slurm of one node (Debian: slurm-wlm); a quarter of an hour and more on two cores
	@command -v slurmctld > /dev/null || { echo "make slurm: slurmctld is not installed (Debian: apt-get install --no-install-recommends slurm-wlm)" >&2; exit 1; }
	pytest tests/slurm

peers:  ## the same work through vggexp and its peers (pip install -e '.[bench]'); a quarter of an hour
	python -m benchmarks.peers

growth:  ## cost against the number of images; three minutes
	python -m benchmarks.growth

scaling:  ## what a second rank costs, and many; ten minutes
	python -m benchmarks.scaling

folders:  ## folders of pictures beside torchvision's loader; five minutes
	python -m benchmarks.folders

startup:  ## from the command to the first step; half a minute
	python -m benchmarks.startup

report-growth:  ## a report by the number of runs and a plan by the network's depth; a minute
	python -m benchmarks.report

memory:  ## what plan says of a step's memory, and what it is; two minutes
	python -m benchmarks.memory

dead:  ## set-ups that do not learn, their cures, and set-ups that learn; a quarter of an hour
	python -m benchmarks.dead

ranks:  ## several processes of one run: equal, repeated, killed, hung, refused; half an hour on two busy cores
	pytest tests/distributed/test_ranks.py

gpu:  ## everything that a CUDA device is to show; at most eight minutes
	python -m benchmarks.gpu

docs:  ## the site into build/site, warnings as errors (pip install -e '.[docs]'); lists what leads outside; half a minute
	python -m sphinx -n -W --keep-going -q -c docs . build/site
	@echo "build/site/index.html; links that lead outside, not looked at:"
	@grep -rhoE 'https?://[^])>" `]+[^])>" `.,]' --include='*.md' docs benchmarks *.md | sort -u

release-check:  ## wheel and sdist: what they hold, and installed in a fresh environment for each Python at hand; ten minutes each
	pytest tests/tools/test_release.py
	python -m tools.release
