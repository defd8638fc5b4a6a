"""Measures of reconstructions, codes and samples, each with the card of how it was taken. One path for every model."""

from ifsq.metrics.card import ProtocolCard, compare
from ifsq.metrics.codebook import CodeCounts, CodeStatistics, IndexUse, code_statistics
from ifsq.metrics.distribution import (
    FeatureStatistics,
    Moments,
    fd_name,
    frechet_distance,
    frechet_from_statistics,
)
from ifsq.metrics.reconstruction import ImageScores, ms_ssim, psnr, ssim

__all__ = [
    "CodeCounts",
    "CodeStatistics",
    "FeatureStatistics",
    "ImageScores",
    "IndexUse",
    "Moments",
    "ProtocolCard",
    "code_statistics",
    "compare",
    "fd_name",
    "frechet_distance",
    "frechet_from_statistics",
    "ms_ssim",
    "psnr",
    "ssim",
]
