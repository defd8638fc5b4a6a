"""The lattice that a quantizer states is the one on which its codes lie."""

import pytest
import torch

from ifsq.quantizers import BSQ, FSQ, KL, LFQ, VQ, Identity, ResidualFSQ
from ifsq.quantizers.lattice import Lattice

ON_A_LATTICE = {
    "fsq": lambda: FSQ([8, 6, 5], cells="equal", groups=[2, 1], digit_order="big"),
    "tanh": lambda: FSQ([8, 6, 5], bound="tanh"),
    "residual": lambda: ResidualFSQ([3, 5, 4], 3, digit_order="big"),
    "lfq": lambda: LFQ(3, groups=[1, 2]),
    "bsq": lambda: BSQ(3),
}


@pytest.mark.parametrize("kind", ON_A_LATTICE)
def test_codes_lie_on_the_lattice(kind):
    torch.manual_seed(0)
    q = ON_A_LATTICE[kind]().eval()
    out = q(2 * torch.randn(500, 3))
    digits = q.lattice.codes_to_digits(out.codes)
    assert torch.equal(q.lattice.digits_to_codes(digits), out.codes)
    assert torch.equal(q.lattice.indices_to_digits(q.lattice.digits_to_indices(digits)), digits)
    if kind != "residual":  # its digits and indices come stage by stage
        assert torch.equal(digits, out.digits)
        assert torch.equal(q.lattice.digits_to_indices(digits), out.indices)
        assert (q.levels, q.groups) == (q.lattice.levels, q.lattice.groups)


def test_channels_on_any_axis():
    lattice = Lattice((8, 6, 5), (2, 1), "little", "equal", 0.5)
    digits = torch.stack([torch.randint(L, (4, 7)) for L in lattice.levels], dim=-1)
    codes, indices = lattice.digits_to_codes(digits), lattice.digits_to_indices(digits)
    assert torch.equal(lattice.digits_to_codes(digits.movedim(-1, 1), 1), codes.movedim(-1, 1))
    assert torch.equal(lattice.codes_to_digits(codes.movedim(-1, 1), 1, torch.uint8).movedim(1, -1), digits.byte())
    assert torch.equal(lattice.digits_to_indices(digits.movedim(-1, 0), 0), indices)
    assert torch.equal(lattice.indices_to_digits(indices, 0, torch.uint8).movedim(0, -1), digits.byte())


def test_joined_stages():
    q = ResidualFSQ([3, 5], 2, digit_order="big")
    assert q.lattice == Lattice((9, 25), (1, 1), "big", "equal")
    assert (q.levels, q.groups) == ((3, 5, 3, 5), (2, 2))


def test_a_codebook_has_one_digit_and_no_codes_and_continuous_codes_have_no_lattice():
    q = VQ(300, 4)
    assert (q.lattice.levels, q.lattice.has_codes, q.groups) == ((300,), False, (1,))
    assert Identity(3).lattice is None
    assert KL(3).lattice is None


def test_a_group_beyond_an_index():
    assert Lattice((2,) * 63, (63,), "little", "symmetric").has_indices
    assert not Lattice((2,) * 64, (64,), "little", "symmetric").has_indices
    assert Lattice((2,) * 64, (32, 32), "little", "symmetric").has_indices
