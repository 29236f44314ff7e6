"""What a sweep's grammar makes: pairs, repeats, and only the jobs that are wanted."""

import pytest

from vggexp.config.compose import parse_command
from vggexp.plan import plan_costs
from vggexp.sweep.expand import compose_run, load_command
from vggexp.sweep.filter import filter_values, matches
from vggexp.sweep.grid import format_override

PAIRS = "sweep.pairs=[{arch:vgg11,optimizer.lr:0.05},{arch:vgg16,optimizer.lr:0.01}]"
TWO = [["arch=vgg11", "optimizer.lr=0.05"], ["arch=vgg16", "optimizer.lr=0.01"]]


def jobs(*argv):
    return [job.overrides for job in load_command(parse_command(["-m", *argv]))]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([PAIRS], TWO),
        ([PAIRS, "seed=1,2"], [[f"seed={seed}", *pair] for seed in (1, 2) for pair in TWO]),
        ([PAIRS, "sweep.repeats=2"], [[*pair, f"seed={seed}"] for pair in TWO for seed in (0, 1)]),
        (["sweep.repeats=3", "seed=7"], [["seed=7", f"seed={seed}"] for seed in (7, 8, 9)]),
        (
            ["sweep.pairs=[{arch.blocks:[[1,8]],optimizer:{lr:0.1}}]"],
            [["arch.blocks=[[1,8]]", "optimizer.lr=0.1"]],
        ),
        (
            ["arch=vgg11,vgg13,vgg16", "sweep.where=weight_layers < 14"],
            [["arch=vgg11"], ["arch=vgg13"]],
        ),
        (
            ["arch=vgg11,lenet", "sweep.where=not macs > 1e6 or arch.name == 'vgg'"],
            [["arch=vgg11"]],
        ),
    ],
)
def test_jobs(argv, expected):
    assert jobs(*argv) == expected


def test_the_same_stands_in_a_file(tmp_path):
    (tmp_path / "sweep").mkdir()
    text = "# @package _global_\nhydra: {mode: MULTIRUN}\nsweep:\n  repeats: 2\n  where: seed < 1\n  pairs:\n"
    text += "    - {arch: vgg11, optimizer.lr: 0.05}\n    - {arch: vgg16, optimizer.lr: 0.01}\n"
    (tmp_path / "sweep" / "mine.yaml").write_text(text)
    made = load_command(parse_command(["sweep=mine", f"--config-dir={tmp_path}"]))
    assert [job.overrides for job in made] == [["sweep=mine", *pair, "seed=0"] for pair in TWO]
    assert [job.config.optimizer.lr for job in made] == [0.05, 0.01]


def test_a_sweep_is_composed_as_each_of_its_jobs_alone():
    axes = [
        "arch=vgg11,vgg13_bn",
        "optimizer=sgd,momentum",
        "optimizer.lr=0.1,0.2",
        "arch.blocks=[[1,8]],[[2,4]]",
    ]
    made = load_command(
        parse_command(
            [
                "-m",
                *axes,
                "train.ema=0.5",
                "+optimizer.dampening=0.1",
                "experiment=gluon_vgg11",
                "sweep.objective=test/loss",
            ]
        )
    )
    assert len(made) == 16
    for job in made:
        assert job.config == compose_run(parse_command(job.overrides))


@pytest.mark.parametrize(
    "value",
    [
        1,
        0.05,
        "vgg11",
        "a b",
        "x,y",
        "it's",
        'say "x"',
        [1, [2, "b"]],
        True,
        None,
        "",
        "1",
        "null",
        "é",
    ],
)
def test_an_override_is_read_back(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert OverridesParser.create().parse_override(format_override("a.b", value)).value() == value


def test_where_counts_as_plan_does():
    config = compose_run(parse_command(["arch=vgg16"]))
    made, known = plan_costs(config), filter_values(config)
    assert (known["parameters"], known["macs"], known["weight_layers"]) == (
        made.parameters,
        made.macs,
        16,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 < 2 < 3", True),
        ("1 < 2 > 3", False),
        ("optimizer.lr * 2 == 0.02", True),
        ("-1 < +1", True),
        ("train.ema == null", True),
        ("device.compile == false", True),
        ("arch.norm in ['none', 'batch']", True),
        ("7 // 2 + 7 % 2 - 1 == 3 and not 1 / 2 > 1", True),
        ("seed == 0 or nonsense == 1", True),
        ("arch.norm not in ('none', 'batch')", False),
    ],
)
def test_where(text, expected):
    assert matches(text, compose_run(parse_command([]))) is expected
