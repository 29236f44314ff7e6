"""The copies of images for a mean prediction, against torchvision's translation."""

import pytest
import torch
from torchvision.transforms.v2 import functional as torchvision

from vggexp.data.image_views import ImageViews, recorded_views

IMAGES = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
BLACK = torch.tensor([-1.0, -2.0, -3.0])


@pytest.mark.parametrize("shift", [1, 3])
def test_shifted_images_are_those_of_torchvision(shift):
    moves = [(0, 0), (0, shift), (0, -shift), (shift, 0), (-shift, 0)]  # right, down
    views = list(ImageViews(shift=shift).make(IMAGES, BLACK[:, None, None]))
    for view, move in zip(views, moves, strict=True):
        expected = torchvision.affine(
            IMAGES, angle=0, translate=list(move), scale=1, shear=[0], fill=BLACK.tolist()
        )
        assert torch.equal(view, expected)


def test_with_both_every_place_has_its_mirror_image():
    places = list(ImageViews(shift=2).make(IMAGES))
    views = list(ImageViews(flip=True, shift=2).make(IMAGES))
    assert [view.tolist() for view in views[0::2]] == [place.tolist() for place in places]
    assert [view.tolist() for view in views[1::2]] == [place.flip(-1).tolist() for place in places]


def test_the_images_stay_as_they_are():
    before = IMAGES.clone()
    list(ImageViews(flip=True, shift=2).make(IMAGES, 7))
    assert torch.equal(IMAGES, before)


@pytest.mark.parametrize(
    ("keys", "count", "description", "flags"),
    [
        ({"train.test_flip": False}, 1, "", ""),
        ({"train.test_flip": True}, 2, "mirror images", "--flip"),
        ({"train.test_shift": 2}, 5, "shifts by 2 px", "--shift 2"),
        (
            {"train.test_flip": True, "train.test_shift": 1},
            10,
            "mirror images and shifts by 1 px",
            "--flip --shift 1",
        ),
    ],
)
def test_what_a_run_has_recorded(keys, count, description, flags):
    views = recorded_views(keys)
    assert len(list(views.make(IMAGES))) == views.count == count
    assert views.keys == [key for key, value in keys.items() if value]
    assert (views.description, views.flags) == (description, flags)
