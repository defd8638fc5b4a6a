"""What a tokenizer is given and cannot use: refused in words by every face, before torch refuses it in its own."""

import jaxtyping
import numpy as np
import pytest
import torch

from ifsq.quantizers import FSQ
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig

KINDS = {
    "fsq": QuantizerConfig(levels=(5, 5, 5)),
    "grouped": QuantizerConfig(levels=(5, 5, 5), groups=(1, 2)),
    "residual": QuantizerConfig(kind="residual", levels=(3, 3, 3), cells="equal", stages=2),
    "vq": QuantizerConfig(kind="vq", dim=3, codebook_size=16),
    "lfq": QuantizerConfig(kind="lfq", dim=3),
    "kl": QuantizerConfig(kind="kl", dim=3),
}


@pytest.fixture(autouse=True)
def _as_a_user_calls_it(monkeypatch):
    """The shapes in signatures are checked in tests only, and would answer first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def make(kind="fsq"):
    torch.manual_seed(0)
    conv = ConvConfig(width=8, multipliers=(1, 1), blocks=1, patch=2, groups=4)
    return Tokenizer(TokenizerConfig(conv, KINDS[kind])).eval()


def images(*shape):
    return torch.rand(*(shape or (2, 3, 8, 12)), generator=torch.Generator().manual_seed(0)) * 2 - 1


IMAGES = {
    "bytes": (((images() + 1) * 127.5).byte(), r"images of torch.uint8: expected floats in \[-1, 1\]; bytes are"),
    "integers": (images().long(), r"images of torch.int64: expected floats"),
    "an array": (images().numpy(), r"images of type ndarray: expected a tensor \(b, 3, H, W\)"),
    "0 to 255": ((images() + 1) * 127.5, r"images from [0-9.]+ to 25[45].*: expected values in \[-1, 1\]"),
    "of another network": ((images() / 2 + 0.5 - 0.45) / 0.225, r"images from -1.995 to 2.444: expected values in"),
    "one NaN": (torch.where(images() == images().max(), torch.nan, images()), "images with NaN: expected"),
    "one infinity": (torch.where(images() == images().max(), torch.inf, images()), "images from -.* to inf: exp"),
    "one image": (images(3, 8, 8), r"images of shape \(3, 8, 8\): expected a batch \(b, 3, H, W\)"),
    "a film": (images(1, 2, 3, 8, 8), r"images of shape \(1, 2, 3, 8, 8\): expected a batch"),
    "grey": (images(2, 1, 8, 8), r"images of shape \(2, 1, 8, 8\): expected 3 channels on axis 1"),
    "with alpha": (images(2, 4, 8, 8), r"expected 3 channels on axis 1"),
    "channels last": (images(2, 8, 8, 3), r"images of shape \(2, 8, 8, 3\): expected 3 channels on axis 1"),
    "nothing": (images(0, 3, 8, 8), r"images of shape \(0, 3, 8, 8\): expected at least one image with pixels"),
    "no pixels": (images(2, 3, 0, 8), r"images of shape \(2, 3, 0, 8\): expected at least one image with pixels"),
    "odd sides": (images(2, 3, 8, 10), r"images of 8 x 10 pixels: expected multiples of 4"),
}


@pytest.mark.parametrize("case", IMAGES)
@pytest.mark.parametrize("face", ["encode", "latent", "reconstruct", "forward"])
def test_what_are_no_images_is_refused(case, face):
    given, message = IMAGES[case]
    with pytest.raises(ValueError, match=message):
        getattr(make(), face)(given)
    if face != "forward":
        with pytest.raises(ValueError, match=message):
            getattr(make(), face)(given, tile=8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_any_float_that_overshoot_a_little_are_taken(dtype):
    encoded = make().encode((images() * 1.3).to(dtype))
    assert encoded.indices.shape == (2, 2, 3)


CODES = {
    "indices": (torch.zeros(2, 3, 2, 3, dtype=torch.int64), r"codes of torch.int64: expected floats \(b, 3, h, w\)"),
    "channels": (torch.zeros(2, 4, 2, 3), r"codes of shape \(2, 4, 2, 3\): expected \(b, 3, h, w\)"),
    "rank": (torch.zeros(3, 2, 3), r"codes of shape \(3, 2, 3\): expected \(b, 3, h, w\)"),
    "nothing": (torch.zeros(0, 3, 2, 3), r"codes of shape \(0, 3, 2, 3\): expected at least one position"),
    "NaN": (torch.full((2, 3, 2, 3), torch.nan), r"codes.*nan"),
}


@pytest.mark.parametrize("case", CODES)
@pytest.mark.parametrize("kind", ["fsq", "kl"])
def test_what_are_no_codes_is_refused(case, kind):
    given, message = CODES[case]
    for tile in (None, 8):
        with pytest.raises(ValueError, match=message):
            make(kind).decode(given, tile=tile)


INDICES = {
    "codes": (torch.zeros(2, 2, 3), "indices of torch.float32: expected integers; `decode` takes codes"),
    "truths": (torch.zeros(2, 2, 3, dtype=torch.bool), "indices of torch.bool: expected integers"),
    "rank": (torch.zeros(2, 6, dtype=torch.int64), r"indices of shape \(2, 6\): expected \(b, h, w"),
    "nothing": (torch.zeros(0, 2, 3, dtype=torch.int64), "indices of shape .*: expected"),
    "too many groups": (torch.zeros(2, 2, 3, 7, dtype=torch.int64), r"indices of shape \(2, 2, 3, 7\): expected \(b, "),
    "beyond": (torch.full((2, 2, 3), 10**6), "10000.*: expected|indices of shape .*: expected"),
    "negative": (torch.full((2, 2, 3), -1), "-1.*: expected|indices of shape .*: expected"),
}


@pytest.mark.parametrize("case", INDICES)
@pytest.mark.parametrize("kind", ["fsq", "grouped", "residual", "vq", "lfq"])
def test_what_are_no_indices_is_refused(case, kind):
    given, message = INDICES[case]
    with pytest.raises(ValueError, match=message):
        make(kind).decode_indices(given)


@pytest.mark.parametrize("kind", ["fsq", "grouped", "residual", "vq", "lfq"])
def test_what_encode_gives_is_taken(kind):
    tokenizer = make(kind)
    encoded = tokenizer.encode(images())
    torch.testing.assert_close(tokenizer.decode_indices(encoded.indices), tokenizer.decode(encoded.codes))
    if kind in ("fsq", "vq", "lfq"):
        again = tokenizer.decode_indices(encoded.indices[..., None].to(torch.int32))
        torch.testing.assert_close(again, tokenizer.decode(encoded.codes))
    if kind == "residual":
        assert tokenizer.decode_indices(encoded.indices[..., :1]).shape == (2, 3, 8, 12)


def test_groups_that_are_as_many_as_columns_are_no_sequence():
    with pytest.raises(ValueError, match=r"indices of shape \(2, 3, 2\): expected \(b, h, w, 2\)"):
        make("grouped").decode_indices(torch.zeros(2, 3, 2, dtype=torch.int64))


def test_values_are_not_read_on_an_accelerator_or_under_a_compiler():
    """On the meta device there is nothing to read; a compiler must find no break."""
    tokenizer = make().to("meta")
    assert tokenizer.latent(images().to("meta")).shape == (2, 3, 2, 3)
    with pytest.raises(ValueError, match="expected 3 channels"):
        tokenizer.latent(images(2, 1, 8, 8).to("meta"))
    with pytest.raises(ValueError, match="expected integers"):
        tokenizer.decode_indices(torch.zeros(2, 2, 3, device="meta"))
    tokenizer = make()
    traced = torch.compile(tokenizer.latent, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(images()), tokenizer.latent(images()))
    traced = torch.compile(tokenizer.decode, backend="eager", fullgraph=True, dynamic=True)
    for rows in (2, 5):
        codes = FSQ([5, 5, 5], channel_first=True)(torch.randn(rows, 3, 2, 3))[0]
        torch.testing.assert_close(traced(codes), tokenizer.decode(codes))


def test_a_picture_of_bytes_has_its_own_tokens_once_it_is_made_floats():
    given = images()
    as_bytes = ((given + 1) * 127.5).round().byte()
    same = make().encode(as_bytes.float() / 127.5 - 1).indices == make().encode(given).indices
    assert same.float().mean() > 0.9
    assert np.isfinite(make()(given).images.detach().numpy()).all()
