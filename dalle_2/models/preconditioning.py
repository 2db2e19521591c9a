"""What a network's answer is added to: the part of the target that x_t says (EDM, Karras et al. 2022, section 5).

Nearly all of eps is x_t where there is much noise, and a network that has to carry x_t through its layers to say so
learns little else; what is wrong then is divided by nearly no signal. So the network is asked for what can't be read
off x_t, in units of one size at every timestep:

    x_0 = mean + c_skip (x_t - sqrt(alpha_bar) mean) + c_out F,        eps and v: what that x_0 implies

    c_skip = sqrt(alpha_bar) sigma^2 / D,  D = alpha_bar sigma^2 + 1 - alpha_bar

EDM takes for sigma the standard deviation of all data. But what counts is how far data stray around what the network
knows of them from its condition: the more it knows, the less x_t is to be believed. So sigma begins at that deviation
and is learned, at every level of noise by itself.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_2.errors import UsageError
from dalle_2.sampling.denoiser import Target
from dalle_2.sampling.noise_scheduler import per_row

ROUNDING = 0.03  # what bfloat16 leaves of the 1 that the two squares make
KNOTS = 16  # levels of noise at which sigma is learned, evenly in the angle whose sine the noise is
GAIN = 10.0  # so that its logarithm, a single number, learns as fast as the network's answer
SMALLEST = 1e-3  # of sigma; below row 0 of any table, where x_t is as good as clean

Row = Float[Tensor, "b"]


class Preconditioning(nn.Module):
    """Makes the whole target of a network's answer. t_emb must be that of an embedder which knows the noise table.

    sigma: standard deviation of clean data around their mean. variance: whether the answer has twice the channels, the
    second half being a learned variance, which stays as it is.
    """

    in_float32 = True

    def __init__(self, target: Target, sigma: float, *, variance: bool = False) -> None:
        super().__init__()
        self.target, self.sigma_data, self.variance = target, sigma, variance
        self.stray = nn.Parameter(torch.zeros(KNOTS))

    def forward(
        self,
        answer: Float[Tensor, "b c *shape"],
        x_t: Float[Tensor, "b k *shape"],
        t_emb: Float[Tensor, "b e"],
        mean: Float[Tensor, "b k *shape"] | None = None,
    ) -> Float[Tensor, "b c *shape"]:
        """The target in x_t's dtype, computed in float32 at least. mean: of clean data, 0 unless given.

        Raises UsageError for a t_emb that doesn't say how much noise there is.
        """
        with torch.autocast(x_t.device.type, enabled=False):
            said, *variance = answer.chunk(2, dim=1) if self.variance else (answer,)
            whole = self._whole(said, x_t, level_of(t_emb), mean).to(x_t.dtype)
            return torch.cat([whole, *(part.to(whole) for part in variance)], dim=1) if variance else whole

    def sigma(self, angle: Row) -> Row:
        """How far clean data stray around what the network knows of them; between two knots its logarithm is linear."""
        place = angle / (math.pi / 2) * (KNOTS - 1)
        near = (1 - (place[:, None] - torch.arange(KNOTS, device=place.device)).abs()).clamp(min=0)
        logarithm = math.log(self.sigma_data) + GAIN * (near @ self.stray.float())
        return logarithm.clamp(math.log(SMALLEST), math.log(self.sigma_data) + 2).exp()

    def _whole(self, said: Tensor, x_t: Tensor, angle: Row, mean: Tensor | None) -> Tensor:
        wide = torch.promote_types(x_t.dtype, torch.float32)
        a, s, sigma = (per_row(row, x_t, wide) for row in (angle.cos(), angle.sin(), self.sigma(angle)))
        center = 0.0 if mean is None else mean.to(wide)
        rest, spread = x_t.to(wide) - a * center, (a * sigma).square() + s.square()
        said = said.to(wide) * ((self.sigma_data * s).square() + (a * sigma.square()).square()).sqrt() / spread
        if self.target == "x_0":
            return center + a * sigma.square() / spread * rest + s * said
        if self.target == "eps":
            return s / spread * rest - a * said
        return a * s * (1 - sigma.square()) / spread * rest - said - s * center


def with_level(t_emb: Float[Tensor, "b e"], alpha_bar: Row) -> Float[Tensor, "b e"]:
    """t_emb with sqrt(alpha_bar) and sqrt(1 - alpha_bar) as its last two numbers."""
    level = torch.stack([alpha_bar.sqrt(), (1 - alpha_bar).sqrt()], dim=1).to(t_emb)
    return torch.cat([t_emb[:, :-2], level], dim=1)


def beside_level(side: Float[Tensor, "b e"]) -> Float[Tensor, "b e"]:
    """What may be added to such a t_emb: nothing where the two numbers are."""
    return F.pad(side[:, :-2], (0, 2))


def level_of(t_emb: Float[Tensor, "b e"]) -> Row:
    """The angle whose cosine and sine `with_level` left: it keeps the digits of the smaller one in any dtype.

    Raises UsageError for a t_emb that holds none.
    """
    signal, noise = t_emb[:, -2:].detach().float().unbind(1)
    if not torch.compiler.is_compiling() and not t_emb.is_meta:
        strays = (signal.square() + noise.square() - 1).abs()
        if not bool((strays < ROUNDING).all()):
            raise UsageError(
                "t_emb doesn't say how noisy x_t is: make it with the model's own time(t), or give the timesteps t "
                "themselves in its place"
            )
    return torch.atan2(noise, signal)
