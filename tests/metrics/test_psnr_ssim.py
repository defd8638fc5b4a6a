"""PSNR and SSIM against scikit-image, the golden vectors, and sums worked out by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from ifsq.data import to_float
from ifsq.metrics import Reconstruction, psnr, reconstruction, ssim


def pair(n: int = 6, height: int = 24, width: int = 32) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (n, height, width, 3))
    noise = draw.normal(0, 8 * np.arange(1, n + 1)[:, None, None, None], images.shape)
    return images.astype(np.uint8), (images + noise).clip(0, 255).astype(np.uint8)


def test_ssim_is_that_of_scikit_image_with_the_gaussian_window() -> None:
    a, b = pair()
    ours = ssim(to_float(a), to_float(b))
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    for k in range(len(a)):
        # scikit-image leaves the border out of its mean: give it a reflected one to leave out.
        padded = [np.pad(x[k].astype(float), ((5, 5), (5, 5), (0, 0)), mode="reflect") for x in (a, b)]
        assert float(ours[k]) == pytest.approx(structural_similarity(*padded, channel_axis=2, **settings), abs=1e-10)


def test_psnr_is_its_definition_on_bytes() -> None:
    a, b = pair()
    squared = ((a.astype(float) - b) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(psnr(to_float(a), to_float(b)).numpy(), 10 * np.log10(255**2 / squared), rtol=1e-12)


def test_golden_psnr_and_ssim(golden: Callable[[str], Any]) -> None:
    vectors = golden("metrics")
    x, y = (vectors.get_tensor(f"img/{name}") * 2 - 1 for name in "xy")
    # The golden ones are taken on floats, and SSIM with a flat 7 x 7 window: rounding to bytes moves the PSNR by less
    # than 0.001 dB here, the other window the SSIM by 0.0015.
    torch.testing.assert_close(psnr(x, y).float(), vectors.get_tensor("img/psnr_each"), atol=3e-3, rtol=0)
    torch.testing.assert_close(ssim(x, y), vectors.get_tensor("img/ssim_each"), atol=2e-3, rtol=0)


def test_reconstructions_are_clamped_and_rounded_first() -> None:
    images = torch.ones(1, 3, 16, 16)
    assert torch.equal(psnr(images, images * 7), psnr(images, images))
    assert torch.equal(psnr(images, images - 0.003), psnr(images, images))  # less than half a byte


def test_identical_images_are_finite_and_best() -> None:
    images = to_float(pair()[0])
    one_off = images.clone()
    one_off[:, 0, 0, 0] += torch.where(one_off[:, 0, 0, 0] > 0, -2 / 255, 2 / 255)
    assert torch.equal(psnr(images, images), psnr(images, one_off))
    assert psnr(images, images)[0] == pytest.approx(10 * np.log10(255**2 * 3 * 24 * 32))
    torch.testing.assert_close(ssim(images, images), torch.ones(6, dtype=torch.float64))


def test_batches_of_any_size_give_the_same_scores() -> None:
    a, b = (to_float(images) for images in pair(7))
    whole, parts = Reconstruction(), Reconstruction()
    whole.add(a, b)
    for rows in ([0], [1, 2, 3], [4, 5, 6]):
        parts.add(a[rows], b[rows])
    assert parts.scores() == whole.scores()
    assert whole.scores().n == 7
    assert whole.scores().psnr == pytest.approx(float(psnr(a, b).mean()))
    assert whole.scores().ssim_std == pytest.approx(float(ssim(a, b).numpy().std()))


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="0 images"):
        Reconstruction().scores()
    with pytest.raises(ValueError, match=r"reconstructions \(2, 3, 16, 16\): expected \(1, 3, 16, 16\)"):
        # Straight, because the tests' shape checks stand before the public names.
        reconstruction._check_pair(torch.zeros(1, 3, 16, 16), torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="4 x 16: expected at least 6"):
        ssim(torch.zeros(1, 3, 4, 16), torch.zeros(1, 3, 4, 16))
