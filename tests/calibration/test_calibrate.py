"""Calibration on channels whose distribution is known, and its promises: deterministic, nothing else moves."""

import json
import math

import pytest
import torch
from torch import nn

import ifsq
from ifsq.calibration.lloyd import lloyd_max

N = 100_000
KINDS = ("narrow", "bimodal", "skewed", "dead", "wide")


def draw(n=N, seed=0):
    """Latents (n, 5), a kind a channel; ``dead`` ends in the middle cell of iFSQ with 17 equal cells."""
    rng = torch.Generator().manual_seed(seed)
    a, b, c, d, e, side = (torch.randn(n, generator=rng) for _ in range(6))
    return torch.stack([0.3 * a, 0.2 * b + side.sign(), (0.7 * c).exp(), 0.01 * d, 8 * e], dim=1)


@pytest.fixture(scope="module")
def latents():
    return draw()


class Model(nn.Module):
    """Two bottlenecks, one behind a projection and a rotation, a dropout, and a part that is kept in evaluation."""

    def __init__(self, **options):
        super().__init__()
        self.inner = ifsq.FSQ([9, 9], dim=5, orthogonal_rotation=True, **options)
        self.drop = nn.Dropout(0.5)
        self.outer = ifsq.FSQ([9] * 5, **options)
        self.frozen = nn.BatchNorm1d(5).eval()

    def forward(self, x, scale=1.0):
        return self.outer(self.drop(self.inner(self.frozen(x)).codes) * scale)


def test_quantile_with_equal_cells_fills_every_channel(latents):
    q = ifsq.FSQ([17] * 5, cells="equal")
    report = ifsq.calibrate(q, [latents[: N // 2], latents[N // 2 :]])
    assert report.fitted
    assert report.seen == report.samples == N
    for channel in report.channels:
        assert channel.after.bits >= 0.99 * math.log2(17)
    before = {kind: channel.before for kind, channel in zip(KINDS, report.channels, strict=True)}
    assert [kind for kind in KINDS if before[kind].dead] == ["dead"]
    assert [kind for kind in KINDS if before[kind].saturated] == ["wide"]
    assert not any(channel.after.dead or channel.after.saturated for channel in report.channels)
    assert report.capacity == pytest.approx(5 * math.log2(17))
    assert report.after.bits == pytest.approx(sum(channel.after.bits for channel in report.channels))


def test_the_report_measures_what_the_quantizer_gives(latents):
    q = ifsq.FSQ([17] * 5, bound="tanh")
    before = q(latents)
    report = ifsq.calibrate(q, latents, cells="equal")
    after = q(latents)
    assert (report.before.bound, report.before.cells) == ("tanh", "paper")
    assert (report.after.bound, report.after.cells) == ("quantile", "equal")
    assert (q.bound.name, q.cells, q.original) == ("quantile", "equal", False)
    for c, channel in enumerate(report.channels):
        z = latents[:, c].double()
        assert channel.mean == pytest.approx(z.mean().item(), abs=1e-6)
        assert channel.scale == pytest.approx(z.std(correction=0).item(), rel=1e-6)
        for use, out in ((channel.before, before), (channel.after, after)):
            digits = out.digits[:, c]
            shares = torch.bincount(digits, minlength=17) / N
            assert use.bits == pytest.approx(-torch.xlogy(shares, shares).sum().item() / math.log(2), abs=1e-4)
            assert use.ends == pytest.approx((shares[0] + shares[-1]).item(), abs=1e-6)
            inside = sum(z[digits == d].var(correction=0) * (digits == d).sum() for d in digits.unique())
            assert use.distortion == pytest.approx((inside / N / z.var(correction=0)).item(), rel=1e-6)
            assert channel.least <= use.distortion <= use.inverted + 1e-9
        assert channel.least <= lloyd_max(latents[:, c], 17)[1] / z.var(correction=0).item() + 1e-9


def test_slope_is_the_mean_derivative_of_the_bound(latents):
    report = ifsq.calibrate(ifsq.FSQ([17] * 5), latents, bound=None)
    z = latents.double().requires_grad_()
    (2 * torch.sigmoid(1.6 * z) - 1).sum().backward()
    for c, channel in enumerate(report.channels):
        assert channel.before.slope == pytest.approx(z.grad[:, c].mean().item(), rel=1e-4)


def test_inverting_the_codes_of_a_clamp_is_uniform_quantization():
    z = torch.linspace(-1, 1, 20001)[:, None]
    report = ifsq.calibrate(ifsq.FSQ([4], bound="clamp", cells="equal"), z, bound=None)
    (channel,) = report.channels
    assert channel.before.inverted == pytest.approx(1 / 16, rel=1e-3)
    assert channel.before.distortion == pytest.approx(1 / 16, rel=1e-3)
    assert channel.least == pytest.approx(1 / 16, rel=1e-3)


def test_measuring_changes_nothing(latents):
    q = ifsq.FSQ([17] * 5, bound="standardized")
    state = {name: tensor.clone() for name, tensor in q.state_dict().items()}
    dry = ifsq.calibrate(q, latents, fit=False)
    assert all(torch.equal(tensor, state[name]) for name, tensor in q.state_dict().items())
    assert not dry.fitted
    assert "Nothing was changed." in dry.recommendation
    assert "fine-tune" not in dry.recommendation
    wet = ifsq.calibrate(q, latents)
    assert wet.after == dry.after
    assert wet.channels == dry.channels
    assert "fine-tune the decoder" in wet.recommendation
    torch.testing.assert_close(q.bound.mean, latents.mean(0), atol=1e-4, rtol=1e-4)
    kept = ifsq.calibrate(ifsq.FSQ([17] * 5), latents, bound=None)
    assert kept.before == kept.after
    assert not kept.fitted


@pytest.mark.parametrize("kind", ["standardized", "quantile", "learned"])
def test_a_fitted_bound_is_fitted_in_place(latents, kind):
    q = ifsq.FSQ([17] * 5, bound=kind, cells="equal")
    bound, parameters = q.bound, list(q.parameters())
    report = ifsq.calibrate(q, latents)
    assert report.after.bound == kind
    assert q.bound is bound
    assert all(p is old for p, old in zip(q.parameters(), parameters, strict=True))
    assert report.after.bits > report.before.bits + 1
    replaced = ifsq.FSQ([17] * 5, cells="equal")
    assert ifsq.calibrate(replaced, latents, bound=kind).after == report.after
    torch.testing.assert_close(replaced(latents).codes, q(latents).codes)


def test_training_flags_gradients_and_statistics_stay(latents):
    model = Model(bound="quantile").train()
    model.frozen.eval()
    flags = [part.training for part in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.random.get_rng_state()
    reports = ifsq.calibrate(model, [latents[:1000], (latents[1000:2000], 2.0), {"x": latents[:10], "scale": 1.0}])
    assert [part.training for part in model.modules()] == flags
    assert torch.equal(torch.random.get_rng_state(), random)
    assert {name for name, t in model.state_dict().items() if not torch.equal(t, state[name])} == {
        "inner.bound.knots",
        "outer.bound.knots",
    }
    assert list(reports) == ["inner", "outer"]
    assert all(report.seen == 2010 for report in reports.values())
    assert not any(part._forward_pre_hooks for part in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_latents_are_read_behind_projection_and_rotation(latents):
    model = Model()
    inner = ifsq.calibrate(model, latents[:4000], fit=False)["inner"]
    with torch.no_grad():
        reached = model.inner.project_in(model.frozen(latents[:4000])) @ model.inner.orthogonal_rot
    for c, channel in enumerate(inner.channels):
        assert channel.mean == pytest.approx(reached[:, c].mean().item(), abs=1e-4)
        assert channel.scale == pytest.approx(reached[:, c].std().item(), rel=1e-3)


def test_images_sequences_and_codebooks():
    rng = torch.Generator().manual_seed(1)
    images = torch.randn(8, 4, 16, 16, generator=rng) * torch.tensor([0.1, 1, 2, 5.0]).view(4, 1, 1)
    rows = images.movedim(1, -1).flatten(0, -2)
    reports = [
        ifsq.calibrate(ifsq.FSQ([5, 9], num_codebooks=2, cells="equal"), images),
        ifsq.calibrate(ifsq.FSQ([5, 9], num_codebooks=2, cells="equal"), rows),
        ifsq.calibrate(ifsq.FSQ([5, 9, 5, 9], cells="equal", channel_axis=0), rows.t()),
    ]
    assert reports[0] == reports[1]
    assert reports[0].channels == reports[2].channels
    assert [channel.levels for channel in reports[0].channels] == [5, 9, 5, 9]
    assert all(channel.after.fraction > 0.99 for channel in reports[0].channels)


def test_the_sample_does_not_depend_on_the_cut_of_the_stream(latents):
    reports = [
        ifsq.calibrate(ifsq.FSQ([17] * 5), latents.split(size), max_samples=5000, fit=False) for size in (N, 1000, 777)
    ]
    assert reports[0].samples == 5000
    assert reports[0].seen == N
    assert reports[0] == reports[1] == reports[2]
    assert reports[0].channels[0].scale == pytest.approx(0.3, rel=0.05)


def test_half_precision_models_and_call():
    model = Model(bound="tanh", cells="equal").to(torch.bfloat16)
    x = draw(3000).to(torch.bfloat16)
    seen = []

    def call(batch):
        seen.append(batch.dtype)
        return model.outer(batch["latent"] if isinstance(batch, dict) else batch)

    with pytest.raises(ValueError, match=r"^0 latents reached inner: expected at least 512 for 9 levels$"):
        ifsq.calibrate(model, [x], call=call)
    assert model.outer.bound.name == "tanh"
    report = ifsq.calibrate(model.outer, [x], call=call)
    assert seen == [torch.bfloat16] * 2
    assert report.after.fraction > 0.98
    assert model.outer.bound.knots.dtype == torch.float32


def test_report_prints_and_serialises(latents):
    report = ifsq.calibrate(ifsq.FSQ([17] * 5), latents)
    text = str(report)
    assert max(map(len, text.splitlines())) <= 100
    assert "Dead before (one level holds more than 99.9%): channel 3" in text
    again = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert again["channels"][0]["after"]["bits"] == report.channels[0].after.bits
    assert again["recommendation"] == report.recommendation
    several = ifsq.calibrate(Model(), latents[:2000])
    assert str(several).count("bits a token:") == 2
    json.dumps(several.to_dict(), allow_nan=False)
    wide = ifsq.calibrate(ifsq.FSQ([5] * 40), torch.randn(600, 40), fit=False)
    assert "and 8 more channels" in str(wide)


@pytest.mark.parametrize(
    ("scale", "shape", "word"),
    [
        (1.0, "normal", "For even use fixed ifsq is enough"),
        (0.3, "normal", "For even use bound='standardized' is the simplest that fits"),
        (1.0, "bimodal", "For even use bound='quantile' is the simplest that fits"),
    ],
)
def test_recommendation_follows_the_numbers(scale, shape, word):
    z = torch.randn(50_000, 2, generator=torch.Generator().manual_seed(2))
    if shape == "bimodal":
        z = (z.abs() * 0.2 + 1) * z.sign()
    report = ifsq.calibrate(ifsq.FSQ([17] * 2, cells="equal"), z * scale)
    assert word in report.recommendation
    assert ("narrow (channel 0, 1)" in report.recommendation) == (scale < 1)
    assert ("several modes (channel 0, 1)" in report.recommendation) == (shape == "bimodal")
    assert "Even use is not least distortion" in report.recommendation


def test_paper_cells_are_reported_as_such(latents):
    report = ifsq.calibrate(ifsq.FSQ([17] * 5), latents)
    assert report.after.bits < report.equal.bits
    assert f"{report.equal.bits:.2f} with cells='equal'" in report.recommendation


def test_a_constant_channel():
    z = torch.cat([torch.full((1000, 1), 0.5), torch.randn(1000, 1)], dim=1)
    report = ifsq.calibrate(ifsq.FSQ([17, 17]), z)
    assert report.channels[0].after.dead
    assert "No bound revives a constant (channel 0)" in report.recommendation
    json.dumps(report.to_dict(), allow_nan=False)


ERRORS = [
    (lambda: ifsq.calibrate(nn.Linear(2, 2), [torch.zeros(1, 2)]), "no ifsq.FSQ in Linear: expected at least one"),
    (lambda: ifsq.calibrate(ifsq.FSQ([5]), []), "no batches: expected at least one"),
    (lambda: ifsq.calibrate(ifsq.FSQ([5]), [torch.zeros(9, 1)]), "9 latents reached FSQ: expected at least 512 for 5"),
    (lambda: ifsq.calibrate(ifsq.FSQ([257]), torch.zeros(2569, 1)), "2569 latents reached FSQ: expected at least 2570"),
    (lambda: ifsq.calibrate(ifsq.FSQ([5]), torch.full((600, 1), math.nan)), r"latent of shape \(600, 1\) holds nan"),
    (
        lambda: ifsq.calibrate(ifsq.FSQ([5], validate=False), torch.full((600, 1), math.inf)),
        "latents of FSQ hold inf: expected finite values",
    ),
    (lambda: ifsq.calibrate(ifsq.FSQ([5]), torch.zeros(600, 2)), r"latent of shape \(600, 2\): expected 1 channels"),
    (
        lambda: ifsq.calibrate(ifsq.FSQ([5]), torch.zeros(600, 1), bound="ifsq"),
        "bound='ifsq': expected None, 'auto' or",
    ),
    (lambda: ifsq.calibrate(ifsq.FSQ([5]), torch.zeros(600, 1), cells="odd"), "cells='odd': expected one of paper,"),
    (lambda: ifsq.calibrate(ifsq.FSQ([5]), torch.zeros(600, 1), max_samples=5), "max_samples=5: expected at least 512"),
    (
        lambda: ifsq.calibrate(ifsq.FSQ([8], bound="tanh"), torch.zeros(600, 1)),
        r"FSQ has levels=\[8\]: paper cells with bound='quantile' need odd levels; pass cells='equal' or 'symmetric'",
    ),
]


@pytest.mark.parametrize(("wrong", "message"), ERRORS, ids=[message for _, message in ERRORS])
def test_refuses(wrong, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        wrong()
    assert "\n" not in str(error.value)


def test_a_refusal_changes_nothing(latents):
    model = Model().train()
    with pytest.raises(ValueError, match="holds nan"):
        ifsq.calibrate(model, [latents[:1000], latents[:1000] * math.nan])
    assert model.training
    assert model.drop.training
    assert model.outer.bound.name == "ifsq"
    assert not model.outer._forward_pre_hooks


def test_even_levels_of_the_first_fsq(latents):
    q = ifsq.FSQ([8] * 5, bound="tanh")
    digits = q(latents).digits
    report = ifsq.calibrate(q, latents, bound=None)
    shares = torch.bincount(digits[:, 0], minlength=8) / N
    assert report.channels[0].before.top == pytest.approx(shares.max().item(), abs=1e-6)
    ifsq.calibrate(q, latents, cells="equal")
    assert all(torch.bincount(q(latents).digits[:, c]).min() > N / 9 for c in range(5))
