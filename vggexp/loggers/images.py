"""Draws image grids, confusion matrices and mistakes as uint8 arrays [H, W, 3]."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggexp.runs.confusion import MAX_MATRIX_CLASSES, Confusions
from vggexp.runs.predictions import Mistake

ImageArray = NDArray[np.uint8]
Array = NDArray[Any]

BLUE = (8, 69, 148)
RED = (203, 24, 29)
TEXT_COLOR = (40, 40, 40)
FRAME_COLOR = (170, 170, 170)
WHITE = (255, 255, 255)

# Sizes in pixels.
GAP = 4  # between two tiles
TOP_MARGIN = 32  # above a confusion matrix
MARGIN = 12
MAX_CELL = 52
MAX_MATRIX = 1000
MIN_CELL_OF_NAMES = 9  # smaller cells leave no room for the names of the classes
MIN_CELL_OF_COUNTS = 24
MAX_PAIRS = 25  # lines of the most frequent mistakes
FONT_SIZE = 14
CAPTION_SIZE = 12
CAPTION_HEIGHT = 20


def image_grid(images: Array, size: int = 64) -> ImageArray:
    """Arranges images in a grid that is nearly square.

    Args:
        images: [N, C, H, W], uint8 or floats of any range. Floats are stretched from the smallest
            value to the largest.
        size: small images are enlarged to about this many pixels.
    """
    return _arrange(_to_tiles(np.asarray(images), size))


def confusion_image(confusions: Confusions, classes: Sequence[str]) -> ImageArray:
    """Draws a confusion matrix, or the most frequent mistakes of too many classes for one.

    The color is the share of the row: correct predictions are blue, and mistakes are red. A square
    root makes rare mistakes visible.
    """
    if len(classes) > MAX_MATRIX_CLASSES:
        return _confused_pairs_image(confusions, classes)
    return _matrix_image(confusions.matrix(), classes)


def _confused_pairs_image(confusions: Confusions, classes: Sequence[str]) -> ImageArray:
    """Draws a line of text for each of the most frequent mistakes."""
    from PIL import Image, ImageDraw

    font = _font(FONT_SIZE)
    lines = [f"most frequent mistakes of {len(classes):,} classes: true -> predicted, images"]
    for label, predicted, images in confusions.most_confused(MAX_PAIRS):
        names = [_shorten(classes[index], 150, font) for index in (label, predicted)]
        lines.append(f"{' -> '.join(names)}  {images:,}")
    width = math.ceil(max(font.getlength(line) for line in lines)) + 2 * MARGIN
    canvas = Image.new("RGB", (width, CAPTION_HEIGHT * len(lines) + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    for index, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + index * CAPTION_HEIGHT), line, TEXT_COLOR, font)
    return np.asarray(canvas)


def _matrix_image(confusion: Array, classes: Sequence[str]) -> ImageArray:
    """Draws counts [K, K] by true class (rows) and predicted class (columns)."""
    from PIL import Image, ImageDraw

    count = len(confusion)
    cell = max(1, min(MAX_CELL, MAX_MATRIX // count))
    font = _font(min(FONT_SIZE, cell))
    names: list[str] = []
    if cell >= MIN_CELL_OF_NAMES:
        names = [_shorten(name, 150, font) for name in classes]
    name_width = max((int(font.getlength(name)) for name in names), default=0)
    left = MARGIN + name_width
    top = TOP_MARGIN
    right = left + count * cell
    bottom = top + count * cell
    width = max(right, left + 300) + MARGIN
    canvas = Image.new("RGB", (width, bottom + left), "white")
    cells = np.kron(_cell_colors(confusion), np.ones((cell, cell, 1), np.uint8))
    canvas.paste(Image.fromarray(cells), (left, top))
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((left - 1, top - 1, right, bottom), outline=FRAME_COLOR)
    accuracy = np.trace(confusion) / max(1, confusion.sum())
    title = f"rows true, columns predicted, accuracy {accuracy:.4f}"
    draw.text((left, 8), title, TEXT_COLOR, _font(FONT_SIZE))
    for index, name in enumerate(names):
        middle = top + (index + 0.5) * cell
        draw.text((left - 6, middle), name, TEXT_COLOR, font, anchor="rm")
        canvas.paste(_vertical_text(name, font, cell), (left + index * cell, bottom + 6))
    if cell >= MIN_CELL_OF_COUNTS:
        _draw_counts(draw, confusion, left, top, cell)
    return np.asarray(canvas)


def mistakes_image(
    images: Array, mistakes: Sequence[Mistake], classes: Sequence[str]
) -> ImageArray:
    """Draws wrong predictions. The caption of an image is `true -> predicted 0.98`.

    Args:
        images: [N, C, H, W], of the N mistakes.
    """
    if not mistakes:
        white = np.full((1, 40, 40, 3), 255, np.uint8)
        return _arrange_with_captions(white, ["no mistakes"])
    font = _font(CAPTION_SIZE)
    names = [_shorten(name, 100, font) for name in classes]
    captions = []
    for mistake in mistakes:
        label = names[mistake.label]
        predicted = names[mistake.predicted]
        captions.append(f"{label} -> {predicted} {mistake.prob:.2f}")
    return captioned_grid(images, captions)


def captioned_grid(images: Array, captions: Sequence[str], size: int = 112) -> ImageArray:
    """Arranges images [N, C, H, W] with a line of text below each; see `image_grid`."""
    font = _font(CAPTION_SIZE)
    short = [_shorten(caption, 200, font) for caption in captions]
    return _arrange_with_captions(_to_tiles(np.asarray(images), size), short)


def _to_tiles(images: Array, size: int) -> ImageArray:
    """Converts [N, C, H, W] to [N, h, w, 3], enlarged by a whole factor."""
    if images.dtype != np.uint8:
        values = np.nan_to_num(images.astype(np.float32), posinf=0, neginf=0)
        low = values.min()
        high = values.max()
        scale = 255 / max(high - low, 1e-12)
        images = ((values - low) * scale).round().astype(np.uint8)
    if images.shape[1] >= 3:
        images = images[:, :3]
    else:
        images = images[:, :1].repeat(3, axis=1)
    factor = max(1, round(size / max(images.shape[2:])))
    images = images.repeat(factor, axis=2)
    images = images.repeat(factor, axis=3)
    return images.transpose(0, 2, 3, 1)


def _arrange(tiles: ImageArray) -> ImageArray:
    """Arranges tiles [N, h, w, 3] in rows, on white."""
    count, height, width, _ = tiles.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    height += GAP
    width += GAP
    grid = np.full((rows * columns, height, width, 3), 255, np.uint8)
    grid[:count, GAP:, GAP:] = tiles
    grid = grid.reshape(rows, columns, height, width, 3)
    grid = grid.swapaxes(1, 2)
    grid = grid.reshape(rows * height, columns * width, 3)
    return np.pad(
        grid,
        ((0, GAP), (0, GAP), (0, 0)),
        constant_values=255,
    )


def _arrange_with_captions(tiles: ImageArray, captions: Sequence[str]) -> ImageArray:
    """Arranges tiles with a line of text below each; the longest caption sets the width."""
    from PIL import Image, ImageDraw

    font = _font(CAPTION_SIZE)
    _, tile_height, tile_width, _ = tiles.shape
    widths = [math.ceil(font.getlength(caption)) + 8 for caption in captions]
    width = max(tile_width, *widths)
    height = tile_height + CAPTION_HEIGHT
    text_center = (width / 2, tile_height + CAPTION_HEIGHT / 2)
    canvases = []
    for tile, caption in zip(tiles, captions, strict=True):
        canvas = Image.new("RGB", (width, height), "white")
        canvas.paste(Image.fromarray(tile), ((width - tile_width) // 2, 0))
        draw = ImageDraw.Draw(canvas)
        draw.text(text_center, caption, TEXT_COLOR, font, anchor="mm")
        canvases.append(np.asarray(canvas))
    return _arrange(np.stack(canvases))


def _cell_colors(confusion: Array) -> ImageArray:
    """Returns the colors [K, K, 3] of counts [K, K]."""
    totals = np.maximum(1, confusion.sum(axis=1, keepdims=True))
    strength = np.sqrt(confusion / totals)[..., None]
    is_correct = np.eye(len(confusion), dtype=bool)[..., None]
    color = np.where(is_correct, BLUE, RED)
    pixels = np.asarray(255 - strength * (255 - color))
    return pixels.round().astype(np.uint8)


def _draw_counts(
    draw: Any,
    confusion: Array,
    left: int,
    top: int,
    cell: int,
) -> None:
    """Draws the count in every cell that is not empty, in white on dark cells."""
    digits = len(str(confusion.max()))
    font = _font(min(FONT_SIZE, int(1.6 * cell / digits)))
    is_dark = _cell_colors(confusion).mean(axis=2) < 150
    for row, column in np.argwhere(confusion):
        center = (left + (column + 0.5) * cell, top + (row + 0.5) * cell)
        color = WHITE if is_dark[row, column] else TEXT_COLOR
        draw.text(center, str(confusion[row, column]), color, font, anchor="mm")


def _vertical_text(text: str, font: Any, cell: int) -> Any:
    """Draws text that reads from bottom to top and ends at the top, centered in a cell's width."""
    from PIL import Image, ImageDraw

    width = math.ceil(font.getlength(text)) + 1
    strip = Image.new("RGB", (width, cell), "white")
    draw = ImageDraw.Draw(strip)
    draw.text((width, cell / 2), text, TEXT_COLOR, font, anchor="rm")
    return strip.rotate(90, expand=True)


def _shorten(text: str, width: int, font: Any) -> str:
    """Returns the text on one line, cut to a width in pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(max(6, size))
