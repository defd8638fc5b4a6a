"""Solvers against the official trajectories, known solutions and another project; their orders."""

import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from gaussians import bent, of_gaussian

from ifsq.codes.spec import CodeSpec
from ifsq.generators.diffusion import DiffusionGenerator, DiffusionSampling, DiTConfig
from ifsq.generators.diffusion.path import CosinePath, LinearPath, VariancePreservingPath
from ifsq.generators.diffusion.solvers import ab2, dopri5, dpm_solver, euler, heun, midpoint, rk4, time_grid
from ifsq.interop.official.dit import from_official

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def official(golden):
    """The golden file's velocity, and its tensors."""
    tensors = golden("dit_tiny")
    spec = CodeSpec((17,) * 4, (4,), "little", "paper", (4, 4))
    model = DiffusionGenerator(DiTConfig(2, 64, 4, patch=1), spec, num_classes=10)
    state = {key[3:]: tensors.get_tensor(key) for key in tensors.keys() if key.startswith("sd/")}  # noqa: SIM118
    model.dit.load_state_dict(from_official(state))
    labels = tensors.get_tensor("ode/y")
    return lambda x, t: model.velocity(x, t, labels, DiffusionSampling()), tensors.get_tensor


@pytest.mark.parametrize("shift", [0.0, 0.3])
@pytest.mark.parametrize(("solver", "theirs"), [(euler, "euler"), (heun, "heun2"), (midpoint, "midpoint")])
def test_official_trajectories(official, solver, theirs, shift):
    velocity, tensor = official
    times, points = time_grid(4, shift), [tensor("ode/noise")]
    with torch.no_grad():
        solver(velocity, tensor("ode/noise"), times, lambda done, t, x: points.append(x))
        assert torch.allclose(torch.stack(points), tensor(f"ode/{theirs}_shift{shift}"), **CLOSE)
        if (solver, shift) == (euler, 0.0):
            got = solver(velocity, tensor("ode/noise"), time_grid(10))
            assert torch.allclose(got, tensor("ode/euler10_final"), **CLOSE)


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_official_adaptive_trajectory(official, shift):
    velocity, tensor = official
    expected, times = tensor(f"ode/dopri5_shift{shift}"), time_grid(2, shift)
    with torch.no_grad():
        for point in (1, 2):
            got = dopri5(velocity, tensor("ode/noise"), times[: point + 1])
            assert torch.allclose(got, expected[point], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (heun, 2), (midpoint, 2), (ab2, 2), (rk4, 4)])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_solvers_converge_at_their_order(solver, order, shift):
    x = torch.ones(1, dtype=torch.float64)
    exact = torch.exp(torch.tensor(0.5, dtype=torch.float64))  # dx/dt = t x
    errors = [float((solver(lambda x, t: t * x, x, bent(n, shift)) - exact).abs()) for n in (40, 80)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


def test_steps_of_any_lengths_are_exact_for_a_slope_that_is_a_line():
    """After its first step, which is Euler's, the line through two slopes is the slope, however uneven the times."""
    times = torch.tensor([0.0, 0.1, 0.5, 0.55, 1.0], dtype=torch.float64)
    got = ab2(lambda x, t: 1 - 3 * t, torch.zeros(1, dtype=torch.float64), times)
    missed = -3 * 0.1**2 / 2
    assert float(got) == pytest.approx(1 - 3 / 2 - missed, abs=1e-12)


@pytest.mark.parametrize("path", [LinearPath(), CosinePath(), VariancePreservingPath()])
def test_dpm_solver_is_of_second_order_between_the_ends(path):
    """At an end of the straight path the logarithm's steps never grow short: from end to end it is 1.6."""
    velocity, _ = of_gaussian(path)
    x, between = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64), lambda n: 0.1 + 0.8 * bent(n, 0)
    exact = rk4(velocity, x, between(160))
    errors = [float((dpm_solver(velocity, x, between(n), path=path) - exact).norm()) for n in (80, 160)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("path", [LinearPath(), CosinePath()])
def test_dpm_solver_goes_from_end_to_end(path):
    velocity, exact = of_gaussian(path)
    noise = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    errors = [float((dpm_solver(velocity, noise, bent(n, 0), path=path) - exact(noise)).norm()) for n in (40, 80)]
    assert math.log2(errors[0] / errors[1]) > 1.4
    assert errors[0] < 0.7 * float((euler(velocity, noise, bent(40, 0)) - exact(noise)).norm())


def test_dpm_solver_solves_what_noise_does_exactly():
    """Data that is one point is reached from anywhere in one step."""
    path = VariancePreservingPath()
    point, noise = torch.tensor([0.3, -2.0]), torch.tensor([1.0, 0.5])

    def velocity(x, t):
        return path.convert(point, x, t, "data", "velocity")

    times = torch.tensor([0.0, 0.6])
    got = dpm_solver(velocity, path.sample(noise[None], point[None], times[:1]).x[0], times, path=path)
    assert torch.allclose(got, path.sample(noise[None], point[None], times[1:]).x[0], atol=1e-5)


def test_dpm_solver_is_the_one_of_diffusers():
    """On the straight path, with their flow times; their last step is of first order too, their first time is not 0."""
    theirs = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0, algorithm_type="dpmsolver++"
    )
    theirs.set_timesteps(8)
    times = 1 - theirs.sigmas
    velocity, _ = of_gaussian(LinearPath())
    noise = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = noise
    for t, step in zip(times, theirs.timesteps, strict=False):
        x = theirs.step(-velocity(x, t), step, x).prev_sample  # theirs leads from data to noise
    assert torch.allclose(dpm_solver(velocity, noise, times), x, atol=1e-6)


def test_a_gaussian_is_led_to_a_gaussian():
    """The flow of a Gaussian is affine, so a solver's mean and scale are known from two points: no sampling error."""
    velocity, exact = of_gaussian(LinearPath())
    ends = torch.tensor([[-1.0], [1.0]], dtype=torch.float64).expand(2, 3)
    for solver, steps, error in ((euler, 200, 2e-2), (heun, 40, 2e-3), (midpoint, 40, 2e-3)):
        got = solver(velocity, ends, bent(steps, 0))
        assert torch.allclose(got, exact(ends), atol=error), solver.__name__
    for solver, steps, error in ((ab2, 60, 3e-3), (dpm_solver, 60, 3e-3), (rk4, 20, 1e-3), (dopri5, 1, 1e-2)):
        got = solver(velocity, ends, bent(steps, 0))
        assert torch.allclose(got, exact(ends), atol=error), solver.__name__
