"""The networks that the contenders train, each with the settings of its experiment."""

from typing import Any, NamedTuple


class Network(NamedTuple):
    """A network with its data and optimizer. vggexp takes the same from `experiment`."""

    experiment: str
    heading: str
    summary: str  # of the network, for the page
    training: str  # the method, for the page
    blocks: tuple[tuple[int, int], ...]  # 3x3 convolutions and channels of each block
    batch_norm: bool  # after each convolution
    hidden: tuple[int, ...]  # widths of the linear layers before the output
    dropout: float  # after each hidden layer
    size: int  # side of the input in pixels
    images: int  # of an epoch
    sgd: dict[str, Any]  # arguments of torch.optim.SGD
    label_smoothing: float = 0
    shift: int = 0  # largest random shift in pixels, black outside; 0: neither shift nor flip
    normalization: tuple[float, float] | None = None  # mean and std of Fashion-MNIST; None: 0..1


NETWORKS = {
    "source": Network(
        experiment="gluon_vgg11",
        heading="Comparison with peers",
        summary="The source run's network (VGG-11, 44.9 million parameters)",
        training="plain SGD",
        blocks=((1, 64), (1, 128), (2, 256), (2, 512), (2, 512)),
        batch_norm=False,
        hidden=(4096, 4096),
        dropout=0.5,
        size=96,
        images=640,
        sgd={"lr": 0.01, "momentum": 0, "nesterov": False, "weight_decay": 0},
    ),
    "fast": Network(
        experiment="fashion_mnist_fast",
        heading="Comparison with peers on a narrow network with batch norm",
        summary="The network of `experiment=fashion_mnist_fast` "
        "(6 convolutions with batch norm, 566,858 parameters)",
        training="random shifts and flips, smoothed labels, SGD with Nesterov momentum",
        blocks=((1, 16), (2, 64), (2, 128), (1, 256)),
        batch_norm=True,
        hidden=(),
        dropout=0,
        size=28,
        images=12_800,
        sgd={"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
        label_smoothing=0.1,
        shift=1,
        normalization=(0.2860, 0.3530),
    ),
}
