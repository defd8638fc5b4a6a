"""Sizes and options of the autoregressive generator."""

import math
from dataclasses import dataclass, field

from ifsq.nn.attention import head_width
from ifsq.nn.embed import PREFIXES

HEADS = ("chain", "transformer")


@dataclass(frozen=True)
class HeadConfig:
    """How a token of several groups is predicted; a token of one group has one softmax, whatever stands here.

    kind   ``chain``: a small MLP a group; ``transformer``: the official factorized head
    depth  residual layers of each MLP, blocks of the transformer
    width  of the MLPs; None is the trunk's
    """

    kind: str = "chain"
    depth: int = 2
    width: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in HEADS:
            raise ValueError(f"kind={self.kind!r}: expected one of {', '.join(HEADS)}")
        for name in ("depth", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")


@dataclass(frozen=True)
class ARConfig:
    """Size and options of an `ARGenerator`; the defaults are the official ones but for dropout, rope_class and head.

    depth              blocks of the trunk
    width              of the trunk
    heads              of the trunk's attention
    mlp_multiple_of    the SwiGLU width is int(8/3 width), rounded up to a multiple of this
    dropout            on embeddings and on what each layer adds
    label_dropout      share of training labels replaced by the null class
    rope_base          base of the rotary angles
    rope_class         what the rotary table does to the class token: ``identity``, or ``zero`` as the official code
    initializer_range  standard deviation of the initial weights
    head               how a token of several groups is predicted
    """

    depth: int
    width: int
    heads: int
    mlp_multiple_of: int = 256
    dropout: float = 0.0
    label_dropout: float = 0.1
    rope_base: float = 10000.0
    rope_class: str = "identity"
    initializer_range: float = 0.02
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        head_width(self.width, self.heads)
        for name in ("depth", "mlp_multiple_of"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.initializer_range < 0:
            raise ValueError(f"initializer_range={self.initializer_range}: expected at least 0")
        for name in ("dropout", "label_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected a share of at least 0 and below 1")
        if self.rope_class not in PREFIXES:
            raise ValueError(f"rope_class={self.rope_class!r}: expected one of {', '.join(PREFIXES)}")

    @property
    def mlp_width(self) -> int:
        """Hidden width of the SwiGLU layers."""
        return math.ceil(int(8 * self.width / 3) / self.mlp_multiple_of) * self.mlp_multiple_of
