"""Names and arguments of torchvision's data sets: those of torchvision itself, without torch."""

import inspect

import pytest
from torchvision import datasets

from vggexp.config.compose import parse_command
from vggexp.config.torchvision_arguments import argument_problems, name_problem
from vggexp.data.torchvision_sets import ARRAY_SETS, TORCHVISION_SETS, UNSUPPORTED_SETS
from vggexp.errors import ConfigError
from vggexp.sweep.expand import compose_run


def refusal(*overrides):
    with pytest.raises(ConfigError) as caught:
        compose_run(parse_command(["data=torchvision", *overrides]))
    return str(caught.value)


def test_the_tables_name_every_class_once():
    functions = {"wrap_dataset_for_transforms_v2"}
    assert {*TORCHVISION_SETS} | {*UNSUPPORTED_SETS} == {*datasets.__all__} - functions
    assert not {*TORCHVISION_SETS} & {*UNSUPPORTED_SETS}


@pytest.mark.parametrize("name", TORCHVISION_SETS)
def test_the_arguments_are_torchvisions(name):
    info = TORCHVISION_SETS[name]
    dataset_class = getattr(datasets, name)
    parameters = {}
    for cls in reversed(dataset_class.__mro__[:-1]):  # QMNIST hands arguments on to MNIST
        parameters |= inspect.signature(cls).parameters
    used = {*info.arguments, *info.train, *(info.test or {})}
    assert used <= {*parameters}
    assert ("root" in parameters) >= info.has_files
    assert not info.downloads or "download" in parameters


@pytest.mark.parametrize("name", TORCHVISION_SETS)
def test_an_argument_without_a_default_is_required(name):
    parameters = inspect.signature(getattr(datasets, name)).parameters.values()
    open_ones = [
        p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    assert {*open_ones} - {"root"} == {*TORCHVISION_SETS[name].required}


@pytest.mark.parametrize("name", UNSUPPORTED_SETS)
def test_another_class_is_refused_with_its_reason(name):
    assert name_problem(name) == f"data.name={name}: {UNSUPPORTED_SETS[name]}"


@pytest.mark.parametrize(
    ("name", "is_about_labels"), [("Kitti", True), ("LSUN", False), ("MNIST", False)]
)
def test_only_a_reason_about_labels_names_the_labels_that_are_needed(name, is_about_labels):
    assert name_problem(name).endswith("; vggexp needs an image with one class") == is_about_labels


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("SVHN", {}),
        ("EMNIST", {"split": "letters"}),
        ("STL10", {"folds": 9}),
        ("Places365", {"small": True}),
        ("FakeData", {"image_size": [1, 32, 32], "num_classes": 2}),
    ],
)
def test_right_arguments(name, values):
    assert list(argument_problems(name, values)) == []


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("SVHN", {"folds": 1}, "data.folds=1: not an argument of SVHN; it takes none"),
        (
            "SVHN",
            {"split": "extra"},
            "data.split=extra: vggexp chooses the parts of SVHN itself; it",
        ),
        ("Food101", {"loader": "os"}, "data.loader=os: not an argument of Food101; it takes none"),
        (
            "EMNIST",
            {"splt": "letters", "split": "digits"},
            "data.splt=letters: not an argument of EMNIST; nearest split; it takes split",
        ),
        ("EMNIST", {"split": "letter"}, "data.split=letter: allowed byclass, bymerge, balanced, "),
        ("STL10", {"folds": 10}, "data.folds=10: allowed 0..9"),
        ("STL10", {"folds": True}, "data.folds=true: allowed 0..9"),
        ("Places365", {"small": 1}, "data.small=1: allowed false, true"),
        (
            "FakeData",
            {"image_size": [3, 32, 48]},
            "data.image_size=[3,32,48]: allowed [1,SIDE,SIDE], [3,SIDE,SIDE]",
        ),
        (
            "FakeData",
            {"image_size": 32},
            "data.image_size=32: allowed [1,SIDE,SIDE], [3,SIDE,SIDE]",
        ),
        ("FakeData", {"num_classes": 1}, "data.num_classes=1: allowed 2..100000"),
    ],
)
def test_wrong_arguments(name, values, expected):
    (problem,) = argument_problems(name, values)
    assert problem.startswith(expected)


def test_a_missing_argument_is_named_with_its_choices():
    assert refusal("data.name=EMNIST") == (
        "data.split: EMNIST needs it; write +data.split=CHOICE, "
        "allowed byclass, bymerge, balanced, letters, digits, mnist"
    )


@pytest.mark.catalog
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.name=SVNH"], "data.name=SVNH: nearest SVHN; allowed fashion_mnist, "),
        (
            ["data.name=VOCDetection"],
            "data.name=VOCDetection: its labels are boxes around objects; "
            "vggexp needs an image with one class",
        ),
        (["data.name=CIFAR10"], "data.name=CIFAR10: write data=cifar10"),
        ([], "data.name=???: give one of EMNIST, FER2013, "),
        (
            ["data.name=EMNIST", "data.split=letters"],
            "data.split=letters: not in the file data/torchvision; write +data.split=letters",
        ),
        (
            ["data.name=SVHN", "data.test_fraction=0.1"],
            "data.test_fraction=0.1: SVHN has a test part of its own; leave the key out",
        ),
        (["data.name=SVHN", "data.cache=none"], "data.cache=none: allowed auto, device, ram"),
    ],
)
def test_a_wrong_command(overrides, expected):
    assert refusal(*overrides).startswith(expected)


@pytest.mark.catalog
@pytest.mark.parametrize("name", ARRAY_SETS)
def test_a_network_can_be_planned_from_the_name(name):
    """The shape of the images is a fact of the format."""
    required = [f"+data.{key}=letters" for key in TORCHVISION_SETS[name].required]
    counts = ["data.classes=10", "data.train_images=5000", "data.test_images=1000"]
    overrides = ["data=torchvision", f"data.name={name}", "arch=vgg7_bn", "data.resize=32"]
    config = compose_run(parse_command([*overrides, *required, *counts]))
    assert config.run.label.startswith(f"vgg7_bn-{name}-32px")
