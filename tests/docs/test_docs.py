"""Checks the pages of the site: the code runs, the commands compose, the links resolve.

The first word after the opening fence selects the check:

- `python`: the block is executed. If comments show printed lines, the output must equal them.
- `console`: the commands are executed and the output is compared; `...` stands for omitted lines.
  `console figures` ignores numbers. `console slow` also does, and runs in a slow test only.
- `console recorded` and `bash`: the commands are composed, not executed.
- `yaml`: if the first line is a comment with a path, the block is written to this path.

The blocks of one page share a directory and their Python names.
"""

import contextlib
import copy
import glob
import importlib
import importlib.util
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from tests.conftest import write_images
from vggexp.config.compose import parse_command
from vggexp.config.hydra_safety import LAUNCHERS
from vggexp.errors import ConfigError
from vggexp.sweep import expand

pytestmark = pytest.mark.catalog

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
# A translation has the same code as the page in English.
ENGLISH_PAGES = [path for path in PAGES if not path.name.endswith(".zh-CN.md")]
BENCHMARK_PAGES = sorted((ROOT / "benchmarks").glob("*.md"))
LINKED_PAGES = [*PAGES, *sorted(ROOT.glob("*.md")), *BENCHMARK_PAGES]
FENCE = re.compile(r"^```(?P<info>[^\n{]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE_FORMATS = ("python", "console", "bash", "yaml", "json")
PLACEHOLDERS = ("NAME", "FOLDER", "DIR", "RUN", "...")
# A number, or a precision such as bf16 or fp32, which depends on the processor.
FIGURE = re.compile(r"(?:\b[bf][fp])?\d[\d,.]*(e[+-]?\d+)?")


def relative_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


class Fence(NamedTuple):
    info: tuple[str, ...]
    text: str

    @property
    def format(self) -> str:
        return self.info[0] if self.info else ""

    def commands(self) -> Iterator[tuple[str, str]]:
        """Yields (command, expected output). Without a prompt every line is a command."""
        text = re.sub(r"\\\n\s*", "", self.text)
        if "\n$ " not in f"\n{text}":
            for line in text.splitlines():
                yield line, ""
        for part in f"\n{text}".split("\n$ ")[1:]:
            command, _, output = part.partition("\n")
            yield command, output

    def yaml_path(self) -> str | None:
        """Returns the path in the first line of a `yaml` block, to which the block is written."""
        match = re.match(r"# (\S+\.yaml)\b", self.text)
        return match[1] if match and self.info == ("yaml",) else None

    def is_executed(self) -> bool:
        if self.format == "python":
            return not any(word in self.text for word in PLACEHOLDERS)
        if self.format == "console":
            return set(self.info[1:]) <= {"figures", "slow"}
        return self.yaml_path() is not None


@cache
def fences(path: Path) -> list[Fence]:
    blocks = []
    for match in FENCE.finditer(path.read_text("utf-8")):
        info = tuple(match["info"].split())
        blocks.append(Fence(info, match["text"]))
    assert {block.format for block in blocks} <= {"", *FENCE_FORMATS}
    return blocks


def executed_fences(page: Path, slow: bool) -> list[Fence]:
    """Returns the executed blocks of a page; without `slow`, those before the first slow block."""
    blocks = [fence for fence in fences(page) if fence.is_executed()]
    if slow:
        return blocks
    return list(takewhile(lambda fence: "slow" not in fence.info, blocks))


def split_command(command: str) -> list[str]:
    """Splits a command as a shell does, with wildcards expanded."""
    words = []
    for word in shlex.split(command, comments=True):
        words += sorted(glob.glob(word)) or [word]
    return words


def find_module(words: list[str]) -> tuple[str, list[str]] | None:
    """Returns ("vggexp.plan", arguments) for `python -m vggexp.plan ...` and `vggexp-plan ...`."""
    if words[:2] == ["python", "-m"]:
        name, *arguments = words[2:]
    else:
        script, *arguments = words or [""]
        name = script.replace("-", ".")
    return (name, arguments) if name.split(".")[0] == "vggexp" else None


def run_module(name: str, arguments: list[str]) -> int:
    """Runs a command in this process, as `python -m NAME` does, and returns its exit code."""
    spec = importlib.util.find_spec(name)
    assert spec is not None, name
    is_package = spec.submodule_search_locations is not None
    module = importlib.import_module(f"{name}.__main__" if is_package else name)
    try:
        return module.main(arguments)
    except SystemExit as end:
        return end.code or 0


def output_pattern(expected: str) -> str:
    pattern = ""
    for line in expected.rstrip("\n").split("\n"):
        if line == "...":
            pattern += r"(.*\n)*?"
        else:
            pattern += re.escape(line) + "\n"
    return pattern


def normalize_output(text: str, ignore_figures: bool) -> str:
    """Strips trailing spaces. To ignore figures, replaces them by 0 and collapses the columns."""
    text = re.sub(r" +$", "", text, flags=re.MULTILINE)
    if ignore_figures:
        text = re.sub(r" +|-{2,}", " ", FIGURE.sub("0", text))
    return text


def check_command(
    command: str, expected: str, ignore_figures: bool, capfd: pytest.CaptureFixture
) -> None:
    """Runs a command and compares its output with that of the page."""
    words = split_command(command)
    files = []
    if ">" in words:
        words, files = words[: words.index(">")], words[words.index(">") + 1 :]
    target = find_module(words)
    if target:
        code = run_module(*target)
        output = "".join(capfd.readouterr())
        for file in files:
            Path(file).write_text(output)
            output = ""
    else:
        end = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        code = end.returncode
        output = end.stdout
    assert (code != 0) == expected.startswith("vggexp: error"), f"{command}\n{output}"
    pattern = output_pattern(normalize_output(expected, ignore_figures))
    actual = normalize_output(output, ignore_figures).rstrip("\n") + "\n"
    assert re.fullmatch(pattern, actual), f"{command}\n{actual}"


def check_python(code: str, names: dict) -> None:
    """Executes a block and compares the printed lines with its comments, if it shows any."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "fence", "exec"), names)
    expected = re.findall(r"^ *print\(.*  # (.*)$", code, re.MULTILINE)
    if not expected:
        last_comments = re.search(r"(?:^# .*\n)*\Z", code, re.MULTILINE)
        expected = last_comments[0].replace("# ", "").splitlines()
    if expected:
        assert printed.getvalue().splitlines() == expected


@pytest.fixture
def check_page(tmp_path, monkeypatch, capfd):
    """check_page(page, slow) checks the blocks of a page in their order, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["vggexp"])
    # One thread does not wait for other processes.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def check(page: Path, slow: bool) -> None:
        names: dict = {}
        for fence in executed_fences(page, slow):
            path = fence.yaml_path()
            if path:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).write_text(fence.text)
            elif fence.format == "python":
                check_python(fence.text, names)
            else:
                for command, expected in fence.commands():
                    capfd.readouterr()
                    check_command(command, expected, len(fence.info) > 1, capfd)

    return check


def is_slow(page: Path) -> bool:
    return any("slow" in fence.info for fence in fences(page))


@pytest.mark.process
@pytest.mark.parametrize(
    "page",
    [page for page in ENGLISH_PAGES if executed_fences(page, slow=False)],
    ids=relative_name,
)
def test_code_runs_and_prints_what_the_page_shows(page, check_page):
    check_page(page, slow=False)


@pytest.mark.slow  # sweeps, and runs that are interrupted
@pytest.mark.process
@pytest.mark.parametrize("page", [*filter(is_slow, ENGLISH_PAGES)], ids=relative_name)
def test_slow_code_runs_and_prints_what_the_page_shows(page, check_page):
    check_page(page, slow=True)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    """A directory with what the placeholders name: images, a file of weights, a folder of YAML."""
    root = tmp_path_factory.mktemp("sandbox")
    for folder in ("FOLDER", "IMAGENET"):
        write_images(root / folder, {"train": 2, "test": 2}, lambda index: (8, 8), "png")
    (root / "vgg11-8a719046.pth").write_bytes(b"hashed, not read")
    (root / "DIR/arch").mkdir(parents=True)
    (root / "DIR/arch/vgg9.yaml").write_text((ROOT / "conf/arch/vgg11.yaml").read_text())
    return root


@pytest.fixture(scope="module")
def sandbox_with_runs(sandbox):
    """The sandbox with two finished runs, NAME and A."""
    overrides = [
        "data=digits",
        "data.resize=32",
        "data.limit=300",
        "arch.width=0.02",
        "arch.hidden=[4]",
        "train.epochs=1",
        "run.name=NAME",
    ]
    with contextlib.chdir(sandbox), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["vggexp"])
        assert run_module("vggexp", overrides) == 0
        Path("outputs/A").symlink_to("NAME")
    return sandbox


@cache
def help_text(module: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run_module(module, ["--help"])
    return printed.getvalue()


def check_composes(command: str) -> None:
    """Composes a command of a run; of another command, checks that its options exist."""
    target = find_module(split_command(command))
    if target is None:
        return
    module, arguments = target
    arguments = [word for word in arguments if word != "..."]
    if module in ("vggexp", "vggexp.plan", "vggexp.bench"):
        overrides = [word for word in arguments if word not in ("--json", "--help")]
        if "hydra/launcher=ray" in overrides and importlib.util.find_spec("ray") is None:
            # The launcher needs an environment of its own.
            overrides = [word for word in overrides if not re.match(r"hydra[./]launcher", word)]
        expand.check_command(parse_command(overrides))
        return
    for word in arguments:
        if word.startswith("--"):
            option = word.split("=")[0]
            assert option in help_text(module), command


def commands_to_compose(page: Path) -> list[str]:
    """Returns the commands that no test executes, except those that show an error."""
    commands = []
    for fence in fences(page):
        if fence.format in ("", "bash", "console") and not fence.is_executed():
            for command, output in fence.commands():
                if not output.startswith("vggexp: error"):
                    commands.append(command)
    return commands


@pytest.mark.parametrize(
    "page", [page for page in ENGLISH_PAGES if commands_to_compose(page)], ids=relative_name
)
def test_commands_of_a_page_compose(page, sandbox, monkeypatch):
    monkeypatch.chdir(sandbox)
    for command in commands_to_compose(page):
        check_composes(command)


HYDRA_OVERRIDE = re.compile(r"`(\+{0,2}hydra[./][^`\s]+=[^`\s.]+)`")
HYDRA_OVERRIDES = {word for page in PAGES for word in HYDRA_OVERRIDE.findall(page.read_text())}


@pytest.fixture
def ray_settings(monkeypatch):
    """The settings of hydra-ray-launcher, whose package needs an environment of its own."""
    Plugins.instance()  # the installed plugins store their settings first
    store = ConfigStore.instance()
    monkeypatch.setattr(store, "repo", copy.deepcopy(store.repo))
    ray = {"init": {"address": None}, "remote": {}}
    store.store("ray", {"_target_": LAUNCHERS["ray"], "ray": ray}, "hydra/launcher")


@pytest.mark.parametrize("override", sorted(HYDRA_OVERRIDES))
def test_an_override_of_hydra_in_the_text_composes_in_a_sweep(override, ray_settings):
    axis = "optimizer.lr=interval(0.1,0.2)" if "optuna" in override else "seed=0,1"
    launchers = ["local", "slurm", "joblib", "ray"]
    if "hydra.launcher" not in override:
        launchers = ["local"]
    problems = []
    for launcher in launchers:
        try:
            argv = ["-m", f"hydra/launcher={launcher}", override, axis]
            return expand.check_command(parse_command(argv))
        except ConfigError as error:
            problems.append(str(error))
    raise AssertionError(problems)


@pytest.mark.slow  # many sweeps
@pytest.mark.process
@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "README.zh-CN.md"], ids=relative_name)
def test_commands_of_the_readme_compose(page, sandbox_with_runs, monkeypatch):
    monkeypatch.chdir(sandbox_with_runs)
    for command in commands_to_compose(page):
        check_composes(command.split(" && ")[-1])


def test_both_languages_show_the_same_code():
    english = fences(ROOT / "docs/tutorial.md")
    chinese = fences(ROOT / "docs/tutorial.zh-CN.md")
    assert len(english) > 10
    assert english == chinese


def epoch_rows(path: Path) -> list[str]:
    return re.findall(r"^\| [1-5] \|.*$", path.read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", ["tutorial.md", "tutorial.zh-CN.md"])
def test_the_table_of_the_tutorial_is_the_recorded_one(name):
    recorded = epoch_rows(ROOT / "benchmarks/README.md")
    assert len(recorded) == 5
    assert epoch_rows(ROOT / "docs" / name) == recorded


@cache
def prose(path: Path) -> str:
    """Returns a page without its fences."""
    return FENCE.sub("", path.read_text("utf-8"))


@cache
def anchors(path: Path) -> set[str]:
    """Returns the anchors of the headings, as GitHub and Sphinx make them."""
    result = set()
    for heading in re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE):
        text = re.sub(r"[^\w\- ]", "", heading.lower())
        result.add(text.replace(" ", "-"))
    return result


@pytest.mark.parametrize("page", LINKED_PAGES, ids=relative_name)
def test_links_resolve(page):
    text = re.sub(r"`[^`\n]*`", "`", prose(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):  # `make docs` lists them
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The files of the built site and their text. Sphinx must not warn."""
    pytest.importorskip("pydata_sphinx_theme")
    root = tmp_path_factory.mktemp("site")
    options = ["-n", "-W", "-q", "-d", str(root / "trees"), "-c", "docs"]
    command = [sys.executable, "-m", "sphinx", *options, ".", str(root)]
    end = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert end.returncode == 0, end.stderr
    assert end.stderr == ""
    pages = {}
    for path in root.rglob("*.html"):
        if "_static" not in path.parts:
            pages[path] = path.read_text("utf-8")
    return pages


@pytest.mark.slow  # half a minute, and Sphinx (pip install -e '.[docs]')
@pytest.mark.process
def test_links_of_the_built_site_resolve(site):
    assert len(site) > 40
    for page, text in site.items():
        for target in re.findall(r'(?:href|src)="(?!https?:|data:|mailto:)([^"?]*)', text):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), (page, target)
            if anchor:
                assert f'id="{anchor}"' in site[file], (page, target)
