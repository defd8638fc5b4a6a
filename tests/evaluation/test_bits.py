"""Bits of held-out codes: the same whoever measures, and which figure they are."""

import copy
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from ifsq.codes import CodeSet, CodeSpec, LatentSpec
from ifsq.codes.cache import CodeCache
from ifsq.config import InputError
from ifsq.evaluation import likelihood as room
from ifsq.evaluation.likelihood import measure_bits
from ifsq.generators.diffusion import DiffusionGenerator, DiTConfig
from ifsq.generators.masked import MaskedConfig, MaskedGenerator
from ifsq.sources import Pair
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig
from ifsq.training.distributed import World

ALONE = World(0, 1, torch.device("cpu"))
SPEC = CodeSpec((5, 5), (2,), "little", "paper", (2, 2))
LATENTS = LatentSpec(2, (2, 2))
QUICK = {"steps": 2, "trace": "hutchinson"}


class Together(World):
    """One of several processes that meet through a list: the last to come gets all that was gathered."""

    shares: ClassVar[list] = []

    def gather(self, value):
        self.shares.append(value)
        return copy.deepcopy(self.shares)


def pair_of(spec, kind="diffusion"):
    torch.manual_seed(0)
    if kind == "masked":
        model = MaskedGenerator(MaskedConfig(1, 16, 2, mlp_multiple_of=16), spec, 2)
    else:
        model = DiffusionGenerator(DiTConfig(1, 16, 2, patch=1), spec, 2)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    conv = ConvConfig(width=8, multipliers=(1, 1), blocks=1, groups=4)
    return Pair(model, Tokenizer(TokenizerConfig(conv, QuantizerConfig(levels=(5, 5)))).eval())


class Cache(CodeCache):
    """Of the same codes in every split."""

    splits: tuple[str, ...] = ()

    def __init__(self, codes, splits):
        self.folder, self.splits, self.codes = Path("codes"), splits, codes
        self.about = {"data": {"source": "bundled:photos", "size": 16}, "fingerprints": {"val": "h"}}

    def read(self, split, codebook=None):
        return self.codes


def cache_of(spec, splits=("train", "val")):
    shape = (7, *spec.shape)
    rng = torch.Generator().manual_seed(0)
    digits = torch.randint(5, shape, dtype=torch.uint8, generator=rng)
    content = torch.randn(shape, generator=rng).half() if spec is LATENTS else digits
    return Cache(CodeSet(spec, content, torch.arange(7) % 2), splits)


def test_bits_are_the_same_whoever_measures(monkeypatch):
    monkeypatch.setattr(room, "AT_ONCE", 2)
    pair, cache = pair_of(SPEC), cache_of(SPEC)
    whole = measure_bits(pair, cache, 5, QUICK, 3, ALONE)
    Together.shares.clear()
    for rank in range(2):
        shared = measure_bits(pair, cache, 5, QUICK, 3, Together(rank, 2, torch.device("cpu")))
    assert shared == whole
    assert (whole.n, whole.function_evaluations) == (5, 8)
    assert measure_bits(pair, cache, 5, QUICK, 4, ALONE).values != whole.values


def test_of_a_masked_generator_it_is_a_bound_with_its_error(monkeypatch):
    monkeypatch.setattr(room, "AT_ONCE", 2)
    pair, cache = pair_of(SPEC, "masked"), cache_of(SPEC)
    card = measure_bits(pair, cache, 5, {"draws": 8}, 3, ALONE)
    assert (card.metric, card.sampler, card.seed) == ("bits per image, upper bound", "draws 8", 3)
    assert (card.function_evaluations, card.method) == (8, "all orders, one digit a step")
    exact = measure_bits(pair, cache, 5, {"draws": 0}, 3, ALONE)
    assert "error of the draws" not in exact.values
    assert exact.function_evaluations == 2**8 - 1
    assert abs(card.values["mean"] - exact.values["mean"]) < 5 * card.values["error of the draws"]
    Together.shares.clear()
    for rank in range(2):
        shared = measure_bits(pair, cache, 5, {"draws": 8}, 3, Together(rank, 2, torch.device("cpu")))
    assert shared == card
    with pytest.raises(InputError, match="likelihood: steps: unknown key; known: draws"):
        measure_bits(pair, cache, 5, {"steps": 8}, 3, ALONE)


def test_of_latents_it_is_a_density():
    card = measure_bits(pair_of(LATENTS), cache_of(LATENTS), 2, {"steps": 2}, 0, ALONE)
    assert (card.metric, card.method) == ("bits per image, density of latents", "exact trace")
    assert "error of the trace" not in card.values


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(InputError, match="codes: holds no split val"):
        measure_bits(pair_of(SPEC), cache_of(SPEC, ("train",)), 5, None, 0, ALONE)
