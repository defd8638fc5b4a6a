"""Bounds: monotone, into (-1, 1), differentiable, the same in training and evaluation; the fitted ones fit."""

import math

import pytest
import torch

import ifsq
from ifsq.quantizers import bounds
from ifsq.quantizers.bounds import BOUNDS, FITTED, FIXED, make_bound


def skewed(n: int = 100_000) -> torch.Tensor:
    """Two channels of latents: skewed, and in two modes."""
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(n, 2, generator=rng)
    return torch.stack([x[:, 0].exp(), x[:, 1] * 0.2 + torch.where(x[:, 0] > 0, 2.0, -1.0)], dim=1)


def fitted(name: str, samples: torch.Tensor) -> bounds.Bound:
    bound = make_bound(name, samples.shape[1])
    if name in FITTED:
        bound.fit(samples)
    return bound


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("fit", [False, True])
def test_monotone_and_bounded(name, fit):
    bound = fitted(name, skewed()) if fit else make_bound(name, 2)
    z = torch.linspace(-9, 9, 4001).unsqueeze(1).expand(-1, 2).double()
    y = bound(z)
    assert (y.diff(dim=0) >= 0).all()
    assert y.abs().max() <= 1
    inner = make_bound("clamp", 2)(z).abs() < 1 if name == "clamp" else y.abs() < 0.999
    assert (y.diff(dim=0)[inner[1:] & inner[:-1]] > 0).all()


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("fit", [False, True])
def test_gradient_is_the_derivative(name, fit):
    bound = (fitted(name, skewed(2000)) if fit else make_bound(name, 2)).double()
    rng = torch.Generator().manual_seed(0)
    # away from the corners of the piecewise bounds, where there are two derivatives
    z = torch.rand(40, 2, generator=rng, dtype=torch.float64) * 3.9 - 1.95
    z = z[(z.abs() - 1).abs().amin(1) > 1e-3].requires_grad_()
    assert torch.autograd.gradcheck(bound, z, eps=1e-8, atol=1e-4)


@pytest.mark.parametrize("name", BOUNDS)
def test_channels_lie_on_any_axis(name):
    bound = fitted(name, skewed())
    z = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(bound(z, 1), bound(z.movedim(1, -1), -1).movedim(-1, 1), atol=0, rtol=0)


def test_families_are_what_they_say():
    z = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(make_bound("tanh", 2)(z), torch.tanh(z), atol=3e-7, rtol=0)
    torch.testing.assert_close(make_bound("ifsq", 2)(z), 2 / (1 + torch.exp(-1.6 * z)) - 1, atol=3e-7, rtol=0)
    torch.testing.assert_close(make_bound("gaussian", 2)(z), torch.erf(z / math.sqrt(2)), atol=3e-7, rtol=0)
    torch.testing.assert_close(make_bound("clamp", 2)(z), z.clamp(-1, 1), atol=3e-7, rtol=0)


@pytest.mark.parametrize(("name", "off"), [("standardized", 1e-6), ("learned", 1e-6), ("quantile", 0.01)])
def test_fitted_bounds_start_as_ifsq(name, off):
    z = torch.linspace(-5, 5, 999).unsqueeze(1).expand(-1, 2)
    for alpha in (1.0, 1.6):
        expected = make_bound("ifsq", 2, alpha)(z)
        assert (make_bound(name, 2, alpha)(z) - expected).abs().max() < off


@pytest.mark.parametrize(("name", "far"), [("quantile", 1 / 64), ("learned", 0.2)])
def test_fit_makes_the_samples_uniform(name, far):
    samples = skewed()
    u = fitted(name, samples).unit(samples).sort(dim=0).values
    uniform = torch.linspace(0, 1, len(u)).unsqueeze(1)
    assert (u - uniform).abs().max() < far
    assert (make_bound("ifsq", 2).unit(samples).sort(dim=0).values - uniform).abs().max() > 0.2


def test_standardizing_ignores_place_and_scale():
    x = torch.randn(50_000, 2, generator=torch.Generator().manual_seed(0))
    moved = x * torch.tensor([0.1, 7.0]) + torch.tensor([3.0, -20.0])
    torch.testing.assert_close(fitted("standardized", moved)(moved), fitted("standardized", x)(x), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["standardized", "quantile"])
def test_running_statistics_reach_those_of_the_latents(name):
    samples = skewed(40_000)
    bound = make_bound(name, 2)
    for part in samples.repeat(15, 1).split(1000):
        bound.observe(part)
    direct = fitted(name, samples)
    grid = torch.linspace(-1, 3, 200).unsqueeze(1).expand(-1, 2)
    assert (bound(grid) - direct(grid)).abs().max() < 0.05
    assert (make_bound(name, 2)(grid) - direct(grid)).abs().max() > 0.3


@pytest.mark.parametrize("name", FITTED)
def test_training_and_evaluation_are_one_function(name):
    q = ifsq.FSQ([17, 17], bound=name, cells="equal")
    z = skewed(64)
    before = {k: v.clone() for k, v in q.bound.state_dict().items()}
    training = q.train()(z)
    moved = any(not torch.equal(v, before[k]) for k, v in q.bound.state_dict().items())
    assert moved == (name != "learned")
    q.bound.load_state_dict(before)
    evaluation = q.eval()(z)
    assert torch.equal(training.codes, evaluation.codes)
    for key, value in q.bound.state_dict().items():
        assert torch.equal(value, before[key])


def test_statistics_stay_float32():
    q = ifsq.FSQ([17, 17], bound="quantile").bfloat16()
    assert q.bound.knots.dtype == torch.float32
    assert torch.equal(q.bound.knots, make_bound("quantile", 2).knots)
    assert ifsq.FSQ([17], bound="standardized").to("meta").bound.mean.is_meta


def test_halving_finds_what_searchsorted_finds():
    knots = fitted("quantile", skewed()).knots
    rows = torch.cat([skewed(500).t(), knots, knots.nextafter(torch.tensor(99.0))], dim=1).contiguous()
    count = bounds._count_below(knots, rows)
    assert torch.equal(count, torch.searchsorted(knots, rows, right=True))
    assert count.min() == 0
    assert count.max() == bounds.KNOTS


def test_a_dead_channel_has_finite_gradients():
    z = torch.zeros(5000, 2)
    for name in FITTED:
        bound = fitted(name, z)
        x = torch.zeros(3, 2, requires_grad=True)
        bound(x).sum().backward()
        assert x.grad.max() < 400
        assert torch.isfinite(bound(x)).all()


def test_learned_bound_is_trained():
    bound = make_bound("learned", 2)
    z = skewed(256)
    bound(z).square().sum().backward()
    assert bound.heights.grad.abs().max() > 0
    assert bound.slopes.grad.abs().max() > 0


@pytest.mark.parametrize("name", FIXED)
def test_fixed_bounds_refuse_a_fit(name):
    with pytest.raises(ValueError, match=f"bound='{name}' has nothing to fit; expected one of standardized"):
        make_bound(name, 2).fit(torch.zeros(3, 2))


def test_quantiles_see_every_column_of_an_image():
    z = torch.randn(1024, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    z[..., 0] = 10.0
    bound = make_bound("quantile", 1)
    bound.momentum = 1.0
    bound.observe(z, 1)
    assert 0.04 < (bound.knots > 5).float().mean() < 0.08


@pytest.mark.parametrize("name", ["standardized", "quantile"])
def test_one_bad_batch_does_not_stay(name):
    """Mixed precision overflows now and then; statistics of it would be NaN for good."""
    q = ifsq.FSQ([9, 9], bound=name, validate=False).train()
    before = {k: v.clone() for k, v in q.state_dict().items()}
    q(torch.tensor([[math.inf, math.nan], [0.0, 1.0]]))
    for value in q.state_dict().values():
        assert torch.isfinite(value).all()
    q.load_state_dict(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_statistics_are_float32_under_any_default(dtype):
    torch.set_default_dtype(dtype)
    try:
        made = [make_bound(name, 2) for name in FITTED[:2]]
    finally:
        torch.set_default_dtype(torch.float32)
    for bound in made:
        assert {b.dtype for b in bound.buffers()} == {torch.float32}
        bound.observe(torch.randn(50, 2))


def test_the_learned_bound_is_built_on_the_meta_device():
    with torch.device("meta"):
        assert make_bound("learned", 2).slopes.is_meta


@pytest.mark.parametrize("name", FITTED)
def test_samples_to_fit_are_checked(name):
    bound = make_bound(name, 2)
    for samples, message in (
        (torch.zeros(5, 3), r"samples of shape \(5, 3\): expected \(n, 2\)"),
        (torch.zeros(0, 2), r"samples of shape \(0, 2\)"),
        (torch.full((5, 2), math.nan), "hold NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            bound.fit(samples)
