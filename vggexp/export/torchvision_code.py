"""Decides whether torchvision has a network, and writes code that builds it. Needs no torch."""

from vggexp.config.derived import input_spec, layers
from vggexp.config.schema import Arch, Config, Vgg

CHANNELS = (64, 128, 256, 512, 512)  # of torchvision's blocks
DEPTHS: dict[tuple[int, ...], str] = {
    (1, 1, 2, 2, 2): "vgg11",
    (2, 2, 2, 2, 2): "vgg13",
    (2, 2, 3, 3, 3): "vgg16",
    (2, 2, 4, 4, 4): "vgg19",
}
COLOR_CHANNELS = 3  # of the images
FEATURE_MAP_SIZE = 7  # pixels, of the last feature map
HIDDEN = (4096, 4096)  # features of the hidden linear layers


def unsupported_reason(arch: Arch) -> str:
    """Returns why torchvision has no such network, or an empty string if it has."""
    if not isinstance(arch, Vgg):
        return f"arch={arch.name}: only VGG networks have weights in torchvision's form"
    if arch.norm == "lrn":
        return "arch.norm=lrn: torchvision's VGGs have no local response normalization"
    if any(block.pointwise for block in arch.blocks):
        return "arch.blocks: torchvision's VGGs have no 1x1 convolutions (configuration C)"
    if arch.width != 1:
        return (
            f"arch.width={arch.width:g}: "
            "torchvision's VGGs have blocks of 64, 128, 256, 512 and 512 channels"
        )
    channels = tuple(block.channels for block in arch.blocks)
    if _depth(arch) not in DEPTHS or channels != CHANNELS:
        return "arch.blocks: not those of torchvision's vgg11, vgg13, vgg16 or vgg19"
    if len(arch.hidden) != len(HIDDEN):
        return f"arch.hidden={list(arch.hidden)}: torchvision's VGGs have two hidden layers"
    return ""


def _depth(arch: Vgg) -> tuple[int, ...]:
    """Returns the number of convolutions in each block."""
    return tuple(block.convs for block in arch.blocks)


def torchvision_code(config: Config, path: str) -> list[str]:
    """Returns lines of Python that build torchvision's network and load the weights of `path`.

    `unsupported_reason` of the network must be empty.
    """
    arch = config.arch
    assert isinstance(arch, Vgg)
    spec = input_spec(config)
    pools = [layer for layer in layers(config) if layer.kind == "pool"]
    map_size = pools[-1].output[1]
    name = DEPTHS[_depth(arch)]
    if arch.norm == "batch":
        name += "_bn"
    lines = [
        "import torch, torchvision",
        f"net = torchvision.models.{name}(num_classes={spec.classes}, dropout={arch.dropout:g})",
    ]
    if spec.channels != COLOR_CHANNELS:
        conv = f"torch.nn.Conv2d({spec.channels}, {CHANNELS[0]}, 3, padding=1)"
        lines.append(f"net.features[0] = {conv}")
    if map_size != FEATURE_MAP_SIZE:
        lines.append(f"net.avgpool = torch.nn.AdaptiveAvgPool2d({map_size})")
    widths = [
        CHANNELS[-1] * map_size * map_size,
        *arch.hidden,
        spec.classes,
    ]
    default_widths = [
        CHANNELS[-1] * FEATURE_MAP_SIZE * FEATURE_MAP_SIZE,
        *HIDDEN,
        spec.classes,
    ]
    for index in range(3):
        inputs = widths[index]
        outputs = widths[index + 1]
        default = (default_widths[index], default_widths[index + 1])
        if (inputs, outputs) != default:
            # The linear layers are at 0, 3 and 6: ReLU and dropout stand between them.
            lines.append(f"net.classifier[{3 * index}] = torch.nn.Linear({inputs}, {outputs})")
    lines.append(f"net.load_state_dict(torch.load({path!r}, weights_only=True))")
    lines.append("net.eval()")
    return lines
