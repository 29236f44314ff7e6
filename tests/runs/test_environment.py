"""What env.json records of the machine, the code and the variables."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import version

import vggexp
from vggexp.runs import environment


def test_the_versions_are_those_of_the_packages():
    versions = environment.collect_environment()["versions"]
    assert versions["python"] == platform.python_version()
    assert versions["torch"] == version("torch")
    assert versions["vggexp"] == vggexp.__version__


def test_a_package_that_is_missing_has_no_version(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("no-such-package",))
    assert environment.collect_environment()["versions"]["no-such-package"] is None


def test_only_the_listed_variables_are_recorded(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    variables = environment.collect_environment()["variables"]
    assert variables["OMP_NUM_THREADS"] == "2"
    assert set(variables) <= {*environment.VARIABLES}


def test_the_hash_of_the_code_changes_with_the_code(monkeypatch, tmp_path):
    package = tmp_path / "vggexp"
    shutil.copytree(os.path.dirname(environment.__file__), package / "runs")
    monkeypatch.setattr(environment, "__file__", str(package / "runs" / "environment.py"))
    before = environment.code_sha256()
    assert environment.code_sha256() == before
    (package / "new.py").touch()
    assert environment.code_sha256() != before


def test_the_commit_of_a_checkout_and_whether_it_has_changes(monkeypatch, tmp_path):
    (tmp_path / "vggexp").mkdir()
    source = tmp_path / "vggexp" / "a.py"
    source.write_text("1\n")
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "vggexp" / "runs" / "a.py"))
    assert environment._commit() == {"commit": head.strip(), "dirty": False}
    source.write_text("2\n")
    assert environment._commit()["dirty"] is True


def test_no_commit_outside_a_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "vggexp" / "runs" / "a.py"))
    assert environment._commit() == {"commit": None, "dirty": None}
