"""Solvers against the official trajectories and against each other; seeds, cost and refusals of sampling."""

import pytest
import torch
from torch import nn

from ifsq.codes.spec import CodeSpec
from ifsq.generators.diffusion import DiffusionGenerator, DiffusionSampling, DiTConfig
from ifsq.generators.diffusion.solvers import SOLVERS, time_grid
from ifsq.generators.streams import normals
from ifsq.interop.official.dit import from_official

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
SPEC = CodeSpec((5, 9), (1, 1), "little", "equal", (4, 2))
LABELS = torch.tensor([0, 2, 1])


@pytest.fixture
def model():
    torch.manual_seed(0)
    generator = DiffusionGenerator(DiTConfig(1, 16, 2, patch=2), SPEC, num_classes=3)
    for parameter in generator.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return generator


@pytest.mark.parametrize("shift", [0.0, 0.3])
@pytest.mark.parametrize(("solver", "theirs"), [("euler", "euler"), ("heun", "heun2"), ("midpoint", "midpoint")])
def test_official_trajectories(golden, solver, theirs, shift):
    tensors = golden("dit_tiny")
    spec = CodeSpec((17,) * 4, (4,), "little", "paper", (4, 4))
    model = DiffusionGenerator(DiTConfig(2, 64, 4, patch=1), spec, num_classes=10)
    state = {key[3:]: tensors.get_tensor(key) for key in tensors.keys() if key.startswith("sd/")}  # noqa: SIM118
    model.dit.load_state_dict(from_official(state))
    noise, labels = tensors.get_tensor("ode/noise"), tensors.get_tensor("ode/y")
    expected = tensors.get_tensor(f"ode/{theirs}_shift{shift}")
    times = time_grid(4, shift)
    with torch.no_grad():
        for point in range(5):
            got = SOLVERS[solver](
                lambda x, t: model.velocity(x, t, labels, DiffusionSampling()), noise, times[: point + 1]
            )
            assert torch.allclose(got, expected[point], **CLOSE)
        if (solver, shift) == ("euler", 0.0):
            got = SOLVERS[solver](lambda x, t: model.velocity(x, t, labels, DiffusionSampling()), noise, time_grid(10))
            assert torch.allclose(got, tensors.get_tensor("ode/euler10_final"), **CLOSE)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_solvers_converge_at_their_order(solver, order):
    x = torch.ones(1, dtype=torch.float64)
    exact = torch.exp(torch.tensor(0.5, dtype=torch.float64))  # dx/dt = t x
    errors = [float((SOLVERS[solver](lambda x, t: t * x, x, time_grid(n).double()) - exact).abs()) for n in (20, 40)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize("solver", SOLVERS)
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
    sampled = model.sample(LABELS, seed=3, steps=4, guidance=2.0, timestep_shift=0.5)
    noise = normals(3, 0, 3, 16).view(3, 2, 4, 2)
    x = SOLVERS["euler"](lambda x, t: model.velocity(x, t, LABELS, DiffusionSampling(2.0)), noise, time_grid(4, 0.5))
    codes = x * torch.tensor([0.4, 0.6]).view(2, 1, 1) + torch.tensor([0.2, -0.1]).view(2, 1, 1)
    digits = SPEC.codes_to_digits(codes.detach())
    assert torch.equal(sampled.codes, SPEC.digits_to_codes(digits))
    assert torch.equal(sampled.indices, SPEC.digits_to_indices(digits))
    assert sampled.codes.shape == (3, 2, 4, 2)


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


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_step_is_told(model, solver):
    told = []
    sampling = DiffusionSampling(steps=4, solver=solver, timestep_shift=0.5)
    drawn = model.draw(LABELS, sampling, 3, 0, on_step=lambda *step: told.append(step))
    assert [(done, time.item()) for done, time, _ in told] == list(enumerate(time_grid(4, 0.5)[1:].tolist(), 1))
    last = model.denormalize(told[-1][2])
    assert torch.equal(drawn.codes, SPEC.digits_to_codes(SPEC.codes_to_digits(last)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0: expected at least 1"),
        ({"solver": "rk4"}, "solver='rk4': expected one of euler, heun, midpoint"),
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
