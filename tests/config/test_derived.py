"""What follows from a configuration, by arithmetic on its keys."""

import pytest

from vggexp.config import derived
from vggexp.config.compose import parse_command
from vggexp.errors import ConfigError
from vggexp.sweep.expand import compose_run

FASHION = "data=fashion_mnist data.resize=32 device=cpu"


def compose(overrides=""):
    return compose_run(parse_command(f"{FASHION} {overrides}".split()))


@pytest.mark.parametrize(
    "overrides, expected",
    [
        ("data.val_fraction=0.1", (1, 32, 10, 54_000, 6000, 10_000)),
        ("data.val_fraction=0", (1, 32, 10, 60_000, 0, 10_000)),
        ("data.val_fraction=0.25 data.limit=1000", (1, 32, 10, 750, 250, 10_000)),
        (
            "data=synthetic data.resize=null data.images=50 data.val_fraction=0.1 data.channels=3 "
            "data.size=40 data.classes=5 data.batch_size=8",
            (3, 40, 5, 45, 5, 10),
        ),
        ("data=image_folder data.classes=7 data.resize=48", (3, 48, 7, None, None, None)),
        ("data=image_folder data.classes=7 data.resize=null", (3, 224, 7, None, None, None)),
    ],
)
def test_the_input_of_the_network(overrides, expected):
    assert derived.input_spec(compose(overrides)) == expected


@pytest.mark.parametrize("root, reason", [("null", "give the folder"), ("/nowhere", "no such")])
def test_classes_that_cannot_be_counted(root, reason):
    with pytest.raises(ConfigError, match=reason):
        compose(f"data=image_folder data.root={root}")


@pytest.mark.parametrize(
    "overrides, checkpoints",
    [
        ("train.keep=all train.epochs=5", 6),
        ("train.keep=last data.val_fraction=0.1", derived.KEEP_NEWEST + 2),
        ("train.keep=last data.val_fraction=0", derived.KEEP_NEWEST + 1),
    ],
)
def test_a_run_needs_room_for_the_kept_checkpoints_and_the_one_being_written(
    overrides, checkpoints
):
    sizes = derived.disk_bytes(compose(overrides))
    assert sizes["run"] == checkpoints * sizes["checkpoint"]


@pytest.mark.parametrize(
    ("fraction", "epochs", "expected"),
    [("null", 30, None), (0.1, 30, 27), (0.1, 4, None), (0.1, 5, None), (0.5, 3, 1), (0.9, 1, 0)],
)
def test_the_first_epoch_that_only_flips(fraction, epochs, expected):
    config = compose(f"augment.flip_only_fraction={fraction} train.epochs={epochs}")
    assert derived.flip_only_from(config) == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_typed_precision_is_kept(precision):
    config = compose("device=cuda")
    device = config.device.__class__(**{**vars(config.device), "precision": precision})
    assert derived.expected_precision(device) == precision


def test_a_quarter_of_the_batch_has_a_quarter_of_the_activations():
    # The peak of a single micro-batch may be at another layer: it has no sums of gradients.
    halves = derived.memory_bytes(compose("train.accumulate=2"))
    eighths = derived.memory_bytes(compose("train.accumulate=8"))
    assert eighths["activations"] * 4 == halves["activations"]


@pytest.mark.parametrize(
    "overrides, expected",
    [
        ("device=cuda device.precision=bf16", True),
        ("device=cuda device.precision=fp32", False),
        ("device=cuda device.precision=bf16 device.compile=true", False),
        ("device=cuda device.precision=bf16 device.channels_last=false", False),
        ("device=cuda device.precision=bf16 arch=lenet", False),
        ("device=cpu device.precision=bf16", False),
    ],
)
def test_triton_kernels_fit_a_vgg_in_bf16_on_cuda(overrides, expected):
    config = compose(overrides)
    precision = derived.expected_precision(config.device)
    assert derived.uses_triton(config, precision) is expected


def test_each_rank_holds_its_part_of_a_micro_batch():
    expected = memory("data.batch_size=128 train.accumulate=4")
    assert memory("data.batch_size=128 device.processes=4") == expected
    both = "device.processes=2 train.accumulate=2"
    assert memory(f"data.batch_size=128 {both}") == expected
    assert memory(f"data.batch_size=125 {both}") == expected  # the largest part has 32 images too
    assert memory(f"data.batch_size=124 {both}") != expected


def memory(overrides):
    return derived.memory_bytes(compose(overrides))["activations"]
