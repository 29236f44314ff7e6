"""Rules between keys: each declares the keys that it reads and is skipped if one is invalid."""

import dataclasses

import pytest

from vggexp.config.compose import parse_command
from vggexp.config.derived import INPUT_KEYS, input_spec
from vggexp.config.validate import RULES, validate
from vggexp.errors import ConfigError
from vggexp.sweep.expand import compose_run

OVERRIDES = [
    "",
    "arch=lenet data=synthetic data.resize=28 optimizer=adam scheduler=step",
    "arch=alexnet data.resize=64 scheduler=plateau train.patience=2 train.test_weights=best",
    "device=cuda device.deterministic=true arch=vgg11 train.ema=0.9 augment=scale_jitter",
    "device.processes=2 train.accumulate=4 optimizer.weight_decay=0 run.name=a",
]
SELECTORS = {"arch.name", "data.name", "scheduler.name"}  # invalid together with their group


class ReadRecorder:
    """Wraps a configuration and records the full name of each key that is read."""

    def __init__(self, value, keys, path=""):
        self._value = value
        self._keys = keys
        self._path = path

    @property
    def __class__(self):
        return type(self._value)

    def __getattr__(self, name):
        value = getattr(self._value, name)
        path = f"{self._path}{name}"
        if dataclasses.is_dataclass(value):
            return ReadRecorder(value, self._keys, f"{path}.")
        self._keys.add(path)
        return value


@pytest.fixture(scope="module")
def configs():
    configs = [compose_run(parse_command(overrides.split())) for overrides in OVERRIDES]
    folder = compose_run(parse_command("data=image_folder data.classes=3".split()))
    missing = dataclasses.replace(folder.data, root="/nowhere")
    sources = dataclasses.replace(folder.train, init_from="a", init_sha256="0", freeze=1)
    return [*configs, dataclasses.replace(folder, data=missing, train=sources)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.check.__name__)
def test_a_rule_reads_only_the_keys_that_it_declares(rule, configs):
    allowed = {*rule.keys, *SELECTORS}
    if rule.needs_input:
        allowed |= set(INPUT_KEYS)
    keys = set()
    for config in configs:
        recorder = ReadRecorder(config, keys)
        arguments = [recorder, input_spec(config)] if rule.needs_input else [recorder]
        list(rule.check(*arguments))
    assert keys - allowed == set()


def test_the_input_reads_only_the_keys_that_it_declares(configs):
    keys = set()
    for config in configs:
        input_spec(ReadRecorder(config, keys))
    assert keys - set(INPUT_KEYS) == set()


@pytest.fixture
def config():
    """Breaks two rules: the milestones do not rise, and too few images are left for the batch."""
    config = compose_run(parse_command(["scheduler=step"]))
    scheduler = dataclasses.replace(config.scheduler, milestones=(3.0, 2.0))
    data = dataclasses.replace(config.data, limit=100)
    return dataclasses.replace(config, scheduler=scheduler, data=data)


MILESTONES = "scheduler.milestones=[3.0,2.0]: must be numbers of epochs that rise"
BATCH_SIZE = "data.batch_size=128: more than the 90 training images; choose 90"


@pytest.mark.catalog
@pytest.mark.parametrize(
    ("invalid", "expected"),
    [
        ([], [BATCH_SIZE, MILESTONES]),
        (["scheduler.gamma"], [BATCH_SIZE, MILESTONES]),
        (["scheduler.milestones"], [BATCH_SIZE]),
        (["scheduler.milestones[1]"], [BATCH_SIZE]),
        (["scheduler"], [BATCH_SIZE]),
        (["data.batch_size"], [MILESTONES]),
        (["data.limit"], [MILESTONES]),
        (["data"], [MILESTONES]),
        (["data.batch", "scheduler.mile"], [BATCH_SIZE, MILESTONES]),
        (["data", "scheduler"], []),
    ],
)
def test_rules_that_read_an_invalid_key_are_skipped(config, invalid, expected):
    problems = [problem for problem in validate(config, invalid) if "val_fraction" not in problem]
    assert problems == expected


SYNTHETIC = "data=synthetic data.classes=5 data.size=32"
TWELVE_BLOCKS = ",".join(["[1,8]"] * 12)


@pytest.mark.parametrize(
    ("key", "allowed", "beyond", "others"),
    [
        ("data.batch_size", 50, 51, f"{SYNTHETIC} data.images=50 data.val_fraction=0"),
        ("data.val_fraction", 0.1, 0.08, f"{SYNTHETIC} data.images=50 data.batch_size=8"),
        ("augment.crop", 31, 32, f"{SYNTHETIC} data.images=200"),
        ("train.test_shift", 31, 32, f"{SYNTHETIC} data.images=200"),
        ("augment.scale", "[1.5,1.5]", "[1.5,1.4]", ""),
        ("scheduler.warmup_epochs", 2, 2.5, "train.epochs=2"),
        ("scheduler.warmup_epochs", 0, 0.1, "scheduler=onecycle"),
        ("scheduler.warmup_epochs", 2, 2.1, "scheduler=step"),
        (
            "scheduler.milestones",
            "[2.5,4]",
            "[2.4,4]",
            "scheduler=step scheduler.warmup_epochs=2.5",
        ),
        ("scheduler.milestones", "[3,4]", "[3,3]", "scheduler=step"),
        ("train.accumulate", 32, 33, "data.batch_size=32"),
        ("train.accumulate", 32, 33, "data.batch_size=128 device.processes=4"),
        (
            "arch.blocks",
            f"[{TWELVE_BLOCKS}]",
            f"[{TWELVE_BLOCKS},[1,8]]",
            "data.resize=4096",
        ),
    ],
)
def test_the_last_value_that_a_rule_allows(key, allowed, beyond, others):
    compose_run(parse_command(["device=cpu", *others.split(), f"{key}={allowed}"]))
    with pytest.raises(ConfigError, match=key):
        compose_run(parse_command(["device=cpu", *others.split(), f"{key}={beyond}"]))


@pytest.mark.parametrize(("freeze", "count"), [(5, 0), (6, 1)])
def test_every_block_may_be_frozen(freeze, count, configs):
    config = configs[-1]
    assert len(config.arch.blocks) == 5
    train = dataclasses.replace(config.train, freeze=freeze)
    problems = validate(dataclasses.replace(config, train=train))
    assert sum("train.freeze" in problem for problem in problems) == count


def test_a_run_stands_beside_other_runs_and_not_inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "checkpoints").mkdir(parents=True)
    (tmp_path / "a" / "config.yaml").touch()
    compose_run(parse_command(["run.root=a"]))
    (tmp_path / "a" / "result.json").touch()
    for root in ("a", "a/checkpoints"):
        message = f"run.root={root}: a is the folder of a run; choose one beside it"
        with pytest.raises(ConfigError, match=message):
            compose_run(parse_command([f"run.root={root}"]))
