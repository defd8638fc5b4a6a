"""Measures of reconstructions, codes and samples, each with the card of how it was taken. One path for every model."""

from ifsq.metrics.card import ProtocolCard, compare
from ifsq.metrics.codebook import CodeStatistics, IndexUse, code_statistics
from ifsq.metrics.distribution import (
    FeatureStatistics,
    fd_name,
    frechet_distance,
    frechet_from_statistics,
    kernel_distance,
)
from ifsq.metrics.judge import JudgeNet
from ifsq.metrics.reconstruction import Reconstruction, ReconstructionScores, psnr, ssim

__all__ = [
    "CodeStatistics",
    "FeatureStatistics",
    "IndexUse",
    "JudgeNet",
    "ProtocolCard",
    "Reconstruction",
    "ReconstructionScores",
    "code_statistics",
    "compare",
    "fd_name",
    "frechet_distance",
    "frechet_from_statistics",
    "kernel_distance",
    "psnr",
    "ssim",
]
