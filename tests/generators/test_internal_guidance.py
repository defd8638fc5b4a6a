"""A second output layer behind early blocks: what trains it, and guidance away from it at no further evaluation."""

import pytest
import torch
from torch import nn

from ifsq.codes.spec import CodeSpec
from ifsq.generators import Generator
from ifsq.generators.diffusion import DiffusionGenerator, DiffusionSampling, DiTConfig

SPEC = CodeSpec((5, 9), (1, 1), "little", "equal", (4, 2))
LABELS = torch.tensor([0, 2, 1])


def make(**options):
    torch.manual_seed(0)
    model = DiffusionGenerator(DiTConfig(3, 16, 2, patch=2, **options), SPEC, num_classes=3)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_without_one_the_network_is_the_same():
    torch.manual_seed(0)
    plain = DiffusionGenerator(DiTConfig(3, 16, 2, patch=2), SPEC, num_classes=3)
    torch.manual_seed(0)
    model = DiffusionGenerator(DiTConfig(3, 16, 2, patch=2, internal_depth=2), SPEC, num_classes=3)
    assert not any("internal" in name for name in plain.state_dict())
    added = set(model.state_dict()) - set(plain.state_dict())
    assert added
    assert all(name.startswith("dit.internal_layer.") for name in added)
    assert not bool(model.dit.internal_layer.linear.weight.any())


def test_both_layers_are_trained_on_one_pass():
    model = make(internal_depth=2, internal_weight=0.3)
    x1, x0 = torch.randn(2, 3, 2, 4, 2)
    t = torch.tensor([0.1, 0.5, 0.9])
    losses = model.flow_loss(x1, x0, t, LABELS)
    x, target = (1 - t)[:, None, None, None] * x0 + t[:, None, None, None] * x1, x1 - x0
    c = model.dit.condition(t, LABELS)
    final = (model.dit(x, t, LABELS) - target).square().mean()
    early = model.dit._unpatch(model.dit.internal_layer(model.dit.states(x, c, depth=2), c))
    early = (early - target).square().mean()
    assert torch.allclose(losses["mse"], final, rtol=1e-5)
    assert torch.allclose(losses["internal"], early, rtol=1e-5)
    assert torch.allclose(losses["loss"], final + 0.3 * early, rtol=1e-5)
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert bool(model.dit.internal_layer.linear.weight.grad.any())
    ends = [block.mlp.parameters() for block in model.dit.blocks[1:]]
    before, after = (torch.autograd.grad(early, list(one), retain_graph=True, allow_unused=True) for one in ends)
    assert all(gradient is not None for gradient in before)
    assert all(gradient is None for gradient in after)


def test_sampling_leads_away_from_the_early_layer():
    model = make(internal_depth=1)
    x, t = torch.randn(3, 2, 4, 2), torch.tensor(0.5)
    null = torch.full_like(LABELS, 3)

    def led(labels):
        final, early = model.dit.forward_both(x, t.expand(3), labels)
        assert torch.equal(final, model.dit(x, t.expand(3), labels))
        return early + 1.4 * (final - early)

    inside = DiffusionSampling(internal_guidance=1.4)
    assert torch.allclose(model.velocity(x, t, LABELS, inside), led(LABELS), atol=1e-5)
    both = DiffusionSampling(2.0, internal_guidance=1.4)
    expected = led(null) + 2 * (led(LABELS) - led(null))
    assert torch.allclose(model.velocity(x, t, LABELS, both), expected, rtol=1e-4, atol=1e-4)
    early = DiffusionSampling(2.0, internal_guidance=1.4, internal_interval=(0.0, 0.4))
    assert torch.equal(model.velocity(x, t, LABELS, early), model.velocity(x, t, LABELS, DiffusionSampling(2.0)))
    assert model.cost(both) == model.cost(DiffusionSampling(2.0))
    assert both.sampler.endswith("internal_guidance 1.4")
    usual = model.sample(LABELS, steps=3, snap="none").codes
    assert torch.equal(model.sample(LABELS, steps=3, snap="none", internal_guidance=1.0).codes, usual)
    assert not torch.allclose(model.sample(LABELS, steps=3, snap="none", internal_guidance=1.4).codes, usual)


def test_a_learned_variance_stays_the_last_layers():
    model = make(internal_depth=1, path="ddpm", prediction="noise", learned_variance=True)
    x, t = torch.randn(3, 2, 4, 2), model.path.time(torch.tensor(400))
    final, early = model.dit.forward_both(x, torch.full((3,), 400.0), LABELS)
    got = model.guided(x, t, LABELS, DiffusionSampling(internal_guidance=1.4))
    assert torch.allclose(got[:, :2], (early + 1.4 * (final - early))[:, :2], atol=1e-5)
    assert torch.equal(got[:, 2:], final[:, 2:])


def test_it_is_saved_with_the_model(tmp_path):
    model = make(internal_depth=2)
    model.save_pretrained(tmp_path / "flow")
    again = Generator.from_pretrained(tmp_path / "flow")
    options = {"steps": 2, "internal_guidance": 1.5, "snap": "none"}
    assert torch.equal(again.sample(LABELS, **options).codes, model.sample(LABELS, **options).codes)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({}, {"internal_guidance": 1.4}, "internal_guidance=1.4: expected a generator with internal_depth"),
        ({"internal_depth": 1}, {"internal_guidance": -1.0}, "internal_guidance=-1.0: expected a number of at least 0"),
        ({"internal_depth": 1}, {"internal_interval": (0.0, 0.5)}, "internal_interval=.*: expected internal_guidance"),
        (
            {"internal_depth": 1},
            {"internal_guidance": 1.4, "internal_interval": (0.5, 0.2)},
            "internal_interval=.*expected two times",
        ),
    ],
)
def test_bad_options_of_internal_guidance_are_refused(config, options, message):
    model = make(**config)
    with pytest.raises(ValueError, match=message):
        model.sample(LABELS, **options)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"internal_depth": 0}, "internal_depth=0: expected 1 to 2, below the depth"),
        ({"internal_depth": 3}, "internal_depth=3: expected 1 to 2, below the depth"),
        ({"internal_depth": 1, "internal_weight": 0.0}, "internal_weight=0.0: expected a positive number"),
        ({"internal_weight": 0.3}, "internal_weight=0.3: expected internal_depth beside it"),
    ],
)
def test_bad_internal_layers_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        make(**config)
