"""Solvers that add noise: the official results behind the recorded noise, a Gaussian's mean and variance, diffusers."""

from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler
from gaussians import MEANS, SCALES, bent, of_gaussian
from torch import nn

from ifsq.codes.spec import CodeSpec
from ifsq.generators.diffusion import DiffusionGenerator, DiffusionSampling, DiTConfig
from ifsq.generators.diffusion.path import CosinePath, DDPMPath, LinearPath, VariancePreservingPath
from ifsq.generators.diffusion.sde import (
    ddim,
    ddpm,
    diffusion_coefficient,
    euler_maruyama,
    posterior_deviation,
    respaced,
    stochastic_heun,
)
from ifsq.generators.streams import Normals


@pytest.fixture(scope="module")
def official(golden):
    """The golden file's linear model, and its tensors."""
    tensors = golden("samplers_extra")
    matrix, offset = tensors.get_tensor("lin/M"), tensors.get_tensor("lin/b")
    model = lambda x, t: (x.flatten(1) @ matrix.to(x).T + t * offset.to(x)).view_as(x)  # noqa: E731
    return model, tensors.get_tensor


def replayed(numbers):
    """A source of noise that gives these in turn."""
    turn = iter(numbers)
    return lambda x: next(turn).to(x)


@pytest.mark.parametrize("form", ["sigma", "linear", "decreasing"])
@pytest.mark.parametrize(
    ("solver", "theirs", "last"),
    [
        *((euler_maruyama, "Euler", last) for last in ("Mean", "Euler", "None")),
        *((stochastic_heun, "Heun", last) for last in ("Mean", "Euler")),
    ],
)
def test_official_sde(official, form, solver, theirs, last):
    model, tensor = official
    name = f"sde/{theirs}/{form}/{last}"
    end = torch.linspace(0, 1, 6) if last == "None" else torch.cat([torch.linspace(0, 0.96, 6), torch.ones(1)])
    points = []
    final = solver(
        model,
        tensor("noise"),
        end,
        lambda done, t, x: points.append(x),
        noise=replayed(tensor("sde/noise_seq")),
        diffusion=form,
        last_step=last.lower(),
    )
    assert torch.allclose(final, tensor(f"{name}/final"), atol=1e-4, rtol=1e-4)
    expected = tensor(f"{name}/traj")
    for got, one in zip(points, expected[: len(points)], strict=True):
        assert torch.allclose(got, one, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("respacing", ["10", "ddim10", "5,3"])
def test_official_ddpm_and_ddim(official, respacing):
    """Their network gives the noise and, for the variance, the tanh of it; its time is step / 1000."""
    model, tensor = official
    numbers = tensor(f"ddpm/{respacing}/timestep_map").flip(0)
    times = torch.cat([1 - (numbers.double() + 1) / 1000, torch.ones(1, dtype=torch.float64)])
    assert respaced(respacing, 1000) == tensor(f"ddpm/{respacing}/timestep_map").tolist()
    assert torch.allclose(DiffusionSampling(solver="ddim", respacing=respacing).grid(), times.float())
    if respacing.isdigit():  # as the command reads it
        assert DiffusionSampling(solver="ddim", respacing=int(respacing)).respacing == respacing
    path, x = DDPMPath(), tensor("noise").double()

    def noise_of(x, t):
        return model(x, ((1 - t) * 1000).round() / 1000 - 0.001)

    def velocity(x, t):
        return path.convert(noise_of(x, t), x, t, "noise", "velocity")

    rest = {"path": path, "noise": replayed(tensor(f"ddpm/{respacing}/noise_seq"))}
    got = ddim(velocity, x, times, **rest)
    expected = tensor(f"ddpm/{respacing}/ddim_final")
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-5
    got = ddpm(velocity, x, times, **rest, variance=lambda x, t: noise_of(x, t).tanh())
    expected = tensor(f"ddpm/{respacing}/p_sample_final")
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-5
    deviations = torch.stack([posterior_deviation(path, t, after) for t, after in pairwise(times)])
    theirs = tensor(f"ddpm/{respacing}/posterior_log_variance_clipped").flip(0)
    assert torch.allclose(deviations[:-1].log() * 2, theirs[:-1], atol=1e-8)
    assert float(deviations[-1]) == 0


@pytest.mark.parametrize("name", ["Linear", "GVP", "VP"])
def test_official_diffusion_coefficients(golden, name):
    tensor = golden("transport_paths").get_tensor
    path = {"Linear": LinearPath(), "GVP": CosinePath(), "VP": VariancePreservingPath()}[name]
    for form, theirs in (("sbdm", "SBDM"), ("sigma", "sigma"), ("linear", "linear"), ("decreasing", "decreasing")):
        got = diffusion_coefficient(path, tensor("t"), form)
        assert torch.allclose(got, tensor(f"{name}/diffusion_{theirs}").flatten(), atol=1e-5, rtol=1e-4), form
    assert torch.equal(diffusion_coefficient(path, tensor("t"), "constant", 0.5), torch.full((5,), 0.5))


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        *(({"solver": "sde-euler", "diffusion": form}, 100) for form in ("constant", "sigma", "linear", "decreasing")),
        *(({"solver": "sde-heun", "diffusion": form}, 50) for form in ("sbdm", "sigma")),
        ({"solver": "sde-euler", "last_step": "euler", "diffusion_scale": 0.5}, 100),
        ({"solver": "sde-euler", "last_step": "none", "diffusion_scale": 2.0}, 100),
        ({"solver": "ddim"}, 100),
        ({"solver": "ddim", "eta": 0.5}, 100),
        ({"solver": "ddpm"}, 100),
    ],
)
@pytest.mark.parametrize("path", [LinearPath(), VariancePreservingPath()])
def test_a_gaussian_is_led_to_its_mean_and_covariance(path, options, steps):
    rng = torch.Generator().manual_seed(0)
    draw = lambda x: torch.randn(x.shape, generator=rng, dtype=x.dtype)  # noqa: E731
    velocity, _ = of_gaussian(path)
    count = 5000
    start = draw(torch.empty(count, 3, dtype=torch.float64))
    span = path.span("velocity")
    got = DiffusionSampling(steps=steps, **options).solve(velocity, start, path, span=span, noise=draw)
    error = 4 * SCALES / count**0.5 + 0.04  # four of the mean's deviations, and what the steps leave
    assert bool(((got.mean(dim=0) - MEANS).abs() < error).all()), got.mean(dim=0) - MEANS
    assert torch.allclose(got.T.cov(), torch.diag(SCALES**2), atol=0.12, rtol=0.05), got.T.cov()


def test_the_last_step_of_tweedie_is_the_mean_of_the_data():
    path = LinearPath()
    velocity, _ = of_gaussian(path)
    x, times = torch.ones(2, 3, dtype=torch.float64), torch.tensor([0.7, 1.0], dtype=torch.float64)
    got = euler_maruyama(velocity, x, times, noise=torch.randn_like, last_step="tweedie")
    variance = (0.7 * SCALES) ** 2 + 0.3**2
    assert torch.allclose(got, (MEANS + 0.7 * SCALES**2 / variance * (x - 0.7 * MEANS)))


def test_ddim_without_noise_on_the_straight_path_is_euler():
    velocity, _ = of_gaussian(LinearPath())
    x = torch.ones(2, 3, dtype=torch.float64)
    euler = DiffusionSampling(steps=9, solver="euler").solve(velocity, x)
    assert torch.allclose(DiffusionSampling(steps=9, solver="ddim").solve(velocity, x), euler)


def test_ddim_and_ddpm_are_those_of_diffusers():
    """Their posterior is that of ``eta`` 1; a thousand steps of which ten are taken."""
    theirs = DDIMScheduler(clip_sample=False, timestep_spacing="linspace", beta_start=1e-4, set_alpha_to_one=True)
    theirs.set_timesteps(10)
    path, rng = DDPMPath(), torch.Generator().manual_seed(0)
    velocity = lambda x, t: path.convert((x * 0.3).sin(), x, t, "noise", "velocity")  # noqa: E731
    start, numbers = torch.randn(2, 3, generator=rng).double(), torch.randn(10, 2, 3, generator=rng).double()
    for eta, solve, options in ((0.0, ddim, {}), (0.5, ddim, {"eta": 0.5}), (1.0, ddpm, {})):
        x = start
        # They take the step before to be 100 earlier, whatever the spacing.
        times = [1 - (int(n) + 1) / 1000 for n in theirs.timesteps[:1]]
        n = int(theirs.timesteps[0])
        while n >= 0:
            x = theirs.step((x * 0.3).sin(), n, x, eta=eta, variance_noise=numbers[len(times) - 1]).prev_sample
            n -= 100
            times.append(1 - (max(n, -1) + 1) / 1000)
        got = solve(
            velocity, start, torch.tensor(times, dtype=torch.float64), path=path, noise=replayed(numbers), **options
        )
        assert torch.allclose(got, x, rtol=1e-4), solve.__name__


def test_more_steps_bring_the_mean_of_an_sde_nearer():
    """Without noise of the path (its scale goes to nothing) Heun's steps are of second order, Euler's of first."""
    velocity, exact = of_gaussian(LinearPath())
    x = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    for solver, least in ((euler_maruyama, 1.7), (stochastic_heun, 2.8)):
        errors = []
        for steps in (20, 40):
            times = bent(steps, 0)
            got = solver(velocity, x, times, noise=torch.zeros_like, diffusion_scale=1e-9, last_step="euler")
            errors.append(float((got - exact(x)).norm()))
        assert errors[0] / errors[1] > least, solver.__name__


def test_a_learned_variance_is_that_of_the_same_evaluation():
    torch.manual_seed(0)
    spec = CodeSpec((5, 9), (1, 1), "little", "equal", (4, 2))
    config = DiTConfig(1, 16, 2, patch=2, path="ddpm", prediction="noise", learned_variance=True)
    model = DiffusionGenerator(config, spec, num_classes=3).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    labels, path, numbers = torch.tensor([0, 2]), DDPMPath(), Normals(7, 4, 2)
    sampling = DiffusionSampling(2.0, solver="ddpm", respacing="3,2", snap="none")
    noise = lambda x=None: numbers(16).unflatten(1, (2, 4, 2))  # noqa: E731
    both = lambda x, t: model.guided(x, t, labels, sampling)  # noqa: E731
    with torch.no_grad():
        expected = ddpm(
            lambda x, t: path.convert(both(x, t)[:, :2], x, t, "noise", "velocity"),
            noise(),
            sampling.grid(),
            noise=noise,
            path=path,
            variance=lambda x, t: both(x, t)[:, 2:],
        )
    assert torch.allclose(model.sample(labels, sampling, seed=7, first=4).codes, expected, rtol=1e-4)
    assert model.cost(sampling) == 10
    assert sampling.sampler == "solver ddpm, snap none, respacing 3,2"
    assert sampling.grid()[-1] == 1
    assert model.sampling({"solver": "ddim", "respacing": "ddim10"}).evaluations() == 10
    straight = DiffusionGenerator(DiTConfig(1, 16, 2, patch=2), spec, num_classes=3)
    with pytest.raises(ValueError, match="respacing='10': expected a generator of path ddpm, not linear"):
        straight.sample(labels, solver="ddim", respacing="10")


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpm++2m"])
def test_solvers_that_do_not_ask_at_the_end_reach_it(solver):
    path = DDPMPath()
    asked = []
    point = torch.tensor([0.3, -2.0, 0.1], dtype=torch.float64)

    def velocity(x, t):
        asked.append(float(t))
        return path.convert(point.expand_as(x), x, t, "data", "velocity")

    sampling = DiffusionSampling(steps=5, solver=solver)
    got = sampling.solve(velocity, torch.ones(3, dtype=torch.float64), path, span=path.span("noise"))
    assert torch.allclose(got, point, atol=1e-3)
    assert max(asked) < 0.999


def test_times_of_an_sde():
    sampling = DiffusionSampling(steps=5, solver="sde-euler")
    assert sampling.grid().tolist() == pytest.approx([0, 0.24, 0.48, 0.72, 0.96, 1])
    assert sampling.evaluations() == 5
    assert DiffusionSampling(steps=5, solver="sde-heun").evaluations() == 9
    own = DiffusionSampling(steps=3, solver="sde-heun", last_step_size=0.5, diffusion="sbdm", timestep_shift=3.0)
    assert own.grid().tolist() == pytest.approx([0.001, 0.001 + 0.999 * 0.375, 0.001 + 0.999 * 0.5, 1])
    none = DiffusionSampling(steps=2, solver="sde-euler", last_step="none")
    assert none.grid().tolist() == pytest.approx([0, 0.4995, 0.999])
    assert none.sampler == "steps 2, solver sde-euler, last_step none"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "euler", "eta": 0.0}, "eta=0.0: solver euler has no such option"),
        ({"solver": "ddpm", "eta": 1.0}, "eta=1.0: solver ddpm has no such option"),
        ({"solver": "ddim", "eta": 1.5}, "eta=1.5: expected 0 to 1"),
        ({"solver": "heun", "diffusion": "sigma"}, "diffusion=sigma: solver heun has no such option"),
        ({"solver": "sde-euler", "diffusion": "Sigma"}, "diffusion='Sigma': expected one of constant, sbdm"),
        ({"solver": "sde-euler", "last_step": "None"}, "last_step='None': expected one of mean, tweedie"),
        ({"solver": "sde-euler", "diffusion_scale": 0.0}, "diffusion_scale=0.0: expected a positive number"),
        ({"solver": "sde-euler", "steps": 1}, "steps=1: expected at least 2, the last of which is last_step"),
        ({"solver": "sde-euler", "last_step_size": 1.0}, "last_step_size=1.0: expected a time above 0 and below 1"),
        (
            {"solver": "sde-euler", "last_step": "none", "last_step_size": 0.1},
            "last_step_size=0.1: expected none where",
        ),
        (
            {"solver": "sde-euler", "times": (0.0, 1.0), "last_step_size": 0.1},
            "last_step_size=0.1: expected none beside",
        ),
        ({"solver": "ddpm", "respacing": "ten"}, "respacing='ten': expected counts of steps, as 250"),
        ({"solver": "ddpm", "respacing": "ddim7,3"}, "respacing='ddim7,3': expected a count"),
        ({"solver": "ddpm", "respacing": "ddim999"}, "respacing='ddim999': expected a count that an even stride"),
        ({"solver": "ddpm", "respacing": "400,600"}, "respacing='400,600': 600 of 500 steps, expected at most all"),
        ({"solver": "ddpm", "respacing": "10", "steps": 7}, "steps=7: expected none beside respacing"),
        ({"solver": "heun", "respacing": "10"}, "respacing=10: solver heun has no such option"),
        ({"solver": "ddim", "last_step_size": 0.1}, "last_step_size=0.1: solver ddim has no such option"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DiffusionSampling(**options)
