"""Parts that all contenders share: the arguments, the network, the peers' images and the report."""

import argparse
import gzip
import json
import shutil
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp

import numpy
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from benchmarks.peers.networks import NETWORKS, Network
from vggexp.system.cpu import supports_bf16

SYSTEM = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
STORED_SIZE = 28  # pixels


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", choices=NETWORKS, default="source")
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--size", type=int, help="default: the network's")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--best", action="store_true", help="channels_last, and bf16 if the device supports it"
    )
    arguments = parser.parse_args()
    arguments.network = NETWORKS[arguments.network]
    arguments.size = arguments.size or arguments.network.size
    device_has_bf16 = arguments.device == "cuda" or supports_bf16()
    arguments.bf16 = arguments.best and device_has_bf16
    return arguments


def build_network(network: Network, size: int) -> nn.Sequential:
    """Builds the network as a tutorial does: convolution, batch norm, ReLU, then pooling."""
    layers: list[nn.Module] = []
    in_channels = 1
    for convs, channels in network.blocks:
        for _ in range(convs):
            layers.append(nn.Conv2d(in_channels, channels, 3, padding=1))
            if network.batch_norm:
                layers.append(nn.BatchNorm2d(channels))
            layers.append(nn.ReLU())
            in_channels = channels
        layers.append(nn.MaxPool2d(2, 2))
    layers.append(nn.Flatten())
    map_size = size >> len(network.blocks)
    features = in_channels * map_size * map_size
    for width in network.hidden:
        layers += [nn.Linear(features, width), nn.ReLU(), nn.Dropout(network.dropout)]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, 10))


def make_dataset(images: int, network: Network, size: int) -> Dataset:
    """Returns the first images of torchvision's Fashion-MNIST, with a transform.

    If Fashion-MNIST or torchvision is missing, returns noise. Noise is not shifted, so a network
    that is trained on shifted images exits.
    """
    if not SYSTEM.is_dir() or not find_spec("torchvision"):
        if network.shift:
            sys.exit(f"{network.experiment} needs torchvision and Debian's dataset-fashion-mnist")
        return Noise(images, size)
    from torch.utils.data import Subset
    from torchvision import datasets

    root = Path(mkdtemp())
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in SYSTEM.glob("*.gz"):
        with gzip.open(packed) as source, open(raw / packed.stem, "wb") as target:
            shutil.copyfileobj(source, target)
    dataset = datasets.FashionMNIST(root, train=True, transform=make_transform(network, size))
    return Subset(dataset, range(images))


def make_transform(network: Network, size: int) -> Callable[[Image.Image], torch.Tensor]:
    """Returns torchvision's transforms in the order of its tutorials."""
    from torchvision import transforms

    steps: list[Callable] = []
    if size != STORED_SIZE:
        steps.append(transforms.Resize(size))
    if network.shift:
        steps.append(transforms.RandomCrop(size, padding=network.shift))
        steps.append(transforms.RandomHorizontalFlip())
    steps.append(transforms.ToTensor())
    if network.normalization:
        mean, std = network.normalization
        steps.append(transforms.Normalize((mean,), (std,)))
    return transforms.Compose(steps)


class Noise(Dataset):
    """Noise of Fashion-MNIST's shape, with the same work as torchvision's two transforms."""

    def __init__(self, images: int, size: int):
        shape = (images, STORED_SIZE, STORED_SIZE)
        self.images = numpy.random.default_rng(0).integers(0, 256, shape, numpy.uint8)
        self.size = size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.fromarray(self.images[index])
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(numpy.array(image))[None]
        return pixels.float().div(255), index % 10


class Report:
    """Prints one JSON line for the first step and one at the end."""

    def __init__(self) -> None:
        self.steps = 0
        self.epoch_seconds = list[float]()
        self.epoch_start = 0.0

    def start_epoch(self) -> None:
        self.epoch_start = time.perf_counter()

    def count_step(self) -> None:
        self.steps += 1
        if self.steps == 1:
            print_json({"first_step": time.time()})

    def end_epoch(self) -> None:
        self.epoch_seconds.append(time.perf_counter() - self.epoch_start)

    def finish(self, model: nn.Module, images: int) -> None:
        """Reports the rate of the fastest epoch."""
        rate = images / min(self.epoch_seconds)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print_json({"parameters": parameters, "steps": self.steps, "images_per_second": rate})


def print_json(content: dict) -> None:
    print(json.dumps(content), flush=True, file=sys.stdout)
