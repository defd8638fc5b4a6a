"""LPIPS against golden values from the same formula weights (relative 1e-5), and its promises to a training loop."""

import json

import pytest
import torch
from safetensors.torch import save_file

from ifsq.config import InputError
from ifsq.pretrained.lpips import HEADS, LPIPS, load_lpips
from ifsq.pretrained.weights import find_weights, read_weights


@pytest.fixture(scope="module")
def stored(golden):
    return golden("lpips_vgg")


@pytest.fixture(scope="module")
def backbone(stored, formula_weights):
    return formula_weights(json.loads(stored.metadata()["vgg_keys"]))


@pytest.fixture(scope="module")
def heads(stored):
    return {key.removeprefix("lin/"): stored.get_tensor(key) for key in stored.keys() if key.startswith("lin/")}  # noqa: SIM118


@pytest.fixture(scope="module")
def lpips(backbone, heads):
    return LPIPS(backbone, heads)


@pytest.fixture(scope="module")
def images(stored):
    return stored.get_tensor("in/a"), stored.get_tensor("in/b")


def test_golden(lpips, stored, images):
    for number, found in enumerate(lpips.layer_distances(*images)):
        torch.testing.assert_close(found, stored.get_tensor(f"out/layer{number}").flatten(), atol=0, rtol=1e-5)
    torch.testing.assert_close(lpips(*images), stored.get_tensor("out/lpips").flatten(), atol=0, rtol=1e-5)


def test_luminance_is_grey_rgb(lpips, images):
    a, b = (image.mean(dim=1, keepdim=True) for image in images)
    assert torch.equal(lpips(a, b), lpips(*(image.repeat(1, 3, 1, 1) for image in (a, b))))
    assert (lpips(a, b) > 0).all()
    with pytest.raises(ValueError, match="images of 2 channels: LPIPS expects 3, or 1 for luminance"):
        lpips(*(image[:, :2] for image in images))


def test_heads_are_the_official_file(heads, tmp_path, monkeypatch):
    """The copy that torchmetrics carries is found without a network."""
    monkeypatch.delenv("IFSQ_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    table = read_weights(find_weights(HEADS))
    assert table.keys() == heads.keys()
    assert all(torch.equal(table[key], heads[key]) for key in heads)


def test_distance(lpips, images):
    a, b = images
    torch.testing.assert_close(lpips(a, b), lpips(b, a))
    assert torch.equal(lpips(a, a), torch.zeros(3))
    assert lpips(a[:, :, :16, :40], b[:, :, :16, :40]).shape == (3,)
    with pytest.raises(ValueError, match="at least 16"):
        lpips(a[:, :, :15], b[:, :, :15])


def test_float32_under_autocast(lpips, images):
    with torch.autocast("cpu", torch.bfloat16):
        found = lpips(*images)
    assert found.dtype == torch.float32
    assert torch.equal(found, lpips(*images))
    half = lpips(images[0].bfloat16(), images[1])
    assert half.dtype == torch.float32


def test_frozen_and_always_eval(lpips):
    holder = torch.nn.ModuleList([lpips]).train()
    assert holder.training
    assert not any(module.training for module in lpips.modules())
    assert not any(parameter.requires_grad for parameter in lpips.parameters())


def test_gradient_reaches_the_image(lpips, images):
    """The slope along a direction is that of the values, by central differences."""
    a, b = (image[:1, :, :32, :32] for image in images)
    a = a.clone().requires_grad_()
    lpips(a, b).sum().backward()
    direction = torch.sign(a.grad)
    step = 1e-3
    with torch.no_grad():
        slope = (lpips(a + step * direction, b) - lpips(a - step * direction, b)) / (2 * step)
    torch.testing.assert_close(slope[0], a.grad.abs().sum(), rtol=0.02, atol=0)


def test_gradient_is_finite_where_nothing_fires(backbone, heads):
    """All channels at zero: the length of the activations has no slope there, and must not give nan."""
    silent = LPIPS({key: torch.zeros_like(value) for key, value in backbone.items()}, heads)
    a = torch.zeros(1, 3, 16, 16, requires_grad=True)
    silent(a, torch.ones(1, 3, 16, 16)).sum().backward()
    assert torch.equal(a.grad, torch.zeros_like(a))


def test_no_random_number_is_drawn(backbone, heads):
    before = torch.get_rng_state()
    LPIPS(backbone, heads)
    assert torch.equal(torch.get_rng_state(), before)


def test_load(lpips, backbone, heads, images, tmp_path):
    """From files; torchvision's classifier is passed over; a wrong pair is refused in one line."""
    torch.save({**backbone, "classifier.0.weight": torch.zeros(2)}, tmp_path / "vgg.pth")
    save_file(heads, tmp_path / "heads.safetensors")
    loaded = load_lpips(tmp_path / "vgg.pth", tmp_path / "heads.safetensors")
    assert torch.equal(loaded(*images), lpips(*images))
    with pytest.raises(InputError, match=r"tensor 'features\.0\.bias' is missing") as refused:
        load_lpips(tmp_path / "heads.safetensors", tmp_path / "heads.safetensors")
    assert "\n" not in str(refused.value)
