"""Residual FSQ: stages that nest, against the residuals written out and against one fine FSQ."""

import pytest
import torch

from ifsq.quantizers.bounds import make_bound
from ifsq.quantizers.cells import digits_to_codes
from ifsq.quantizers.digits import digits_to_indices
from ifsq.quantizers.fsq import FSQ
from ifsq.quantizers.residual import ResidualFSQ

SHAPES = [([3], 3), ([4], 2), ([17, 17, 17, 17], 2), ([5, 4, 3], 4), ([2], 22), ([7, 2], 1)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def stage_by_stage(z, levels, stages, bound):
    """The residuals written out, float64: latents (n, d) -> codes (n, d) and digits (n, stages*d)."""
    residual = make_bound(bound, len(levels))(z)
    codes, digits, width = torch.zeros_like(residual), [], torch.ones(len(levels), dtype=torch.float64)
    L = torch.tensor(levels)
    for _ in range(stages):
        scaled = residual / width  # within (-1, 1)
        digit = ((scaled + 1) * L / 2).floor().clamp(min=0).minimum(L - 1).long()
        point = digits_to_codes(digit, levels, "equal").double() * width
        codes, residual, width = codes + point, residual - point, width / L
        digits.append(digit)
    return codes, torch.cat(digits, dim=1)


@pytest.mark.parametrize(("levels", "stages"), SHAPES)
@pytest.mark.parametrize("bound", ["ifsq", "clamp"])
def test_stages_quantize_what_is_left(levels, stages, bound):
    z = torch.randn(500, len(levels), dtype=torch.float64)
    out = ResidualFSQ(levels, stages, bound=bound)(z)
    codes, digits = stage_by_stage(z, levels, stages, bound)
    torch.testing.assert_close(out.codes, codes, atol=1e-6, rtol=0)
    assert torch.equal(out.digits, digits)


@pytest.mark.parametrize(("levels", "stages"), SHAPES)
def test_stages_are_the_digits_of_one_fine_lattice(levels, stages):
    z = torch.randn(500, len(levels))
    out = ResidualFSQ(levels, stages)(z)
    fine = FSQ([L**stages for L in levels], cells="equal")(z)
    assert torch.equal(out.codes, fine.codes)
    cell = torch.zeros_like(fine.digits)
    for digits in out.digits.split(len(levels), dim=1):
        cell = cell * torch.tensor(levels) + digits
    assert torch.equal(cell, fine.digits)


@pytest.mark.parametrize(("levels", "stages"), SHAPES)
def test_every_further_stage_divides_the_error(levels, stages):
    q = ResidualFSQ(levels, stages)
    z = torch.randn(1000, len(levels))
    out = q(z)
    bounded = q.bound(z)
    for k in range(1, stages + 1):
        codes = q.indices_to_codes(out.indices[:, None, :k]).squeeze(1)
        assert ((codes - bounded).abs() <= 1 / torch.tensor([L**k for L in levels]) + 1e-6).all()
    torch.testing.assert_close(codes, out.codes, atol=0, rtol=0)


def test_first_stage_is_plain_fsq():
    z = torch.randn(2, 4, 8, 8)
    out, plain = ResidualFSQ([17] * 4, 2)(z), FSQ([17] * 4, cells="equal")(z)
    assert torch.equal(out.indices[..., 0], plain.indices)
    assert out.indices.shape == (2, 8, 8, 2)
    assert torch.equal(ResidualFSQ([17] * 4, 1)(z).indices.squeeze(-1), plain.indices)
    q = ResidualFSQ([17] * 4, 2)
    torch.testing.assert_close(q.indices_to_codes(out.indices[..., :1]), plain.codes.detach())


def test_digits_are_stage_by_stage_and_indices_are_theirs():
    levels, order = [5, 3, 4], "big"
    q = ResidualFSQ(levels, 3, digit_order=order)
    assert q.levels == (5, 3, 4) * 3
    assert q.codebook_size == 60
    out = q(torch.randn(50, 3))
    assert out.digits.shape == (50, 9)
    for k, digits in enumerate(out.digits.split(3, dim=1)):
        assert torch.equal(digits_to_indices(digits, levels, [3], order), out.indices[:, k])


def test_every_code_returns():
    q = ResidualFSQ([3, 2], 2)
    indices = torch.cartesian_prod(torch.arange(6), torch.arange(6))[None]
    codes = q.indices_to_codes(indices)
    assert codes.shape == (1, 36, 2)
    assert torch.equal(q.codes_to_indices(codes), indices)
    assert codes[0].unique(dim=0).shape == (36, 2)


@pytest.mark.parametrize(("levels", "stages"), [([2], 22), ([2048], 2), ([161], 3), ([3], 13)])
def test_finest_lattices_return(levels, stages):
    q = ResidualFSQ(levels, stages)
    indices = torch.randint(q.codebook_size, (1, 2000, stages))
    assert torch.equal(q.codes_to_indices(q.indices_to_codes(indices)), indices)


def test_ends_of_the_interval():
    out = ResidualFSQ([3], 3)(torch.tensor([[-1e4], [1e4]]))
    assert out.digits.tolist() == [[0, 0, 0], [2, 2, 2]]
    torch.testing.assert_close(out.codes, torch.tensor([[-26 / 27], [26 / 27]]))


@pytest.mark.parametrize("bound", ["ifsq", "tanh", "gaussian", "standardized"])
def test_gradient_is_that_of_the_bound(bound):
    q = ResidualFSQ([5] * 3, 2, bound=bound)
    z, w = torch.randn(20, 3, requires_grad=True), torch.randn(20, 3)
    (grad,) = torch.autograd.grad((q.eval()(z).codes * w).sum(), z)
    (expected,) = torch.autograd.grad((q.bound(z) * w).sum(), z)
    torch.testing.assert_close(grad, expected)


def test_a_running_bound_follows_training_alone():
    q = ResidualFSQ([5] * 3, 2, bound="standardized")
    z = 3 + torch.randn(2, 3, 16, 16)
    q.eval()(z)
    assert (q.bound.mean == 0).all()
    q.train()(z)
    assert (q.bound.mean > 0).all()


def test_a_stage_without_an_index_has_digits():
    out = ResidualFSQ([2] * 64, 2)(torch.randn(3, 64))
    assert out.indices is None
    assert out.digits.shape == (3, 128)


@pytest.mark.parametrize(
    ("construct", "message"),
    [
        (lambda: ResidualFSQ([], 2), r"^levels=\[\]: expected a list of integers of at least 2$"),
        (lambda: ResidualFSQ([5, 1], 2), r"^levels=\[5, 1\]: expected a list of integers of at least 2$"),
        (lambda: ResidualFSQ([5], 0), r"^num_quantizers=0: expected an integer of at least 1$"),
        (lambda: ResidualFSQ([5], 2, cells="paper"), r"^cells='paper': expected 'equal', the cells whose stages nest$"),
        (lambda: ResidualFSQ([5], 2, bound="tan"), r"^bound='tan': expected one of tanh"),
        (lambda: ResidualFSQ([5], 2, alpha=-1.0), r"^alpha=-1.0: "),
        (lambda: ResidualFSQ([5], 2, digit_order="middle"), r"^digit_order='middle': expected one of little, big$"),
        (
            lambda: ResidualFSQ([3, 17], 6),
            r"^num_quantizers=6 of 17 levels: expected at most 2\*\*22 cells a dimension, not 17\*\*6$",
        ),
        (
            lambda: ResidualFSQ([5], 2).indices_to_codes(torch.zeros(1, 3, dtype=torch.int64)),
            r"^indices of shape \(1, 3\): expected a last axis of 1 to 2 stages$",
        ),
        (lambda: ResidualFSQ([5], 2).indices_to_codes(torch.tensor([[0, 5]])), r"index 5 in .*: expected 0 to 4"),
    ],
)
def test_bad_options_are_named(construct, message):
    with pytest.raises(ValueError, match=message):
        construct()


def test_error_of_the_stages_is_what_cells_promise():
    # Uniform within a cell of width 2/N: a mean square of 1/(3 N^2).
    q = ResidualFSQ([4], 3, bound="clamp")
    z = torch.rand(20000, 1) * 2 - 1
    indices = q(z).indices
    for k in (1, 2, 3):
        error = (q.indices_to_codes(indices[:, None, :k]).squeeze(1) - z).square().mean().item()
        assert error == pytest.approx(1 / (3 * 4 ** (2 * k)), rel=0.05)
