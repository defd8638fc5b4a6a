"""One tokenizer at several level counts: what is drawn, what it equals, and every stage at each of them."""

import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.ports import free_port
from torch.nn.functional import mse_loss

from ifsq import pipeline
from ifsq.cli import main
from ifsq.codes import CodeCache
from ifsq.config import InputError, build
from ifsq.data import DataConfig
from ifsq.experiment import TokenizerExperiment
from ifsq.quantizers import FSQ
from ifsq.sources import load_pair
from ifsq.store import checkpoints
from ifsq.store.run import Run
from ifsq.store.weights import weights_digest
from ifsq.tokenizer.bottleneck import NestedLevels, QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig
from ifsq.training.log import read_metrics

NESTED = (5, 9, 17)
CONV = ConvConfig(width=8, multipliers=(1, 1), blocks=1, patch=2, groups=4)
TABLE = {
    "data": {"source": "bundled:shapes", "size": 16},
    "tokenizer": {
        "conv": {"width": 8, "multipliers": [1, 1], "blocks": 1, "patch": 2, "groups": 4},
        "quantizer": {"levels": [17, 17], "nested_levels": list(NESTED)},
    },
    "train": {"steps": 12, "batch": 4, "log_every": 1, "save_every": 4, "keep": 9, "optim": {"warmup": 0}},
}


def quantizer_config(**options):
    return QuantizerConfig(**{"levels": (17, 17), "nested_levels": NESTED, **options})


def tokenizer(**options):
    torch.manual_seed(0)
    return Tokenizer(TokenizerConfig(CONV, quantizer_config(**options)))


def fixed(model, levels):
    """An ordinary tokenizer of these weights."""
    made = Tokenizer(TokenizerConfig(CONV, QuantizerConfig(levels=(levels, levels))))
    made.load_state_dict(model.state_dict())
    return made


def experiment(out, quantizer=None, loss=None, **train):
    table = {**TABLE, "out": str(out), "train": {**TABLE["train"], **train}, **({"loss": loss} if loss else {})}
    if quantizer is not None:
        table["tokenizer"] = {**TABLE["tokenizer"], "quantizer": quantizer}
    return build(TokenizerExperiment, table, "test")


def weights(run, step=12, names=("model", "ema")):
    found = checkpoints.at(dict(checkpoints.steps_in(run / "checkpoints"))[step])
    return {name: found.load(name) for name in names}


def assert_same(a, b):
    for name, table in a.items():
        assert table.keys() == b[name].keys()
        assert all(torch.equal(b[name][key], value) for key, value in table.items()), name


def drawn_in(run):
    return {row["step"]: row["levels"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row}


@pytest.mark.parametrize("levels", NESTED)
def test_at_one_of_its_levels_it_is_the_fixed_tokenizer_to_the_bit(levels):
    model, images = tokenizer(), torch.rand(3, 3, 16, 8) * 2 - 1
    at, plain = model.at_levels(levels), fixed(model, levels)
    mine, theirs = at.encode(images), plain.encode(images)
    for name in ("codes", "indices", "digits"):
        assert torch.equal(getattr(mine, name), getattr(theirs, name))
    assert torch.equal(at.decode_indices(mine.indices), plain.decode_indices(theirs.indices))
    assert at.spec(16, 8) == plain.spec(16, 8)
    for one in (at, plain):
        mse_loss(one(images).images, images).backward()
    slopes = zip(at.parameters(), plain.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in slopes)
    assert model.quantizer.levels == (17, 17), "the one it was copied from stays"
    assert at.at_levels(17).encode(images).codes.equal(model.encode(images).codes)


def test_its_identity_is_weights_and_levels():
    model = tokenizer()
    digests = {levels: model.at_levels(levels).digest() for levels in NESTED}
    assert len(set(digests.values())) == 3
    assert digests[17] == model.digest()
    assert fixed(model, 17).digest() == weights_digest(model), "of a fixed one that of the weights, as ever"


def test_it_is_saved_with_the_levels_in_force(tmp_path):
    model, images = tokenizer().eval(), torch.rand(1, 3, 8, 8)
    model.at_levels(9).save_pretrained(tmp_path / "saved")
    again = Tokenizer.from_pretrained(tmp_path / "saved")
    assert again.quantizer.levels == (9, 9)
    assert again.digest() == model.at_levels(9).digest()
    assert again.at_levels(17).encode(images).codes.equal(model.encode(images).codes)
    assert "| trained at levels | 5, 9, 17 |" in (tmp_path / "saved" / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"nested_levels": (9, 5, 17)},
            r"nested_levels=\[9, 5, 17\]: expected level counts from the least to the most",
        ),
        ({"nested_levels": (9, 9, 17)}, r"nested_levels=\[9, 9, 17\]: expected .* each once"),
        ({"nested_levels": (5, 9)}, r"levels=\[17, 17\] with nested_levels=\[5, 9\]: expected one of these in every"),
        ({"levels": (17, 9)}, r"levels=\[17, 9\] with nested_levels=\[5, 9, 17\]: expected one of these in every dim"),
        ({"nested_levels": (4, 17)}, r"levels=\[4, 4\]: paper cells with bound='ifsq' need odd levels"),
        ({"nested_levels": (1, 17)}, r"levels=\[1, 1\]: expected a list of integers of at least 2"),
        ({"kind": "vq", "levels": (17,) * 4}, r"nested_levels=\(5, 9, 17\) with kind='vq': expected options of this"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        quantizer_config(**options)


def test_levels_that_were_not_trained_are_refused():
    with pytest.raises(InputError, match="levels 4: expected what the tokenizer was trained at, 5, 9, 17"):
        tokenizer().at_levels(4)
    plain = Tokenizer(TokenizerConfig(CONV, QuantizerConfig(levels=(9, 5))))
    with pytest.raises(InputError, match="levels 5: expected what the tokenizer was trained at, 9 x 5"):
        plain.at_levels(5)
    other = Tokenizer(TokenizerConfig(CONV, QuantizerConfig(kind="vq", codebook_size=8)))
    with pytest.raises(InputError, match="levels 5: expected what the tokenizer was trained at, vq"):
        other.at_levels(5)


def test_points_are_nested_and_the_papers_cells_are_not():
    """Of five levels the points are among those of 17, but a digit of 17 does not always say which of them is near."""
    coarse, fine = FSQ([5], validate=False), FSQ([17], validate=False)
    points = [{float(x) for x in one.indices_to_codes(torch.arange(one.codebook_size))} for one in (coarse, fine)]
    assert points[0] < points[1]
    z = torch.linspace(-8, 8, 100_001)[:, None]
    pairs = set(zip(fine(z).digits[:, 0].tolist(), coarse(z).digits[:, 0].tolist(), strict=True))
    straddling = sorted(digit for digit, count in Counter(digit for digit, _ in pairs).items() if count > 1)
    assert straddling == [2, 6, 10, 14]


def test_equal_cells_of_levels_that_divide_are_nested_and_points_are_not():
    coarse, fine = FSQ([4], cells="equal"), FSQ([16], cells="equal")
    z = torch.cat([torch.randn(200_000), torch.linspace(-8, 8, 100_001)])[:, None]
    assert torch.equal(fine(z).digits // 4, coarse(z).digits)
    points = [{float(x) for x in one.indices_to_codes(torch.arange(one.codebook_size))} for one in (coarse, fine)]
    assert not points[0] & points[1]


def test_levels_are_drawn_alike_and_follow_from_seed_and_step():
    config = quantizer_config()

    def draws(seed, steps=range(3000)):
        nested = NestedLevels(config, config.make(), seed)
        return [nested.draw(step) for step in steps]

    first = draws(0)
    expected = len(first) / 3
    assert sum((count - expected) ** 2 / expected for count in Counter(first).values()) < 9.2  # 1 % of chi square, 2
    pairs = Counter(pairwise(first))
    assert len(pairs) == 9
    assert sum((count - expected / 3) ** 2 / (expected / 3) for count in pairs.values()) < 20.1  # of 8
    assert draws(0, range(2000, 3000)) == first[2000:]
    assert sum(a == b for a, b in zip(first, draws(1), strict=True)) < 1100


def test_a_run_draws_them_and_goes_on_with_the_same_bits(tmp_path):
    """The discriminator's steps too, with which it goes on here: it judges images of the levels of the step."""
    loss = {"adversarial": {"start": 2, "layers": 1, "width": 4, "alternate": True}}
    run = pipeline.train_tokenizer(experiment(tmp_path / "run", loss=loss, save_every=5), "cpu")
    config = quantizer_config()
    nested = NestedLevels(config, config.make(), 0)
    seen = drawn_in(run)
    assert seen == {step + 1: nested.draw(step) for step in range(12) if step < 2 or step % 2 == 0} | {
        step: value for step, value in seen.items() if step > 2 and step % 2 == 0
    }
    assert set(map(nested.draw, range(12))) == set(NESTED)
    names = ("model", "ema", "opponent")
    whole = weights(run, names=names)
    for number, path in checkpoints.steps_in(run / "checkpoints"):
        if number > 5:
            shutil.rmtree(path)
    pipeline.train_tokenizer(experiment(tmp_path / "run", loss=loss, save_every=5), "cpu")
    assert_same(whole, weights(run, names=names))
    assert Tokenizer.from_pretrained(run).quantizer.levels == (17, 17)


def test_one_nested_level_trains_as_the_fixed_tokenizer_and_several_do_not(tmp_path):
    quantizers = {"one": {"nested_levels": [17]}, "plain": {}, "several": {"nested_levels": list(NESTED)}}
    one, plain, several = (
        weights(pipeline.train_tokenizer(experiment(tmp_path / name, {"levels": [17, 17], **own}, steps=3), "cpu"), 3)
        for name, own in quantizers.items()
    )
    assert_same(one, plain)
    assert any(not torch.equal(several["model"][key], value) for key, value in plain["model"].items())


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """A folder with twelve pictures, a nested tokenizer of them and its codes at five levels."""
    folder, rng = tmp_path_factory.mktemp("nested"), np.random.default_rng(0)
    for number in range(12):
        path = folder / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(rng.integers(0, 255, (18, 16, 3), np.uint8)).save(path)
    asked = experiment(folder / "tokenizer", steps=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pipeline.train_tokenizer(replace(asked, data=DataConfig("images", 16)), "cpu")
        pipeline.encode(Path("tokenizer"), "images", Path("codes"), levels=5)
    return folder


TRAIN = "[train]\nsteps = 2\nbatch = 4\nlog_every = 1\n"
SMALL = "depth = 1\nwidth = 16\nheads = 2\n"


def test_a_generator_reads_a_cache_and_decodes_at_its_levels(road, monkeypatch):
    monkeypatch.chdir(road)
    Path("ar.toml").write_text(f'out = "ar"\ntokenizer = "tokenizer"\ncodes = "codes"\n[ar]\n{SMALL}{TRAIN}')
    assert main(["generator", "train", "ar.toml"]) == 0
    assert main(["sample", "ar", "--labels", "0", "--out", "ar.png"]) == 0
    pair = load_pair(Run.open(Path("ar")), torch.device("cpu"))
    assert pair.generator.spec.levels == pair.tokenizer.quantizer.levels == (5, 5)


def test_a_generator_that_encodes_images_says_at_which_levels(road, monkeypatch, capsys):
    monkeypatch.chdir(road)
    data = '[data]\nsource = "images"\nsize = 16\nonline = true\nlevels = 9\n'
    Path("diffusion.toml").write_text(
        f'out = "diffusion"\ntokenizer = "tokenizer"\n[diffusion]\npatch = 1\n{SMALL}{TRAIN}{data}'
    )
    assert main(["generator", "train", "diffusion.toml"]) == 0
    assert main(["sample", "diffusion", "--count", "3", "--classes", "training", "--out", "drawn.npz"]) == 0
    pair = load_pair(Run.open(Path("diffusion")), torch.device("cpu"))
    assert pair.generator.spec.levels == pair.tokenizer.quantizer.levels == (9, 9)
    assert main(["generator", "train", "diffusion.toml", "--out", "new", "--data.levels", "7"]) == 2
    assert "levels 7: expected what the tokenizer was trained at, 5, 9, 17" in capsys.readouterr().err


def test_a_cache_says_its_levels_and_is_of_them_alone(road, monkeypatch, capsys):
    monkeypatch.chdir(road)
    cache = CodeCache.open(Path("codes"))
    assert cache.layout.levels == (5, 5)
    tokenizer = Tokenizer.from_pretrained("tokenizer")
    assert cache.about["tokenizer"] == tokenizer.at_levels(5).digest()
    assert main(["encode", "tokenizer", "images", "codes", "--levels", "5"]) == 0
    capsys.readouterr()
    assert main(["encode", "tokenizer", "images", "codes"]) == 2
    assert "codes: holds another code cache (tokenizer " in capsys.readouterr().err


def test_it_is_measured_and_shown_at_each_of_its_levels(road, monkeypatch, capsys):
    monkeypatch.chdir(road)
    for extra in ([], ["--levels", "5"]):
        assert main(["tokenizer", "eval", "tokenizer", "--no-judge", *extra]) == 0
    most, five = (json.loads(Path(f"tokenizer/evaluation{name}.json").read_text()) for name in ("", "_levels_5"))
    assert five["cards"][0]["values"] != most["cards"][0]["values"]
    assert five["cards"][0]["tokenizer_hash"] == Tokenizer.from_pretrained("tokenizer").at_levels(5).digest()
    assert Path("tokenizer/samples/reconstructions_levels_5.png").is_file()
    shutil.copy("tokenizer/samples/reconstructions.png", "picture.png")
    for levels in ("5", "17"):
        assert main(["reconstruct", "tokenizer", "picture.png", "--out", levels, "--alone", "--levels", levels]) == 0
    assert Path("5/picture.png").read_bytes() != Path("17/picture.png").read_bytes()


def _two(rank, port, folder):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)
    pipeline.train_tokenizer(experiment(folder), "cpu")


@pytest.mark.slow
def test_two_processes_draw_the_same_and_end_with_the_bits_of_one_with_two_parts(tmp_path):
    torch.multiprocessing.spawn(_two, (free_port(), tmp_path / "two"), nprocs=2)
    one = experiment(tmp_path / "one")
    one = replace(one, train=replace(one.train, engine=replace(one.train.engine, accumulate=2)))
    pipeline.train_tokenizer(one, "cpu")
    assert drawn_in(tmp_path / "two") == drawn_in(tmp_path / "one")
    assert_same(weights(tmp_path / "two"), weights(tmp_path / "one"))
