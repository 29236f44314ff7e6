"""python -m benchmarks.folders [--images N] [--rounds N]: decodes, crops and flips image files.

Compares vggexp's data path with torchvision's ImageFolder and a DataLoader, with the same number
of workers, in turn, without a network. vggexp runs a second time from memory (data.cache=ram).
Images are cropped to 224 px. Prints and writes benchmarks/folders.md. About five minutes.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp

import numpy
import torch
from PIL import Image

from vggexp.config import compose
from vggexp.runner import datasets
from vggexp.runner.datasets import IMAGENET_MEAN, IMAGENET_STD
from vggexp.sweep import expand
from vggexp.system import cpu

TARGET = Path(__file__).parent / "folders.md"
SIZE = 224
BATCH_SIZE = 64

Epoch = Callable[[int], Iterable]  # epoch -> its batches


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.folders", description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # leaves the cores to the workers
    folder = generate_images(arguments.images)
    contenders = {
        "vggexp": vggexp_epochs(folder, arguments.workers, "none"),
        "torchvision": torchvision_epochs(folder, arguments.workers),
        "vggexp, data.cache=ram": vggexp_epochs(folder, arguments.workers, "ram"),
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(arguments.rounds + 1):
        for name, epoch in contenders.items():
            start = time.perf_counter()
            count = sum(len(labels) for _, labels in epoch(turn))
            seconds = time.perf_counter() - start
            if turn > 0:  # workers start in the first round, so that round does not count
                rates[name].append(count / seconds)
            print(f"round {turn}/{arguments.rounds}  {name}", file=sys.stderr, flush=True)
    page = format_page(rates, arguments)
    print(page)
    arguments.out.write_text(page)


def generate_images(count: int) -> Path:
    """Writes JPEGs of 320x256 in ten classes and returns their folder.

    The images are smooth shapes with some noise, of about 25 kB each, which is typical of photos.
    """
    folder = Path(mkdtemp())
    draw = numpy.random.default_rng(0)
    for split, image_count in (("train", count), ("test", 20)):
        for index in range(image_count):
            small = Image.fromarray(draw.integers(0, 256, (8, 10, 3), dtype=numpy.uint8))
            smooth = numpy.asarray(small.resize((320, 256), 3), dtype=numpy.int16)
            noisy = smooth + draw.integers(-12, 12, (256, 320, 3))
            image = Image.fromarray(noisy.clip(0, 255).astype("uint8"))
            class_folder = folder / split / f"class{index % 10}"
            class_folder.mkdir(parents=True, exist_ok=True)
            image.save(class_folder / f"{index:05}.jpg", quality=90)
    return folder


def vggexp_epochs(folder: Path, workers: int, cache: str) -> Epoch:
    overrides = [
        "data=image_folder",
        f"data.root={folder}",
        f"data.workers={workers}",
        f"data.cache={cache}",
        f"data.resize={SIZE}",
        f"data.batch_size={BATCH_SIZE}",
        "data.val_fraction=0",
        "augment=flip",
        "device=cpu",
    ]
    config = expand.compose_run(compose.parse_command(overrides))
    return datasets.build_loaders(config, torch.device("cpu")).train.train


def torchvision_epochs(folder: Path, workers: int) -> Epoch:
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    steps = [
        transforms.Resize(SIZE),
        transforms.CenterCrop(SIZE),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    images = datasets.ImageFolder(str(folder / "train"), transforms.Compose(steps))
    loader = DataLoader(
        images,
        BATCH_SIZE,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return lambda epoch: loader


def format_page(rates: dict[str, list[float]], arguments: argparse.Namespace) -> str:
    lines = []
    for name, contender_rates in rates.items():
        ratios = []
        for rate, torchvision_rate in zip(contender_rates, rates["torchvision"], strict=True):
            ratios.append(rate / torchvision_rate)
        cells = [
            name,
            f"{statistics.median(contender_rates):,.0f}",
            f"{min(contender_rates):,.0f}-{max(contender_rates):,.0f}",
            f"{statistics.median(ratios):.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    table = "\n".join(lines)
    options = f"--images {arguments.images} --rounds {arguments.rounds}"
    return f"""# Image folders

{arguments.images:,} generated JPEGs of 320x256, cropped to {SIZE} px, flipped and normalized,
{arguments.workers} workers, no network; medians of {arguments.rounds} epochs in turn, after one
epoch that does not count.

| | images/s | range | of torchvision's |
|---|---:|---:|---:|
{table}

`python -m benchmarks.folders {options}` ({date.today()}), {os.cpu_count()}
virtual cores of {cpu.cpu_model()}; Python {platform.python_version()}, torch {version("torch")},
torchvision {version("torchvision")}, pillow {version("pillow")}.
"""


if __name__ == "__main__":
    main()
