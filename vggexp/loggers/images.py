"""Pictures of images, of a confusion matrix and of mistakes, as uint8 arrays [H, W, 3] for any sink."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ImageArray = NDArray[np.uint8]
Array = NDArray[Any]
BLUE = (8, 69, 148)
RED = (203, 24, 29)
INK = (40, 40, 40)
FRAME = (170, 170, 170)
WHITE = (255, 255, 255)
GAP = 4


def image_grid(images: Array, side: int = 64) -> ImageArray:
    """images [N, C, H, W], uint8 or floats in any range -> a near-square arrangement.

    Small images are enlarged to about `side` pixels; floats are stretched from the least to the greatest value.
    """
    return _arrange(_tiles(np.asarray(images), side))


def confusion_image(confusion: Array, classes: Sequence[str]) -> ImageArray:
    """confusion [K, K]: counts by true class (rows) and predicted class (columns).

    The colour is the share of the row, right answers blue and mistakes red, on a root scale that shows rare mistakes.
    """
    from PIL import Image, ImageDraw

    confusion = np.asarray(confusion)
    count = len(confusion)
    cell = max(1, min(52, 1000 // count))
    font = _font(min(14, cell))
    names = [_shorten(name, 150, font) for name in classes] if cell >= 9 else []
    left = 12 + max((int(font.getlength(name)) for name in names), default=0)
    top = 32
    canvas = Image.new(
        "RGB", (max(left + count * cell, left + 300) + 12, top + count * cell + left), "white"
    )
    canvas.paste(
        Image.fromarray(np.kron(_heat(confusion), np.ones((cell, cell, 1), np.uint8))), (left, top)
    )
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((left - 1, top - 1, left + count * cell, top + count * cell), outline=FRAME)
    accuracy = np.trace(confusion) / max(1, confusion.sum())
    draw.text((left, 8), f"rows true, columns predicted, accuracy {accuracy:.4f}", INK, _font(14))
    for i, name in enumerate(names):
        draw.text((left - 6, top + (i + 0.5) * cell), name, INK, font, anchor="rm")
        canvas.paste(_upright(name, font, cell), (left + i * cell, top + count * cell + 6))
    if cell >= 24:
        _counts(draw, confusion, left, top, cell)
    return np.asarray(canvas)


def mistakes_image(
    images: Array,
    labels: Array,
    predictions: Array,
    confidences: Array,
    classes: Sequence[str],
    count: int = 25,
) -> ImageArray:
    """The wrong predictions of the greatest confidence, each captioned `true -> predicted 0.98`.

    images [N, C, H, W]; labels, predictions and confidences [N], confidence being the predicted class's probability.
    """
    wrong = np.flatnonzero(np.asarray(labels) != np.asarray(predictions))
    worst = wrong[np.argsort(-np.asarray(confidences)[wrong], kind="stable")][:count]
    if not len(worst):
        return _captioned(np.full((1, 40, 40, 3), 255, np.uint8), ["no mistakes"])
    names = [_shorten(name, 100, _font(12)) for name in classes]
    captions = [
        f"{names[labels[i]]} -> {names[predictions[i]]} {confidences[i]:.2f}" for i in worst
    ]
    return _captioned(_tiles(np.asarray(images)[worst], 112), captions)


def _tiles(images: Array, side: int) -> ImageArray:
    """[N, C, H, W] -> [N, h, w, 3], enlarged by a whole factor."""
    if images.dtype != np.uint8:
        values = np.nan_to_num(images.astype(np.float32), posinf=0, neginf=0)
        low = values.min()
        high = values.max()
        images = ((values - low) * (255 / max(high - low, 1e-12))).round().astype(np.uint8)
    images = images[:, :3] if images.shape[1] >= 3 else images[:, :1].repeat(3, axis=1)
    factor = max(1, round(side / max(images.shape[2:])))
    return images.repeat(factor, axis=2).repeat(factor, axis=3).transpose(0, 2, 3, 1)


def _arrange(tiles: ImageArray) -> ImageArray:
    """Tiles [N, h, w, 3] in rows, on white."""
    count, height, width, _ = tiles.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    field = np.full((rows * columns, height + GAP, width + GAP, 3), 255, np.uint8)
    field[:count, GAP:, GAP:] = tiles
    field = field.reshape(rows, columns, height + GAP, width + GAP, 3).swapaxes(1, 2)
    return np.pad(
        field.reshape(rows * (height + GAP), -1, 3),
        ((0, GAP), (0, GAP), (0, 0)),
        constant_values=255,
    )


def _captioned(tiles: ImageArray, captions: Sequence[str]) -> ImageArray:
    """Tiles with a line of text under each, as wide as the longest needs."""
    from PIL import Image, ImageDraw

    font = _font(12)
    _, height, width, _ = tiles.shape
    wide = max(width, *(math.ceil(font.getlength(caption)) + 8 for caption in captions))
    framed = []
    for tile, caption in zip(tiles, captions, strict=True):
        canvas = Image.new("RGB", (wide, height + 20), "white")
        canvas.paste(Image.fromarray(tile), ((wide - width) // 2, 0))
        ImageDraw.Draw(canvas).text((wide / 2, height + 10), caption, INK, font, anchor="mm")
        framed.append(np.asarray(canvas))
    return _arrange(np.stack(framed))


def _heat(confusion: Array) -> ImageArray:
    """Counts [K, K] -> colours [K, K, 3]."""
    share = confusion / np.maximum(1, confusion.sum(axis=1, keepdims=True))
    strength = np.sqrt(share)[..., None]
    full = np.where(np.eye(len(confusion), dtype=bool)[..., None], BLUE, RED)
    return np.asarray(255 - strength * (255 - full)).round().astype(np.uint8)


def _counts(draw: Any, confusion: Array, left: int, top: int, cell: int) -> None:
    """The number in every cell that is not empty, white on the dark ones."""
    font = _font(min(14, int(1.6 * cell / len(str(confusion.max())))))
    dark = _heat(confusion).mean(axis=2) < 150
    for row, column in np.argwhere(confusion):
        place = (left + (column + 0.5) * cell, top + (row + 0.5) * cell)
        draw.text(
            place,
            str(confusion[row, column]),
            WHITE if dark[row, column] else INK,
            font,
            anchor="mm",
        )


def _upright(text: str, font: Any, cell: int) -> Any:
    """The text read from bottom to top, ending at the upper edge, centred in a cell's width."""
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (math.ceil(font.getlength(text)) + 1, cell), "white")
    ImageDraw.Draw(strip).text((strip.width, cell / 2), text, INK, font, anchor="rm")
    return strip.rotate(90, expand=True)


def _shorten(text: str, width: int, font: Any) -> str:
    """The text on one line, cut to a width in pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(max(6, size))
