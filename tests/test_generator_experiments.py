"""The generators' experiment files: each says the tokenizer whose codes it models, and each one trains.

That they load and build at full size is in ``test_surface``.
"""

import json
from pathlib import Path

import pytest
import torch

from ifsq import pipeline
from ifsq.bench.demo import experiment_file
from ifsq.experiment import load_generator_experiment, load_tokenizer_experiment
from ifsq.generators import Generator
from ifsq.tokenizer.model import Tokenizer

FOLDER = experiment_file(".")
ROWS = sorted(path for path in FOLDER.glob("*/*.toml") if path.stem.partition("_")[0] in Generator.kinds)
# What is left of a run: three steps of a small net on 32 px pictures.
TOKENIZER = """
    --data.source bundled:shapes --data.size 32 --tokenizer.conv.width 8 --tokenizer.conv.groups 4
    --tokenizer.conv.blocks 1 --loss.lpips 0 --train.steps 3 --train.batch 2 --train.engine.workers 0
"""
SHRUNKEN = "--train.steps 3 --train.batch 4 --train.log_every 1"
OWN = {
    "ar": "--ar.depth 1 --ar.width 32 --ar.heads 2 --ar.mlp_multiple_of 16",
    "diffusion": "--diffusion.depth 1 --diffusion.width 32 --diffusion.heads 2",
}

every_generator = pytest.mark.parametrize("path", ROWS, ids=lambda path: f"{path.parent.name}/{path.stem}")


def tokenizer_file(path: Path) -> Path:
    """The experiment of the tokenizer that a generator's experiment names."""
    return path.parent / f"{Path(load_generator_experiment(path).tokenizer).name}.toml"


def test_the_papers_rows_are_there():
    """Autoregressive on VQ; diffusion on an autoencoder and a VAE; both on iFSQ."""
    rows = {"ar_vq", "diffusion_ae", "diffusion_vae", "ar_ifsq", "diffusion_ifsq"}
    for room, sizes in (("bundled", ("", "")), ("imagenet", ("_l", "_l_1"))):
        found = {path.stem.rpartition("_f")[0] for path in ROWS if path.parent.name == room}
        assert found == {row.replace("_", f"{sizes[row.startswith('diffusion')]}_", 1) for row in rows}


@every_generator
def test_the_name_says_what_is_inside(path):
    experiment = load_generator_experiment(path)
    assert path.stem.partition("_")[0] == experiment.kind
    room = f"runs/{path.parent.name}"
    assert experiment.out == f"{room}/{path.stem}"
    assert tokenizer_file(path).is_file()
    name = Path(experiment.tokenizer).name
    assert (experiment.tokenizer, experiment.codes) == (
        f"{room}/{name}",
        f"{room}/{name}".replace("tokenizer", "codes"),
    )
    assert path.stem.endswith(name.removeprefix("tokenizer"))  # nothing more in the demo, which has one
    header = path.read_text().partition("\nout")[0]
    assert f"ifsq generator train experiments/{path.parent.name}/{path.name}" in header
    assert "Cost" in header


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    """``codes(path)``: a shrunken tokenizer of a generator's experiment and the cache of its codes, made once."""
    made: dict[Path, tuple[Path, Path]] = {}

    def make(path: Path) -> tuple[Path, Path]:
        source = tokenizer_file(path)
        if source not in made:
            place = tmp_path_factory.mktemp(source.stem)
            options = [*TOKENIZER.split(), "--out", f"{place}/tokenizer"]
            if load_tokenizer_experiment(source).loss.adversarial is not None:
                options += ["--loss.adversarial.start", "9", "--loss.adversarial.width", "4"]
                options += ["--loss.adversarial.layers", "1"]
            pipeline.train_tokenizer(load_tokenizer_experiment(source, options), "cpu")
            pipeline.encode(place / "tokenizer", "bundled:shapes", place / "codes", device="cpu")
            made[source] = place / "tokenizer", place / "codes"
        return made[source]

    return make


@every_generator
def test_it_trains_in_shrunken_form(path, codes, tmp_path):
    tokenizer, cache = codes(path)
    kind = load_generator_experiment(path).kind
    places = ["--tokenizer", str(tokenizer), "--codes", str(cache), "--out", str(tmp_path / "run")]
    experiment = load_generator_experiment(path, [*SHRUNKEN.split(), *OWN[kind].split(), *places])
    run = pipeline.train_generator(experiment, "cpu")
    trained = Generator.from_pretrained(run)
    assert (trained.kind, trained.config) == (kind, getattr(experiment, kind))
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    assert len(losses) == 3
    assert all(torch.tensor(losses).isfinite())
    drawn = trained.sample(torch.tensor([0, 1]), trained.sampling({"steps": 2} if kind == "diffusion" else {}))
    assert Tokenizer.from_pretrained(tokenizer).decode_sampled(drawn).shape == (2, 3, 32, 32)
