"""Which networks torchvision.models builds too, and the lines that build one for our weights. Needs no torch."""

from vggexp.config.derived import input_spec, layers
from vggexp.config.schema import Arch, Config, Vgg

CHANNELS = (64, 128, 256, 512, 512)
DEPTHS: dict[tuple[int, ...], str] = {
    (1, 1, 2, 2, 2): "vgg11",
    (2, 2, 2, 2, 2): "vgg13",
    (2, 2, 3, 3, 3): "vgg16",
    (2, 2, 4, 4, 4): "vgg19",
}
COLOR_CHANNELS = 3
IMAGE_SIZE = 7
HIDDEN = (4096, 4096)  # of the images, of the last map, and between it and the output


def unsupported_reason(arch: Arch) -> str:
    """Why torchvision has no such network, or nothing."""
    if not isinstance(arch, Vgg):
        return f"arch={arch.name}: torchvision's weights of its VGGs are meant"
    if arch.norm == "lrn":
        return "arch.norm=lrn: torchvision's VGGs have no local response normalisation"
    if any(block.pointwise for block in arch.blocks):
        return "arch.blocks: torchvision's VGGs have no 1x1 convolutions (configuration C)"
    if arch.width != 1:
        return f"arch.width={arch.width:g}: torchvision's VGGs have blocks of 64, 128, 256, 512 and 512 channels"
    convs, channels = zip(*((block.convs, block.channels) for block in arch.blocks), strict=True)
    if convs not in DEPTHS or channels != CHANNELS:
        return "arch.blocks: not those of torchvision's vgg11, vgg13, vgg16 or vgg19"
    if len(arch.hidden) != len(HIDDEN):
        return f"arch.hidden={list(arch.hidden)}: torchvision's VGGs have two hidden layers"
    return ""


def torchvision_code(config: Config, file: str) -> list[str]:
    """Python that makes torchvision's network of these weights. `why_none` of it must be empty."""
    arch = config.arch
    given = input_spec(config)
    assert isinstance(arch, Vgg)
    side = next(layer.output[1] for layer in reversed(layers(config)) if layer.kind == "pool")
    name = DEPTHS[tuple(block.convs for block in arch.blocks)] + (
        "_bn" if arch.norm == "batch" else ""
    )
    made = [
        "import torch, torchvision",
        f"net = torchvision.models.{name}(num_classes={given.classes}, dropout={arch.dropout:g})",
    ]
    if given.channels != COLOR_CHANNELS:
        made.append(
            f"net.features[0] = torch.nn.Conv2d({given.channels}, {CHANNELS[0]}, 3, padding=1)"
        )
    if side != IMAGE_SIZE:
        made.append(f"net.avgpool = torch.nn.AdaptiveAvgPool2d({side})")
    widths = [CHANNELS[-1] * side * side, *arch.hidden, given.classes]
    usual = [CHANNELS[-1] * IMAGE_SIZE * IMAGE_SIZE, *HIDDEN, given.classes]
    for place in range(3):
        if widths[place : place + 2] != usual[place : place + 2]:
            made.append(
                f"net.classifier[{3 * place}] = torch.nn.Linear({widths[place]}, {widths[place + 1]})"
            )
    return [*made, f"net.load_state_dict(torch.load({file!r}, weights_only=True))", "net.eval()"]
