"""python -m benchmarks.folders [--images N] [--rounds N]: pictures in files, decoded, cut to 224 px and flipped.

vggexp's data path beside torchvision's ImageFolder and a DataLoader, with as many workers, in turn, without a network;
and vggexp's again from memory (data.cache=ram). Prints and writes benchmarks/folders.md. About five minutes.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterable
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
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.folders", description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=TARGET)
    asked = parser.parse_args()
    torch.set_num_threads(1)  # the workers have the cores
    folder = generated(asked.images)
    contenders = {
        "vggexp": ours(folder, asked.workers, "none"),
        "torchvision": torchvisions(folder, asked.workers),
        "vggexp, data.cache=ram": ours(folder, asked.workers, "ram"),
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(asked.rounds + 1):  # the first, in which workers start, does not count
        for name, epoch in contenders.items():
            begin = time.perf_counter()
            count = sum(len(labels) for _, labels in epoch(turn))
            rates[name] += [count / (time.perf_counter() - begin)] if turn else []
            print(f"round {turn}/{asked.rounds}  {name}", file=sys.stderr, flush=True)
    page = record(rates, asked)
    print(page)
    asked.out.write_text(page)


def generated(count: int) -> Path:
    """JPEGs of 320x256 in ten classes: smooth shapes with some noise, about 25 kB each as photographs have."""
    folder = Path(mkdtemp())
    draw = numpy.random.default_rng(0)
    for part, number in (("train", count), ("test", 20)):
        for index in range(number):
            coarse = Image.fromarray(draw.integers(0, 256, (8, 10, 3), dtype=numpy.uint8)).resize(
                (320, 256), 3
            )
            noisy = numpy.asarray(coarse, dtype=numpy.int16) + draw.integers(-12, 12, (256, 320, 3))
            place = folder / part / f"class{index % 10}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy.clip(0, 255).astype("uint8")).save(
                place / f"{index:05}.jpg", quality=90
            )
    return folder


def ours(folder: Path, workers: int, cache: str):
    words = [
        "data=image_folder",
        f"data.root={folder}",
        f"data.workers={workers}",
        f"data.cache={cache}",
    ]
    words += [
        f"data.resize={SIZE}",
        f"data.batch_size={BATCH}",
        "data.val_fraction=0",
        "augment=flip",
        "device=cpu",
    ]
    return datasets.build_loaders(
        expand.compose_run(compose.parse_command(words)), torch.device("cpu")
    ).train.train


def torchvisions(folder: Path, workers: int):
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    steps = [
        transforms.Resize(SIZE),
        transforms.CenterCrop(SIZE),
        transforms.RandomHorizontalFlip(),
    ]
    steps += [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    pictures = datasets.ImageFolder(str(folder / "train"), transforms.Compose(steps))
    loader = DataLoader(
        pictures, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )

    def epoch(number: int) -> Iterable:
        return loader

    return epoch


def record(rates: dict[str, list[float]], asked: argparse.Namespace) -> str:
    lines = []
    for name, many in rates.items():
        ratios = [own / other for own, other in zip(many, rates["torchvision"], strict=True)]
        span = f"{min(many):,.0f}-{max(many):,.0f}"
        lines.append(
            f"| {name} | {statistics.median(many):,.0f} | {span} | {statistics.median(ratios):.2f} |"
        )
    table = "\n".join(lines)
    return f"""# Image folders

{asked.images:,} generated JPEGs of 320x256, cropped to {SIZE} px, flipped and normalized,
{asked.workers} workers, no network; medians of {asked.rounds} epochs in turn, after one epoch that
does not count.

| | images/s | range | of torchvision's |
|---|---:|---:|---:|
{table}

`python -m benchmarks.folders --images {asked.images} --rounds {asked.rounds}` ({date.today()}), {os.cpu_count()}
virtual cores of {cpu.cpu_model()}; Python {platform.python_version()}, torch {version("torch")}, torchvision
{version("torchvision")}, pillow {version("pillow")}.
"""


if __name__ == "__main__":
    main()
