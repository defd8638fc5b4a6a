"""Signs as codes: identities, and entropies against the sum over the whole codebook."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from ifsq.quantizers.lookup_free import BSQ, LFQ


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def all_codes(dim):
    """Every code of ±1, in the order of its index: the first dimension is the least significant bit."""
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=dim)), dtype=torch.float64).flip(1)


def entropies_over_the_codebook(rows, scale, temperature):
    """The definition: a softmax over all codes, float64."""
    codes = all_codes(rows.shape[1]) * scale
    p = torch.softmax(-(rows.unsqueeze(1) - codes).square().sum(2) / temperature, dim=1)
    mean = p.mean(0)
    return torch.special.entr(p).sum(1).mean(), torch.special.entr(mean).sum()


def test_codes_are_signs():
    z = torch.tensor([[0.3, -2.0, 0.0, -0.0, 1e-30, -1e-30]])
    out = LFQ(6)(z)
    assert out.codes.tolist() == [[1, -1, 1, 1, 1, -1]]
    assert out.digits.tolist() == [[1, 0, 1, 1, 1, 0]]
    assert out.indices.item() == 0b011101
    assert out.packed_digits.dtype == torch.uint8


def test_spherical_codes_have_length_one():
    out = BSQ(5)(torch.randn(10, 5))
    torch.testing.assert_close(out.codes.norm(dim=1), torch.ones(10))
    assert torch.equal(out.indices, LFQ(5)(out.codes).indices)
    zero = BSQ(5)(torch.zeros(1, 5)).codes
    torch.testing.assert_close(zero, torch.full((1, 5), 5**-0.5))


def test_length_does_not_matter_on_the_sphere():
    q, z = BSQ(6), torch.randn(10, 6)
    torch.testing.assert_close(q(z).losses, q(7 * z).losses)


def test_every_index_in_order():
    q = LFQ(6)
    indices = torch.arange(64)[None]
    codes = q.indices_to_codes(indices)
    assert torch.equal(codes[0].double(), all_codes(6))
    assert torch.equal(q.codes_to_indices(codes), indices)


@pytest.mark.parametrize("kind", [LFQ, BSQ])
@pytest.mark.parametrize("dim", [1, 18, 62, 63])
def test_large_codebooks_are_exact(kind, dim):
    q = kind(dim, entropy_weight=0.0)
    assert q.codebook_size == 2**dim
    out = q(torch.randn(200, dim))
    in_python = [sum(bit << i for i, bit in enumerate(row)) for row in out.digits.tolist()]
    assert out.indices.tolist() == in_python
    assert torch.equal(q.indices_to_codes(out.indices[None])[0], out.codes)


def test_no_index_above_63_bits_but_in_groups():
    z = torch.randn(20, 80)
    out = LFQ(80)(z)
    assert out.indices is None
    with pytest.raises(ValueError, match=r"has no index: more than 2\*\*63"):
        LFQ(80).codes_to_indices(out.codes)
    q = LFQ(80, groups=[40, 40])
    halves = q(z)
    assert torch.equal(halves.digits, out.digits)
    assert torch.equal(halves.indices[:, 0], LFQ(40)(z[:, :40]).indices)
    assert torch.equal(halves.indices[:, 1], LFQ(40)(z[:, 40:]).indices)
    assert torch.equal(q.indices_to_codes(halves.indices[None])[0], out.codes)


@pytest.mark.parametrize("temperature", [0.01, 1.0, 5.0])
@pytest.mark.parametrize("kind", [LFQ, BSQ])
def test_entropies_of_the_definition(kind, temperature):
    z = torch.randn(50, 7, dtype=torch.float64)
    q = kind(7, temperature=temperature, joint_bits=7)
    rows = F.normalize(z, dim=1) if kind is BSQ else z
    scale = 7**-0.5 if kind is BSQ else 1.0
    sure, diverse = entropies_over_the_codebook(rows, scale, temperature)
    torch.testing.assert_close(q.entropies(z), (sure, diverse))
    loss = kind(7, temperature=temperature, joint_bits=7, entropy_weight=0.3, diversity_gamma=0.6)(z).losses["entropy"]
    torch.testing.assert_close(loss, 0.3 * (sure - 0.6 * diverse))


def test_spherical_probability_is_the_papers():
    # A bit is +1 with sigmoid(2*tau*u/sqrt(d)), tau = 2/temperature.
    u = F.normalize(torch.randn(30, 4, dtype=torch.float64), dim=1)
    p = torch.sigmoid(2 * (2 / 0.5) * u / math.sqrt(4))
    expected = (torch.special.entr(p) + torch.special.entr(1 - p)).sum(1).mean()
    torch.testing.assert_close(BSQ(4, temperature=0.5).entropies(u)[0], expected)
    mean = p.mean(0)
    factorised = (torch.special.entr(mean) + torch.special.entr(1 - mean)).sum()
    torch.testing.assert_close(BSQ(4, temperature=0.5).entropies(u)[1], factorised)


def test_runs_of_bits_are_quantizers_side_by_side():
    z = torch.randn(40, 7, dtype=torch.float64)
    _, diverse = LFQ(7, temperature=1.0, joint_bits=3).entropies(z)
    runs = [z[:, :3], z[:, 3:5], z[:, 5:]]
    parts = [LFQ(part.shape[1], temperature=1.0).entropies(part)[1] for part in runs]
    torch.testing.assert_close(diverse, sum(parts))
    whole = LFQ(7, temperature=1.0, joint_bits=7).entropies(z)[1]
    single = LFQ(7, temperature=1.0, joint_bits=1).entropies(z)[1]
    assert whole < diverse < single


def test_entropy_of_many_bits_costs_little():
    sure, diverse = LFQ(18, joint_bits=18, temperature=0.01).entropies(torch.randn(5000, 18))
    # 5000 all but sure latents are nearly as many different codes.
    assert diverse.item() == pytest.approx(math.log(5000), abs=0.3)
    assert sure < 0.2


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_gradient_of_the_definition(temperature):
    z = torch.randn(30, 5, dtype=torch.float64, requires_grad=True)
    (loss,) = torch.autograd.grad(LFQ(5, temperature=temperature, entropy_weight=1.0)(z).losses["entropy"], z)
    sure, diverse = entropies_over_the_codebook(z, 1.0, temperature)
    (expected,) = torch.autograd.grad(sure - diverse, z)
    torch.testing.assert_close(loss, expected, atol=1e-9, rtol=1e-6)


def test_gradient_is_finite_where_codes_are_never_used():
    z = torch.full((10, 6), 50.0, requires_grad=True)
    LFQ(6)(z).loss.backward()
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("kind", [LFQ, BSQ])
def test_commitment_is_the_distance_to_the_code(kind):
    z = torch.randn(30, 5, requires_grad=True)
    out = kind(5, commitment_weight=0.4)(z)
    u = F.normalize(z, dim=1) if kind is BSQ else z
    expected = 0.4 * ((out.codes.detach() - u) ** 2).mean()
    torch.testing.assert_close(out.losses["commitment"], expected)
    torch.testing.assert_close(
        torch.autograd.grad(out.losses["commitment"], z), torch.autograd.grad(expected, z), atol=1e-6, rtol=1e-5
    )


def test_gradient_is_straight_through():
    z, w = torch.randn(30, 5, requires_grad=True), torch.randn(30, 5)
    (LFQ(5)(z).codes * w).sum().backward()
    assert torch.equal(z.grad, w)
    (grad,) = torch.autograd.grad((BSQ(5)(z).codes * w).sum(), z)
    (expected,) = torch.autograd.grad((F.normalize(z, dim=1) * w).sum(), z)
    torch.testing.assert_close(grad, expected)


def test_the_loss_spreads_and_sharpens():
    z = torch.nn.Parameter(0.3 + 0.1 * torch.randn(256, 4))
    q = LFQ(4, temperature=1.0, entropy_weight=1.0, commitment_weight=0.0)
    before = q(z).indices.unique().numel()
    optimizer = torch.optim.Adam([z], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        q(z).loss.backward()
        optimizer.step()
    sure, diverse = q.entropies(z)
    assert before < 8
    assert q(z).indices.unique().numel() == 16
    assert diverse > 0.95 * 4 * math.log(2)
    assert sure < 0.3


@pytest.mark.parametrize(
    ("construct", "message"),
    [
        (lambda: LFQ(0), r"^dim=0: expected an integer of at least 1$"),
        (lambda: LFQ(4, entropy_weight=-1.0), r"^entropy_weight=-1.0: expected a finite number of at least 0$"),
        (lambda: LFQ(4, diversity_gamma=math.nan), r"^diversity_gamma=nan: expected a finite number"),
        (lambda: LFQ(4, commitment_weight=math.inf), r"^commitment_weight=inf: expected a finite number"),
        (lambda: LFQ(4, temperature=0.0), r"^temperature=0.0: expected a number above 0$"),
        (lambda: BSQ(4, temperature=-1.0), r"^temperature=-1.0: expected a finite number of at least 0$"),
        (lambda: LFQ(4, joint_bits=0), r"^joint_bits=0: expected an integer of at least 1$"),
        (lambda: LFQ(40, joint_bits=21), r"^joint_bits=21: expected at most 20$"),
        (lambda: LFQ(4, groups=[2, 3]), r"^groups=\[2, 3\]: expected positive sizes that sum to the 4 levels$"),
        (lambda: LFQ(4).indices_to_codes(torch.tensor([[16]])), r"index 16 in .*: expected 0 to 15"),
    ],
)
def test_bad_options_are_named(construct, message):
    with pytest.raises(ValueError, match=message):
        construct()
