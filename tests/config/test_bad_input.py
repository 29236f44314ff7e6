"""Every wrong command is refused in one line: the key, the value as typed, what is allowed."""

import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import yaml

from vggexp.config.compose import (
    build_config,
    compose_or_diagnose,
    hydra_session,
    parse_command,
)
from vggexp.config.keys import flatten, to_plain
from vggexp.config.overrides import parse_overrides
from vggexp.config.parse import schema_keys
from vggexp.errors import ConfigError, VggexpError
from vggexp.formatting import error_line
from vggexp.sweep.expand import check_command, compose_run
from vggexp.sweep.grid import cached_compose

pytestmark = pytest.mark.catalog

# command line -> the whole error line, or its beginning if the row ends in "..."
TABLE = r"""
arch=vgg12 -> arch=vgg12: unknown; nearest vgg11, vgg13; allowed alexnet, lenet, ...
+arch=vgg16 -> +arch=vgg16: arch is already set; write arch=vgg16
arch=vgg11,vgg13 -> arch=vgg11,vgg13: a list of values needs -m (a sweep)
arch.blocks=[[1,0]] -> arch.blocks[0]=[1,0]: channels=0: must be 1..65536
arch.blocks=[[1,64,2]] -> arch.blocks[0]=[1,64,2]: 1x1s=2: more than its convolutions
arch.blocks=[] -> arch.blocks=[]: needs 1..12 blocks
arch.blocks=[1,64] -> arch.blocks=[1,64]: needs a list of rows; write 'arch.blocks=[[1,64]]'
arch.blocks=[1,2,3] -> arch.blocks=[1,2,3]: needs a list of rows; write 'arch.blocks=[[1,64],[2,128],[3,256]]'
arch.blocks=[64,128] -> arch.blocks=[64,128]: needs a list of rows; write 'arch.blocks=[[1,64],[1,128]]'
arch.blocks=[1,64,2] -> arch.blocks=[1,64,2]: needs a list of rows, as arch.blocks=[[1,64],[2,128]]
arch.blocks=null -> arch.blocks=null: must be a list, as arch.blocks=[[1,64],[2,128]]
'arch.blocks=((1,64),(2,128))' -> arch.blocks=((1,64),(2,128)): no tuples here; write 'arch.blocks=[[1,64],[2,128]]'
arch.blocks=[[1,64 -> arch.blocks=[[1,64: [ is not closed
'arch blocks=1' -> arch blocks=1: not a key; keys are words with dots between them
arch.hidden=4096 -> arch.hidden=4096: must be a list; write 'arch.hidden=[4096]'
arch.hidden=true -> arch.hidden=true: must be a list
arch.norm=Batch -> arch.norm=Batch: nearest batch; allowed none, batch, lrn
arch.bn=true -> arch.bn: unknown key; keys of arch: name, blocks, norm, hidden, dropout, width, init
arch=lenet arch.norm=lrn -> arch.norm: not a key of arch lenet; keys of arch: name, init
sweep=null -> sweep=null: leave it out for none; allowed lr_depth, ...
experiment=null -> experiment=null: leave it out for none; allowed cifar10, ...
augment.flip_only_fraction=1 -> augment.flip_only_fraction=1: must be > 0 and < 1 or null
optimizer=adma -> optimizer=adma: unknown; nearest adam, adamw; allowed adam, adamw, momentum, ...
optimizer.lr=-1 -> optimizer.lr=-1: must be > 0 and <= 100
optimizer.lr=nan -> optimizer.lr=nan: must be a finite number, > 0 and <= 100
optimizer.lr='"0.1"' -> optimizer.lr="0.1": must be a finite number, > 0 and <= 100
optimizer.momentum=1.5 -> optimizer.momentum=1.5: must be >= 0 and < 1
optimizer=adam optimizer.momentum=0.9 -> optimizer.momentum=0.9: not an argument of Adam; it takes lr, weight_decay, ...
optimizer=adam optimizer.amsgrad=true -> optimizer.amsgrad=true: not in the file of this optimizer; write +...
+optimizer.nestrov=true -> optimizer.nestrov=true: not an argument of SGD; nearest nesterov; it takes lr, ...
optimizer._target_=os.system -> optimizer._target_=os.system: not allowed in a configuration
~optimizer.lr -> optimizer.lr: missing; it may not be removed
scheduler=step scheduler.milestones=[30,20] -> scheduler.milestones=[30,20]: must be numbers of epochs that rise
scheduler.gamma=0.1 -> scheduler.gamma: not a key of scheduler constant; keys of scheduler: name, warmup_epochs
scheduler=onecycle scheduler.warmup_epochs=1 -> scheduler.warmup_epochs=1: scheduler=onecycle rises by itself, and would begin at initial_factor of the rate that the warm-up has reached; set scheduler.warmup_epochs=0
scheduler=step scheduler.warmup_epochs=3 -> scheduler.milestones=[2.0,4.0]: the learning rate drops before the warm-up has reached optimizer.lr; at least scheduler.warmup_epochs=3
scheduler=plateau data.val_fraction=0 -> scheduler=plateau: watches the validation accuracy, but data.val_fraction=0
data=synthetic data.images=4 -> data.images=4: must be 5..10000000...
hydra.run.dir=/proc/x -> hydra.run.dir=/proc/x: not allowed, a run has a folder of its own; write run.root=FOLDER or...
-m data.val_fraction=0 seed=0,1 -> sweep.objective=val/accuracy: needs a validation split, but data.val_fraction=0; ...
--resolve -> --resolve: belongs with --cfg job
-m --cfg job seed=0,1 -> --cfg: shows a single configuration; leave out -m and give each key one value
arch=vgg11_lrn device=cuda device.deterministic=true -> device.deterministic=true: arch.norm=lrn has no determin...
data.batch_size=0 -> data.batch_size=0: must be 1..65536
data.batch_size=1e3 -> data.batch_size=1e3: not a whole number; write 1000
data.batch_size=0x10 -> data.batch_size=0x10: not a whole number; write 16
data.batch_size=60000 -> data.batch_size=60000: more than the 54000 training images; choose 54000
data.resize=16 -> data.resize=16: too small for 5 poolings (16->8->4->2->1->0); at least 32
data=digits -> data.resize=16: too small for 5 poolings (16->8->4->2->1->0); at least 32; or write arch=vgg_digits or ...
data=digits data.resize=16 -> data.resize=16: too small for 5 poolings (16->8->4->2->1->0); at least 32
data.resize=-224 -> data.resize=-224: must be 1..4096 or null
data.resize=[224,224] -> data.resize=[224,224]: not a whole number; must be 1..4096 or null
data.root=/dev/null -> data.root=/dev/null: not a directory
data=image_folder data.root=/dev/null -> data.root=/dev/null: not a directory
data.root=~/data -> data.root=~/data: ~ is not expanded here; write $HOME or the whole path
data=image_folder -> data.root=null: give the folder that holds the images, or data.classes=N to plan
data.val_fraction=0.00001 -> data.val_fraction=0.00001: 1 validation images for 10 classes; at least one each, or 0
train.epochs=1,2 -> train.epochs=1,2: a list of values needs -m (a sweep)
train.epochs==3 -> train.epochs==3: one = only
=3 -> =3: key missing (no spaces around =)
train -> train: = missing; write train.epochs=VALUE
vgg16 -> vgg16: = missing; write arch=vgg16
train=3 -> train=3: a group of keys; set train.epochs, train.rest_minutes, train.label_smoothing, ...
~nosuch -> ~nosuch: no such key
train.epochs=${oc.env:HOME} -> train.epochs=${oc.env:HOME}: interpolations are not allowed on the command line; ...
train.epochs=??? -> train.epochs=???: give a value
train=false train.epochs=1 -> train=false: a group of keys; set train.epochs, train.rest_minutes, train.label_smo...
trainer.epochs=3 -> trainer.epochs: unknown key; write train.epochs=3; keys: arch, data, augment, optimizer, ...
+model.dropout=0 -> model.dropout: unknown key; write arch.dropout=0; keys: arch, data, augment, optimizer, ...
train.epoch=3 -> train.epoch: unknown key; nearest train.epochs; keys of train: epochs, rest_minutes, ...
train.lr=0.1 -> train.lr: unknown key; nearest optimizer.lr; keys of train: ...
run_name=x -> run_name: unknown key; nearest run.name; keys: arch, ...
nonsense=1 -> nonsense: unknown key; keys: arch, data, augment, optimizer, scheduler, device, train, run, ...
+train.epochs=3 -> +train.epochs=3: already set; write train.epochs=3
+data.augmnt=true -> data.augmnt: unknown key; keys of data: name, ...
seed=18446744073709551616 -> seed=18446744073709551616: must be 0..9223372036854775807
momentum=0.5 -> momentum: unknown key; write optimizer.momentum=0.5
momentum_decay=0.1 optimizer=adam optimizer.name=NAdam -> momentum_decay: unknown key; write +optimizer.momentum_decay=0.1
data=dtd -> data=dtd: unknown; write data=torchvision data.name=DTD; allowed ...
report outputs --best 3 -> report: a command of its own; write python -m vggexp.report outputs --best 3
device=gpu -> device=gpu: unknown; write device=cuda; allowed auto, cpu, cuda, mps
device=cuda:1 -> device=cuda:1: unknown; write device=cuda, with CUDA_VISIBLE_DEVICES=1 before the command; allowed ...
device=cpu device.precision=fp16 -> device.precision=fp16: not trained on a processor; use bf16 or fp32
device.processes=0 -> device.processes=0: must be 1..4096 or null
device=mps device.processes=2 -> device.processes=2: an Apple GPU takes one process; leave it out, or use device=cpu
device.processes=256 -> device.processes=256: more than data.batch_size=128, which they share
device.processes=4 train.accumulate=64 -> train.accumulate=64: more than the 32 images of a batch that each rank takes
device.timeout_minutes=0 -> device.timeout_minutes=0: must be > 0 and <= 1440 or null
device.process=2 -> device.process: unknown key; nearest device.processes; keys of device: name, precision, ...
device.threads=0 -> device.threads=0: must be 1..4096 or null
run.name=../x -> run.name=../x: must be 1..120 letters a-z A-Z, digits or _ . + = , - (the first a letter, digit or _), ...
run.name=report.html -> run.name=report.html: sweeps and reports stand there in run.root; choose another
run.name=config.yaml -> run.name=config.yaml: run.root would look like the folder of a run or a sweep
run.name=study.log -> run.name=study.log: run.root would look like the folder of a run or a sweep
run.root='a"b' -> run.root=a"b: put the value into quotes: 'run.root="a\"b"'
run.name=695e0514 -> run.name=695e0514: must be text; put it into quotes: 'run.name="695e0514"'
'data.resize=a"b' -> data.resize=a"b: not a whole number; must be 1..4096 or null
train.epochs=(3) -> train.epochs=(3): not a whole number; must be 1..100000
seed:3 -> seed:3: = missing; write seed=3
http://x -> http://x: = missing; see --help
epochs -> epochs: = missing; write train.epochs=VALUE
run.name=123 -> run.name=123: must be text; put it into quotes: 'run.name="123"'
resume=yes -> resume=yes: allowed auto, never, exact, force
experiment=fashion -> experiment=fashion: unknown; nearest fashion_mnist_best, fashion_mnist_fast; allowed ...
experiment=quikstart -> experiment=quikstart: unknown; nearest quickstart; allowed ...
+hydra.job.env_set.VGGEXP_X=1 +hydra.job.env_set.VGGEXP_X=2 -> +hydra.job.env_set.VGGEXP_X=2: given twice; leave one out
hydra.nosuch=1 -> hydra.nosuch: unknown key of Hydra; --cfg hydra prints those it has
hydra/launcher=nope -> hydra/launcher=nope: unknown; allowed basic...
--config-dir=/nonexistent -> --config-dir=/nonexistent: no such directory
--config-path=/tmp -> --config-path=/tmp: not allowed; add a folder with --config-dir
--nosuchflag -> --nosuchflag: unknown flag; see --help
--multi-run -> --multi-run: unknown flag; nearest --multirun, --run; see --help
--epochs 3 -> --epochs 3: unknown flag; keys take no dashes, write train.epochs=3
--batch-size=64 -> --batch-size=64: unknown flag; keys take no dashes, write data.batch_size=64
--deterministic -> --deterministic: unknown flag; keys take no dashes, write device.deterministic=true
--name x -> --name x: unknown flag; keys take no dashes, write run.name=x
run.name='Übung 1' -> run.name=Übung 1: must be letters a-z A-Z, digits or _ . + = , - (the first a letter, digit or _)
optimizer_lr=0.1 -> optimizer_lr: unknown key; nearest optimizer.lr, optimizer; keys: ...
devce=cuda -> devce: unknown key; nearest device, device.name; keys: ...
optimizer.name=Muon optimizer.ns_steps=3 -> optimizer.name=Muon: updates matrices only, ...
--train-images 500 -> --train-images: unknown flag; see --help
optimizer=adam optimizer.name=NAdam optimizer.momentum_decay=0.01 -> optimizer.momentum_decay=0.01: not in the file of this optimizer; write +optimizer.momentum_decay=0.01
data=torchvision data.name=KMNIST data.sha256=abc -> data.sha256=abc: must be 64 digits 0..9 a..f or null
data=torchvision data.name=ImageNet data.root=/nope -> data.root=/nope: no such directory
data.root=/nope data.download=false -> data.root=/nope: no such directory (data.download=true would fetch into it)
--gamma 0.1 -> --gamma 0.1: unknown flag; keys take no dashes, write scheduler=step scheduler.gamma=0.1
--arch=vgg16 -> --arch=vgg16: unknown flag; keys take no dashes, write arch=vgg16
-m train.epochs=1,x -> sweep job 2 of 2: train.epochs=x: not a whole number; must be 1..100000
-m seed=1, -> seed=1,: ends in a comma
-m seed=range(a) -> seed=range(a): TypeError while evaluating 'range(a)': mismatch type argument start: str is ...
-m seed=choice(1,choice(2)) -> seed=choice(1,choice(2)): several values inside another value
arch.blocks=[range(3)] -> arch.blocks=[range(3)]: several values inside another value
-m seed=range(0,9,0) -> seed=range(0,9,0): the step of a range may not be 0
-m optimizer.lr=range(0,inf) -> optimizer.lr=range(0,inf): the numbers of a range must be finite
-m seed=x sweep.repeats=2 -> seed=x: not a whole number; must be 0..9223372036854775807
-m device.threads=1 device.timeout_minutes=1,2 -> device.timeout_minutes=1,2: may not be swept, it makes no other ...
-m 'hydra.sweep.dir=${nosuch}' seed=1,2 -> hydra.sweep.dir=${nosuch}: Interpolation key 'nosuch' not found
-m 'hydra.sweep.dir=${hydra:job.num}' seed=1,2 -> hydra.sweep.dir=${hydra:job.num}: write ${hydra.KEY} in place of ...
-m 'hydra.sweep.subdir=${hydra.job.override_dirname}' seed=1,2 -> hydra.sweep.subdir=${hydra.job.override_dirname}: not ...
'arch=lenet data=digits' -> arch=lenet data=digits: several overrides in one text; give each one separately
'seed=1, +train.epochs=2' -> seed=1, +train.epochs=2: several overrides in one text; give each one separately
-m hydra.sweep.dir=null seed=1,2 -> hydra.sweep.dir=null: ...
-m hydra.sweep.subdir=x seed=1,2 -> hydra.sweep.subdir=x: not allowed, a run has a folder of its own; write run.root...
-m hydra/sweeper=basic seed=1,2 -> hydra/sweeper=basic: not allowed; hydra/sweeper=grid makes the same jobs and more
-m hydra/launcher=joblib hydra.launcher.n_jobs=0 seed=1,2 -> hydra.launcher.n_jobs=0: must be a number of jobs at ...
-m hydra/launcher=joblib hydra.launcher.timeout=1 seed=1,2 -> hydra.launcher.timeout=1: must be null; it would ...
-m hydra/launcher=slurm hydra.launcher.tasks_per_node=0 -> hydra.launcher.tasks_per_node=0: must be at least 1
-m device=auto,cpu -> sweep: device=auto, device=cpu: the same run, vgg11-fashion_mnist-96px-lr0.01-...
-m data.cache=auto,ram -> sweep: data.cache=auto, data.cache=ram: the same run, vgg11-fashion_mnist-96px-lr0.01-...
-m run.name=p optimizer.lr=0.1,0.2 -> run.name=p: two jobs would share this folder (optimizer.lr=0.1, optimizer...
-m run.name=p,q seed=1,2 -> run.name=p: two jobs would share this folder (seed=1, seed=2); leave run.name out, or give...
-m optimizer.lr=0.1,1e-1 -> optimizer.lr=0.1,1e-1: a value stands there twice; give each value once
-m sweep.pairs=[{seed:1},{seed:1}] -> sweep: seed=1: the same run, vgg11-fashion_mnist-96px-lr0.01-seed1...
-m seed=1,2 ++hydra.launcher.foo=1 -> hydra.launcher.foo: unknown key; keys of this launcher: jobs, slots_per_gpu, gpus
-m seed=1,2 hydra/sweeper=optuna +hydra.sweeper.foo=1 -> hydra.sweeper.foo: unknown key; keys of this sweeper: n_tr...
-m seed=1,2 hydra/launcher=joblib +hydra.launcher.foo=1 -> hydra.launcher.foo: unknown key; keys of this launcher: n_...
-m seed=1,2 hydra/launcher=submitit_local +hydra.launcher.foo=1 -> hydra.launcher.foo: unknown key; keys of this laun...
-m seed=1,2 hydra/launcher=slurm +hydra.launcher.foo=1 -> hydra.launcher.foo: unknown key; keys of this launcher: acc...
-m seed=1,2 ++hydra.sweeper.sampler=tpe -> hydra.sweeper.sampler: unknown key; keys of this sweeper: params
-m seed=1,2 '+hydra.sweeper.params.sweep="a,b"' -> hydra.sweeper.params: sweep=a,b: may not be swept, it belongs to the whole sweep; give one value
-m seed=1,2 +hydra/launcher=basic -> +hydra/launcher=basic: hydra/launcher is already set; write hydra/launcher=basic
-m seed=1,2 hydra/launcher=ray +hydra.launcher.ray.remote.num_cpus=2 -> hydra/launcher=ray: needs another package...
++arch=lenet -> ++arch=lenet: arch is already set; write arch=lenet
-m seed=shuffle(range(0,999999999999)) -> sweep: more than sweep.max_jobs=1000 jobs; take fewer values or raise th...
-m arch=glob(nosuch*) -> arch=glob(nosuch*): no value; a sweep of it has no job
-m optimizer.lr=interval(0,1) -> optimizer.lr=interval(0,1): a grid needs single values; use a search sweeper for ...
-m seed=shuffle(range(1000000000)) -> sweep: more than sweep.max_jobs=1000 jobs; take fewer values or raise that number
-m seed=shuffle(range(0,99999999999999999999)) -> sweep: more than sweep.max_jobs=1000 jobs; take fewer values or ...
-m optimizer.lr=shuffle(range(0.1,9,0.0000000001)) -> sweep: more than sweep.max_jobs=1000 jobs; take fewer value...
-m sweep=lr_depth,networks -> sweep=lr_depth,networks: may not be swept, it belongs to the whole sweep; give one value
-m sweep.repeats=2,3 -> sweep.repeats=2,3: may not be swept, it belongs to the whole sweep; give one value
-m ++sweep.where=a,b -> sweep.where=a,b: a: unknown; parameters, macs, ...
-m hydra.launcher.jobs=1,2 -> hydra.launcher.jobs=1,2: may not be swept, it belongs to the whole sweep; give one value
-m hydra/launcher=local,basic -> hydra/launcher=local,basic: may not be swept, it belongs to the whole sweep; give one value
-m run.root=a,b -> run.root=a,b: may not be swept, it makes no other run; give one value
-m ++data.workers=1,2 -> ++data.workers=1,2: may not be swept, it makes no other run; give one value
-m sweep.pairs=[{run.root:a},{run.root:b}] -> sweep.pairs: run.root=a: may not be swept, it makes no other run; give ...
-m ++sweep.repeats=0 -> sweep.repeats=0: must be 1..100000
-m seed=1,2 ++hydra.launcher.jobs=foo -> hydra.launcher.jobs=foo: must be auto or 1..4096
-m --info config -> --info: describes a single configuration; leave out -m
--multirun --run -> --multirun: does not go with --run
--cfg job --info all -> --info: does not go with --cfg
-sc query=bash -> -sc query=bash: only a shell runs this; type eval...
-sc -> -sc : needs install=SHELL; SHELL is bash, zsh or fish
-p data -> --package=data: belongs with --cfg
--cfg hydra --resolve -> --resolve: Hydra's keys refer to those of a run; show both, --cfg all
-m seed=range(1000000000) -> sweep: more than sweep.max_jobs=1000 jobs; take fewer values or raise that number
sweep.repeats=2 -> sweep.repeats=2: needs -m (a sweep)
hydra.mode=RUN sweep=networks sweep.repeats=2 -> sweep.repeats=2: needs -m (a sweep)
hydra.mode=RUN experiment=quickstart sweep.repeats=2 -> sweep.repeats=2: needs -m (a sweep)
'sweep.where=seed < 2' -> sweep.where=seed < 2: needs -m (a sweep)
-m sweep.repeats=0 -> sweep.repeats=0: must be 1..100000
-m seed=1,2 sweep.repeats=2 -> sweep.repeats=2: the seed is swept as well; leave one out
-m sweep.pairs=[{a:1,2}] -> sweep.pairs=[{a:1,2}]: cannot be read; a list is [a,b], and keys and values are {key:val...
-m sweep.pairs=[1] -> sweep.pairs[0]=1: needs keys and values, as {seed:1}
-m sweep.pairs=[{lr:1}] -> lr: unknown key; nearest optimizer.lr; keys: ...
-m sweep.pairs=[{seed:1},{seed:x}] -> sweep job 2 of 2: seed=x: not a whole number; must be 0..9223372036854775807
-m sweep.pairs=[{seed:1}] seed=2 -> sweep.pairs: seed is given outside of it as well; leave one out
-m seed=1,2 'sweep.where=params < 3' -> sweep.where=params < 3: params: unknown; nearest parameters; parameters, ...
-m seed=1,2 'sweep.where=parameters < 3' -> sweep.where=parameters < 3: holds for none of 2 jobs
-m seed=1,2 'sweep.where=macs' -> sweep.where=macs: gives 1399955456, not true or false; compare it with something
-m seed=1,2 'sweep.where=macs <' -> sweep.where=macs <: not an expression, as parameters < 30e6 and macs < 1e9
-m seed=1,2 'sweep.where=macs / 0 < 1' -> sweep.where=macs / 0 < 1: division by zero
-m seed=1,2 'sweep.where="a" * macs == 1' -> sweep.where="a" * macs == 1: 'a' is not a number
-m seed=1,2 "sweep.where=__import__('os').system('x') == 0" -> sweep.where=__import__('os').system('x') == 0: __im...
-m seed=1,2 sweep.on_error=halt -> sweep.on_error=halt: allowed continue, stop
-m seed=1,2 hydra/launcher=slurm resume=never -> resume=never: a job that Slurm starts again continues its run...
-m seed=1,2 hydra.launcher.jobs=0 -> hydra.launcher.jobs=0: must be auto or 1..4096
-m seed=1,2 hydra.launcher.slots_per_gpu=auto -> hydra.launcher.slots_per_gpu=auto: must be 1..4096
-m seed=1,2 hydra.launcher.gpus=[0,0] -> hydra.launcher.gpus=[0,0]: must be a list of different devices, as [0,1],...
train.epochs==3 data.batch_size=1e3 lr=1 -> train.epochs==3: one = only; lr: unknown key; nearest optimizer.lr; ...
optimizer.lr=-1 data.resize=16 -> optimizer.lr=-1: must be > 0 and <= 100; data.resize=16: too small for 5 poolings ...
data.resize=0 train.accumulate=200 -> data.resize=0: must be 1..4096 or null; train.accumulate=200: more than data...
optimizer=adma optimizer.betas=[0.9,0.9] -> optimizer=adma: unknown; nearest adam, adamw; allowed adam, adamw, mo...
"""  # noqa: E501
ROWS = [tuple(line.split(" -> ")) for line in TABLE.strip().splitlines()]


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.iterdir()), "a refused command writes nothing"


def refusal(*argv: str) -> str:
    with pytest.raises(ConfigError) as refused:
        check_command(parse_command(argv))
    return error_line(str(refused.value)).removeprefix("vggexp: error: ")


def assert_refused(command: str, expected: str) -> None:
    assert_line(refusal(*shlex.split(command)), expected)


def assert_line(line: str, expected: str) -> None:
    if expected.endswith("..."):
        assert line.startswith(expected.removesuffix("..."))
        assert "None" not in line
    else:
        assert line == expected


@pytest.mark.catalog
@pytest.mark.parametrize(("command", "expected"), ROWS, ids=[command for command, _ in ROWS])
def test_refused_and_every_suggested_command_is_accepted(command, expected, empty_folder):
    words = shlex.split(command)
    with pytest.raises(ConfigError) as refused:
        check_command(parse_command(words))
    assert_line(error_line(str(refused.value)).removeprefix("vggexp: error: "), expected)
    for suggested in suggested_commands(words, refused.value.problems):
        check_command(parse_command(suggested))


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ('run.root=a"b', "run.root", 'a"b'),
        ("run.root=a'b", "run.root", "a'b"),
        ("""run.root=a"b'c$d e(""", "run.root", """a"b'c$d e("""),
        ("+run.root=a\\'", "run.root", "a\\'"),
        ("run.root=a(1)", "run.root", "a(1)"),
        ("run.name=695e0514", "run.name", "695e0514"),
        ("run.name=True", "run.name", "True"),
        ("run.name=1_000", "run.name", "1_000"),
        ("data.batch_size=0x10", "data.batch_size", 16),
        ("arch.hidden=1e3", "arch.hidden", [1000]),
        ("arch.blocks=[1,64]", "arch.blocks", [[1, 64]]),
        ("arch.blocks=((1,64),(1,32))", "arch.blocks", [[1, 64], [1, 32]]),
        ("seed: 3", "seed", 3),
        ("--seed=3", "seed", 3),
        ("+train.epochs=3", "train.epochs", 3),
        ("arch@model=lenet", "arch.name", "lenet"),
        ("optimizer.dampening=0.1", "optimizer.dampening", 0.1),
    ],
)
def test_the_advice_of_an_error_works(word, key, value):
    (advice,) = re.findall(r"(?:write|into quotes:) (.*)", refusal(word))
    (fixed,) = shlex.split(advice)
    config = compose_run(parse_command([fixed if "=" in fixed else f"{key}={fixed}"]))
    assert flatten(to_plain(config))[key] == value


def suggestions(problem: str) -> list[list[str]]:
    """Returns the words of each command that an error suggests, without those that are patterns."""
    setting = problem.partition(": ")[0]
    found = []
    for text in re.findall(r"\bwrite (.+?)(?=; |, with |$)", problem):
        for command in text.split(" or "):
            if re.match(r"\d|\[", command):  # the value alone
                command = f"{setting.partition('=')[0]}={command}"
            if "=" in command and not re.search(r"[A-Z]{4}|\$HOME", command):
                found.append(shlex.split(command))
    return found


def suggested_commands(words: list[str], problems: Sequence[str]) -> list[list[str]]:
    """Returns the refused command with each suggestion in place of what it replaces.

    There are none if the command has several problems.
    """
    if len(problems) > 1:
        return []
    (problem,) = problems
    setting = problem.partition(": ")[0]
    key = setting.partition("=")[0].lstrip("+")
    others = [word for word in words if word.lstrip("+").partition("=")[0] != key]
    others = [word for word in others if word not in setting.split()]
    return [[*others, *suggestion] for suggestion in suggestions(problem)]


def test_many_errors_suggest_commands():
    rows = [(shlex.split(command), [expected]) for command, expected in ROWS]
    assert sum(len(suggested_commands(*row)) for row in rows) > 20


def test_all_wrong_keys_are_reported_together():
    values = "arch=vgg12 data.batch_size=0 optimizer.lr=-1 train.epochs==3".split()
    line = refusal(*values, "nonsense=1")
    assert [value for value in values if f"{value}: " not in line] == []
    assert "nonsense: unknown key" in line
    assert refusal("data.batch_size=0", "optimizer.lr=-1", "run.name=a/b").count("; ") == 2


def test_many_bad_jobs_are_counted():
    line = refusal("-m", "optimizer.lr=" + ",".join(map(str, range(-11, 1))))
    assert line.count("sweep job ") == 8
    assert line.endswith("; and 4 more")


SEARCH = "-m hydra/sweeper=optuna"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (f"{SEARCH} optimizer.lr=interval(0.1,200)", "optimizer.lr=200.0: must be > 0 and <= 100"),
        (
            f"{SEARCH} optimizer.lr=interval(0,1) data.resize=32,16",
            "optimizer.lr=0.0: must be > 0 and <= 100; data...",
        ),
        (
            f"{SEARCH} arch=choice(vgg11,vgg12)",
            "arch=vgg12: unknown; nearest vgg11, vgg13; allowed alexnet, lenet, ...",
        ),
    ],
)
def test_a_search_is_checked_at_its_ends(command, expected, empty_folder):
    assert_refused(command, expected)


SIGNS = ["", "", "+", "++", "~", "+~", "-"]
KEYS = [
    *schema_keys(),
    *("arch", "data", "optimizer", "experiment", "sweep", "arch.blocks.0", "arch@x", "a.b", "é"),
    *("hydra", "hydra/launcher", "hydra/sweeper", "hydra.mode", "hydra.sweep.dir", "hydra.verbose"),
    *("hydra.launcher.jobs", "hydra.sweeper.params", "hydra.job.env_set.A", "hydra.searchpath"),
]
EQUALS = [*["="] * 8, "", "==", ":", " ="]
SCALARS = [
    *("1", "-1", "0.5", "1e3", "1e400", "nan", "9" * 30, "01", "true", "null", "???", "vgg11"),
    *(
        "step",
        "''",
        '"x"',
        "'a,b'",
        "a b",
        "é",
        "\u202e",
        "~",
        "*",
        "a=b",
        "a:b",
        "../x",
        "MULTIRUN",
    ),
    *("${seed}", "${now:%S}", "${oc.env:HOME}", "${oc.env:SECRET}", "${nosuch}", "${oc.decode:[}"),
    *(
        "'",
        '"',
        "\\",
        "[",
        "]",
        "(",
        "{",
        "}",
        "#",
        "<",
        "\n",
        "\x00",
        "",
        " ",
        "lr_depth",
        "optuna",
    ),
]
CALLS = "range choice sort shuffle interval tag glob int float str bool nosuch".split()


def random_value(draw: random.Random, depth: int = 0) -> str:
    """Returns scalars, lists, dictionaries, lists without brackets and calls of functions."""
    if depth == 3 or draw.random() < 0.5:
        return draw.choice(SCALARS)
    items = [random_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    text = ",".join(items)
    pairs = ",".join(f"{draw.choice(['seed', 'optimizer.lr', '+a'])}:{item}" for item in items)
    return draw.choice([text, f"[{text}]", f"{{{pairs}}}", f"{draw.choice(CALLS)}({text})"])


def random_override(draw: random.Random) -> str:
    key = draw.choice(SIGNS) + draw.choice(KEYS)
    return key + draw.choice(EQUALS) + random_value(draw)


def check(argv: list[str]) -> None:
    check_command(parse_command(argv))


def assert_accepted_or_refused_in_one_line(function: Callable[[], object]) -> None:
    try:
        function()
    except VggexpError as error:
        assert error.exit_code in (2, 3, 4, 6)
        assert str(error)
        assert "\n" not in error_line(str(error))


@pytest.fixture
def compose_fn():
    with hydra_session(parse_command([])) as compose_fn:
        yield compose_fn


def test_any_word_is_parsed_or_refused(compose_fn):
    draw = random.Random(0)
    for _ in range(2000):
        text = random_override(draw)
        overrides, problems = parse_overrides([text])
        assert len(overrides) + len(problems) == 1
        for override in overrides:
            assert_accepted_or_refused_in_one_line(lambda axis=override: axis.single_values(9))
        for problem in problems:
            assert "\n" not in error_line(problem)


def test_any_overrides_compose_or_are_refused(compose_fn):
    draw = random.Random(1)
    compose_job = cached_compose(compose_fn, [])

    def compose() -> None:
        overrides, _ = parse_overrides([random_override(draw) for _ in range(3)])
        own = [override for override in overrides if not override.is_hydra]
        build_config(compose_or_diagnose(own, compose_job), own)

    for _ in range(80):
        assert_accepted_or_refused_in_one_line(compose)


def test_any_command_is_accepted_or_refused():
    draw = random.Random(2)
    for number in range(8):
        words = [random_override(draw), random_override(draw), *["-m"] * (number % 2)]
        assert_accepted_or_refused_in_one_line(lambda words=words: check(words))


FILE_VALUES = [1, None, True, [1], {"a": 1}, 10**30, "range(", "a\nb", "1,2", *SCALARS]


def test_any_file_is_accepted_or_refused(tmp_path):
    draw = random.Random(3)
    (tmp_path / "experiment").mkdir()
    for number in range(8):
        values: dict = {}
        for key in draw.sample([key for key in KEYS if "/" not in key], 2):
            *sections, last = key.split(".")
            node = values
            for section in sections:
                node = node.setdefault(section, {})
            node[last] = draw.choice(FILE_VALUES)
        text = f"# @package _global_\n{yaml.safe_dump(values)}"
        (tmp_path / "experiment" / "mine.yaml").write_text(text)
        argv = [
            "experiment=mine",
            f"--config-dir={tmp_path}",
            *["-m", "seed=1,2"][: 2 * (number % 2)],
        ]
        assert_accepted_or_refused_in_one_line(lambda argv=argv: check(argv))


@pytest.mark.process
def test_any_command_ends_with_one_line(tmp_path):
    draw = random.Random(4)
    for flags in ([], ["-m"], ["--cfg=job"]):
        words = [word.replace("\0", "") for word in (random_override(draw), random_override(draw))]
        process = subprocess.run(
            [sys.executable, "-m", "vggexp", *flags, *words, "data.root=/nonexistent"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
        )
        assert process.returncode in (2, 3, 4, 6)
        assert process.stderr.startswith("vggexp: error: ")
        assert process.stderr.count("\n") == 1


@pytest.mark.process
def test_refusing_needs_no_torch():
    commands = [
        ["optimizer.lr=-1"],
        ["arch=vgg12"],
        ["-m", "seed=1,x"],
        ["+optimizer.nestrov=1"],
        ["data.resize=16"],
    ]
    code = f"""
import sys
from vggexp.__main__ import main
codes = [main(argv) for argv in {commands}]
print(codes, "torch" in sys.modules, "tensorboard" in sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command_line = [sys.executable, "-c", code]
    process = subprocess.run(command_line, capture_output=True, text=True, env=environment)
    assert process.stdout == f"{[2] * 5} False False\n"
    assert process.stderr.count("\n") == 5


def test_a_word_that_is_not_utf8_is_refused():
    with pytest.raises(ConfigError) as error:
        parse_command([os.fsdecode(b"data.root=caf\xe9")])
    assert error_line(str(error.value)) == (
        r"vggexp: error: data.root=caf\udce9: not UTF-8 text; rename the file or folder"
    )
