"""The FID Inception against golden values from the same formula weights."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ifsq.config import InputError
from ifsq.metrics.distribution import INCEPTION_2015
from ifsq.pretrained.inception import FEATURES, OFFICIAL_NAME, FIDInception, _resize_tf1, load_inception


@pytest.fixture(scope="module")
def stored(golden):
    return golden("inception")


@pytest.fixture(scope="module")
def table(stored, formula_weights):
    return formula_weights(json.loads(stored.metadata()["keys"]))


@pytest.fixture(scope="module")
def inception(table):
    return FIDInception(table, "formula")


def test_the_name_is_the_metrics_own():
    assert OFFICIAL_NAME == INCEPTION_2015


def test_keys_are_those_of_the_file(inception, stored):
    assert {key: list(value.shape) for key, value in inception.state_dict().items()} == json.loads(
        stored.metadata()["keys"]
    )


@pytest.mark.parametrize("name", ["x", "x299"])
def test_golden(inception, stored, name):
    """Within 2e-5 of each output's largest value."""
    means = [key for key in FEATURES if key != "spatial"]
    found = inception(stored.get_tensor(f"in/{name}"), means)
    assert list(found) == means
    for key, value in found.items():
        expected = stored.get_tensor(f"out/{name}/{key}")
        torch.testing.assert_close(value, expected, atol=2e-5 * float(expected.abs().max()), rtol=0)


def test_spatial_features_equal_a_second_implementation(inception, table, stored):
    """TensorFlow's ``mixed_6/conv`` from its inputs: 1x1 convolution, norm and ReLU in float64, channels last."""
    inputs = []
    handle = inception.Mixed_6d.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    found = inception(stored.get_tensor("in/x"), ("spatial",))["spatial"]
    handle.remove()
    x = inputs[0].double().numpy()
    conv, scale, shift, mean, var = (
        table[f"Mixed_6d.branch1x1.{part}"].double().numpy()[:7]
        for part in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    )
    assert x.shape[1:] == (768, 17, 17)
    summed = np.einsum("bchw,oc->bhwo", x, conv[:, :, 0, 0])
    expected = np.maximum((summed - mean) / np.sqrt(var + 1e-3) * scale + shift, 0).reshape(len(x), -1)
    assert expected.shape == found.shape == (len(x), 2023)
    assert (expected > 0).any()
    np.testing.assert_allclose(found.double().numpy(), expected, atol=1e-5 * expected.max(), rtol=0)


def test_only_what_is_wanted(inception, stored):
    images = stored.get_tensor("in/x")[:1]
    found = inception(images, ("192", "64"))
    assert tuple(found) == ("192", "64")
    assert torch.equal(found["64"], inception(images, ("64",))["64"])
    with pytest.raises(ValueError, match=r"\['1024'\]: expected some of 64, 192"):
        inception(images, ("1024",))


def test_luminance_is_grey_rgb(inception, stored):
    grey = stored.get_tensor("in/x")[:1, :1]
    assert torch.equal(inception(grey, ("64",))["64"], inception(grey.repeat(1, 3, 1, 1), ("64",))["64"])


def test_float32_and_frozen(inception, stored):
    images = stored.get_tensor("in/x")[:1]
    torch.nn.ModuleList([inception]).train()
    assert not any(module.training for module in inception.modules())
    assert not any(parameter.requires_grad for parameter in inception.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        found = inception(images, ("64",))["64"]
    assert found.dtype == torch.float32
    assert torch.equal(found, inception(images, ("64",))["64"])


def test_resize_is_tensorflows():
    """Doubling puts every pixel at the even places and means between; the last is repeated. Equal size: unchanged."""
    row = torch.tensor([[[[0.0, 4.0, 10.0]]]])
    assert _resize_tf1(row, 6)[0, 0, 0].tolist() == [0, 2, 4, 7, 10, 10]
    image = torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_resize_tf1(image), image)
    half = _resize_tf1(torch.arange(8.0).view(1, 1, 1, 8), 4)[0, 0, 0]
    assert half.tolist() == [0, 2, 4, 6]  # no averaging when shrinking, unlike half-pixel centres:
    assert F.interpolate(torch.arange(8.0).view(1, 1, 8), 4, mode="linear")[0, 0].tolist() == [0.5, 2.5, 4.5, 6.5]


def test_load(inception, table, stored, tmp_path):
    """Other weights than the official bear their own name; files older than num_batches_tracked are complete."""
    older = {key: value for key, value in table.items() if not key.endswith("num_batches_tracked")}
    save_file(older, tmp_path / "w.safetensors")
    loaded = load_inception(tmp_path / "w.safetensors")
    images = stored.get_tensor("in/x")[:1]
    assert torch.equal(loaded(images)["2048"], inception(images)["2048"])
    assert loaded.name.startswith("inception-")
    assert loaded.name != OFFICIAL_NAME
    assert {value.device.type for value in loaded.state_dict().values()} == {"cpu"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.bias": None}, "tensor 'fc.bias' is missing"),
        ({"fc.bias": torch.zeros(1000)}, "shape (1000,), expected (1008,)"),
        ({"AuxLogits.fc.bias": torch.zeros(1000)}, "tensor 'AuxLogits.fc.bias' is not part of this model"),
    ],
)
def test_other_weights_are_refused(table, change, message):
    """torchvision's Inception-v3, for one, has 1000 classes and auxiliary logits."""
    wrong = {key: value for key, value in {**table, **change}.items() if value is not None}
    with pytest.raises(InputError) as refused:
        FIDInception(wrong, "wrong", where="w.pth")
    assert str(refused.value).startswith("w.pth: ")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
