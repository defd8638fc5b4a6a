"""The fused arithmetic against plain autograd, and what it keeps in memory."""

import math

import pytest
import torch

import ifsq
from ifsq.quantizers.bounds import FIXED, make_bound

LEVELS = {"paper": [5, 17, 33], "symmetric": [2, 17, 8], "equal": [2, 17, 256]}


def plain(z, levels, bound, cells):
    """The definitions of three papers, operation by operation: channels last."""
    L = torch.tensor(levels, dtype=z.dtype)
    half = torch.div(L, 2, rounding_mode="floor")
    if bound == "tanh" and cells == "paper":  # arXiv 2309.15505, appendix A.1
        width = (L - 1) * 1.001 / 2
        offset = torch.where(L % 2 == 0, 0.5, 0.0)
        y = torch.tanh(z + torch.atanh(offset / width)) * width - offset
        digits = (y.round() + half).detach()
        return (y + (y.round() - y).detach()) / half, digits
    y = {
        "tanh": torch.tanh,
        "ifsq": lambda z: 2 * torch.sigmoid(1.6 * z) - 1,
        "gaussian": lambda z: torch.erf(z / math.sqrt(2)),
        "clamp": lambda z: z.clamp(-1, 1),
    }[bound](z)
    if cells == "paper":  # arXiv 2601.17124, section 3
        y = y * (L - 1) / 2
        return (y + (y.round() - y).detach()) / half, (y.round() + half).detach()
    if cells == "symmetric":  # arXiv 2411.19842, section 3.2
        digits = ((L - 1) * (y + 1) / 2 + 0.5).floor().detach()
        return y + (2 * digits / (L - 1) - 1 - y).detach(), digits
    digits = torch.minimum(((y + 1) / 2 * L).floor(), L - 1).detach()
    return y + ((2 * digits + 1) / L - 1 - y).detach(), digits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bound", FIXED)
@pytest.mark.parametrize("cells", LEVELS)
def test_against_plain_autograd(cells, bound, dtype):
    levels = LEVELS[cells]
    rng = torch.Generator().manual_seed(3)
    z = (2 * torch.randn(400, len(levels), generator=rng, dtype=dtype)).requires_grad_()
    weight = torch.randn(400, len(levels), generator=rng, dtype=dtype)
    out = ifsq.FSQ(levels, bound=bound, cells=cells)(z)
    (got,) = torch.autograd.grad((out.codes * weight).sum(), z)
    codes, digits = plain(z, levels, bound, cells)
    (expected,) = torch.autograd.grad((codes * weight).sum(), z)
    assert torch.equal(out.digits, digits.long())
    torch.testing.assert_close(out.codes, codes, atol=1e-6, rtol=0)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert out.codes.dtype == dtype


@pytest.mark.parametrize("bound", FIXED)
@pytest.mark.parametrize("cells", LEVELS)
def test_equal_level_counts_take_another_way_to_the_same(cells, bound):
    """One number for all levels, or a tensor of them, and an image or a sequence."""
    z = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    levels = [8 if cells == "symmetric" or (cells == "paper" and bound == "tanh") else 9] * 3
    same = ifsq.FSQ(levels, bound=bound, cells=cells)
    mixed = ifsq.FSQ([*levels, 5], bound=bound, cells=cells)
    wide = torch.cat([z, z[:, :1]], dim=1)
    assert torch.equal(same(z).codes, mixed(wide).codes[:, :3])
    assert torch.equal(same(z).digits, mixed(wide).digits[..., :3])


@pytest.mark.parametrize(("bound", "kept"), [("ifsq", 1), ("tanh", 1), ("gaussian", 1), ("standardized", 1)])
def test_one_tensor_is_kept_for_the_gradient(bound, kept):
    z = torch.randn(8, 4, 16, 16, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        ifsq.FSQ([17] * 4, bound=bound).eval()(z)
    assert [n for n in saved if n >= z.numel()] == [z.numel()] * kept


def test_the_input_is_left_alone():
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    before = z.clone()
    for bound in FIXED:
        for cells in LEVELS:
            ifsq.FSQ([9] * 3, bound=bound, cells=cells)(z)
    assert torch.equal(z, before)


def test_a_second_derivative_is_refused():
    z = torch.randn(4, 3, requires_grad=True)
    for bound in ("ifsq", "quantile"):
        with pytest.raises(RuntimeError, match="a quantizer has no second derivative"):
            torch.autograd.grad(ifsq.FSQ([9] * 3, bound=bound)(z).codes.sum(), z, create_graph=True)


def test_no_gradient_without_use_of_the_codes():
    z = torch.randn(4, 3, requires_grad=True)
    out = ifsq.FSQ([9] * 3)(z)
    assert out.codes.requires_grad
    assert not out.packed_digits.requires_grad
    assert not out.indices.requires_grad


@pytest.mark.parametrize("L", [256, 257, 1001, 4097])
@pytest.mark.parametrize(
    ("bound", "cells"),
    [("tanh", "paper"), ("tanh", "symmetric"), ("tanh", "equal"), ("clamp", "symmetric"), ("clamp", "equal")],
)
def test_the_last_level_is_the_last(L, bound, cells):
    """Large levels: a widened tanh rounds beyond the end, and 256 would wrap to 0 in eight bits."""
    digits = ifsq.FSQ([L], bound=bound, cells=cells)(torch.tensor([[-80.0], [80.0]])).digits
    assert digits.flatten().tolist() == [0, L - 1]


def test_noise_is_counted_in_cells():
    torch.manual_seed(0)
    z = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    for L, cells in ((17, "paper"), (16, "equal")):
        q = ifsq.FSQ([L], cells=cells, noise_dropout=0.5).train()
        clean = ifsq.FSQ([L], cells=cells)(z).codes
        cell = float(make_lattice(q).diff().mean())
        off = (q(z).codes - clean) / cell
        assert off.abs().max() <= 0.5 + 1e-5
        assert 0.45 < (off != 0).float().mean() < 0.55
        assert off.abs().max() > 0.45
        assert torch.equal(q.eval()(z).codes, clean)


def test_noise_passes_the_gradient_at_the_ends():
    q = ifsq.FSQ([3], noise_dropout=1.0).train()
    z = torch.full((1000, 1), 0.8, requires_grad=True)
    q(z).codes.sum().backward()
    assert (z.grad > 0).all()


def make_lattice(q: ifsq.FSQ) -> torch.Tensor:
    return q.digits_to_codes(torch.arange(q.levels[0]).unsqueeze(1)).flatten()


def test_a_rate_of_batches_is_left_unrounded():
    torch.manual_seed(0)
    z = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    for bound, cells in (("ifsq", "paper"), ("tanh", "paper"), ("quantile", "equal")):
        q = ifsq.FSQ([9] * 3, bound=bound, cells=cells, quantization_dropout=0.3)
        smooth = q.bounded(z).detach()
        rounded = q.eval()(z).codes.detach()
        q.train()
        q.bound.observe = lambda *_: None
        kinds = []
        for _ in range(200):
            codes = q(z).codes
            kinds.append(torch.equal(codes, smooth))
            assert kinds[-1] or torch.equal(codes, rounded)
        assert 0.2 < sum(kinds) / 200 < 0.4


def test_bounded_is_what_is_rounded():
    z = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    for bound, cells in (("tanh", "paper"), ("ifsq", "equal"), ("gaussian", "symmetric"), ("quantile", "equal")):
        q = ifsq.FSQ([8, 8, 9], bound=bound, cells=cells)
        out = q.eval()(z)
        assert torch.equal(q.codes_to_digits(q.bounded(z)), out.digits)
        assert torch.equal(q.quantize(z), out.codes)
        half = z.bfloat16()
        assert torch.equal(q.bounded(half), q.bounded(half.float()))


def test_a_bound_can_be_handed_over():
    bound = make_bound("standardized", 3)
    assert ifsq.FSQ([9] * 3, bound=bound).bound is bound
    with pytest.raises(ValueError, match="bound of 3 channels: expected 4"):
        ifsq.FSQ([9] * 4, bound=bound)
