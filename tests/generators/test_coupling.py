"""Pairs of noise and data: permutations, of least cost, within classes where asked for."""

from itertools import permutations

import pytest
import torch

from ifsq.generators.diffusion.coupling import coupled


def drawn(count, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x0, x1 = torch.randn(2, count, 3, 2, 2, generator=rng)
    return x0, x1 + 0.5, torch.randint(3, (count,), generator=rng)


def cost(x0, x1):
    return float((x1 - x0).square().sum())


def places(x0, ordered):
    """Which row of x0 each of ``ordered`` is."""
    return (ordered.flatten(1)[:, None] == x0.flatten(1)).all(dim=2).nonzero()[:, 1]


@pytest.mark.parametrize("coupling", ["optimal", "optimal_in_class"])
def test_every_example_is_used_once_and_the_cost_falls(coupling):
    for seed in range(5):
        x0, x1, labels = drawn(32, seed)
        ordered = coupled(x0, x1, labels, coupling)
        assert torch.equal(places(x0, ordered).sort().values, torch.arange(32))
        assert cost(ordered, x1) < 0.95 * cost(x0, x1)
        assert torch.equal(coupled(x0, x1, labels, coupling), ordered)


def test_no_permutation_costs_less():
    x0, x1, labels = drawn(6)
    least = min(cost(x0[list(order)], x1) for order in permutations(range(6)))
    assert cost(coupled(x0, x1, labels, "optimal"), x1) == pytest.approx(least, rel=1e-6)


def test_within_a_class_only_its_own_noise_is_exchanged():
    x0, x1, labels = drawn(24)
    order = places(x0, coupled(x0, x1, labels, "optimal_in_class"))
    assert torch.equal(labels[order], labels)
    for label in range(3):
        rows = labels == label
        alone = coupled(x0[rows], x1[rows], labels[rows], "optimal")
        assert torch.equal(coupled(x0, x1, labels, "optimal_in_class")[rows], alone)


def test_pairing_in_a_class_leaves_each_class_the_whole_noise():
    """The mean of a class's noise over many batches: 0 within classes, towards its data where the whole batch pairs."""
    drift = {}
    for coupling in ("optimal", "optimal_in_class"):
        found = []
        for seed in range(60):
            rng = torch.Generator().manual_seed(seed)
            labels = torch.arange(16) % 2
            x0 = torch.randn(16, 2, generator=rng)
            x1 = torch.randn(16, 2, generator=rng) * 0.1 + 2 * labels[:, None]
            found.append(coupled(x0, x1, labels, coupling)[labels == 1].mean())
        drift[coupling] = float(torch.stack(found).mean())
    assert drift["optimal"] > 0.5
    assert abs(drift["optimal_in_class"]) < 4 / (60 * 16) ** 0.5


def test_independent_pairs_and_single_examples_stay_as_they_are():
    x0, x1, labels = drawn(8)
    assert coupled(x0, x1, labels, "independent") is x0
    assert coupled(x0[:1], x1[:1], labels[:1], "optimal") is not None
    meta = torch.empty(1, 3, 2, 2, device="meta")
    assert coupled(meta, meta, torch.empty(1, dtype=torch.int64, device="meta"), "optimal").device.type == "meta"


def test_autocast_changes_no_pair():
    x0, x1, labels = drawn(32)
    with torch.autocast("cpu", torch.bfloat16):
        low = coupled(x0, x1, labels, "optimal")
    assert torch.equal(low, coupled(x0, x1, labels, "optimal"))
