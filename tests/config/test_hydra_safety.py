"""Hostile configurations: a canary stands for every place in Hydra's keys that can name code.

A canary is a file that would be written, or a module `canary` that would be imported.
"""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra._internal.core_plugins import (
    file_config_source,
    importlib_resources_config_source,
    structured_config_source,
)
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from tests.conftest import TINY
from vggexp.__main__ import main
from vggexp.config import hydra_safety
from vggexp.config.compose import hydra_session, parse_command
from vggexp.errors import ConfigError
from vggexp.sweep import task
from vggexp.sweep.expand import check_command, compose_run

pytestmark = pytest.mark.catalog

ROOT = Path(__file__).parents[2]
TOUCH = {"_target_": "pathlib.Path.write_text", "_args_": [{"_target_": "pathlib.Path"}, "x"]}
IMPORT = {"_target_": "canary.f"}
FACTORY = {"version": 1, "root": {}, "handlers": {"a": {"()": "os.mkdir", "path": "written"}}}
SLURM = {"_target_": hydra_safety.LAUNCHERS["slurm"]}
CREATE = "${oc.create:{_target_:canary.f}}"


def log_config(handler: dict) -> dict:
    return {"version": 1, "root": {"handlers": ["a"]}, "handlers": {"a": handler}}


HOSTILE = {  # by name: the section `hydra` of an experiment file, and the key that is refused
    "callback": ({"callbacks": {"a": TOUCH}}, "hydra.callbacks.a"),
    "callback imports": ({"callbacks": {"a": IMPORT}}, "hydra.callbacks.a._target_=canary.f"),
    "callback hidden": ({"callbacks": {"a": CREATE}}, "hydra.callbacks.a._target_=canary.f"),
    "callback arguments": (
        {"callbacks": {"a": {"_target_": hydra_safety.CALLBACKS[0], "x": IMPORT}}},
        "hydra.callbacks.a",
    ),
    "launcher": ({"launcher": IMPORT}, "hydra.launcher._target_=canary.f"),
    "launcher of no distribution": (
        {"launcher": {"_target_": "hydra_plugins.canary.Launcher"}},
        "hydra.launcher._target_=hydra_plugins.canary.Launcher",
    ),
    "launcher argument": ({"launcher": {"jobs": IMPORT}}, "hydra.launcher.jobs._target_"),
    "launcher argument hidden": ({"launcher": {"jobs": CREATE}}, "hydra.launcher.jobs._target_"),
    "launcher in a list": ({"launcher": {"gpus": [IMPORT]}}, "hydra.launcher.gpus[0]._target_"),
    "launcher commands": ({"launcher": {**SLURM, "setup": ["touch written"]}}, ".setup="),
    "launcher options": (
        {"launcher": {**SLURM, "additional_parameters": {"export": "LD_PRELOAD=a.so"}}},
        "hydra.launcher.additional_parameters.export=",
    ),
    "launcher lines": ({"launcher": {**SLURM, "comment": "a\ntouch written"}}, ".comment="),
    "launcher elsewhere": (
        {"launcher": {**SLURM, "ray": {"init": {"address": "ray://evil:1"}}}},
        "hydra.launcher.ray.init.address=",
    ),
    "sweeper": ({"sweeper": IMPORT}, "hydra.sweeper._target_=canary.f"),
    "sweeper argument": ({"sweeper": {"params": {"a": IMPORT}}}, "hydra.sweeper.params.a._target_"),
    "hydra_logging": ({"hydra_logging": FACTORY}, "hydra.hydra_logging: not allowed"),
    "job_logging": ({"job_logging": FACTORY}, "hydra.job_logging: not allowed"),
    "logging hidden": ({"hydra_logging": "${oc.create:{version:1}}"}, "hydra.hydra_logging: not"),
    "log file": (
        {"job_logging": log_config({"class": "logging.FileHandler", "filename": "notes.log"})},
        "choose one with hydra/job_logging=NAME (default, disabled, none, stdout)",
    ),
    "logging that fails": (
        {"job_logging": {"version": 1, "root": {"handlers": ["none"]}}},
        "hydra.job_logging: not allowed",
    ),
    "job name": ({"job": {"name": "../evil"}}, "hydra.job.name=../evil: must be letters"),
    "verbose": ({"verbose": {"a": 1}}, "hydra.verbose={a:1}: must be true"),
    "environment": ({"job": {"env_set": {"LD_PRELOAD": "evil.so"}}}, "env_set.LD_PRELOAD"),
    "environment with a secret": (
        {"job": {"env_set": {"VGGEXP_X": "${oc.env:CANARY_SECRET}"}}},
        "hydra.job.env_set: oc.env:CANARY_SECRET: not read",
    ),
    "help with a secret": (
        {"help": {"template": "${oc.env:CANARY_SECRET}"}},
        "hydra.help: oc.env:CANARY_SECRET: not read",
    ),
    "copied secret": ({"job": {"env_copy": ["CANARY_SECRET"]}}, "env_copy=CANARY_SECRET"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a module `canary`; checks that no canary was touched."""
    monkeypatch.setenv("CANARY_SECRET", "s3cret")
    monkeypatch.setattr(task, "train_job", lambda *_, **__: pytest.fail("a run was started"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "canary.py").write_text("open('imported', 'w')\nf = F = dict\n")
    yield tmp_path
    touched = {path.name for path in tmp_path.iterdir()} - {"canary.py", "conf", "hydra_plugins"}
    assert not touched
    assert "canary" not in sys.modules


def write_experiment(folder: Path, content: dict, name: str = "mine") -> list[str]:
    path = folder / "conf" / "experiment" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# @package _global_\n{yaml.safe_dump(content)}")
    return [f"experiment={name}", f"--config-dir={folder / 'conf'}"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_runs_nothing(name, folder, capsys):
    section, key = HOSTILE[name]
    content = {"hydra": section}
    if "_target_" in section.get("launcher", ""):  # a file of its own, free of a plugin's schema
        content = {"defaults": [{"override /hydra/launcher": "mine"}]}
        path = folder / "conf" / "hydra" / "launcher" / "mine.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(yaml.safe_dump(section["launcher"]))
    command = write_experiment(folder, content)
    for flags in ([], ["-m", "seed=1,2"], ["--help"], ["--cfg", "hydra"], ["--info", "config"]):
        assert main([*command, *flags]) == 2
        error = capsys.readouterr().err
        assert key in error
        assert re.search("not allowed|must |not read", error)
        assert error.count("\n") == 1


def test_hydras_help_knows_no_keys_of_vggexp(folder, capsys):
    for words in (["arch=vgg11"], ["+foo=1"], ["=3"], ["a b"], ["arch=vgg11", "seed=1"]):
        assert main([*words, "--hydra-help"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"vggexp: error: {words[0]}: ")
        assert error.count("\n") == 1
    assert main(["--hydra-help"]) == 0
    assert "--multirun" in capsys.readouterr().out


def test_a_file_that_does_not_compose_is_reported_with_its_key(folder, capsys):
    assert main(write_experiment(folder, {"hydra": {"nosuch": 1}})) == 2
    assert "experiment/mine: hydra.nosuch: Key 'nosuch'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        (None, "mine.yaml: hydra=null: a group of keys; leave it out"),
        (
            {"job": {"env_copy": ["VGGEXP_NONE"]}},
            "hydra.job.env_copy=VGGEXP_NONE: not set in the environment",
        ),
    ],
)
def test_a_section_that_hydra_cannot_use_is_refused(section, problem, folder, capsys):
    assert main(write_experiment(folder, {"hydra": section})) == 2
    assert capsys.readouterr().err.endswith(f"{problem}\n")


@pytest.mark.parametrize("flag", ["--hydra-help", "--info=plugins"])
def test_other_flags_run_nothing(flag, folder, capsys):
    path = folder / "conf" / "hydra" / "hydra_logging" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(FACTORY))
    assert main(["hydra/hydra_logging=mine", f"--config-dir={folder / 'conf'}", flag]) == 2
    assert "hydra.hydra_logging: not allowed" in capsys.readouterr().err


def test_a_file_of_a_single_job_runs_nothing(folder, capsys):
    command = write_experiment(folder, {"hydra": {"callbacks": {"a": IMPORT}}})
    write_experiment(folder, {"seed": 3}, name="good")
    assert main(["-m", "experiment=good,mine", *command[1:]]) == 2
    assert "hydra.callbacks.a._target_=canary.f: not allowed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "override",
    [
        "+hydra.callbacks.a._target_=canary.f",
        "++hydra.launcher._target_=canary.f",
        "hydra.searchpath=[pkg://canary]",
        "hydra.searchpath=[structured://canary]",
        "+hydra.job.env_set.PYTHONPATH=.",
        "+hydra.job.env_set.TORCH_LOGS_OUT=notes.txt",
    ],
)
def test_the_command_line_names_no_code_either(override, folder, capsys):
    assert main([override]) == 2
    assert "not allowed" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["pkg", "structured"])
def test_a_search_path_imports_nothing(scheme, folder, capsys, monkeypatch):
    monkeypatch.setenv("VGGEXP_CONF_PATH", str(folder / "conf"))
    (folder / "conf").mkdir()
    shipped = (ROOT / "conf" / "config.yaml").read_text()
    text = shipped.replace("\nhydra:\n", f'\nhydra:\n  searchpath: ["{scheme}://canary"]\n')
    (folder / "conf" / "config.yaml").write_text(text)
    for flags in ([], ["--help"], ["--cfg", "job"]):
        assert main(flags) == 2
        assert f"hydra.searchpath: {scheme}://canary: not allowed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "overrides",
    [
        "hydra/job_logging=default hydra/hydra_logging=default",
        "hydra/job_logging=stdout hydra/hydra_logging=hydra_debug",
        "+hydra.job.env_set.VGGEXP_X=1 +hydra.job.env_set.OMP_NUM_THREADS=2",
        "hydra/launcher=basic hydra/sweeper=basic",
        "hydra/launcher=slurm hydra.launcher.setup=[make] "
        "+hydra.launcher.additional_parameters.nice=9",
        "hydra/launcher=joblib hydra.launcher.n_jobs=2",
        "+hydra.callbacks.a._target_=hydra.experimental.callbacks.LogJobReturnCallback",
    ],
)
def test_what_hydra_and_its_plugins_ship_is_allowed(overrides):
    if "joblib" in overrides or "slurm" in overrides:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    assert compose_run(parse_command(overrides.split())).seed == 0


@pytest.mark.parametrize(
    ("names", "is_allowed"),
    [
        ("LD_PRELOAD PYTHONPATH PATH CUDA_INJECTION64_PATH NCCL_NET_PLUGIN GIT_SSH_COMMAND", False),
        ("OPENSSL_CONF PERL5OPT MALLOC_TRACE https_proxy VGGEXP_CONF_PATH X", False),
        ("TORCH_LOGS_OUT NCCL_DEBUG_FILE TORCHINDUCTOR_CACHE_DIR OMP_TOOL_LIBRARIES", False),
        ("OMP_NUM_THREADS CUDA_VISIBLE_DEVICES PYTORCH_CUDA_ALLOC_CONF", True),
        ("NCCL_DEBUG NCCL_P2P_DISABLE TORCH_LOGS VGGEXP_DATA", True),
    ],
)
def test_variables_that_a_configuration_sets(names, is_allowed):
    for name in names.split():
        assert bool(hydra_safety.SETTABLE_VARIABLES.fullmatch(name)) == is_allowed, name


PLUGIN = "open('imported', 'w')\n"


@pytest.mark.process
@pytest.mark.parametrize("name", ["__init__.py", "evil/__init__.py", "evil.py", "../yaml.py"])
def test_the_working_directory_is_not_imported(name, folder):
    path = folder / "hydra_plugins" / name
    (folder / "hydra_plugins").mkdir()
    path.parent.mkdir(exist_ok=True)
    path.write_text(PLUGIN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command_line = [sys.executable, "-m", "vggexp.plan", "--json"]
    process = subprocess.run(command_line, capture_output=True, text=True, env=environment)
    path.unlink()
    assert process.stderr == ""
    assert json.loads(process.stdout)["parameters"] == 44_920_074


@pytest.mark.process
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_the_processes_of_a_launcher_import_nothing_from_it_either(launcher, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    for name in ("hydra_joblib_launcher", "hydra_submitit_launcher"):
        (tmp_path / "hydra_plugins" / name).mkdir(parents=True)
        (tmp_path / "hydra_plugins" / name / "__init__.py").write_text(PLUGIN)
    (tmp_path / "hydra_plugins" / "__init__.py").write_text(PLUGIN)
    command_line = [sys.executable, "-m", "vggexp", "-m", f"hydra/launcher={launcher}", *TINY]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [*command_line, "train.epochs=1", "seed=0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert process.returncode == 0, process.stderr
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("expression", ["${oc.env:CANARY_SECRET}", "${oc.${x}:CANARY_SECRET}"])
def test_a_secret_is_not_recorded(expression, folder):
    command = write_experiment(folder, {"data": {"root": expression}, "x": "env"})
    with pytest.raises(ConfigError) as caught:
        compose_run(parse_command(command))
    assert "data.root: oc.env:CANARY_SECRET: not read into a configuration" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_variable_without_a_secret_is_read(folder, monkeypatch):
    monkeypatch.setenv("VGGEXP_DATA", "/data")
    monkeypatch.setenv("SLURM_JWT", "token")
    content = {"run": {"root": "${oc.env:VGGEXP_DATA}/${oc.env:SCRATCH,out}"}}
    monkeypatch.delenv("SCRATCH", raising=False)
    assert compose_run(parse_command(write_experiment(folder, content))).run.root == "/data/out"
    assert hydra_safety.is_readable("SLURM_JOB_ID")
    assert not hydra_safety.is_readable("SLURM_JWT")
    content = {"run": {"root": "${oc.env:VGGEXP_NONE}"}}
    with pytest.raises(ConfigError, match=r"oc\.env:VGGEXP_NONE: this environment variable"):
        compose_run(parse_command(write_experiment(folder, content)))


def test_other_processes_read_the_moment_of_the_command(monkeypatch):
    monkeypatch.setenv("VGGEXP_X", "there")
    with hydra_session(parse_command([])):
        loader = pickle.loads(pickle.dumps(GlobalHydra.instance().config_loader()))
    monkeypatch.setenv("VGGEXP_X", "elsewhere")
    monkeypatch.setattr(hydra_safety.SafeConfigLoader, "moment", hydra_safety.Moment())
    loader.moment.register()
    values = OmegaConf.create({"x": "${oc.env:VGGEXP_X}", "time": "${now:%s %f}"})
    assert values.x == "there"
    assert values.time == loader.moment.time.strftime("%s %f")


def test_omegaconf_reads_the_environment_by_the_same_rule():
    hydra_safety.install()
    node = OmegaConf.create({"a": "${oc.env:AWS_SECRET_ACCESS_KEY,none}"})
    with pytest.raises(Exception, match="not read into a configuration"):
        _ = node.a


def test_a_process_of_joblib_may_register_hydras_sources_again():
    hydra_safety.install()
    registry = SourcesRegistry.instance()
    registry.register(file_config_source.FileConfigSource)
    registry.register(importlib_resources_config_source.ImportlibResourcesConfigSource)
    registry.register(structured_config_source.StructuredConfigSource)
    modules = {registry.resolve(scheme).__module__ for scheme in ("file", "pkg", "structured")}
    assert modules == {"vggexp.config.sources"}


@pytest.mark.parametrize("how", ["--config-dir", "VGGEXP_CONF_PATH"])
def test_a_large_file_is_refused_before_it_is_read(how, folder, monkeypatch):
    command = write_experiment(folder, {"seed": 1})
    with open(folder / "conf" / "experiment" / "mine.yaml", "a") as file:
        file.write(f"# {'x' * (1 << 20)}\n")
    if how == "VGGEXP_CONF_PATH":
        monkeypatch.setenv(how, str(folder / "conf"))
        command = command[:1]
    with pytest.raises(ConfigError, match=r"mine\.yaml: larger than 1 MiB, not a configuration"):
        check_command(parse_command(command))
