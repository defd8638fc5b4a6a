"""The path from noise to data: its ends, its derivative, and what follows from what."""

import torch

from ifsq.generators.diffusion.path import LinearPath

CLOSE = {"atol": 1e-12, "rtol": 1e-12}


def drawn():
    torch.manual_seed(0)
    x0, x1 = torch.randn(2, 5, 3, 2, 4, dtype=torch.float64)
    return LinearPath(), x0, x1, torch.rand(5, dtype=torch.float64) * 0.8 + 0.1


def test_it_leads_from_noise_to_data():
    path, x0, x1, _ = drawn()
    ends = torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    assert torch.equal(path.sample(x0, x1, ends[0]).x, x0)
    assert torch.equal(path.sample(x0, x1, ends[1]).x, x1)


def test_velocity_is_the_derivative():
    path, x0, x1, t = drawn()
    shape = (5, 1, 1, 1)
    _, slope = torch.func.jvp(lambda t: path.sample(x0, x1, t).x, (t,), (torch.ones_like(t),))
    assert torch.allclose(path.sample(x0, x1, t).velocity, slope, **CLOSE)
    assert torch.allclose(path.alpha(t), t.view(shape), **CLOSE)
    assert torch.allclose(path.sigma(t), 1 - t.view(shape), **CLOSE)


def test_each_quantity_gives_the_others():
    path, x0, x1, t = drawn()
    point = path.sample(x0, x1, t)
    assert torch.allclose(path.data(point.x, point.velocity, t), x1, **CLOSE)
    assert torch.allclose(path.noise(point.x, point.velocity, t), x0, **CLOSE)
    score = path.score(point.x, point.velocity, t)
    # x_t given x_1 is N(alpha x_1, sigma^2)
    assert torch.allclose(score, (path.alpha(t) * x1 - point.x) / path.sigma(t) ** 2, **CLOSE)
    for velocity in (
        path.velocity_of_data(point.x, x1, t),
        path.velocity_of_noise(point.x, x0, t),
        path.velocity_of_score(point.x, score, t),
    ):
        assert torch.allclose(velocity, point.velocity, **CLOSE)


def test_one_time_for_all():
    path, x0, x1, _ = drawn()
    point = path.sample(x0, x1, torch.full((5,), 0.25, dtype=torch.float64))
    assert torch.allclose(path.data(point.x, point.velocity, torch.tensor(0.25)), x1, **CLOSE)
