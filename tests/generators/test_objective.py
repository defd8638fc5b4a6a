"""What a diffusion generator is trained for: the loss of every prediction, its weight, and the velocity it gives."""

import math
from dataclasses import asdict

import pytest
import torch
from tests.generators.test_diffusion import LABELS, SPEC, make, make_batch

from ifsq.config import InputError, build
from ifsq.generators.diffusion import DiffusionGenerator, DiffusionSampling, DiTConfig
from ifsq.generators.diffusion.coupling import coupled
from ifsq.generators.diffusion.objective import WEIGHTINGS, Objective, ObjectiveConfig
from ifsq.generators.diffusion.path import PATHS, QUANTITIES, DDPMPath
from ifsq.generators.diffusion.times import draw_times, shift_times

CLOSE = {"atol": 1e-10, "rtol": 1e-8}
SIZES = {"depth": 1, "width": 16, "heads": 2, "patch": 2}
MEAN, STD = 0.7, 0.4


def drawn():
    torch.manual_seed(0)
    x0, x1, guess = torch.randn(3, 6, 3, 2, 4, dtype=torch.float64)
    return x0, x1, guess, torch.rand(6, dtype=torch.float64) * 0.9 + 0.05


def quantities(objective, x0, x1, t):
    point = objective.path.sample(x0, x1, t)
    velocity = {"velocity": point.velocity}
    known = {name: objective.path.convert(velocity["velocity"], point.x, t, "velocity", name) for name in QUANTITIES}
    return point, known


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", QUANTITIES)
def test_the_truth_has_no_loss_whatever_is_predicted(path, prediction):
    x0, x1, guess, t = drawn()
    for weighting in WEIGHTINGS:
        config = ObjectiveConfig(path=path, prediction=prediction, weighting=weighting, cosine_weight=1.0)
        objective = Objective(config, 24)
        point, known = quantities(objective, x0, x1, t)
        losses = objective.loss(known[prediction], point, x0, x1, t)
        assert float(losses["mse"]) < 1e-18
        assert float(losses["cosine"]) < 0.02  # of what COSINE_EPS adds to a length
        assert float(objective.loss(guess, point, x0, x1, t)["mse"]) > 1e-4


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", QUANTITIES)
def test_weights_turn_an_error_into_the_velocitys_or_the_datas(path, prediction):
    """Against the squared errors of what the prediction converts to, worked out apart."""
    x0, x1, guess, t = drawn()
    for weighting in ("velocity", "min_snr"):
        options = {"min_snr_gamma": 3.0} if weighting == "min_snr" else {}
        objective = Objective(ObjectiveConfig(path=path, prediction=prediction, weighting=weighting, **options), 24)
        point, known = quantities(objective, x0, x1, t)
        wanted = "velocity" if weighting == "velocity" else "data"
        error = objective.path.convert(guess, point.x, t, prediction, wanted) - known[wanted]
        snr = (objective.path.alpha(t) / objective.path.sigma(t)) ** 2
        weight = snr.clamp(max=3.0) if weighting == "min_snr" else torch.ones(6, dtype=torch.float64)
        expected = (weight * error.square().flatten(1).mean(dim=1)).mean()
        assert torch.allclose(objective.loss(guess, point, x0, x1, t)["loss"], expected, **CLOSE)


def test_published_min_snr_weights():
    """arXiv 2303.09556: min(SNR, 5) / SNR for noise and, where alpha^2 + sigma^2 = 1, / (SNR + 1) for the velocity."""
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    for prediction, path, over in (("noise", "vp", 0), ("noise", "linear", 0), ("velocity", "cosine", 1)):
        objective = Objective(ObjectiveConfig(path=path, prediction=prediction, weighting="min_snr"), 24)
        snr = (objective.path.alpha(t) / objective.path.sigma(t)) ** 2
        expected = snr.clamp(max=5) / (snr + over)
        scale = (math.pi / 2) ** 2 if path == "cosine" else 1.0  # its angle's rate: their velocity is one of the angle
        assert torch.allclose(objective.weights(t) * scale, expected, **CLOSE)


@pytest.mark.parametrize("prediction", QUANTITIES)
def test_official_weighting(prediction):
    """The official code weighs an error of the noise by (drift_var / sigma)^2 for the velocity's."""
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    objective = Objective(ObjectiveConfig(prediction=prediction, weighting="velocity"), 24)
    drift_var = (1 - t) / t  # of the straight path: sigma^2 / alpha + sigma
    expected = {"velocity": t**0, "data": (1 - t) ** -2}.get(prediction, (drift_var / (1 - t)) ** 2)
    assert torch.allclose(objective.weights(t), expected, **CLOSE)


class Gaussian(torch.nn.Module):
    """In place of the network: the exact expectation of a quantity where the data are N(MEAN, STD^2)."""

    def __init__(self, path, prediction):
        super().__init__()
        self.path, self.prediction = path, prediction

    def forward(self, x, t, labels, taps=None, interval=None):
        t = self.path.time(t) if isinstance(self.path, DDPMPath) else t  # it is told the step
        t = t[:, None, None, None].double()
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        away = (x - alpha * MEAN) / ((alpha * STD) ** 2 + sigma**2)
        data, noise = MEAN + alpha * STD**2 * away, sigma * away
        if self.prediction == "velocity":
            return self.path.d_alpha(t) * data + self.path.d_sigma(t) * noise
        return {"data": data, "noise": noise, "score": -away}[self.prediction]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", QUANTITIES)
def test_any_prediction_gives_the_solver_its_velocity(path, prediction):
    """The velocity of N(MEAN, STD^2) data, and samples that have their mean and deviation."""
    model = make(path=path, prediction=prediction, **SIZES).eval()
    model.dit = Gaussian(model.path, prediction)
    t, x = torch.tensor(0.4), torch.randn(2, 3, 4, 6)
    alpha, sigma = model.path.alpha(t), model.path.sigma(t)
    # Of the deviation sqrt(alpha^2 STD^2 + sigma^2) around alpha MEAN: the flow keeps an x at its quantile.
    slope = (alpha * STD**2 * model.path.d_alpha(t) + sigma * model.path.d_sigma(t)) / ((alpha * STD) ** 2 + sigma**2)
    expected = model.path.d_alpha(t) * MEAN + slope * (x - alpha * MEAN)
    for guidance in (1.0, 3.0):  # both classes alike
        got = model.velocity(x, t, LABELS, DiffusionSampling(guidance))
        assert torch.allclose(got, expected, atol=1e-4, rtol=1e-4)
    torch.manual_seed(1)
    noise = torch.randn(200, 3, 4, 6)
    velocity = lambda x, t: model.velocity(x, t, torch.zeros(200, dtype=torch.int64), DiffusionSampling())  # noqa: E731
    out = DiffusionSampling(steps=60, solver="midpoint").solve(velocity, noise, span=model.objective.span)
    assert float(out.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(out.std()) == pytest.approx(STD, abs=0.02)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", QUANTITIES)
def test_times_stay_where_the_velocity_is_finite_and_training_goes(path, prediction):
    model = make(path=path, prediction=prediction, weighting="velocity", cosine_weight=1.0, **SIZES)
    low, high = model.objective.span
    model.objective.config = ObjectiveConfig(path=path, prediction=prediction, time_sampling="uniform")
    times = model.objective.times(4000, torch.Generator())
    assert low <= float(times.min()) < 0.01
    assert 0.99 < float(times.max()) <= high + 1e-6
    losses = model.loss(make_batch(8), torch.Generator().manual_seed(0))
    losses["loss"].backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    drawn = model.sample(LABELS, steps=3)
    assert bool(drawn.codes.isfinite().all())
    assert model.cost(DiffusionSampling(2.0, 3, "heun")) == (12 if high == 1 else 10)


def test_the_network_is_asked_within_the_span_alone():
    model = make(prediction="noise", **SIZES).eval()
    seen = []
    model.dit.register_forward_pre_hook(lambda module, inputs: seen.append(float(inputs[1][0])))
    model.sample(LABELS, steps=4, solver="heun")
    assert min(seen) == pytest.approx(0.001)
    assert max(seen) == 1.0


def test_the_defaults_are_what_was_trained_before():
    """A description without these options loads, and its loss has the bits of the plain flow-matching loss."""
    model = make(label_dropout=0.0, **SIZES)
    described = model.describe()
    for name in asdict(ObjectiveConfig()):
        if name not in ("time_sampling", "cosine_weight"):
            del described["config"][name]
    again = DiffusionGenerator.from_description(described, "here")
    assert again.config == model.config
    batch, rng = make_batch(4), torch.Generator().manual_seed(5)
    torch.rand(4, generator=rng)  # the labels' dropout
    x0, t = torch.randn(4, 3, 4, 6, generator=rng), torch.randn(4, generator=rng).sigmoid()
    x1, column = SPEC.digits_to_codes(batch.content), t.view(4, 1, 1, 1)
    expected = torch.nn.functional.mse_loss(model.dit(column * x1 + (1 - column) * x0, t, batch.labels), x1 - x0)
    assert torch.equal(model.loss(batch, torch.Generator().manual_seed(5))["loss"], expected)


def test_coupled_noise_is_what_the_loss_is_taken_at():
    plain, paired = (make(coupling=coupling, label_dropout=0.0, **SIZES) for coupling in ("independent", "optimal"))
    batch, costs = make_batch(16), []
    for model in (plain, paired):
        x1, x0, t, *_ = model._drawn(batch, torch.Generator().manual_seed(0))
        costs.append(float((x1 - x0).square().sum()))
        seen = (x0.flatten(1).sort(dim=0).values, t)
    x1, x0, t, *_ = plain._drawn(batch, torch.Generator().manual_seed(0))
    assert torch.equal(seen[0], x0.flatten(1).sort(dim=0).values)  # the same noise,
    assert torch.equal(seen[1], t)  # times by place,
    assert costs[1] < costs[0]  # in another order
    again = make(coupling="optimal", label_dropout=0.0, **SIZES)
    rngs = (torch.Generator().manual_seed(1) for _ in range(2))
    assert torch.equal(*(one.loss(batch, rng)["loss"] for one, rng in zip((paired, again), rngs, strict=True)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "straight"}, "path='straight': expected one of linear, cosine, vp, ddpm"),
        ({"prediction": "x"}, "prediction='x': expected one of velocity, noise, data, score"),
        ({"weighting": "snr"}, "weighting='snr': expected one of none, velocity, min_snr"),
        ({"weighting": "min_snr", "min_snr_gamma": 0.0}, "min_snr_gamma=0.0: expected a positive number"),
        ({"min_snr_gamma": 3.0}, "min_snr_gamma=3.0: expected weighting = 'min_snr' beside it, not 'none'"),
        ({"cosine_weight": -1.0}, "cosine_weight=-1.0: expected a number of at least 0"),
        ({"cosine_weight": math.nan}, "cosine_weight=nan: expected a number of at least 0"),
        ({"time_mean": math.inf}, "time_mean=inf: expected a finite number"),
        ({"time_std": 0.0}, "time_std=0.0: expected a positive number"),
        ({"time_sampling": "mode", "time_scale": 1.8}, r"time_scale=1.8: expected -1 to 1.7519"),
        ({"time_scale": 1.0}, "time_scale=1.0: expected time_sampling = 'mode' beside it, not 'lognorm'"),
        ({"time_sampling": "uniform", "time_mean": 1.0}, "time_mean=1.0: expected time_sampling = 'lognorm' beside it"),
        ({"time_sampling": "cosine", "time_std": 2.0}, "time_std=2.0: expected time_sampling = 'lognorm' beside it"),
        ({"time_shift": -1.0}, "time_shift=-1.0: expected a number of at least 0"),
        ({"time_shift_base": 0}, "time_shift_base=0, time_shift=0.0: expected a base of at least 1"),
        ({"time_shift_base": 64, "time_shift": 0.5}, "time_shift_base=64, time_shift=0.5: .*one of the two"),
        ({"coupling": "sinkhorn"}, "coupling='sinkhorn': expected one of independent, optimal, optimal_in_class"),
    ],
)
def test_bad_objectives_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**options)
    finite = all(not isinstance(value, float) or math.isfinite(value) for value in options.values())
    with pytest.raises(InputError, match=message if finite else "expected a finite number"):
        build(DiTConfig, {**SIZES, **options}, "file.toml")


@pytest.mark.parametrize(
    ("law", "options"),
    [("lognorm", {"mean": -0.7, "std": 0.4}), ("mode", {"scale": 0.5}), ("cosine", {}), ("uniform", {})],
)
def test_training_times_are_of_the_configs_law_and_shift(law, options):
    config = ObjectiveConfig(
        time_sampling=law, time_shift=0.3, **{f"time_{name}": value for name, value in options.items()}
    )
    expected = draw_times(law, 50, torch.Generator().manual_seed(0), **options)
    times = Objective(config, 24).times(50, torch.Generator().manual_seed(0))
    assert torch.equal(times, shift_times(expected, 0.3))


def test_noise_is_exchanged_within_the_true_class_also_of_dropped_labels():
    plain, paired = (make(coupling=name, label_dropout=0.9, **SIZES) for name in ("independent", "optimal_in_class"))
    batch = make_batch(24)
    (x1, x0, *_), (_, found, _, told, *_) = (
        model._drawn(batch, torch.Generator().manual_seed(0)) for model in (plain, paired)
    )
    assert bool((told == 3).any())
    assert torch.equal(found, coupled(x0, x1, batch.labels, "optimal_in_class"))
    assert not torch.equal(found, coupled(x0, x1, told, "optimal_in_class"))


def test_the_shift_by_resolution_takes_the_generators_size():
    model = make(time_shift_base=18, **SIZES)  # 3 * 4 * 6 = 72 numbers
    assert model.objective.shift == pytest.approx(0.5)
    plain = make(**SIZES).objective.times(100, torch.Generator().manual_seed(0))
    shifted = model.objective.times(100, torch.Generator().manual_seed(0))
    assert torch.allclose(shifted, 0.5 * plain / (1 - 0.5 * plain))
