"""Every file under conf/ becomes objects that take a step."""

from pathlib import Path

import pytest
import torch

import vggexp
from tests.conftest import TINY, write_pictures
from vggexp.config.device import conf_dir

CONF = Path(conf_dir())


def names(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def keys_of(arch):
    """The tiny set-up without the keys that LeNet and AlexNet do not have."""
    return TINY if arch.startswith("vgg") else [key for key in TINY if not key.startswith("arch.")]


@pytest.mark.parametrize(
    "choice",
    [
        *(f"arch={name}" for name in names("arch")),
        *(f"augment={name}" for name in names("augment")),
        *(f"optimizer={name}" for name in names("optimizer")),
        *(f"scheduler={name}" for name in names("scheduler")),
    ],
)
def test_a_choice_trains_an_epoch(command, choice):
    group, _, name = choice.partition("=")
    tiny = keys_of(name) if group == "arch" else TINY
    size = ["data.resize=64"] if name == "alexnet" else []
    code, _, err = command(choice, *tiny, *size, "train.epochs=1")
    assert (code, err) == (0, "")


@pytest.mark.parametrize("cache", ["none", "ram", "device"])
def test_a_folder_of_pictures(command, tmp_path, cache):
    write_pictures(
        tmp_path / "pictures", {"train": 10, "val": 3}, lambda index: (40 + index, 50), "jpg"
    )
    own = [
        "data=image_folder",
        "data.root=pictures",
        "data.resize=32",
        "data.batch_size=4",
        f"data.cache={cache}",
    ]
    code, out, err = command(
        *own, "data.workers=1", "augment=scale_jitter", "arch=vgg_digits", "train.epochs=1"
    )
    assert (code, err) == (0, "") and "18 images, 2 for validation, 6 for the test" in out
    (tmp_path / "pictures").rename(tmp_path / "elsewhere")
    run = vggexp.load_run(next((tmp_path / "outputs").glob("vgg*")))
    assert run.classes == ("cat", "dog") and run.model(
        run.preprocess(torch.zeros(1, 3, 50, 40))
    ).shape == (1, 2)
    moved = [key.replace("pictures", "elsewhere") for key in own]
    code, _, err = command(*moved, "data.classes=3", "arch=vgg_digits")
    assert code == 3 and "2 classes, but data.classes=3" in err


def test_the_digits_that_scikit_learn_carries(command):
    code, out, err = command("experiment=quickstart", "train.epochs=3", "device.threads=1")
    assert (code, err) == (0, "") and "360 for the test" in out
