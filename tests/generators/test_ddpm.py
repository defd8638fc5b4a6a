"""The path of DDPM and its variational bound: the official tables and losses, and what must hold of any."""

import math
from itertools import pairwise

import pytest
import torch
from tests.generators.test_diffusion import LABELS, make, make_batch

from ifsq.generators.diffusion import DiffusionSampling
from ifsq.generators.diffusion.objective import Objective, ObjectiveConfig
from ifsq.generators.diffusion.path import DDPMPath
from ifsq.generators.diffusion.variational import HALF_BIN, log_variance, variational_bound
from ifsq.generators.streams import Normals

PATH = DDPMPath()
STEPS = torch.arange(1000)
DDPM = {"path": "ddpm", "prediction": "noise", "learned_variance": True, "time_sampling": "uniform"}
SIZES = {"depth": 1, "width": 16, "heads": 2, "patch": 2}


def test_shares_of_data_are_products_over_the_steps():
    times = PATH.time(STEPS).double()
    exact = 1 - (STEPS.double() + 1) / 1000
    products = torch.cumprod(1 - PATH.betas, 0)
    assert torch.allclose(PATH.alpha(exact) ** 2, products, atol=1e-13, rtol=0)
    assert torch.allclose(PATH.sigma(exact) ** 2, 1 - products, atol=1e-13, rtol=0)
    assert torch.allclose(PATH.alpha(times.float()) ** 2, products.float(), atol=1e-6, rtol=1e-5)
    assert torch.equal(PATH.step(times.float()), STEPS)
    assert torch.equal(PATH.network_time(times.float()), STEPS.float())
    assert float(PATH.time(torch.tensor(-1))) == 1.0


def test_official_schedule(golden):
    tensors = golden("samplers_extra")
    ends = tensors.get_tensor("ddpm/train/betas_full_first_last")
    assert torch.allclose(PATH.betas[[0, -1]], ends, atol=1e-15, rtol=1e-12)  # theirs are ratios of products
    for spacing in ("10", "5,3", "ddim10"):
        kept = tensors.get_tensor(f"ddpm/{spacing}/timestep_map")
        expected = tensors.get_tensor(f"ddpm/{spacing}/alphas_cumprod")
        assert torch.allclose(PATH.alpha(1 - (kept.double() + 1) / 1000) ** 2, expected, atol=1e-10, rtol=0)


def official(tensors, x, k):
    """The file's model: noise ``M x + b k / 1000``, and the variance of its tanh."""
    noise = x.flatten(1) @ tensors.get_tensor("lin/M").T + k[:, None] / 1000 * tensors.get_tensor("lin/b")
    noise = noise.view_as(x)
    return torch.cat([noise, noise.tanh()], dim=1)


def test_official_training_loss(golden):
    tensors = golden("samplers_extra")
    k, x0, x1 = (tensors.get_tensor(f"ddpm/train/{key}") for key in ("t", "noise", "x0"))
    objective, t = Objective(ObjectiveConfig(**DDPM), 8), PATH.time(k)
    for row in range(3):
        one = slice(row, row + 1)
        point = PATH.sample(x0[one], x1[one], t[one])
        assert torch.equal(PATH.network_time(t[one]), k[one].float())
        losses = objective.loss(official(tensors, point.x, k[one]), point, x0[one], x1[one], t[one])
        for name, key in (("mse", "mse"), ("bound", "vb"), ("loss", "loss")):
            assert float(losses[name]) == pytest.approx(float(tensors.get_tensor(f"ddpm/train/{key}")[row]), rel=1e-4)


def drawn(k):
    torch.manual_seed(0)
    x1, noise, data, values = torch.randn(4, len(k), 3, 2, 2, dtype=torch.float64)
    x1, t = x1.clamp(-1, 1), 1 - (k.double() + 1) / 1000
    return x1, data, values.tanh(), PATH.sample(noise, x1, t).x, t


def test_the_bound_is_a_divergence_of_normal_distributions():
    """By torch.distributions, the posterior by Bayes: N(x | sqrt(1 - beta) y, beta) N(y | alpha x1, sigma^2) over y."""
    k = torch.tensor([1, 7, 400, 998])
    x1, data, values, x, t = drawn(k)
    beta, column = PATH.betas[k].view(-1, 1, 1, 1), (-1, 1, 1, 1)
    before = t + 1 / 1000
    alpha, variance = PATH.alpha(before).view(column), PATH.sigma(before).view(column) ** 2
    precision = (1 - beta) / beta + 1 / variance
    mean_of = lambda data: ((1 - beta).sqrt() * x / beta + alpha * data / variance) / precision  # noqa: E731
    true = torch.distributions.Normal(mean_of(x1), precision**-0.5)
    share = (values + 1) / 2
    spread = torch.exp((share * beta.log() + (1 - share) * -precision.log()) / 2)
    told = torch.distributions.Normal(mean_of(data), spread)
    expected = torch.distributions.kl_divergence(true, told).flatten(1).mean(dim=1) / math.log(2)
    assert torch.allclose(variational_bound(PATH, data, values, x, x1, k), expected, rtol=1e-8)
    assert torch.allclose(log_variance(PATH, values, k), 2 * spread.log(), rtol=1e-8)


def test_the_truth_and_the_least_variance_have_no_bound_but_at_the_last_step():
    k = torch.tensor([1, 7, 400, 998])
    x1, _, values, x, _ = drawn(k)
    assert torch.allclose(variational_bound(PATH, x1, -torch.ones_like(values), x, x1, k), torch.zeros(4).double())


def test_the_likelihood_of_the_last_step_sums_to_one_over_bins():
    bins = torch.linspace(-1, 1, 256, dtype=torch.float64).view(-1, 1, 1, 1)
    k, like = torch.zeros(256, dtype=torch.int64), torch.ones(256, 1, 1, 1, dtype=torch.float64)
    assert float(bins[1] - bins[0]) == pytest.approx(2 * HALF_BIN)
    bits = variational_bound(PATH, 0.3 * like, 0.2 * like, 0.31 * like, bins, k)
    assert float((2**-bits).sum()) == pytest.approx(1, abs=1e-3)  # the normal distribution's tails are approximated
    assert float(bins[int(bits.argmin())]) == pytest.approx(0.3, abs=0.01)


def test_the_bound_trains_the_variance_alone():
    torch.manual_seed(0)
    objective = Objective(ObjectiveConfig(**DDPM), 24)
    x0, x1 = torch.randn(2, 4, 3, 2, 4)
    t = PATH.time(torch.tensor([0, 3, 500, 999]))
    point = PATH.sample(x0, x1, t)
    out = torch.randn(4, 6, 2, 4, requires_grad=True)
    losses = objective.loss(out, point, x0, x1, t)
    assert losses["loss"].item() == pytest.approx(float(losses["mse"] + losses["bound"]))
    losses["loss"].backward()
    assert torch.allclose(out.grad[:, :3], 2 * (out[:, :3] - x0) / x0.numel())
    assert bool((out.grad[:, 3:] != 0).any())


def test_it_is_trained_at_its_steps_each_as_often():
    model = make(**DDPM, **SIZES)
    times = model.objective.times(20000, torch.Generator().manual_seed(0))
    steps = PATH.step(times)
    assert torch.equal(PATH.time(steps), times)
    counts = steps.bincount(minlength=1000)
    assert float(((counts - 20) ** 2 / 20).sum()) < 1143  # chi-square, 999 degrees, 0.1 %
    seen = []
    model.dit.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    model.loss(make_batch(8), torch.Generator())
    assert torch.equal(seen[0], seen[0].round())
    assert 0 <= float(seen[0].min()) < float(seen[0].max()) <= 999


@pytest.mark.parametrize("path", ["linear", "ddpm"])
def test_a_learned_variance_is_beside_the_prediction(path):
    model = make(**{**DDPM, "path": path}, label_dropout=0.0, **SIZES)
    assert model.predict(torch.randn(2, 3, 4, 6), torch.tensor(0.5), LABELS).shape == (2, 6, 4, 6)
    losses = model.loss(make_batch(8), torch.Generator().manual_seed(0))
    assert ("bound" in losses) == (path == "ddpm")
    losses["loss"].backward()
    model.eval()
    x, t = torch.randn(2, 3, 4, 6), torch.tensor(0.4)
    null = model.predict(x, t, torch.full((2,), 3))
    conditional = model.predict(x, t, LABELS)
    got = model.guided(x, t, LABELS, DiffusionSampling(3.0))
    assert torch.allclose(got[:, :3], (null + 3 * (conditional - null))[:, :3], atol=1e-4)
    assert torch.allclose(got[:, 3:], conditional[:, 3:], atol=1e-4)
    assert bool(model.sample(LABELS, steps=3, guidance=2.0).codes.isfinite().all())


def test_an_objective_that_can_be_learned_is_learned():
    torch.manual_seed(0)
    model = make(**DDPM, label_dropout=0.0, **SIZES)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model.loss(make_batch(8), torch.Generator().manual_seed(0))["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("learned", [True, False])
def test_drawing_step_by_step_reads_the_learned_variance(learned):
    """Against the posterior of each step written out, with the official tables, from the noise of the same images."""
    model = make(**{**DDPM, "learned_variance": learned}, **SIZES).eval()
    got = model.sample(LABELS, solver="ddpm", steps=4, snap="none", guidance=1.5).codes
    numbers = Normals(0, 0, 2)
    x, sampling = numbers(72).view(2, 3, 4, 6), DiffusionSampling(1.5)
    steps = torch.tensor([999, 749, 499, 249, -1])
    kept = torch.cat([torch.ones(1), torch.cumprod(1 - PATH.betas, 0)]).float()
    for k, after in pairwise(steps):
        with torch.no_grad():
            out = model.guided(x, PATH.time(k), LABELS, sampling)
        here, there = kept[k + 1], kept[after + 1]
        data = (x - (1 - here).sqrt() * out[:, :3]) / here.sqrt()
        beta = 1 - here / there
        mean = there.sqrt() * beta / (1 - here) * data + (here / there).sqrt() * (1 - there) / (1 - here) * x
        least = beta * (1 - there) / (1 - here)
        share = (out[:, 3:] + 1) / 2 if learned else torch.zeros(())
        deviation = torch.exp((share * beta.log() + (1 - share) * least.log()) / 2)
        x = mean if after < 0 else mean + deviation * numbers(72).view(2, 3, 4, 6)
    assert torch.allclose(got, model.denormalize(x), atol=2e-3, rtol=2e-3)  # float32, over an alpha of 0.006


def test_every_solver_ends_at_the_data_where_the_last_velocity_is_infinite():
    """Data that the network knows exactly are reached exactly, without asking close to the end."""
    model = make(path="vp", prediction="data", **SIZES).eval()
    known = torch.randn(3, 4, 6)
    for solver, steps, evaluations in (("euler", 3, 3), ("heun", 3, 5), ("heun", 1, 1), ("dpm++2m", 3, 3)):
        seen, told = [], []
        model.dit.forward = lambda x, t, *others, seen=seen: seen.append(float(t[0])) or known.expand_as(x)
        sampling = DiffusionSampling(solver=solver, steps=steps, snap="none")
        drawn = model.draw(LABELS, sampling, 0, 0, told.append)
        assert torch.allclose(drawn.codes, known.expand(2, 3, 4, 6), atol=1e-3)
        assert len(seen) == evaluations == model.cost(sampling)
        assert max(seen) < 0.99
        assert [step.done for step in told] == list(range(1, steps + 1))
        assert told[-1].time == 1
