"""The page shows every image once, with the colors of its numbers, and loads nothing."""

import re

import numpy as np
import pytest
import torch

from vggexp.look.look import Heat, Look, Picture
from vggexp.look.page import COLORS, colored, filter_sheet, map_strip, overlay, render_page
from vggexp.runs.predictions import Mistake


@pytest.fixture
def pixels():
    return torch.full((1, 8, 8), 100, dtype=torch.uint8)


def test_no_evidence_leaves_the_image_gray(pixels):
    assert (overlay(pixels, torch.zeros(8, 8)) == 100).all()
    assert (overlay(pixels, torch.full((8, 8), -1.0)) == 100).all()


def test_the_strongest_evidence_has_the_last_color(pixels):
    heat = torch.zeros(8, 8)
    heat[2, 3] = 0.2
    shown = overlay(pixels, heat)
    assert shown[2, 3].tolist() == (0.3 * 100 + 0.7 * COLORS[-1]).round().tolist()
    assert (shown.sum(2) != 300).sum() == 1


def test_weak_evidence_is_relative_to_the_smallest_that_counts(pixels):
    heat = torch.full((8, 8), 0.01)
    weak = overlay(pixels, heat, smallest=0.05)
    strong = overlay(pixels, heat)
    assert abs(weak.astype(int) - 100).sum() < abs(strong.astype(int) - 100).sum()


def test_a_small_fall_is_drawn_weaker_than_evidence_of_grad_cam(pixels):
    weak = torch.full((8, 8), 0.01)
    look = Look(Picture("a", pixels, None), torch.tensor([0.9, 0.1]), [Heat(0, weak, weak)], [])
    page = render_page("run", "", [look], torch.zeros(1, 1, 3, 3), ["x", "y"])
    grad_cam, occlusion = re.findall('src="([^"]*)" alt="(?:Grad-CAM|occlusion), x"', page)
    assert grad_cam != occlusion


@pytest.mark.parametrize(
    ("probs", "verdict"),
    [
        ([0.51, 0.49], 'x 0.51, <span class="good">right</span>; the run\'s test: &lt;y&gt; 0.55'),
        ([0.49, 0.51], '&lt;y&gt; 0.51, <span class="bad">but it is x</span>'),
    ],
)
def test_a_mistake_shows_another_prediction_of_the_run_s_own_test(pixels, probs, verdict):
    picture = Picture("test image 4", pixels, 0, Mistake(4, 0, 1, 0.55, 0.45))
    look = Look(picture, torch.tensor(probs), [], [])
    page = render_page("run", "", [look], torch.zeros(1, 1, 3, 3), ["x", "<y>"])
    assert f"<h2>test image 4: {verdict}</h2>" in page


def test_colors_go_from_the_first_to_the_last():
    ends = colored(np.array([[0.0, 1.0]]))
    assert ends[0].tolist() == [COLORS[0].tolist(), COLORS[-1].tolist()]


def test_maps_stand_side_by_side():
    strip = map_strip(torch.eye(4)[None].repeat(3, 1, 1))
    assert strip.shape == (64, 3 * 66, 3)
    assert strip[0, 0].tolist() == COLORS[-1].tolist()
    assert strip[0, 63].tolist() == COLORS[0].tolist()


def test_maps_of_one_pixel_share_a_scale():
    strip = map_strip(torch.tensor([2.0, 0.0])[:, None, None])
    assert strip[0, 0].tolist() == COLORS[-1].tolist()
    assert strip[0, 66].tolist() == COLORS[0].tolist()


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_filter_of_zeros_is_gray(channels):
    filters = torch.zeros(17, channels, 3, 3)
    filters[0] = 1
    sheet = filter_sheet(filters)
    assert sheet.shape == (2 * 20, 16 * 20, 3)
    assert (sheet[0, 0] == 255).all()
    assert (sheet[0, 20] == 128).all()
