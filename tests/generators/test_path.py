"""The paths from noise to data: their ends, their derivatives, and what follows from what."""

import math
from itertools import product

import pytest
import torch

from ifsq.generators.diffusion.path import PATHS

CLOSE = {"atol": 1e-10, "rtol": 1e-10}
QUANTITIES = ("velocity", "noise", "data", "score")
OFFICIAL = {"linear": "Linear", "cosine": "GVP", "vp": "VP"}


@pytest.fixture(params=PATHS)
def path(request):
    return PATHS[request.param]()


def drawn():
    torch.manual_seed(0)
    x0, x1 = torch.randn(2, 5, 3, 2, 4, dtype=torch.float64)
    return x0, x1, torch.rand(5, dtype=torch.float64) * 0.8 + 0.1


def known(path, x0, x1, t):
    """The quantities of a point of the path by their definitions."""
    point = path.sample(x0, x1, t)
    column = (5, 1, 1, 1)
    score = (path.alpha(t).view(column) * x1 - point.x) / path.sigma(t).view(column) ** 2
    return point.x, {"velocity": point.velocity, "noise": x0, "data": x1, "score": score}


def test_it_leads_from_noise_to_data(path):
    for dtype in (torch.float32, torch.float64):
        ends = torch.tensor([0.0, 1.0], dtype=dtype)
        start = 0.0 if path.alpha(ends)[0] == 0 else 0.0065  # the variance preserving paths leave some data
        assert path.alpha(ends).tolist() == [pytest.approx(start, abs=2e-4), 1.0]
        assert path.sigma(ends).tolist() == [pytest.approx(1.0, abs=1e-4), 0.0]
    times = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert bool((path.alpha(times).diff() > 0).all())
    assert bool((path.sigma(times).diff() < 0).all())


def test_the_straight_and_the_cosine_path_begin_in_the_noise_exactly():
    x0, x1, _ = drawn()
    ends = torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    for name in ("linear", "cosine"):
        assert torch.equal(PATHS[name]().sample(x0, x1, ends[0]).x, x0)
        assert torch.equal(PATHS[name]().sample(x0, x1, ends[1]).x, x1)


def test_velocity_is_the_derivative(path):
    x0, x1, t = drawn()
    _, slope = torch.func.jvp(lambda t: path.sample(x0, x1, t).x, (t,), (torch.ones_like(t),))
    assert torch.allclose(path.sample(x0, x1, t).velocity, slope, **CLOSE)
    h = 1e-4  # central differences of the fourth order: an error of h^4
    ahead = [path.sample(x0, x1, t + k * h).x for k in (-2, -1, 1, 2)]
    difference = (ahead[0] - 8 * ahead[1] + 8 * ahead[2] - ahead[3]) / (12 * h)
    assert torch.allclose(path.sample(x0, x1, t).velocity, difference, atol=1e-9, rtol=1e-9)


def test_each_quantity_gives_the_others(path):
    x0, x1, t = drawn()
    x, true = known(path, x0, x1, t)
    for given, wanted in product(QUANTITIES, QUANTITIES):
        assert torch.allclose(path.convert(true[given], x, t, given, wanted), true[wanted], **CLOSE), (given, wanted)


def test_conversions_of_any_prediction_are_inverse_to_each_other(path):
    x, t = drawn()[0], drawn()[2]
    guess = drawn()[1]  # not what the path says of x
    for given, wanted in product(QUANTITIES, QUANTITIES):
        there = path.convert(guess, x, t, given, wanted)
        assert torch.allclose(path.convert(there, x, t, wanted, given), guess, **CLOSE), (given, wanted)


def test_what_is_asked_for_is_handed_on_as_it_is(path):
    x = torch.randn(2, 3)
    for name in QUANTITIES:
        assert path.convert(x, x, torch.tensor([0.0, 1.0]), name, name) is x


def test_one_time_for_all_and_values_of_any_shape(path):
    x0, x1, _ = drawn()
    t = torch.full((5,), 0.25, dtype=torch.float64)
    point = path.sample(x0, x1, t)
    assert torch.allclose(path.convert(point.velocity, point.x, t[0], "velocity", "data"), x1, **CLOSE)
    flat = path.sample(x0.flatten(1), x1.flatten(1), t)
    assert torch.equal(flat.x, point.x.flatten(1))


@pytest.mark.parametrize("prediction", QUANTITIES)
def test_velocities_are_finite_in_the_span(path, prediction):
    low, high = path.span(prediction)
    assert (low, high) in ((0.0, 1.0), (0.0, 0.999), (0.001, 1.0))
    for t in torch.tensor([low, high]):
        value = torch.randn(4)
        assert bool(path.convert(value, torch.randn(4), t, prediction, "velocity").isfinite().all())


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_paths(golden, name):
    """The file holds float32, so that its agreement ends at 1e-6 of each value; the identities above hold to 1e-10."""
    tensors = golden("transport_paths")
    theirs = lambda key: tensors.get_tensor(f"{OFFICIAL[name]}/{key}").double()  # noqa: E731
    t, x0, x1 = (tensors.get_tensor(key).double() for key in ("t", "x0", "x1"))
    path, close = PATHS[name](), {"atol": 1e-6, "rtol": 3e-6}
    point = path.sample(x0, x1, t)
    assert torch.allclose(point.x, theirs("xt"), **close)
    assert torch.allclose(point.velocity, theirs("ut"), **close)
    v, close = theirs("ut"), {"atol": 1e-5, "rtol": 1e-5}  # VP: 2e-6 of its velocity is lost by them
    assert torch.allclose(path.convert(v, point.x, t, "velocity", "noise"), theirs("noise_from_velocity"), **close)
    score = theirs("score_from_velocity")
    assert torch.allclose(path.convert(v, point.x, t, "velocity", "score"), score, **close)
    assert torch.allclose(path.convert(score, point.x, t, "score", "velocity"), theirs("velocity_from_score"), **close)
    # Their velocity is ``drift_var * score - drift``.
    assert torch.allclose(theirs("drift_var") * score - theirs("drift"), point.velocity, **close)


def test_variance_preserving_against_the_integral_of_its_rate():
    """A second implementation: the rate integrated numerically, ``alpha = exp(-1/2 integral)``."""
    path, t = PATHS["vp"](), 0.3
    times = torch.linspace(t, 1, 10001, dtype=torch.float64)
    rate = 0.1 + (20 - 0.1) * (1 - times)
    alpha = math.exp(-0.5 * float(torch.trapezoid(rate, times)))
    assert float(path.alpha(times[:1])) == pytest.approx(alpha, rel=1e-10)
    assert float(path.sigma(times[:1])) == pytest.approx(math.sqrt(1 - alpha**2), rel=1e-10)
