"""Commands whose configuration Hydra could not show are refused in one line."""

import pytest

from tests.sweep.test_expand import write_experiment
from vggexp.config.compose import parse_command
from vggexp.errors import ConfigError
from vggexp.sweep.shown import check_composes


def test_a_configuration_that_cannot_be_shown_is_refused():
    check_composes(parse_command(["arch=vgg13"]))
    check_composes(parse_command(["optimizer.lr=-1"]))  # can be shown, although it is invalid
    with pytest.raises(ConfigError, match="arch=vgg12: unknown; nearest vgg11, vgg13"):
        check_composes(parse_command(["arch=vgg12"]))


@pytest.mark.parametrize("package", ["nosuch", "data.nosuch"])
def test_a_section_that_cannot_be_shown_is_refused(package):
    check_composes(parse_command(["--cfg", "job", "-p", "data"]))
    with pytest.raises(ConfigError, match=f"--package={package}: no such section"):
        check_composes(parse_command(["--cfg", "job", "-p", package]))


@pytest.mark.parametrize("template", ["$FOO", "$", "${hydra.nosuch}"])
def test_a_help_text_that_cannot_be_shown_is_refused(template, tmp_path):
    command = write_experiment(tmp_path, f"hydra: {{help: {{template: '{template}'}}}}")
    check_composes(parse_command(["--help"]))
    with pytest.raises(ConfigError, match=r"hydra\.help"):
        check_composes(parse_command([*command, "--help"]))


def test_values_that_do_not_resolve_are_refused(tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nrun: {root: '${oc.env:VGGEXP_MISSING}'}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    argv = ["experiment=mine", f"--config-dir={tmp_path}", "--cfg", "job"]
    check_composes(parse_command(argv))  # shown as it stands in the file
    with pytest.raises(ConfigError, match=r"run\.root: oc\.env:VGGEXP_MISSING: this environment"):
        check_composes(parse_command([*argv, "--resolve"]))
