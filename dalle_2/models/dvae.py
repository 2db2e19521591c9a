"""OpenAI's discrete VAE: a picture as a grid of codes, an eighth as long each way (Ramesh et al. 2021, appendix A)."""

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_2 import bounds
from dalle_2.config import Settings
from dalle_2.errors import UsageError

EPS = 0.1  # the logit-Laplace distribution has no mass at the ends of (0, 1): pixels keep that far from them


class DVAEConfig(Settings):
    """Widths and depths, by default those of the published weights.

    groups: levels of the encoder, each half as large as the one before and twice as wide, and the same back in the
    decoder. width: of the finest. start: what the decoder makes of a code. codes: how many there are.
    """

    width: int = Field(default=256, ge=4, multiple_of=4, le=bounds.WIDTH)
    groups: int = Field(default=4, ge=1, le=bounds.LEVELS)
    blocks: int = Field(default=2, ge=1, le=bounds.BLOCKS)
    start: int = Field(default=128, ge=1, le=bounds.WIDTH)
    codes: int = Field(default=8192, ge=2, le=bounds.VOCABULARY)

    @property
    def widths(self) -> list[int]:
        """Of each level, the finest first."""
        return [self.width * 2**level for level in range(self.groups)]

    @property
    def factor(self) -> int:
        """How many times smaller a side becomes."""
        return int(2 ** (self.groups - 1))


class DVAE(nn.Module):
    """Pictures to codes and back."""

    kind = "dvae"

    def __init__(self, config: DVAEConfig | None = None) -> None:
        super().__init__()
        self.config = config or DVAEConfig()
        self.encoder = DVAEEncoder(self.config)
        self.decoder = DVAEDecoder(self.config)

    @classmethod
    def from_config(cls, config: DVAEConfig) -> "DVAE":
        """The untrained model of these settings."""
        return cls(config)

    @torch.no_grad()
    def encode(self, pictures: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b k k2"]:
        """The likeliest codes of pictures in [-1, 1]. Raises UsageError for sides that don't divide by `factor`."""
        return self.encoder(map_pixels(pictures)).argmax(dim=1)

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "b k k2"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [-1, 1] for codes: where the logit-Laplace distribution of each pixel has its middle.

        Raises UsageError for a code that there isn't.
        """
        low, high = (int(codes.min()), int(codes.max())) if len(codes) else (0, 0)
        if low < 0 or high >= self.config.codes:
            raise UsageError(f"codes lie in 0 ... {self.config.codes - 1}, got {low} ... {high}")
        middle, _ = self.decoder(F.one_hot(codes, self.config.codes).movedim(-1, 1).float()).chunk(2, dim=1)
        return unmap_pixels(middle.sigmoid())


class DVAEEncoder(nn.Module):
    """Pixels to logits of codes."""

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
        self.factor = config.factor
        widths, gain = config.widths, _gain(config)
        self.conv_in = _conv(3, config.width, 7)
        self.groups = nn.ModuleList(
            _group(before, after, config.blocks, (3, 3, 3, 1), gain)
            for before, after in zip([config.width, *widths[:-1]], widths, strict=True)
        )
        self.conv_out = _conv(widths[-1], config.codes, 1)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n k k2"]:
        """x: pixels as `map_pixels` gives them. Raises UsageError for sides that don't divide by `factor`."""
        if x.shape[-1] % self.factor or x.shape[-2] % self.factor:
            got = f"{x.shape[-2]} x {x.shape[-1]}"
            raise UsageError(f"this dVAE takes sides divisible by {self.factor}, got {got} px: crop or resize first")
        x = self.conv_in(x)
        for n, group in enumerate(self.groups):
            x = group(F.max_pool2d(x, 2) if n else x)
        return self.conv_out(F.relu(x))


class DVAEDecoder(nn.Module):
    """Codes to a distribution of pixels: the middle and the logarithm of the spread of each, before the sigmoid."""

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
        widths, gain = config.widths[::-1], _gain(config)
        self.conv_in = _conv(config.codes, config.start, 1)
        self.groups = nn.ModuleList(
            _group(before, after, config.blocks, (1, 3, 3, 3), gain)
            for before, after in zip([config.start, *widths[:-1]], widths, strict=True)
        )
        self.conv_out = _conv(config.width, 6, 1)

    def forward(self, codes: Float[Tensor, "b n k k2"]) -> Float[Tensor, "b 6 h w"]:
        """codes: how much of each there is in a place, one of one for a picture that was encoded."""
        x = self.conv_in(codes)
        for n, group in enumerate(self.groups):
            x = group(F.interpolate(x, scale_factor=2.0, mode="nearest") if n else x)
        return self.conv_out(F.relu(x))


class DVAEBlock(nn.Module):
    """x + gain · path(x), the path four convolutions, each behind a ReLU, through a quarter of the width."""

    def __init__(self, channels: int, out_channels: int, kernels: tuple[int, ...], gain: float) -> None:
        super().__init__()
        self.gain = gain
        hidden = out_channels // 4
        widths = [channels, hidden, hidden, hidden, out_channels]
        self.path = nn.ModuleList(map(_conv, widths, widths[1:], kernels))
        self.skip = _conv(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        y = x
        for conv in self.path:
            y = conv(F.relu(y))
        return self.skip(x) + self.gain * y


def map_pixels(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Pictures in [-1, 1] to the numbers in [0.1, 0.9] that the encoder reads (appendix A.3)."""
    return (1 - 2 * EPS) * (x + 1) / 2 + EPS


def unmap_pixels(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """The way back, kept within [-1, 1]."""
    return ((x - EPS) / (1 - 2 * EPS)).clamp(0, 1) * 2 - 1


def _group(channels: int, out_channels: int, blocks: int, kernels: tuple[int, ...], gain: float) -> nn.Sequential:
    """The blocks of one level, the first of which changes the width."""
    before = [channels, *[out_channels] * (blocks - 1)]
    return nn.Sequential(*(DVAEBlock(width, out_channels, kernels, gain) for width in before))


def _conv(channels: int, out_channels: int, kernel: int) -> nn.Conv2d:
    """As initialised there: variance one over the number of inputs."""
    conv = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2)
    nn.init.normal_(conv.weight, std=(channels * kernel**2) ** -0.5)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


def _gain(config: DVAEConfig) -> float:
    """A block's share, so that a deep stack begins as a shallow one."""
    return float((config.groups * config.blocks) ** -2)
