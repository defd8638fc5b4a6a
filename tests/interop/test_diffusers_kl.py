"""Stable Diffusion's autoencoder against diffusers itself, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ifsq.cli import main
from ifsq.interop.diffusers_kl import WEIGHTS
from ifsq.tokenizer.model import Tokenizer

TINY = {"block_out_channels": (8, 16, 16), "norm_num_groups": 4, "layers_per_block": 2, "latent_channels": 3}
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def theirs(folder, **config):
    """A random autoencoder of diffusers, saved by it."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    config = {**TINY, **config}
    levels = len(config["block_out_channels"])
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    model = diffusers.AutoencoderKL(**{**blocks, **config}).eval()
    with torch.no_grad():
        for value in model.parameters():  # norms and biases too, so that none may be swapped
            value.add_(torch.randn_like(value) * 0.1)
    model.save_pretrained(folder)
    return model


OPTIONS = {
    "as Stable Diffusion": {},
    "without attention": {"mid_block_add_attention": False},
    "without the convolutions around the codes": {"use_quant_conv": False, "use_post_quant_conv": False},
    "one channel": {"in_channels": 1, "out_channels": 1},
    "one resolution": {"block_out_channels": (8,), "shift_factor": 0.1, "scaling_factor": 0.36},
}


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_equal_to_diffusers(name, tmp_path, capsys):
    model = theirs(tmp_path / "theirs", **OPTIONS[name])
    out = tmp_path / "deep" / "out"
    assert main(["import", "diffusers", str(tmp_path / "theirs"), "--out", str(out)]) == 0
    assert f"tokenizer: {out}" in capsys.readouterr().out
    tokenizer = Tokenizer.from_pretrained(out)
    images = torch.rand(2, tokenizer.channels, 32, 24) * 2 - 1
    posterior = model.encode(images).latent_dist
    torch.testing.assert_close(tokenizer.encode(images).codes, posterior.mean, **CLOSE)
    ours = tokenizer.quantizer.posterior(tokenizer.latent(images))
    torch.testing.assert_close(ours.logvar, posterior.logvar, **CLOSE)
    torch.testing.assert_close(tokenizer.decode(posterior.mean), model.decode(posterior.mean).sample, **CLOSE)
    kept = json.loads((out / "diffusers.json").read_text())
    assert kept["scaling_factor"] == model.config.scaling_factor
    assert f"* {model.config.scaling_factor:g}`" in (out / "README.md").read_text()


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@torch.no_grad()
def test_old_names_of_attention(tmp_path):
    model = theirs(tmp_path / "theirs")
    table = load_file(tmp_path / "theirs" / WEIGHTS)
    for new, old in OLD.items():
        table = {key.replace(f".{new}.", f".{old}."): value for key, value in table.items()}
    wide = {
        k: v[..., None, None] if any(f".{old}.weight" in k for old in OLD.values()) else v for k, v in table.items()
    }
    assert sum(value.ndim == 4 for value in wide.values()) == sum(value.ndim == 4 for value in table.values()) + 8
    save_file(wide, tmp_path / "theirs" / WEIGHTS)
    assert main(["import", "diffusers", str(tmp_path / "theirs"), "--out", str(tmp_path / "out")]) == 0
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    codes = Tokenizer.from_pretrained(tmp_path / "out").encode(images).codes
    torch.testing.assert_close(codes, model.encode(images).latent_dist.mean, **CLOSE)


CONFIGS = {
    "class": ({"_class_name": "VQModel"}, "_class_name: 'VQModel'; expected 'AutoencoderKL'"),
    "blocks": ({"layers_per_block": 1}, "layers_per_block: 1; expected 2"),
    "activation": ({"act_fn": "relu"}, "act_fn: 'relu'; expected 'silu'"),
    "block type": ({"down_block_types": ["DownBlock2D"] * 3}, "down_block_types: ['DownBlock2D', 'DownBlock2D'"),
    "widths": ({"block_out_channels": [8, 12, 16]}, "block_out_channels: [8, 12, 16]; expected multiples"),
    "unknown": ({"wavelets": True}, "wavelets: unknown key"),
    "shape": ({"latent_channels": 4}, "has shape"),
    "attention": ({"mid_block_add_attention": False}, "mid_attention.k.bias' is not part of this model"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_what_has_no_place_is_refused_in_one_line(case, tmp_path, capsys):
    change, message = CONFIGS[case]
    theirs(tmp_path / "theirs")
    config = tmp_path / "theirs" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    assert main(["import", "diffusers", str(tmp_path / "theirs"), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert message in told
    assert not (tmp_path / "out").exists()


def test_missing_and_damaged_files(tmp_path, capsys):
    theirs(tmp_path / "theirs")
    command = ["import", "diffusers", str(tmp_path / "theirs"), "--out", str(tmp_path / "out")]
    (tmp_path / "theirs" / WEIGHTS).write_bytes(b"{}")
    assert main(command) == 2
    assert f"{WEIGHTS}: cannot be read" in capsys.readouterr().err
    (tmp_path / "theirs" / "config.json").unlink()
    assert main(command) == 2
    assert "config.json: no such file" in capsys.readouterr().err
    assert main(["import", "diffusers", "gone", "--out", str(tmp_path / "out")]) == 2
    assert main(["import", "diffusers", "gone", "--out", str(tmp_path / "theirs")]) == 2
    assert "theirs: exists; expected a new folder" in capsys.readouterr().err
