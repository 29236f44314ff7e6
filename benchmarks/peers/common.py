"""What all contenders share: the work, the peers' pictures as their users read them, and how they report."""

import argparse
import gzip
import json
import shutil
import sys
import time
from pathlib import Path
from tempfile import mkdtemp

from torch import nn

SYSTEM = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


def work() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--best", action="store_true", help="bf16 and channels_last")
    return parser.parse_args()


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
    return nn.Sequential(*layers, nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4096, 10))


def pictures(images: int, size: int):
    """The first Fashion-MNIST pictures by torchvision's data set, resized in its transform."""
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


class Report:
    """One JSON line for the first step, one at the end."""

    def __init__(self) -> None:
        self.steps, self.epoch_seconds, self.started = 0, list[float](), 0.0

    def epoch(self) -> None:
        self.started = time.perf_counter()

    def step(self) -> None:
        self.steps += 1
        if self.steps == 1:
            say({"first_step": time.time()})

    def epoch_done(self, seconds: float | None = None) -> None:
        self.epoch_seconds.append(time.perf_counter() - self.started if seconds is None else seconds)

    def done(self, parameters: int, images: int) -> None:
        rate = images / min(self.epoch_seconds)
        say({"parameters": parameters, "steps": self.steps, "images_per_second": rate})


def say(content: dict) -> None:
    print(json.dumps(content), flush=True, file=sys.stdout)


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())
