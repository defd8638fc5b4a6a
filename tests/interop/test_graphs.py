"""Exported tokenizers: their digits to the bit, their images, at sizes that were not traced; what is refused."""

import json
import re
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ifsq.cli import main
from ifsq.config import InputError
from ifsq.interop.graphs import formats, write
from ifsq.interop.graphs.formats import FORMATS, Format, trace
from ifsq.interop.graphs.parts import Quantizing, network_parts, rate_parts
from ifsq.interop.graphs.staged import StagedGroupNorm, with_staged_norms
from ifsq.interop.graphs.thresholds import WHOLE, Steps, floats, ordered, thresholds
from ifsq.interop.graphs.write import MANIFEST, export_graphs
from ifsq.quantizers import BSQ, FSQ, LFQ, ResidualFSQ
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig

PLAIN = ConvConfig(width=8, multipliers=(1,), blocks=1, patch=2, groups=4)
SMALL = ConvConfig(width=4, multipliers=(1, 3), blocks=1, patch=2, groups=2)
FULL = ConvConfig(width=8, multipliers=(1, 2), blocks=1, patch=2, groups=4, attention=(4,), middle_attention=True)


def tokenizer(conv=PLAIN, **options):
    """A random one whose latents spread over many levels."""
    torch.manual_seed(0)
    made = Tokenizer(TokenizerConfig(conv, QuantizerConfig(**options))).eval()
    with torch.no_grad():
        made.quant_conv.weight.mul_(6)
    return made


QUANTIZERS = {
    "released": FSQ([17] * 3),
    "first FSQ, even and unequal": FSQ([8, 5, 2], bound="tanh", groups=[1, 2]),
    "equal cells": FSQ([16] * 3, cells="equal", bound="gaussian"),
    "symmetric cells": FSQ([33] * 3, cells="symmetric", digit_order="big"),
    "standardized": FSQ([17] * 3, bound="standardized"),
    "quantile": FSQ([16] * 3, bound="quantile", cells="equal"),
    "learned": FSQ([300] * 3, bound="learned", cells="equal"),
    "residual": ResidualFSQ([9, 5, 4], 2),
    "signs": LFQ(3),
    "signs on the sphere": BSQ(3),
}


@pytest.mark.parametrize("name", QUANTIZERS)
@torch.no_grad()
def test_thresholds_give_the_digits_of_every_latent(name):
    """The floats on either side of every threshold, and latents of all sizes."""
    quantizer = QUANTIZERS[name].eval()
    quantizer.channel_axis = 1
    bound = getattr(quantizer, "bound", None)
    if bound is not None and bound.channels:
        bound.fit(0.3 + torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)).abs())
    module = Quantizing(quantizer, quantizer.lattice, True)
    for dim, levels in enumerate(quantizer.lattice.levels):
        assert module.table[dim, : levels - 1].isfinite().all()
        assert module.table[dim, levels - 1 :].isinf().all()
        assert (module.table[dim, : levels - 1].diff() > 0).all()
    near = module.table.nan_to_num(posinf=1.0)
    close = floats(ordered(near).unsqueeze(-1) + torch.arange(-6, 7)).flatten(1)
    drawn = torch.randn(3, 3000, generator=torch.Generator().manual_seed(1))
    latents = torch.cat([close, drawn, drawn * 1e3, drawn * 1e-3], dim=1)
    latents = nn.functional.pad(latents, (0, -latents.shape[1] % WHOLE)).view(1, 3, 1, -1)
    given, expected = module(latents), quantizer(latents)
    assert torch.equal(given["codes"], expected.codes)
    assert torch.equal(given["indices"], expected.indices)
    assert torch.equal(
        given["digits"].to(torch.int64), quantizer.lattice.codes_to_digits(expected.codes, 1).movedim(1, -1)
    )


def test_steps_count_thresholds():
    table = torch.tensor([[-1.0, 0.0, 0.0, 2.5, torch.inf], [3.0, torch.inf, torch.inf, torch.inf, torch.inf]])
    latents = torch.tensor([[-1.5, -1.0, -0.0, 2.4, 3e38, torch.nan], [0.0, 3.0, 2.9, 4.0, -3e38, torch.nan]])
    digits = Steps(table)(latents.view(1, 2, 1, -1))
    assert digits.flatten(1).view(2, -1).tolist() == [[0, 1, 3, 3, 4, 0], [0, 1, 0, 1, 0, 0]]


@torch.no_grad()
def test_a_staged_group_norm_is_the_group_norm():
    norm = nn.GroupNorm(2, 6, eps=1e-6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64) + 3
    torch.testing.assert_close(StagedGroupNorm(norm)(x), norm(x))
    made = tokenizer(FULL)
    staged = with_staged_norms(made)
    assert not any(isinstance(module, nn.GroupNorm) for module in staged.modules())
    assert any(isinstance(module, nn.GroupNorm) for module in made.modules())
    images = torch.rand(2, 3, 8, 12) * 2 - 1
    torch.testing.assert_close(staged(images).images, made(images).images, atol=1e-5, rtol=1e-5)


@contextmanager
def checks_of_shapes_off():
    """The tests' checks of shapes in signatures compute with the traced sizes; without them, as users have it."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _unchecked():
    with checks_of_shapes_off():
        yield


SIZES = ((1, 4, 4), (5, 12, 8))
"""Images, and the positions of their codes: none as traced."""


def compare(made, run, suffix=""):
    """Graphs as functions of a part's name against the tokenizer, at every size."""
    for count, down, across in SIZES:
        images = torch.rand(count, made.channels, down * made.factor, across * made.factor) * 2 - 1
        encoded, decoded = made.encode(images), made.decode(made.encode(images).codes)
        first = run("encoder", images)
        if made.quantizer.lattice is None:
            torch.testing.assert_close(first["codes"], encoded.codes, atol=1e-5, rtol=1e-5)
        else:
            latents = made.latent(images)
            torch.testing.assert_close(first["latents"], latents, atol=1e-5, rtol=1e-5)
            given = run(f"quantizer{suffix}", latents)
            digits = made.digits(encoded, made.spec(images.shape[2], images.shape[3]))
            assert torch.equal(given["digits"].to(torch.int64), digits)
            assert torch.equal(given["codes"], encoded.codes)
            numbers = given["digits"] if encoded.indices is None else encoded.indices
            assert encoded.indices is None or torch.equal(given["indices"], encoded.indices)
            assert torch.equal(run(f"dequantizer{suffix}", numbers)["codes"], encoded.codes)
        torch.testing.assert_close(run("decoder", encoded.codes)["images"], decoded, atol=1e-5, rtol=1e-5)


KINDS = {
    "vq": {"kind": "vq", "dim": 3, "codebook_size": 300},
    "kl": {"kind": "kl", "dim": 3},
    "residual": {"kind": "residual", "levels": (9, 5), "stages": 2, "cells": "equal"},
    "digits without an index": {"levels": (3,) * 41},
}


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_program_of_each_kind(name):
    made = tokenizer(**KINDS[name])
    parts = {part.name: part for part in (*network_parts(made), *rate_parts(made.quantizer))}
    programs = {name: trace(part).module() for name, part in parts.items()}
    compare(made, lambda part, x: programs[part](x))
    assert ("quantizer" in parts) == (made.quantizer.lattice is not None)


@torch.no_grad()
def test_programs_of_nested_levels_by_the_command(tmp_path, capsys):
    made = tokenizer(replace(SMALL, middle_attention=True), levels=(17, 17), nested_levels=(5, 17))
    made.save_pretrained(tmp_path / "saved")
    out = tmp_path / "graphs"
    assert main(["export", "torch", str(tmp_path / "saved"), "--out", str(out), "--levels", "5"]) == 0
    assert "digits equal" in capsys.readouterr().out
    programs = {file.stem: torch.export.load(file).module() for file in out.glob("*.pt2")}
    for suffix, levels in (("", 5), ("_17", 17)):
        compare(made.at_levels(levels), lambda part, x: programs[part](x), suffix)
    table = json.loads((out / MANIFEST).read_text())
    assert [rate["levels"] for rate in table["rates"]] == [[5, 5], [17, 17]]
    assert [rate["quantizer"] for rate in table["rates"]] == ["quantizer.pt2", "quantizer_17.pt2"]
    assert (table["images"]["multiple"], table["images"]["smallest"]) == (4, 8)
    assert table["rates"][0]["tokenizer"] == made.at_levels(5).digest() == table["tokenizer"]
    assert {file["file"] for file in table["files"]} == {path.name for path in out.iterdir()} - {MANIFEST}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A tokenizer with indices beyond 2^24, as ONNX with halved weights: the folder, and what it must equal."""
    for package in FORMATS["onnx"].needs:
        pytest.importorskip(package, reason="the extra `export` is not installed")
    out = tmp_path_factory.mktemp("onnx") / "graphs"
    made = tokenizer(SMALL, levels=(17,) * 8)
    with checks_of_shapes_off():
        lines = export_graphs(made, out, "onnx", {"steps": None}, half=True)
    assert "digits equal" in lines[1]
    return out, write.rounded(made)


@torch.no_grad()
def test_onnx_equals_the_tokenizer_at_any_size(written):
    out, made = written
    opened = {file.stem: formats.open_onnx(file) for file in out.glob("*.onnx")}
    compare(made, lambda part, x: opened[part](x))
    largest = torch.tensor([[[17**8 - 1, 17**7, 2**24 + 1]]])
    assert torch.equal(opened["dequantizer"](largest)["codes"], made.quantizer.indices_to_codes(largest))


def test_onnx_files_say_what_they_take_and_nothing_of_this_machine(written):
    import onnx

    out, made = written
    table = json.loads((out / MANIFEST).read_text())
    assert table["weights"].startswith("float16")
    assert table["tokenizer"] == made.digest() != table["rounded_from"]
    for file in table["files"]:
        model = onnx.load(out / file["file"])
        assert model.opset_import[0].version == table["opset"] == formats.OPSET
        assert {prop.key: prop.value for prop in model.metadata_props}["tokenizer"] == made.digest()
        for value, told in zip([*model.graph.input, *model.graph.output], [file["takes"], *file["gives"]], strict=True):
            shape = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            assert (value.name, shape) == (told["name"], told["shape"])
        assert not re.search(rb'File "|site-packages', (out / file["file"]).read_bytes())
    tensors = onnx.load(out / "decoder.onnx").graph.initializer
    halved = [tensor for tensor in tensors if tensor.data_type == onnx.TensorProto.FLOAT16]
    assert halved
    assert min(np.prod(tensor.dims) for tensor in halved) >= formats.FEW


@torch.no_grad()
def test_the_manifest_alone_tells_how_to_quantize(written):
    """Digits, indices and codes in NumPy, from what ``tokenizer.json`` says."""
    out, made = written
    rate = json.loads((out / MANIFEST).read_text())["rates"][0]
    latents = torch.randn(1, 8, 3, 5)
    steps = np.array(rate["thresholds"], dtype=np.float32)
    digits = (latents.numpy()[0, :, :, :, None] >= steps[:, None, None]).sum(-1)
    assert (rate["cells"], rate["digit_order"], rate["groups"]) == ("paper", "little", [8])
    indices = sum(digits[i] * 17**i for i in range(8))
    expected = made.quantizer(latents)
    assert np.array_equal(indices, expected.indices[0].numpy())
    half = rate["levels"][0] // 2
    assert np.array_equal((digits.astype(np.float32) - half) / half, expected.codes[0].numpy())


def test_the_example_of_the_docs_runs(written, root, monkeypatch, capsys):
    out, _ = written
    page = (root / "docs/export.md").read_text()
    example = re.search(r"```python\n(import json.*?)```", page, flags=re.DOTALL)
    assert example is not None
    monkeypatch.chdir(out.parent)
    names = {}
    exec(example[1].replace('"photo.png"', repr(str(photograph(out.parent)))), names)
    assert names["again"].dtype == np.uint8
    assert names["again"].shape == (1, 24, 32, 3)


def photograph(folder):
    from PIL import Image

    path = folder / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (25, 33, 3), np.uint8)).save(path)
    return path


def eager(made, off=None):
    """A format that writes empty files and opens them as the modules themselves, one of which may be ``off``."""
    modules = {}

    def keep(part, path, about):
        modules[path.stem] = part.module
        path.write_text(json.dumps(dict(about)))

    def open_(path):
        def run(x):
            found = modules[path.stem](x)
            return {name: off[1](name, y) if off and off[0] == path.stem else y for name, y in found.items()}

        return run

    return Format(".eager", lambda it: it, keep, open_)


DISAGREEMENTS = {
    "encoder": (lambda name, y: y + 2e-3, "encoder: differs from the tokenizer by 0.002 in values up to"),
    "decoder": (lambda name, y: y * torch.nan, "decoder: differs from the tokenizer by nan"),
    "quantizer": (lambda name, y: y.roll(1) if name == "indices" else y, "indices differ on the same latents"),
    "dequantizer": (lambda name, y: y[:, :1], r"dequantizer: gives \(8, 1, 32, 32\) where the tokenizer gives"),
}


@pytest.mark.parametrize("part", DISAGREEMENTS)
def test_graphs_that_disagree_are_refused_with_numbers(part, tmp_path, monkeypatch):
    off, message = DISAGREEMENTS[part]
    made = tokenizer(levels=(17, 17))
    monkeypatch.setitem(FORMATS, "torch", eager(made, (part, off)))
    with pytest.raises(InputError, match=message):
        export_graphs(made, tmp_path / "out", "torch", {})
    assert not list(tmp_path.iterdir())


def test_digits_that_differ_in_the_last_bits_are_counted_and_many_refused(tmp_path, monkeypatch):
    made = tokenizer(levels=(17, 17))

    def moved(one_in):
        return lambda name, y: y + torch.where(torch.arange(y.numel()).view(y.shape) % one_in == 0, 9e-5, 0)

    monkeypatch.setitem(FORMATS, "torch", eager(made, ("encoder", moved(1))))
    lines = export_graphs(made, tmp_path / "few", "torch", {})
    found = json.loads((tmp_path / "few" / MANIFEST).read_text())["checked"]
    assert 0 < found["other_digits"] < found["digits"] / 1000
    assert f"{found['digits'] - found['other_digits']:,} of {found['digits']:,} digits equal" in lines[1]
    with torch.no_grad():
        made.quant_conv.weight.mul_(0.02)  # latents that all lie near the boundaries of fine levels
    fine = tokenizer(levels=(20001, 20001))
    monkeypatch.setitem(FORMATS, "torch", eager(fine, ("encoder", moved(1))))
    with pytest.raises(InputError, match=r"encoder: \d+ of \d+ digits differ; expected at most one of 1000"):
        export_graphs(fine, tmp_path / "many", "torch", {})


def test_what_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    made = tokenizer()
    made.save_pretrained(tmp_path / "saved")
    saved, out = str(tmp_path / "saved"), str(tmp_path / "out")
    for arguments, message in (
        (["onnx", saved, "--out", saved], "exists; expected a new folder"),
        (["onnx", str(tmp_path), "--out", out], "holds no config.json"),
        (["torch", saved, "--out", out, "--levels", "5"], "levels 5: expected what the tokenizer was trained at"),
        (["torch", saved, "--out", out, "--half"], "'--half': no such argument"),
    ):
        assert main(["export", *arguments]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(InputError, match="half with torch: expected onnx"):
        export_graphs(made, tmp_path / "out", "torch", {}, half=True)
    with torch.no_grad():
        made.decoder.conv_out.bias[0] = 7e4
    with pytest.raises(InputError, match="beyond float16's 65504"):
        write.rounded(made)
    monkeypatch.setattr(formats, "LARGEST", 1000)
    with pytest.raises(InputError, match=r"encoder.onnx: its weights take .* GiB; a file of ONNX holds 2"):
        export_graphs(tokenizer(), tmp_path / "out", "onnx", {})
    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], needs=("onnx", "no_such_package")))
    with pytest.raises(InputError, match=r"needs the package no_such_package.*ifsq\[export\]"):
        export_graphs(made, tmp_path / "out", "onnx", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved"]


def test_thresholds_where_a_level_is_never_reached():
    """A quantizer that saturates below its last level."""
    lattice = FSQ([5], cells="equal").lattice

    class Short(nn.Module):
        def forward(self, z):
            return FSQ([5], cells="equal", channel_first=True)(z.clamp(-9, 0))

    table = thresholds(Short(), lattice)
    assert table[0, :2].isfinite().all()
    assert table[0, 2:].isinf().all()


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["group", "layer", "rms"])
@torch.no_grad()
def test_every_norm_with_attention_in_a_runtime(norm, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    made = tokenizer(replace(FULL, norm=norm))
    export_graphs(made, tmp_path / "out", "onnx", {})
    opened = {file.stem: formats.open_onnx(file) for file in (tmp_path / "out").glob("*.onnx")}
    compare(made, lambda part, x: opened[part](x))
