"""Renders what a network sees as one HTML page that loads nothing from the network."""

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vggexp import __version__
from vggexp.formatting import escape_html
from vggexp.look.look import TOP_CLASSES, Heat, Look
from vggexp.look.saliency import FeatureMaps
from vggexp.report.page import ASSETS as REPORT_ASSETS

ASSETS = Path(__file__).parent
Pixels = NDArray[np.uint8]  # [H, W, 3]

TILE = 64  # side of a feature map in pixels
FILTER_SCALE = 6  # pixels for each weight
FILTER_COLUMNS = 16
GAP = 2  # pixels between tiles
MIN_FALL = 0.05  # of a probability, by occlusion: smaller falls look weak
OPACITY = 0.7  # of the strongest evidence over the image
# From no evidence to the strongest: dark violet, red, orange, yellow.
COLORS = np.array([(20, 11, 52), (132, 32, 107), (229, 92, 48), (246, 215, 70)], float)


def render_page(
    run: str, summary: str, looks: Iterable[Look], filters: Tensor, classes: Sequence[str]
) -> str:
    """Returns the page.

    Args:
        run: name of the run.
        summary: what the network is, in a few words.
        filters: weights of the first convolution, [filters, C, kernel, kernel].
        classes: names of the classes.
    """
    style = (REPORT_ASSETS / "page.css").read_text("utf-8")
    style += (ASSETS / "page.css").read_text("utf-8")
    template = Template((ASSETS / "page.html").read_text("utf-8"))
    return template.substitute(
        title=escape_html(run),
        summary=escape_html(summary),
        pictures="".join(_picture_section(look, classes) for look in looks),
        filters=_image(filter_sheet(filters), "filters", "sheet"),
        style=style,
        version=escape_html(__version__),
    )


def _picture_section(look: Look, classes: Sequence[str]) -> str:
    predicted = escape_html(classes[look.predicted])
    verdict = f"{predicted} {look.probs[look.predicted]:.2f}"
    if look.picture.label == look.predicted:
        verdict += ', <span class="good">right</span>'
    elif look.picture.label is not None:
        truth = escape_html(classes[look.picture.label])
        verdict += f', <span class="bad">but it is {truth}</span>'
    mistake = look.picture.mistake
    if mistake is not None and mistake.predicted != look.predicted:
        verdict += f"; the run's test: {escape_html(classes[mistake.predicted])} {mistake.prob:.2f}"
    original = _figure(_rgb(look.picture.pixels), "the image", "")
    heats = "".join(_heat_figures(look.picture.pixels, heat, classes) for heat in look.heats)
    stages = "".join(map(_stage_row, look.stages))
    return (
        f"<section><h2>{escape_html(look.picture.name)}: {verdict}</h2>"
        f'<div class="row">{original}{_bars(look.probs, classes)}{heats}</div>'
        f"<h3>Most active feature maps</h3>{stages}</section>"
    )


def _bars(probs: Tensor, classes: Sequence[str]) -> str:
    """Returns the probabilities of the most probable classes as bars."""
    values, indices = probs.topk(min(TOP_CLASSES, len(classes)))
    rows = []
    for value, index in zip(values.tolist(), indices.tolist(), strict=True):
        rows.append(
            f"<tr><th>{escape_html(classes[index])}</th>"
            f'<td><meter value="{value:.4f}" max="1"></meter></td><td>{value:.4f}</td></tr>'
        )
    return f'<table class="probs">{"".join(rows)}</table>'


def _heat_figures(pixels: Tensor, heat: Heat, classes: Sequence[str]) -> str:
    name = escape_html(classes[heat.label])
    fall = max(0.0, heat.occlusion.max().item())
    return _figure(
        overlay(pixels, heat.grad_cam), f"Grad-CAM, {name}", "where its evidence lies"
    ) + _figure(
        overlay(pixels, heat.occlusion, MIN_FALL),
        f"occlusion, {name}",
        f"falls by up to {fall:.2f}",
    )


def _stage_row(stage: FeatureMaps) -> str:
    height, width = stage.maps.shape[1:]
    channels = ", ".join(map(str, stage.channels))
    caption = f"<b>{stage.stage}</b> {stage.total} of {height}x{width}"
    image = _image(map_strip(stage.maps), f"channels {channels}", "strip")
    return f'<div class="stage"><span>{caption}</span>{image}</div>'


def overlay(pixels: Tensor, heat: Tensor, smallest: float = 0.0) -> Pixels:
    """Colors an image uint8 [C, H, W] by evidence [H, W]; nothing below zero is shown.

    Args:
        smallest: evidence that gets the strongest color if all of it is weaker.
    """
    gray = _rgb(pixels).mean(2, keepdims=True)
    strength = _relative(heat.numpy(), smallest)[..., None]
    opacity = OPACITY * strength**0.5
    mixed = (1 - opacity) * gray + opacity * colored(strength[..., 0])
    return mixed.round().astype(np.uint8)


def colored(strength: NDArray[Any]) -> NDArray[Any]:
    """Returns colors [H, W, 3] of values 0..1 [H, W]."""
    position = strength * (len(COLORS) - 1)
    channels = [np.interp(position, range(len(COLORS)), COLORS[:, index]) for index in range(3)]
    return np.stack(channels, 2)


def map_strip(maps: Tensor) -> Pixels:
    """Returns feature maps [K, H, W] side by side, each relative to its own largest value.

    Maps of one pixel are relative to the largest of them; else all would have the same color.
    """
    smallest = maps.max().item() if maps[0].numel() == 1 else 0.0
    tiles = []
    for values in maps.numpy():
        tile = colored(_relative(values, smallest)).round().astype(np.uint8)
        rows = np.arange(TILE) * tile.shape[0] // TILE
        columns = np.arange(TILE) * tile.shape[1] // TILE
        tiles.append(
            np.pad(tile[rows][:, columns], ((0, 0), (0, GAP), (0, 0)), constant_values=255)
        )
    return np.concatenate(tiles, 1)


def filter_sheet(filters: Tensor) -> Pixels:
    """Returns filters [N, C, H, W] as tiles: gray is zero, 3 channels give colors."""
    values = filters.numpy()
    values = values[:, :3] if values.shape[1] >= 3 else values[:, :1].repeat(3, 1)
    values = 127.5 + 127.5 * values / max(1e-12, np.abs(values).max())
    tiles = values.round().astype(np.uint8).transpose(0, 2, 3, 1)
    tiles = tiles.repeat(FILTER_SCALE, 1).repeat(FILTER_SCALE, 2)
    tiles = np.pad(tiles, ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
    missing = -len(tiles) % FILTER_COLUMNS
    tiles = np.pad(tiles, ((0, missing), (0, 0), (0, 0), (0, 0)), constant_values=255)
    rows = tiles.reshape(-1, FILTER_COLUMNS, *tiles.shape[1:]).swapaxes(1, 2)
    return rows.reshape(rows.shape[0] * rows.shape[1], -1, 3)


def _relative(values: NDArray[Any], smallest: float = 0.0) -> NDArray[Any]:
    """Returns values above zero relative to the largest, or to `smallest` if that is larger."""
    positive = np.maximum(values, 0)
    return positive / max(1e-12, smallest, positive.max())


def _rgb(pixels: Tensor) -> Pixels:
    values = pixels.numpy().transpose(1, 2, 0)
    return values if values.shape[2] == 3 else values[:, :, :1].repeat(3, 2)


def _figure(pixels: Pixels, title: str, note: str) -> str:
    caption = f"<figcaption>{title}<br><span>{note}</span></figcaption>"
    return f"<figure>{_image(pixels, title, 'picture')}{caption}</figure>"


def _image(pixels: Pixels, text: str, css_class: str) -> str:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", optimize=True)
    url = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    return f'<img class="{css_class}" src="{url}" alt="{text}">'
