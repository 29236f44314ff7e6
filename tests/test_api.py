"""The functions of the package: a run from Python is the run of the command."""

import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import numpy
import pytest

import vggexp
from tests.conftest import TINY, result, write_images
from vggexp.api import error_of_ranks
from vggexp.errors import ConfigError, DataError, ResourceError, VggexpError
from vggexp.plan.__main__ import main as plan_main
from vggexp.runs.directory import read_config, write_result

FUNCTIONS = ("compose", "load_run", "plan", "run")


def test_the_package_shows_its_functions():
    names: dict = {}
    exec("from vggexp import *", names)
    for name in FUNCTIONS:
        assert names[name] is getattr(vggexp, name)
    assert set(dir(vggexp)) == {*FUNCTIONS, "__version__"}
    assert names["__version__"] == vggexp.__version__
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = vggexp.nosuch


def test_plan_is_the_function_also_after_an_import_of_the_command():
    assert callable(plan_main)
    assert vggexp.plan.__module__ == "vggexp.api"


@pytest.mark.process
def test_the_import_is_light():
    code = "import sys, vggexp; print({'torch', 'hydra', 'numpy', 'yaml'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"


def test_compose_returns_the_checked_configuration():
    config = vggexp.compose("arch=lenet", "optimizer.lr=5e-2", "data.resize=28")
    assert config.arch.name == "lenet"
    assert config.optimizer.lr == 0.05


def test_compose_takes_a_folder_of_configurations(tmp_path):
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer/mine.yaml").write_text("name: SGD\nlr: 0.125\nweight_decay: 0\n")
    config = vggexp.compose(f"--config-dir={tmp_path}", "optimizer=mine")
    assert config.optimizer.lr == 0.125


def test_a_plan_is_that_of_the_command(capsys):
    overrides = ["arch=vgg16c", "device=cpu"]
    costs = vggexp.plan(*overrides)
    assert plan_main(overrides) == 0
    assert capsys.readouterr().out == f"{costs}\n"
    assert plan_main([*overrides, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(asdict(costs)))


@pytest.mark.parametrize("function", [vggexp.compose, vggexp.plan, vggexp.run])
def test_an_error_has_the_text_of_the_command(function, command):
    overrides = ["data.batch_size=1e3", "data.resize=16"]
    with pytest.raises(ConfigError) as caught:
        function(*overrides)
    assert command(*overrides)[2] == f"vggexp: error: {caught.value}\n"
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("--version", "--version: a flag of the command; a function takes --config-dir=FOLDER"),
        ("-m", "-m: a flag of the command"),
        (["seed=1"], "list: not an override; give each one as a text, such as 'seed=1'"),
        (1, "int: not an override"),
        ("seed=0,1", "seed=0,1: a list of values needs -m (a sweep)"),
    ],
)
def test_only_the_overrides_of_one_run_are_taken(override, text):
    with pytest.raises(ConfigError) as caught:
        vggexp.run(override)
    assert str(caught.value).startswith(text)


def test_ranks_of_another_launcher_are_refused(monkeypatch):
    variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1234"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"started this program 2 times; .* device.processes=2"):
        vggexp.run(*TINY)


def signal_handlers() -> dict:
    return {signum: signal.getsignal(signum) for signum in signal.valid_signals()}


@pytest.mark.process
def test_a_run_is_that_of_the_command(command, capfd):
    command(*TINY, "run.name=a")
    before = signal_handlers()
    Path("own").mkdir()
    run = vggexp.run(*TINY, "run.name=b", "--config-dir=own")
    assert "\nfolder   outputs/b\n" in capfd.readouterr().out
    assert signal_handlers() == before
    assert run.path == Path("outputs/b")
    assert run.config.data.images == 96
    assert run.result == result("b")
    assert run.result["weights_sha256"] == result("a")["weights_sha256"]
    assert read_config(run.path)["data"]["images"] == 96
    assert (run.path / "overrides.txt").read_text().split() == [
        "--config-dir=own",
        *TINY,
        "run.name=b",
    ]
    assert [row["epoch"] for row in run.metrics] == [1, 2]
    accuracy = numpy.mean(run.predictions.correct)
    assert accuracy == run.result["test/accuracy"]
    assert "model" not in repr(run)


@pytest.mark.process
def test_a_finished_run_is_found(command, capfd):
    first = vggexp.run(*TINY)
    capfd.readouterr()
    again = vggexp.run(*TINY)
    assert capfd.readouterr().out.startswith("already finished: test accuracy ")
    assert again.path == first.path
    assert again.result == first.result
    other = vggexp.run(*TINY, "resume=never")
    assert other.path.name == f"{first.path.name}-2"
    assert other.result["weights_sha256"] == first.result["weights_sha256"]


class InterruptAtEpoch(logging.Handler):
    """Sends this process a signal once, when the line of the first epoch is printed."""

    def __init__(self, signum: int):
        super().__init__()
        self.signum = signum

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("epoch 1/"):
            logging.getLogger("vggexp").removeHandler(self)
            os.kill(os.getpid(), self.signum)


@pytest.mark.process
@pytest.mark.parametrize(
    ("signum", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, VggexpError)]
)
def test_a_signal_stops_the_run_after_a_checkpoint(signum, kind, command):
    before = signal_handlers()
    logging.getLogger("vggexp").addHandler(InterruptAtEpoch(signum))
    with pytest.raises(kind, match=rf"stopped by {signum.name} .*: run the same command"):
        vggexp.run(*TINY, "run.name=a")
    assert signal_handlers() == before
    assert result("a")["state"] == "interrupted"
    continued = vggexp.run(*TINY, "run.name=a")
    command(*TINY, "run.name=b")
    assert continued.result["weights_sha256"] == result("b")["weights_sha256"]


@pytest.mark.process
def test_threads_take_turns(command):
    runs = {}

    def train(seed: int) -> None:
        runs[seed] = vggexp.run(*TINY, f"seed={seed}", "train.epochs=1")

    printed = io.StringIO()  # no file, as in a notebook
    with contextlib.redirect_stdout(printed):
        threads = [threading.Thread(target=train, args=(seed,)) for seed in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert printed.getvalue().count("test accuracy ") == 2
    for seed, run in runs.items():
        alone = vggexp.run(*TINY, f"seed={seed}", "train.epochs=1", "run.name=alone", "run.root=b")
        assert run.result["weights_sha256"] == alone.result["weights_sha256"]
        alone.path.rename(f"b/{seed}")


def test_the_error_of_ranks_is_that_of_their_run_directory(tmp_path):
    write_result(tmp_path, "failed", error="a.png: cannot be decoded", exit_code=3)
    error = error_of_ranks(tmp_path, 3)
    assert isinstance(error, DataError)
    assert str(error) == "a.png: cannot be decoded"
    unrecorded = error_of_ranks(tmp_path / "no", 6)
    assert isinstance(unrecorded, ResourceError)
    assert str(unrecorded).endswith("the lines above hold the reason")


SCRIPT = f"""
import multiprocessing, signal
multiprocessing.set_start_method("forkserver")  # the default of Python 3.14
import vggexp
print("started")
before = {{signum: signal.getsignal(signum) for signum in signal.valid_signals()}}
run = vggexp.run(*{TINY}, "device.processes=2", "train.epochs=1")
print("ranks", run.result["state"])
assert before == {{signum: signal.getsignal(signum) for signum in signal.valid_signals()}}
folder = "data=image_folder data.root=images data.resize=32 data.batch_size=4 data.val_fraction=0"
small = "arch.hidden=[16] arch.width=0.05 train.epochs=1 data.workers=1"
run = vggexp.run(*folder.split(), *small.split())
print("workers", run.result["state"])
"""


@pytest.mark.process
def test_a_script_without_a_guard_starts_ranks_and_workers(tmp_path):
    write_images(tmp_path / "images", {"train": 4, "test": 2}, lambda index: (32, 32), "png")
    (tmp_path / "script.py").write_text(SCRIPT)
    ended = subprocess.run(
        [sys.executable, "script.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines.count("started") == 1
    assert {"ranks finished", "workers finished"} <= {*lines}


CELLS = [
    f"import sys, vggexp; stdout = sys.stdout; run = vggexp.run(*{TINY}); run",
    "print(stdout is sys.stdout, run.result['state'])",
]


@pytest.mark.process
def test_a_notebook_shows_the_lines_of_a_run(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": tmp_path}}).execute()
    first, second = (cell.outputs for cell in notebook.cells)
    printed = "".join(output.text for output in first if output.output_type == "stream")
    assert "\ntest accuracy " in printed
    assert first[-1].data["text/plain"].startswith("LoadedRun(path=")
    # One print may come in several messages.
    assert "".join(output.text for output in second) == "True finished\n"
