"""Side by side with vector_quantize_pytorch.FSQ 1.32: the same arguments, the same answers where its own are right."""

import inspect
import itertools

import pytest
import torch
import vector_quantize_pytorch
from torch.testing import assert_close

import ifsq

Peer = vector_quantize_pytorch.FSQ

LEVELS = [[8, 5, 5, 5], [17] * 4, [3, 4, 5], [7, 5, 5, 5, 5]]
ARGUMENTS = [
    {},
    {"num_codebooks": 2},
    {"keep_num_codebooks_dim": True},
    {"dim": 11},
    {"dim": 11, "projection_has_bias": False},
    {"dim": 24, "num_codebooks": 2},
    {"channel_first": True},
    {"preserve_symmetry": True},
    {"preserve_symmetry": True, "num_codebooks": 3, "channel_first": True},
    {"bound_hard_clamp": True},
    {"bound_hard_clamp": True, "preserve_symmetry": True},
    {"orthogonal_rotation": True},
    {"orthogonal_rotation": True, "num_codebooks": 2},
    {"return_indices": False},
    {"noise_dropout": 0.2, "preserve_symmetry": True},  # off in evaluation
]


def pair(levels, arguments) -> tuple[Peer, ifsq.FSQ]:
    torch.manual_seed(0)
    peer = Peer(levels, **arguments).eval()
    ours = ifsq.FSQ(levels, bound="tanh", **arguments).eval()
    ours.load_state_dict(peer.state_dict())
    return peer, ours


def latents(width: int, first: bool) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    image = torch.randn(2, width, 6, 5, generator=rng) * 1.5
    video = torch.randn(2, width, 3, 4, 2, generator=rng)
    sequence = torch.randn((2, width, 30) if first else (2, 30, width), generator=rng)
    return [image, video, sequence]


@pytest.mark.filterwarnings("ignore")  # it prints and warns about rotations of unlike levels
@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_the_same_answers(levels, arguments):
    peer, ours = pair(levels, arguments)
    assert dict(ours.state_dict()).keys() == dict(peer.state_dict()).keys()
    assert ours.dim == peer.dim
    assert ours.has_projections == peer.has_projections
    for z in latents(peer.dim, arguments.get("channel_first", False)):
        theirs, their_indices = peer(z)
        codes, indices = ours(z)
        assert_close(codes, theirs, atol=1e-6, rtol=0)
        if not arguments.get("return_indices", True):
            assert indices is their_indices is None
            continue
        assert torch.equal(indices, their_indices.long())
        assert ours.codebook_size == peer.codebook_size
        back = peer.indices_to_codes(their_indices)
        assert_close(ours.indices_to_codes(indices), back, atol=1e-6, rtol=0)
        assert torch.equal(ours.indices_to_level_indices(indices), peer.indices_to_level_indices(their_indices).long())


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize(
    "arguments", [{}, {"preserve_symmetry": True}, {"bound_hard_clamp": True}, {"dim": 11}], ids=str
)
def test_the_same_gradient(levels, arguments):
    peer, ours = pair(levels, arguments)
    z = latents(peer.dim, False)[0]
    weight = torch.randn_like(z)
    gradients = []
    for q in (peer, ours):
        x = z.clone().requires_grad_()
        (q(x)[0] * weight).sum().backward()
        gradients.append(x.grad)
    assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-5)


def test_codes_of_one_codebook():
    """Their `quantize` and `codes_to_indices` take channels last; ours of codes take the layout of `forward`."""
    peer, ours = pair([8, 5, 5], {})
    z = torch.randn(4, 9, 3, generator=torch.Generator().manual_seed(0))
    assert_close(ours.quantize(z), peer.quantize(z), atol=1e-6, rtol=0)
    gradients = []
    for q in (peer, ours):
        x = z.clone().requires_grad_()
        (q.quantize(x) * torch.arange(3)).sum().backward()
        gradients.append(x.grad)
    assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-5)
    codes = peer.quantize(z)
    assert torch.equal(ours.codes_to_indices(codes), peer.codes_to_indices(codes).long())


def test_arguments_by_position():
    assert ifsq.FSQ([5, 5], 7, 2, True).num_codebooks == 2
    assert ifsq.FSQ([5, 5], 7).has_projections


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    peer, ours = pair([17] * 4, {})
    z = latents(4, False)[0].to(dtype)
    theirs, their_indices = peer(z)
    codes, indices = ours(z)
    assert codes.dtype == theirs.dtype == dtype
    assert torch.equal(codes, theirs)
    assert torch.equal(indices, their_indices.long())


def test_where_the_peer_is_wrong():
    """Above 2**24 codes its float32 sum is no index; ours is, and decodes to the same codes."""
    torch.manual_seed(0)
    levels = [17] * 6
    peer = Peer(levels, return_indices=False)  # with indices it would ask for the whole codebook
    ours = ifsq.FSQ(levels, bound="tanh")
    z = torch.randn(1, 20_000, 6)
    codes, indices = ours(z)
    theirs = peer(z)[0]
    assert_close(codes, theirs, atol=1e-6, rtol=0)
    exact = sum((digit * 17**k for k, digit in enumerate(ours(z).digits.unbind(-1))), torch.zeros(1, 20_000).long())
    assert torch.equal(indices, exact)
    wrong = peer.codes_to_indices(theirs).long() != exact
    assert 0.2 < wrong.float().mean() < 0.4
    assert torch.equal(ours.indices_to_codes(indices), codes)


def test_arguments_and_methods_of_the_peer_are_known():
    """What it has and we do not is listed in docs/drop_in.md; a new release of it would show here."""
    import inspect

    theirs = set(inspect.signature(Peer.__init__).parameters)
    ours = set(inspect.signature(ifsq.FSQ.__init__).parameters)
    assert theirs - ours == {"scale", "allowed_dtypes"}
    methods = {name for name, _ in inspect.getmembers(Peer, inspect.isfunction) if name in vars(Peer)}
    missing = {name for name in methods if not name.startswith("_") and not hasattr(ifsq.FSQ, name)}
    assert missing == {"bound", "symmetry_preserving_bound", "maybe_apply_noise"}
    assert callable(ifsq.FSQ([5]).bound)


def test_noise_of_the_peer_is_counted_in_codes_and_ours_in_cells():
    torch.manual_seed(0)
    arguments = {"noise_dropout": 1.0, "preserve_symmetry": True}
    peer, ours = pair([17], arguments)
    z = torch.zeros(1, 5000, 1)
    assert peer.train()(z)[0].abs().max() > 0.45
    assert ours.train()(z)[0].abs().max() <= 0.5 * (2 / 16) + 1e-6


@pytest.mark.parametrize(("levels", "arguments"), itertools.product([[2] * 4], [{"preserve_symmetry": True}]))
def test_two_levels(levels, arguments):
    peer, ours = pair(levels, arguments)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(z).codes, peer(z)[0])


FACE = {
    "levels": inspect.Parameter.empty,
    "dim": None,
    "num_codebooks": 1,
    "keep_num_codebooks_dim": None,
    "bound": "ifsq",
    "alpha": 1.6,
    "cells": "paper",
    "groups": None,
    "digit_order": "little",
    "channel_first": False,
    "channel_axis": None,
    "return_indices": True,
    "validate": None,
    "projection_has_bias": True,
    "orthogonal_rotation": False,
    "preserve_symmetry": False,
    "bound_hard_clamp": False,
    "force_quantization_f32": True,
    "noise_dropout": 0.0,
    "quantization_dropout": 0.0,
}


def test_the_face_is_frozen():
    """Code that was written for the peer, or for an earlier version, names these arguments."""
    face = inspect.signature(ifsq.FSQ).parameters
    assert {name: argument.default for name, argument in face.items()} == FACE
    assert list(face) == list(FACE)
    positional = [name for name, a in face.items() if a.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional == ["levels", "dim", "num_codebooks", "keep_num_codebooks_dim"]
    for name in FACE:
        assert f"    {name}  " in ifsq.FSQ.__doc__ or f"    {name} " in ifsq.FSQ.__doc__, f"{name} is not documented"
