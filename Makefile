# Compiled tests are kept, also where the environment says otherwise: to compile them takes 3 s.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help pictures check quick test test-all faults mutants peers growth folders startup report-growth memory dead gpu slurm ranks docs release-check scaling

help:  ## print this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

check:  ## check style and types
	ruff check . && ruff format --check . && mypy

quick:  ## run the tests that start no process and train for less than a second, without the catalogs of inputs; a minute on two cores
	pytest -n 2 --dist worksteal -m "not slow and not process and not catalog"

test:  ## run the default tests; six minutes on two cores
	pytest -n 2 --dist worksteal -m "not slow"

test-all:  ## run all tests
	pytest

faults:  ## run every fault of the suite and count how many runs survive; an hour and more on two cores
	python -m tools.faults

mutants:  ## plant small faults in a copy of the code and count those that the tests notice; five minutes on two cores
	python -m tools.mutants

slurm:  ## run sweeps and runs on a real Slurm of one node (Debian: slurm-wlm); a quarter of an hour and more on two cores
	@command -v slurmctld > /dev/null || { echo "make slurm: slurmctld is not installed (Debian: apt-get install --no-install-recommends slurm-wlm)" >&2; exit 1; }
	pytest tests/slurm

ranks:  ## run the tests of several processes: equal, repeated, killed, hung, refused; half an hour on two busy cores
	pytest tests/distributed/test_ranks.py

peers:  ## measure the same work with vggexp and its peers (pip install -e '.[bench]'); a quarter of an hour
	python -m benchmarks.peers

growth:  ## measure the cost by the number of images; three minutes
	python -m benchmarks.growth

scaling:  ## measure what a second rank costs, and compute it for more ranks; ten minutes
	python -m benchmarks.scaling

folders:  ## measure image folders against torchvision's loader; five minutes
	python -m benchmarks.folders

startup:  ## measure the time from the command to the first step; half a minute
	python -m benchmarks.startup

report-growth:  ## measure a report by the number of runs, and a plan by the depth of the network; a minute
	python -m benchmarks.report

memory:  ## compare the memory of a step with the estimate of plan; two minutes
	python -m benchmarks.memory

dead:  ## run set-ups that do not learn, their cures, and set-ups that learn; a quarter of an hour
	python -m benchmarks.dead

gpu:  ## measure and check everything on a CUDA device; at most eight minutes
	python -m benchmarks.gpu

docs:  ## build the site into build/site, warnings as errors (pip install -e '.[docs]'), and list its external links; half a minute
	python -m sphinx -n -W --keep-going -q -c docs . build/site
	@echo "build/site/index.html; external links, which are not checked:"
	@grep -rhoE 'https?://[^])>" `]+[^])>" `.,]' --include='*.md' docs benchmarks *.md | sort -u

release-check:  ## check the content of wheel and sdist, and install both in a fresh environment of each Python found; ten minutes each
	pytest tests/tools/test_release.py
	python -m tools.release

pictures:  ## make the images of README and docs from the sweep of docs/commands.md; a quarter of an hour
	python -m vggexp -m arch=vgg11_bn,vgg13_bn,vgg16_bn,vgg19_bn optimizer.lr=0.01,0.03,0.1 data.resize=32 data.limit=6000 arch.width=0.25 "arch.hidden=[256,256]" train.epochs=9 hydra.launcher.jobs=2 run.root=outputs/pictures
	python -m tools.pictures outputs/pictures
