"""Each generator on each cache beside FSQ's digits, through the command: train, go on, sample, evaluate, report."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.interop.test_diffusers_kl import theirs

from ifsq.cli import main
from ifsq.generators import Generator
from ifsq.store.weights import weights_digest
from ifsq.tokenizer.model import Tokenizer

TOKENIZER = """
out = "tokenizer"
[data]
source = "bundled:photos"
size = 16
[tokenizer.conv]
width = 8
multipliers = [1]
blocks = 1
patch = 4
groups = 4
[tokenizer.quantizer]
kind = "{kind}"
dim = 3
[train]
steps = 4
batch = 4
log_every = 2
"""
GENERATOR = """
out = "whole"
tokenizer = "{tokenizer}"
codes = "codes"
[{kind}]
depth = 1
width = 16
heads = 2
{own}
[train]
steps = 4
batch = 4
log_every = 1
save_every = 2
"""
OWN = {"ar": "mlp_multiple_of = 16", "diffusion": "patch = 2\n[sampling]\nsteps = 3"}
OWN["masked"] = "mlp_multiple_of = 16\n[sampling]\nrounds = 3"
CASES = {
    "ar on vq": ("ar", "vq"),
    "masked on vq": ("masked", "vq"),
    "diffusion on vq": ("diffusion", "vq"),
    "diffusion on ae": ("diffusion", "ae"),
    "diffusion on a vae": ("diffusion", "kl"),
    "diffusion on Stable Diffusion's autoencoder": ("diffusion", "imported"),
}


def make_tokenizer(kind: str) -> None:
    if kind == "imported":
        theirs("diffusers", block_out_channels=(8, 8, 8))
        assert main(["import", "diffusers", "diffusers", "--out", "tokenizer"]) == 0
        return
    text = TOKENIZER.format(kind=kind)
    Path("tokenizer.toml").write_text(
        text.replace("dim = 3\n", "dim = 3\ncodebook_size = 40\n") if kind == "vq" else text
    )
    assert main(["tokenizer", "train", "tokenizer.toml"]) == 0


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("quick_judge", "few_bundled")
def test_the_whole_road(case, tmp_path, monkeypatch, capsys):
    kind, codes = CASES[case]
    monkeypatch.chdir(tmp_path)
    make_tokenizer(codes)
    assert main(["encode", "tokenizer", "bundled:photos", "codes", "--size", "16", "--flip"]) == 0
    Path("run.toml").write_text(GENERATOR.format(kind=kind, tokenizer="tokenizer", own=OWN[kind]))

    assert main(["generator", "train", "run.toml"]) == 0
    assert main(["generator", "train", "run.toml", "--out", "run", "--train.steps", "2"]) == 0
    half = weights_digest(Generator.from_pretrained("run"))
    assert main(["generator", "train", "run.toml", "--out", "run"]) == 0
    generator = Generator.from_pretrained("run")
    assert weights_digest(generator) == weights_digest(Generator.from_pretrained("whole")) != half

    assert main(["sample", "run", "--labels", "0", "1", "--sampling.guidance", "2", "--out", "grid.png"]) == 0
    drawn = generator.sample(torch.tensor([0, 1]), seed=3)
    tokenizer = Tokenizer.from_pretrained("tokenizer")
    assert tokenizer.decode_sampled(drawn).shape == (2, 3, 16, 16)
    assert (drawn.codes is None) == (case in ("ar on vq", "masked on vq"))
    assert (drawn.indices is None) == (codes != "vq")
    if codes == "vq":  # what is drawn is what the tokenizer can produce
        numbers = drawn.indices[..., 0]
        assert drawn.codes is None or torch.equal(drawn.codes, tokenizer.quantizer.indices_to_codes(numbers))

    assert main(["generator", "eval", "run", "--samples", "8", "--features"]) == 0
    cards = {card["metric"]: card for card in json.loads(Path("run/evaluation.json").read_text())["cards"]}
    assert ("bits per image" in cards) == (kind == "ar")
    assert ("bits per image, upper bound" in cards) == (kind == "masked")
    assert {"FD(judge)", "FD(judge), untrained generator", "FD(judge), tokenizer alone"} <= cards.keys()
    assert main(["report", "run"]) == 0
    assert main(["export", "pretrained", "run", "--out", "saved"]) == 0
    again = Generator.from_pretrained("saved").sample(torch.tensor([0, 1]), seed=3)
    assert torch.equal(tokenizer.decode_sampled(again), tokenizer.decode_sampled(drawn))


def test_latents_that_another_project_extracted(tmp_path, monkeypatch, capsys):
    """They are trained on without a tokenizer; samples are decoded once there is one."""
    monkeypatch.chdir(tmp_path)
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(12, 3, 4, 4, generator=rng) * 5 + 1
    Path("shards").mkdir()
    table = {"latents": latents, "latents_flip": latents.flip(-1), "labels": torch.arange(12) % 2}
    save_file({name: value.contiguous() for name, value in table.items()}, "shards/latents_rank00_shard000.safetensors")
    statistics = {"mean": torch.full((1, 3, 1, 1), 1.0), "std": torch.full((1, 3, 1, 1), 5.0)}
    torch.save(statistics, "shards/latents_stats.pt")
    assert main(["import", "latents", "shards", "--out", "codes"]) == 0
    experiment = GENERATOR.format(kind="diffusion", tokenizer="", own=OWN["diffusion"])
    Path("alone.toml").write_text(experiment.replace('tokenizer = ""\n', ""))
    assert main(["generator", "train", "alone.toml", "--train.steps", "2"]) == 0
    assert main(["generator", "train", "alone.toml"]) == 0
    generator = Generator.from_pretrained("whole")
    assert generator.sample(torch.tensor([0, 1])).codes.shape == (2, 3, 4, 4)
    capsys.readouterr()
    for verb in (["sample", "whole", "--labels", "0", "--out", "new.png"], ["generator", "eval", "whole"]):
        assert main(verb) == 2
        assert "whole: names no tokenizer to decode its codes with" in capsys.readouterr().err

    Path("tokenizer.toml").write_text(TOKENIZER.format(kind="ae"))
    assert main(["tokenizer", "train", "tokenizer.toml"]) == 0
    assert main(["generator", "train", "alone.toml", "--out", "paired", "--tokenizer", "tokenizer"]) == 0
    assert main(["sample", "paired", "--labels", "0", "1", "--out", "grid.png"]) == 0
    capsys.readouterr()
    assert main(["generator", "eval", "paired", "--samples", "4", "--features"]) == 2
    assert "codes: does not say of which images its codes are; nothing to measure by" in capsys.readouterr().err
    shutil.rmtree("codes")
    assert main(["sample", "paired", "--labels", "0", "--out", "again.png"]) == 0  # the cache is not asked
