"""Tests the command line: flags anywhere, users' own files, and their errors."""

import pytest
from hydra.types import RunMode

from vggexp.config import device
from vggexp.config.compose import hydra_session, parse_command
from vggexp.config.run_id import run_name
from vggexp.config.schema import Config
from vggexp.errors import ConfigError
from vggexp.sweep.expand import compose_run


def config_of(*argv) -> Config:
    return compose_run(parse_command(argv))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_flags_may_stand_anywhere_among_the_overrides(tmp_path):
    argv = ["arch=vgg13", "-m", "seed=1,2", "--config-dir", str(tmp_path), "arch=vgg16", "--json"]
    command = parse_command(argv, "--json")
    assert command.overrides == ["arch=vgg13", "seed=1,2", "arch=vgg16"]
    assert command.flags == ["-m", "--config-dir", str(tmp_path), "--json"]
    assert command.arguments.json
    assert command.arguments.multirun


def test_the_last_override_wins():
    config = config_of(
        "seed=1", "arch=lenet", "optimizer.lr=0.1", "seed=2", "arch=vgg13", "optimizer.lr=0.2"
    )
    assert (config.seed, config.arch.name, config.optimizer.lr) == (2, "vgg", 0.2)


@pytest.mark.parametrize("folder", ["mine", 'my "own" conf é'])
def test_users_add_files(folder, tmp_path):
    write(
        tmp_path / folder / "experiment/mine.yaml",
        "# @package _global_\nseed: 77\ntrain: {epochs: 3}\n",
    )
    config = config_of("experiment=mine", "--config-dir", str(tmp_path / folder), "train.epochs=4")
    assert (config.seed, config.train.epochs) == (77, 4)


def test_users_override_shipped_files(tmp_path, monkeypatch):
    text = "name: vgg\nblocks: [[1, 8]]\nnorm: none\nhidden: [4]\ndropout: 0\nwidth: 1\n"
    write(tmp_path / "arch/vgg11.yaml", text)
    monkeypatch.setenv("VGGEXP_CONF_PATH", str(tmp_path))
    assert config_of().arch.hidden == (4,)
    assert len(config_of("arch=vgg13").arch.blocks) == 5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("train: {epoch: 3}\n", "train.epoch: unknown key; nearest train.epochs; "),
        (
            "optimizer:\n  lr: [0.1]\n",
            "optimizer.lr=[0.1]: must be a finite number, > 0 and <= 100",
        ),
        ("seed: ${nosuch}\n", "seed: Interpolation key 'nosuch' not found"),
        ("a: [1\nb: 2\n", "mine.yaml, line 3: "),
        (
            "defaults: [override /arch: vgg12]\n",
            "mine.yaml: override /arch: vgg12: unknown; nearest vgg11, vgg13; allowed alexnet, ",
        ),
        (
            "optimizer: {_target_: os.system}\n",
            "optimizer._target_=os.system: not an argument of SGD; ",
        ),
    ],
)
def test_an_error_in_a_users_file_is_one_line(text, problem, tmp_path):
    write(tmp_path / "experiment/mine.yaml", "# @package _global_\n" + text)
    with pytest.raises(ConfigError) as caught:
        config_of("experiment=mine", f"--config-dir={tmp_path}")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_reference_is_resolved_among_the_keys_of_a_run(tmp_path):
    text = (
        "train: {epochs: '${data.batch_size}', patience: '${.epochs}'}\nseed: '${train.epochs}'\n"
    )
    write(tmp_path / "experiment/mine.yaml", "# @package _global_\n" + text)
    config = config_of("experiment=mine", f"--config-dir={tmp_path}", "data.batch_size=7")
    assert (config.train.epochs, config.train.patience, config.seed) == (7, 7, 7)
    write(tmp_path / "experiment/mine.yaml", "# @package _global_\nseed: '${hydra.job.num}'\n")
    with pytest.raises(ConfigError, match="seed: Interpolation key 'hydra\\.job\\.num' not found"):
        config_of("experiment=mine", f"--config-dir={tmp_path}")


def test_auto_is_the_detected_device():
    name = device.detect_device()
    assert config_of("device=auto") == config_of(f"device={name}")
    assert config_of("device=auto") == config_of()
    assert run_name(config_of("device=auto")) == run_name(config_of(f"device={name}"))


@pytest.mark.parametrize("words", [["--info", "all"], ["-i", "all"], ["--info=all"], ["--info"]])
def test_the_value_of_info_is_part_of_its_flag(words):
    command = parse_command(["seed=1", *words])
    assert command.flags == ["--info=all"]
    assert command.overrides == ["seed=1"]


@pytest.mark.parametrize("mode", RunMode)
@pytest.mark.parametrize("overrides", [[], ["arch=vgg11", "experiment=quickstart", "seed=3"]])
def test_hydra_gets_a_copy_of_the_checked_composition(overrides, mode):
    command = parse_command(overrides)
    with_mode = [*overrides, f"hydra.mode={mode.name}"]
    with hydra_session(command) as compose_fn:
        first = compose_fn(command.overrides)
        copied = compose_fn(with_mode)
        parse_command(overrides)  # begins another command
        composed = compose_fn(with_mode)
        after = compose_fn(command.overrides)
    assert copied == composed
    assert copied.hydra.mode == mode
    assert first.hydra.mode is None
    assert after == first
