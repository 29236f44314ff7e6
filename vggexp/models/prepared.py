"""A network with its preprocessing in front, from operators that every runtime has."""

import torch
from torch import Tensor, nn

from vggexp.data.transforms import Preprocess, fitting


class Prepared(nn.Module):
    """uint8 [N, C, side, side] -> logits [N, classes]: `net(preprocess(images))` as the CPU computes it."""

    rows: Tensor
    columns: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, net: nn.Module, preprocess: Preprocess, side: int):
        super().__init__()
        self.net, self.resizes = net, side != preprocess.size
        rows, columns = fitting(side, side, preprocess.size)
        mean = torch.zeros(1) if preprocess.mean is None else preprocess.mean
        std = torch.ones(1) if preprocess.std is None else preprocess.std
        scale, shift = (255 * std)[:, None, None], (mean / std)[:, None, None]
        for name, tensor in {"rows": rows, "columns": columns, "scale": scale, "shift": shift}.items():
            self.register_buffer(name, tensor)

    def forward(self, images: Tensor) -> Tensor:
        images = images.float()
        if self.resizes:
            images = (images @ self.columns + 0.5).floor()
            images = (self.rows @ images + 0.5).floor()
        return self.net(images / self.scale - self.shift)
