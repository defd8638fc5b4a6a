"""The generators' experiment files: each says the tokenizer whose codes it models, and each one trains.

That they load and build at full size is in ``test_surface``.
"""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from ifsq import pipeline
from ifsq.bench.shipped import experiment_file
from ifsq.codes.cache import CodeCache
from ifsq.experiment import GeneratorExperiment, load_generator_experiment, load_tokenizer_experiment
from ifsq.generators import Generator
from ifsq.generators.ar import HeadConfig
from ifsq.generators.diffusion import DiTConfig
from ifsq.generators.train import training_flops
from ifsq.generators.trunk.config import TrunkConfig
from ifsq.pretrained.teachers import ModuleTeacher, TeacherConfig, opening, register_teacher
from ifsq.tokenizer.model import Tokenizer
from ifsq.training.optim import OptimConfig

FOLDER = experiment_file(".")
ROWS = sorted(path for path in FOLDER.glob("*/*.toml") if path.stem.partition("_")[0] in Generator.kinds)
IMAGES = 1281167  # of ImageNet's training set
# What is left of a run: three steps of a small net on 32 px pictures.
TOKENIZER = """
    --data.source bundled:shapes --data.size 32 --tokenizer.conv.width 8 --tokenizer.conv.groups 4
    --tokenizer.conv.blocks 1 --loss.lpips 0 --train.steps 3 --train.batch 2 --train.engine.workers 0
"""
SHRUNKEN = "--train.steps 3 --train.batch 4 --train.log_every 1"
OWN = {
    "ar": "--ar.size= --ar.depth 1 --ar.width 32 --ar.heads 2 --ar.mlp_multiple_of 16",
    "diffusion": "--diffusion.size= --diffusion.depth 1 --diffusion.width 32 --diffusion.heads 2",
    "masked": "--masked.size= --masked.depth 1 --masked.width 32 --masked.heads 2 --masked.mlp_multiple_of 16",
}

LARGER = tuple(f"{kind}_{size}_" for kind in OWN for size in ("l", "xl"))
IMPORTED = {"tokenizer_sdvae_f8_d4": "tokenizer_vae_f8_d4_16bit"}
"""Tokenizers that are imported, and an experiment whose latents have the same layout."""

every_generator = pytest.mark.parametrize("path", ROWS, ids=lambda path: f"{path.parent.name}/{path.stem}")


def tokenizer_file(path: Path) -> Path:
    """The experiment of the tokenizer that a generator's experiment names."""
    name = Path(load_generator_experiment(path).tokenizer).name
    return path.parent / f"{IMPORTED.get(name, name)}.toml"


def stems(room: str) -> set[str]:
    return {path.stem for path in ROWS if path.parent.name == room}


def test_the_papers_rows_are_there():
    """Autoregressive on VQ; diffusion on an autoencoder and VAEs; both on iFSQ. At full size FSQ beside it too."""
    assert stems("bundled") == {
        "ar_vq_f4_d4_14bit", "ar_ifsq_f4_d4_4bit", "ar_ifsq_f4_d4_4bit_random",
        "ar_ifsq_f4_d4_4bit_joint", "ar_ifsq_f4_d4_4bit_2x289", "ar_ifsq_f4_d4_4bit_masked",
        "diffusion_ae_f4_d4_16bit", "diffusion_vae_f4_d4_16bit", "diffusion_ifsq_f4_d4_4bit",
        "ar_ifsq_f4_d4_4bit_repa", "diffusion_ifsq_f4_d4_4bit_repa", "diffusion_ifsq_f4_d4_4bit_mean",
        "masked_ifsq_f4_d4_4bit",
    }  # fmt: skip
    digits = {f"{kind}_f16_d4_4bit_{form}" for kind in ("ifsq", "fsq") for form in ("joint", "2x289")}
    codes = digits | {"vq_f16_d4_14bit"}
    latents = {"ae_f16_d4_16bit", "vae_f16_d4_16bit", "sdvae_f8_d4", "ifsq_f16_d4_4bit", "fsq_f16_d4_4bit"}
    rows = {"ar": codes, "diffusion": latents}
    sizes = ("b", "l", "xl")
    aligned = {"ar_l_ifsq_f16_d4_4bit_joint_repa", "diffusion_l_ifsq_f16_d4_4bit_repa"}
    plain = {f"{kind}_{size}_{row}" for kind in rows for size in sizes for row in rows[kind]}
    assert stems("imagenet") == plain | aligned | {"masked_b_ifsq_f16_d4_4bit"}


ALIGNED = [path for path in ROWS if path.stem.endswith("_repa")]


@pytest.mark.parametrize("path", ALIGNED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_an_aligned_row_is_a_plain_one_aligned_as_in_the_paper(path):
    """A third of the depth of 24 blocks, 2.0 and 0.5; DINOv2-B, or what is to be had offline."""
    plain, aligned = (load_generator_experiment(path.with_stem(path.stem.removesuffix(end))) for end in ("_repa", ""))
    alignment = aligned.alignment
    assert replace(aligned, out=plain.out, alignment=None) == plain
    full = path.parent.name == "imagenet"
    assert (alignment.depth, alignment.hidden) == ((8, 2048) if full else (2, 256))
    assert alignment.weight == {"ar": 2.0, "diffusion": 0.5}[aligned.kind]
    assert [one.source for one in alignment.teachers] == ["dinov2-vit-b" if full else "efficientnet-lite0"]
    gigabytes = IMAGES * 256 * 768 * 2 / 1e9
    assert not full or f"features of 1,281,167 images are {gigabytes:.0f} GB" in path.read_text()


def test_the_autoregressive_rows_hold_the_official_recipe():
    """They differ in the size, the codes and the head of two groups alone."""
    paths = [path for path in ROWS if path.parent.name == "imagenet" and path.stem.startswith("ar_")]
    for path in paths:
        experiment = load_generator_experiment(path)
        assert (experiment.ar.size, experiment.ar.dropout) == (path.stem.split("_")[1].upper(), 0.1)
        form = {"joint": (4,), "2x289": (2, 2)}.get(path.stem.removesuffix("_repa").rpartition("_")[2], ())
        assert experiment.groups == form
        if form == (2, 2):
            assert (experiment.ar.head.kind, experiment.ar.head.depth) == ("transformer", 2)
        train = experiment.train
        assert (train.steps, train.batch) == (round(100 * IMAGES / 256), 256)
        assert (train.precision, train.ema, train.seed) == ("bf16", 0.9999, 0)
        assert train.optim == OptimConfig(lr=1e-4, weight_decay=0.05, warmup=0, schedule="constant")


def test_the_diffusion_rows_hold_the_official_recipe():
    """They differ in the size, the codes and their scale alone; Stable Diffusion's latents have patches of four."""
    paths = [path for path in ROWS if path.parent.name == "imagenet" and path.stem.startswith("diffusion_")]
    multipliers = {"ifsq": 1.092421, "fsq": 1.092421, "sdvae": 0.18215}
    for path in paths:
        experiment = load_generator_experiment(path)
        _, size, codes, *_ = path.stem.split("_")
        expected = {"size": size.upper(), "patch": 2 if codes == "sdvae" else 1, "multiplier": multipliers.get(codes)}
        assert experiment.diffusion == DiTConfig(**expected, cosine_weight=1.0, time_sampling="lognorm")
        assert (experiment.sampling.guidance, experiment.sampling.steps, experiment.sampling.solver) == (
            1,
            250,
            "euler",
        )
        train = experiment.train
        assert (train.steps, train.batch) == (100_000, 1024)
        assert (train.precision, train.ema, train.seed) == ("bf16", 0.9999, 0)
        assert train.optim == OptimConfig(lr=2e-4, betas=(0.9, 0.95), warmup=0, schedule="constant", clip=0.0)


COSTS = (
    *("ar_b_ifsq_f16_d4_4bit_joint", "ar_b_ifsq_f16_d4_4bit_2x289", "ar_b_vq_f16_d4_14bit"),
    *("diffusion_b_sdvae_f8_d4", "diffusion_l_ifsq_f16_d4_4bit", "diffusion_xl_ae_f16_d4_16bit"),
    "masked_b_ifsq_f16_d4_4bit",
)


@pytest.mark.parametrize("row", COSTS)
def test_the_header_says_what_the_training_costs(row):
    path = FOLDER / f"imagenet/{row}.toml"
    experiment = load_generator_experiment(path)
    tokenizer = load_tokenizer_experiment(tokenizer_file(path))
    with torch.device("meta"):
        made = experiment.make(Tokenizer(tokenizer.tokenizer).layout(256, 256), 1000)
    flops = training_flops(made)
    total = flops * experiment.train.batch * experiment.train.steps
    assert f"# Cost: {flops / 1e12:.3f} TFLOP an image, {total / 1e18:.1f} EFLOP;" in path.read_text()


def test_heads_on_bundled_photographs_train_for_the_same_operations():
    """They differ in the codes, the head and the steps alone; each header says what it costs."""
    recipes, totals = [], []
    for path in (path for path in ROWS if path.match("bundled/ar_*.toml") and path not in ALIGNED):
        experiment = load_generator_experiment(path)
        layout = Tokenizer(load_tokenizer_experiment(tokenizer_file(path)).tokenizer).layout(32, 32)
        with torch.device("meta"):
            flops = training_flops(experiment.make(layout, 10))
        train = experiment.train
        totals.append(flops * train.batch * train.steps)
        assert f"# Cost: {flops / 1e9:.3f} GFLOP an image, {totals[-1] / 1e12:.2f} TFLOP in all" in path.read_text()
        assert train.optim.warmup == round(train.steps / 10)
        optim = replace(train.optim, warmup=0)
        recipes.append((replace(experiment.ar, head=HeadConfig(), order="raster"), train.batch, train.precision, optim))
    assert len(totals) == 6
    assert max(totals) < 1.01 * min(totals)
    assert all(recipe == recipes[0] for recipe in recipes)


def test_the_masked_row_is_trained_as_the_autoregressive_one():
    """Of the same trunk, for as many operations, on the same codes, by the same optimizer."""
    path = FOLDER / "bundled/masked_ifsq_f4_d4_4bit.toml"
    ours, other = (
        load_generator_experiment(path.with_name(f"{kind}_ifsq_f4_d4_4bit.toml")) for kind in ("masked", "ar")
    )
    shared = [(field.name, getattr(ours.masked, field.name)) for field in fields(TrunkConfig)]
    assert shared == [(name, getattr(other.ar, name)) for name, _ in shared]
    layout = Tokenizer(load_tokenizer_experiment(tokenizer_file(path)).tokenizer).layout(32, 32)
    with torch.device("meta"):
        flops, others = (training_flops(one.make(layout, 10)) for one in (ours, other))
    total = flops * ours.train.batch * ours.train.steps
    assert f"# Cost: {flops / 1e9:.3f} GFLOP an image, {total / 1e12:.2f} TFLOP in all" in path.read_text()
    assert total == pytest.approx(others * other.train.batch * other.train.steps, rel=0.01)
    assert (ours.codes, ours.tokenizer, ours.train.batch) == (other.codes, other.tokenizer, other.train.batch)
    assert replace(ours.train.optim, warmup=0) == replace(other.train.optim, warmup=0)


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
    forms = ("_joint", "_2x289", "_masked", "_random", "_mean", "")
    stem = path.stem.removesuffix("_repa")
    form = next(form for form in forms if stem.endswith(form))
    assert stem.removesuffix(form).endswith(name.removeprefix("tokenizer"))  # nothing more in the demo
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


def shrunken(path: Path, *places: str) -> GeneratorExperiment:
    kind = load_generator_experiment(path).kind
    return load_generator_experiment(path, [*SHRUNKEN.split(), *OWN[kind].split(), *places])


LARGE = [path for path in ROWS if path.stem.startswith(LARGER) and path not in ALIGNED]


@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.stem)
def test_larger_ones_are_in_shrunken_form_what_the_smallest_is(path):
    smallest = path.with_name(path.name.replace(f"_{path.stem.split('_')[1]}_", "_b_", 1))
    assert shrunken(path, "--out", "here") == shrunken(smallest, "--out", "here")


@pytest.mark.parametrize(
    "path",
    [path for path in ROWS if path not in LARGE],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
@pytest.mark.usefixtures("few_bundled")
def test_it_trains_in_shrunken_form(path, codes, tmp_path, monkeypatch):
    tokenizer, cache = codes(path)
    kind = load_generator_experiment(path).kind
    places = ["--tokenizer", str(tokenizer), "--codes", str(cache), "--out", str(tmp_path / "run")]
    if kind == "diffusion" and load_generator_experiment(path).diffusion.multiplier:
        mean, variance = CodeCache.open(cache).read("train").moments()  # of a tokenizer that is hardly trained
        places += ["--diffusion.multiplier", str(float((mean.square() + variance).mean().rsqrt()))]
    if path in ALIGNED:
        places += ["--alignment.depth", "1", "--alignment.hidden", "8"]
    experiment = shrunken(path, *places)
    if path in ALIGNED:  # no published teacher is at hand everywhere
        monkeypatch.setattr(opening, "_LOADERS", {})
        register_teacher(
            "none", lambda config: ModuleTeacher(torch.nn.Conv2d(3, 4, 3), lambda net, x: net(x), 4, "none")
        )
        teacher = TeacherConfig("none")
        seen = pipeline.cache_features(cache, teacher, tmp_path / "features", device="cpu")
        alignment = replace(experiment.alignment, teachers=(teacher,), features=(str(seen.folder),))
        experiment = replace(experiment, alignment=alignment)
    run = pipeline.train_generator(experiment, "cpu")
    trained = Generator.from_pretrained(run)
    assert (trained.kind, trained.config) == (kind, getattr(experiment, kind))
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    assert len(losses) == 3
    assert all(torch.tensor(losses).isfinite())
    drawn = trained.sample(torch.tensor([0, 1]), trained.sampling({"steps": 2} if kind == "diffusion" else {}))
    assert Tokenizer.from_pretrained(tokenizer).decode_sampled(drawn).shape == (2, 3, 32, 32)
