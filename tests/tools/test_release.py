"""What a release says of itself, and what wheel and sdist hold. `make release-check` installs them as well."""

import importlib
import re
import tarfile
import tomllib
import zipfile

import pytest

from tools.release import PROJECT, ROOT, VERSIONS, built, interpreter
from vggexp import __version__

SHIPPED = ("vggexp", "hydra_plugins", "conf")
BESIDE = ("tests", "benchmarks", "docs")
INFO = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
MADE = ("__pycache__", "keys.md")  # by running what is there


def files(*folders: str) -> set[str]:
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in paths if not set(path.parts) & set(MADE)}


def test_the_version_stands_in_one_place():
    assert "version" in PROJECT["dynamic"] and re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    sources = [ROOT / "pyproject.toml", ROOT / "docs/conf.py", *(ROOT / "vggexp").rglob("*.py")]
    assert [path.name for path in sources if f'"{__version__}"' in path.read_text("utf-8")] == [
        "__init__.py"
    ]
    released = re.findall(
        r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )
    assert released[0] == __version__


def test_what_is_said_of_the_project_holds():
    assert PROJECT["license"] == "MIT" and "MIT License" in (
        ROOT / PROJECT["license-files"][0]
    ).read_text("utf-8")
    assert PROJECT["requires-python"] == f">={VERSIONS[0]}" and (ROOT / PROJECT["readme"]).is_file()
    for place in PROJECT["scripts"].values():
        module, _, name = place.partition(":")
        assert callable(getattr(importlib.import_module(module), name))
    backend = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]
    assert (ROOT / backend["version"]["path"]).is_file()


def test_an_interpreter_is_found_or_not():
    assert interpreter("2.0") is None


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    pytest.importorskip("build")
    return built(tmp_path_factory.mktemp("dist"))


@pytest.mark.slow  # the backend gets an environment of its own
def test_the_wheel_holds_the_package_its_configuration_and_its_plugins(release):
    wheel, _ = release
    held = set(zipfile.ZipFile(wheel).namelist())
    info = f"vggexp-{__version__}.dist-info/"
    inside = {f"vggexp/{name}" if name.startswith("conf/") else name for name in files(*SHIPPED)}
    assert held == inside | {info + name for name in INFO}
    assert "vggexp/conf/config.yaml" in held and "vggexp/reporting/page.html" in held


@pytest.mark.slow
def test_the_sdist_holds_what_tests_and_site_need_and_no_run(release):
    _, sdist = release
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    pages = {path.name for path in ROOT.glob("*.md")}
    assert held == files(*SHIPPED, *BESIDE) | pages | {
        "LICENSE",
        "Makefile",
        "PKG-INFO",
        "constraints.txt",
        "pyproject.toml",
        ".gitignore",
    }
