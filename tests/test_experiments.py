"""The tokenizers' experiment files: their names and headers say what is in them, and each one trains.

That they load and build at full size is in ``test_surface``.
"""

import json
import re
from math import log2
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ifsq import pipeline
from ifsq.bench.shipped import experiment_file
from ifsq.config import read_toml, to_dict
from ifsq.evaluation import tokenizer as measuring
from ifsq.experiment import load_tokenizer_experiment
from ifsq.tokenizer.model import Tokenizer

FOLDER = experiment_file(".")
GRID = sorted((FOLDER / "imagenet").glob("tokenizer_*.toml"))
BUNDLED = sorted((FOLDER / "bundled").glob("tokenizer_*.toml"))
NAME = re.compile(r"tokenizer_(?P<kind>[a-z]+)_f(?P<factor>\d+)_d(?P<dim>\d+)_(?P<bits>\d+)bit")
CONTINUOUS = {"ae": "ae", "vae": "kl"}
SCALAR = {
    "fsq": ("tanh", "paper"),
    "ifsq": ("ifsq", "paper"),
    "adversarial": ("ifsq", "paper"),
    "nested": ("ifsq", "paper"),
    "equal": ("ifsq", "equal"),
    "calibrated": ("quantile", "equal"),
}
GRIDDED = SCALAR.keys() - {"adversarial", "nested"}
IMAGES = 1281167  # of ImageNet's training set
# What is left of a run: three steps of a net of 8 channels on 16 px pictures, the discriminator in two of them.
SHRUNKEN = """
    --data.source bundled:shapes --data.size 16
    --tokenizer.conv.width 8 --tokenizer.conv.groups 4 --tokenizer.conv.blocks 1 --loss.lpips 0
    --train.steps 3 --train.batch 2 --train.log_every 1 --train.engine.workers 0
"""
SHRUNKEN_DISCRIMINATOR = "--loss.adversarial.start 1 --loss.adversarial.layers 1 --loss.adversarial.width 4"

every_tokenizer = pytest.mark.parametrize("path", GRID + BUNDLED, ids=lambda path: f"{path.parent.name}/{path.stem}")


def named(path: Path) -> dict[str, str]:
    match = NAME.fullmatch(path.stem)
    assert match, f"{path.name}: expected {NAME.pattern}"
    return match.groupdict()


def shrunken(adversarial: bool) -> list[str]:
    return (SHRUNKEN + (SHRUNKEN_DISCRIMINATOR if adversarial else "")).split()


@every_tokenizer
def test_the_name_says_what_is_inside(path):
    name, experiment = named(path), load_tokenizer_experiment(path)
    quantizer, kind, bits = experiment.tokenizer.quantizer, name["kind"], int(name["bits"])
    assert experiment.tokenizer.conv.factor == int(name["factor"])
    assert quantizer.make().dim == int(name["dim"])
    assert experiment.out == f"runs/{path.parent.name}/{path.stem}"
    if kind in SCALAR:
        assert set(quantizer.levels) == {2**bits + 1}
        assert (quantizer.kind, quantizer.bound, quantizer.cells) == ("fsq", *SCALAR[kind])
        assert quantizer.nested_levels == ((5, 9, 17) if kind == "nested" else ())
    elif kind == "vq":
        assert (quantizer.kind, quantizer.codebook_size) == ("vq", 2**bits)
    else:
        assert (quantizer.kind, bits) == (CONTINUOUS[kind], 16)


@every_tokenizer
def test_the_header_says_the_command_and_the_rate(path):
    name, experiment = named(path), load_tokenizer_experiment(path)
    header = path.read_text().partition("\nout")[0].replace("\n# ", " ")
    assert f" -m ifsq tokenizer train experiments/imagenet/{path.name}" in header or (
        path.parent.name == "bundled" and f"  ifsq tokenizer train experiments/bundled/{path.name}" in header
    )
    positions = (experiment.data.size // experiment.tokenizer.conv.factor) ** 2
    levels = experiment.tokenizer.quantizer.make().levels
    if levels is None:
        assert f"{16 * int(name['dim'])} bits a position as float16, {positions} positions an image" in header
    else:
        rate = f"{sum(log2(level) for level in levels):.2f}".removesuffix(".00")
        assert f"{rate} bits a token, {positions} tokens an image" in header
    assert "Cost: " in header
    assert "Published: " in header or "Published (" in header or "Result: " in header


def test_the_grid_holds_every_value_of_the_papers_axes():
    found = {(n["kind"], int(n["factor"]), int(n["dim"]), int(n["bits"])) for n in map(named, GRID)}
    shapes = {(16, 4): (2, 3, 4, 5, 6, 8), (16, 8): (2, 4, 8), (8, 4): (2, 4, 8), (8, 8): (4,)}
    scalar = {(kind, *s, b) for s, bits in shapes.items() for b in bits for kind in GRIDDED}
    scalar.add(("nested", 16, 4, 4))
    other = {(kind, *s, bits) for s in shapes for kind, bits in (("ae", 16), ("vae", 16), ("vq", 14))}
    assert found == scalar | other
    assert {named(path)["kind"] for path in BUNDLED} == {*SCALAR, *CONTINUOUS, "vq"}


def test_the_grid_differs_in_the_bottleneck_and_the_factor_alone():
    def recipe(path):
        table = to_dict(load_tokenizer_experiment(path))
        shape = table.pop("tokenizer")["conv"]
        del table["out"], shape["multipliers"], shape["latent"]
        return table | {"conv": shape}

    first = recipe(GRID[0])
    for path in GRID[1:]:
        assert recipe(path) == first, path.name
    assert first["train"]["steps"] == round(100 * IMAGES / first["train"]["batch"])
    assert first["loss"]["adversarial"]["start"] == 50000
    assert first["loss"]["adversarial"]["alternate"]


def test_no_two_runs_share_a_folder():
    folders = [read_toml(path)["out"] for path in FOLDER.rglob("*.toml") if path.parent.name != "grids"]
    assert len(set(folders)) == len(folders)


@every_tokenizer
def test_no_codebook_is_written_out(path):
    """257 levels in each of 8 dimensions included: a quantizer holds a table for each dimension at most."""
    experiment = load_tokenizer_experiment(path)
    quantizer = experiment.tokenizer.quantizer.make()
    held = sum(tensor.numel() for tensor in (*quantizer.parameters(), *quantizer.buffers()))
    codes = experiment.tokenizer.quantizer.codebook_size if named(path)["kind"] == "vq" else 0
    assert held <= codes * (quantizer.dim + 2) + 300 * quantizer.dim


def test_parameters_are_the_official_ones():
    for kind, count in (("ifsq_f16_d4_4bit", 83324099), ("vae_f16_d4_16bit", 83324135), ("vq_f16_d4_14bit", 83389635)):
        with torch.device("meta"):
            model = Tokenizer(load_tokenizer_experiment(FOLDER / f"imagenet/tokenizer_{kind}.toml").tokenizer)
        assert sum(p.numel() for p in model.parameters()) == count


@every_tokenizer
def test_it_trains_in_shrunken_form(path, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "WATCHED", 4)
    adversarial = load_tokenizer_experiment(path).loss.adversarial is not None
    overrides = [*shrunken(adversarial), "--out", str(tmp_path / "run")]
    experiment = load_tokenizer_experiment(path, overrides)
    run = pipeline.train_tokenizer(experiment, "cpu")
    torch.manual_seed(experiment.train.seed)
    start, trained = Tokenizer(experiment.tokenizer), Tokenizer.from_pretrained(run)
    assert trained.config == start.config
    assert trained.digest() != start.digest()
    assert ("logits_real" in (run / "metrics.jsonl").read_text()) == adversarial


def test_the_official_recipe_trains_with_every_loss(tmp_path, monkeypatch):
    """LPIPS with a stand-in for VGG16: the published weights are half a gigabyte."""
    monkeypatch.setattr(measuring, "WATCHED", 4)
    rng = torch.Generator().manual_seed(0)
    table, inner = {}, 3
    convolutions = zip(
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (64,) * 2 + (128,) * 2 + (256,) * 3 + (512,) * 6, strict=True
    )
    for number, outer in convolutions:
        table[f"features.{number}.weight"] = torch.randn(outer, inner, 3, 3, generator=rng) * (2 / (9 * inner)) ** 0.5
        table[f"features.{number}.bias"] = torch.zeros(outer)
        inner = outer
    save_file(table, tmp_path / "vgg16.safetensors")
    own = ["--loss.lpips", "1", "--loss.lpips_vgg16", str(tmp_path / "vgg16.safetensors"), "--out", f"{tmp_path}/run"]
    path = FOLDER / "imagenet/tokenizer_ifsq_f16_d4_4bit.toml"
    run = pipeline.train_tokenizer(load_tokenizer_experiment(path, [*shrunken(adversarial=True), *own]), "cpu")
    seen = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any({"lpips", "adversarial", "adversarial_weight"} <= line.keys() for line in seen)
    assert all(value > 0 for line in seen for key, value in line.items() if key == "lpips")
