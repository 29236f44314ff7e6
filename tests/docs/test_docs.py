"""The pages of the site: their code runs, their commands compose, their links lead somewhere.

What a fence says: `python` is run, and what is behind a print has to be printed. `console` is run and compared, with
`...` for lines left out; `console figures` compares all but the figures, and so does `console slow`, in a slow test.
`console recorded` is of a longer run and has to compose, as `bash` has to. A `yaml` that opens with a path is written
there. The fences of a page share a folder and their names.
"""

import contextlib
import glob
import importlib.util
import io
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import write_pictures
from vggexp.config.compose import parse_command
from vggexp.sweep.expand import load_command

ROOT = Path(__file__).parents[2]
DOCS = [
    path for path in sorted((ROOT / "docs").rglob("*.md")) if path.name != "keys.md"
]  # which is made
RUN = [
    path for path in DOCS if not path.name.endswith(".zh-CN.md")
]  # a translation has the same code
READ = [*DOCS, *sorted(ROOT.glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]
KEYS = runpy.run_path(str(ROOT / "docs/keys.py"))
FENCE = re.compile(r"^```(?P<info>[^\n{]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
PLACEHOLDERS = ("NAME", "FOLDER", "DIR", "RUN", "...")
FIGURE = re.compile(
    r"(?:\b[bf][fp])?\d[\d,.]*(e[+-]?\d+)?"
)  # and bf16 or fp32, which the processor decides


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


class Fence(NamedTuple):
    info: tuple[str, ...]
    text: str

    def commands(self) -> Iterator[tuple[str, str]]:
        """(command, what is shown of its output); the lines of `bash` are commands."""
        text = re.sub(r"\\\n\s*", "", self.text)
        if "\n$ " not in f"\n{text}":
            yield from ((line, "") for line in text.splitlines())
        for part in f"\n{text}".split("\n$ ")[1:]:
            command, _, output = part.partition("\n")
            yield command, output


@cache
def fences(path: Path) -> list[Fence]:
    found = [
        Fence(tuple(match["info"].split()), match["text"])
        for match in FENCE.finditer(path.read_text("utf-8"))
    ]
    assert all(
        fence.info[:1] in ((), ("python",), ("console",), ("bash",), ("yaml",), ("json",))
        for fence in found
    )
    return found


def is_run(fence: Fence) -> bool:
    kind, *words = fence.info or [""]
    if kind == "python":
        return not any(word in fence.text for word in PLACEHOLDERS)
    return written(fence) is not None or (kind == "console" and set(words) <= {"figures", "slow"})


def run_on(page: Path, slow: bool) -> list[Fence]:
    """What is run of a page: all of it, or what stands before its first slow fence."""
    there = [fence for fence in fences(page) if is_run(fence)]
    return there if slow else list(takewhile(lambda fence: "slow" not in fence.info, there))


def written(fence: Fence) -> str | None:
    match = re.match(r"# (\S+\.yaml)\b", fence.text)
    return match[1] if match and fence.info == ("yaml",) else None


def words_of(command: str) -> list[str]:
    words = shlex.split(command, comments=True)
    return [found for word in words for found in (sorted(glob.glob(word)) or [word])]


def door_of(words: list[str]) -> tuple[str, list[str]] | None:
    """vggexp.plan and its arguments, of `python -m vggexp.plan ...` and of `vggexp-plan ...`."""
    if words[:2] == ["python", "-m"] and words[2].startswith("vggexp"):
        return words[2], words[3:]
    return (
        (words[0].replace("-", "."), words[1:])
        if words and re.fullmatch(r"vggexp(-\w+)?", words[0])
        else None
    )


def answered(door: str, arguments: list[str]) -> int:
    module = importlib.import_module("vggexp.__main__" if door == "vggexp" else door)
    try:
        return module.main(arguments)
    except SystemExit as end:
        return end.code or 0


def pattern(expected: str) -> str:
    lines = expected.rstrip("\n").split("\n")
    return "".join(r"(.*\n)*?" if line == "..." else re.escape(line) + "\n" for line in lines)


def plainly(text: str, figures: bool) -> str:
    """Without spaces at the ends; figures: without them, and with what is aligned pushed together."""
    text = re.sub(r" +$", "", text, flags=re.MULTILINE)
    return re.sub(r" +|-{2,}", " ", FIGURE.sub("0", text)) if figures else text


def ran(command: str, expected: str, figures: bool, capfd: pytest.CaptureFixture) -> None:
    door = door_of(words_of(command))
    if door:
        code, output = answered(*door), "".join(capfd.readouterr())
    else:
        end = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        code, output = end.returncode, end.stdout
    assert (code != 0) == expected.startswith("vggexp: error"), f"{command}\n{output}"
    wanted, given = plainly(expected, figures), plainly(output, figures)
    assert re.fullmatch(pattern(wanted), given.rstrip("\n") + "\n"), f"{command}\n{given}"


def executed(code: str, names: dict) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "fence", "exec"), names)
    beside = re.findall(r"^ *print\(.*  # (.*)$", code, re.MULTILINE)
    below = re.search(r"(?:^# .*\n)*\Z", code, re.MULTILINE)[0].replace("# ", "").splitlines()
    told = beside or below
    assert printed.getvalue().splitlines() == told or not told, printed.getvalue()


@pytest.fixture
def page_runs(tmp_path, monkeypatch, capfd):
    """page_runs(page, slow) runs the fences of a page in their order, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["vggexp"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which waits for no other process

    def run(page: Path, slow: bool) -> None:
        names: dict = {}
        for fence in run_on(page, slow):
            if path := written(fence):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).write_text(fence.text)
            elif fence.info[0] == "python":
                executed(fence.text, names)
            for command, expected in fence.commands() if fence.info[0] == "console" else ():
                capfd.readouterr()
                ran(command, expected, len(fence.info) > 1, capfd)

    return run


def is_slow(page: Path) -> bool:
    return any("slow" in fence.info for fence in fences(page))


@pytest.mark.parametrize("page", [path for path in RUN if run_on(path, slow=False)], ids=named)
def test_code_that_is_shown_runs(page, page_runs):
    page_runs(page, slow=False)


@pytest.mark.slow  # sweeps, and runs that are stopped
@pytest.mark.parametrize("page", [*filter(is_slow, RUN)], ids=named)
def test_slow_code_that_is_shown_runs(page, page_runs):
    page_runs(page, slow=True)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    """A folder with what placeholders stand for: pictures, a file of weights, a folder of YAML."""
    place = tmp_path_factory.mktemp("sandbox")
    for folder in ("FOLDER", "IMAGENET"):
        write_pictures(place / folder, {"train": 2, "test": 2}, lambda index: (8, 8), "png")
    (place / "vgg11-8a719046.pth").write_bytes(b"hashed, not read")
    (place / "DIR/arch").mkdir(parents=True)
    (place / "DIR/arch/vgg9.yaml").write_text((ROOT / "conf/arch/vgg11.yaml").read_text())
    return place


@pytest.fixture(scope="module")
def finished(sandbox):
    """The same with finished runs, NAME and A."""
    small = [
        "data=digits",
        "data.resize=32",
        "data.limit=300",
        "arch.width=0.02",
        "arch.hidden=[4]",
        "train.epochs=1",
    ]
    with contextlib.chdir(sandbox), pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", ["vggexp"])
        assert answered("vggexp", [*small, "run.name=NAME"]) == 0
        Path("outputs/A").symlink_to("NAME")
    return sandbox


@cache
def flags(door: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        answered(door, ["--help"])
    return printed.getvalue()


def composes(command: str) -> None:
    door, arguments = door_of(words_of(command)) or (None, [])
    arguments = [word for word in arguments if word != "..."]
    if door in ("vggexp", "vggexp.plan", "vggexp.bench"):
        own = [word for word in arguments if word not in ("--json", "--help")]
        if (
            "hydra/launcher=ray" in own and importlib.util.find_spec("ray") is None
        ):  # it wants its own environment
            own = [word for word in own if not re.match(r"hydra[./]launcher", word)]
        load_command(parse_command(own))
    elif door:
        assert [
            flag
            for flag in arguments
            if flag.startswith("--") and flag.split("=")[0] not in flags(door)
        ] == []


def not_run(page: Path) -> Iterator[str]:
    """Commands that no test runs, but for those that show an error."""
    for fence in fences(page):
        if fence.info[:1] in ((), ("bash",), ("console",)) and not is_run(fence):
            yield from (
                command
                for command, output in fence.commands()
                if not output.startswith("vggexp: error")
            )


@pytest.mark.parametrize("page", [path for path in RUN if any(not_run(path))], ids=named)
def test_commands_that_are_shown_compose(page, sandbox, monkeypatch):
    monkeypatch.chdir(sandbox)
    for command in not_run(page):
        composes(command)


@pytest.mark.slow  # many sweeps
@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "README.zh-CN.md"], ids=named)
def test_commands_of_the_readme_compose(page, finished, monkeypatch):
    monkeypatch.chdir(finished)
    for command in not_run(page):
        composes(command.split(" && ")[-1])


def test_both_languages_show_the_same_code():
    english, chinese = (
        fences(ROOT / "docs" / name) for name in ("tutorial.md", "tutorial.zh-CN.md")
    )
    assert english == chinese and len(english) > 10


def results(path: Path) -> list[str]:
    return re.findall(r"^\| [1-5] \|.*$", path.read_text("utf-8"), re.MULTILINE)


def test_the_table_of_the_tutorials_is_the_recorded_one():
    record = results(ROOT / "benchmarks/README.md")
    assert len(record) == 5
    assert record == results(ROOT / "docs/tutorial.md") == results(ROOT / "docs/tutorial.zh-CN.md")


@cache
def prose(path: Path) -> str:
    """Without its fences; of the page of keys, which need not be there yet, what is made."""
    return FENCE.sub("", KEYS["page"]() if path == KEYS["PAGE"] else path.read_text("utf-8"))


@cache
def anchors(path: Path) -> set[str]:
    """As GitHub and the site make them: lower case, words joined by -, no other signs."""
    heads = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", READ, ids=named)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "`", prose(page))):
        if not target.startswith("https://"):  # `make docs` lists those
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists() or there == KEYS["PAGE"], target
            assert not anchor or anchor in anchors(there), target


@pytest.mark.slow  # half a minute, and Sphinx (pip install -e '.[docs]')
def test_the_site_is_built_without_a_warning_and_its_links_lead_somewhere(tmp_path):
    pytest.importorskip("pydata_sphinx_theme")
    words = [
        sys.executable,
        "-m",
        "sphinx",
        "-n",
        "-W",
        "-q",
        "-d",
        f"{tmp_path}/trees",
        "-c",
        "docs",
        ".",
        tmp_path,
    ]
    end = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert end.returncode == 0 and not end.stderr, end.stderr
    pages = {
        path: path.read_text("utf-8")
        for path in tmp_path.rglob("*.html")
        if "_static" not in path.parts
    }
    assert len(pages) > 40
    for path, text in pages.items():
        for target in re.findall(r'(?:href|src)="(?!https?:|data:|mailto:)([^"?]*)', text):
            file, _, anchor = target.partition("#")
            there = (path.parent / file).resolve() if file else path
            assert there.exists(), (path, target)
            assert not anchor or f'id="{anchor}"' in pages[there], (path, target)
