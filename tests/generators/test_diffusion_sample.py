"""Sampling of the diffusion generator: seeds, cost, what is told of the steps, refusals."""

import sys

import pytest
import torch
from torch import nn

from ifsq.codes.spec import CodeSpec
from ifsq.generators.diffusion import DiffusionGenerator, DiffusionSampling, DiTConfig
from ifsq.generators.diffusion.objective import Objective, ObjectiveConfig
from ifsq.generators.diffusion.sampling import SOLVERS
from ifsq.generators.diffusion.solvers import euler, time_grid
from ifsq.generators.streams import normals

SPEC = CodeSpec((5, 9), (1, 1), "little", "equal", (4, 2))
LABELS = torch.tensor([0, 2, 1])
STEPPING = [name for name, solver in SOLVERS.items() if not solver.adaptive and not solver.average]


@pytest.fixture
def model():
    torch.manual_seed(0)
    generator = DiffusionGenerator(DiTConfig(1, 16, 2, patch=2), SPEC, num_classes=3)
    for parameter in generator.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return generator


@pytest.mark.parametrize("solver", STEPPING)
@pytest.mark.parametrize(("guidance", "rows"), [(1.0, 3), (2.0, 6)])
def test_function_evaluations_are_what_sampling_does(model, solver, guidance, rows):
    seen = []
    model.dit.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    model.sample(LABELS, steps=4, solver=solver, guidance=guidance)
    assert set(seen) == {rows}
    assert sum(seen) == 3 * model.cost(DiffusionSampling(guidance, 4, solver))


def test_time_grid_is_even_or_bent():
    assert time_grid(4).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert torch.equal(time_grid(4, 1.0), time_grid(4))
    assert time_grid(2, 3.0).tolist() == pytest.approx([0.0, 0.75, 1.0])


def test_same_seed_same_codes(model):
    first, again, other = (model.sample(LABELS, seed=seed, steps=3) for seed in (7, 7, 8))
    assert torch.equal(first.codes, again.codes)
    assert not torch.equal(first.codes, other.codes)


def test_global_randomness_plays_no_part(model):
    torch.manual_seed(1)
    first = model.sample(LABELS, steps=2)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(model.sample(LABELS, steps=2).codes, first.codes)
    assert torch.equal(torch.get_rng_state(), state)


def test_sample_is_the_flow_snapped_to_the_lattice(model):
    model.set_statistics(torch.tensor([0.2, -0.1]), torch.tensor([0.4, 0.6]))
    sampled = model.sample(LABELS, seed=3, steps=4, solver="euler", guidance=2.0, timestep_shift=0.5)
    noise = normals(3, 0, 3, 16).view(3, 2, 4, 2)
    x = euler(lambda x, t: model.velocity(x, t, LABELS, DiffusionSampling(2.0)), noise, time_grid(4, 0.5))
    codes = x * torch.tensor([0.4, 0.6]).view(2, 1, 1) + torch.tensor([0.2, -0.1]).view(2, 1, 1)
    digits = SPEC.codes_to_digits(codes.detach())
    assert torch.equal(sampled.codes, SPEC.digits_to_codes(digits))
    assert torch.equal(sampled.indices, SPEC.digits_to_indices(digits))
    assert sampled.codes.shape == (3, 2, 4, 2)


def test_codes_come_as_they_are_where_nothing_snaps_them(model):
    told = []
    sampling = DiffusionSampling(steps=3, snap="none")
    drawn = model.draw(LABELS, sampling, 3, 0, lambda step: told.append(step.look().sampled.codes))
    assert torch.equal(drawn.codes, told[-1])
    assert drawn.indices is None
    snapped = model.sample(LABELS, seed=3, steps=3)
    assert torch.equal(SPEC.digits_to_codes(SPEC.codes_to_digits(drawn.codes)), snapped.codes)


def test_times_are_the_ones_given(model):
    times = (0.0, 0.4, 0.5, 1.0)
    told = []
    model.draw(LABELS, DiffusionSampling(times=times), 3, 0, lambda step: told.append(step.time))
    assert told == pytest.approx(times[1:])
    even = tuple(time_grid(4).tolist())
    assert torch.equal(model.sample(LABELS, times=even).codes, model.sample(LABELS, steps=4).codes)
    assert model.cost(DiffusionSampling(2.0, times=times)) == 6


def test_a_card_says_what_is_not_the_default():
    assert DiffusionSampling().sampler == "steps 16, solver ab2"
    assert DiffusionSampling(steps=25, solver="euler").sampler == "steps 25, solver euler"
    odd = DiffusionSampling(times=(0.0, 0.7, 1.0), snap="none", solver="ab2")
    assert odd.sampler == "solver ab2, times (0.0, 0.7, 1.0), snap none"
    assert DiffusionSampling(solver="dopri5", rtol=1e-4).sampler == "solver dopri5, rtol 0.0001"


def test_options_of_runs_from_before_the_default_changed_are_taken():
    assert DiffusionSampling(steps=25, solver="dopri5") != DiffusionSampling(solver="dopri5")
    assert DiffusionSampling(steps=25, solver="dopri5").sampler == "solver dopri5"
    assert DiffusionSampling(steps=25, solver="ddpm", respacing="10").sampler == "solver ddpm, respacing 10"


def test_adaptive_steps_of_an_image_are_its_own_and_counted(model):
    seen = []
    model.dit.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    sampling = DiffusionSampling(2.0, solver="dopri5", snap="none", guidance_interval=(0.0, 0.5))
    together = model.sample(LABELS, sampling, seed=5)
    assert together.passes == len(seen)
    assert set(seen) == {1, 2}
    for image in range(3):
        alone = model.sample(LABELS[image : image + 1], sampling, seed=5, first=image)
        assert torch.equal(alone.codes[0], together.codes[image])
    seen.clear()
    cost = model.cost(sampling)
    assert cost == sum(seen)
    model.sample(torch.tensor([0]), sampling, seed=0)
    assert sum(seen) == 2 * cost
    told = []
    finer = DiffusionSampling(solver="dopri5", snap="none", rtol=1e-4)
    drawn = model.draw(LABELS[:1], finer, 5, 0, told.append)
    assert [step.done for step in told] == list(range(1, len(told) + 1))
    assert told[-1].time == 1.0
    assert torch.equal(told[-1].look().sampled.codes, drawn.codes)
    fine = model.sample(LABELS[:1], seed=5, solver="rk4", steps=24, snap="none")
    assert torch.allclose(drawn.codes, fine.codes, atol=2e-3)
    nn.init.constant_(model.dit.final_layer.linear.bias, float("nan"))
    with pytest.raises(ValueError, match=r"solver='dopri5': .*expected finite weights"):
        model.sample(LABELS, sampling)


@pytest.mark.parametrize(("path", "prediction"), [("vp", "velocity"), ("ddpm", "velocity"), ("linear", "data")])
def test_adaptive_steps_end_at_the_data_on_every_path(path, prediction):
    """Of data that are one point the network sees them everywhere, the last step too: the end is that point."""
    objective = Objective(ObjectiveConfig(path=path, prediction=prediction), 3)
    point, noise, told = torch.tensor([[0.3, -2.0, 1.0]]), torch.tensor([[1.0, 0.5, -0.2]]), []

    def velocity(x, t):
        return objective.path.convert(point, x, t, "data", "velocity")

    end = DiffusionSampling(solver="dopri5").solve(
        velocity, noise, objective.path, lambda *step: told.append(step), objective.span
    )
    assert torch.allclose(end, point, atol=1e-6)
    assert [done for done, _, _ in told] == list(range(1, len(told) + 1))
    assert float(told[-1][1]) == 1.0
    assert float(told[-2][1]) == pytest.approx(objective.span[1])
    assert torch.equal(told[-1][2], end)


def test_adaptive_steps_without_their_package_are_refused(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ValueError, match=r"solver='dopri5': needs the package torchdiffeq: pip install 'ifsq\[ode\]'"):
        model.sample(LABELS, solver="dopri5")


@pytest.mark.parametrize("solver", [name for name, solver in SOLVERS.items() if solver.noise])
def test_the_noise_on_the_way_is_an_images_own(model, solver):
    options = {"solver": solver, "steps": 4, "snap": "none", **({"eta": 1.0} if solver == "ddim" else {})}
    together = model.sample(LABELS, seed=5, **options).codes
    for image in range(3):
        alone = model.sample(LABELS[image : image + 1], seed=5, first=image, **options).codes
        assert torch.allclose(alone[0], together[image], atol=1e-5)
    twin = model.sample(torch.tensor([1, 1]), seed=5, **options).codes
    assert not torch.allclose(twin[0], twin[1], atol=0.1)
    assert torch.equal(model.sample(LABELS, seed=5, **options).codes, together)


def test_sampling_is_evaluation_and_leaves_the_training_mode(model):
    seen = []
    model.dit.blocks[0].register_forward_pre_hook(
        lambda module, inputs: seen.append((module.training, torch.is_grad_enabled()))
    )
    model.dit.final_layer.eval()
    model.sample(LABELS, steps=1)
    assert seen == [(False, False)]
    assert model.training
    assert not model.dit.final_layer.training


def test_interval_limits_the_guided_times(model):
    rows = []
    model.dit.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    model.sample(LABELS, steps=5, guidance=2.0, guidance_interval=(0.3, 0.7))  # times 0, .2, .4, .6, .8
    assert rows == [3, 3, 6, 6, 3]
    assert sum(rows) == 3 * model.cost(DiffusionSampling(2.0, 5, guidance_interval=(0.3, 0.7)))


@pytest.mark.parametrize("solver", STEPPING)
def test_every_step_is_told(model, solver):
    told = []
    sampling = DiffusionSampling(steps=4, solver=solver, timestep_shift=0.5)
    drawn = model.draw(LABELS, sampling, 3, 0, told.append)
    assert [(step.done, step.time) for step in told] == list(enumerate(sampling.grid()[1:].tolist(), 1))
    last = told[-1].look().sampled.codes
    assert torch.equal(drawn.codes, SPEC.digits_to_codes(SPEC.codes_to_digits(last)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0: expected at least 1"),
        ({"solver": "rk5"}, "solver='rk5': expected one of euler, heun, midpoint"),
        ({"snap": "up"}, "snap='up': expected one of nearest, none"),
        ({"times": (0.0, 0.5)}, r"times=\[0.0, 0.5\]: expected times that rise from 0 to 1"),
        ({"times": (0.0, 0.5, 0.5, 1.0)}, "times=.*: expected times that rise from 0 to 1"),
        ({"times": (0.0, 1.0), "timestep_shift": 0.3}, "timestep_shift=0.3: expected 0 beside times"),
        ({"rtol": 1e-3}, "rtol=0.001: solver ab2 has no such option"),
        ({"solver": "dopri5", "atol": 0.0}, "atol=0.0: expected a positive number"),
        ({"solver": "dopri5", "steps": 7}, "steps=7: solver dopri5 has no such option"),
        ({"solver": "dopri5", "times": (0.0, 1.0)}, "times=.*: solver dopri5 has no such option"),
        ({"solver": "dopri5", "timestep_shift": 0.3}, "timestep_shift=0.3: solver dopri5 has no such option"),
        ({"timestep_shift": -1.0}, "timestep_shift=-1.0: expected 0"),
        ({"guidance": -2.0}, "guidance=-2.0: expected a number of at least 0"),
        ({"guidance_interval": (0.5, 0.2)}, "guidance_interval=.*expected two times"),
    ],
)
def test_bad_options_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.sample(LABELS, **options)


@pytest.mark.parametrize("label", [-1, 3])
def test_label_that_is_no_class_is_refused(model, label):
    with pytest.raises(ValueError, match=f"label {label}: expected 0 to 2"):
        model.sample(torch.tensor([0, label]))


def test_a_guidance_that_leads_beyond_all_numbers_is_refused(model):
    with pytest.raises(ValueError, match=r"the codes are not finite numbers: .* less than guidance=1e\+38"):
        model.sample(LABELS, guidance=1e38, steps=8)
