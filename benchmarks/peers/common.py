"""What all contenders share: the work, the peers' pictures as their users read them, and how they report."""

import argparse
import gzip
import json
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp

import numpy
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from vggexp.system.cpu import supports_bf16

SYSTEM = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


def work() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--best", action="store_true", help="channels_last, and bf16 where it is multiplied"
    )
    asked = parser.parse_args()
    asked.bf16 = asked.best and (asked.device == "cuda" or supports_bf16())
    return asked


def vgg11(size: int) -> nn.Sequential:
    """The source run's network as a tutorial writes it: convolution, ReLU, then pooling."""
    layers: list[nn.Module] = []
    channels = 1
    for convs, out in ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512)):
        for _ in range(convs):
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU()]
            channels = out
        layers.append(nn.MaxPool2d(2, 2))
    side = size // 32
    layers += [nn.Flatten(), nn.Linear(512 * side * side, 4096), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(
        *layers, nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4096, 10)
    )


def pictures(images: int, size: int) -> Dataset:
    """The first Fashion-MNIST pictures by torchvision's data set, resized in its transform; else noise."""
    if not (SYSTEM.is_dir() and find_spec("torchvision")):
        return Noise(images, size)
    from torch.utils.data import Subset
    from torchvision import datasets, transforms

    raw = Path(mkdtemp()) / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in SYSTEM.glob("*.gz"):
        with gzip.open(packed) as source, open(raw / packed.stem, "wb") as target:
            shutil.copyfileobj(source, target)
    steps = transforms.Compose([transforms.Resize(size), transforms.ToTensor()])
    whole = datasets.FashionMNIST(raw.parents[1], train=True, transform=steps)
    return Subset(whole, range(images))


class Noise(Dataset):
    """Pictures of Fashion-MNIST's kind, and what torchvision's two transforms do to them, by hand."""

    def __init__(self, images: int, size: int):
        self.images = numpy.random.default_rng(0).integers(0, 256, (images, 28, 28), numpy.uint8)
        self.size = size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        picture = Image.fromarray(self.images[index]).resize(
            (self.size, self.size), Image.Resampling.BILINEAR
        )
        return torch.from_numpy(numpy.array(picture))[None].float().div(255), index % 10


class Report:
    """One JSON line for the first step, one at the end."""

    def __init__(self) -> None:
        self.steps = 0
        self.epoch_seconds = list[float]()
        self.started = 0.0

    def epoch(self) -> None:
        self.started = time.perf_counter()

    def step(self) -> None:
        self.steps += 1
        if self.steps == 1:
            say({"first_step": time.time()})

    def epoch_done(self, seconds: float | None = None) -> None:
        self.epoch_seconds.append(
            time.perf_counter() - self.started if seconds is None else seconds
        )

    def done(self, parameters: int, images: int) -> None:
        rate = images / min(self.epoch_seconds)
        say({"parameters": parameters, "steps": self.steps, "images_per_second": rate})


def say(content: dict) -> None:
    print(json.dumps(content), flush=True, file=sys.stdout)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
