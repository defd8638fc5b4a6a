"""Sizes and options of the diffusion generator."""

import math
from dataclasses import dataclass, field

from ifsq.generators.diffusion.objective import ObjectiveConfig
from ifsq.generators.sizes import BY_SIZE, Size, numbers_of
from ifsq.nn.attention import head_width

SIZES = {
    "S": Size(12, 384, 6),
    "B": Size(12, 768, 12),
    "L": Size(24, 1024, 16),
    "XL": Size(28, 1152, 16),
    "1p0B": Size(24, 1536, 24),
    "1p6B": Size(28, 1792, 28),
}
"""Of the official models."""
MLPS = ("swiglu", "gelu")
NORMS = ("rms", "layer")


@dataclass(frozen=True)
class DiTConfig(ObjectiveConfig):
    """Size and options of a `DiffusionGenerator`; the block's defaults are those of the paper's DiT.

    Beside those of `ObjectiveConfig`:

    depth                blocks of the transformer
    width                of the transformer
    heads                of its attention
    size                 an official one, ``S``, ``B``, ``L``, ``XL``, ``1p0B`` or ``1p6B``, in place of the three
                         numbers above, which may be left out and must not say otherwise; empty: by these numbers
    patch                codes on a side of a token; must divide the grid
    mlp_ratio            hidden width over width (SwiGLU takes two thirds of it, for the same parameter count)
    mlp                  ``swiglu`` or ``gelu``
    norm                 ``rms`` (with a scale) or ``layer`` (without)
    rope                 rotary positions in every attention, beside the fixed embedding
    qk_norm              RMS-normalise queries and keys
    adaln_shift          whether time and class also shift the normalised states of a block, or scale and gate alone
    label_dropout        share of training labels replaced by the null class
    guidance_channels    guide the first so many code channels only; None guides all, the official code has 3
    internal_depth       a second output layer behind the first so many blocks, below ``depth``, trained beside the last
                         one, from which ``sampling.internal_guidance`` leads away (arXiv 2512.24176); None: none
    internal_weight      of its loss
    multiplier           codes are multiplied by it alone; None: brought to mean 0 and standard deviation 1 of every
                         channel. The official files have 1.092421, of Stable Diffusion's latents 0.18215
    """

    depth: int = BY_SIZE
    width: int = BY_SIZE
    heads: int = BY_SIZE
    size: str = ""
    patch: int = field(kw_only=True)
    mlp_ratio: float = 4.0
    mlp: str = "swiglu"
    norm: str = "rms"
    rope: bool = True
    qk_norm: bool = True
    adaln_shift: bool = True
    label_dropout: float = 0.1
    guidance_channels: int | None = None
    multiplier: float | None = None
    internal_depth: int | None = None
    internal_weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in numbers_of(self, SIZES).items():
            object.__setattr__(self, name, value)
        head_width(self.width, self.heads)
        for name in ("patch", "guidance_channels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        for name, choices in (("mlp", MLPS), ("norm", NORMS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(choices)}")
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout={self.label_dropout}: expected a share of at least 0 and below 1")
        if not self.mlp_ratio > 0:
            raise ValueError(f"mlp_ratio={self.mlp_ratio}: expected a positive ratio")
        if self.internal_depth is not None and not 1 <= self.internal_depth < self.depth:
            raise ValueError(f"internal_depth={self.internal_depth}: expected 1 to {self.depth - 1}, below the depth")
        if not 0 < self.internal_weight < math.inf:
            raise ValueError(f"internal_weight={self.internal_weight}: expected a positive number")
        if (
            self.internal_depth is None
            and self.internal_weight != type(self).__dataclass_fields__["internal_weight"].default
        ):
            raise ValueError(f"internal_weight={self.internal_weight}: expected internal_depth beside it")
        if self.internal_depth is not None and self.averages:
            raise ValueError(f"internal_depth={self.internal_depth}: expected none beside objective = 'mean_flow'")
        if self.tells_guidance and (self.guidance_channels is not None or not self.label_dropout):
            raise ValueError(
                f"guidance_channels={self.guidance_channels}, label_dropout={self.label_dropout}: expected none and a"
                f" share above 0 beside trained_guidance={self.trained_guidance}: of all channels, by the null class"
            )
        if self.multiplier is not None and not 0 < self.multiplier < math.inf:
            raise ValueError(f"multiplier={self.multiplier}: expected a positive number")
