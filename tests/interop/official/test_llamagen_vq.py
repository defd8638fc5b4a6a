"""LlamaGen's VQ-16 and VQ-8: what its class computes, its names at full size, and what is refused."""

import json
from argparse import Namespace

import pytest
import torch
from safetensors.torch import load_file
from tests.interop.official.test_official_tokenizer import CONFIG, assert_same_file, refused

from ifsq.cli import main
from ifsq.config import InputError
from ifsq.interop.official.llamagen_vq import own_tensors, read_vq, vq_config, vq_tensors
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
LLAMAGEN = QuantizerConfig(kind="vq", dim=8, codebook_size=16384, normalize=True)


@pytest.fixture(scope="module")
def tiny(golden):
    """The golden file and its tensors by LlamaGen's names."""
    file = golden("llamagen_vq_tiny")
    return file, {key[3:]: file.get_tensor(key) for key in file.keys() if key.startswith("sd/")}  # noqa: SIM118


def conv_of(multipliers):
    last = 2 ** (len(multipliers) - 1)
    return ConvConfig(
        multipliers=multipliers, latent=256, double_latent=False, attention=(last,), middle_attention=True,
        middle_blocks=2,
    )  # fmt: skip


def test_it_computes_what_llamagen_does(tiny):
    file, table = tiny
    tokenizer = read_vq(table, "tiny")
    images = file.get_tensor("in/x")
    encoded = tokenizer.encode(images)
    torch.testing.assert_close(tokenizer.latent(images), file.get_tensor("out/quant_conv"), **CLOSE)
    assert torch.equal(encoded.indices.flatten(), file.get_tensor("out/indices"))
    torch.testing.assert_close(encoded.codes, file.get_tensor("out/z_q"), **CLOSE)
    torch.testing.assert_close(tokenizer.decode(encoded.codes), file.get_tensor("out/recon"), **CLOSE)
    drawn = tokenizer.decode_indices(encoded.indices)
    torch.testing.assert_close(drawn, file.get_tensor("out/recon_from_code"), **CLOSE)
    codes = tokenizer.quantizer.indices_to_codes(encoded.indices)
    torch.testing.assert_close(codes, file.get_tensor("out/z_from_code"), **CLOSE)
    losses = tokenizer.train()(images).losses
    assert losses.keys() == {"codebook", "commitment"}
    assert not file.get_tensor("train/entropy_loss").any()
    torch.testing.assert_close(losses["codebook"], file.get_tensor("train/vq_loss")[0], **CLOSE)
    torch.testing.assert_close(losses["commitment"], file.get_tensor("train/commit_loss")[0], **CLOSE)


def test_its_tensors_come_out_as_they_went_in(tiny):
    _, table = tiny
    again = own_tensors(read_vq(table, "tiny"))
    assert again.keys() == table.keys()
    assert all(torch.equal(again[key], value) for key, value in table.items())
    assert vq_config(table, "tiny").quantizer == QuantizerConfig(kind="vq", dim=8, codebook_size=64, normalize=True)


@pytest.mark.parametrize(
    ("name", "multipliers"), [("llamagen_VQ-16", (1, 1, 2, 2, 4)), ("llamagen_VQ-8", (1, 2, 2, 4))]
)
def test_full_size_names_and_shapes(name, multipliers, golden_folder):
    official = json.loads((golden_folder / "state_dict_keys.json").read_text())[name]
    with torch.device("meta"):
        model = Tokenizer(TokenizerConfig(conv_of(multipliers), LLAMAGEN))
        table = {key: torch.zeros(shape) for key, (shape, _) in official.items()}
    tensors = vq_tensors(model.to_empty(device="cpu"), "out.pt")
    assert {key: [list(t.shape), str(t.dtype).removeprefix("torch.")] for key, t in tensors.items()} == official
    assert vq_config(table, name) == model.config


def changed(table, **change):
    return {key: value for key, value in {**table, **change}.items() if value is not None}


BAD = {
    "missing": ({"decoder.mid.1.q.weight": None}, "tensor 'decoder.mid.1.q.weight' is missing"),
    "no codebook": ({"quantize.embedding.weight": None}, "tensor 'quantize.embedding.weight' is missing"),
    "foreign": ({"encoder.down.0.block.0.conv1.bias": torch.zeros(32)}, "'encoder.down.0.block.0.conv1.bias' is not"),
    "shape": ({"encoder.mid.1.k.weight": torch.zeros(64, 64)}, "k.weight' has shape (64, 64), expected (64, 64, 1, 1)"),
    "axes": ({"encoder.conv_in.weight": torch.zeros(32)}, "'encoder.conv_in.weight' has shape (32,), expected 4 axes"),
    "widths": ({"encoder.conv_blocks.1.res.0.conv1.weight": torch.zeros(48, 32, 3, 3)}, "widths [32, 48]; expected"),
    "not finite": ({"quant_conv.bias": torch.full((8,), torch.nan)}, "'quant_conv.bias' holds values that are not fin"),
    "type": ({"quant_conv.bias": torch.zeros(8, dtype=torch.int64)}, "'quant_conv.bias' is int64, expected float32"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_other_tensors_are_refused_by_name(case, tiny):
    change, message = BAD[case]
    with pytest.raises(InputError) as caught:
        read_vq(changed(tiny[1], **change), "file.pt: model")
    assert str(caught.value).startswith("file.pt: model: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": ()}, r"has no attention=\(\); expected \(2,\)"),
        ({"middle_attention": False}, "has no middle_attention=False; expected True"),
        ({"middle_blocks": 1}, "has no middle_blocks=1; expected 2"),
        ({"in_channels": 1}, "has no in_channels=1; expected 3"),
        ({"normalize": False}, "has no normalize=False; expected True"),
    ],
)
def test_what_llamagen_cannot_hold_is_not_written(options, message):
    quantizer = {name: value for name, value in options.items() if name == "normalize"}
    options = {name: value for name, value in options.items() if name != "normalize"}
    conv = {"width": 32, "multipliers": (1, 1), "attention": (2,), "middle_attention": True, "middle_blocks": 2}
    conv = ConvConfig(**{**conv, "blocks": 1, "double_latent": False, **options})
    made = QuantizerConfig(**{"kind": "vq", "codebook_size": 8, "normalize": True, **quantizer})
    with pytest.raises(InputError, match=message):
        vq_tensors(Tokenizer(TokenizerConfig(conv, made)), "out.pt")


FORMS = {
    "model": lambda table: {"model": table},
    "ema": lambda table: {"model": {key: value * 0 for key, value in table.items()}, "ema": table},
    "trained": lambda table: {"model": table, "optimizer": {}, "steps": 3, "args": Namespace(lr=1e-4)},
    "table": lambda table: table,
    "compiled": lambda table: {"model": {f"module._orig_mod.{key}": value for key, value in table.items()}},
    "bf16": lambda table: {"model": {key: value.bfloat16() for key, value in table.items()}, "steps": 3},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_goes_in_and_out(form, tiny, tmp_path, capsys):
    file, table = tiny
    saved = FORMS[form]({**table, "quantize.codebook_used": torch.arange(65536.0)})
    torch.save(saved, tmp_path / "vq.pt")
    run, again = tmp_path / "run", tmp_path / "again.pt"
    assert main(["import", "official", str(tmp_path / "vq.pt"), "--out", str(run)]) == 0
    assert f"tokenizer: {run}, LlamaGen's of f2, 64 codes of 8" in capsys.readouterr().out
    tokenizer = Tokenizer.from_pretrained(run)
    assert all(value.dtype == torch.float32 for value in tokenizer.state_dict().values())
    if form != "bf16":
        found = tokenizer.encode(file.get_tensor("in/x")).indices.flatten()
        assert torch.equal(found, file.get_tensor("out/indices"))
    assert main(["export", "official", str(run), "--out", str(again)]) == 0
    assert_same_file(tmp_path / "vq.pt", again)
    kept = load_file(run / "official.safetensors")
    assert all("codebook_used" in key or form == "ema" for key in kept)  # the weights are not stored twice
    (run / "official.safetensors").unlink()
    again.unlink()
    assert main(["export", "official", str(run), "--out", str(again)]) == 0
    fresh = torch.load(again, weights_only=True)
    assert fresh.keys() == {"model"}
    assert fresh["model"].keys() == {*table, "quantize.codebook_used"}


def test_what_is_refused_in_one_line(tiny, tmp_path, capsys):
    _, table = tiny
    path, out = tmp_path / "vq.pt", tmp_path / "out"
    into = ["import", "official", path, "--out", out]
    torch.save({"model": table}, path)
    assert "holds no ema (but model)" in refused(capsys, [*into, "--weights", "ema"])
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    told = refused(capsys, [*into, "--config", tmp_path / "config.json"])
    assert "holds a tokenizer of LlamaGen, whose tensors tell its sizes; expected no --config" in told
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "vq.pt: cannot be read" in refused(capsys, into)
    torch.save({"model": {**table, "encoder.mid.3.bias": torch.zeros(1)}}, path)
    assert "vq.pt: model: tensor 'encoder.mid.3.bias' is not part of this model" in refused(capsys, into)
    torch.save({"cls_embedding.uncond_embedding": torch.zeros(3)}, path)
    assert "vq.pt: holds a text-conditional LlamaGen, which is not read" in refused(capsys, into)
    torch.save({"model": {"module.t_embedder.mlp.0.weight": torch.zeros(3)}}, path)
    assert "vq.pt: model: tensor 'x_embedder.proj.weight' is missing; expected those of a DiT" in refused(capsys, into)
    torch.save({"model": {"weight": torch.zeros(3)}}, path)
    assert "of an official tokenizer expected --config" in refused(capsys, into)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "vq.pt"]
