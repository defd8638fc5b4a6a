"""The patch discriminator against the official one (golden vectors), its shapes, and its start."""

import json

import pytest
import torch

from ifsq.tokenizer.adversarial import discriminator_loss, generator_loss
from ifsq.tokenizer.discriminator import DiscriminatorConfig, PatchDiscriminator

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def part(file, prefix):
    return {key[len(prefix) :]: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}  # noqa: SIM118


@pytest.mark.parametrize("layers", [3, 4])
def test_official_logits_losses_and_gradient(golden, layers):
    file = golden("losses_discriminator")
    want = part(file, f"d{layers}/")
    model = PatchDiscriminator(DiscriminatorConfig(layers=layers, width=8))
    model.load_state_dict(part(file, f"d{layers}/sd/"))
    real, fake = model(want["x_real"]), model(want["x_fake"])
    torch.testing.assert_close(real, want["logits_real_train"], **CLOSE)
    torch.testing.assert_close(fake, want["logits_fake_train"], **CLOSE)
    after = part(file, f"d{layers}/sd_after/")
    assert after
    for name, value in after.items():
        torch.testing.assert_close(model.get_buffer(name), value, **CLOSE)
    for kind in ("hinge", "vanilla"):
        torch.testing.assert_close(discriminator_loss(real, fake, kind).reshape(1), want[kind], **CLOSE)
        torch.testing.assert_close(generator_loss(fake, kind).reshape(1), want["gen_loss"], **CLOSE)
    discriminator_loss(real, fake, "hinge").backward()
    torch.testing.assert_close(model.main[0].weight.grad, want["grad_hinge/main.0.weight"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.eval()(want["x_real"]), want["logits_real_eval"], **CLOSE)


@pytest.mark.parametrize("layers", [3, 4])
def test_official_keys_and_shapes_at_full_size(golden_folder, layers):
    official = json.loads((golden_folder / "state_dict_keys.json").read_text())[f"discriminator_n{layers}"]
    with torch.device("meta"):
        model = PatchDiscriminator(DiscriminatorConfig(layers=layers))
    assert {name: [list(value.shape), str(value.dtype)[6:]] for name, value in model.state_dict().items()} == official


def test_official_parameter_count():
    with torch.device("meta"):
        assert sum(p.numel() for p in PatchDiscriminator(DiscriminatorConfig()).parameters()) == 6_960_961


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_smallest_image_is_one_logit_and_below_it_is_refused(norm, layers):
    config = DiscriminatorConfig(layers=layers, width=3, norm=norm)
    model, side = PatchDiscriminator(config), config.smallest
    assert model(torch.zeros(2, 3, side, side)).shape == (2, 1, 1, 1)
    assert model(torch.zeros(2, 3, side, 2 * side)).shape == (2, 1, 1, 4)
    with pytest.raises(ValueError, match=f"{side - 1} x {side} pixels.*at least {side}"):
        model(torch.zeros(2, 3, side - 1, side))


@pytest.mark.parametrize("channels", [1, 4])
def test_channels_are_those_of_the_images(channels):
    model = PatchDiscriminator(DiscriminatorConfig(layers=1, width=3, channels=channels))
    assert model(torch.zeros(2, channels, 6, 6)).shape == (2, 1, 1, 1)
    with pytest.raises(ValueError, match="channels=0: expected at least 1"):
        DiscriminatorConfig(channels=0)


def test_start():
    torch.manual_seed(0)
    for norm in ("batch", "group"):
        model = PatchDiscriminator(DiscriminatorConfig(layers=2, width=32, norm=norm))
        assert 0.019 < model.main[2].weight.std() < 0.021
        assert abs(model.main[3].weight.mean() - 1) < 0.02
        assert 0.01 < model.main[3].weight.std() < 0.03
        assert not model.main[3].bias.any()


def test_group_norm_judges_each_image_alone():
    torch.manual_seed(0)
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    for norm, alone in (("group", True), ("batch", False)):
        model = PatchDiscriminator(DiscriminatorConfig(layers=2, width=8, norm=norm))
        assert torch.allclose(model(images)[:2], model(images[:2]), atol=1e-5) == alone


@pytest.mark.parametrize("name", ["layers", "width"])
def test_bad_config_names_the_value(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        DiscriminatorConfig(**{name: 0})


def test_unknown_norm_is_named():
    with pytest.raises(Exception, match="layer"):  # the shape checks of the tests refuse it before the config does
        DiscriminatorConfig(norm="layer")
