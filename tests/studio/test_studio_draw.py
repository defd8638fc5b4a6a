"""What the page says while generators draw: the images of ``sample``, and states on the way to them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ifsq.config import InputError
from ifsq.data import to_uint8
from ifsq.generators import ARGenerator, DiffusionGenerator, MaskedGenerator, Origin
from ifsq.generators.ar import ARConfig
from ifsq.generators.diffusion import DiTConfig
from ifsq.generators.masked import MaskedConfig
from ifsq.sources import Pair
from ifsq.studio import draw
from ifsq.studio.draw import KEPT, Asked, draw_states, milestones, numbers
from ifsq.studio.runs import Drawer, Shown
from ifsq.studio.tokens import BLANK, CELL, token_picture
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig

CONV = ConvConfig(width=8, multipliers=(1, 1), blocks=1, patch=2, groups=4)
NAMES = ("cat", "dog")
ASKED = Asked("dog", 3, 2.0, 4)


def drawer(of, sampling=None, **options):
    torch.manual_seed(0)
    tokenizer = Tokenizer(TokenizerConfig(CONV, QuantizerConfig(**options or {"levels": (5, 5)}))).eval()
    spec = tokenizer.spec(16, 16)
    make = {
        "ar": lambda: ARGenerator(ARConfig(1, 16, 2, mlp_multiple_of=8), spec, 2),
        "masked": lambda: MaskedGenerator(MaskedConfig(1, 16, 2, mlp_multiple_of=8), spec, 2),
        "diffusion": lambda: DiffusionGenerator(DiTConfig(1, 16, 2, patch=1), spec, 2, tokenizer.quantizer.dim),
    }
    generator = make[of]()
    for parameter in generator.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    if generator.kind == "diffusion" and not spec.on_lattice:
        generator.codebook.copy_(tokenizer.codebook())
    generator.origin = Origin(NAMES, sampling=sampling or {})
    return Drawer(of, Pair(generator.eval(), tokenizer))


def states(which, asked=ASKED):
    found = []
    draw_states(which, asked, found.append)
    return found


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        ("ar", {}, "token 3 of 16"),
        ("masked", {}, "round 2 of 8, 9 % of the digits"),
        ("diffusion", {}, "step 3 of 16, time 0.19"),
        ("ar", {"kind": "vq", "codebook_size": 8}, "token 3 of 16"),
        ("diffusion", {"kind": "vq", "codebook_size": 8}, "step 3 of 16, time 0.19"),
    ],
)
def test_the_end_is_what_sample_draws_and_states_are_kept_on_the_way(monkeypatch, kind, options, text):
    monkeypatch.setattr(draw, "EVERY", 1e9)  # those alone that are kept, and the first
    which = drawer(kind, **options)
    generator, tokenizer = which.pair.generator, which.pair.tokenizer
    found = states(which)
    drawn = generator.sample(torch.ones(4, dtype=torch.int64), seed=3, guidance=2.0)
    with torch.no_grad():
        images = tokenizer.decode_sampled(drawn)
    assert np.array_equal(found[-1].images, to_uint8(images))
    assert (found[-1].text, found[-1].share) == ("drawn", 1.0)
    digits = generator.spec.indices_to_digits(drawn.indices)
    for shown, one in zip(found[-1].tokens, digits, strict=True):
        assert np.array_equal(shown, token_picture(generator.spec, one))
    kept = [one for one in found if one.kept]
    assert len(kept) == KEPT
    assert kept[0].text == text
    shares = [one.share for one in found]
    assert shares == sorted(shares)


def test_positions_without_a_token_are_blank_and_decoded_as_the_middle_of_the_lattice():
    which = drawer("ar")
    first = states(which)[0]
    assert first.text == "token 1 of 16"
    (grey,) = np.unique(first.tokens[0][: CELL - 1, CELL : 2 * CELL - 1][0])  # above the stroke of the second position
    assert grey == BLANK
    codes = torch.zeros(1, 2, 4, 4)
    drawn = which.pair.generator.sample(torch.ones(4, dtype=torch.int64), seed=3, guidance=2.0)
    codes[0, :, 0, 0] = drawn.codes[0, :, 0, 0]
    with torch.no_grad():
        assert np.array_equal(first.images[0], to_uint8(which.pair.tokenizer.decode(codes))[0])


def test_latents_have_no_tokens():
    torch.manual_seed(0)
    tokenizer = Tokenizer(TokenizerConfig(CONV, QuantizerConfig(kind="ae"))).eval()
    generator = DiffusionGenerator(DiTConfig(1, 16, 2, patch=1), tokenizer.layout(16, 16), 2).eval()
    generator.origin = Origin(NAMES)
    found = states(Drawer("latents", Pair(generator, tokenizer)))
    assert all(one.tokens == [] for one in found)
    assert found[-1].images.shape == (4, 16, 16, 3)


@pytest.mark.parametrize("steps", range(1, 30))
def test_states_that_are_kept_are_spread_evenly(steps):
    found = sorted(milestones(steps))
    assert len(found) == min(KEPT - 1, steps - 1)
    assert all(0 < done < steps for done in found)
    gaps = np.diff([0, *found, steps])
    assert max(gaps) - min(gaps) <= 1


def test_a_state_that_takes_long_is_followed_by_none_for_longer(monkeypatch):
    """Of a decoder that takes a second, beside tokens that take a twentieth, 0.3 s would show five states."""
    now, found = 0.0, []

    def clock():
        nonlocal now
        now += 0.05
        return now

    def show(state):
        nonlocal now
        now += 1.0
        found.append(state.text)

    monkeypatch.setattr(draw, "milestones", lambda steps: set())
    monkeypatch.setattr(draw, "time", SimpleNamespace(monotonic=clock))
    draw_states(drawer("ar"), ASKED, show)
    assert found == ["token 1 of 16", "drawn"]


def test_states_that_cost_nothing_come_at_every_step(monkeypatch):
    monkeypatch.setattr(draw, "EVERY", 0.0)
    monkeypatch.setattr(draw, "WORTH", 0)
    assert [one.text for one in states(drawer("ar"))] == [*(f"token {k} of 16" for k in range(1, 17)), "drawn"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (Asked("fox", 0, 2.0, 1), "ar: has no class 'fox'"),
        (Asked("cat", 0, float("inf"), 1), "guidance: inf: expected a finite number"),
        (Asked("cat", 0, -1.0, 1), "guidance=-1.0"),
    ],
)
def test_what_a_generator_does_not_take_is_said(asked, told):
    with pytest.raises(InputError, match=told):
        states(drawer("ar"), asked)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("cat", None, 2.0, 1), "seed of nothing: expected a whole number"),
        (("cat", 1.5, 2.0, 1), "seed 1.5: expected a whole number"),
        (("cat", float("nan"), 2.0, 1), "seed nan: expected a whole number"),
        (("cat", -1, 2.0, 1), "seed -1: expected 0 to"),
        (("cat", 1e300, 2.0, 1), "seed 1.*: expected 0 to"),
        (("cat", 0, None, 1), "guidance of nothing"),
        (("cat", 0, 2.0, 5), "5 images: expected 1, 4, 9"),
    ],
)
def test_what_is_typed_wrong_is_said(given, told):
    with pytest.raises(InputError, match=told):
        numbers(*given)


def test_classes_are_those_of_all_generators():
    one, other = drawer("ar"), drawer("diffusion")
    other.pair.generator.origin = Origin(("dog", "fox"))
    assert Shown((), (one, other)).classes == ("cat", "dog", "fox")
    assert (one.title, other.title) == ("ar (autoregressive)", "diffusion")
