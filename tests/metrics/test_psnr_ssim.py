"""PSNR, SSIM and MS-SSIM against scikit-image, the golden vectors, and sums worked out by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from ifsq.data import to_float, to_uint8
from ifsq.metrics import ImageScores, ms_ssim, psnr, reconstruction, ssim


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


def test_golden_psnr_and_ssim_on_floats_are_the_second_implementations(golden: Callable[[str], Any]) -> None:
    """To 1e-6, SSIM in a flat window. On bytes, SSIM in ours, the tests above hold `psnr` and `ssim` to them."""
    vectors = golden("metrics")
    pairs = zip(*(vectors.get_tensor(f"img/{name}").double().numpy() for name in "xy"), strict=True)
    for number, (x, y) in enumerate(pairs):
        found = -10 * np.log10(((x - y) ** 2).mean()), structural_similarity(x, y, channel_axis=0, data_range=1.0)
        expected = (float(vectors.get_tensor(f"img/{name}_each")[number]) for name in ("psnr", "ssim"))
        assert found == pytest.approx(tuple(expected), rel=1e-6)


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


def window() -> np.ndarray:
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    return line / line.sum()


def ssim_terms(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Mean over a grey image of luminance times contrast (border reflected), and of contrast (border left out)."""

    def blur(image: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(image, window(), axis=0, mode="mirror"), window(), axis=1, mode="mirror")

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = blur(x), blur(y)
    spread = blur(x * x) - mean_x**2 + blur(y * y) - mean_y**2
    contrast = (2 * (blur(x * y) - mean_x * mean_y) + c2) / (spread + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float((luminance * contrast).mean()), float(contrast[5:-5, 5:-5].mean())


@pytest.mark.parametrize(("side", "scales"), [(22, 2), (43, 2), (44, 3), (87, 3), (88, 4), (175, 4), (176, 5)])
def test_ms_ssim_is_its_definition(side: int, scales: int) -> None:
    assert reconstruction.ms_ssim_scales(side, side + 3) == reconstruction.ms_ssim_scales(side + 3, side) == scales
    a, b = pair(2, side, side + 3)
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    weights = weights / (weights.sum() if scales < 5 else 1)
    for k, found in enumerate(ms_ssim(to_float(a), to_float(b)).tolist()):
        x, y = a[k].astype(float), b[k].astype(float)
        expected = 1.0
        for scale, weight in enumerate(weights):
            terms = np.mean([ssim_terms(x[..., c], y[..., c]) for c in range(3)], axis=0)
            expected *= max(0.0, terms[0] if scale == scales - 1 else terms[1]) ** weight
            height, width = (length // 2 * 2 for length in x.shape[:2])
            x, y = (z[:height, :width].reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3)) for z in (x, y))
        assert found == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("side", [8, 30, 177])
def test_ssim_and_ms_ssim_are_those_of_torchmetrics(side: int) -> None:
    a, b = (torch.from_numpy(images).movedim(-1, 1).double() for images in pair(3, side, side + 5))
    options = {"data_range": 255.0, "reduction": "none"}
    expected = structural_similarity_index_measure(b, a, **options)
    torch.testing.assert_close(ssim(a / 127.5 - 1, b / 127.5 - 1), expected, atol=1e-12, rtol=0)
    if side < 22:
        return
    weights = {177: {}, 30: {"betas": tuple(w / (0.0448 + 0.2856) for w in (0.0448, 0.2856))}}[side]
    expected = multiscale_structural_similarity_index_measure(b, a, **options, **weights)
    # Its exponents are rounded to float32.
    torch.testing.assert_close(ms_ssim(a / 127.5 - 1, b / 127.5 - 1), expected, atol=1e-7, rtol=0)


def test_negative_similarity_counts_as_none() -> None:
    images = to_float(pair()[0])
    assert torch.equal(ms_ssim(images, -images), torch.zeros(6, dtype=torch.float64))
    assert (ssim(images, -images) < 0).all()


def test_fewer_scales_have_another_name() -> None:
    assert [reconstruction.ms_ssim_name(n) for n in (5, 2)] == ["MS-SSIM", "MS-SSIM of 2 scales"]
    assert reconstruction.ms_ssim_scales(21, 300) == 0
    torch.testing.assert_close(ms_ssim(*2 * (to_float(pair()[0]),)), torch.ones(6, dtype=torch.float64))


def test_bytes_are_those_of_a_file() -> None:
    floats = torch.randn(4, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(reconstruction._bytes(floats).movedim(1, -1).numpy(), to_uint8(floats))


def test_batches_of_any_size_and_merged_parts_give_the_same_scores() -> None:
    a, b = (to_float(images) for images in pair(7))
    scores = {"PSNR": psnr(a, b), "SSIM": ssim(a, b)}
    whole, first, second = ImageScores(), ImageScores(), ImageScores()
    whole.add(scores)
    for part, rows in ((first, [0]), (first, [1, 2, 3]), (second, [4, 5, 6])):
        part.add({"PSNR": psnr(a[rows], b[rows]), "SSIM": ssim(a[rows], b[rows])})
    first.merge(second)
    first.merge(ImageScores())
    assert first.summary() == whole.summary()
    found = whole.summary()
    assert found["SSIM"].n == 7
    assert found["PSNR"].mean == pytest.approx(float(psnr(a, b).mean()))
    assert found["SSIM"].std == pytest.approx(float(ssim(a, b).numpy().std()))


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="0 images"):
        ImageScores().summary()
    with pytest.raises(ValueError, match="21 x 40: expected at least 22"):
        ms_ssim(torch.zeros(1, 3, 21, 40), torch.zeros(1, 3, 21, 40))
    with pytest.raises(ValueError, match=r"reconstructions \(2, 3, 16, 16\): expected \(1, 3, 16, 16\)"):
        # Straight, because the tests' shape checks stand before the public names.
        reconstruction._check_pair(torch.zeros(1, 3, 16, 16), torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="4 x 16: expected at least 6"):
        ssim(torch.zeros(1, 3, 4, 16), torch.zeros(1, 3, 4, 16))
