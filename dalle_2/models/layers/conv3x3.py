"""The 3 x 3 convolution of residual blocks, which takes the shorter way where there is one."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_2.models.layers.unrolled import unrolled
from dalle_2.models.layers.winograd import TILES, factors_of, products, winograd

FEWEST_CHANNELS = 192  # with fewer the additions take what the multiplications save


class Conv3x3(nn.Conv2d):
    """A convolution that keeps height and width. With many channels on a CPU it is computed otherwise: on a map with
    fewer positions than channels as one matrix product, on larger ones in float32 by Winograd's way."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        """Where gradients are wanted, or a compiler looks on, it is PyTorch's own."""
        height, width = x.shape[-2:]
        if not self._may_be_short(x):
            return super().forward(x)
        if height * width <= min(self.in_channels, self.out_channels):
            return unrolled(x, self.weight, self.bias)
        if _is_exact(x) and height % 2 == width % 2 == 0:
            return winograd(x, self.weight, self.bias)
        return super().forward(x)

    def _may_be_short(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.dtype == self.weight.dtype
            and min(self.in_channels, self.out_channels) >= FEWEST_CHANNELS
            and not (torch.is_grad_enabled() or torch.compiler.is_compiling())
        )

    def inside(self, height: int, width: int) -> Callable[[Float[Tensor, "b c h2 w"]], Float[Tensor, "b c2 h w"]]:
        """The convolution of strips of a large map in float32, each with a row more above and below.

        height, width: of the whole map, in even numbers.
        """
        if min(self.in_channels, self.out_channels) < FEWEST_CHANNELS:
            return lambda x: F.conv2d(x, self.weight, self.bias, padding=(0, 1))
        factors = factors_of(self.weight, height * width // (4 * TILES))
        return lambda x: products(x, factors, self.bias, inside=True)


def _is_exact(x: Tensor) -> bool:
    """Whether it is computed in float32; in fewer digits Winograd's sums lose too many."""
    return x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
