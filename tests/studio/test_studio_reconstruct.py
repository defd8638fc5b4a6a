"""What the page says of an image at each rate, against tokenizers of that rate alone and counts by hand."""

import io
import math
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from ifsq.codes import CodeSpec
from ifsq.config import InputError
from ifsq.data import BrokenImageError, to_float, to_uint8
from ifsq.studio import reconstruct
from ifsq.studio.reconstruct import read_upload, reconstruct_at
from ifsq.studio.runs import Rate
from ifsq.studio.tokens import CELL, token_picture
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig


def tokenizer(channels=3, **options):
    torch.manual_seed(0)
    conv = ConvConfig(in_channels=channels, width=8, multipliers=(1, 1), blocks=1, patch=2, groups=4)
    return Tokenizer(TokenizerConfig(conv, QuantizerConfig(**options))).eval()


def pixels(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(picture):
    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="PNG")
    return content.getvalue()


def test_a_nested_rate_is_what_a_tokenizer_of_these_levels_alone_gives():
    nested = tokenizer(levels=(17, 17), nested_levels=(5, 17))
    alone = tokenizer(levels=(5, 5))
    alone.load_state_dict(nested.state_dict())
    picture = pixels(23, 18)  # whole positions of 4 pixels: 20 x 16
    found = reconstruct_at(Rate("tok, 5 levels", nested, 5), picture)
    original = to_float(picture[None, :20, :16])
    again = alone.reconstruct(original)
    assert np.array_equal(found.image, to_uint8(again)[0])
    error = np.mean((picture[:20, :16].astype(float) - found.image) ** 2)
    assert found.psnr == pytest.approx(10 * math.log10(255**2 / error))
    assert found.bits == pytest.approx(2 * math.log2(5) / 16)
    difference = abs(picture[:20, :16].astype(int) - found.image) * found.scale
    assert np.array_equal(found.difference, difference.clip(0, 255))
    with torch.no_grad():
        digits = alone.encode(original).digits[0]
    counts = Counter(digits.flatten().tolist())
    assert found.tokens.use.share == pytest.approx([counts[level] / digits.numel() for level in range(5)])
    assert (found.tokens.used, found.tokens.count) == (len({tuple(one) for one in digits.flatten(0, 1).tolist()}), 20)
    assert "levels 5 x 5" in found.rate.text


@pytest.mark.parametrize(
    ("options", "text", "bits"),
    [
        ({"kind": "ae"}, "codes continuous", None),
        ({"kind": "vq", "codebook_size": 64}, "codebook 64, 6 bits a position", 6 / 16),
        ({"kind": "bsq", "dim": 6}, "levels 2 x 2 x 2 x 2 x 2 x 2, 6 bits a position", 6 / 16),
        (
            {"kind": "residual", "levels": (3, 3), "cells": "equal"},
            "levels 3 x 3, 2 stages, 6.34 bits a position",
            4 * math.log2(3) / 16,
        ),
        ({"channels": 1}, "levels 17 x 17 x 17 x 17, 16.35 bits a position", math.log2(17) / 4),
    ],
)
def test_every_kind_of_bottleneck_is_shown(options, text, bits):
    found = reconstruct_at(Rate("tok", tokenizer(**options)), pixels(16, 16))
    assert found.rate.text == text
    assert found.bits == (bits if bits is None else pytest.approx(bits))
    assert (found.tokens is None) == (bits is None)
    assert found.image.shape == (16, 16, options.get("channels", 3))
    if found.tokens is not None:
        assert found.tokens.picture.shape == (4 * CELL, 4 * CELL, 3)


def test_an_image_smaller_than_a_position_is_refused():
    with pytest.raises(InputError, match="3 x 16 pixels are too few for tok; expected at least 4 a side"):
        reconstruct_at(Rate("tok", tokenizer()), pixels(16, 3))


@pytest.mark.parametrize(("size", "shown"), [((300, 200), (64, 42)), ((20, 40), (20, 40)), ((2, 1000), (1, 64))])
def test_an_upload_is_brought_to_a_longest_side(size, shown):
    assert read_upload("a.png", png(pixels(*size)), 64).shape == (*shown, 3)


def test_uploads_that_are_no_images_or_too_many_pixels_are_refused(monkeypatch):
    with pytest.raises(BrokenImageError, match=r"image a\.png cannot be read"):
        read_upload("a.png", b"no image", 64)
    monkeypatch.setattr(reconstruct, "MOST_PIXELS", 99)
    with pytest.raises(BrokenImageError, match="10 x 10 pixels, expected at most 99"):
        read_upload("a.png", png(pixels(10, 10)), 64)


@pytest.mark.parametrize("levels", [(5, 5), (3, 3, 3), (3, 3, 3, 3)])
def test_tokens_that_differ_have_other_colours(levels):
    every = torch.cartesian_prod(*map(torch.arange, levels))  # n d
    layout = CodeSpec(levels, (len(levels),), "little", "equal", (1, len(every)))
    drawn = token_picture(layout, every[None])
    assert len({tuple(colour) for colour in drawn[0, ::CELL].tolist()}) == len(every)
    middle = len(every) // 2
    assert drawn[0, middle * CELL].tolist() == [128, 128, 128]  # the middle of the lattice


def test_positions_without_a_token_are_grey_with_a_stroke():
    layout = CodeSpec((64,), (1,), "little", "codebook", (1, 3))
    digits = torch.tensor([[[7], [7], [8]]])
    drawn = token_picture(layout, digits, torch.tensor([[True, False, True]]))
    first, empty, other = np.split(drawn, 3, axis=1)
    assert len(np.unique(first.reshape(-1, 3), axis=0)) == 1
    assert not np.array_equal(first, other)
    assert sorted(Counter(empty[..., 0].flatten().tolist()).values()) == [CELL, CELL * CELL - CELL]
