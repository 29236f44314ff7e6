"""The metadata of the project, and the content of wheel and sdist.

`make release-check` installs both.
"""

import importlib
import re
import tarfile
import tomllib
import zipfile

import pytest

from tools.release import (
    PROJECT,
    QUICK_TESTS,
    ROOT,
    VERSIONS,
    build,
    find_interpreter,
    unpack,
)
from vggexp import __version__

SHIPPED = ("vggexp", "hydra_plugins", "conf")
SDIST_ONLY = ("tests", "tools", "benchmarks", "docs")
WHEEL_INFO = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


def source_files(*folders: str) -> set[str]:
    names = set()
    for folder in folders:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                names.add(str(path.relative_to(ROOT)))
    return names


def test_python_before_3_11_4_unpacks_without_a_filter(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "a.tar", "w"):
        pass
    calls = []
    monkeypatch.setattr(tarfile.TarFile, "extractall", lambda _, path: calls.append(path))
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    unpack(tmp_path / "a.tar", tmp_path)
    assert calls == [tmp_path]


def test_the_version_is_in_one_place():
    assert "version" in PROJECT["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    sources = [ROOT / "pyproject.toml", ROOT / "docs/conf.py", *(ROOT / "vggexp").rglob("*.py")]
    names = [path.name for path in sources if f'"{__version__}"' in path.read_text("utf-8")]
    assert names == ["__init__.py"]


def test_the_changelog_begins_with_the_version():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", text, re.MULTILINE)
    assert released[0] == __version__


def test_the_metadata_is_true():
    assert PROJECT["license"] == "MIT"
    assert "MIT License" in (ROOT / PROJECT["license-files"][0]).read_text("utf-8")
    assert PROJECT["requires-python"] == f">={VERSIONS[0]}"
    assert (ROOT / PROJECT["readme"]).is_file()
    backend = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]
    assert (ROOT / backend["version"]["path"]).is_file()


@pytest.mark.parametrize("script", PROJECT["scripts"])
def test_every_script_is_a_function(script):
    module, _, name = PROJECT["scripts"][script].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("path", QUICK_TESTS)
def test_the_quick_tests_exist(path):
    assert (ROOT / path).is_file()


def test_a_version_that_is_not_installed():
    assert find_interpreter("2.0") is None


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    pytest.importorskip("build")
    return build(tmp_path_factory.mktemp("dist"))


@pytest.mark.slow  # the build backend is installed in an environment of its own
def test_the_wheel_has_the_package_the_configuration_and_the_plugins(release):
    wheel, _ = release
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"vggexp-{__version__}.dist-info/"
    expected = {info + name for name in WHEEL_INFO}
    for name in source_files(*SHIPPED):
        expected.add(f"vggexp/{name}" if name.startswith("conf/") else name)
    assert names == expected
    assert "vggexp/conf/config.yaml" in names
    assert "vggexp/report/page.html" in names


@pytest.mark.slow
def test_the_sdist_has_what_tests_and_site_need_and_no_runs(release):
    _, sdist = release
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    pages = {path.name for path in ROOT.glob("*.md")}
    files = {
        "LICENSE",
        "Makefile",
        "PKG-INFO",
        "constraints.txt",
        "pyproject.toml",
        ".gitignore",
    }
    assert names == source_files(*SHIPPED, *SDIST_ONLY) | pages | files
