"""DPM-Solver++ and UniPC step by step beside diffusers, on the same network and noise."""

import diffusers
import pytest
import torch
from exact_denoisers import COSINE, LINEAR, start

from dalle_2.sampling.denoiser import to_denoiser
from dalle_2.sampling.dpm_solver_sampler import DPMSolverSampler
from dalle_2.sampling.noise import PictureNoise
from dalle_2.sampling.unipc_sampler import UniPCSampler

SCHEDULES = pytest.mark.parametrize("scheduler", [COSINE, LINEAR], ids=["cosine", "linear"])
PREDICTION_TYPES = {"x_0": "sample", "v": "v_prediction"}


def network(scheduler, target):
    """Some smooth network, right about nothing, predicting in the units of its target."""

    def predict(x, t):
        return torch.tanh(1.3 * x + 0.2) * (0.5 + t.view(-1, 1, 1, 1) / 1000)

    return predict, to_denoiser(predict, scheduler, target)


def peer_of(kind, scheduler, target, steps, **options):
    """diffusers' scheduler with our float64 table, which it would round to float32."""
    peer = kind(
        num_train_timesteps=scheduler.T,
        trained_betas=scheduler.betas.tolist(),
        timestep_spacing="trailing",
        prediction_type=PREDICTION_TYPES[target],
        final_sigmas_type="zero",
        **options,
    )
    peer.set_timesteps(steps)
    a = scheduler.alpha_bar[peer.timesteps]
    peer.sigmas = torch.cat([((1 - a) / a).sqrt(), torch.zeros(1, dtype=torch.float64)])
    return peer


@SCHEDULES
@pytest.mark.parametrize("stochastic", [False, True], ids=["ode", "sde"])
@pytest.mark.parametrize("target", ["x_0", "v"])
def test_every_step_of_dpm_solver_equals_diffusers(scheduler, stochastic, target):
    kind = "sde-dpmsolver++" if stochastic else "dpmsolver++"
    for steps in (1, 2, 8, 25):
        peer = peer_of(
            diffusers.DPMSolverMultistepScheduler, scheduler, target, steps,
            algorithm_type=kind, solver_order=2, solver_type="midpoint",
        )  # fmt: skip
        predict, denoiser = network(scheduler, target)
        noise, same = PictureNoise([1, 2], "a"), PictureNoise([1, 2], "a")
        ours = DPMSolverSampler(scheduler, stochastic=stochastic).steps(denoiser, start(2, 3, 4, 4), steps, noise=noise)
        for step, t in zip(ours, peer.timesteps.tolist(), strict=True):
            assert step.t == t
            drawn = same((2, 3, 4, 4)) if stochastic and step.s >= 0 else torch.zeros(2, 3, 4, 4)
            raw = predict(step.x_t, torch.full((2,), t))
            theirs = peer.step(raw, t, step.x_t, variance_noise=drawn).prev_sample
            torch.testing.assert_close(step.x_s, theirs, rtol=0, atol=1e-5)


@SCHEDULES
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("target", ["x_0", "v"])
def test_every_step_of_unipc_equals_diffusers(scheduler, order, target):
    for steps in (1, 2, 3, 8, 25):
        peer = peer_of(
            diffusers.UniPCMultistepScheduler, scheduler, target, steps,
            solver_order=order, solver_type="bh2", predict_x0=True,
        )  # fmt: skip
        predict, denoiser = network(scheduler, target)
        ours = UniPCSampler(scheduler, order=order).steps(denoiser, start(2, 3, 4, 4), steps)
        for step, t in zip(ours, peer.timesteps.tolist(), strict=True):
            assert step.t == t
            raw = predict(step.x_t, torch.full((2,), t))
            theirs = peer.step(raw, t, step.x_t).prev_sample
            torch.testing.assert_close(step.x_s, theirs, rtol=0, atol=1e-6)
