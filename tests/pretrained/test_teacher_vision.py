"""Published vision transformers as teachers: built small from their configurations, saved, and opened by the door."""

import json
import math
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ifsq.config import InputError
from ifsq.pretrained.teachers import TeacherConfig, open_teacher
from ifsq.pretrained.teachers.families import FAMILIES
from ifsq.pretrained.teachers.preprocessing import Preprocessing, read_preprocessing
from ifsq.pretrained.teachers.vision import resample_positions

transformers = pytest.importorskip("transformers", reason="the extra repa is not installed")
COMMON = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
ODD = (3, 5)  # a grid that is no family's own
NAMES = ("dinov2", "dinov2_with_registers", "dinov3_vit", "clip_vision_model", "siglip_vision_model",
         "siglip2_vision_model", "vit_mae")  # fmt: skip


def small(kind):
    """A network of a family, with random weights that are large enough for every part to be seen."""
    torch.manual_seed(0)
    ours = {key: COMMON[key] for key in COMMON if kind not in ("dinov2", "dinov2_with_registers") or key[0] != "i"}
    own = {
        "dinov2": {"image_size": 56, "patch_size": 14},
        "dinov2_with_registers": {"image_size": 56, "patch_size": 14, "num_register_tokens": 3},
        "dinov3_vit": {"image_size": 32, "patch_size": 8, "num_register_tokens": 3},
        "clip_vision_model": {"image_size": 32, "patch_size": 8},
        "siglip_vision_model": {"image_size": 32, "patch_size": 8},
        "siglip2_vision_model": {"num_patches": 16, "patch_size": 8},
        "vit_mae": {"image_size": 32, "patch_size": 8, "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1,
                    "decoder_num_attention_heads": 2, "decoder_intermediate_size": 8},
    }[kind]  # fmt: skip
    model = getattr(transformers, FAMILIES[kind].model)
    network = model(model.config_class(**ours, **own)).eval()
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "position" in name or "token" in name:
                value.normal_(0, 0.5)
    return network


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One of each family, by its ``model_type``."""
    found = {}
    for kind in NAMES:
        found[kind] = tmp_path_factory.mktemp(kind)
        small(kind).save_pretrained(found[kind])
    return found


def images(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def direct(network, kind, seen, rows, columns):
    """What transformers computes of preprocessed images, without anything of ours; all tokens."""
    given = {"pixel_values": seen}
    if kind in ("clip_vision_model", "siglip_vision_model", "vit_mae"):
        given["interpolate_pos_encoding"] = True
    if kind == "siglip2_vision_model":
        p = 8
        cells = [
            seen[:, :, r * p : r * p + p, c * p : c * p + p].permute(0, 2, 3, 1).flatten(1)
            for r in range(rows)
            for c in range(columns)
        ]
        given = {
            "pixel_values": torch.stack(cells, 1),
            "pixel_attention_mask": torch.ones(len(seen), rows * columns, dtype=torch.int64),
            "spatial_shapes": torch.tensor([[rows, columns]] * len(seen)),
        }
    with torch.no_grad():
        if kind != "vit_mae":
            return network(**given).last_hidden_state
        network.config.mask_ratio = 0.0
        out = network(**given)  # patches in an order of its own, which it tells
        class_token, rest = out.last_hidden_state[:, :1], out.last_hidden_state[:, 1:]
        back = out.ids_restore[..., None].expand_as(rest)
        return torch.cat([class_token, rest.gather(1, back)], 1)


@pytest.mark.parametrize("kind", NAMES)
def test_features_are_those_of_transformers(folders, kind):
    """At a size that is not its own, in one pass of ours and in one of transformers alone."""
    config = TeacherConfig(str(folders[kind]), positions="published")
    teacher, network = open_teacher(config), small(kind)
    pictures, patch = images(2, 3, 40, 48), teacher.patch
    pixels = FAMILIES[kind].pixels
    seen = pixels(pictures, (ODD[0] * patch, ODD[1] * patch))
    if kind == "dinov2":  # transformers leaves out what the published code adds
        stretched = resample_positions(network.embeddings.position_embeddings[:, 1:], ODD, stretch=0.1, antialias=False)
        whole = torch.cat([network.embeddings.position_embeddings[:, :1], stretched], 1)
        network.embeddings.interpolate_pos_encoding = lambda *given: whole
    leading = {"dinov2": 1, "dinov2_with_registers": 4, "dinov3_vit": 4, "clip_vision_model": 1, "vit_mae": 1}
    expected = direct(network, kind, seen, *ODD)[:, leading.get(kind, 0) :]
    found = teacher.features(pictures, ODD)
    assert found.shape == (2, 15, 16)
    assert teacher.width == 16
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers"])
@pytest.mark.parametrize("positions", ["repa", "published"])
def test_dinov2_at_its_own_size_needs_no_resampling(folders, kind, positions):
    teacher = open_teacher(TeacherConfig(str(folders[kind]), positions=positions))
    pictures = images(2, 3, 56, 56)
    seen = Preprocessing()(pictures, (56, 56))
    expected = direct(small(kind), kind, seen, 4, 4)[:, teacher.leading :]
    torch.testing.assert_close(teacher.features(pictures, (4, 4)), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("grid", [ODD, (2, 3)])
def test_dinov2_by_default_has_its_positions_resampled_as_in_repa(folders, grid):
    """Antialiased, as transformers does it of itself for registers; without them it is neither of the other two."""
    pictures = images(2, 3, 40, 48)
    with_registers = [
        open_teacher(TeacherConfig(str(folders["dinov2_with_registers"]), positions=positions)).features(pictures, grid)
        for positions in ("repa", "published")
    ]
    torch.testing.assert_close(*with_registers, atol=1e-5, rtol=1e-4)
    without, stretched = (
        open_teacher(TeacherConfig(str(folders["dinov2"]), positions=positions)).features(pictures, grid)
        for positions in ("repa", "published")
    )
    network = small("dinov2")
    table = network.embeddings.position_embeddings
    whole = torch.cat([table[:, :1], resample_positions(table[:, 1:], grid)], 1)
    network.embeddings.interpolate_pos_encoding = lambda *given: whole
    seen = Preprocessing()(pictures, (grid[0] * 14, grid[1] * 14))
    torch.testing.assert_close(without, direct(network, "dinov2", seen, *grid)[:, 1:], atol=1e-5, rtol=1e-4)
    assert (without - stretched).abs().max() > 1e-3


@pytest.mark.parametrize(("kind", "leading"), [("clip_vision_model", 1), ("siglip_vision_model", 0), ("vit_mae", 1)])
def test_other_tables_of_positions_are_resampled_as_in_repa_by_default(folders, kind, leading):
    network, pictures = small(kind), images(2, 3, 40, 48)
    teacher = open_teacher(TeacherConfig(str(folders[kind])))
    (inside,) = [part for part in network.modules() if hasattr(part, "interpolate_pos_encoding")]
    table = inside.position_embeddings if kind == "vit_mae" else inside.position_embedding.weight[None]
    whole = torch.cat([table[:, :leading], resample_positions(table[:, leading:], ODD)], 1)
    inside.interpolate_pos_encoding = lambda *given: whole
    seen = FAMILIES[kind].pixels(pictures, (ODD[0] * 8, ODD[1] * 8))
    found = teacher.features(pictures, ODD)
    torch.testing.assert_close(found, direct(network, kind, seen, *ODD)[:, leading:], atol=1e-5, rtol=1e-4)
    published = open_teacher(TeacherConfig(str(folders[kind]), positions="published")).features(pictures, ODD)
    assert (found - published).abs().max() > 1e-3


@pytest.mark.parametrize("kind", NAMES)
def test_a_teacher_is_frozen_and_says_what_it_is(folders, kind):
    teacher = open_teacher(TeacherConfig(str(folders[kind])))
    assert not any(value.requires_grad for value in teacher.parameters())
    assert not teacher.train().training
    assert not teacher.network.training
    pictures = images(2, 3, 32, 32).requires_grad_()
    found = teacher.features(pictures, (4, 4))
    assert found.dtype == torch.float32
    assert not found.requires_grad
    torch.testing.assert_close(found, teacher.features(pictures, (4, 4)), atol=0, rtol=0)  # MAE hides nothing
    torch.testing.assert_close(found[1:], teacher.features(pictures[1:], (4, 4)), atol=1e-5, rtol=1e-4)
    assert teacher.name == folders[kind].name


def test_a_patch_is_where_its_token_is(folders):
    """What changes in one cell of the image changes that cell's vector the most, in every family."""
    for kind in NAMES:
        teacher = open_teacher(TeacherConfig(str(folders[kind]), layer=1))
        side = 4 * teacher.patch
        pictures = torch.zeros(1, 3, side, side)
        changed = pictures.clone()
        changed[..., teacher.patch : 2 * teacher.patch, 2 * teacher.patch : 3 * teacher.patch] = images(1)
        moved = (teacher.features(changed, (4, 4)) - teacher.features(pictures, (4, 4))).norm(dim=-1)
        assert int(moved.argmax()) == 1 * 4 + 2, kind


def test_a_digest_is_of_weights_and_of_all_that_is_done(folders, tmp_path):
    folder = folders["dinov2"]
    config = TeacherConfig(str(folder))
    digest = open_teacher(config).digest
    assert open_teacher(config).digest == digest
    others = [replace(config, layer=1), replace(config, side=56), replace(config, positions="published")]
    moved = shutil.copytree(folder, tmp_path / "moved")
    (moved / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    others.append(replace(config, source=str(moved)))
    trained = shutil.copytree(folder, tmp_path / "trained")
    table = load_file(trained / "model.safetensors")
    save_file({**table, "layernorm.bias": table["layernorm.bias"] + 1}, trained / "model.safetensors", {"format": "pt"})
    others.append(replace(config, source=str(trained)))
    assert len({digest, *(open_teacher(other).digest for other in others)}) == 6


def test_layers_and_sides(folders):
    folder, pictures = str(folders["dinov2_with_registers"]), images(1, 3, 40, 40)
    last = open_teacher(TeacherConfig(folder, layer=2))
    normed = open_teacher(TeacherConfig(folder))
    torch.testing.assert_close(
        normed.network.layernorm(last.features(pictures, (3, 3))).detach(), normed.features(pictures, (3, 3)),
        atol=1e-5, rtol=1e-4,
    )  # fmt: skip
    large = open_teacher(TeacherConfig(folder, side=112))
    assert large.own_grid((3, 3)) == (8, 8)
    assert large.own_grid((3, 6)) == (8, 16)
    assert large.features(pictures, (3, 6)).shape == (1, 18, 16)


@pytest.mark.parametrize(
    ("kind", "whole", "settings"),
    [
        ("clip_vision_model", "CLIPModel", {"text_config": {"vocab_size": 10, "hidden_size": 8, "num_hidden_layers": 1,
                                            "num_attention_heads": 1, "intermediate_size": 8}}),
        ("siglip_vision_model", "SiglipModel", {"text_config": {"vocab_size": 10, "hidden_size": 8,
                                                "num_hidden_layers": 1, "num_attention_heads": 1,
                                                "intermediate_size": 8}}),
        ("vit_mae", "ViTMAEForPreTraining", None),
        ("dinov2", "Dinov2ForImageClassification", None),
    ],
)  # fmt: skip
def test_what_a_file_holds_beside_the_network_is_left_out(folders, tmp_path, kind, whole, settings):
    """Text towers, decoders and classifiers, as published files have them."""
    network = small(kind)
    model = getattr(transformers, whole)
    config = network.config if settings is None else model.config_class(
        vision_config=network.config.to_dict(), **settings
    )  # fmt: skip
    larger = model(config)
    inside = next(
        part for part in (getattr(larger, "vision_model", None), getattr(larger, "vit", None),
                          getattr(larger, "dinov2", None)) if part is not None
    )  # fmt: skip
    inside.load_state_dict({key.removeprefix("vision_model."): value for key, value in network.state_dict().items()})
    larger.save_pretrained(tmp_path / "whole")
    pictures = images(1, 3, 32, 32)
    alone = open_teacher(TeacherConfig(str(folders[kind])))
    found = open_teacher(TeacherConfig(str(tmp_path / "whole")))
    torch.testing.assert_close(found.features(pictures, ODD), alone.features(pictures, ODD))
    assert found.digest == alone.digest


# Positions and pixels, against implementations of our own or of others.


def cubic(distance, a):
    x = np.abs(distance)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def plain_cubic(old, new, scale):
    """Weights (new, old) of torch's plain bicubic kernel, whose border is repeated."""
    weights = np.zeros((new, old))
    for i in range(new):
        at = (i + 0.5) / scale - 0.5
        base = math.floor(at)
        for k in range(base - 1, base + 3):
            weights[i, min(max(k, 0), old - 1)] += cubic(at - k, -0.75)
    return weights


def antialiased_cubic(old, new):
    """Weights (new, old) of PIL's bicubic kernel: widened where it shrinks, cut off at the border, of sum 1."""
    widening = max(old / new, 1.0)
    centres, cells = (np.arange(new) + 0.5) * old / new, np.arange(old) + 0.5
    weights = cubic((centres[:, None] - cells) / widening, -0.5)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (9, 7)])
@pytest.mark.parametrize("how", ["repa", "plain", "stretched"])
def test_positions_equal_a_second_implementation(grid, how):
    table = torch.randn(1, 36, 3, generator=torch.Generator().manual_seed(0))
    if how == "repa":
        found = resample_positions(table, grid)
        rows, columns = (antialiased_cubic(6, count) for count in grid)
    else:
        stretch = 0.1 if how == "stretched" else 0.0
        found = resample_positions(table, grid, stretch=stretch, antialias=False)
        rows, columns = (plain_cubic(6, count, (count + stretch) / 6) for count in grid)
    expected = np.einsum("ra,cb,abf->rcf", rows, columns, table[0].view(6, 6, 3).double().numpy())
    torch.testing.assert_close(found[0].double(), torch.from_numpy(expected).flatten(0, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(14, 20), (42, 56)])
def test_pixels_are_those_of_pil(kernel, size):
    """To within its rounding to 8 bits, which cuts off beyond black and white between its two passes: hence greys."""
    pixels = np.random.default_rng(0).integers(80, 176, (28, 40, 3), dtype=np.uint8)
    number = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[kernel]
    expected = np.asarray(Image.fromarray(pixels).resize(size[::-1], number), dtype=np.float64) / 255
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    given = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    found = Preprocessing(mean, std, kernel)(given, size)[0].permute(1, 2, 0).double()
    assert np.abs(found.numpy() * std + mean - expected).max() < 1.1 / 255


@pytest.mark.parametrize(
    ("module", "processor", "kind"),
    [
        ("clip.image_processing_pil_clip", "CLIPImageProcessorPil", "clip"),
        ("siglip.image_processing_pil_siglip", "SiglipImageProcessorPil", "siglip"),
        ("siglip2.image_processing_pil_siglip2", "Siglip2ImageProcessorPil", "siglip2"),
        ("bit.image_processing_pil_bit", "BitImageProcessorPil", None),
    ],
)
def test_what_is_said_without_a_file_is_what_image_processors_do(module, processor, kind):
    part = pytest.importorskip(f"transformers.models.{module}")
    said = getattr(part, processor)
    ours = FAMILIES[kind].pixels if kind else Preprocessing(FAMILIES["clip"].pixels.mean, FAMILIES["clip"].pixels.std)
    assert tuple(said.image_mean) == pytest.approx(ours.mean)
    assert tuple(said.image_std) == pytest.approx(ours.std)
    assert {2: "bilinear", 3: "bicubic"}[int(said.resample)] == ours.kernel


def test_imagenet_constants():
    from transformers import image_utils

    assert FAMILIES["dinov2"].pixels.mean == tuple(image_utils.IMAGENET_DEFAULT_MEAN)
    assert FAMILIES["vit_mae"].pixels.std == tuple(image_utils.IMAGENET_DEFAULT_STD)


def test_a_folder_says_how_its_images_are_prepared(tmp_path):
    file, default = tmp_path / "preprocessor_config.json", FAMILIES["siglip"].pixels
    assert read_preprocessing(file, default) is default
    file.write_text('{"image_mean": [0.1, 0.2, 0.3], "resample": 2, "do_rescale": true, "rescale_factor": 0.00392}')
    assert read_preprocessing(file, default) == Preprocessing((0.1, 0.2, 0.3), (0.5, 0.5, 0.5), "bilinear")
    file.write_text('{"do_normalize": false}')
    assert read_preprocessing(file, default) == Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bicubic")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "expected a table of an image processor"),
        ('{"image_mean": [0.5]}', r"image_mean=\[0.5\]; expected a number for each of three channels"),
        ('{"image_std": [0.5, 0.5, 0]}', "expected positive numbers"),
        ('{"resample": 1}', "resample=1; expected 2 for bilinear or 3 for bicubic"),
        ('{"do_rescale": false}', "rescale_factor=1.0; expected an image processor that divides by 255"),
        ('{"rescale_factor": "x"}', "rescale_factor='x'"),
        ("{", "JSON"),
    ],
)
def test_preprocessing_that_cannot_be_used(tmp_path, text, told):
    file = tmp_path / "preprocessor_config.json"
    file.write_text(text)
    with pytest.raises(InputError, match=told):
        read_preprocessing(file, Preprocessing())


# What cannot be opened.


def test_without_transformers_it_says_what_to_install(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"not installed; pip install 'ifsq\[repa\]'$"):
        open_teacher(TeacherConfig(str(folders["dinov2"])))


def without(table, key):
    return {name: value for name, value in table.items() if name != key}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: without(t, "layernorm.bias"), "tensor 'layernorm.bias' is missing; expected the weights of DINOv2"),
        (lambda t: {**t, "layernorm.bias": torch.zeros(3)}, r"'layernorm.bias' has shape \(3,\), expected \(16,\)"),
        (lambda t: {**t, "neck.bias": torch.zeros(3)}, "tensor 'neck.bias' is not part of DINOv2"),
        (lambda t: {**t, "layernorm.bias": torch.full((16,), math.nan)}, "'layernorm.bias' holds values that are not"),
    ],
)
def test_weights_of_another_network_are_refused(folders, tmp_path, change, told):
    folder = shutil.copytree(folders["dinov2"], tmp_path / "changed")
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=told) as raised:
        open_teacher(TeacherConfig(str(folder)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "resnet"}, "model_type='resnet'; expected one of dinov2, dinov2_with_registers"),
        ({"model_type": None}, "model_type=None; expected one of"),
        ({"num_channels": 1}, "expected"),
        ({"hidden_size": "wide"}, "cannot be read as DINOv2"),
        ({"hidden_size": 32}, "expected"),
        ({"num_attention_heads": 3}, "expected"),
    ],
)
def test_a_config_of_another_network_is_refused(folders, tmp_path, change, told):
    folder = shutil.copytree(folders["dinov2"], tmp_path / "changed")
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, **change}))
    with pytest.raises(InputError, match=told) as raised:
        open_teacher(TeacherConfig(str(folder)))
    assert "\n" not in str(raised.value)


def test_damaged_and_missing_files_are_named(folders, tmp_path):
    folder = shutil.copytree(folders["dinov2"], tmp_path / "changed")
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="changed: cannot be read as DINOv2"):
        open_teacher(TeacherConfig(str(folder)))
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"changed: holds no model\.safetensors; expected the weights of DINOv2"):
        open_teacher(TeacherConfig(str(folder)))
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        open_teacher(TeacherConfig(str(folder)))
    with pytest.raises(InputError, match=r"layer=3; expected 1 to 2, or 0 for the last"):
        open_teacher(TeacherConfig(str(folders["dinov2"]), layer=3))
