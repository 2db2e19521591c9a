"""A 3 x 3 convolution in fewer multiplications (Winograd; Lavin & Gray 2015, "Fast Algorithms for CNNs", section 4.1).

F(2 x 2, 3 x 3): four pixels of the result at a time, from a tile of 4 x 4, by 16 products for each pair of channels
where the sum itself takes 36. The products are one matrix multiplication for each of the 16 places in a tile; the rest
are additions. In float32 the result differs from the sum's in the last digits.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

MOST = 2**24  # numbers of weights that are converted at a time: they take memory
MANY = 16  # products that a matrix is in, from which on turning it over pays
TILES = 128  # at a time, so that they stay in the processor's cache
# What the three weights of a line become for the four places in a tile (their G), and so those of a 3 x 3 square.
LINE = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


def winograd(
    x: Float[Tensor, "b c h w"], weight: Float[Tensor, "c2 c 3 3"], bias: Float[Tensor, "c2"] | None
) -> Float[Tensor, "b c2 h w"]:
    """What `conv2d(x, weight, bias, padding=1)` gives, channels last. Height and width must be even."""
    strips = len(x) * x.shape[2] * x.shape[3] // (4 * TILES)
    parts = -(-16 * weight.shape[0] * weight.shape[1] // MOST)
    biases = [None] * parts if bias is None else bias.chunk(parts)
    made = [products(x, factors_of(w, strips), b) for w, b in zip(weight.chunk(parts), biases, strict=False)]
    return torch.cat(made, dim=1) if parts > 1 else made[0]


def products(
    x: Float[Tensor, "b c h2 w"],
    factors: Float[Tensor, "16 c c2"],
    bias: Float[Tensor, "c2"] | None,
    *,
    inside: bool = False,
) -> Float[Tensor, "b c2 h w"]:
    """The same with the weights' factors. inside: the first row and the last are neighbours of a strip, not its own."""
    (batch, channels, height, width), outputs = x.shape, factors.shape[-1]
    height, above = (height - 2, 0) if inside else (height, 1)
    across, down = width // 2, _rows(height // 2, width // 2)
    pixels = x.permute(0, 2, 3, 1)
    made = x.new_empty(batch, height, width, outputs)
    lines = x.new_zeros(2 * down + 2, width, channels)
    halfway = x.new_zeros(4, down, width + 2, channels)  # its first and last column stay zero: the padding
    tiles = x.new_empty(4, 4, down, across, channels)
    multiplied = x.new_empty(4, 4, down, across, outputs)
    sums = x.new_empty(2, 4, down, across, outputs)
    for picture in range(batch):
        for top in range(0, height, 2 * down):
            start = top - above  # of the lines, in the rows that are given
            first, end = max(start, 0), min(start + len(lines), len(pixels[picture]))
            if end - first < len(lines):
                lines.zero_()
            lines[first - start : end - start] = pixels[picture, first:end]
            _differences([lines[at : at + 2 * down : 2] for at in range(4)], halfway[:, :, 1:-1])
            _differences([halfway[:, :, at : at + width : 2] for at in range(4)], tiles.transpose(0, 1))
            torch.bmm(tiles.flatten(2, 3).flatten(0, 1), factors, out=multiplied.view(16, -1, outputs))
            if bias is not None:
                multiplied[1, 1] += bias  # the one product that is added to all four pixels
            _totals(multiplied, sums)
            place = made[picture, top : top + 2 * down].view(down, 2, across, 2, outputs)
            _totals(sums.transpose(0, 1), place.permute(3, 1, 0, 2, 4))
    return made.permute(0, 3, 1, 2)


def _rows(height: int, width: int) -> int:
    """Rows of tiles at a time: so many that they divide the picture and hold about TILES."""
    return next(rows for rows in range(max(1, min(height, TILES // width)), 0, -1) if height % rows == 0)


def factors_of(weight: Float[Tensor, "c2 c 3 3"], strips: int) -> Float[Tensor, "16 c c2"]:
    """The weights by place in a tile (their G g G'). strips: how many products each of them is in."""
    line = weight.new_tensor(LINE)
    outputs, channels = weight.shape[:2]
    if not weight.is_contiguous():
        square = weight.permute(2, 3, 1, 0).reshape(9, channels * outputs)
        return (torch.kron(line, line) @ square).view(16, channels, outputs)
    made = (torch.kron(line, line) @ weight.view(-1, 9).t()).view(16, outputs, channels).transpose(1, 2)
    return made if strips < MANY else made.contiguous()


def _differences(x: Sequence[Tensor], out: Tensor) -> None:
    """Of four neighbours in a line, what is multiplied (their B'd)."""
    torch.sub(x[0], x[2], out=out[0])
    torch.add(x[1], x[2], out=out[1])
    torch.sub(x[2], x[1], out=out[2])
    torch.sub(x[1], x[3], out=out[3])


def _totals(x: Tensor, out: Tensor) -> None:
    """Of four products in a line, two neighbours of the result (their A'm)."""
    torch.add(x[0], x[1], out=out[0]).add_(x[2])
    torch.sub(x[1], x[2], out=out[1]).sub_(x[3])
