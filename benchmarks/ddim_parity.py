"""Largest difference of x_s between our DDIM and diffusers', step by step on the same x_t.

    python benchmarks/ddim_parity.py

diffusers' DDIMScheduler gets our float64 betas as `trained_betas`, clips nothing, and takes steps that divide
T. As it stores them in float32, our float64 alpha_bar is set in their place; the last column leaves its own
float32 table, and so shows what that rounding alone does. The network is the exact denoiser of Gaussian data.
"""

# ruff: noqa: T201 (a script prints)

import diffusers
import torch

from dalle_2.sampling.ddim_sampler import DDIMSampler
from dalle_2.sampling.denoiser import to_denoiser
from dalle_2.sampling.noise import PictureNoise
from dalle_2.sampling.noise_scheduler import NoiseScheduler

NAMES = {"eps": "epsilon", "x_0": "sample", "v": "v_prediction"}


def peer_of(scheduler, spacing, target, *, exact_table=True):
    """diffusers' scheduler on our table."""
    peer = diffusers.DDIMScheduler(
        num_train_timesteps=scheduler.T,
        trained_betas=scheduler.betas.tolist(),
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing=spacing,
        prediction_type=NAMES[target],
    )
    if exact_table:
        peer.alphas_cumprod = scheduler.alpha_bar
    return peer


def oracle(scheduler, target, mu=0.3, std=0.5):
    """The exact prediction for data from N(mu, std^2): what a perfectly trained network answers."""

    def predict(x, t):
        a = scheduler.alpha_bar[t].view(-1, *[1] * (x.ndim - 1)).to(x.dtype)
        x_0 = mu + a.sqrt() * std**2 / (a * std**2 + 1 - a) * (x - a.sqrt() * mu)
        eps = (1 - a).sqrt() * (x - a.sqrt() * mu) / (a * std**2 + 1 - a)
        return {"x_0": x_0, "eps": eps, "v": a.sqrt() * eps - (1 - a).sqrt() * x_0}[target]

    return predict


def max_errors(scheduler, target, spacing, steps, *, eta=0.0, dtype=torch.float64, exact_table=True):
    """The largest |ours - theirs| of x_s at each step, both given the same x_t and the same noise."""
    x_T = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    predict, peer = oracle(scheduler, target), peer_of(scheduler, spacing, target, exact_table=exact_table)
    peer.set_timesteps(steps)
    ours = DDIMSampler(scheduler).steps(
        to_denoiser(predict, scheduler, target),
        x_T,
        steps,
        eta=eta,
        spacing=spacing,
        noise=PictureNoise([1, 2], ""),
    )
    errors, noise = [], PictureNoise([1, 2], "")
    for step, t in zip(ours, peer.timesteps.tolist(), strict=True):
        assert step.t == t
        raw = predict(step.x_t, torch.full((2,), t))
        same = noise.normal(x_T.shape, dtype=dtype) if eta else None
        theirs = peer.step(raw, t, step.x_t, eta=eta, variance_noise=same).prev_sample
        errors.append(float((step.x_s - theirs).abs().max()))
    return errors


def main():
    print(
        f"diffusers {diffusers.__version__}, torch {torch.__version__}; largest over 5, 10, 50 and 250 steps"
    )
    print("| schedule | target | spacing | eta | float64 | float32 | float32, diffusers' float32 table |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    cases = [(torch.float64, True), (torch.float32, True), (torch.float32, False)]
    for schedule in ("cosine", "linear"):
        scheduler = NoiseScheduler(schedule=schedule)
        for target in NAMES:
            for spacing in ("trailing", "leading"):
                for eta in (0.0, 1.0):
                    row = [worst(scheduler, target, spacing, eta, dtype, exact) for dtype, exact in cases]
                    cells = " | ".join(f"{error:.1e}" for error in row)
                    print(f"| {schedule} | {target} | {spacing} | {eta:g} | {cells} |", flush=True)


def worst(scheduler, target, spacing, eta, dtype, exact_table):
    """The largest error over several numbers of steps."""
    options = {"eta": eta, "dtype": dtype, "exact_table": exact_table}
    return max(max(max_errors(scheduler, target, spacing, steps, **options)) for steps in (5, 10, 50, 250))


if __name__ == "__main__":
    main()
