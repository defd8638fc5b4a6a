"""Times fitted to a model: nearer to the fine solution than even ones, on noises that they have not seen too."""

from dataclasses import replace

import pytest
import torch
from gaussians import MEANS, of_gaussian
from torch import nn

from ifsq.cli import main
from ifsq.codes.spec import CodeSpec
from ifsq.generators import Generator
from ifsq.generators.ar import ARConfig, ARGenerator
from ifsq.generators.diffusion import DiffusionGenerator, DiffusionSampling, DiTConfig, grids
from ifsq.generators.diffusion.grids import fit_generator_times, fit_times
from ifsq.generators.diffusion.path import LinearPath
from ifsq.generators.diffusion.solvers import ab2, euler, heun, time_grid
from ifsq.store.weights import weights_digest

SPEC = CodeSpec((5, 9), (1, 1), "little", "equal", (4, 2))


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Few steps for the fine solution: the tests are not about its fineness."""
    monkeypatch.setattr(grids, "REFERENCE", 6)


def make(**options):
    torch.manual_seed(0)
    model = DiffusionGenerator(DiTConfig(1, 16, 2, patch=2, **options), SPEC, num_classes=3)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize(("solver", "gain"), [(euler, 0.985), (ab2, 0.85), (heun, 0.6)])
def test_fitted_times_are_nearer_than_even_ones_on_other_noises_too(solver, gain):
    velocity, exact = of_gaussian(LinearPath())
    seen, unseen = torch.randn(2, 64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = fit_times(solver, velocity, seen, exact(seen), 8, 30)
    assert (found.times[0], found.times[-1], len(found.times)) == (0, 1, 9)
    assert sorted(set(found.times)) == list(found.times)

    def error(noise, times):
        return float((solver(velocity, noise, times) - exact(noise)).square().mean().sqrt())

    fitted = torch.tensor(found.times)
    assert error(seen, fitted) == pytest.approx(found.error, rel=1e-3)
    assert error(seen, time_grid(8)) == pytest.approx(found.even_error, rel=1e-3)
    assert error(unseen, fitted) < gain * error(unseen, time_grid(8))


def test_times_that_cannot_be_better_stay_even():
    still = lambda x, t: MEANS.expand_as(x) + 0 * t  # noqa: E731
    noise = torch.zeros(2, 3, dtype=torch.float64)
    found = fit_times(euler, still, noise, noise + MEANS, 4, 3)
    assert found.times == (0, 0.25, 0.5, 0.75, 1)
    assert fit_times(euler, still, noise, noise, 1, 3).times == (0, 1)


def test_a_generators_times_serve_its_sampling():
    model = make()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    sampling = DiffusionSampling(2.0, steps=3, solver="heun", guidance_interval=(0.2, 1.0))
    found = fit_generator_times(model, sampling, images=4, iterations=4)
    assert found.error <= found.even_error
    assert found == fit_generator_times(model, sampling, images=4, iterations=4)
    assert model.training
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.requires_grad
        assert parameter.grad is None
    model.sample(torch.tensor([0, 1]), solver="heun", times=found.times)


@pytest.mark.parametrize("solver", ["euler", "ab2", "dpm++2m"])
@pytest.mark.parametrize(("path", "prediction"), [("vp", "velocity"), ("linear", "data")])
def test_times_are_fitted_to_where_sampling_ends_on_every_path(path, prediction, solver, monkeypatch):
    """Data that the network knows exactly are where it ends, whatever the times: there is no error to be made less."""
    model = make(path=path, prediction=prediction)
    known = torch.randn(2, 4, 2)

    def knows(x, t, labels, *_):
        return model.path.convert(known.expand_as(x), x, t[0], "data", prediction)

    monkeypatch.setattr(model.dit, "forward", knows)
    sampling = DiffusionSampling(steps=3, solver=solver)
    found = fit_generator_times(model, sampling, images=2, iterations=2)
    assert found.even_error < 1e-4


def test_the_command_prints_times_that_the_next_one_takes(tmp_path, capsys):
    make().save_pretrained(tmp_path / "flow")
    command = [
        "generator",
        "times",
        str(tmp_path / "flow"),
        "--images",
        "3",
        "--iterations",
        "2",
        "--sampling.steps",
        "3",
    ]
    assert main(command) == 0
    errors, times = capsys.readouterr().out.strip().splitlines()
    assert errors.startswith("error of even times: ")
    given = make().sampling({"times": eval(times.removeprefix("times = "))})
    assert len(given.grid()) == 4


def test_fitted_times_are_kept_with_the_model(tmp_path, capsys):
    make().save_pretrained(tmp_path / "flow")
    command = ["generator", "times", str(tmp_path / "flow"), "--images", "2", "--iterations", "1", "--out"]
    options = ["--sampling.steps", "2", "--sampling.timestep_shift", "0.5", "--sampling.guidance", "1.5"]
    assert main([*command, str(tmp_path / "fitted"), *options]) == 0
    *_, times, where = capsys.readouterr().out.strip().splitlines()
    assert where == f"model: {tmp_path / 'fitted'}"
    kept = Generator.from_pretrained(tmp_path / "fitted")
    usual = kept.sampling()
    assert (usual.guidance, usual.timestep_shift) == (1.5, 0.0)
    assert usual.times == pytest.approx(eval(times.removeprefix("times = ")), rel=1e-5)
    assert f"times {usual.times}" in usual.sampler
    assert weights_digest(kept) == weights_digest(make())
    assert main([*command, str(tmp_path / "fitted"), *options]) == 2
    assert "exists; expected a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"steps": 50}, {"steps": 50, "times": None, "timestep_shift": 0.0}),
        ({"timestep_shift": 0.5}, {"times": None, "timestep_shift": 0.5}),
        ({"times": (0.0, 1.0)}, {"times": (0.0, 1.0)}),
        ({"solver": "dopri5"}, {"solver": "dopri5", "times": None}),
        ({"solver": "euler", "guidance": 3.0}, {"times": (0.0, 0.3, 1.0), "guidance": 3.0}),
        ({}, {"times": (0.0, 0.3, 1.0), "guidance": 2.0}),
    ],
)
def test_steps_that_are_asked_for_take_the_place_of_kept_times(asked, expected):
    model = make()
    kept = {"times": (0.0, 0.3, 1.0), "steps": 2, "guidance": 2.0, "solver": "ab2"}
    model.origin = replace(model.origin, sampling=kept)
    found = model.sampling(asked)
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sampling.solver", "ddpm"], "solver='ddpm': expected one of fixed steps without noise, euler, heun"),
        (["--sampling.solver", "dopri5"], "solver='dopri5': expected one of fixed steps without noise, euler, heun"),
        (["--sampling.times", "[0, 1]"], "times=[0.0, 1.0]: expected none, they are what is fitted"),
        (["--images", "0"], "images=0: expected at least 1"),
        (["--iterations", "-1"], "iterations=-1: expected at least 0"),
    ],
)
def test_what_cannot_be_fitted_is_refused(options, message, tmp_path, capsys):
    make().save_pretrained(tmp_path / "flow")
    assert main(["generator", "times", str(tmp_path / "flow"), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_generator_without_times_is_refused(tmp_path, capsys):
    ARGenerator(ARConfig(1, 16, 2), SPEC, 3).save_pretrained(tmp_path / "ar")
    assert main(["generator", "times", str(tmp_path / "ar")]) == 2
    assert "a generator of kind ar: expected diffusion, whose solver has times" in capsys.readouterr().err
