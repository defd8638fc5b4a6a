"""CKNNA, linear CKA, mutual neighbours, ridge probe: golden values, second implementations, sets of known figures."""

import math
import os
import subprocess
import sys

import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

from ifsq.metrics import alignment, probe, tiles
from ifsq.metrics.alignment import (
    CrossMoments,
    cka_of_rows,
    cknna,
    linear_cka,
    moments_of,
    mutual_neighbours,
    nearest,
    unit_rows,
)
from ifsq.metrics.probe import ridge_probe


def normal(n, dim=8, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(n, dim=8, noise=1.0, seed=0):
    """Two sets of which one follows from the other, but for noise; not centred."""
    a = normal(n, dim, seed) + 0.5
    return a, a @ normal(dim, dim + 3, seed + 1) + noise * normal(n, dim + 3, seed + 2)


@pytest.fixture(params=[5, 1000])
def block(request, monkeypatch):
    for module in (tiles, alignment, probe):
        monkeypatch.setattr(module, "BLOCK", request.param)


@pytest.mark.parametrize("k", [5, 10, 47])
@pytest.mark.parametrize("form", ["biased", "unbiased"])
@pytest.mark.parametrize("other", "ABC")
@pytest.mark.usefixtures("block")
def test_golden_cknna(golden, k, form, other):
    told = golden("metrics").get_tensor
    found = cknna(told("cknna/A"), told(f"cknna/{other}"), k, unbiased=form == "unbiased")
    assert found == pytest.approx(float(told(f"cknna/A{other}_top{k}_{form}")), abs=1e-6)


@pytest.mark.usefixtures("block")
def test_golden_hsic(golden):
    told = golden("metrics").get_tensor
    found = moments_of(told("cknna/A"), told("cknna/B"))
    assert found.hsic(unbiased=False) == pytest.approx(float(told("cknna/hsic_biased_AB")), rel=1e-6)
    assert found.hsic() == pytest.approx(float(told("cknna/hsic_unbiased_AB")), rel=1e-6)


def dense_hsic(K, L, unbiased):
    n = len(K)
    if not unbiased:
        H = torch.eye(n, dtype=torch.float64) - 1 / n
        return float(torch.trace(K @ H @ L @ H))
    K, L = K.clone().fill_diagonal_(0), L.clone().fill_diagonal_(0)
    mixed = K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 * (K @ L).sum() / (n - 2)
    return float(((K * L.T).sum() + mixed) / (n * (n - 3)))


def dense_cknna(a, b, k, unbiased):
    K, L = a @ a.T, b @ b.T

    def mask(kernel):
        kernel = kernel.clone().fill_diagonal_(-torch.inf) if unbiased else kernel
        return torch.zeros_like(kernel).scatter_(1, kernel.topk(k, dim=1).indices, 1)

    def hsic(K, L):
        near = mask(K) * mask(L)
        return dense_hsic(near * K, near * L, unbiased)

    return hsic(K, L) / (math.sqrt(hsic(K, K) * hsic(L, L)) + 1e-6)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.usefixtures("block")
def test_blocks_equal_the_whole_kernels(unbiased):
    a, b = related(43)
    for k in (1, 4, 42):
        assert cknna(a, b, k, unbiased=unbiased) == pytest.approx(dense_cknna(a, b, k, unbiased), rel=1e-9)
    K, L = a @ a.T, b @ b.T
    expected = dense_hsic(K, L, unbiased) / math.sqrt(dense_hsic(K, K, unbiased) * dense_hsic(L, L, unbiased))
    assert cka_of_rows(a, b, unbiased) == pytest.approx(expected, rel=1e-9)


def test_a_split_into_batches_does_not_change_the_moments():
    a, b = related(60)
    a = a + 1e4  # far from the origin, where plain sums of squares lose half of the digits
    whole = moments_of(a, b)
    for sizes in ([60], [1] * 60, [7, 30, 0, 23]):
        parts = CrossMoments()
        for x, y in zip(a.split(sizes), b.split(sizes), strict=True):
            parts.add(x, y)
        for unbiased in (True, False):
            assert parts.hsic(unbiased) == pytest.approx(whole.hsic(unbiased), rel=1e-10)
    near = moments_of(a - 1e4, b)
    assert whole.hsic() == pytest.approx(near.hsic(), rel=1e-7)


def test_float32_features_are_summed_in_float64():
    a, b = (part.float() for part in related(3000))
    assert cka_of_rows(a, b) == pytest.approx(cka_of_rows(a.double(), b.double()), rel=1e-12)
    assert cknna(a, b) == pytest.approx(cknna(a.double(), b.double()), rel=1e-12)


@pytest.mark.parametrize("unbiased", [True, False])
def test_known_figures(unbiased):
    a = normal(300) + 0.3
    turned = 3 * a @ torch.linalg.qr(normal(8, 8, 5)).Q
    assert cka_of_rows(a, turned, unbiased) == pytest.approx(1, abs=1e-12)
    assert cka_of_rows(a, turned + 7, unbiased) == pytest.approx(1, abs=1e-9)  # the centre does not matter
    assert cknna(a, turned, unbiased=unbiased) == pytest.approx(1, abs=1e-6)
    assert mutual_neighbours(nearest(a), nearest(turned)) == 1


def test_independent_sets():
    """Unbiased CKA is about zero, the biased one of few rows is not, and neighbours fall together by chance."""
    drawn = [(normal(120, 100, seed), normal(120, 100, 50 + seed)) for seed in range(20)]
    cka = torch.tensor([cka_of_rows(a, b) for a, b in drawn])
    assert abs(float(cka.mean())) < 3 * float(cka.std()) / math.sqrt(20)
    assert float(cka.abs().max()) < 0.1
    assert cka_of_rows(*drawn[0], unbiased=False) > 0.4
    near = torch.tensor([cknna(a, b) for a, b in drawn])
    assert float(near.mean()) == pytest.approx(10 / 119, abs=0.03)
    shares = torch.tensor([mutual_neighbours(nearest(a), nearest(b)) for a, b in drawn])
    assert float(shares.mean()) == pytest.approx(10 / 119, abs=0.01)


def test_neighbours_equal_a_sort():
    a = normal(50)
    products = a @ a.T
    with_itself = [set(row[:6]) for row in products.argsort(dim=1, descending=True).tolist()]
    assert [set(row) for row in nearest(a, 6, itself=True).rows.tolist()] == with_itself
    products.fill_diagonal_(-torch.inf)
    assert [set(row[:6]) for row in products.argsort(dim=1, descending=True).tolist()] == [
        set(row) for row in nearest(a, 6).rows.tolist()
    ]


def test_rows_of_length_one():
    a = normal(30).float()
    a[3] = 0
    found = unit_rows(a)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(30).index_fill(0, torch.tensor(3), 0))


def test_features_that_never_vary_have_no_alignment():
    a, flat = normal(30), torch.ones(30, 4, dtype=torch.float64)
    assert math.isnan(cka_of_rows(a, flat))


@pytest.mark.parametrize(
    ("a", "b", "k", "told"),
    [
        (normal(10), normal(10), 10, "k=10 neighbours among 10 images: expected 1 to 9"),
        (normal(10), normal(10), 0, "k=0 neighbours"),
        (normal(0), normal(0), 3, "k=3 neighbours among 0 images"),
        (normal(3), normal(3), 2, "neighbours of 3 images: expected at least 4"),
        (normal(10), normal(9), 3, r"\(10, 8\) and \(9, 8\): expected as many rows"),
        (normal(10) / 0, normal(10), 3, "expected finite values"),
    ],
)
def test_refused_neighbours(a, b, k, told):
    with pytest.raises(ValueError, match=told):
        cknna(a, b, k)


def test_refused_moments():
    moments = CrossMoments()
    moments.add(normal(3), normal(3))
    with pytest.raises(ValueError, match="HSIC of 3 rows: expected at least 4"):
        moments.hsic()
    with pytest.raises(ValueError, match="expected at least 0 rows of 8"):
        moments.add(normal(3, 7), normal(3))
    with pytest.raises(ValueError, match="expected finite values"):
        moments.add(normal(3) * torch.nan, normal(3))
    with pytest.raises(ValueError, match="HSIC of 3 rows"):
        linear_cka(moments_of(normal(9), normal(9)), moments, moments)
    with pytest.raises(ValueError, match="expected the same of both"):
        mutual_neighbours(nearest(normal(10), 3), nearest(normal(10), 4))


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("penalty", [1e-3, 1.0])
def test_probe_equals_sklearn(penalty):
    labels = torch.arange(90) % 4
    features = (normal(90, 12) + 1.5 * normal(4, 12, 3)[labels]) * torch.logspace(-3, 3, 12) + 100
    order = torch.randperm(90, generator=torch.Generator().manual_seed(1))
    features, labels = features[order], labels[order]
    right, seen = 0, torch.stack([(labels[:i] == labels[i]).sum() + (labels < labels[i]).sum() for i in range(90)])
    for fold in range(3):
        held = seen % 3 == fold
        scaler = StandardScaler().fit(features[~held])
        model = RidgeClassifier(alpha=penalty * int((~held).sum())).fit(
            scaler.transform(features[~held]), labels[~held]
        )
        right += int((model.predict(scaler.transform(features[held])) == labels[held].numpy()).sum())
    found = ridge_probe(features, labels, folds=3, penalty=penalty)
    assert found.accuracy == right / 90
    assert 0.3 < found.accuracy < 0.999
    assert found.chance == pytest.approx(23 / 90)


def test_probe_of_known_features():
    labels = torch.arange(400) % 5
    exact = torch.eye(5, dtype=torch.float64)[labels].repeat(1, 2)  # twice the same, and so singular
    assert ridge_probe(exact, labels).accuracy == 1
    with_constant = torch.cat([exact, torch.full((400, 1), 1e9 / 3)], dim=1)
    assert ridge_probe(with_constant, labels).accuracy == 1
    noise = ridge_probe(normal(400, 50), labels)
    assert abs(noise.accuracy - noise.chance) < 4 * noise.error
    gone = labels.where(labels != 2, 7)  # a class without images counts for nothing
    assert ridge_probe(exact, gone).accuracy == 1


@pytest.mark.parametrize(
    ("features", "labels", "options", "told"),
    [
        (normal(10), torch.zeros(10, dtype=torch.int64), {}, "1 class: expected at least 2"),
        (normal(4), torch.arange(4), {}, "folds=5 of 4 images: expected 2 to 4"),
        (normal(10), torch.arange(10), {"folds": 1}, "folds=1"),
        (normal(10), torch.arange(10), {"penalty": 0.0}, "penalty=0.0: expected a positive number"),
        (normal(10), torch.arange(9), {}, r"labels \(9,\)"),
        (normal(10), torch.arange(10) - 1, {}, "from -1: expected 10 of them, 0 and above"),
        (normal(10) / 0, torch.arange(10), {}, "expected finite values"),
    ],
)
def test_refused_probes(features, labels, options, told):
    with pytest.raises(ValueError, match=told):
        ridge_probe(features, labels, **options)


LARGE = """
import resource, torch
from ifsq.metrics.alignment import cknna
torch.set_num_threads(1)
rng = torch.Generator().manual_seed(0)
a = torch.randn(10_000, 768, generator=rng)
b = a + 0.3 * torch.randn(10_000, 768, generator=rng)
print(cknna(a, b), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_ten_thousand_images_of_768_features_need_less_than_one_gibibyte(root):
    """In a process of its own, whose greatest memory is what torch takes, the features, and some tiles."""
    env = os.environ | {"PYTHONPATH": str(root / "src")}
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True, env=env)
    found, kib = map(float, done.stdout.split())
    print(f"peak {kib / 1024:.0f} MiB")
    assert kib < 1024**2
    assert 0.1 < found < 0.99
