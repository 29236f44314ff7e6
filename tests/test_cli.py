"""Help, the whole configuration and completion; refusals and errors of any command."""

import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.conftest import full_pipe
from vggexp import cli
from vggexp.__main__ import main
from vggexp.config.compose import parse_command
from vggexp.errors import ConfigError, DataError, StoppedError
from vggexp.runs.records import RunRecord
from vggexp.sweep.expand import compose_run

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
AS_SCRIPT = """
import atexit, sys
atexit.register(lambda: print("torch" in sys.modules, file=sys.stderr))
sys.argv[0] = "vggexp"
from vggexp.__main__ import main
sys.exit(main())
"""


@pytest.fixture
def run_script(tmp_path):
    """run_script(argument, ...) -> exit code, stdout and stderr of the console script.

    Also checks that the script imports no torch and writes nothing.
    """

    def run(*arguments, **variables):
        process = subprocess.run(
            [sys.executable, "-c", AS_SCRIPT, *arguments],
            cwd=tmp_path,
            env=ENVIRONMENT | variables,
            capture_output=True,
            text=True,
        )
        assert process.stderr.splitlines()[-1] == "False", "torch was imported"
        assert not list(tmp_path.iterdir()), "something was written"
        return process.returncode, process.stdout, process.stderr.removesuffix("False\n")

    return run


@pytest.mark.process
def test_help_is_one_screen_with_every_choice(run_script):
    code, text, error = run_script("--help")
    assert code == 0
    assert error == ""
    lines = text.splitlines()
    assert len(lines) <= 60
    groups = {path.parent.name for path in (ROOT / "conf").glob("*/*.yaml")}
    for group in groups:
        names = sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))
        choices = [line for line in lines if line.startswith(f"{group}: ")]
        assert choices == [f"{group}: {', '.join(names)}"]
    for line in lines:
        if line.partition(": ")[0] not in groups:  # the lists grow with the files
            assert len(line) <= 120


@pytest.mark.process
def test_help_names_every_command(run_script):
    _, text, _ = run_script("--help")
    for name, entry_point in SCRIPTS.items():
        module = entry_point.removesuffix(":main").removesuffix(".__main__")
        assert name == module.replace(".", "-")
        assert f"python -m {module} " in text


@pytest.mark.process
def test_help_names_keys_and_values_that_exist(run_script):
    _, text, _ = run_script("--help")
    section = text.partition("Common keys")[2].partition("More:")[0]
    choices = {}
    for word in section.partition("\n")[2].split():
        key, values = word.split("=", 1)
        if key != "arch.blocks":
            choices[key] = values.split("|")
    assert len(choices) > 20
    for index in range(max(map(len, choices.values()))):
        overrides = [f"{key}={values[index % len(values)]}" for key, values in choices.items()]
        compose_run(parse_command(overrides))


@pytest.mark.process
def test_the_whole_configuration(run_script):
    code, text, error = run_script("seed=3", "--cfg", "job", "arch=vgg16")
    config = yaml.safe_load(text)
    assert code == 0
    assert error == ""
    assert config["seed"] == 3
    assert len(config["arch"]["blocks"][-1]) == 2


@pytest.mark.process
def test_version(run_script):
    code, text, error = run_script("--version")
    assert code == 0
    assert error == ""
    assert text.startswith("vggexp ")
    assert "(hydra " in text


@pytest.mark.process
def test_info(run_script):
    code, text, error = run_script("--info", "plugins")
    assert code == 0
    assert error == ""
    assert "GridSweeper" in text
    assert "VggexpSearchPath" in text


@pytest.mark.process
@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("vggexp arch=vgg1", {"arch=vgg11", "arch=vgg16c", "arch=vgg19_bn"}),
        ("vggexp arch=vgg11 optimizer.l", {"optimizer.lr="}),
        ("vggexp device.precision=", {"device.precision=fp32", "device.precision=bf16"}),
        ("vggexp ", {"arch=", "data.", "seed=", "experiment=", "train."}),
    ],
)
def test_bash_completes(line, completions, run_script):
    variables = {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    code, text, error = run_script("-sc", "query=bash", **variables)
    assert code == 0
    assert error == ""
    assert completions <= set(text.split())


@pytest.mark.process
def test_bash_completion_is_installed_for_the_script(run_script):
    assert SCRIPTS["vggexp"] == "vggexp.__main__:main"
    code, text, _ = run_script("-sc", "install=bash")
    assert code == 0
    assert text.splitlines()[-1].endswith("hydra_bash_completion vggexp")


@pytest.mark.process
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
def test_a_refusal_is_one_line_and_code_2(arguments, run_script):
    code, text, error = run_script(*arguments)
    assert code == 2
    assert text == ""
    assert error.startswith("vggexp: error: ")
    assert error.count("\n") == 1


COMMANDS = [entry.removesuffix(":main") for name, entry in SCRIPTS.items() if name != "vggexp"]
PRINT_HELP = """
import contextlib, importlib, io, json, sys

results = {}
for module in sys.argv[1:]:
    code = 0
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            code = importlib.import_module(module).main(["--help"])
        except SystemExit as end:
            code = end.code
    results[module] = [code or 0, printed.getvalue()]
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def help_without_docstrings():
    """Exit code and help of each command, all in one process of `python -OO`."""
    command = [sys.executable, "-OO", "-c", PRINT_HELP, *COMMANDS]
    process = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert process.stderr == ""
    return json.loads(process.stdout)


@pytest.mark.process
@pytest.mark.parametrize("module", COMMANDS)
def test_help_of_a_command_does_not_need_docstrings(module, help_without_docstrings):
    """`python -OO` removes docstrings."""
    code, text = help_without_docstrings[module]
    assert code == 0
    assert f"python -m {module.removesuffix('.__main__')} " in text


def test_a_text_is_printed_with_code_0(capsys):
    assert cli.run(lambda: "a\x1b[2J line") == 0
    assert capsys.readouterr().out == "a\\x1b[2J line\n"


def test_no_text_prints_nothing(capsys):
    assert cli.run(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


FULL = "vggexp: error: stdout: cannot be written: No space left on device\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize(
    ("module", "argv"),
    [
        ("vggexp.plan.__main__", []),
        ("vggexp.plan.__main__", ["--help"]),
        ("vggexp.report.__main__", ["--help"]),
        ("vggexp.verify.__main__", ["--help"]),
        ("vggexp.bench.__main__", ["--help"]),
        ("vggexp.__main__", ["--cfg", "job"]),
        ("vggexp.__main__", ["--help"]),
        ("vggexp.__main__", ["-m", "seed=0,1", "sweep.dry_run=true"]),
    ],
)
def test_output_to_a_full_disk_is_an_error(module, argv, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vggexp"])
    main = __import__(module, fromlist=["main"]).main
    with open("/dev/full", "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(argv) == 6
    assert capfd.readouterr().err == FULL


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_version_that_is_lost_is_an_error(monkeypatch, capfd):
    with open("/dev/full", "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["--version"]) == 6
    assert "No space left on device" in capfd.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize(
    "module", ["__main__", "plan.__main__", "bench.__main__", "verify.__main__"]
)
def test_an_error_that_is_lost_keeps_its_code(module, monkeypatch):
    command = __import__(f"vggexp.{module}", fromlist=["main"]).main
    with open("/dev/full", "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        assert command(["seed=x"]) == 2


def test_an_error_does_not_go_to_stdout(monkeypatch, capfd):
    monkeypatch.setattr(sys, "stderr", None)
    cli.print_error("an error")
    assert capfd.readouterr().out == ""


@pytest.mark.process
def test_ctrl_c_twice_ends_a_command_whose_output_nobody_reads():
    program = (
        "import os, signal, threading\n"
        "from vggexp import cli\n"
        "ctrl_c = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Timer(0.3, ctrl_c).start()\n"
        "cli.print_stopped('stopped')\n"
    )
    read_end, write_end = full_pipe()
    process = subprocess.run([sys.executable, "-c", program], stderr=write_end, timeout=60)
    os.close(read_end)
    os.close(write_end)
    assert process.returncode == -signal.SIGINT


INTERRUPT_AN_IMPORT = """
import signal, sys

class Finder:
    def find_spec(name, path, target=None):
        if name == "vggexp.sweep.grid":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Finder)
import vggexp.__main__
"""


@pytest.mark.process
def test_ctrl_c_while_a_run_is_imported_ends_it_without_a_traceback():
    program = [sys.executable, "-c", INTERRUPT_AN_IMPORT]
    process = subprocess.run(program, capture_output=True, timeout=60)
    assert process.returncode == -signal.SIGINT
    assert process.stderr == b""


def test_a_reader_that_has_exited_is_no_error(monkeypatch, capfd):
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert cli.run(lambda: "text") == 0
    assert capfd.readouterr().err == ""


def test_an_error_is_printed_with_its_code(capsys):
    def fail():
        raise DataError("no\nfile")

    assert cli.run(fail) == 3
    assert capsys.readouterr() == ("", "vggexp: error: no\\nfile\n")


@pytest.mark.parametrize(
    ("messages", "line"), [([], "stopped by Ctrl-C"), (["stopped: x"], "stopped: x")]
)
def test_ctrl_c_is_one_line(messages, line, capsys):
    def interrupt():
        raise KeyboardInterrupt

    assert cli.run(interrupt, *messages) == 130
    assert capsys.readouterr() == ("", f"vggexp: error: {line}\n")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("interrupted", "outputs/a is interrupted: using its newest checkpoint"),
        ("paused", "outputs/a is paused after epoch 2 of 3: using its newest checkpoint"),
    ],
)
def test_the_weights_of_an_unfinished_run_come_with_a_warning(state, words, capsys):
    run = RunRecord(Path("outputs/a"), state, {"train.epochs": 3}, {"epoch": 2}, [], {})
    cli.warn_newest_checkpoint(run._replace(state="finished"))
    assert capsys.readouterr().err == ""
    cli.warn_newest_checkpoint(run)
    assert capsys.readouterr().err == f"warning: {words}\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("seed=x: no number"), "vggexp: error: rank 1: seed=x: no number\n"),
        (
            StoppedError(15, "at epoch 1", "go on"),
            "vggexp: rank 1: stopped by 15 at epoch 1: go on\n",
        ),
    ],
)
def test_one_rank_reports_an_error(error, line, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    cli.report_error(error, should_report=lambda message: False)
    assert capsys.readouterr().err == ""
    cli.report_error(error, should_report=lambda message: True)
    assert capsys.readouterr().err == line


def test_an_environment_variable_gives_the_traceback(monkeypatch):
    monkeypatch.setenv("VGGEXP_TRACEBACK", "1")
    with pytest.raises(ConfigError):
        cli.report_error(ConfigError("seed=x"), should_report=lambda message: True)


@pytest.mark.parametrize("flags", [[], ["-m", "seed=0,1"], ["-m", "sweep.dry_run=true"]])
def test_a_folder_that_cannot_be_is_a_fault_of_the_machine(flags, command):
    code, out, err = command("data=digits", "data.resize=32", f"run.root={'x' * 300}", *flags)
    assert (code, out) == (6, "")
    assert "File name too long" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("word", ["run.root='caf\udce9'", "--config-dir=caf\udce9"])
def test_words_are_utf8(word, command):
    code, _, err = command(word)
    assert code == 2
    assert err == f"vggexp: error: {word}: not UTF-8 text; rename the file or folder\n".replace(
        "\udce9", "\\udce9"
    )


@pytest.mark.process
@pytest.mark.parametrize(
    ("axis", "code", "output"),
    [
        ("seed=60,61", 0, "2 jobs: 0 finished, 2 to run"),
        ("seed=range(60,62)", 2, "vggexp: error: seed=range(60,62): not possible with python -O, "),
    ],
)
def test_python_without_assertions_reads_values_or_says_why_not(axis, code, output, tmp_path):
    arguments = ["-O", "-m", "vggexp", "-m", axis, "sweep.dry_run=true"]
    process = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert process.returncode == code
    last_line = [*process.stdout.splitlines(), *process.stderr.splitlines()][-1]
    assert last_line.startswith(output)


@pytest.mark.process
def test_a_folder_without_search_permission_is_one_line(tmp_path):
    """As root without the capabilities that make permissions void."""
    locked = tmp_path / "locked"
    (locked / "conf").mkdir(parents=True)
    locked.chmod(0o600)
    drop = [f"--{kind}=-dac_override,-dac_read_search" for kind in ("bounding-set", "inh-caps")]
    start = ["setpriv", *drop] if os.geteuid() == 0 else []
    for argument in (f"run.root={locked}/x", f"--config-dir={locked}/conf"):
        process = subprocess.run(
            [*start, sys.executable, "-m", "vggexp", "data=digits", "data.resize=32", argument],
            cwd=tmp_path,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 6
        assert "ermission denied" in process.stderr
        assert process.stderr.count("\n") == 1


@pytest.mark.process
def test_what_the_terminal_lacks_is_escaped(run_script):
    code, text, error = run_script("--cfg=job", "run.root='é±'", PYTHONIOENCODING="ascii")
    assert (code, error) == (0, "")
    assert r"root: \xe9\xb1" in text
