"""Adversarial losses against the official ones (golden vectors), identities, and who receives which gradient."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ifsq.tokenizer.adversarial import (
    AdversarialConfig,
    Adversary,
    LeCAM,
    balance,
    discriminator_loss,
    frozen_logits,
    generator_loss,
    r1_penalty,
)
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.losses import LossConfig, tokenizer_loss
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
SMALL = {"layers": 2, "width": 8, "start": 10}


def part(file, prefix):
    return {key[len(prefix) :]: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}  # noqa: SIM118


@pytest.mark.parametrize("loss", ["l1", "l2"])
@pytest.mark.parametrize("step", [0, 10])
def test_official_total_weight_and_discriminator_loss(golden, loss, step):
    file = golden("losses_discriminator")
    model = Tokenizer(TokenizerConfig(ConvConfig(width=32, multipliers=(1, 1), blocks=1)))
    model.load_state_dict({k: v for k, v in part(file, "full/model_sd/").items() if "running" not in k})
    adversary = Adversary(AdversarialConfig(**SMALL))
    adversary.discriminator.load_state_dict(part(file, "full/disc_sd/"))
    images, want = file.get_tensor("full/x"), part(file, f"full/{loss}/step{step}/")
    made = model(images)
    recon = made.images
    torch.testing.assert_close(recon, file.get_tensor("full/recon"), **CLOSE)
    weights = LossConfig(l1=float(loss == "l1"), l2=float(loss == "l2"))
    out = tokenizer_loss(images, made, model.decoder, weights, {}, adversary, step)
    torch.testing.assert_close(out[loss].reshape(1), want["g_log/nll_loss"], **CLOSE)
    torch.testing.assert_close(out["loss"].reshape(1), want["g_total"], **CLOSE)
    if step:
        torch.testing.assert_close(out["adversarial_weight"].reshape(1), want["g_log/d_weight"], **CLOSE)
        torch.testing.assert_close(out["adversarial"].reshape(1), want["g_log/g_loss"], **CLOSE)
    else:
        assert not want["g_log/d_weight"].any()
        assert "adversarial" not in out
    seen = adversary(images, recon, step)
    torch.testing.assert_close(seen["discriminator"].reshape(1), want["d_total"], **CLOSE)
    if step:
        torch.testing.assert_close(seen["logits_real"].reshape(1), want["d_log/logits_real"], **CLOSE)
        torch.testing.assert_close(seen["logits_fake"].reshape(1), want["d_log/logits_fake"], **CLOSE)


def scalar(value):
    return torch.tensor(value).reshape(1, 1, 1, 1)


def test_losses_by_hand():
    real, fake = scalar(0.25), scalar(-3.0)
    assert discriminator_loss(real, fake, "hinge").item() == pytest.approx(0.5 * 0.75)
    cross = 0.5 * (math.log1p(math.exp(-0.25)) + math.log1p(math.exp(-3)))
    for kind in ("vanilla", "non-saturating"):
        assert discriminator_loss(real, fake, kind).item() == pytest.approx(cross)
    assert generator_loss(fake, "hinge").item() == generator_loss(fake, "vanilla").item() == 3
    assert generator_loss(fake, "non-saturating").item() == pytest.approx(math.log1p(math.exp(3)))


@pytest.mark.parametrize("side", [discriminator_loss, generator_loss])
def test_unknown_kind_is_named(side):
    with pytest.raises(Exception, match="wgan"):
        side(*[scalar(0.0)] * (2 if side is discriminator_loss else 1), "wgan")


def test_vanilla_is_binary_cross_entropy():
    torch.manual_seed(0)
    real, fake = torch.randn(2, 3, 1, 2, 2)
    logits, labels = torch.cat([real, fake]), torch.cat([torch.ones_like(real), torch.zeros_like(fake)])
    torch.testing.assert_close(
        discriminator_loss(real, fake, "vanilla"), F.binary_cross_entropy_with_logits(logits, labels)
    )


def game(**options):
    """A one-layer tokenizer's last convolution and everything behind it."""
    torch.manual_seed(1)
    adversary = Adversary(AdversarialConfig(**{**SMALL, "start": 0, **options}))
    last, images = nn.Conv2d(3, 3, 3, padding=1), torch.rand(4, 3, 16, 16) * 2 - 1
    return adversary, last, images, last(images)


def small_tokenizer(patch=2, channels=3):
    torch.manual_seed(0)
    conv = ConvConfig(width=8, multipliers=(1, 2), blocks=1, patch=patch, groups=4, in_channels=channels)
    return Tokenizer(TokenizerConfig(conv, QuantizerConfig(kind="kl", kl_weight=1e-3)))


class Distance(nn.Module):
    """Stands for LPIPS: something perceptual enough."""

    def forward(self, a, b):
        return (a.roll(1, -1) - b).abs().square().mean(dim=(1, 2, 3), keepdim=True)


@pytest.mark.parametrize(("patch", "channels"), [(1, 3), (2, 3), (2, 1), (1, 5)])
def test_the_loss_is_the_usual_one_walked_through_the_whole_graph(patch, channels):
    """The second implementation: both losses in one graph, its ratio by two walks to the last weights."""
    model, images = small_tokenizer(patch, channels), torch.rand(2, channels, 32, 32) * 2 - 1
    adversary = Adversary(AdversarialConfig(**{**SMALL, "start": 0}, weight=0.7), channels)
    weights, lpips = LossConfig(l1=1.0, l2=0.5, lpips=0.3), Distance()
    torch.manual_seed(5)
    out = tokenizer_loss(images, model(images), model.decoder, weights, {"lpips": lpips}, adversary, 0)
    out["loss"].backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    torch.manual_seed(5)
    made = model(images)
    error = made.images - images
    nll = error.abs().mean() + 0.5 * error.square().mean() + 0.3 * lpips(made.images, images).mean()
    adversarial = -adversary.discriminator(made.images).mean()
    last = model.decoder.conv_out.weight
    wanted = torch.autograd.grad(nll, last, retain_graph=True)[0].norm()
    given = torch.autograd.grad(adversarial, last, retain_graph=True)[0].norm()
    ratio = (wanted / (given + 1e-6)).item()
    total = nll + 0.7 * ratio * adversarial + made.losses["kl"]
    total.backward()
    torch.testing.assert_close(out["adversarial_weight"].item(), 0.7 * ratio, atol=0, rtol=1e-4)
    torch.testing.assert_close(out["loss"], total, atol=1e-6, rtol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-3, msg=name)


def test_balance_has_a_floor_and_a_ceiling():
    one, nothing = torch.ones(4), torch.zeros(4)
    assert balance(one, nothing) == 1e4
    assert balance(one, nothing, ceiling=3.0) == 3
    assert balance(nothing, one) == 0
    assert balance(one, 2 * one).item() == pytest.approx(0.5)


def test_the_tokenizers_half_leaves_the_discriminator_alone():
    model, images = small_tokenizer(), torch.rand(2, 3, 32, 32) * 2 - 1
    adversary = Adversary(AdversarialConfig(**{**SMALL, "start": 0}))
    before = {name: value.clone() for name, value in adversary.state_dict().items()}
    tokenizer_loss(images, model(images), model.decoder, LossConfig(), {}, adversary, 0)["loss"].backward()
    assert model.decoder.conv_out.weight.grad.any()
    assert all(p.grad is None and p.requires_grad for p in adversary.parameters())
    assert all(torch.equal(value, before[name]) for name, value in adversary.state_dict().items())


def test_frozen_logits_are_the_discriminators():
    adversary, _, images, _ = game()
    ours, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    seen = frozen_logits(adversary.discriminator, ours)
    plain = adversary.discriminator(theirs)
    assert torch.equal(seen, plain)
    seen.square().sum().backward()
    plain.square().sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


def test_discriminator_half_leaves_the_tokenizer_alone():
    adversary, last, images, recon = game(norm="group", r1=1.0, lecam=1.0)
    adversary(images, recon, 0)["discriminator"].backward()
    assert last.weight.grad is None
    assert images.grad is None
    assert not images.requires_grad
    assert all(p.grad is not None for p in adversary.parameters())


@pytest.mark.parametrize("kind", ["hinge", "vanilla", "non-saturating"])
def test_discriminator_learns_to_tell(kind):
    adversary, _, images, _ = game(kind=kind, norm="group", lecam=0.01, r1=0.01)
    fake = images.roll(1, 0).flip(1) * 0.3
    optimizer = torch.optim.Adam(adversary.parameters(), lr=2e-3, betas=(0.5, 0.9))
    for _ in range(25):
        optimizer.zero_grad()
        seen = adversary(images, fake, 0)
        seen["discriminator"].backward()
        optimizer.step()
    assert seen["logits_real"] > seen["logits_fake"] + 0.2


def test_before_start_and_without_weight_nothing_runs():
    model, images = small_tokenizer(), torch.rand(2, 3, 32, 32) * 2 - 1
    late = Adversary(AdversarialConfig(**{**SMALL, "start": 3, "layers": 9}))  # would refuse images so small
    weightless = Adversary(AdversarialConfig(**SMALL, weight=0.0))
    for adversary, step in ((late, 2), (weightless, 10), (None, 0)):
        torch.manual_seed(1)
        out = tokenizer_loss(images, model(images), model.decoder, LossConfig(), {}, adversary, step)
        assert "adversarial" not in out
        assert out["loss"].item() == pytest.approx((out["l1"] + out["l2"] + out["kl"]).item())
    assert late(images, images, 2)["discriminator"] == 0
    assert not late.config.started(2)
    assert late.config.started(3)
    with pytest.raises(ValueError, match="layers=9"):
        late(images, images, 3)
    assert weightless(images, images.flip(0) * 0.5, 10)["discriminator"] > 0


def test_r1_of_a_linear_discriminator_is_its_squared_weight_norm():
    torch.manual_seed(0)
    linear = nn.Conv2d(3, 1, 8).double()
    images = torch.randn(5, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    penalty = r1_penalty(images, linear(images))
    torch.testing.assert_close(penalty.double(), linear.weight.square().sum(), atol=1e-5, rtol=1e-5)
    penalty.backward()
    torch.testing.assert_close(linear.weight.grad, 2 * linear.weight, atol=1e-5, rtol=1e-5)


def test_r1_of_a_discriminator_is_that_of_its_images_one_by_one():
    adversary, _, images, recon = game(norm="group", r1=3.0)
    slopes = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda x: adversary.discriminator(x[None]).sum(), image)
            for image in images
        ]
    )
    out = adversary(images, recon, 0)
    expected = slopes.square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(out["r1"], expected, atol=1e-8, rtol=1e-4)
    plain = discriminator_loss(adversary.discriminator(images), adversary.discriminator(recon), "hinge")
    torch.testing.assert_close(out["discriminator"], plain + 1.5 * expected)


def test_lecam_by_hand():
    lecam = LeCAM(decay=0.5).eval()
    assert lecam(scalar(2.0), scalar(-1.0)) == 0  # no average yet
    lecam.train()
    # Averages are the first batch: real 2, fake -1; (2 + 1)^2 + (2 + 1)^2.
    assert lecam(scalar(2.0), scalar(-1.0)).item() == pytest.approx(18)
    # Weights .25 and .5 of .75: real (2 + 2 * 5) / 3 = 4, fake (-1 + 2 * 0.5) / 3 = 0.
    assert lecam(scalar(5.0), scalar(0.5)).item() == pytest.approx(5**2 + 3.5**2)
    assert lecam.mass == 0.75
    lecam.eval()
    assert lecam(scalar(-1.0), scalar(6.0)) == 0  # each already beyond the other's average
    real = torch.tensor([1.0, -3.0]).reshape(1, 1, 1, 2)
    assert lecam(real, torch.full_like(real, 3.0)).item() == pytest.approx(0.5 + 1)
    assert lecam.mass == 0.75


def test_lecam_state_is_saved_and_its_gradient_ignores_the_averages():
    lecam, again = LeCAM(), LeCAM()
    real, fake = scalar(2.0).requires_grad_(), scalar(-1.0).requires_grad_()
    lecam(real, fake).backward()
    assert real.grad.item() == pytest.approx(6, rel=1e-5)
    assert fake.grad.item() == pytest.approx(-6, rel=1e-5)
    again.load_state_dict(lecam.state_dict())
    assert again.eval()(real, fake) == lecam.eval()(real, fake) != 0


def test_lecam_enters_with_its_weight():
    adversary, _, images, recon = game(lecam=2.0)
    out = adversary(images, recon, 0)
    plain = discriminator_loss(adversary.discriminator(images), adversary.discriminator(recon), "hinge")
    torch.testing.assert_close(out["discriminator"], plain + 2 * out["lecam"])
    assert "lecam.real" in adversary.state_dict()


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight": -1.0},
        {"start": -1},
        {"r1": -0.5},
        {"r1": 1.0},
        {"lecam": float("nan")},
        {"rate": 0.0},
        {"layers": 0},
        {"width": 0},
    ],
    ids=str,
)
def test_bad_config_names_the_value(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        AdversarialConfig(**wrong)


def test_decay_of_lecam_is_checked():
    with pytest.raises(ValueError, match=r"decay=1\.0"):
        LeCAM(decay=1.0)
