"""Stable Diffusion's autoencoder against diffusers itself, and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ifsq.cli import main
from ifsq.codes.cache import CodeCache
from ifsq.interop.diffusers_files import WEIGHTS
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


def test_adapted_to_ifsq_from_the_command(tmp_path, capsys, quick_judge, monkeypatch):
    """Its codes become digits: fitted, trained for two steps, measured and written as a cache."""
    monkeypatch.setattr("ifsq.tokenizer.adapt.LATENTS", 2048)
    theirs(tmp_path / "theirs")
    rng = np.random.default_rng(0)
    for number in range(8):
        path = tmp_path / "pictures" / ("val" if number % 4 == 3 else "train") / "a" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(path)
    vae, run, codes = (str(tmp_path / name) for name in ("vae", "run", "codes"))
    adapted = f"adapt {vae} --to ifsq --bits 4 4 4 --data {tmp_path / 'pictures'} --size 32 --steps 2 --out {run}"
    for line in (
        f"import diffusers {tmp_path / 'theirs'} --out {vae}",
        f"{adapted} --train.batch 2 --train.optim.warmup 0",
        f"tokenizer eval {run}",
        f"encode {run} {tmp_path / 'pictures'} {codes}",
        f"{adapted} --train.batch 2 --train.optim.warmup 0",
    ):
        assert main(line.split()) == 0
    assert "adapted: kl of 3 dimensions to fsq of 3; " in capsys.readouterr().err
    source, tokenizer = Tokenizer.from_pretrained(vae), Tokenizer.from_pretrained(run)
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(source.encoder(images), tokenizer.encoder(images))
    assert tokenizer.encode(images).indices.shape == (1, 4, 4)
    assert CodeCache.open(codes).layout.levels == (17, 17, 17)


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


def imported(source, out):
    assert main(["import", "diffusers", str(source), "--out", str(out)]) == 0
    return Tokenizer.from_pretrained(out)


FORMS = {
    "half": ({"variant": "fp16"}, 1),
    "in parts": ({"max_shard_size": "20KB"}, 4),
    "half in parts": ({"variant": "fp16", "max_shard_size": "20KB"}, 2),
    "brain half": ({"variant": "bf16"}, 1),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("below", ["", "vae"])
def test_weights_in_half_precision_and_in_parts_also_below_a_pipeline(form, below, tmp_path):
    """As diffusers writes them; in half precision the weights are the nearest to what they were."""
    options, least = FORMS[form]
    model = theirs(tmp_path / "plain")
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(options.get("variant"), torch.float32)
    folder = tmp_path / "pipeline" / below
    model.to(kind).save_pretrained(folder, **options)
    if below:
        (tmp_path / "pipeline" / "model_index.json").write_text('{"vae": ["diffusers", "AutoencoderKL"]}')
    assert not (folder / WEIGHTS).exists()
    assert len(list(folder.glob("*.safetensors"))) >= least
    found = imported(tmp_path / "pipeline", tmp_path / "out").state_dict()
    expected = imported(tmp_path / "plain", tmp_path / "whole").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value.to(kind).float()) for key, value in expected.items())


def test_full_precision_is_taken_where_there_are_both(tmp_path):
    model = theirs(tmp_path / "theirs")
    expected = imported(tmp_path / "theirs", tmp_path / "whole").digest()
    model.half().save_pretrained(tmp_path / "theirs", variant="fp16")
    assert imported(tmp_path / "theirs", tmp_path / "out").digest() == expected


INDEXES = {
    "no map": ({}, "holds no weight_map"),
    "a list": ([], "holds no weight_map"),
    "outside": (
        {"weight_map": {"x": "../theirs/x.safetensors"}},
        "weight_map: '../theirs/x.safetensors'; expected names",
    ),
    "a pickle": ({"weight_map": {"x": "x.bin"}}, "weight_map: 'x.bin'; expected names of .safetensors files beside it"),
    "a number": ({"weight_map": {"x": 3}}, "weight_map: 3; expected names"),
    "a part that is gone": ({"weight_map": {"x": "gone.safetensors"}}, "gone.safetensors: no such file"),
    "a tensor that is gone": (
        {"weight_map": {"x": "part.safetensors", "y": "part.safetensors"}},
        "part.safetensors: holds no 'y'; expected what diffusion_pytorch_model.safetensors.index.json says of it",
    ),
    "a tensor too many": ({"weight_map": {"x": "part.safetensors"}}, "part.safetensors: holds also 'z'"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_an_index_that_does_not_fit_is_refused_in_one_line(case, tmp_path, capsys):
    index, message = INDEXES[case]
    theirs(tmp_path / "theirs")
    (tmp_path / "theirs" / WEIGHTS).unlink()
    (tmp_path / "theirs" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    save_file({"x": torch.zeros(1), "z": torch.zeros(1)}, tmp_path / "theirs" / "part.safetensors")
    assert main(["import", "diffusers", str(tmp_path / "theirs"), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert message in told
    assert not (tmp_path / "out").exists()


def test_weights_that_cannot_be_used_are_named(tmp_path, capsys):
    model = theirs(tmp_path / "theirs")
    command = ["import", "diffusers", str(tmp_path / "theirs"), "--out", str(tmp_path / "out")]
    table = load_file(tmp_path / "theirs" / WEIGHTS)
    table["decoder.conv_in.bias"][0] = float("nan")
    save_file(table, tmp_path / "theirs" / WEIGHTS)
    assert main(command) == 2
    assert "tensor 'decoder.conv_in.bias' holds values that are not finite" in capsys.readouterr().err
    (tmp_path / "theirs" / WEIGHTS).unlink()
    assert main(command) == 2
    assert f"theirs: holds no weights; expected {WEIGHTS}, as save_pretrained of diffusers" in capsys.readouterr().err
    model.save_pretrained(tmp_path / "theirs", safe_serialization=False)
    assert main(command) == 2
    assert "theirs: holds diffusion_pytorch_model.bin alone, a pickle; expected" in capsys.readouterr().err


@pytest.mark.parametrize("widths", [[8 * 10**12], [8] * 10**4])
def test_a_config_of_absurd_size_is_refused_at_once(widths, tmp_path, capsys):
    theirs(tmp_path / "theirs")
    config = tmp_path / "theirs" / "config.json"
    blocks = {"down_block_types": None, "up_block_types": None, "block_out_channels": widths}
    config.write_text(json.dumps({**json.loads(config.read_text()), **blocks}))
    assert main(["import", "diffusers", str(tmp_path / "theirs"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_no_more_is_fetched_from_the_hub_than_is_needed(tmp_path, monkeypatch):
    """The hub gives of the files that are asked for those that it has."""
    hub = pytest.importorskip("huggingface_hub")
    theirs(tmp_path / "hub" / "vae").half().save_pretrained(
        tmp_path / "hub" / "vae", variant="fp16", max_shard_size="20KB"
    )
    (tmp_path / "hub" / "model_index.json").write_text("{}")
    (tmp_path / "hub" / "vae" / WEIGHTS).unlink()
    (tmp_path / "hub" / "unet.safetensors").write_bytes(b"")
    expected = imported(tmp_path / "hub", tmp_path / "here").digest()

    def download(repo_id, *, revision, allow_patterns):
        assert (repo_id, revision) == ("owner/name", "v1")
        for name in allow_patterns:
            if (tmp_path / "hub" / name).is_file():
                (tmp_path / "fetched" / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "fetched" / name).write_bytes((tmp_path / "hub" / name).read_bytes())
        return str(tmp_path / "fetched")

    monkeypatch.setattr(hub, "snapshot_download", download)
    out = tmp_path / "out"
    assert main(["import", "diffusers", "owner/name", "--revision", "v1", "--out", str(out)]) == 0
    assert Tokenizer.from_pretrained(out).digest() == expected
    fetched = {
        str(path.relative_to(tmp_path / "fetched")) for path in (tmp_path / "fetched").rglob("*") if path.is_file()
    }
    given = {str(path.relative_to(tmp_path / "hub")) for path in (tmp_path / "hub").rglob("*") if path.is_file()}
    assert given - fetched == {"unet.safetensors"}


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
