"""The bottleneck of a tokenizer by its kind: options, size, and what each kind asks of indices.

This is the only file outside of `ifsq.quantizers` that tells one kind of quantizer from another.
"""

from dataclasses import dataclass, fields, replace
from math import log2
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ifsq.calibration.calibrate import calibrate
from ifsq.calibration.measure import can_fit
from ifsq.calibration.report import Calibration
from ifsq.config import InputError
from ifsq.data.draws import Draws
from ifsq.quantizers import BSQ, FSQ, KL, LFQ, VQ, Identity, ResidualFSQ
from ifsq.quantizers.bottleneck import Bottleneck
from ifsq.quantizers.rounding import Rounding
from ifsq.tokenizer.checks import check_indices

# The class of each kind and its options; the others must keep their defaults, or an experiment says what is not done.
KINDS: dict[str, tuple[type[Bottleneck], tuple[str, ...]]] = {
    "fsq": (FSQ, ("levels", "nested_levels", "bound", "alpha", "cells", "groups", "digit_order")),
    "residual": (ResidualFSQ, ("levels", "stages", "bound", "alpha", "cells", "digit_order")),
    "vq": (
        VQ,
        ("dim", "codebook_size", "commitment_weight", "codebook_weight", "normalize", "ema", "revive_after"),
    ),
    "lfq": (LFQ, ("dim", "commitment_weight", "entropy_weight", "groups")),
    "bsq": (BSQ, ("dim", "commitment_weight", "entropy_weight", "groups")),
    "kl": (KL, ("dim", "kl_weight")),
    "ae": (Identity, ("dim",)),
}
WITHIN = 0.5
"""Standard deviation of latents before the bound ``clamp``, which keeps -1 to 1."""
LOGVAR = -4.0
"""Log variance that a variational bottleneck begins with, where its means have variance 1."""
STREAM = 0x6E6573746564
"""Of the draws of `NestedLevels`: the order of the images follows from the same seed."""
ARGUMENTS = {"stages": "num_quantizers", "kl_weight": "weight"}  # options whose quantizer calls them otherwise


@dataclass(frozen=True)
class QuantizerConfig:
    """The bottleneck; see `ifsq.quantizers`.

    kind               ``fsq``, ``residual`` (FSQ in stages), ``vq``, ``lfq``, ``bsq``, ``kl`` (VAE), ``ae`` (nothing)
    levels             level count of every dimension (of a stage)
    nested_levels      of ``fsq``: level counts of which training draws one for each step, the same in every dimension.
                       ``levels`` are of these, and what the tokenizer is validated and loaded with. Empty: ``levels``
    bound              ``ifsq``, ``tanh``, ``gaussian``, ``clamp``, ``standardized``, ``quantile`` or ``learned``
    alpha              slope of the ``ifsq`` bound, and of what the last three start from
    cells              ``paper``, ``symmetric`` or ``equal``; residual: ``equal``
    groups             sizes of the index groups; empty for one group
    digit_order        ``little`` or ``big``
    stages             of residual FSQ
    dim                code dimensions of the other kinds
    codebook_size      codes of ``vq``
    commitment_weight  of the term that pulls the encoder to the codes
    codebook_weight    of the term that pulls the codes to the encoder
    normalize          whether codes and latents of ``vq`` lie on the unit sphere
    ema                whether the codebook follows moving averages
    revive_after       training batches after which an unused code is replaced; 0: never
    entropy_weight     of the entropy loss of ``lfq`` and ``bsq``
    kl_weight          of the divergence from N(0, 1), a sum over the latent of an image
    """

    kind: Literal["fsq", "residual", "vq", "lfq", "bsq", "kl", "ae"] = "fsq"
    levels: tuple[int, ...] = (17, 17, 17, 17)
    nested_levels: tuple[int, ...] = ()
    bound: Literal["ifsq", "tanh", "gaussian", "clamp", "standardized", "quantile", "learned"] = "ifsq"
    alpha: float = 1.6
    cells: Literal["paper", "symmetric", "equal"] = "paper"
    groups: tuple[int, ...] = ()
    digit_order: Literal["little", "big"] = "little"
    stages: int = 2
    dim: int = 4
    codebook_size: int = 16384
    commitment_weight: float = 0.25
    codebook_weight: float = 1.0
    normalize: bool = False
    ema: bool = False
    revive_after: int = 0
    entropy_weight: float = 0.1
    kl_weight: float = 1e-6

    def __post_init__(self) -> None:
        _, own = KINDS[self.kind]
        for option in fields(self):
            if option.name not in ("kind", *own) and getattr(self, option.name) != option.default:
                raise ValueError(
                    f"{option.name}={getattr(self, option.name)!r} with kind={self.kind!r}: expected options of this"
                    f" kind, {', '.join(own)}"
                )
        if self.nested_levels:
            self._check_nested()
        try:
            with torch.device("meta"):  # the quantizer knows what it accepts; its size is no matter yet
                for levels in {self.levels, *((L,) * len(self.levels) for L in self.nested_levels)}:
                    self._make(levels)
        except (RuntimeError, TypeError, OverflowError) as error:  # a size that is no int64
            raise ValueError(f"kind={self.kind!r}: {str(error).partition(chr(10))[0]}") from error

    @property
    def scalar_levels(self) -> tuple[int, ...]:
        """Levels of ``fsq``, empty for every other kind."""
        return self.levels if self.kind == "fsq" else ()

    def make(self) -> Bottleneck:
        """The quantizer."""
        return self._make(self.levels)

    def at(self, levels: int) -> "QuantizerConfig":
        """The same bottleneck at another of its level counts. Raises InputError where it is not trained at this one."""
        everywhere = (levels,) * len(self.levels)
        if levels not in self.nested_levels and everywhere != self.scalar_levels:
            trained = ", ".join(map(str, self.nested_levels)) or " x ".join(map(str, self.scalar_levels))
            raise InputError(f"levels {levels}: expected what the tokenizer was trained at, {trained or self.kind}")
        return replace(self, levels=everywhere)

    def _make(self, levels: tuple[int, ...]) -> Bottleneck:
        made: Any
        made, own = KINDS[self.kind]
        given = {ARGUMENTS.get(name, name): getattr(self, name) for name in own if name != "nested_levels"}
        if "groups" in given:
            given["groups"] = self.groups or None
        if "levels" in given:
            given["levels"] = levels
        return made(**given, channel_first=True)

    def _check_nested(self) -> None:
        """Raise ValueError unless level counts are given once, in order, and ``levels`` are one of them everywhere."""
        nested = list(self.nested_levels)
        if nested != sorted(set(nested)):
            raise ValueError(f"nested_levels={nested}: expected level counts from the least to the most, each once")
        if len(set(self.levels)) != 1 or self.levels[0] not in nested:
            raise ValueError(
                f"levels={list(self.levels)} with nested_levels={nested}: expected one of these in every dimension"
            )


def in_force(config: QuantizerConfig, quantizer: Bottleneck) -> QuantizerConfig:
    """The options that build ``quantizer`` as it is now: calibration may have given it another bound and cells."""
    if not isinstance(quantizer, FSQ):
        return config
    return replace(config, bound=cast(Any, quantizer.bound.name), cells=cast(Any, quantizer.cells))


def round_to(quantizer: Bottleneck, config: QuantizerConfig) -> None:
    """Give a quantizer the levels of a config that is otherwise its own."""
    if isinstance(quantizer, FSQ) and quantizer.levels != config.levels:
        quantizer.round_by(quantizer.rounding_to(config.levels))


class NestedLevels:
    """Draws one of the ``nested_levels`` for every step of a training: uniformly, by its seed and the step alone.

    All parts of a step, in all processes, and a run that goes on draw the same.
    """

    def __init__(self, config: QuantizerConfig, quantizer: Bottleneck, seed: int) -> None:
        assert isinstance(quantizer, FSQ)  # the config has checked that
        dim = len(config.levels)
        self.seed = seed
        # Made once: each keeps its tables on the accelerator.
        self._roundings = [quantizer.rounding_to((levels,) * dim) for levels in config.nested_levels]

    def draw(self, step: int) -> int:
        """The level count of a step."""
        return self._drawn(step).levels[0]

    def use(self, quantizer: Bottleneck, step: int) -> None:
        """Let the quantizer round to the levels of a step."""
        assert isinstance(quantizer, FSQ)
        quantizer.round_by(self._drawn(step))

    def _drawn(self, step: int) -> Rounding:
        return self._roundings[Draws(self.seed, step, STREAM).below(len(self._roundings))]


def expected_deviation(quantizer: Bottleneck) -> float | None:
    """Standard deviation of the latents, around 0, that the quantizer divides best; None where any will do."""
    if isinstance(quantizer, Identity):
        return None
    bound = quantizer.bound if isinstance(quantizer, FSQ | ResidualFSQ) else None
    return WITHIN if bound is not None and bound.name == "clamp" else 1.0


def widened(quantizer: Bottleneck, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A map to ``dim`` channels, weight (dim, z) and bias (dim) -> the map to the latent that the quantizer takes.

    The further channels of ``kl`` are log variances, small and the same everywhere.
    """
    if quantizer.width == quantizer.dim:
        return weight, bias
    return torch.cat([weight, torch.zeros_like(weight)]), torch.cat([bias, torch.full_like(bias, LOGVAR)])


def fit_quantizer(quantizer: Bottleneck, latents: Tensor) -> float | None:
    """Fit a bound that can be fitted, or a codebook, to latents (n, width, 1, 1).

    Returns the bits that a position of ``fsq`` carries by the entropy of its levels. Raises InputError.
    """
    if isinstance(quantizer, FSQ):
        try:
            report = calibrate(quantizer, latents, bound=None)
        except ValueError as error:
            raise InputError(f"calibration: {error}") from error
        assert isinstance(report, Calibration)
        return report.after.bits
    if isinstance(quantizer, ResidualFSQ) and can_fit(quantizer.bound):
        quantizer.bound.fit(latents.flatten(1))
    if isinstance(quantizer, VQ):
        draws = torch.Generator().manual_seed(0)
        rows = latents.flatten(1)[torch.randint(len(latents), (quantizer.codebook_size,), generator=draws)]
        with torch.no_grad():
            quantizer.embedding.weight.copy_(F.normalize(rows, dim=-1) if quantizer.normalize else rows)
    return None


def taken_indices(quantizer: Bottleneck, indices: Tensor) -> Tensor:
    """Indices (b, h, w), or (b, h, w, n) with several or with the axis of one kept -> what ``quantizer`` takes.

    Raises ValueError for what are no indices of it.
    """
    if isinstance(quantizer, ResidualFSQ):  # whose first stages alone are a coarser image
        check_indices(indices, range(1, quantizer.num_quantizers + 1))
        return indices
    groups = len(quantizer.groups or (1,))
    check_indices(indices, range(groups, groups + 1))
    return indices.squeeze(-1) if indices.ndim == 4 and groups == 1 else indices


def rate_of(quantizer: QuantizerConfig) -> dict[str, str]:
    """Levels or codebook, and bits, in words."""
    if quantizer.kind in ("kl", "ae"):
        return {"codes": "continuous"}
    if quantizer.kind == "vq":
        return {"codebook": str(quantizer.codebook_size), "bits a position": f"{log2(quantizer.codebook_size):.4g}"}
    levels = (2,) * quantizer.dim if quantizer.kind in ("lfq", "bsq") else quantizer.levels
    stages = quantizer.stages if quantizer.kind == "residual" else 1
    tokens = stages if quantizer.kind == "residual" else len(quantizer.groups) or 1
    bits = stages * sum(map(log2, levels))
    return {
        "levels": " x ".join(map(str, levels)) + (f", {stages} stages" if stages > 1 else ""),
        **({"trained at levels": ", ".join(map(str, quantizer.nested_levels))} if quantizer.nested_levels else {}),
        "bits a position": f"{bits:.4g}",
        "tokens a position": str(tokens),
        **({"bits a token": f"{bits / tokens:.4g}, on average"} if tokens > 1 else {"bits a token": f"{bits:.4g}"}),
    }
