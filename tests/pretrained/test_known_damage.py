"""Distances of distributions grow with known damage to photographs: `benchmarks/distortions.py` in small."""

import pytest
import torch
import torch.nn.functional as F

from ifsq.data import DataConfig, open_images
from ifsq.metrics import frechet_distance
from ifsq.metrics.kernel import kernel_distance
from ifsq.pretrained.features import load_features


@pytest.fixture(scope="module")
def network():
    return load_features("efficientnet-lite0@64")


def crops(seed, n=60):
    source = open_images(DataConfig("bundled:photos", 32), "train")
    return torch.stack([torch.from_numpy(source.load(k, seed)[0].copy()).permute(2, 0, 1) for k in range(n)])


def noisy(images, sigma):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)) * sigma
    return (images.float() + noise).round().clamp(0, 255).to(torch.uint8)


def coarse(images, factor):
    small = F.interpolate(images.float(), scale_factor=1 / factor, mode="area")
    return F.interpolate(small, scale_factor=float(factor), mode="bilinear").round().clamp(0, 255).to(torch.uint8)


def test_distances_grow_with_three_strengths_of_noise_and_blur(network):
    reference, real = (network(crops(seed), ("1280",))["1280"] for seed in (0, 1))
    for damage, strengths in ((noisy, (10, 25, 60)), (coarse, (2, 4, 8))):
        rows = [network(damage(crops(1), strength), ("1280",))["1280"] for strength in strengths]
        kernel = [kernel_distance(reference, one, draws=0).value for one in (real, *rows)]
        frechet = [frechet_distance(reference, one) for one in (real, *rows)]
        for distances in (kernel, frechet):
            assert distances == sorted(distances)
            assert distances[-1] > 1.2 * distances[0]
        assert frechet[0] > 50  # of one distribution: so few images against 1280 features
