"""Guidance of the diffusion generator: its scale over the times, and a second generator in place of the null class."""

import math

import pytest
import torch
from torch import nn

from ifsq.codes.spec import CodeSpec
from ifsq.config import InputError
from ifsq.generators.conditioning import guidance_rise
from ifsq.generators.diffusion import DiffusionGenerator, DiffusionSampling, DiTConfig
from ifsq.store.weights import weights_digest

SPEC = CodeSpec((5, 9), (1, 1), "little", "equal", (4, 2))
LABELS = torch.tensor([0, 2, 1])
MEAN, STD = torch.tensor([0.2, -0.1]), torch.tensor([0.4, 0.6])


def make(seed, width=16, spec=SPEC, classes=3, **options):
    torch.manual_seed(seed)
    generator = DiffusionGenerator(DiTConfig(1, width, 2, patch=2, **options), spec, classes)
    for parameter in generator.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    generator.set_statistics(MEAN, STD)
    return generator.eval()


@pytest.fixture
def saved(tmp_path):
    make(1, width=8).save_pretrained(tmp_path / "weak")
    return str(tmp_path / "weak")


def test_the_scale_rises_over_the_guided_times():
    linear = DiffusionSampling(3.0, guidance_schedule="linear", guidance_interval=(0.2, 0.7))
    assert [linear.scale(t) for t in (0.1, 0.2, 0.45, 0.7, 0.8)] == pytest.approx([1, 1, 2, 3, 1])
    assert [linear.guides(t) for t in (0.1, 0.2, 0.45, 0.7, 0.8)] == [False, False, True, True, False]
    cosine = DiffusionSampling(3.0, guidance_schedule="power-cosine", guidance_power=2.0)
    assert cosine.scale(0.5) == pytest.approx(1 + (1 - math.cos(math.pi / 4)))
    usual = DiffusionSampling(3.0, guidance_schedule="power-cosine")
    assert usual.scale(0.5) == pytest.approx(1 + 2 * guidance_rise("power-cosine", 0.5, 2.75))
    assert DiffusionSampling(3.0).scale(0.0) == 3.0
    assert linear.sampler.endswith("guidance_interval (0.2, 0.7), guidance_schedule linear")


def test_a_scale_that_rises_costs_what_it_asks_for():
    model = make(0)
    sampling = DiffusionSampling(2.0, steps=4, guidance_schedule="linear")
    rows = []
    model.dit.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    model.sample(LABELS, sampling)
    assert rows == [3, 6, 6, 6]
    assert model.cost(sampling) == 7
    x, t = torch.randn(3, 2, 4, 2), torch.tensor(0.25)
    half = model.velocity(x, t, LABELS, DiffusionSampling(1.25))
    assert torch.allclose(model.velocity(x, t, LABELS, sampling), half, atol=1e-6)


def test_a_guide_stands_in_for_the_null_class(saved):
    model, weak = make(0), make(1, width=8)
    sampling = DiffusionSampling(2.5, steps=3, guide=saved, guidance_interval=(0.3, 1.0), snap="none")
    x, t = torch.randn(3, 2, 4, 2), torch.tensor(0.5)
    at = t.expand(3)
    expected = weak.dit(x, at, LABELS) + 2.5 * (model.dit(x, at, LABELS) - weak.dit(x, at, LABELS))
    assert torch.allclose(model.velocity(x, t, LABELS, sampling), expected, atol=1e-5)
    assert torch.equal(model.velocity(x, torch.tensor(0.1), LABELS, sampling), model.predict(x, at * 0.2, LABELS))
    assert model.cost(sampling) == 5
    drawn = model.sample(LABELS, sampling, seed=3)
    assert torch.equal(model.sample(LABELS, sampling, seed=3).codes, drawn.codes)
    assert set(model.state_dict()) == set(make(0).state_dict())
    itself = DiffusionSampling(2.5, steps=3, guide=saved, snap="none")
    assert torch.allclose(weak.sample(LABELS, itself).codes, weak.sample(LABELS, steps=3, snap="none").codes, atol=1e-5)


def test_cards_name_the_weights_of_the_guide(saved):
    model, weak = make(0), make(1, width=8)
    usual, guided = DiffusionSampling(2.0), DiffusionSampling(2.0, guide=saved)
    assert (model.guide_digest(usual), model.sampler(usual)) == (None, usual.sampler)
    assert model.guide_digest(guided) == weights_digest(weak)
    assert model.sampler(guided) == f"{guided.sampler}, the guide's weights {weights_digest(weak)[:12]}"


def test_a_guide_of_another_kind_of_codes_is_refused(saved, tmp_path):
    other = CodeSpec((5, 5), (1, 1), "little", "equal", (4, 2))
    for model, message in (
        (make(0, spec=other), "its codes: .*expected those of the generator"),
        (make(0, classes=4), "its classes: 3, expected those of the generator, 4"),
        (make(0, prediction="noise"), "its prediction: velocity, expected those of the generator, noise"),
        (make(0, path="cosine"), "its path: linear, expected those of the generator, cosine"),
    ):
        with pytest.raises(InputError, match=f"guide='.*weak': {message}"):
            model.sampling({"guide": saved})
    model = make(0)
    model.set_statistics(MEAN, STD + 1)
    with pytest.raises(InputError, match=r"guide='.*weak': its code_std: .*trained on the same codes"):
        model.sampling({"guide": saved})
    with pytest.raises(InputError, match="its code_std"):
        model.draw(LABELS, DiffusionSampling(2.0, guide=saved), 0, 0)
    fresh = DiffusionGenerator(DiTConfig(1, 16, 2, patch=2), SPEC, 3)
    fresh.check_sampling(DiffusionSampling(2.0, guide=saved))  # before training: statistics are not known yet
    with pytest.raises(InputError, match="nowhere"):
        model.sampling({"guide": str(tmp_path / "nowhere")})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_schedule": "cosine"}, "guidance_schedule='cosine': expected one of constant, linear, power-cosine"),
        ({"guidance_power": 2.0}, "guidance_power=2.0: expected guidance_schedule power-cosine beside it"),
        (
            {"guidance_schedule": "power-cosine", "guidance_power": 0.0},
            "guidance_power=0.0: expected a positive number",
        ),
        ({"guide_step": 5}, "guide_step=5: expected a guide beside it"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DiffusionSampling(2.0, **options)
