"""How several quantizers would use their levels on the latents of one tokenizer. Called by ``tokenizer``."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ifsq.metrics.codebook import entropy_bits
from ifsq.quantizers import FSQ
from ifsq.tokenizer.model import Tokenizer

COMPARED_QUANTIZERS = {
    "FSQ (tanh)": {"bound": "tanh", "cells": "paper"},
    "iFSQ": {"bound": "ifsq", "cells": "paper"},
    "iFSQ, equal cells": {"bound": "ifsq", "cells": "equal"},
}
"""Quantizers whose use of the levels is compared on the latents of one tokenizer."""


@dataclass(frozen=True)
class LevelUse:
    """How one quantizer would use its levels on given latents.

    share     part of all digits that falls on each level, over all dimensions
    fraction  entropy over log2 L, mean over the dimensions: 1 is even use
    """

    share: tuple[float, ...]
    fraction: float

    def __post_init__(self) -> None:
        if not self.share or not all(0 <= part <= 1 for part in self.share):
            raise ValueError("share: expected a part of 1 for each level")


class LevelCounts:
    """Running counts of the levels of `COMPARED_QUANTIZERS`: of those that the tokenizer's level counts admit.

    Of no quantizer where the tokenizer's bottleneck is not FSQ.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.levels = tokenizer.config.quantizer.levels
        self._counts = {
            name: [np.zeros(L, np.int64) for L in self.levels]
            for name, options in COMPARED_QUANTIZERS.items()
            if tokenizer.kind == "fsq" and self._admits(options)
        }

    def add(self, latents: Float[Tensor, "n d h w"]) -> None:
        """Count where each quantizer would put these latents."""
        for name, counts in self._counts.items():
            quantizer = FSQ(self.levels, channel_first=True, **COMPARED_QUANTIZERS[name])  # type: ignore[arg-type]
            digits = quantizer.to(latents.device)(latents).digits.flatten(0, -2).cpu().numpy()
            for k, count in enumerate(counts):
                count += np.bincount(digits[:, k], minlength=len(count))

    def merge(self, other: "LevelCounts") -> None:
        """Count what ``other``, of the same tokenizer, has counted."""
        for name, counts in self._counts.items():
            for mine, theirs in zip(counts, other._counts[name], strict=True):
                mine += theirs

    def use(self) -> dict[str, LevelUse]:
        """Level use of each quantizer. At least one latent must have been counted."""
        return {name: self._use(counts) for name, counts in self._counts.items()}

    def _use(self, counts: list[np.ndarray]) -> LevelUse:
        fractions = [entropy_bits(c) / np.log2(L) for c, L in zip(counts, self.levels, strict=True)]
        longest = max(self.levels)
        total = np.stack([np.pad(c, (0, longest - len(c))) for c in counts]).sum(axis=0)
        return LevelUse(tuple((total / total.sum()).tolist()), float(np.mean(fractions)))

    def _admits(self, options: dict[str, str]) -> bool:
        """The paper's cells under a symmetric bound need odd level counts."""
        return options["cells"] == "equal" or options["bound"] == "tanh" or all(L % 2 for L in self.levels)
