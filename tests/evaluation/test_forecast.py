"""A forecast of generation: against plain code on all images at once, and what it leaves out or refuses."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ifsq import pipeline
from ifsq.cli import main
from ifsq.codes.cache import CodeCache
from ifsq.config import InputError
from ifsq.data import DataConfig, DataError, iterate_once, open_images, to_float, to_uint8
from ifsq.evaluation import forecast as forecasting
from ifsq.evaluation.forecast import distance_cards, nearest_others, token_cards
from ifsq.evaluation.judge import JudgeNet
from ifsq.evaluation.networks import Networks
from ifsq.evaluation.options import ImagesToMeasure, TokenizerEvaluation
from ifsq.evaluation.tokenizer import extractors_of
from ifsq.metrics import code_statistics, frechet_distance
from ifsq.metrics.ngram import neighbour_entropy
from ifsq.quantizers.digits import digits_to_indices
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig
from ifsq.training.log import Silent

SIZE = 16
DATA = DataConfig("images", SIZE)
CONV = ConvConfig(width=16, multipliers=(1, 1), blocks=1, patch=2, groups=4)
FSQ = {"levels": (5, 5, 4), "groups": (1, 2), "cells": "equal"}
KINDS = {"fsq": FSQ, "vq": {"kind": "vq", "dim": 4, "codebook_size": 16}, "ae": {"kind": "ae"}}


def make(seed=0, **quantizer):
    torch.manual_seed(seed)
    return Tokenizer(TokenizerConfig(CONV, QuantizerConfig(**(quantizer or FSQ)))).eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two classes of smooth pictures, and three tokenizers with their caches; the working directory of every test."""
    folder = tmp_path_factory.mktemp("forecast")
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 12)):
        for label in ("a", "b"):
            (folder / "images" / split / label).mkdir(parents=True)
            for number in range(count):
                picture = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((SIZE, SIZE))
                picture.save(folder / "images" / split / label / f"{number}.png")
    with contextlib.chdir(folder):
        for name, options in KINDS.items():
            make(**options).save_pretrained(name)
            pipeline.encode(Path(name), "images", Path(f"{name}_codes"), SIZE, device="cpu")
    return folder


@pytest.fixture(autouse=True)
def _inside(place, monkeypatch):
    monkeypatch.chdir(place)


@pytest.fixture(scope="module")
def judge():
    torch.manual_seed(1)
    return JudgeNet(4, 4).eval()


def by_name(cards):
    return {card.metric: card.values for card in cards}


def test_tokens_are_counted_by_group_and_by_dimension():
    found = by_name(token_cards(Tokenizer.from_pretrained("fsq"), Path("fsq_codes"))[0])
    cache = CodeCache.open("fsq_codes")
    train, val = (cache.read(split).content[:].long() for split in ("train", "val"))
    use = code_statistics(train, cache.spec.levels, cache.spec.groups)
    assert found["level entropy / log2 L"]["mean"] == pytest.approx(use.mean_fraction)
    each = [neighbour_entropy(train[..., d], val[..., d], L) for d, L in enumerate(FSQ["levels"])]
    digits = found["digit entropy, bits a position"]
    assert digits["given left and above"] == pytest.approx(sum(one.both for one in each))
    assert digits["plug-in"] == pytest.approx(sum(use.level_bits))
    assert digits["at most"] == pytest.approx(np.log2(5 * 5 * 4))
    indices = [digits_to_indices(one, FSQ["levels"], FSQ["groups"], "little") for one in (train, val)]
    each = [neighbour_entropy(indices[0][..., g], indices[1][..., g], size) for g, size in enumerate((5, 20))]
    index = found["index entropy, bits a position"]
    assert index["held out"] == pytest.approx(sum(one.alone for one in each))
    assert index["given left"] == pytest.approx(sum(one.left for one in each))
    share = [group.fraction for group in use.groups]
    assert found["index use"]["share"] == pytest.approx(sum(share) / 2)


def test_where_index_and_digit_are_one_they_are_counted_once():
    cards, left_out = token_cards(Tokenizer.from_pretrained("vq"), Path("vq_codes"))
    assert left_out == []
    assert "digit entropy, bits a position" not in by_name(cards)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["fsq", "vq", "ae"])
def test_distances_are_those_of_all_images_at_once(kind, judge, monkeypatch):
    monkeypatch.setattr(forecasting, "max_batch", lambda *_: 7)
    tokenizer, source, count = Tokenizer.from_pretrained(kind), open_images(DATA, "val"), 20
    on = ImagesToMeasure(source, DATA, "shapes", list(range(count)))
    found = by_name(distance_cards(tokenizer, on, extractors_of(Networks(judge=judge)), 0, Silent())[0])

    (batch,) = iterate_once(source, count, indices=range(count))
    images = batch.images
    codes = tokenizer.encode(images).codes
    distances = torch.cdist(codes.flatten(1), codes.flatten(1)) + torch.eye(count) * 1e9
    middle = (codes + codes[distances.argmin(dim=1)]) / 2

    def distance(decoded):
        seen = [judge.features(to_float(to_uint8(part))).double() for part in (decoded, images)]
        return frechet_distance(*seen)

    assert found["rFD(judge)"]["distance"] == pytest.approx(distance(tokenizer.decode(codes)), rel=1e-3)
    between = found["iFD(judge)"]
    assert between["distance"] == pytest.approx(distance(tokenizer.decode(middle)), rel=1e-3)
    if kind == "fsq":
        spec = tokenizer.spec(SIZE, SIZE)
        snapped = spec.digits_to_codes(spec.codes_to_digits(middle))
        assert between["snapped"] == pytest.approx(distance(tokenizer.decode(snapped)), rel=1e-3)
    assert ("snapped" in between) == (kind != "ae")


def test_nearest_is_never_the_image_itself_but_may_be_its_double():
    codes = torch.randn(30, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    codes[4] = codes[20]
    found = nearest_others(codes, range(3, 25)).tolist()
    assert found[4 - 3] == 20
    assert found[20 - 3] == 4
    for row, near in zip(range(3, 25), found, strict=True):
        others = [(float((codes[row] - codes[at]).norm()), at) for at in range(30) if at != row]
        assert near == min(others)[1]


def test_the_command_writes_a_table_and_a_file(place, capsys, judge, monkeypatch):
    monkeypatch.setattr(forecasting, "load_networks", lambda *_: Networks(judge=judge))
    ask = ["analyze", "forecast", "fsq", "fsq_codes", "--data", "images", "--size", str(SIZE), "--count", "16"]
    assert main([*ask, "--device", "cpu"]) == 0
    told = capsys.readouterr()
    (file,) = Path("fsq").glob("evaluation_forecast*.json")
    assert str(file) in told.out + told.err
    cards = json.loads(file.read_text())["cards"]
    assert {card["metric"] for card in cards} > {"iFD(judge)", "rFD(judge)", "index entropy, bits a position"}
    assert "iFD(judge)" in told.out


def test_what_was_not_asked_for_is_said():
    options = TokenizerEvaluation(source="images", size=SIZE, judge=False)
    cards = pipeline.forecast(Path("fsq"), Path("fsq_codes"), "cpu", None, options)
    assert all("FD" not in card.metric for card in cards)
    assert token_cards(Tokenizer.from_pretrained("ae"), Path("ae_codes")) == ([], ["tokens: the codes are continuous"])
    with pytest.raises(InputError, match="fsq: tokens: no cache was given; distances: no network was asked for"):
        pipeline.forecast(Path("fsq"), None, "cpu", None, options)


def test_another_tokenizers_cache_and_too_few_images_are_refused(judge, tmp_path):
    with pytest.raises(InputError, match="was written by tokenizer"):
        token_cards(make(seed=3), Path("fsq_codes"))
    pipeline.encode(Path("fsq"), "images", tmp_path / "train", SIZE, device="cpu", splits=["train"])
    left_out = token_cards(Tokenizer.from_pretrained("fsq"), tmp_path / "train")[1]
    assert left_out[0].endswith("holds no split val to be held out")
    on = ImagesToMeasure(open_images(DATA, "val"), DATA, "shapes", [0])
    with pytest.raises(DataError, match="1 images could be read; expected two"):
        distance_cards(make(), on, extractors_of(Networks(judge=judge)), 0, Silent())


def test_no_more_images_than_are_compared_and_no_more_tokens_than_are_counted(judge, monkeypatch):
    monkeypatch.setattr(forecasting, "MOST_IMAGES", 12)
    monkeypatch.setattr(forecasting, "MOST_POSITIONS", 100)
    monkeypatch.setattr(forecasting, "load_networks", lambda *_: Networks(judge=judge))
    options = TokenizerEvaluation(source="images", size=SIZE)
    cards = pipeline.forecast(Path("fsq"), Path("fsq_codes"), "cpu", None, options)
    counted = {card.metric: card for card in cards}
    assert counted["iFD(judge)"].n == 12
    assert counted["iFD(judge)"].reference.endswith("12 drawn")
    per_image = CodeCache.open("fsq_codes").spec.tokens
    assert counted["index use"].n == 100 // per_image
