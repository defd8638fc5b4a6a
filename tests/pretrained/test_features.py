"""The registry of feature networks: one face for all, others from outside, and what each refuses."""

import json
from importlib.metadata import EntryPoint, EntryPoints

import pytest
import torch
from safetensors.torch import save_file

from ifsq.config import InputError
from ifsq.pretrained import features as registry
from ifsq.pretrained.features import feature_names, load_features, register_features
from ifsq.pretrained.network import FeatureNetwork
from ifsq.pretrained.pixels import Pixels


@pytest.fixture(scope="module")
def inception_file(golden, formula_weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    save_file(formula_weights(json.loads(golden("inception").metadata()["keys"])), path)
    return path


def images(count, height, width, channels=3):
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, height, width), generator=rng, dtype=torch.uint8)


@pytest.mark.parametrize("name", ["inception", "efficientnet-lite0@64", "pixels"])
def test_one_face(name, request):
    """Widths are true, rows are those of the images alone, grey is taken, and nothing learns."""
    network = load_features(name, request.getfixturevalue("inception_file") if name == "inception" else None)
    assert isinstance(network, FeatureNetwork)
    assert set(filter(None, (network.pooled, network.spatial, network.logits))) <= set(network.widths)
    some = images(2, 24, 40)
    found = network(some, tuple(network.widths))
    assert {key: tuple(rows.shape) for key, rows in found.items()} == {
        key: (2, width) for key, width in network.widths.items()
    }
    for key, rows in network(some[1:], tuple(network.widths)).items():
        torch.testing.assert_close(found[key][1:], rows, rtol=1e-4, atol=1e-4 * float(rows.abs().max()))
    grey = images(1, 24, 24, channels=1)
    wanted = (network.pooled,)
    torch.testing.assert_close(network(grey, wanted), network(grey.expand(-1, 3, -1, -1), wanted))
    assert not any(value.requires_grad for value in network.parameters())
    assert not network.train().training
    with pytest.raises(ValueError, match=r"features \['4096'\]: expected some of"):
        network(some, ("4096",))
    with pytest.raises(ValueError, match=f"images of 4 channels: {network.name} expects 3, or 1"):
        network(images(1, 24, 24, channels=4), wanted)


def test_names_of_weights_and_sides(inception_file):
    assert load_features("efficientnet-lite0").name == "efficientnet-lite0"
    small = load_features("efficientnet-lite0@128")
    assert (small.name, small.side, small.widths["spatial"]) == ("efficientnet-lite0@128", 128, 7 * 8 * 8)
    assert load_features("inception", inception_file).name.startswith("inception-")


def test_pixels_are_means_over_cells():
    some = images(2, 16, 24)
    cells = some.double().reshape(2, 3, 8, 2, 8, 3).mean(dim=(3, 5)).flatten(1) / 255
    torch.testing.assert_close(Pixels()(some)["192"].double(), cells, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="images of 7x9 pixels: pixels expects at least 8 a side"):
        Pixels()(images(1, 7, 9))


class Brightness(FeatureNetwork):
    name, pooled, widths = "brightness", "1", {"1": 1}

    def forward(self, images, wanted):
        self.check(images, wanted)
        return {"1": images.float().mean(dim=(1, 2, 3))[:, None]}


def load_brightness(path, side):
    return Brightness()


def test_one_more_from_outside(monkeypatch):
    monkeypatch.setattr(registry, "_LOADERS", dict(registry._LOADERS))
    with pytest.raises(
        InputError, match="features 'brightness': expected one of inception, efficientnet-lite0, pixels"
    ):
        load_features("brightness")
    register_features("brightness", load_brightness)
    network = load_features("brightness")
    assert "brightness" in feature_names()
    assert float(network(images(1, 8, 8), ("1",))["1"]) == pytest.approx(float(images(1, 8, 8).float().mean()))
    for taken in ("brightness", "pixels", "", "a@b"):
        with pytest.raises(ValueError, match=f"features '{taken}': expected a name without @ other than inception"):
            register_features(taken, load_brightness)


def test_one_more_from_an_installed_package(monkeypatch):
    values = {"brightness": f"{__name__}:load_brightness", "broken": f"{__name__}:no_such_name"}
    installed = EntryPoints(EntryPoint(name, value, registry.ENTRY_POINTS) for name, value in values.items())
    monkeypatch.setattr(registry, "entry_points", installed.select)
    assert feature_names() == ["inception", "efficientnet-lite0", "pixels", "brightness", "broken"]
    assert load_features("brightness").name == "brightness"
    with pytest.raises(InputError, match=r"features 'broken': .*no_such_name could not be imported"):
        load_features("broken")


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("vgg", None, "features 'vgg': expected one of inception, efficientnet-lite0, pixels"),
        ("efficientnet-lite0@", None, "features 'efficientnet-lite0@': expected pixels a side behind the @"),
        ("efficientnet-lite0@-1", None, "expected pixels a side behind the @, as efficientnet-lite0@128"),
        ("efficientnet-lite0@16", None, "features efficientnet-lite0@16: expected 32 to 2048 pixels a side"),
        ("efficientnet-lite0@99999999", None, "features efficientnet-lite0@99999999: expected 32 to 2048 pixels"),
        ("inception@128", None, "features inception@128: expected no side, its images are resized to 299 pixels"),
        ("pixels", "w.pth", "features pixels: file w.pth given, expected none"),
        ("pixels@4", None, "features pixels: side 4 given, expected none"),
        ("inception", "absent.pth", "absent.pth: no such file; expected the weights pt_inception-2015-12-05"),
    ],
)
def test_refuses(name, path, message):
    with pytest.raises(InputError) as refused:
        load_features(name, path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_missing_weights_offline(monkeypatch, tmp_path):
    """The file, its checksum, where it goes, and what works without it."""

    def offline(url, timeout):
        raise OSError("no route to host")

    monkeypatch.delenv("IFSQ_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(InputError) as refused:
        load_features("inception")
    message = str(refused.value)
    assert "\n" not in message
    for part in (
        "pt_inception-2015-12-05-6726825d.pth",
        "no route to host",
        "SHA-256 6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        str(tmp_path / "checkpoints"),
        "IFSQ_WEIGHTS",
        "--features efficientnet-lite0 works without it",
    ):
        assert part in message
