"""The bottleneck of a tokenizer by its kind: options, size, and what each kind asks of indices.

This is the only file outside of `ifsq.quantizers` that tells one kind of quantizer from another.
"""

from dataclasses import dataclass, fields, replace
from math import log2
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ifsq.quantizers import BSQ, FSQ, KL, LFQ, VQ, Identity, ResidualFSQ
from ifsq.quantizers.bottleneck import Bottleneck
from ifsq.tokenizer.checks import check_indices

# The class of each kind and its options; the others must keep their defaults, or an experiment says what is not done.
KINDS: dict[str, tuple[type[Bottleneck], tuple[str, ...]]] = {
    "fsq": (FSQ, ("levels", "bound", "alpha", "cells", "groups", "digit_order")),
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
ARGUMENTS = {"stages": "num_quantizers", "kl_weight": "weight"}  # options whose quantizer calls them otherwise


@dataclass(frozen=True)
class QuantizerConfig:
    """The bottleneck; see `ifsq.quantizers`.

    kind               ``fsq``, ``residual`` (FSQ in stages), ``vq``, ``lfq``, ``bsq``, ``kl`` (VAE), ``ae`` (nothing)
    levels             level count of every dimension (of a stage)
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
        try:
            with torch.device("meta"):  # the quantizer knows what it accepts; its size is no matter yet
                self.make()
        except (RuntimeError, TypeError, OverflowError) as error:  # a size that is no int64
            raise ValueError(f"kind={self.kind!r}: {str(error).partition(chr(10))[0]}") from error

    @property
    def scalar_levels(self) -> tuple[int, ...]:
        """Levels of ``fsq``, empty for every other kind."""
        return self.levels if self.kind == "fsq" else ()

    def make(self) -> Bottleneck:
        """The quantizer."""
        made: Any
        made, own = KINDS[self.kind]
        given = {ARGUMENTS.get(name, name): getattr(self, name) for name in own}
        if "groups" in given:
            given["groups"] = self.groups or None
        return made(**given, channel_first=True)


def in_force(config: QuantizerConfig, quantizer: Bottleneck) -> QuantizerConfig:
    """The options that build ``quantizer`` as it is now: calibration may have given it another bound and cells."""
    if not isinstance(quantizer, FSQ):
        return config
    return replace(config, bound=cast(Any, quantizer.bound.name), cells=cast(Any, quantizer.cells))


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
        "bits a position": f"{bits:.4g}",
        "tokens a position": str(tokens),
        **({"bits a token": f"{bits / tokens:.4g}, on average"} if tokens > 1 else {"bits a token": f"{bits:.4g}"}),
    }
