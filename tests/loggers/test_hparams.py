"""The rows and columns of TensorBoard's HParams table."""

import pytest

from tests.conftest import TINY
from vggexp.config.compose import parse_command
from vggexp.loggers.hparams import HParamsTable, hparams_table
from vggexp.sweep.expand import compose_run


def table(*typed: str, swept=()) -> HParamsTable:
    overrides = [*TINY, "device=cpu", *typed]
    return hparams_table(compose_run(parse_command(overrides)), overrides, swept)


@pytest.mark.parametrize(
    "override",
    [
        "train.label_smoothing=0.1",
        "+optimizer.dampening=0.1",
        "arch.dropout=0.1",
        "arch.blocks=[[1,8],[1,8]]",
        "seed=3",
    ],
)
def test_runs_that_differ_have_a_column_that_differs(override):
    key = override.lstrip("+").partition("=")[0]
    assert table(override).values[key] != table().values.get(key)
    assert key in table(override).columns


@pytest.mark.parametrize("override", ["optimizer=adam", "scheduler=cosine", "arch.dropout=0.1"])
def test_what_was_typed_is_one_column_of_every_run(override):
    assert table(override).values["overrides"] == f"{table().values['overrides']} {override}"
    assert "overrides" in table().main_columns


@pytest.mark.parametrize(
    ("override", "value"),
    [("arch=vgg11_bn", "vgg11_bn"), ("optimizer=adam", "adam"), ("augment=flip", "flip")],
)
def test_the_chosen_file_of_a_group_is_a_hyperparameter(override, value):
    group = override.partition("=")[0]
    assert table(override).values[group] == value
    assert group in table().columns


def test_the_chosen_experiment_is_a_hyperparameter():
    overrides = ["experiment=quickstart", "device=cpu"]
    config = compose_run(parse_command(overrides))
    assert hparams_table(config, overrides).values["experiment"] == "quickstart"


def test_the_columns_of_another_kind_of_run_are_there():
    assert {"experiment", "data.images", "scheduler.gamma", "optimizer.arguments"} <= {
        *table("scheduler=constant").columns
    }


def test_a_value_has_a_type_that_tensorboard_knows():
    values = table().values
    assert {type(value) for value in values.values()} <= {bool, int, float, str}
    assert values["arch.hidden"] == "[16]"


def test_keys_that_change_no_result_have_no_column():
    typed = ["--config-dir=tests", "data.workers=7", "run.name=x", "resume=force"]
    other = table(*typed, "train.log_steps=3")
    assert other.values == table().values
    assert not {"data.workers", "run.name", "resume", "train.log_steps", "sweep.where"} & {
        *other.columns
    }


def test_a_run_of_a_sweep_has_the_swept_keys_as_columns():
    swept = table("arch=vgg11", "seed=1", swept=["arch", "seed"])
    assert swept.columns == ["arch", "seed"]
    assert swept.main_columns == swept.columns


def test_a_swept_key_that_changes_no_result_is_no_column():
    assert table("run.name=x", "seed=1", swept=["run.name", "seed"]).columns == ["seed"]
    assert table("run.name=x", swept=["run.name"]).columns == table().columns
