import pytest
import torch

from dalle_2.errors import UsageError
from dalle_2.sampling.denoiser import Denoised, to_denoiser
from dalle_2.sampling.guidance import guide, threshold
from dalle_2.sampling.noise_scheduler import NoiseScheduler

SCHEDULER = NoiseScheduler()
X = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
T = torch.tensor([10, 300, 600, 990])
Z = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
NULL = torch.zeros(1, 3)


class Network:
    """A nonlinear network of x_t, t and one condition that counts its calls and rows."""

    def __init__(self, target="eps", variance=False):
        self.calls, self.target, self.variance = [], target, variance

    def raw(self, x_t, t, condition):
        z = condition["z"].view(*condition["z"].shape, 1, 1)
        answer = torch.tanh(x_t + z) * (1 + t.view(-1, 1, 1, 1) / 1000)
        return torch.cat([answer, torch.tanh(z) + 0 * x_t], dim=1) if self.variance else answer

    def __call__(self, x_t, t, condition):
        self.calls.append(len(x_t))
        predict = to_denoiser(
            lambda x, t: self.raw(x, t, condition), SCHEDULER, self.target, learned_variance=self.variance
        )
        return predict(x_t, t)


def both(network, w, **options):
    return guide(network, [{"z": NULL}, {"z": Z}], w, **options)(X, T)


@pytest.mark.parametrize("scale", [1.0, [1], torch.ones(4)])
def test_scale_one_is_off_and_costs_one_pass(scale):
    network = Network()
    answer = both(network, scale)
    assert network.calls == [4]
    assert torch.equal(answer.x_0, Network()(X, T, {"z": Z}).x_0)


def test_scale_zero_is_unconditional():
    torch.testing.assert_close(both(Network(), 0.0).x_0, Network()(X, T, {"z": NULL.expand(4, 3)}).x_0)


@pytest.mark.parametrize("target", ["eps", "x_0", "v"])
def test_guidance_of_x_0_is_guidance_of_what_the_network_predicts(target):
    network = Network(target)
    u, c = (network.raw(X.double(), T, {"z": z.double()}) for z in (NULL.expand(4, 3), Z))
    raw = u + 3.5 * (c - u)
    expected = to_denoiser(lambda x, t: raw, SCHEDULER, target)(X.double(), T).x_0
    guided = guide(network, [{"z": NULL.double()}, {"z": Z.double()}], 3.5)(X.double(), T)
    torch.testing.assert_close(guided.x_0, expected, rtol=1e-9, atol=1e-9)
    assert network.calls == [8]  # one stacked batch


@pytest.mark.parametrize("max_rows", [1, 3, 4, 5, 8, 100])
def test_max_rows_cuts_the_batch_and_changes_nothing(max_rows):
    network = Network(variance=True)
    answer, whole = both(network, 2.0, max_rows=max_rows), both(Network(variance=True), 2.0)
    assert max(network.calls) <= max_rows
    assert sum(network.calls) == 8
    torch.testing.assert_close(answer.x_0, whole.x_0)
    torch.testing.assert_close(answer.variance, whole.variance)


@pytest.mark.parametrize("scale", [0.0, 1.0, 8.0])
def test_the_variance_is_the_conditional_rows_at_any_scale(scale):
    expected = Network(variance=True)(X, T, {"z": Z}).variance
    assert torch.equal(both(Network(variance=True), scale).variance, expected)


def test_every_row_has_a_weight_of_its_own():
    weights = torch.tensor([0.0, 1.0, 3.0, 7.5])
    answer = both(Network(), weights).x_0
    for i, w in enumerate(weights.tolist()):
        torch.testing.assert_close(answer[i], both(Network(), w).x_0[i])


def test_several_conditions_add_up():
    network, Y = Network(), Z.flip(0)
    u, y, z = (network(X, T, {"z": c}).x_0 for c in (NULL.expand(4, 3), Y, Z))
    answer = guide(network, [{"z": NULL}, {"z": Y}, {"z": Z}], [2.0, torch.full((4,), 3.0)])(X, T).x_0
    torch.testing.assert_close(answer, u + 2 * (y - u) + 3 * (z - u), rtol=1e-4, atol=1e-4)


def test_an_idle_condition_costs_nothing():
    network = Network()
    guide(network, [{"z": NULL}, {"z": Z.flip(0)}, {"z": Z}], [0.0, 3.0])(X, T)
    assert network.calls == [8]


@pytest.mark.parametrize(
    ("conditions", "weights", "options", "message"),
    [
        ([{"z": Z}], [], {}, "1 conditions and 0 weights"),
        ([{"z": NULL}, {"z": Z}], [1.0, 2.0], {}, "2 conditions and 2 weights"),
        ([{"z": NULL}, {"y": Z}], 2.0, {}, "equal keys"),
        ([{"z": NULL}, {"z": Z}], float("nan"), {}, "must be finite"),
        ([{"z": NULL}, {"z": Z}], 2.0, {"max_rows": 0}, "max_rows must be at least 1"),
    ],
)
def test_conditions_and_weights_must_fit(conditions, weights, options, message):
    with pytest.raises(UsageError, match=message):
        guide(Network(), conditions, weights, **options)


def test_rows_must_fit_the_batch():
    with pytest.raises(UsageError, match="2 guidance weights for 4 rows"):
        both(Network(), torch.ones(2))
    with pytest.raises(UsageError, match="condition 'z' has 3 rows for a batch of 4"):
        guide(Network(), [{"z": NULL}, {"z": Z[:3]}], 2.0)(X, T)


# Thresholding


def constant(x_0):
    return lambda x_t, t: Denoised(x_0, variance=torch.zeros_like(x_0))


def test_static_thresholding_clips_to_the_limits():
    denoised = threshold(constant(10 * X), limits=(-0.5, 2.0))(X, T)
    assert torch.equal(denoised.x_0, (10 * X).clamp(-0.5, 2.0))
    assert denoised.variance is not None


def test_dynamic_thresholding_scales_each_saturated_row_to_the_percentile():
    x_0 = torch.stack([torch.linspace(-0.5, 0.5, 101), torch.linspace(-4, 4, 101)])
    found = threshold(constant(x_0), "dynamic", percentile=0.75)(x_0, T[:2]).x_0
    assert torch.equal(found[0], x_0[0])  # nothing above the limit: left alone
    size = torch.quantile(x_0[1].abs(), 0.75)
    torch.testing.assert_close(found[1], (x_0[1] / size).clamp(-1, 1))


def test_thresholding_round_guidance_bounds_what_guidance_makes():
    guided = guide(Network(), [{"z": NULL}, {"z": Z}], 9.0)
    assert float(guided(X, T).x_0.abs().max()) > 1
    for mode in ("static", "dynamic"):
        assert float(threshold(guided, mode)(X, T).x_0.abs().max()) <= 1 + 1e-6
    assert threshold(guided, "none") is guided


@pytest.mark.parametrize(
    "options",
    [
        {"limits": (1.0, -1.0)},
        {"mode": "dynamic", "limits": (-1.0, 2.0)},
        {"mode": "dynamic", "percentile": 0.0},
    ],
)
def test_senseless_thresholds_are_refused(options):
    with pytest.raises(UsageError, match="limits"):
        threshold(constant(X), **options)
