"""Tiles: their windows, what they change and what not, their memory."""

from itertools import pairwise

import pytest
import torch

from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig
from ifsq.tokenizer.tiling import Tiling, tiled

TINY = ConvConfig(width=8, multipliers=(1, 1), blocks=1, groups=4, norm="layer")
REACH = 10  # cells that the convolutions of TINY's decoder see on each side; its encoder's see 8


def model_of(conv=TINY, **quantizer):
    torch.manual_seed(0)
    return Tokenizer(TokenizerConfig(conv, QuantizerConfig(**quantizer))).eval()


@pytest.mark.parametrize("length", range(1, 40))
@pytest.mark.parametrize(("size", "overlap"), [(1, 0), (4, 0), (4, 2), (5, 1), (8, 3), (8, 4)])
def test_windows_cover_every_place_once(length, size, overlap):
    tiling = Tiling(size, overlap)
    starts = tiling.starts(length)
    assert starts[0] == 0
    assert starts[-1] + size >= length
    assert all(0 < right - left <= size - overlap for left, right in pairwise(starts))
    for scale in (1, 3):
        total = torch.zeros(length * scale)
        for start, weights in tiling.windows(length, scale):
            assert (weights > 0).all()
            total[start * scale : start * scale + len(weights)] += weights
        torch.testing.assert_close(total, torch.ones_like(total))


def test_the_blend_is_linear():
    (_, first), (start, second) = Tiling(4, 2).windows(6, 1)
    assert start == 2
    torch.testing.assert_close(first, torch.tensor([1.0, 1.0, 0.75, 0.25]))
    torch.testing.assert_close(second, torch.tensor([0.25, 0.75, 1.0, 1.0]))


def test_what_goes_by_position_is_not_changed():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 11)
    upscaled = lambda part: part.repeat_interleave(2, 2).repeat_interleave(2, 3) * 3  # noqa: E731
    torch.testing.assert_close(tiled(upscaled, x, Tiling(4, 1), 1, 2), upscaled(x))


@torch.no_grad()
def test_one_tile_is_the_whole_image():
    for norm in ("group", "layer"):
        model = model_of(ConvConfig(width=8, multipliers=(1, 1), blocks=1, groups=4, norm=norm))
        images = torch.rand(2, 3, 16, 24) * 2 - 1
        whole, parts = model.encode(images), model.encode(images, tile=24)
        assert torch.equal(whole.codes, parts.codes)
        assert torch.equal(whole.indices, parts.indices)
        assert torch.equal(model.decode(whole.codes), model.decode(whole.codes, tile=32, overlap=4))
        torch.testing.assert_close(model.decode(whole.codes), model.decode_indices(whole.indices, tile=24))


@torch.no_grad()
def test_inside_tiles_a_layer_norm_gives_the_whole_image():
    model = model_of()
    images = torch.rand(1, 3, 128, 160) * 2 - 1
    whole, parts = model.latent(images), model.latent(images, tile=96, overlap=32)
    codes = torch.rand(1, 4, 64, 80) * 2 - 1
    assert whole.shape == parts.shape
    tiling = Tiling(48, 16)
    for value, other, scale in (
        (whole, parts, 1),
        (model.decode(codes), model.decode(codes, tile=96, overlap=32), 2),
    ):
        inside = torch.ones(value.shape[2:], dtype=torch.bool)
        for axis, length in enumerate((64, 80)):
            for start in tiling.starts(length):
                for edge in {start, start + 48} - {0, length}:
                    near = slice(max(0, (edge - REACH) * scale), (edge + REACH) * scale)
                    inside[near if axis == 0 else slice(None), near if axis == 1 else slice(None)] = False
        assert 0.1 < inside.float().mean() < 0.9
        torch.testing.assert_close(value[..., inside], other[..., inside], atol=1e-5, rtol=1e-4)
        assert (value - other).abs().max() > 1e-4  # beside the edges it does differ


@torch.no_grad()
def test_a_seam_is_no_step():
    """Over a blended seam the difference to the whole image grows gradually; without overlap it jumps."""
    model = model_of()
    codes = torch.rand(1, 4, 32, 64) * 2 - 1
    whole = model.decode(codes)
    steps = {}
    for overlap in (0, 32):
        error = model.decode(codes, tile=64, overlap=overlap) - whole
        steps[overlap] = (error[..., 1:] - error[..., :-1]).abs().amax()
    assert steps[32] < 0.5 * steps[0]


@torch.no_grad()
def test_memory_is_that_of_one_tile():
    model = model_of()

    def largest(function):
        sizes = []
        hooks = [m.register_forward_hook(lambda _, __, out: sizes.append(out.numel())) for m in parts]
        function()
        for hook in hooks:
            hook.remove()
        return max(sizes)

    parts = [m for m in (*model.encoder.modules(), *model.decoder.modules()) if not list(m.children())]
    small, large = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 96, 160)
    limit = largest(lambda: model.encode(small))
    assert largest(lambda: model.encode(large, tile=32)) == limit
    assert largest(lambda: model.encode(large)) == 15 * limit
    small, large = torch.rand(1, 4, 16, 16), torch.rand(1, 4, 48, 80)
    limit = largest(lambda: model.decode(small))
    assert largest(lambda: model.decode(large, tile=32)) == limit
    assert largest(lambda: model.decode(large)) == 15 * limit


@torch.no_grad()
def test_latents_without_a_lattice_are_tiled_too():
    model = model_of(kind="ae")
    images = torch.rand(1, 3, 48, 32) * 2 - 1
    encoded = model.encode(images, tile=16, overlap=4)
    assert encoded.indices is None
    torch.testing.assert_close(encoded.codes, model.latent(images, tile=16, overlap=4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 15}, "tile=15: expected a positive multiple of the tokenizer's factor 2"),
        ({"tile": 0}, "tile=0: expected a positive multiple"),
        ({"tile": -2}, "tile=-2: expected a positive multiple"),
        ({"tile": 16, "overlap": 3}, "overlap=3: expected a multiple of the tokenizer's factor 2"),
        ({"tile": 16, "overlap": 10}, "overlap=10: .* 0 to half of tile=16"),
        ({"tile": 16, "overlap": -2}, "overlap=-2: "),
    ],
)
def test_bad_tiles_are_named(options, message):
    model = model_of()
    with pytest.raises(ValueError, match=message):
        model.encode(torch.zeros(1, 3, 32, 32), **options)
    with pytest.raises(ValueError, match=message):
        model.decode(torch.zeros(1, 4, 16, 16), **options)
    with pytest.raises(ValueError, match="overlap=3 of tiles of 4 cells"):
        Tiling(4, 3)
