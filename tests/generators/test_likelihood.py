"""The likelihood of a diffusion generator: Gaussians whose density is known, probabilities that can be counted."""

import math
from dataclasses import replace

import pytest
import torch
from gaussians import MEANS, SCALES, of_gaussian
from torch import nn

from ifsq.codes import CodeBatch, CodeSpec, LatentSpec
from ifsq.config import InputError
from ifsq.generators.ar import ARConfig, ARGenerator
from ifsq.generators.diffusion import DiffusionGenerator, DiffusionSampling, DiTConfig
from ifsq.generators.diffusion import likelihood as room
from ifsq.generators.diffusion.likelihood import (
    LikelihoodOptions,
    half_cells,
    likelihood,
    log_density,
    time_of_noise,
)
from ifsq.generators.diffusion.path import PATHS, QUANTITIES, LinearPath
from ifsq.generators.streams import uniforms

FINE = LikelihoodOptions(steps=48)
NOISE = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double()
DATA = MEANS + SCALES * torch.cat([NOISE, -NOISE])  # what is linear in the noise is on average 0
TOY = CodeSpec((3, 2), (1, 1), "little", "equal", (1, 1))
TOY_CODES = torch.cartesian_prod(torch.arange(3), torch.arange(2)).view(6, 1, 1, 2)


def of_prediction(path, prediction):
    """The velocity of the Gaussian as a network that predicts another quantity gives it."""
    known, _ = of_gaussian(path)

    def velocity(x, t):
        variance = (path.alpha(t) * SCALES) ** 2 + path.sigma(t) ** 2
        score = (path.alpha(t) * MEANS - x) / variance
        data = MEANS + path.alpha(t) * SCALES**2 / variance * (x - path.alpha(t) * MEANS)
        told = {"score": score, "noise": -path.sigma(t) * score, "data": data, "velocity": known(x, t)}
        return path.convert(told[prediction], x, t, prediction, "velocity")

    return velocity


def pushed_forward(path, low):
    """Log-density of what the Gaussian's velocity makes of N(0, 1) that starts at ``low``."""
    low = torch.tensor(low, dtype=torch.float64)
    alpha, scale = path.alpha(low), ((path.alpha(low) * SCALES) ** 2 + path.sigma(low) ** 2).sqrt()
    start = torch.distributions.Normal(0.0, 1.0).log_prob((DATA - MEANS) / SCALES * scale + alpha * MEANS)
    return (start + (scale / SCALES).log()).sum(dim=1)


@pytest.mark.parametrize("prediction", QUANTITIES)
@pytest.mark.parametrize("name", PATHS)
def test_the_density_of_a_gaussian_is_found_on_every_path(name, prediction):
    path = PATHS[name]()
    span = path.span(prediction)
    found = log_density(of_prediction(path, prediction), DATA, FINE, path=path, span=span).nats[:, 0]
    assert torch.allclose(found, pushed_forward(path, span[0]), rtol=0, atol=5e-5)
    # Sampling begins with N(0, 1), which the path meets but nearly; that costs little on average.
    true = torch.distributions.Normal(MEANS, SCALES).log_prob(DATA).sum(dim=1)
    assert abs(float((found - true).mean())) < 1e-3
    if span == (0.0, 1.0):
        assert torch.allclose(found, true, rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", ["vp", "ddpm"])
def test_the_last_step_stands_for_the_rest_of_the_path(name):
    path = PATHS[name]()
    span = path.span("velocity")
    there, read = (
        log_density(of_prediction(path, "velocity"), DATA, FINE, path=path, span=span, read=read)
        for read in (None, span[1])
    )
    gap = [(found.nats[:, 0] - pushed_forward(path, 0.0)).abs().max() for found in (there, read)]
    assert gap[0] < 5e-5 < 1e-3 < gap[1]
    assert there.evaluations == read.evaluations + 1 == 4 * FINE.steps + 1


@pytest.mark.parametrize("solver", sorted(set(room.SOLVERS) - {"rk4"}))
def test_every_solver_finds_it(solver):
    pytest.importorskip("torchdiffeq")
    steps = {"euler": 800, "dopri5": 32}.get(solver, 150)
    shift = 4.0 if solver == "dopri5" else 2.0
    options = LikelihoodOptions(solver, steps, shift)
    found = log_density(of_prediction(LinearPath(), "velocity"), DATA[:4], options)
    true = torch.distributions.Normal(MEANS, SCALES).log_prob(DATA[:4]).sum(dim=1)
    assert torch.allclose(found.nats[:, 0], true, rtol=0, atol=0.02 if solver == "euler" else 1e-3)


def test_probes_estimate_the_trace_within_their_standard_error():
    known, _ = of_gaussian(LinearPath())
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).double()).Q

    def velocity(x, t):  # of numbers that depend on each other: of independent ones any probe is exact
        return known(x @ turn.T, t) @ turn

    data, signs = DATA[:8] @ turn, uniforms(0, 0, 8, 100 * 3).view(8, 100, 3)
    signs = torch.where(signs < 0.5, -1.0, 1.0).double()
    exact, estimated = (log_density(velocity, data, LikelihoodOptions(steps=24), probes) for probes in (None, signs))
    error = estimated.nats.std(dim=1) / 10
    away = (estimated.nats.mean(dim=1) - exact.nats[:, 0]) / error
    assert error.min() > 1e-3
    assert away.abs().max() < 3.5
    assert 0.4 < away.square().mean() ** 0.5 < 1.8


def make(spec=TOY, classes=2, std=0.3, **options):
    torch.manual_seed(0)
    model = DiffusionGenerator(DiTConfig(1, 16, 2, patch=1, **options), spec, classes).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=std)
    return model


def drawn_digits(model, count, label, read):
    """Digits of what the flow makes of noise up to a time."""
    velocity = lambda x, t: model.velocity(x, t, torch.full((count,), label), DiffusionSampling())  # noqa: E731
    with torch.no_grad():
        noise = torch.randn(count, 2, 1, 1, generator=torch.Generator().manual_seed(0))
        x = room.rk4(velocity, noise, read * torch.linspace(0, 1, 17))
        return model.spec.codes_to_digits(model.denormalize(x / model.path.alpha(torch.tensor(read))))


@pytest.mark.parametrize(("path", "dequantization"), [("linear", "path"), ("linear", "uniform"), ("vp", "path")])
def test_the_bound_lies_below_the_probability_of_every_image(path, dequantization, monkeypatch):
    monkeypatch.setattr(room, "AT_ONCE", 2**10)
    model = make(std=0.2, path=path)
    model.set_statistics(torch.tensor([0.1, -0.1]), torch.tensor([0.7, 0.5]))
    options = LikelihoodOptions(steps=10, dequantization=dequantization)
    repeats, count = 60, 8000
    labels = torch.ones(6 * repeats, dtype=torch.int64)
    found = likelihood(model, CodeBatch(TOY, TOY_CODES.repeat_interleave(repeats, 0), labels), options)
    nats = -found.bits.view(6, repeats) * math.log(2)
    bound, off = nats.mean(dim=1), nats.std(dim=1) / repeats**0.5
    assert bound.exp().sum() < 1
    digits = drawn_digits(model, count, 1, found.time)[:, 0, 0]
    share = torch.tensor([float((digits == one).all(dim=1).double().mean()) for one in TOY_CODES[:, 0, 0]])
    assert share.sum() == pytest.approx(1)
    slack = 4 * (off + ((1 - share) / share / count) ** 0.5)
    assert bool((bound < share.log() + slack).all())
    assert bool((bound > share.log() - 3 - slack).all())  # a smooth density, so it is no empty one


def test_noise_of_the_path_loses_nothing_where_the_data_are_a_lattice(monkeypatch):
    spec = CodeSpec((2,), (1,), "little", "symmetric", (1, 1))
    model = make(spec)

    def velocity(x, t, labels, sampling):  # of -1 and 1, each with probability a half
        alpha, sigma = model.path.alpha(t), model.path.sigma(t)
        data = torch.tanh(alpha * x / sigma**2)
        return model.path.convert(data, x, t, "data", "velocity")

    monkeypatch.setattr(model, "velocity", velocity)
    batch = CodeBatch(spec, torch.tensor([0, 1] * 8).view(16, 1, 1, 1), torch.zeros(16, dtype=torch.int64))
    bits = likelihood(model, batch, LikelihoodOptions(spread=0.25)).bits
    assert torch.allclose(bits, torch.ones(16).double(), atol=0.01)


@pytest.mark.parametrize("cells", ["paper", "symmetric", "equal"])
@pytest.mark.parametrize("levels", [(2, 2), (5, 17), (4, 16), (3, 8)])
def test_noise_within_half_a_cell_keeps_the_digit(levels, cells):
    spec = CodeSpec(levels, (2,), "little", "symmetric" if cells == "paper" and 2 in levels else cells, (1, 1), 0.5)
    std = torch.tensor([0.7, 1.3])
    half = half_cells(spec, std)[:, None, None] * std.double()[:, None, None]
    digits = torch.cartesian_prod(torch.arange(levels[0]), torch.arange(levels[1])).view(-1, 1, 1, 2)
    codes = spec.digits_to_codes(digits).double()
    for share in (-0.999, -0.5, 0.5, 0.999):
        assert torch.equal(spec.codes_to_digits((codes + share * half).float()), digits)
    inner = digits[..., :1] < levels[0] - 1
    left = spec.codes_to_digits((codes + 1.001 * half).float())
    assert bool((left[..., :1][inner] == digits[..., :1][inner] + 1).all())


def test_noise_of_the_path_is_as_wide_as_was_asked_for():
    model = make(CodeSpec((5, 17), (2,), "little", "paper", (8, 8)))
    for spread in (0.25, 1.0):
        read, noise, minus_log_q = room._noise(
            model, LikelihoodOptions(spread=spread), uniforms(0, 0, 40, 128).view(40, 2, 8, 8).double()
        )
        wide = half_cells(model.spec, model.code_std)
        assert read == pytest.approx(1 / (1 + spread * float(wide.min())))
        assert bool((noise.abs() < wide[:, None, None]).all())
        # The entropy of a normal distribution that is cut off, of two widths.
        cut = wide / (spread * wide.min())
        inside = torch.special.erf(cut / 2**0.5)
        tail = cut * torch.exp(-cut.square() / 2) / (2 * math.pi) ** 0.5 / inside
        entropy = (math.log(2 * math.pi * math.e) / 2 + (spread * wide.min() * inside).log() - tail).sum() * 64
        assert float(minus_log_q.mean()) == pytest.approx(float(entropy), abs=1.5)
    assert time_of_noise(PATHS["vp"](), 1e-3, 0.999) == 0.999


def test_an_images_bits_are_its_own(monkeypatch):
    model = make(CodeSpec((5, 9), (2,), "little", "equal", (2, 4)))
    digits = torch.randint(5, (5, 2, 4, 2), generator=torch.Generator().manual_seed(0))
    batch = CodeBatch(model.spec, digits, torch.tensor([0, 1, 0, 1, 1]))
    options = LikelihoodOptions(steps=3, trace="hutchinson", probes=2)
    whole = likelihood(model, batch, options, seed=3)
    monkeypatch.setattr(room, "AT_ONCE", 2)
    parts = [
        likelihood(model, CodeBatch(model.spec, digits[at], batch.labels[at]), options, seed=3, first=at.start)
        for at in (slice(0, 3), slice(3, 5))
    ]
    for name in ("bits", "error"):
        together = torch.cat([getattr(part, name) for part in parts])
        assert torch.allclose(together, getattr(whole, name), rtol=1e-5, atol=1e-4)
    assert (likelihood(model, batch, options, seed=4).bits - whole.bits).abs().min() > 1e-3
    assert whole.evaluations.tolist() == [12] * 5
    more = likelihood(model, batch, replace(options, probes=3), seed=3)
    assert not torch.equal(more.bits, whole.bits)
    assert likelihood(model, batch, replace(options, probes=1), seed=3).error is None


def test_latents_have_a_density_in_their_own_units():
    model = make(LatentSpec(2, (1, 2)))
    latents = torch.randn(3, 2, 1, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 1])
    options = LikelihoodOptions(steps=8)
    plain = likelihood(model, CodeBatch(model.spec, latents, labels), options)
    mean, std = torch.tensor([3.0, -1.0]), torch.tensor([4.0, 0.5])
    model.set_statistics(mean, std)
    stored = latents * std[:, None, None] + mean[:, None, None]
    scaled = likelihood(model, CodeBatch(model.spec, stored, labels), options)
    assert torch.allclose(scaled.bits, plain.bits + 2 * (2 - 1), atol=1e-4)  # log2 of 4 and of 0.5, of two places each
    assert (plain.exact, plain.time, plain.error.tolist()) == (True, 1.0, [0.0] * 3)
    # By hand: the exact log-determinant of the whole map from data to noise, of which the trace is the derivative.
    one = latents[:1].double()
    model.set_statistics(torch.zeros(2), torch.ones(2))

    def to_noise(y):
        velocity = lambda x, t: model.double().velocity(x, t, labels[:1], DiffusionSampling())  # noqa: E731
        return room.rk4(velocity, y.view(1, 2, 1, 2), options.times(0.0, 1.0)).flatten()

    jacobian = torch.autograd.functional.jacobian(to_noise, one.flatten())
    density = torch.distributions.Normal(0.0, 1.0).log_prob(to_noise(one)).sum() + torch.linalg.slogdet(jacobian)[1]
    assert float(plain.bits[0]) == pytest.approx(-float(density.detach()) / math.log(2), abs=2e-3)


def test_nothing_is_left_of_the_gradients():
    model = make(CodeSpec((5, 9), (2,), "little", "equal", (2, 4))).train()
    batch = CodeBatch(model.spec, torch.zeros(2, 2, 4, 2, dtype=torch.int64), torch.tensor([0, 1]))
    seen = []
    weight = model.dit.final_layer.linear.weight
    model.dit.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, weight.requires_grad)))
    found = likelihood(model, batch, LikelihoodOptions(steps=2))
    assert set(seen) == {(False, False)}
    assert model.training
    assert not found.bits.requires_grad
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"probes": 0}, "probes=0: expected at least 1"),
        ({"steps": 0}, "steps=0: expected at least 1"),
        ({"solver": "ddpm"}, "solver='ddpm': expected one of rk4, heun"),
        ({"trace": "full"}, "trace='full': expected one of auto, exact, hutchinson"),
        ({"dequantization": "none"}, "dequantization='none': expected one of path, uniform"),
        ({"timestep_shift": 0.0}, "timestep_shift=0.0: expected a positive number"),
        ({"spread": math.inf}, "spread=inf: expected a positive number"),
        ({"spread": 0.5, "dequantization": "uniform"}, "spread=0.5: dequantization uniform has no such option"),
        ({"steps": 5, "solver": "dopri5"}, "steps=5: solver dopri5 has no such option"),
        ({"tolerance": 1e-3}, "tolerance=0.001: solver rk4 has no such option"),
        ({"probes": 2, "trace": "exact"}, "probes=2: trace exact has no such option"),
    ],
)
def test_options_that_cannot_be_are_refused(options, told):
    with pytest.raises(ValueError, match=told.replace("(", r"\(")):
        LikelihoodOptions(**options)


def test_what_has_no_likelihood_is_refused():
    model = make()
    batch = CodeBatch(TOY, TOY_CODES, torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ValueError, match="label 2: expected 0 to 1"):
        likelihood(model, replace(batch, labels=torch.tensor([0, 0, 0, 2, 0, 0])))
    with pytest.raises(InputError, match="a generator of kind ar: expected diffusion; its own nll is exact"):
        likelihood(ARGenerator(ARConfig(1, 16, 2, mlp_multiple_of=16), TOY, 2), batch)
    other = replace(TOY, cells="symmetric")
    with pytest.raises(ValueError, match="another layout than the generator's: cells symmetric against equal"):
        likelihood(model, replace(batch, layout=other))
    book = CodeSpec((8,), (1,), "little", "codebook", (1, 1))
    with pytest.raises(InputError, match="codes of a codebook of 8: have no cells"):
        likelihood(DiffusionGenerator(DiTConfig(1, 16, 2, patch=1), book, 2, 3), batch)
    large = CodeSpec((5,) * 8, (8,), "little", "equal", (12, 12))
    model, digits = make(large), torch.zeros(1, 12, 12, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match="trace='exact': codes of 1152 numbers, expected at most 1024"):
        likelihood(model, CodeBatch(large, digits, torch.tensor([0])), LikelihoodOptions(trace="exact"))
    broken = make(std=math.inf)
    with pytest.raises(InputError, match="the density is not finite with rk4, steps 2, timestep_shift 4"):
        likelihood(broken, batch, LikelihoodOptions(steps=2))
