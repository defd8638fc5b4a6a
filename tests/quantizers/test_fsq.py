"""The quantizer against the official one (golden vectors) and against identities."""

import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ifsq
from ifsq.quantizers.digits import check_indices, digits_to_indices, indices_to_digits

OFFICIAL = {"tanh_bound": {"bound": "tanh"}, "sig16": {"bound": "ifsq"}, "sig20": {"bound": "ifsq", "alpha": 2.0}}


def test_official_cases(golden):
    file = golden("quantizer")
    cases = json.loads(file.metadata()["cases"])
    assert len(cases) == 17
    for name, case in cases.items():
        q = ifsq.FSQ(case["levels"], groups=case["factorized_bits"], **OFFICIAL[case["act"]])
        z = file.get_tensor(f"{name}/z").requires_grad_()
        out = q(z)
        indices = out.indices if case["factorized_bits"] else out.indices.unsqueeze(-1)
        (out.codes * file.get_tensor(f"{name}/w")).sum().backward()
        decoded = file.get_tensor(f"{name}/decode_indices")
        codes = q.indices_to_codes(decoded if case["factorized_bits"] else decoded.squeeze(-1)).movedim(-1, 1)
        torch.testing.assert_close(out.codes, file.get_tensor(f"{name}/codes"), atol=1e-6, rtol=0)
        assert torch.equal(indices, file.get_tensor(f"{name}/indices")), name
        torch.testing.assert_close(z.grad, file.get_tensor(f"{name}/grad_z"), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(codes, file.get_tensor(f"{name}/decode_codes"), atol=1e-6, rtol=0)
        whole = ifsq.FSQ(case["levels"], **OFFICIAL[case["act"]])
        assert torch.equal(whole.codes_to_indices(out.codes.detach()), file.get_tensor(f"{name}/global_index")), name


def test_unpacks_as_codes_and_indices():
    codes, indices = ifsq.FSQ([17] * 4)(torch.randn(2, 4, 3, 5))
    assert codes.shape == (2, 4, 3, 5)
    assert indices.shape == (2, 3, 5)
    assert indices.dtype == torch.int64


@pytest.mark.parametrize("cells", ["paper", "equal"])
@pytest.mark.parametrize("L", range(2, 66))
def test_every_index_of_every_level_count_returns(L, cells):
    bound = "tanh" if cells == "paper" else "ifsq"
    q = ifsq.FSQ([L], bound=bound, cells=cells)
    indices = torch.arange(L)[None]
    codes = q.indices_to_codes(indices)
    assert torch.equal(q.codes_to_indices(codes), indices)
    assert codes.abs().max() <= 1
    assert (codes.diff(dim=1) > 0).all()


def test_all_codes_of_the_released_setting_return():
    q = ifsq.FSQ([17] * 4)
    indices = torch.arange(q.codebook_size).view(1, -1)
    assert torch.equal(q.codes_to_indices(q.indices_to_codes(indices)), indices)


@pytest.mark.parametrize("levels", [[17] * 6, [17] * 8, [2] * 31, [2] * 32, [2] * 60, [83, 83], [51] * 3])
def test_large_codebooks_are_exact(levels):
    q = ifsq.FSQ(levels, cells="equal")
    rng = torch.Generator().manual_seed(0)
    digits = torch.stack([torch.randint(L, (5000,), generator=rng) for L in levels], dim=-1)
    indices = q.digits_to_indices(digits)
    in_python = [sum(int(d) * math.prod(levels[:i]) for i, d in enumerate(row)) for row in digits[:200].tolist()]
    assert indices[:200].tolist() == in_python
    assert torch.equal(q.digits_to_indices(digits.to(torch.uint8)), indices)  # in the width that quantizing gives
    assert torch.equal(q.indices_to_digits(indices), digits)
    assert torch.equal(q.codes_to_digits(q.digits_to_codes(digits)), digits)


def test_nothing_materialises_a_codebook():
    q = ifsq.FSQ([17] * 8)
    stored = sum(t.numel() * t.element_size() for t in itertools.chain(q.parameters(), q.buffers()))
    assert stored < 1000
    assert q.codebook_size == 17**8


def test_more_codes_than_an_index_holds():
    q = ifsq.FSQ([17] * 16)
    out = q(torch.randn(3, 16))
    assert out.indices is None
    assert out.digits.shape == (3, 16)
    with pytest.raises(ValueError, match=r"2\*\*63 do not fit an int64"):
        q.digits_to_indices(out.digits)


@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=6),
    st.sampled_from(["little", "big"]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_digits_and_indices_are_inverse(levels, order, random):
    groups = []
    while sum(groups) < len(levels):
        groups.append(random.randint(1, len(levels) - sum(groups)))
    digits = torch.tensor([[random.randrange(L) for L in levels] for _ in range(20)])
    indices = digits_to_indices(digits, levels, groups, order)
    check_indices(indices, levels, groups)
    assert torch.equal(indices_to_digits(indices, levels, groups, order), digits)


def test_digit_order_is_what_it_says():
    digits = torch.tensor([[1, 2, 3]])
    assert digits_to_indices(digits, [5, 7, 11], [3], "little").tolist() == [1 + 2 * 5 + 3 * 35]
    assert digits_to_indices(digits, [5, 7, 11], [3], "big").tolist() == [(1 * 7 + 2) * 11 + 3]
    assert digits_to_indices(digits, [5, 7, 11], [1, 2], "little").tolist() == [[1, 2 + 3 * 7]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_the_digits_of_its_float32_value(dtype):
    q = ifsq.FSQ([257] * 4)
    z = torch.randn(8, 4, 16, 16).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        half = q(z)
    assert half.codes.dtype == dtype
    assert torch.equal(half.digits, q(z.float()).digits)
    assert torch.equal(q.to(dtype)(z).digits, half.digits)


@pytest.mark.parametrize(
    ("bound", "cells", "low"), [("gaussian", "equal", 0.998), ("ifsq", "equal", 0.997), ("ifsq", "paper", 0.981)]
)
def test_level_entropy_on_normal_latents(bound, cells, low):
    digits = ifsq.FSQ([17], bound=bound, cells=cells)(torch.randn(400_000, 1)).digits
    share = torch.bincount(digits.flatten(), minlength=17) / digits.numel()
    fraction = float(-(share * share.log()).sum()) / math.log(17)
    assert low < fraction < low + 0.005


def test_equal_cells_are_equal():
    y = torch.linspace(-1, 1, 180_001)[:-1].unsqueeze(-1)
    digits = ifsq.FSQ([18], bound="clamp", cells="equal")(y).digits
    counts = torch.bincount(digits.flatten(), minlength=18)
    assert counts.max() - counts.min() <= 2


def test_straight_through_gradient_is_that_of_the_bound():
    z = torch.randn(64, 4, requires_grad=True)
    for cells in ("paper", "equal"):
        (got,) = torch.autograd.grad(ifsq.FSQ([17] * 4, cells=cells)(z).codes.sum(), z)
        (expected,) = torch.autograd.grad((2 * torch.sigmoid(1.6 * z) - 1).sum(), z)
        torch.testing.assert_close(got, expected)


def test_layouts_agree():
    z = torch.randn(2, 4, 3, 5)
    q = ifsq.FSQ([9] * 4, groups=[2, 2])
    image = q(z)
    sequence = q(z.flatten(2).transpose(1, 2))
    assert image.indices.shape == (2, 3, 5, 2)
    assert torch.equal(image.indices.flatten(1, 2), sequence.indices)
    assert torch.equal(q.indices_to_codes(image.indices), image.codes)
    assert torch.equal(q.indices_to_codes(sequence.indices), sequence.codes)


def test_several_codebooks_are_quantizers_side_by_side():
    z = torch.randn(2, 8, 3, 5)
    both = ifsq.FSQ([5] * 4, num_codebooks=2)
    single = ifsq.FSQ([5] * 4)
    out = both(z)
    assert out.indices.shape == (2, 3, 5, 2)
    assert torch.equal(out.indices[..., 1], single(z[:, 4:]).indices)
    assert torch.equal(both.indices_to_codes(out.indices), out.codes)
    assert torch.equal(both.codes_to_indices(out.codes), out.indices)


def test_projections_where_the_width_differs():
    q = ifsq.FSQ([5] * 4, dim=10)
    out = q(torch.randn(2, 7, 10))
    assert out.codes.shape == (2, 7, 10)
    torch.testing.assert_close(q.indices_to_codes(out.indices), out.codes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ifsq.FSQ([]), r"levels=\[\]"),
        (lambda: ifsq.FSQ([17, 1]), r"levels=\[17, 1\]: expected a list of integers of at least 2"),
        (lambda: ifsq.FSQ([8, 8]), r"paper cells with bound='ifsq' need odd levels; use cells='equal'"),
        (lambda: ifsq.FSQ([17] * 4, groups=[2, 3]), r"groups=\[2, 3\]: expected positive sizes that sum to the 4"),
        (lambda: ifsq.FSQ([17], bound="tan"), r"bound='tan': expected one of tanh, ifsq"),
        (lambda: ifsq.FSQ([17], alpha=0.0), r"alpha=0.0"),
        (lambda: ifsq.FSQ([17], cells="round"), r"cells='round': expected one of paper, symmetric, equal"),
        (lambda: ifsq.FSQ([17], digit_order="middle"), r"digit_order='middle'"),
        (lambda: ifsq.FSQ([17] * 4)(torch.randn(2, 5)), r"shape \(2, 5\): expected 4 channels on axis 1"),
        (lambda: ifsq.FSQ([17] * 4)(torch.zeros(2, 4, dtype=torch.int64)), r"dtype torch.int64"),
        (lambda: ifsq.FSQ([17])(torch.tensor([[math.nan]])), r"holds nan: expected finite"),
        (lambda: ifsq.FSQ([17] * 2).indices_to_codes(torch.tensor([[289]])), r"index 289 .*: expected 0 to 288"),
        (lambda: ifsq.FSQ([17] * 2).indices_to_codes(torch.tensor([[-1]])), r"index -1 "),
        (lambda: ifsq.FSQ([17] * 2).indices_to_codes(torch.tensor([[1.0]])), r"dtype torch.float32: expected integers"),
        (
            lambda: ifsq.FSQ([5] * 2).codes_to_indices(torch.zeros(1, 3)),
            r"codes of shape \(1, 3\): expected 2 channels",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
