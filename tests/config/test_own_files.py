"""A user's own YAML: what it leaves out, which file an error names, what it replaces."""

from dataclasses import replace

import pytest
from hydra.core.hydra_config import HydraConfig

from tests.config.test_compose import config_of, write
from vggexp.config import device
from vggexp.config.keys import to_plain
from vggexp.config.run_id import run_hash
from vggexp.errors import ConfigError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory; own files are in `mine` below it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine"


def problem_of(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config_of("--config-dir=mine", *argv)
    return str(caught.value)


@pytest.mark.catalog
@pytest.mark.parametrize(
    ("file", "content", "overrides"),
    [  # an own file, and the command without it that is the same run
        ("arch", "blocks: [[1, 8]]", ["arch.blocks=[[1,8]]"]),
        ("arch", "name: lenet", ["arch=lenet"]),
        ("data", "resize: 32", ["data.resize=32"]),
        ("data", "name: digits\nresize: 32", ["data=digits", "data.resize=32"]),
        ("data", "name: synthetic\nimages: 200", ["data=synthetic", "data.images=200"]),
        ("augment", "flip: 0.5", ["augment.flip=0.5"]),
        ("optimizer", "lr: 0.1", ["optimizer.lr=0.1"]),
        ("optimizer", "name: Adam\nbetas: [0.9, 0.999]", ["optimizer=adam"]),
        ("optimizer", "name: SGD\nlr: 0.1", ["optimizer.lr=0.1", "~optimizer.momentum"]),
        ("scheduler", "name: step\ngamma: 0.5", ["scheduler=step", "scheduler.gamma=0.5"]),
        ("scheduler", "warmup_epochs: 1", ["scheduler.warmup_epochs=1"]),
        ("device", "name: cuda\nthreads: 3", ["device=cuda", "device.threads=3"]),
        ("device", "threads: 3", ["device.threads=3"]),
        ("arch", "defaults: [vgg13]\nwidth: 0.5", ["arch=vgg13", "arch.width=0.5"]),
    ],
)
def test_a_file_has_the_defaults_of_its_group(file, content, overrides, folder):
    write(folder / file / "mine.yaml", content)
    own = config_of(f"{file}=mine", "--config-dir=mine")
    shipped = config_of(*overrides)
    assert to_plain(replace(own, run=shipped.run)) == to_plain(shipped)  # `run` has labels
    assert run_hash(own) == run_hash(shipped)


def test_a_key_that_a_file_leaves_out_takes_an_override(folder):
    write(folder / "arch/mine.yaml", "blocks: [[1, 8]]\n")
    assert config_of("--config-dir=mine", "arch=mine", "arch.dropout=0.1").arch.dropout == 0.1


@pytest.mark.parametrize("how", ["--config-dir", "VGGEXP_CONF_PATH"])
def test_a_file_with_the_name_of_a_shipped_one_wins(how, folder, monkeypatch):
    write(folder / "arch/vgg11.yaml", "hidden: [4]\n")
    write(folder / "optimizer/adam.yaml", "lr: 0.5\n")
    argv = ["--config-dir=mine"] if how == "--config-dir" else []
    if not argv:
        monkeypatch.setenv(how, str(folder))
    config = config_of("optimizer=adam", *argv)
    assert config.arch.hidden == (4,)
    assert config.optimizer.name == "Adam"
    assert config.optimizer.lr == 0.5


def test_the_folder_of_the_command_wins_over_that_of_the_environment(folder, monkeypatch):
    monkeypatch.setenv("VGGEXP_CONF_PATH", "others")
    write(folder.with_name("others") / "arch/vgg11.yaml", "hidden: [5]\n")
    write(folder / "arch/vgg11.yaml", "hidden: [4]\n")
    assert config_of().arch.hidden == (5,)
    assert config_of("--config-dir=mine").arch.hidden == (4,)


def test_a_replaced_file_is_reported(folder, command):
    write(folder / "optimizer/momentum.yaml", "lr: -1\n")
    write(folder / "arch/vgg13.yaml", "hidden: [4]\n")
    code, _, error = command("--config-dir=mine", "--cfg=job", "optimizer.lr=1")
    assert code == 0
    assert error == "vggexp: note: mine/optimizer/momentum.yaml replaces the shipped file\n"


@pytest.mark.parametrize("how", ["--config-dir", "VGGEXP_CONF_PATH"])
def test_the_detected_device_has_the_values_of_an_own_file(how, folder, monkeypatch):
    write(folder / "device" / f"{device.detect_device()}.yaml", "threads: 3\n")
    argv = ["--config-dir=mine"] if how == "--config-dir" else []
    if not argv:
        monkeypatch.setenv(how, str(folder))
    config = config_of(*argv)
    assert config.device.threads == 3
    assert config.device.name == device.detect_device()
    assert config_of("device.threads=4", *argv).device.threads == 4


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("arch", "dropout: 2", "arch.dropout=2: must be >= 0 and < 1"),
        ("arch", "name: vggg", "arch.name=vggg: nearest vgg; allowed vgg, lenet, alexnet"),
        ("arch", "blocks: [[1, 0]]", "arch.blocks[0]=[1,0]: channels=0: must be 1..65536"),
        ("arch", "droput: 0", "arch.droput: unknown key; nearest arch.dropout; "),
        ("data", "name: digits\nresize: 8", "data.resize=8: too small for 5 poolings "),
        ("optimizer", "name: NAdam\nweight_decay: 0", "optimizer.lr: missing; give it a value"),
        ("scheduler", "milestones: [1]", "scheduler.milestones: not a key of scheduler constant; "),
        ("device", "threads: ${nosuch}", "device.threads: Interpolation key 'nosuch' not found"),
        (
            "experiment",
            "# @package _global_\noptimizer: {lr: -1}",
            "optimizer.lr=-1: must be > 0 and <= 100",
        ),
        ("experiment", "seed: 1", "sets keys of several groups; begin it with # @package _global_"),
        *(
            (
                "experiment",
                f"# @package _global_\ndefaults: [{words}: vgg13]",
                f"{words}: vgg13: write override /arch: vgg13",
            )
            for words in ("/arch", "arch", "override arch", "overide /arch")
        ),
        ("arch", "- name: vgg", "holds a list; needs lines as key: value"),
    ],
)
def test_an_error_names_the_file(file, content, problem, folder):
    write(folder / file / "mine.yaml", content)
    assert problem_of(f"{file}=mine").startswith(f"mine/{file}/mine.yaml: {problem}")


def test_a_file_of_one_number_is_refused(folder):
    write(folder / "arch/mine.yaml", "3")
    path = folder / "arch/mine.yaml"
    assert problem_of("arch=mine") == f"{path}: holds no keys; needs lines as key: value"


def test_a_missing_folder_of_the_environment_is_refused(folder, monkeypatch):
    folder.mkdir()
    monkeypatch.setenv("VGGEXP_CONF_PATH", "mine:yours")
    with pytest.raises(ConfigError, match=r"^VGGEXP_CONF_PATH=yours: no such directory$"):
        config_of()


@pytest.mark.parametrize("word", ["--config-dir=a\nb", "--config-name=a\nb", "data.root='a\nb'"])
def test_a_word_is_one_line(word):
    with pytest.raises(ConfigError) as refused:
        config_of(word)
    assert str(refused.value) == f"{word}: has a line break; write it in one line"


def test_an_error_of_a_typed_value_names_no_file(folder):
    write(folder / "arch/mine.yaml", "dropout: 0.1\n")
    problem = problem_of("arch=mine", "arch.dropout=2", "optimizer.lr=-1")
    assert problem.split("; ") == [
        "arch.dropout=2: must be >= 0 and < 1",
        "optimizer.lr=-1: must be > 0 and <= 100",
    ]


def test_an_error_names_the_file_that_has_the_value(folder):
    write(folder / "optimizer/mine.yaml", "lr: -1\n")
    write(folder / "experiment/mine.yaml", "# @package _global_\noptimizer: {lr: -2}\n")
    problem = problem_of("optimizer=mine", "experiment=mine")
    assert problem.startswith("mine/experiment/mine.yaml: optimizer.lr=-2: ")


def test_files_that_name_each_other_are_reported(folder):
    write(folder / "experiment/first.yaml", "# @package _global_\ndefaults: [second]\n")
    write(folder / "experiment/second.yaml", "# @package _global_\ndefaults: [first]\n")
    assert problem_of("experiment=first") == (
        "defaults: the files name each other in a circle: "
        "mine/experiment/first.yaml, mine/experiment/second.yaml"
    )


def test_a_file_with_a_forbidden_character_is_named(folder):
    write(folder / "experiment" / "mine.yaml", "seed: 1\0")
    assert problem_of("experiment=mine").endswith("mine.yaml: special characters are not allowed")


def test_a_reference_to_hydras_job_is_explained(folder, monkeypatch):
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # of an earlier test's sweep
    text = "# @package _global_\nrun: {name: 'x${hydra:job.num}'}"
    write(folder / "experiment" / "mine.yaml", text)
    reason = "run.name: ${hydra:...} is known to Hydra's jobs alone; write the value"
    assert problem_of("experiment=mine") == f"mine/experiment/mine.yaml: {reason}"
