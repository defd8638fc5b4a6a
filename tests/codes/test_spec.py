"""The two views of the same digits."""

from dataclasses import replace

import pytest
import torch

from ifsq import FSQ
from ifsq.codes.spec import CodeSpec
from ifsq.config import build
from ifsq.quantizers import BSQ, LFQ
from ifsq.quantizers.lattice import CODEBOOK

LAYOUTS = [
    ([17] * 4, [4], "paper"),
    ([17] * 4, [1, 1, 1, 1], "paper"),
    ([8, 6, 5], [2, 1], "equal"),
    ([300], [1], "equal"),
]


@pytest.mark.parametrize(("levels", "groups", "cells"), LAYOUTS)
def test_both_views_are_exact(levels, groups, cells):
    spec = CodeSpec(tuple(levels), tuple(groups), "little", cells, (3, 5))
    digits = torch.stack([torch.randint(L, (6, 3, 5)) for L in levels], dim=-1)
    assert torch.equal(spec.codes_to_digits(spec.digits_to_codes(digits)), digits)
    indices = spec.digits_to_indices(digits)
    assert indices.shape == (6, 3, 5, len(groups))
    assert (indices.amax(dim=(0, 1, 2)) < torch.tensor(spec.vocab_sizes)).all()
    assert torch.equal(spec.indices_to_digits(indices), digits)


def test_agrees_with_the_quantizer():
    q = FSQ([17] * 4, groups=[3, 1], digit_order="big")
    out = q(torch.randn(2, 4, 3, 5))
    spec = CodeSpec.of(q.lattice, (3, 5))
    assert spec == CodeSpec((17,) * 4, (3, 1), "big", "paper", (3, 5))
    assert torch.equal(spec.digits_to_codes(out.digits), out.codes)
    assert torch.equal(spec.digits_to_indices(out.digits), out.indices)


@pytest.mark.parametrize("quantizer", [LFQ, BSQ])
def test_agrees_with_signs(quantizer):
    q = quantizer(6, groups=[4, 2], channel_first=True).eval()
    out = q(torch.randn(2, 6, 3, 5))
    spec = CodeSpec.of(q.lattice, (3, 5))
    assert torch.equal(spec.digits_to_codes(out.digits), out.codes)
    assert torch.equal(spec.codes_to_digits(out.codes), out.digits.long())
    assert torch.equal(spec.digits_to_indices(out.digits), out.indices)
    assert build(CodeSpec, spec.to_dict(), "spec") == spec


def test_a_scaled_lattice_is_the_lattice_times_its_scale():
    spec = CodeSpec((5, 8), (2,), "little", "equal", (3, 5), 0.3)
    digits = torch.stack([torch.randint(L, (6, 3, 5)) for L in spec.levels], dim=-1)
    codes = spec.digits_to_codes(digits)
    assert torch.equal(codes, replace(spec, scale=1.0).digits_to_codes(digits) * 0.3)
    assert torch.equal(spec.codes_to_digits(codes), digits)


def test_a_codebook_has_indices_and_no_codes():
    spec = CodeSpec((1000,), (1,), "little", CODEBOOK, (2, 2))
    digits = torch.randint(1000, (3, 2, 2, 1))
    assert torch.equal(spec.indices_to_digits(spec.digits_to_indices(digits)), digits)
    for convert in (lambda: spec.digits_to_codes(digits), lambda: spec.codes_to_digits(torch.zeros(1, 1, 2, 2))):
        with pytest.raises(ValueError, match="digits of a codebook of 1000 codes: expected its tokenizer"):
            convert()


def test_numbers_of_several_codebooks_are_a_group_each():
    spec = CodeSpec((10, 7), (1, 1), "little", CODEBOOK, (2, 3))
    assert (spec.vocab_sizes, spec.on_lattice) == ((10, 7), False)
    indices = torch.stack([torch.randint(10, (4, 2, 3)), torch.randint(7, (4, 2, 3))], dim=-1)
    assert torch.equal(spec.digits_to_indices(spec.indices_to_digits(indices)), indices)
    with pytest.raises(ValueError, match=r"digits of a codebook of 10 \+ 7 codes: expected its tokenizer"):
        spec.digits_to_codes(spec.indices_to_digits(indices))


def test_snaps_what_lies_between_the_codes():
    spec = CodeSpec((5,), (1,), "little", "paper", (1, 1))
    near = torch.tensor([-7.0, -0.8, -0.26, 0.2, 0.6, 3.0]).view(-1, 1, 1, 1)
    assert spec.codes_to_digits(near).flatten().tolist() == [0, 0, 1, 2, 3, 4]


def test_digits_fit_their_bytes():
    assert CodeSpec((256,), (1,), "little", "equal", (1, 1)).digit_dtype == torch.uint8
    assert CodeSpec((257,), (1,), "little", "equal", (1, 1)).digit_dtype == torch.uint16
    with pytest.raises(ValueError, match=r"levels=\[65537\]: a digit is stored in 16 bits"):
        _ = CodeSpec((65537,), (1,), "little", "equal", (1, 1)).digit_dtype


def test_survives_json_and_names_a_difference():
    spec = CodeSpec((17, 17), (2,), "little", "paper", (8, 8))
    assert build(CodeSpec, spec.to_dict(), "spec") == spec
    assert spec.differs_from(spec) == ""
    other = CodeSpec((17, 17), (2,), "big", "paper", (8, 8))
    assert spec.differs_from(other) == "digit_order little against big"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": "round"}, "cells='round'"),
        ({"cells": "codebook"}, r"cells='codebook' with levels=\[17, 17\], groups=\[2\]: expected groups of"),
        ({"grid": (0, 8)}, r"grid=\(0, 8\)"),
        ({"groups": (3,)}, r"groups=\[3\]"),
        ({"scale": 0.0}, r"scale=0.0"),
    ],
)
def test_refuses_what_is_no_layout(change, message):
    plain = {"levels": (17, 17), "groups": (2,), "digit_order": "little", "cells": "paper", "grid": (8, 8)}
    with pytest.raises(ValueError, match=message):
        CodeSpec(**{**plain, **change})
