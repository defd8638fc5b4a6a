"""Figures as a person reads them: as many decimals in a row as its largest number needs, and which way is better."""

import math
from collections.abc import Mapping, Sequence

LARGEST = 1e60
"""Of figures, below which they are counted and drawn: squares of their variances are finite."""
LOWER, HIGHER = "lower is better", "higher is better"
ARROWS = {LOWER: "↓", HIGHER: "↑", "": ""}
_LOWER = (
    "rFD(",
    "FD(",
    "FID",
    "rFID",
    "sFID",
    "KD(",
    "KID",
    "LPIPS",
    "bits per image",
    "bits per token",
    "dead levels",
)
_HIGHER = (
    "PSNR", "SSIM", "MS-SSIM", "class agreement", "precision(", "recall(", "density(", "coverage(", "level entropy",
    "index use", "Inception Score", "IS(",
)  # fmt: skip
_OF_CODES = ("bits per image", "bits per token")
MAIN = ("mean", "distance", "share", "perplexity", "sum")
"""Values of a card that stand for it, the first that it has."""


def better(metric: str) -> str:
    """`LOWER`, `HIGHER`, or nothing where neither is."""
    if metric.startswith(_LOWER):
        return LOWER
    return HIGHER if metric.startswith(_HIGHER) else ""


def is_of_codes(metric: str) -> bool:
    """Whether figures compare behind the same codes alone: another tokenizer has other bits for the same image."""
    return metric.startswith(_OF_CODES)


def titled(metric: str) -> str:
    """The metric with an arrow to its better side."""
    return f"{metric} {ARROWS[better(metric)]}".rstrip()


def main_value(values: Mapping[str, float]) -> str:
    """Name of the value that stands for a card."""
    return next((name for name in MAIN if name in values), next(iter(values)))


def decimals_of(figures: Sequence[float]) -> int:
    """Decimals with which a row of figures is written: four digits of the largest, three of what is below one."""
    largest = max((abs(figure) for figure in figures if math.isfinite(figure)), default=0.0)
    if largest == 0:
        return 0 if all(figure == 0 for figure in figures) else 3
    magnitude = math.floor(math.log10(largest))
    return max(0, 3 - max(0, magnitude)) if magnitude >= -2 else min(9, 2 - magnitude)


def text_of(figure: float, decimals: int | None = None) -> str:
    """The figure with so many decimals, as many as it needs alone where none are said; very large ones as powers."""
    if abs(figure) >= 1e7 or not math.isfinite(figure):
        return f"{figure:.4g}"
    return f"{figure:.{decimals_of([figure]) if decimals is None else decimals}f}"


def interval_text(low: float, high: float, decimals: int | None = None) -> str:
    """``low to high``."""
    decimals = decimals_of([low, high]) if decimals is None else decimals
    return f"{text_of(low, decimals)} to {text_of(high, decimals)}"


def compute_text(flops: float) -> str:
    """Floating-point operations in words, as ``1.84e13 FLOP``."""
    return f"{flops:.3g} FLOP".replace("e+", "e")
