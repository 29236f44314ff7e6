"""Tests sweep.lr_range: when a loss falls, the band, what it proposes, and the shipped sweep."""

import shlex
from pathlib import Path

import pytest

from tests.conftest import TINY
from vggexp.config.compose import parse_command
from vggexp.errors import ConfigError
from vggexp.sweep.expand import check_command, compose_outline, compose_run, expand_sweep
from vggexp.sweep.lr_range import Rate, band_text, loss_falls

SMALL = ["sweep=lr_range", "data=digits", "arch=vgg_digits", "arch.width=0.125", "arch.hidden=[]"]
SMALL += ["data.limit=150", "data.test_limit=50", "data.batch_size=16", "device.threads=1"]
SMALL += ["train.epochs=3", "sweep.halving_start=2", "sweep.repeats=2"]


@pytest.mark.parametrize(
    ("losses", "falls"),
    [
        ([], False),
        ([2.2], False),  # a tenth below guessing is 2.07
        ([2.0], True),
        ([2.3, 1.0], True),
        ([5.0, 4.0], False),  # still above guessing
        ([40.0, 2.302], False),  # dead after a high first loss
        ([1.0, 1.5], False),
        ([1.0, 1.5, 1.0], True),
        ([2.3, float("nan")], False),
    ],
)
def test_a_loss_falls_below_guessing_and_below_the_first_epoch(losses, falls):
    assert loss_falls(losses, guessing_loss=2.3026) is falls


def make_rates(falling, diverged=(), epochs=()):
    """Returns the rates 0.001, 0.01, 0.1, 1 and 10 of which some fall; a higher one is better."""
    rates = []
    for index, lr in enumerate((0.001, 0.01, 0.1, 1, 10)):
        rates.append(
            Rate(
                lr,
                falls=lr in falling,
                diverged=lr in diverged,
                epochs=9 if lr in epochs else 3,
                score=1.0 - index / 10,
            )
        )
    return rates


LARGER = "optimizer.lr=30,100"
SMALLER = "optimizer.lr=1e-05,0.0001"


@pytest.mark.parametrize(
    ("rates", "text"),
    [
        (make_rates([0.01, 0.1, 1]), "from 0.01 to 1; take optimizer.lr=1"),
        (make_rates([0.01, 0.1, 1], epochs=[0.1]), "from 0.01 to 1; take optimizer.lr=0.1"),
        (make_rates([0.1], epochs=[10]), "at 0.1 alone; take optimizer.lr=0.1"),
        (make_rates([0.001, 0.1, 1]), "from 0.1 to 1; take optimizer.lr=1"),
        (
            make_rates([0.001, 0.01, 0.1, 1, 10]),
            f"from 0.001 to 10; take optimizer.lr=10, or try larger rates, {LARGER}",
        ),
        (
            make_rates([1, 10], epochs=[1]),
            f"from 1 to 10; take optimizer.lr=1, or try larger rates, {LARGER}",
        ),
        (
            make_rates([0.001], diverged=[10]),
            f"at 0.001 alone; take optimizer.lr=0.001, or try smaller rates, {SMALLER}",
        ),
        (
            make_rates([], diverged=[10]),
            "at none of 5 rates from 0.001 to 10; "
            f"try smaller rates, {SMALLER}, or look for the reason: CHECK",
        ),
        (
            make_rates([]),
            "at none of 5 rates from 0.001 to 10; "
            f"try larger rates, {LARGER}, or look for the reason: CHECK",
        ),
    ],
)
def test_the_band_is_that_around_the_best_rate(rates, text):
    assert band_text(rates, 3, "train/loss", "CHECK") == f"loss falls for all 3 seeds {text}"


def test_a_single_seed_is_not_all_seeds():
    assert band_text(make_rates([0.1]), 1, "train/loss", "").startswith("loss falls at 0.1 alone")


@pytest.mark.parametrize(
    ("factor", "text"),
    [
        (10, "at 100 alone; take optimizer.lr=100"),
        (2, "at 20 alone; take optimizer.lr=20"),  # 60 alone would be refused
        (1, f"at 10 alone; take optimizer.lr=10, or try larger rates, {LARGER}"),
    ],
)
def test_larger_rates_are_proposed_only_if_two_of_them_are_allowed(factor, text):
    rates = [rate._replace(lr=factor * rate.lr) for rate in make_rates([10])]
    assert band_text(rates, 1, "train/loss", "") == f"loss falls {text}"


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (
            ["-m", *TINY, "seed=0,1", "sweep.lr_range=true"],
            "sweep.lr_range=true: needs several rates, as optimizer.lr=0.001,0.01,0.1",
        ),
        (
            ["-m", *TINY, "optimizer.lr=0.01,0.1", "sweep.lr_range=true", "resume=never"],
            "sweep.lr_range=true: continues its own runs, which resume=never forbids; "
            "leave resume out",
        ),
        ([*TINY, "sweep.lr_range=true"], "sweep.lr_range=true: needs -m (a sweep)"),
        (
            [
                *["-m", *TINY, "optimizer.lr=0.01,0.1", "sweep.lr_range=true"],
                "sweep.objective=test/accuracy",
            ],
            "sweep.lr_range=true: ranks by sweep.objective=test/accuracy during the training; "
            "choose val/accuracy, or set train.test_each_epoch=true",
        ),
        (
            ["sweep=lr_range", *TINY, "hydra/sweeper=optuna"],
            "sweep.lr_range=true: belongs to a grid; this sweeper searches",
        ),
    ],
)
def test_what_does_not_fit_is_refused(argv, error):
    with pytest.raises(ConfigError) as info:
        check_command(parse_command([*argv, "sweep.repeats=1"] if "optuna" in argv[-1] else argv))
    assert str(info.value) == error


@pytest.mark.parametrize("chosen", [["experiment=quickstart"], ["data=digits", "arch=vgg_digits"]])
def test_the_shipped_sweep_tests_fixed_rates_of_any_configuration(chosen):
    command = parse_command(["sweep=lr_range", *chosen])
    grid = expand_sweep(command, compose_outline(command))
    configs = [job.config for job in grid.jobs]
    assert len(configs) == 27
    assert len({config.optimizer.lr for config in configs}) == 9
    assert {config.scheduler.name for config in configs} == {"constant"}


@pytest.mark.process
@pytest.mark.parametrize("launcher", ["local", "joblib"])
def test_planted_rates_are_outside_of_the_band_and_nothing_is_trained_again(command, launcher):
    # The processes of joblib stay in the folder of the test that started them.
    root = f"run.root={Path('outputs').absolute()}"
    argv = [*SMALL, "optimizer.lr=1e-9,0.01,90", f"hydra/launcher={launcher}", root]
    code, out, _ = command(*argv)
    line = "rates    loss falls for all 2 seeds at 0.01 alone; take optimizer.lr=0.01"
    assert (code, out.splitlines()[-4]) == (0, line)
    times = {path: path.stat().st_mtime_ns for path in Path("outputs").glob("vgg*/*")}
    code, out, _ = command(*argv)
    assert (code, out.splitlines()[-4]) == (0, line)
    assert {path: path.stat().st_mtime_ns for path in Path("outputs").glob("vgg*/*")} == times


@pytest.mark.process
def test_each_network_has_its_band_and_rates_that_diverge_are_no_failure(command):
    argv = ["-m", *TINY, "arch=vgg11,vgg13", "arch.init=paper", "optimizer.lr=50,100"]
    code, out, _ = command(*argv, "sweep.lr_range=true", "sweep.repeats=2")
    text = "loss falls for all 2 seeds at none of 2 rates from 50 to 100; try smaller rates, "
    text += "optimizer.lr=0.5,5, or look for the reason: python -m vggexp.check"
    lines = [line for line in out.splitlines() if line.startswith("rates ")]
    assert code == 0
    assert [line.partition(" data=")[0] for line in lines] == [
        f"rates    arch=vgg11: {text}",
        f"rates    arch=vgg13: {text}",
    ]
    check = shlex.split(lines[1].partition("vggexp.check")[2])
    assert compose_run(parse_command(check)).arch.blocks[0][0] == 2  # of vgg13, not vgg11
