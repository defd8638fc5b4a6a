"""The scale of the codes that a diffusion generator keeps: its own is believed, one of another tokenizer is refused."""

import re
from dataclasses import replace

import pytest
import torch

import ifsq
from ifsq import pipeline
from ifsq.codes import CodeSet, CodeSpec, LatentSpec
from ifsq.config import InputError
from ifsq.generators import Origin
from ifsq.generators.diffusion import DiffusionGenerator, DiTConfig
from ifsq.sources import load_pair
from ifsq.store.run import Run
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig

LATTICE = CodeSpec((17, 17), (2,), "little", "paper", (2, 2))
NARROW = replace(LATTICE, scale=2**-0.5)
LATENTS = LatentSpec(2, (2, 2))
BOOK = CodeSpec((11,), (1,), "little", "codebook", (2, 2))


def make(spec, **options):
    torch.manual_seed(0)
    return DiffusionGenerator(DiTConfig(1, 16, 2, patch=2, **options), spec, 3, 2)


def saved(folder, mean, std, spec, **options):
    """A generator whose file says so, however it came there."""
    model = make(spec, **options)
    if model.codebook is not None:
        model.codebook.copy_(torch.linspace(-3, 3, 22).view(11, 2))
    model.code_mean.copy_(torch.tensor(mean))
    model.code_std.copy_(torch.tensor(std))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("spec", "options", "mean", "std"),
    [
        (LATTICE, {}, [0.3, -0.9], [0.2, 1.0]),
        (LATTICE, {"multiplier": 1.092421}, [0.0, 0.0], [1 / 1.092421] * 2),
        (NARROW, {}, [0.3, -0.7], [0.2, 1.0]),
        (BOOK, {}, [2.5, -3.0], [0.1, 1.7]),
        (LATENTS, {"multiplier": 0.18215}, [0.0, 0.0], [1 / 0.18215] * 2),
        (LATENTS, {}, [40.0, -2.0], [100.0, 1e-4]),
        (LATTICE, {"multiplier": 2.0}, [0.0, 0.0], [1.0, 1.0]),  # before training
    ],
)
def test_what_can_be_is_read(spec, options, mean, std, tmp_path):
    model = DiffusionGenerator.from_pretrained(saved(tmp_path / "run", mean, std, spec, **options))
    assert torch.equal(model.code_std, torch.tensor(std))


@pytest.mark.parametrize(
    ("spec", "options", "mean", "std", "message"),
    [
        (LATENTS, {}, [0.0, 0.0], [1.0, 0.0], "code_std [1, 0]: expected positive numbers"),
        (LATENTS, {}, [0.0, 0.0], [1.0, -2.0], "code_std [1, -2]: expected positive numbers"),
        (
            LATTICE,
            {"multiplier": 1.092421},
            [0.0, 0.0],
            [1.2, 1.2],
            "expected 0 and 0.9154, as the config's multiplier",
        ),
        (LATENTS, {"multiplier": 0.18215}, [0.1, 0.0], [1 / 0.18215] * 2, "expected 0 and 5.49, as the config's mult"),
        (
            LATTICE,
            {},
            [0.0, 0.0],
            [1 / 0.18215] * 2,
            "code_std [5.49, 5.49]: expected up to 1 and 4, as codes of -1 to",
        ),
        (NARROW, {}, [0.8, 0.0], [0.5, 0.5], "expected up to 0.7071 and 2.828, as codes of -0.7071 to 0.7071 give"),
        (BOOK, {}, [4.0, 0.0], [0.5, 0.5], "expected up to 3 and 12, as codes of -3 to 3 give; these are of another"),
    ],
)
def test_what_contradicts_config_or_codes_is_refused_where_it_is_read(spec, options, mean, std, message, tmp_path):
    folder = saved(tmp_path / "run", mean, std, spec, **options)
    with pytest.raises(InputError, match=re.escape(message)) as told:
        ifsq.Generator.from_pretrained(folder)
    assert str(told.value).startswith(f"{folder}: code_")


def codes(scale):
    rng = torch.Generator().manual_seed(0)
    content = scale * torch.randn(64, 2, 2, 2, generator=rng)
    return CodeSet(LATENTS, content.half(), torch.zeros(64, dtype=torch.int64))


def test_weights_from_elsewhere_must_fit_the_codes():
    model = make(LATENTS)
    model.set_statistics(torch.zeros(2), torch.full((2,), 1 / 0.18215))
    for scale in (1.6, 5.5, 20.0):
        model.check_codes(codes(scale), "here")
    for scale, found in ((1.0, "0.18"), (24.0, "4.")):
        told = rf"here: code_mean \[0, 0\] and code_std \[5.49, 5.49\] normalise these codes to a root .* {found}"
        with pytest.raises(InputError, match=told):
            model.check_codes(codes(scale), "here")
    model.set_statistics(torch.full((2,), 30.0), torch.ones(2))
    with pytest.raises(InputError, match="root mean square of 30"):
        model.check_codes(codes(1.0), "here")
    fixed = make(LATENTS, multiplier=0.5)
    fixed.set_statistics(torch.zeros(2), torch.full((2,), 1.0001))
    with pytest.raises(InputError, match=r"expected 0 and 2, as the config's multiplier=0.5 gives; init_parts"):
        fixed.check_codes(codes(1.0), "here")


def test_the_codebook_must_be_its_tokenizers(tmp_path):
    conv, quantizer = (
        ConvConfig(8, blocks=1, groups=4, multipliers=(1,)),
        QuantizerConfig(kind="vq", dim=2, codebook_size=11),
    )
    tokenizer = Tokenizer(TokenizerConfig(conv, quantizer))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    model = make(tokenizer.layout(2, 2))
    model.origin = Origin(("a", "b", "c"), str(tmp_path / "tokenizer"), tokenizer.digest())
    model.codebook.copy_(tokenizer.codebook())
    model.set_statistics(*(tokenizer.codebook().mean(0), tokenizer.codebook().std(0)))
    model.save_pretrained(tmp_path / "run")
    assert load_pair(Run.open(tmp_path / "run"), torch.device("cpu")).generator.codebook is not None
    model.codebook[3] *= 0.5
    model.save_pretrained(tmp_path / "other")
    told = "other: codebook: holds other vectors than its tokenizer's; expected the same"
    with pytest.raises(InputError, match=told):
        pipeline.sample(tmp_path / "other", [0], 0, tmp_path / "new.png", "cpu")
    assert not (tmp_path / "new.png").exists()
