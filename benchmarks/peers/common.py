"""Parts that all contenders share: the arguments, the network, the peers' images and the report."""

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


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--best", action="store_true", help="channels_last, and bf16 if the device supports it"
    )
    arguments = parser.parse_args()
    device_has_bf16 = arguments.device == "cuda" or supports_bf16()
    arguments.bf16 = arguments.best and device_has_bf16
    return arguments


def vgg11(size: int) -> nn.Sequential:
    """Builds the source run's network as a tutorial does: convolution, ReLU, then pooling."""
    layers: list[nn.Module] = []
    in_channels = 1
    for convs, channels in ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512)):
        for _ in range(convs):
            layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU()]
            in_channels = channels
        layers.append(nn.MaxPool2d(2, 2))
    map_size = size // 32
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(512 * map_size * map_size, 4096),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(4096, 10),
    )


def make_dataset(images: int, size: int) -> Dataset:
    """Returns the first images of torchvision's Fashion-MNIST, resized in its transform.

    Returns noise if Fashion-MNIST or torchvision is missing.
    """
    if not SYSTEM.is_dir() or not find_spec("torchvision"):
        return Noise(images, size)
    from torch.utils.data import Subset
    from torchvision import datasets, transforms

    root = Path(mkdtemp())
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in SYSTEM.glob("*.gz"):
        with gzip.open(packed) as source, open(raw / packed.stem, "wb") as target:
            shutil.copyfileobj(source, target)
    transform = transforms.Compose([transforms.Resize(size), transforms.ToTensor()])
    dataset = datasets.FashionMNIST(root, train=True, transform=transform)
    return Subset(dataset, range(images))


class Noise(Dataset):
    """Noise of Fashion-MNIST's shape, with the same work as torchvision's two transforms."""

    def __init__(self, images: int, size: int):
        self.images = numpy.random.default_rng(0).integers(0, 256, (images, 28, 28), numpy.uint8)
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
