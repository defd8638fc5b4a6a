"""The record of a quantizer: indices that are computed where they are read, and otherwise as if they had been there."""

import copy
import pickle
from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch
from torch.utils import _pytree

import ifsq
from ifsq import quantizers
from ifsq.quantizers import lattice
from ifsq.quantizers.cells import whole
from ifsq.quantizers.record import Quantized

LAYOUTS = (
    {"levels": [17] * 4},
    {"levels": [5, 4, 3], "bound": "tanh", "groups": [2, 1]},
    {"levels": [9] * 3, "num_codebooks": 2, "groups": [1, 2]},
    {"levels": [300, 3], "cells": "equal", "keep_num_codebooks_dim": True},
    {"levels": [16, 3], "cells": "symmetric", "dim": 5, "digit_order": "big"},
)


@pytest.fixture
def computed(monkeypatch):
    """How often indices were computed from digits."""
    calls = []
    real = lattice.Lattice.digits_to_indices
    monkeypatch.setattr(
        lattice.Lattice, "digits_to_indices", lambda *given, **named: calls.append(1) or real(*given, **named)
    )
    return calls


def quantizer(options):
    torch.manual_seed(0)
    return ifsq.FSQ(**options)


def latents(q):
    return torch.randn(2, q.dim, 3, 5, generator=torch.Generator().manual_seed(1))


def test_training_computes_no_indices(computed):
    q = quantizer(LAYOUTS[0])
    z = latents(q).requires_grad_()
    out = q(z)
    out.codes.sum().backward()
    assert (out[0], out[-2]) == (out.codes, out.codes)
    assert out.digits is not None
    assert not computed
    codes, indices = out
    assert len(computed) == 1
    assert codes is out.codes
    assert out.indices is indices is out[1]
    assert len(computed) == 1


@pytest.mark.parametrize("options", LAYOUTS)
def test_indices_are_those_of_the_codes(options):
    q = quantizer(options)
    out = q(latents(q))
    assert isinstance(out, Quantized)
    assert out.indices.dtype == torch.int64
    if q.num_codebooks == 1:
        assert torch.equal(out.indices.reshape(-1), q.digits_to_indices(out.digits).reshape(-1))
    assert torch.equal(q.indices_to_codes(out.indices), out.codes)


@pytest.mark.parametrize("read", [False, True])
def test_copies_hold_the_indices(read):
    out = quantizer(LAYOUTS[0])(latents(quantizer(LAYOUTS[0])))
    expected = quantizer(LAYOUTS[0])(latents(quantizer(LAYOUTS[0]))).indices
    if read:
        out.indices  # noqa: B018
    flat, spec = _pytree.tree_flatten(out)
    copies = [
        copy.copy(out),
        copy.deepcopy(out),
        pickle.loads(pickle.dumps(out)),  # noqa: S301 - its own bytes
        replace(out, losses={"a": torch.zeros(())}),
        _pytree.tree_unflatten(flat, spec),
    ]
    for other in copies:
        assert isinstance(other, Quantized)
        assert torch.equal(other.indices, expected)
        assert torch.equal(other.codes, out.codes)
    assert [entry.name for entry in fields(out)] == ["codes", "indices", "packed_digits", "losses"]
    assert str(expected) in repr(out)


def test_a_record_is_not_written_to():
    out = quantizer(LAYOUTS[0])(latents(quantizer(LAYOUTS[0])))
    for name in ("codes", "indices"):
        with pytest.raises(FrozenInstanceError):
            setattr(out, name, out.codes)


def test_codes_written_to_and_modes_change_no_index():
    q = quantizer(LAYOUTS[0])
    z = latents(q)
    expected = q(z).indices
    with torch.inference_mode():
        inside = q(z)
    out = q(z)
    out.codes.zero_()
    assert torch.equal(out.indices, expected)
    assert torch.equal(inside.indices, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_whole_numbers_become_integers(dtype):
    exact = torch.arange(256)
    for shift in (0.0, 128.0, torch.tensor(127.0)):
        got = whole(exact.float() - shift, dtype, shift)
        assert got.dtype == dtype
        assert torch.equal(got.long(), exact)


@pytest.mark.parametrize("options", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 7), (5,), (3, 0, 2)])
def test_many_numbers_are_the_same_in_blocks(options, shape, monkeypatch):
    q = ifsq.FSQ(**{**options, "dim": None}, channel_axis=-1)
    rng = torch.Generator().manual_seed(2)
    digits = (torch.rand(*shape, q.num_codebooks, len(q.levels), generator=rng) * torch.tensor(q.levels)).long()
    at_once = q.lattice.digits_to_codes(digits)
    codes = at_once.flatten(-2)
    indices = q.codes_to_indices(codes)
    again = q.indices_to_codes(indices)
    monkeypatch.setattr(quantizers.digits, "BLOCK", 1)
    assert torch.equal(q.codes_to_indices(codes), indices)
    assert torch.equal(q.indices_to_codes(indices), again)
    assert torch.equal(again, codes)
