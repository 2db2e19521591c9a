"""The table of samplers: from a name, and a noise table, to a sampler.

What a sampler costs and takes it says itself: `calls` of the network a step, `draws_noise`, `takes_eta`.
"""

from collections.abc import Callable
from functools import partial

from dalle_2.sampling.ddim_sampler import DDIMSampler
from dalle_2.sampling.ddpm_sampler import DDPMSampler
from dalle_2.sampling.dpm_solver_sampler import DPMSolverSampler
from dalle_2.sampling.heun_sampler import HeunSampler
from dalle_2.sampling.noise_scheduler import NoiseScheduler
from dalle_2.sampling.sampler import Sampler
from dalle_2.sampling.sampler_names import SamplerName, sampler_name
from dalle_2.sampling.unipc_sampler import UniPCSampler

SAMPLERS: dict[SamplerName, Callable[[NoiseScheduler], Sampler]] = {
    "ddim": DDIMSampler,
    "ddpm": DDPMSampler,
    "ddpm-analytic": partial(DDPMSampler, variance="analytic"),
    "dpm++2m": DPMSolverSampler,
    "dpm++2m-sde": partial(DPMSolverSampler, stochastic=True),
    "heun": HeunSampler,
    "unipc": UniPCSampler,
}


def sampler(name: str, noise_scheduler: NoiseScheduler) -> Sampler:
    """The sampler of that name. Raises UsageError for a name that isn't in the table, with the nearest one."""
    return SAMPLERS[sampler_name(name)](noise_scheduler)
