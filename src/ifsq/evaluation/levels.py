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

    share: list[float]
    fraction: float


def level_use(
    latents: Float[Tensor, "n d h w"], tokenizer: Tokenizer
) -> tuple[dict[str, LevelUse], list[float], list[float]]:
    """Level use of the compared quantizers, where the level counts admit them, and the latents' statistics."""
    levels = tokenizer.config.quantizer.levels
    used = {}
    compared = COMPARED_QUANTIZERS if tokenizer.kind == "fsq" else {}
    for name, options in compared.items():
        if options["cells"] == "paper" and options["bound"] != "tanh" and any(L % 2 == 0 for L in levels):
            continue
        digits = FSQ(levels, channel_first=True, **options)(latents).digits.flatten(0, -2)  # type: ignore[arg-type]
        counts = [np.bincount(digits[:, k].numpy(), minlength=L) for k, L in enumerate(levels)]
        fractions = [entropy_bits(c) / np.log2(L) for c, L in zip(counts, levels, strict=True)]
        longest = max(levels)
        total = np.stack([np.pad(c, (0, longest - len(c))) for c in counts]).sum(axis=0)
        used[name] = LevelUse((total / total.sum()).tolist(), float(np.mean(fractions)))
    return used, latents.mean(dim=(0, 2, 3)).tolist(), latents.std(dim=(0, 2, 3)).tolist()
