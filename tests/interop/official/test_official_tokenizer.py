"""Official tokenizer checkpoints: in, out again with the same tensors, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file

import ifsq
from ifsq.cli import main
from ifsq.config import InputError
from ifsq.interop.official.exporting import export_checkpoint
from ifsq.interop.official.importing import Asked, import_checkpoint
from ifsq.interop.official.tokenizer import official_tensors, read_official, write_official
from ifsq.interop.official.tokenizer_config import read_official_config
from ifsq.store.pickles import read_pickle
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig

CONFIG = {
    "_class_name": "ImageFSQVAEModel",
    "_diffusers_version": "0.27.2",
    "hidden_size": 32,
    "hidden_size_mult": [1, 2],
    "num_res_blocks": 1,
    "z_channels": 4,
    "embed_dim": 4,
    "encoder_resnet_blocks": ["ResnetBlock2D"] * 2,
    "encoder_spatial_downsample": ["Downsample", ""],
    "decoder_resnet_blocks": ["ResnetBlock2D"] * 2,
    "decoder_spatial_upsample": ["", "Upsample"],
    "levels": [17, 17, 17, 17],
    "do_simple_bound": True,
    "act_fun": "scale_sigmoid_16",
    "resolution": 32,
}
SMALL = ConvConfig(width=32, multipliers=(1, 2), blocks=1)


def tiny(**quantizer):
    torch.manual_seed(0)
    return Tokenizer(TokenizerConfig(SMALL, QuantizerConfig(**quantizer))).eval()


def saved(folder, change=lambda file: None, **config):
    """A checkpoint as the official trainer writes it, changed, and its config: two paths."""
    tensors = official_tensors(tiny())
    integers = {
        "_levels": [17.0] * 4,
        "_basis": [1.0, 17.0, 289.0, 4913.0],
        "_basis_group_0": [1.0, 17.0, 289.0, 4913.5],
    }
    averaged = {f"module.{key}": value * 0.5 for key, value in tensors.items()}
    averaged |= {f"module.quantize.{key}": torch.tensor(value) for key, value in integers.items()}
    file = {
        "epoch": 0,
        "current_step": 1,
        "optimizer_state": {"gen_optimizer": {"state": {}, "param_groups": []}},
        "state_dict": {"gen_model": tensors, "dics_model": {"discriminator.main.0.bias": torch.zeros(3)}},
        "ema_state_dict": averaged,
    }
    change(file)
    torch.save(file, folder / "official.ckpt")
    kept = {key: value for key, value in {**CONFIG, **config}.items() if value is not None}
    (folder / "run.json").write_text(json.dumps(kept))
    return folder / "official.ckpt", folder / "run.json"


def files_of(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_the_official_file_comes_out_as_it_went_in(golden_folder, tmp_path, weights):
    paths = golden_folder / "ckpt_tokenizer_tiny.ckpt", golden_folder / "ckpt_tokenizer_tiny.config.json"
    tokenizer = read_official(*paths, weights)
    assert not tokenizer.training
    config = write_official(tokenizer, tmp_path / "again.ckpt")
    before, after = (torch.load(p, weights_only=True) for p in (paths[0], tmp_path / "again.ckpt"))
    assert after.keys() == before.keys()
    raw = after["state_dict"]["gen_model"]
    assert raw.keys() == before["state_dict"]["gen_model"].keys()
    assert after["ema_state_dict"].keys() == {f"module.{key}" for key in raw}
    for key, value in raw.items():
        expected = (
            before["ema_state_dict"][f"module.{key}"] if weights == "ema" else before["state_dict"]["gen_model"][key]
        )
        assert value.shape == expected.shape
        assert value.dtype == expected.dtype
        if "running" not in key:  # not kept: a new model's
            assert torch.equal(value, expected)
            assert torch.equal(after["ema_state_dict"][f"module.{key}"], expected)
    official = json.loads(paths[1].read_text())
    del official["resolution"]
    assert json.loads(config.read_text()) == official
    again = read_official(tmp_path / "again.ckpt", config)
    assert again.digest() == tokenizer.digest()


def test_the_imported_tokenizer_computes_what_the_official_one_does(golden, tmp_path):
    file = golden("tokenizer_fsq_2level")
    state = {key[3:]: file.get_tensor(key) for key in file.keys() if key.startswith("sd/")}  # noqa: SIM118
    torch.save({"state_dict": {"gen_model": state}}, tmp_path / "official.ckpt")
    (tmp_path / "config.json").write_text(file.metadata()["config"])
    tokenizer = read_official(tmp_path / "official.ckpt", tmp_path / "config.json", "raw")
    encoded = tokenizer.encode(file.get_tensor("in/x"))
    close = {"atol": 2e-5, "rtol": 1e-4}
    torch.testing.assert_close(encoded.codes, file.get_tensor("out/z_q"), **close)
    assert torch.equal(encoded.indices, file.get_tensor("out/indices").squeeze(-1))
    torch.testing.assert_close(tokenizer.decode(encoded.codes), file.get_tensor("out/recon"), **close)


FULL_SIZE = {
    "tokenizer_ifsq_f16_d4_4bit": QuantizerConfig(),
    "tokenizer_vae_f16": QuantizerConfig(kind="kl"),
    "tokenizer_vq_f16": QuantizerConfig(kind="vq", commitment_weight=1.0, codebook_weight=0.5),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_names_and_shapes(name, golden_folder):
    with torch.device("meta"):
        model = Tokenizer(TokenizerConfig(quantizer=FULL_SIZE[name]))
    tensors = official_tensors(model.to_empty(device="cpu"))
    official = json.loads((golden_folder / "state_dict_keys.json").read_text())[name]
    assert {key: [list(t.shape), str(t.dtype).removeprefix("torch.")] for key, t in tensors.items()} == official


def flat(value, name=""):
    """Leaves of nested containers by their place."""
    if not isinstance(value, dict | list | tuple):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    parts = [flat(part, f"{name}/{key!r}") for key, part in items]
    return {f"{name}:": type(value).__name__} | {key: leaf for part in parts for key, leaf in part.items()}


def assert_same_file(first, second):
    before, after = (flat(read_pickle(path)) for path in (first, second))
    assert list(after) == list(before)
    for key, value in before.items():
        if isinstance(value, torch.Tensor):
            assert after[key].dtype == value.dtype, key
            assert torch.equal(after[key], value), key
        else:
            assert after[key] == value, key


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_the_official_file_is_exported_whole(golden_folder, tmp_path, weights):
    path, config = golden_folder / "ckpt_tokenizer_tiny.ckpt", golden_folder / "ckpt_tokenizer_tiny.config.json"
    import_checkpoint(path, tmp_path / "run", Asked(config, weights))
    export_checkpoint(tmp_path / "run", tmp_path / "again.ckpt")
    written = tmp_path / "again.config.json"
    assert_same_file(path, tmp_path / "again.ckpt")
    assert json.loads(written.read_text()) == json.loads(config.read_text())


def golden_checkpoint(golden, folder, kind):
    """A golden state dict in a file of the official trainer, averages halved: its path, its config, the vectors."""
    file = golden(f"tokenizer_{kind}_2level")
    state = {key[3:]: file.get_tensor(key) for key in file.keys() if key.startswith("sd/")}  # noqa: SIM118
    averaged = {f"module.{key}": value / 2 for key, value in state.items()}
    whole = {"epoch": 3, "state_dict": {"gen_model": state, "dics_model": {}}, "ema_state_dict": averaged}
    torch.save(whole, folder / "official.ckpt")
    name = {"vae": "ImageVAEModel", "vq": "ImageVQVAEModel"}[kind]
    (folder / "run.json").write_text(json.dumps({"_class_name": name, **json.loads(file.metadata()["config"])}))
    return folder / "official.ckpt", folder / "run.json", file


@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize("kind", ["vae", "vq"])
def test_vae_and_vq_go_in_and_out(kind, weights, golden, tmp_path):
    path, config, file = golden_checkpoint(golden, tmp_path, kind)
    import_checkpoint(path, tmp_path / "run", Asked(config, weights))
    tokenizer = Tokenizer.from_pretrained(tmp_path / "run")
    export_checkpoint(tmp_path / "run", tmp_path / "whole.ckpt")
    assert_same_file(path, tmp_path / "whole.ckpt")
    (tmp_path / "run" / "official.safetensors").unlink()
    export_checkpoint(tmp_path / "run", tmp_path / "again.ckpt")
    written = tmp_path / "again.config.json"
    assert json.loads(written.read_text()) == {
        k: v for k, v in json.loads(config.read_text()).items() if k != "resolution"
    }
    again = torch.load(tmp_path / "again.ckpt", weights_only=True)["state_dict"]["gen_model"]
    scale = 0.5 if weights == "ema" else 1.0
    state = {key[3:]: file.get_tensor(key) * scale for key in file.keys() if key.startswith("sd/")}  # noqa: SIM118
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], value) for key, value in state.items() if "running" not in key)
    if weights == "raw":
        encoded = tokenizer.encode(file.get_tensor("in/x"))
        torch.testing.assert_close(encoded.codes, file.get_tensor("out/z_q"), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(tokenizer.decode(encoded.codes), file.get_tensor("out/recon"), atol=2e-5, rtol=1e-4)


def test_the_weights_of_the_official_vq_loss(golden, tmp_path):
    path, config, file = golden_checkpoint(golden, tmp_path, "vq")
    tokenizer = read_official(path, config, "raw")
    told = sum(tokenizer(file.get_tensor("in/x")).losses.values())
    torch.testing.assert_close(told, file.get_tensor("out/vq_loss").reshape(told.shape), atol=1e-6, rtol=1e-4)
    assert (tokenizer.config.quantizer.commitment_weight, tokenizer.config.quantizer.codebook_weight) == (1.0, 0.5)


def test_attention_and_dropout_go_out_and_in(tmp_path):
    conv = ConvConfig(width=32, multipliers=(1, 2), blocks=1, attention=(2,), dropout=0.25)
    tokenizer = Tokenizer(TokenizerConfig(conv)).eval()
    config = write_official(tokenizer, tmp_path / "out.ckpt")
    assert json.loads(config.read_text())["attn_resolutions"] == [128]
    again = read_official(tmp_path / "out.ckpt", config)
    assert again.digest() == tokenizer.digest()
    assert again.config == tokenizer.config
    assert any(".attn." in key for key in official_tensors(tokenizer))


def test_the_official_rms_norm_is_a_layer_norm(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({**CONFIG, "norm_type": "rmsnorm"}))
    assert read_official_config(tmp_path / "run.json").conv.norm == "layer"


def test_averaged_and_raw_weights_are_told_apart(tmp_path):
    paths = saved(tmp_path)
    raw, averaged = (read_official(*paths, weights).state_dict() for weights in ("raw", "ema"))
    assert all(torch.equal(averaged[key], raw[key] * 0.5) for key in raw)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    read_official(*paths, "ema")
    assert torch.equal(torch.rand(3), expected)  # no random weights are drawn on the way


@pytest.mark.parametrize(
    "quantizer",
    [
        {},
        {"alpha": 2.0, "levels": (9, 5, 3)},
        {"bound": "tanh", "levels": (8, 8, 5)},
        {"groups": (1, 3)},
    ],
)
def test_every_official_quantizer_goes_out_and_in(quantizer, tmp_path):
    tokenizer = tiny(**quantizer)
    images = torch.rand(2, 3, 16, 8) * 2 - 1
    config = write_official(tokenizer, tmp_path / "new" / "out.ckpt")
    again = read_official(tmp_path / "new" / "out.ckpt", config)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["out.ckpt", "out.config.json"]
    assert torch.equal(again.encode(images).indices, tokenizer.encode(images).indices)
    assert torch.equal(again(images).images, tokenizer(images).images)
    assert json.loads(config.read_text())["do_simple_bound"] == (quantizer.get("bound") != "tanh")


class Foreign:
    """Code that an unsafe loader would run."""


def emptied(file):
    file["ema_state_dict"] = {}


def without_generator(file):
    file["model"] = file.pop("state_dict")
    del file["ema_state_dict"]


def with_raw(**tensors):
    return lambda file: file["state_dict"]["gen_model"].update(
        {key.replace("__", "."): value for key, value in tensors.items()}
    )


def with_averaged(**tensors):
    return lambda file: file["ema_state_dict"].update(
        {f"module.quantize.{key}": torch.tensor(value) for key, value in tensors.items()}
    )


FILES = {
    "empty EMA": ("ema", emptied, "ema_state_dict is empty; it was trained without EMA; expected tensors, take"),
    "a generator's file": ("ema", without_generator, "holds no ema_state_dict (but epoch, current_step"),
    "raw of a generator's file": ("raw", without_generator, "holds no state_dict.gen_model (but epoch"),
    "a table that is none": ("raw", lambda f: f["state_dict"].update(gen_model=3), "state_dict.gen_model is a int"),
    "missing": ("raw", lambda f: f["state_dict"]["gen_model"].pop("quant_conv.bias"), "'quant_conv.bias' is missing"),
    "unknown": ("raw", with_raw(encoder__extra=torch.zeros(1)), "tensor 'encoder.extra' is not part of this model"),
    "attention": ("raw", with_raw(encoder__down__0__attn__0__q__bias=torch.zeros(32)), "0.attn.0.q.bias' is not part"),
    "codebook": ("raw", with_raw(quantize__embedding__weight=torch.zeros(8, 4)), "embedding.weight' is not part"),
    "shape": ("raw", with_raw(quant_conv__bias=torch.zeros(8)), "'quant_conv.bias' has shape (8,), expected (4,)"),
    "integers": ("raw", with_raw(quant_conv__bias=torch.zeros(4).long()), "bias' is int64, expected float32"),
    "no tensor": ("raw", with_raw(quant_conv__bias=[0.0]), "'quant_conv.bias' is a list; expected a floating-point"),
    "twice": ("raw", with_raw(module__quant_conv__bias=torch.zeros(4)), "'module.quant_conv.bias' stands twice"),
    "levels": ("ema", with_averaged(_levels=[9.0] * 4), "_levels' is [9, 9, 9, 9]; expected [17, 17, 17, 17]"),
    "code": ("raw", lambda f: f.update(code=Foreign()), "cannot be read with weights_only=True"),
}  # fmt: skip

CONFIGS = {
    "no class": ({"_class_name": ["ImageVAE"]}, "_class_name: ['ImageVAE']; expected one of"),
    "class": (
        {"_class_name": "Model"},
        "_class_name: 'Model'; expected one of 'ImageFSQVAEModel', 'ImageVAEModel', 'Im",
    ),
    "another class": ({"_class_name": "ImageVAEModel"}, "levels: [17, 17, 17, 17]; expected no such key of 'ImageVAEM"),
    "beta": ({"beta": 0.5}, "beta: 0.5; expected no such key of 'ImageFSQVAEModel'"),
    "no levels": ({"levels": None}, "levels: is required"),
    "unknown key": ({"levls": [3]}, "levls: unknown key; did you mean 'levels'"),
    "act_fun": ({"act_fun": "tanh"}, "act_fun: input should be 'scale_sigmoid_16' or 'scale_sigmoid_20'"),
    "type": ({"hidden_size": "32"}, "hidden_size: input should be a valid integer"),
    "embed_dim": ({"embed_dim": 8}, "embed_dim: 8; expected 4"),
    "attention": ({"attn_resolutions": [8]}, "attn_resolutions: 8; expected sides among 32, 16"),
    "attention class": (
        {"attn_resolutions": [16], "decoder_attention": "A"},
        "decoder_attention: 'A'; expected 'AttnB",
    ),
    "norms": ({"attn_resolutions": [16], "norm_type": "rmsnorm"}, "attn_resolutions: [16]; expected []"),
    "norm": ({"norm_type": "batchnorm"}, "norm_type: input should be 'groupnorm', 'layernorm' or 'rmsnorm'"),
    "blocks": ({"decoder_spatial_upsample": ["Upsample", ""]}, "decoder_spatial_upsample: ['Upsample', '']; expected"),
    "even levels": ({"levels": [8] * 4}, "paper cells with bound='ifsq' need odd levels"),
    "width": ({"hidden_size": 48}, "width=48: expected a multiple of groups=32"),
    "groups": ({"factorized_bits": [2, 3]}, "groups=[2, 3]: expected positive sizes"),
    "another shape": ({"hidden_size": 64}, "'decoder.conv_in.bias' has shape (64,), expected (128,)"),
    "absurd shape": ({"hidden_size": 32 * 10**6}, "has shape (64,), expected (64000000,)"),
    "impossible shape": ({"hidden_size": 2**60}, "description is of no model that could be these tensors"),
    "another depth": ({"num_res_blocks": 2}, "is missing"),
    "another latent": ({"levels": [17] * 3, "embed_dim": 3}, "expected [17, 17, 17], the levels in"),
}


def refused(capsys, arguments):
    """The one line that a command refuses with."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    told = capsys.readouterr().err
    assert code == 2
    assert told.count("\n") == 1, told
    return told


@pytest.mark.parametrize("case", FILES)
def test_bad_files_are_refused_in_one_line(case, tmp_path, capsys):
    weights, change, message = FILES[case]
    path, config = saved(tmp_path, change)
    before = files_of(tmp_path)
    out = tmp_path / "deep" / "out"
    told = refused(capsys, ["import", "official", path, "--config", config, "--out", out, "--weights", weights])
    assert told.startswith(f"ifsq: {path}")
    assert message in told
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("case", CONFIGS)
def test_bad_configs_are_refused_in_one_line(case, tmp_path, capsys):
    change, message = CONFIGS[case]
    path, config = saved(tmp_path, **change)
    before = files_of(tmp_path)
    told = refused(capsys, ["import", "official", path, "--config", config, "--out", tmp_path / "out"])
    assert str(config) in told
    assert message in told
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("damage", [b"", b"dear all", b"PK\x03\x04", b"\x80\x02}q\x00.", b"cut", None])
def test_damaged_files_are_refused(damage, tmp_path, capsys):
    path, config = saved(tmp_path)
    content = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(content[: len(content) // 2] if damage == b"cut" else damage)
    told = refused(capsys, ["import", "official", path, "--config", config, "--out", tmp_path / "out"])
    assert f"{path}: {'no such file' if damage is None else 'cannot be read'}" in told
    config.write_text("[]")
    assert "expected a JSON object" in refused(
        capsys, ["import", "official", path, "--config", config, "--out", tmp_path / "out"]
    )
    assert not (tmp_path / "out").exists()


def test_the_commands(tmp_path, capsys):
    path, config = saved(tmp_path)
    run = tmp_path / "new" / "run"
    assert main(["import", "official", str(path), "--config", str(config), "--out", str(run)]) == 0
    assert {file.name for file in run.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "official.safetensors",
    }
    assert [file.name for file in run.parent.iterdir()] == ["run"]
    assert "quantize.running_mean" not in load_file(run / "model.safetensors")
    assert main(["export", "official", str(run), "--out", str(tmp_path / "again.ckpt")]) == 0
    assert "again.config.json" in capsys.readouterr().out
    again = read_official(tmp_path / "again.ckpt", tmp_path / "again.config.json")
    assert again.digest() == Tokenizer.from_pretrained(run).digest()
    before = files_of(tmp_path)
    into = ["import", "official", path, "--config", config, "--out"]
    assert "run: exists; expected a new folder" in refused(capsys, [*into, run])
    assert "run.json: exists" in refused(capsys, [*into, config])
    assert "again.ckpt: exists" in refused(capsys, ["export", "official", run, "--out", tmp_path / "again.ckpt"])
    assert "ends in .ckpt" in refused(capsys, ["export", "official", run, "--out", tmp_path / "again.pt"])
    assert "gone: no such folder" in refused(capsys, ["export", "official", tmp_path / "gone", "--out", "out.ckpt"])
    assert "invalid choice: 'both'" in refused(capsys, [*into, tmp_path / "out", "--weights", "both"])
    assert files_of(tmp_path) == before


UNKNOWN_THERE = {
    "cells": (TokenizerConfig(SMALL, QuantizerConfig(cells="equal")), "cells='equal'; expected 'paper'"),
    "alpha": (TokenizerConfig(SMALL, QuantizerConfig(alpha=1.7)), "alpha=1.7; expected 1.6 or 2.0"),
    "bound": (TokenizerConfig(SMALL, QuantizerConfig(bound="gaussian")), "bound='gaussian'; expected 'ifsq' or 'tanh'"),
    "order": (TokenizerConfig(SMALL, QuantizerConfig(digit_order="big")), "digit_order='big'; expected 'little'"),
    "kind": (TokenizerConfig(SMALL, QuantizerConfig(kind="ae")), "kind='ae'; expected 'fsq' or 'vq' or 'kl'"),
    "channels": (TokenizerConfig(ConvConfig(width=32, multipliers=(1,), in_channels=1)), "in_channels=1; expected 3"),
    "patch": (TokenizerConfig(ConvConfig(width=32, multipliers=(1,), patch=2)), "patch=2; expected 1"),
    "norm": (TokenizerConfig(ConvConfig(width=32, multipliers=(1,), groups=4)), "groups of the norm=4; expected 32"),
    "rms": (TokenizerConfig(ConvConfig(width=32, multipliers=(1,), norm="rms")), "norm='rms'; expected 'group'"),
    "commitment": (TokenizerConfig(SMALL, QuantizerConfig(kind="vq")), "commitment_weight=0.25; expected 1.0"),
    "middle": (
        TokenizerConfig(ConvConfig(width=32, multipliers=(1,), middle_attention=True)),
        "middle_attention=True; expected False",
    ),
}


@pytest.mark.parametrize("case", UNKNOWN_THERE)
def test_what_the_official_tokenizer_cannot_hold_is_not_written(case, tmp_path):
    config, message = UNKNOWN_THERE[case]
    with pytest.raises(InputError, match="the official tokenizer has no ") as caught:
        write_official(Tokenizer(config), tmp_path / "new" / "out.ckpt")
    assert message in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_calibrated_tokenizer_is_not_written(tmp_path):
    tokenizer = tiny()
    ifsq.calibrate(tokenizer, [torch.rand(16, 3, 16, 16) * 2 - 1])
    with pytest.raises(InputError, match="the official tokenizer has no bound="):
        write_official(tokenizer, tmp_path / "out.ckpt")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_export_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "out.ckpt")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write_official(tiny(), tmp_path / "out.ckpt")
    assert not list(tmp_path.iterdir())


def test_the_second_sigmoid_is_the_tanh_without_the_margin(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({**CONFIG, "act_fun": "scale_sigmoid_20"}))
    quantizer = read_official_config(tmp_path / "run.json").quantizer
    assert (quantizer.bound, quantizer.alpha, quantizer.cells) == ("ifsq", 2.0, "paper")
    (tmp_path / "run.json").write_text(json.dumps({**CONFIG, "do_simple_bound": False}))
    assert read_official_config(tmp_path / "run.json").quantizer.bound == "tanh"


def test_other_levels_of_a_nested_tokenizer_are_told(tmp_path):
    """The official config holds one level count, although the weights serve several."""
    tokenizer = tiny(levels=(9,) * 4, nested_levels=(5, 9, 17))
    tokenizer.save_pretrained(tmp_path / "run")
    told = export_checkpoint(tmp_path / "run", tmp_path / "out.ckpt")
    assert told[1:] == ["levels: 9; the weights also serve 5, 17, which the official config cannot say"]
    again = read_official(tmp_path / "out.ckpt", tmp_path / "out.config.json")
    assert again.quantizer.levels == (9,) * 4
    tiny().save_pretrained(tmp_path / "plain")
    assert export_checkpoint(tmp_path / "plain", tmp_path / "plain.ckpt")[1:] == []
