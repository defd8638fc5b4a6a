"""Whether the mean and standard deviation by which a diffusion generator normalises codes are of these codes.

They are stored with its weights, so that training and decoding cannot disagree; here they are held against what else is
known: the config, the layout or the codebook, and the codes that it is to be trained on. Codes that are far larger or
smaller than the noise of 1 are learned badly, and decoded from them everything is.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ifsq.codes import CodeSet, CodeSpec, LatentSpec
from ifsq.config import InputError

SCALED = (0.25, 4.0)
"""Root mean square that normalised codes may have beside noise of 1."""
ROUNDED = 1e-5  # of a multiplier, in parts of it


def moments_of(codes: CodeSet) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"]]:
    """Mean and variance of every channel, float64: as their cache states them, else by measure."""
    if not codes.statistics:
        return codes.moments()
    mean, std = (torch.tensor(codes.statistics[name], dtype=torch.float64) for name in ("mean", "std"))
    return mean, std.square()


def check_multiplier(multiplier: float, codes: CodeSet) -> None:
    """Raise InputError where it makes codes that are no match for noise: it is of another tokenizer."""
    size = _size(codes, torch.zeros(()), torch.ones(()))
    scaled, (low, high) = multiplier * size, SCALED
    if not low <= scaled <= high:
        raise InputError(
            f"diffusion.multiplier={multiplier}: scales codes of root mean square {size:.3g} to {scaled:.3g}; expected"
            f" {low:g} to {high:g}, as a multiplier of this tokenizer's codes gives, or none"
        )


def check_normalised(codes: CodeSet, mean: Float[Tensor, "d"], std: Float[Tensor, "d"]) -> None:
    """Raise ValueError where codes normalised by these are no match for noise: they are of another tokenizer."""
    scaled, (low, high) = _size(codes, mean, std), SCALED
    if not low <= scaled <= high:
        raise ValueError(
            f"code_mean {_shown(mean)} and code_std {_shown(std)} normalise these codes to a root mean square of"
            f" {scaled:.3g}; expected {low:g} to {high:g}, as those of this tokenizer's codes give"
        )


def check_stored(
    mean: Float[Tensor, "d"], std: Float[Tensor, "d"], multiplier: float | None,
    spec: CodeSpec | LatentSpec, codebook: Float[Tensor, "v d"] | None,
) -> None:  # fmt: skip
    """Raise ValueError unless a stored mean and standard deviation can be of the codes of this config and layout."""
    if not bool((std > 0).all()):
        raise ValueError(f"code_std {_shown(std)}: expected positive numbers")
    fresh = not bool(mean.any()) and bool((std == 1).all())
    if fresh:
        return
    if multiplier is not None and (bool(mean.any()) or bool(((std * multiplier - 1).abs() > ROUNDED).any())):
        raise ValueError(
            f"code_mean {_shown(mean)} and code_std {_shown(std)}: expected 0 and {1 / multiplier:.4g}, as the config's"
            f" multiplier={multiplier} gives"
        )
    if isinstance(spec, LatentSpec):
        return  # any number may be one
    most = spec.scale if codebook is None else float(codebook.abs().max())
    largest_std = max(most / SCALED[0], 1.0)  # 1: of a channel that never varies
    if bool((mean.abs() > most).any()) or bool((std > largest_std).any()):
        raise ValueError(
            f"code_mean {_shown(mean)} and code_std {_shown(std)}: expected up to {most:.4g} and {largest_std:.4g}, as"
            f" codes of -{most:.4g} to {most:.4g} give; these are of another tokenizer's"
        )


def _size(codes: CodeSet, mean: Tensor, std: Tensor) -> float:
    """Root mean square of the codes normalised by these."""
    own_mean, variance = moments_of(codes)
    shifted = (own_mean - mean.double().cpu()).square() + variance
    return float((shifted / std.double().cpu().square()).mean().sqrt())


def _shown(value: Tensor) -> str:
    return "[" + ", ".join(f"{number:.4g}" for number in value.tolist()[:4]) + ("]" if len(value) <= 4 else ", ...]")
