"""Position tables: the rotary identity, a second implementation, and survival of casts and moves."""

import math

import pytest
import torch

from ifsq.nn.embed import Rotary, SinCosPositions


def test_rotary_equals_complex_multiplication():
    rope = Rotary((2, 3), 8, base=100.0)
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    for position in range(6):
        row, column = divmod(position, 3)
        for pair in range(4):
            axis, i = (row, pair) if pair < 2 else (column, pair - 2)
            turned = complex(*x[position, 2 * pair : 2 * pair + 2].tolist())
            angle = axis * 100.0 ** (-2 * i / 4)
            turned *= complex(math.cos(angle), math.sin(angle))
            got = rope(x)[position, 2 * pair : 2 * pair + 2].tolist()
            assert got == pytest.approx([turned.real, turned.imag], abs=1e-6)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_pairs_as_complex_numbers_turn_as_pairs_apart(dtype, close, monkeypatch):
    rope = Rotary((2, 3), 8, prefix="zero")
    x = torch.randn(4, 7, 8).to(dtype).requires_grad_()

    def both():
        turned = rope(x)
        return turned, *torch.autograd.grad(turned.float().square().sum(), x)

    together = both()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # compilers know no complex numbers
    for got, expected in zip(together, both(), strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), expected.float(), atol=close, rtol=close)


def test_rotary_scores_depend_on_the_offset_alone():
    rope = Rotary((5, 4), 16)
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    scores = rope(q.expand(20, 16)) @ rope(k.expand(20, 16)).T
    at = lambda row, column: 4 * row + column  # noqa: E731
    assert torch.allclose(scores[at(0, 0), at(2, 1)], scores[at(2, 2), at(4, 3)], atol=1e-5)
    assert not torch.allclose(scores[at(0, 0), at(2, 1)], scores[at(0, 0), at(1, 2)], atol=1e-3)


@pytest.mark.parametrize(("prefix", "factor"), [("identity", 1.0), ("zero", 0.0)])
def test_rotary_prefix_is_one_position_before_the_grid(prefix, factor):
    x = torch.randn(7, 8, generator=torch.Generator().manual_seed(0))
    turned = Rotary((2, 3), 8, prefix=prefix)(x)
    assert torch.equal(turned[0], factor * x[0])
    assert torch.equal(turned[1:], Rotary((2, 3), 8)(x[1:]))


def test_rotary_start_is_an_offset_in_the_table():
    rope = Rotary((2, 3), 8, prefix="identity")
    x = torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rope(x[:, 4:6], start=4), rope(x)[:, 4:6])


@pytest.mark.parametrize("make", [lambda: Rotary((16, 16), 64), lambda: SinCosPositions((16, 16), 64)])
def test_tables_survive_casts_and_materialisation(make):
    expected = make().table
    cast = make().bfloat16()
    assert cast.table.dtype == torch.float32
    assert torch.equal(cast.table, expected)
    with torch.device("meta"):
        empty = make()
    assert empty.table.device.type == "meta"
    assert torch.equal(empty.to_empty(device="cpu").table, expected)
    assert not make().state_dict()


def test_rotary_keeps_the_dtype_of_its_input():
    assert Rotary((2, 2), 4)(torch.zeros(4, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_sincos_is_sines_then_cosines_of_column_then_row():
    table = SinCosPositions((2, 3), 8).table
    column, row = 2, 1
    expected = [f(p * 10000 ** (-i / 2)) for p in (column, row) for f in (math.sin, math.cos) for i in (0, 1)]
    assert table[row * 3 + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_sincos_adds_the_table():
    positions = SinCosPositions((2, 3), 8)
    x = torch.ones(2, 6, 8)
    assert torch.equal(positions(x), 1 + positions.table.expand(2, 6, 8))


def test_widths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"head width 6: .* multiple of 4"):
        Rotary((2, 2), 6)
    with pytest.raises(ValueError, match=r"width=6: .* multiple of 4"):
        SinCosPositions((2, 2), 6)
    with pytest.raises(ValueError, match="prefix='none': expected None or one of identity, zero"):
        Rotary((2, 2), 4, prefix="none")
