"""A convolution as one matrix product (Chellapilla et al. 2006, "High performance convolutional neural networks").

On a map with fewer positions than channels nearly all the time goes into reading the weights. PyTorch's convolutions
bring them into an order of their own first, at each call; a matrix product reads them once, where they lie.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def unrolled(
    x: Float[Tensor, "b c h w"], weight: Float[Tensor, "c2 c 3 3"], bias: Float[Tensor, "c2"] | None
) -> Float[Tensor, "b c2 h w"]:
    """What `conv2d(x, weight, bias, padding=1)` gives, channels last; the weights stay in either memory format."""
    (batch, channels, height, width), outputs = x.shape, len(weight)
    if weight.is_contiguous():
        made = weight.view(outputs, -1) @ _columns(x)
        made = made.view(outputs, batch, height, width).permute(1, 2, 3, 0).contiguous()
        made = made if bias is None else made.add_(bias)
    else:
        flat = weight.permute(0, 2, 3, 1).reshape(outputs, 9 * channels)
        made = F.linear(_rows(x), flat, bias).view(batch, height, width, outputs)
    return made.permute(0, 3, 1, 2)


def _rows(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "n k"]:
    """The 3 x 3 pixels around each position, with zeros beyond the border; the channels of a pixel lie together."""
    batch, channels, height, width = x.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
    picture, line, pixel, _ = padded.stride()
    # Three pixels of a line lie together, too, so that they are one run of numbers.
    around = padded.as_strided((batch, height, width, 3, 3 * channels), (picture, line, pixel, line, 1))
    return around.reshape(-1, 9 * channels)


def _columns(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "k n"]:
    """The same in columns, in which the nine pixels of a channel lie together."""
    batch, channels, height, width = x.shape
    padded = F.pad(x.transpose(0, 1), (1, 1, 1, 1)).contiguous()
    channel, picture, line, pixel = padded.stride()
    size = (channels, 3, 3, batch, height, width)
    return padded.as_strided(size, (channel, line, pixel, picture, line, pixel)).reshape(9 * channels, -1)
