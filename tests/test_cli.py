"""What a newcomer asks first: help, the whole configuration, completion; and how a refusal ends."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from vggexp.config.compose import parse_command
from vggexp.sweep.expand import compose_run

ROOT = Path(__file__).parents[1]
AS_SCRIPT = """
import atexit, sys
atexit.register(lambda: print("torch" in sys.modules, file=sys.stderr))
sys.argv[0] = "vggexp"
from vggexp.__main__ import main
sys.exit(main())
"""


@pytest.fixture
def ran(tmp_path):
    """ran(argument, ...) -> the ended console script, whose last line on stderr tells whether torch was imported."""

    def run(*arguments, **environment):
        command = [sys.executable, "-c", AS_SCRIPT, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ended.stderr.splitlines()[-1] == "False", "torch was imported"
        assert not list(tmp_path.iterdir()), "something was written"
        return ended.returncode, ended.stdout, ended.stderr.removesuffix("False\n")

    return run


def test_help_is_one_screen_with_every_choice(tmp_path):
    command = [sys.executable, "-m", "vggexp", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    lines = ended.stdout.splitlines()
    assert ended.returncode == 0 and not ended.stderr
    groups = {path.parent.name: [] for path in (ROOT / "conf").glob("*/*.yaml")}
    for group, names in groups.items():
        names += sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))
        assert [line for line in lines if line.startswith(f"{group}: ")] == [
            f"{group}: {', '.join(names)}"
        ]
    written = [
        line for line in lines if line.partition(": ")[0] not in groups
    ]  # the lists grow with the files
    assert len(lines) <= 60 and max(map(len, written)) <= 120
    assert not list(tmp_path.iterdir())


def test_help_names_every_door(ran):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    _, text, _ = ran("--help")
    for name, place in scripts.items():
        module = place.removesuffix(":main").removesuffix(".__main__")
        assert name == module.replace(".", "-") and f"python -m {module} " in text


def test_help_names_keys_and_values_that_exist(ran):
    _, text, _ = ran("--help")
    words = text.partition("Common keys")[2].partition("More:")[0].partition("\n")[2].split()
    offered = {
        key: values.split("|")
        for key, values in (word.split("=", 1) for word in words)
        if key != "arch.blocks"
    }
    assert len(offered) > 20
    for turn in range(max(map(len, offered.values()))):
        compose_run(
            parse_command(
                [f"{key}={values[turn % len(values)]}" for key, values in offered.items()]
            )
        )


def test_the_whole_configuration(ran):
    code, text, error = ran("seed=3", "--cfg", "job", "arch=vgg16")
    config = yaml.safe_load(text)
    assert (
        (code, error) == (0, "") and config["seed"] == 3 and len(config["arch"]["blocks"][-1]) == 2
    )


def test_version(ran):
    code, text, error = ran("--version")
    assert (code, error) == (0, "") and text.startswith("vggexp ") and "(hydra " in text


def test_info(ran):
    code, text, error = ran("--info", "plugins")
    assert (code, error) == (0, "") and "GridSweeper" in text and "VggexpSearchPath" in text


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("vggexp arch=vgg1", {"arch=vgg11", "arch=vgg16c", "arch=vgg19_bn"}),
        ("vggexp arch=vgg11 optimizer.l", {"optimizer.lr="}),
        ("vggexp ", {"arch=", "data.", "seed=", "experiment=", "train."}),
    ],
)
def test_bash_completes(line, offered, ran):
    code, text, error = ran("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert (code, error) == (0, "") and offered <= set(text.split())


def test_bash_completion_is_installed_for_the_script(ran):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    assert scripts["vggexp"] == "vggexp.__main__:main"
    code, text, _ = ran("-sc", "install=bash")
    assert code == 0 and text.splitlines()[-1].endswith("hydra_bash_completion vggexp")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense=1"],
        ["-m", "seed=1,x"],
        ["--nosuch"],
        ["--cfg", "job", "nonsense=1"],
        ["seed=1\nvggexp: all is well"],
    ],
)
def test_a_refusal_is_one_line_and_2(arguments, ran):
    code, text, error = ran(*arguments)
    assert (code, text) == (2, "")
    assert error.startswith("vggexp: error: ") and error.count("\n") == 1
