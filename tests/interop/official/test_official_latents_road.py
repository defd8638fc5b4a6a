"""Latents at Stable Diffusion's scale, of official shards and of a tokenizer: trained on, drawn from, decoded."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.interop.official.test_llamagen import run_line
from tests.interop.official.test_official_tokenizer import refused

import ifsq
from ifsq.codes import CodeCache
from ifsq.interop.official.latents import features
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig
from ifsq.training.log import read_metrics

MULTIPLIER = 0.18215
EXPERIMENT = """
out = "new"
tokenizer = "vae"
codes = "codes"
[diffusion]
depth = 1
width = 16
heads = 2
patch = 2
[sampling]
steps = 2
[train]
steps = 4
batch = 8
log_every = 2
save_every = 2
optim.warmup = 0
"""


@pytest.fixture
def vae(tmp_path, monkeypatch):
    """An autoencoder whose latents have Stable Diffusion's scale; its folder is the working directory."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = TokenizerConfig(
        ConvConfig(8, multipliers=(1,), blocks=1, groups=4, patch=2), QuantizerConfig(kind="kl", dim=4)
    )
    tokenizer = Tokenizer(config).eval()
    with torch.no_grad():
        latent = tokenizer.encode(torch.rand(16, 3, 8, 8) * 2 - 1).codes
        factor = 1 / MULTIPLIER / float(latent.square().mean().sqrt())
        tokenizer.quant_conv.weight *= factor
        tokenizer.quant_conv.bias *= factor
    tokenizer.save_pretrained("vae")
    (tmp_path / "x.toml").write_text(EXPERIMENT)
    return tokenizer


@pytest.fixture
def shards(vae, tmp_path):
    """What the official tool would extract of 20 images with it, in two shards."""
    images, labels = torch.rand(20, 3, 8, 8) * 2 - 1, torch.arange(20) % 3
    with torch.no_grad():
        plain, mirrored = vae.encode(images).codes, vae.encode(images.flip(-1)).codes
    folder = tmp_path / "latents"
    folder.mkdir()
    for rank, rows in enumerate((slice(0, 12), slice(12, 20))):
        table = {"latents": plain[rows], "latents_flip": mirrored[rows], "labels": labels[rows]}
        save_file(
            {name: value.contiguous() for name, value in table.items()},
            folder / f"latents_rank0{rank}_shard000.safetensors",
        )
    mean, std = (value.view(1, 4, 1, 1) for value in (plain.mean((0, 2, 3)), plain.std((0, 2, 3))))
    torch.save({"mean": mean, "std": std}, folder / "latents_stats.pt")
    return folder


def test_official_shards_are_trained_on_and_drawn_from(shards, tmp_path, capsys):
    assert run_line("import", "latents", shards, "--out", "codes") == 0
    scaled = ["generator", "train", "x.toml", "--diffusion.multiplier", MULTIPLIER]
    assert run_line(*scaled) == 0
    losses = [row["loss"] for row in read_metrics(tmp_path / "new" / "metrics.jsonl") if "loss" in row]
    assert len(losses) == 2
    assert 0.5 < losses[0] < 4  # noise and data of about 1 each; unscaled codes would give 30
    model = ifsq.Generator.from_pretrained("new")
    assert torch.allclose(model.code_std, torch.full((4,), 1 / MULTIPLIER))
    codes = CodeCache.open("codes").read("train").batch(torch.arange(20)).codes()
    official = features(shards, False, MULTIPLIER, normalize=False)
    assert torch.allclose(model.normalize(codes), official, atol=2e-3, rtol=2e-3)  # of float16
    assert run_line("sample", "new", "--labels", 0, 2, "--out", "new.png") == 0
    drawn = model.sample(torch.tensor([0, 2]), model.sampling())
    assert torch.allclose(drawn.codes, model.denormalize(model.normalize(drawn.codes)), atol=1e-4)
    assert 1 < float(drawn.codes.std()) < 12
    # Statistics of every channel in its place: those of the cache, over the mirrored ones too.
    assert run_line("generator", "train", "x.toml", "--out", "own") == 0
    stated = json.loads((tmp_path / "codes" / "manifest.json").read_text())["statistics"]
    assert torch.allclose(ifsq.Generator.from_pretrained("own").code_mean, torch.tensor(stated["mean"]))
    capsys.readouterr()
    told = refused(capsys, ["generator", "train", "x.toml", "--out", "third", "--diffusion.multiplier", "1.092421"])
    assert "diffusion.multiplier=1.092421: scales codes of root mean square 5." in told
    assert not (tmp_path / "third").exists()


def test_weights_of_another_scale_are_no_beginning(shards, tmp_path, capsys):
    """Those of a generator of iFSQ's codes bring their statistics along."""
    assert run_line("import", "latents", shards, "--out", "codes") == 0
    assert run_line("generator", "train", "x.toml", "--out", "own") == 0
    other = ifsq.Generator.from_pretrained("own")
    other.set_statistics(torch.zeros(4), torch.full((4,), 1 / 1.092421))
    other.save_pretrained("of_ifsq")
    capsys.readouterr()
    begin = ["generator", "train", "x.toml", "--train.init", "of_ifsq"]
    told = refused(capsys, begin)
    assert "train.init=of_ifsq: code_mean [0, 0, 0, 0] and code_std [0.9154, 0.9154, 0.9154, 0.9154] normalise" in told
    told = refused(capsys, [*begin, "--diffusion.multiplier", MULTIPLIER])
    assert "train.init=of_ifsq: code_mean" in told
    assert "expected 0 and 5.49, as the config's multiplier=0.18215 gives" in told
    assert not (tmp_path / "new").exists()
    assert run_line(*begin, "--train.init_parts", '["dit"]', "--diffusion.multiplier", MULTIPLIER) == 0
    assert torch.allclose(ifsq.Generator.from_pretrained("new").code_std, torch.full((4,), 1 / MULTIPLIER))


@pytest.mark.parametrize(("name", "factor"), [("mean", 3.0), ("std", 0.18215), ("std", 1.3)])
def test_statistics_of_other_latents_are_refused(name, factor, shards, tmp_path, capsys):
    table = torch.load(shards / "latents_stats.pt", weights_only=True)
    torch.save({**table, name: factor * table[name] + (name == "mean")}, shards / "latents_stats.pt")
    told = refused(capsys, ["import", "latents", shards, "--out", "codes"])
    assert "latents_stats.pt: states mean " in told
    assert "of channel 0; 20 of its 20 images have mean" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latents", "vae", "x.toml"]


def test_a_tokenizers_own_latents_are_trained_on_by_stable_diffusions_multiplier(vae, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "pictures" / ("val" if number % 4 == 3 else "train") / f"{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(path)
    assert run_line("encode", "vae", "pictures", "codes", "--size", 8, "--flip") == 0
    assert run_line("generator", "train", "x.toml", "--diffusion.multiplier", MULTIPLIER, "--train.batch", 4) == 0
    model = ifsq.Generator.from_pretrained("new")
    x = model.normalize(CodeCache.open("codes").read("train").batch(torch.arange(9)).codes())
    assert 0.5 < float(x.square().mean().sqrt()) < 2
    assert run_line("sample", "new", "--labels", 0, 1, "--out", "new.png") == 0
