"""How several quantizers would use their levels on the latents of one tokenizer."""

import torch
from jaxtyping import Float
from torch import Tensor

from ifsq.quantizers import FSQ
from ifsq.quantizers.usage import LevelUse
from ifsq.tokenizer.model import Tokenizer

COMPARED_QUANTIZERS = {
    "FSQ (tanh)": {"bound": "tanh", "cells": "paper"},
    "iFSQ": {"bound": "ifsq", "cells": "paper"},
    "iFSQ, equal cells": {"bound": "ifsq", "cells": "equal"},
}
"""Quantizers whose use of the levels is compared on the latents of one tokenizer."""


class LevelCounts:
    """Running counts of the levels of `COMPARED_QUANTIZERS`: of those that the tokenizer's level counts admit.

    Counts nothing where the tokenizer's bottleneck is not FSQ.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.levels = tokenizer.config.quantizer.scalar_levels
        self._counts = {
            name: [torch.zeros(L, dtype=torch.int64) for L in self.levels]
            for name, options in COMPARED_QUANTIZERS.items()
            if self.levels and self._admits(options)
        }

    def add(self, latents: Float[Tensor, "n d h w"]) -> None:
        """Count where each quantizer would put these latents."""
        for name, counts in self._counts.items():
            quantizer = FSQ(self.levels, channel_first=True, **COMPARED_QUANTIZERS[name])  # type: ignore[arg-type]
            digits = quantizer.to(latents.device)(latents).digits.flatten(0, -2).cpu()
            for k, count in enumerate(counts):
                count += torch.bincount(digits[:, k], minlength=len(count))

    def merge(self, other: "LevelCounts") -> None:
        """Count what ``other``, of the same tokenizer, has counted."""
        for name, counts in self._counts.items():
            for mine, theirs in zip(counts, other._counts[name], strict=True):
                mine += theirs

    def use(self) -> dict[str, LevelUse]:
        """Level use of each quantizer. At least one latent must have been counted."""
        return {name: LevelUse.of(counts) for name, counts in self._counts.items()}

    def _admits(self, options: dict[str, str]) -> bool:
        """The paper's cells under a symmetric bound need odd level counts."""
        return options["cells"] == "equal" or options["bound"] == "tanh" or all(L % 2 for L in self.levels)
