"""Sizes and options of the autoregressive generator."""

from dataclasses import dataclass, field

from ifsq.generators.ar.order import check_orders
from ifsq.generators.sizes import check_blocks
from ifsq.generators.trunk.config import TrunkConfig

HEADS = ("chain", "transformer", "masked")


@dataclass(frozen=True)
class HeadConfig:
    """How a token of several groups is predicted; one of a single group has one softmax, and ``masked`` is refused.

    kind   ``chain``: a small MLP a group; ``transformer``: the official factorized head; ``masked``: one MLP that
           predicts the groups that are masked from those that are known
    depth  residual layers of each MLP, blocks of the transformer
    width  of the MLPs; None is the trunk's
    steps  of ``masked``: evaluations that draw a token; None: one a group
    """

    kind: str = "chain"
    depth: int = 2
    width: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in HEADS:
            raise ValueError(f"kind={self.kind!r}: expected one of {', '.join(HEADS)}")
        check_blocks(self.depth)
        for name in ("width", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        if self.steps is not None and self.kind != "masked":
            raise ValueError(f"steps={self.steps}: the {self.kind} head has none; expected kind = 'masked'")


@dataclass(frozen=True)
class ARConfig(TrunkConfig):
    """Size and options of an `ARGenerator`; the defaults are the official ones but for dropout, rope_class and head.

    Beside what every `TrunkConfig` has:

    head               how a token of several groups is predicted
    order              of the tokens in training: ``raster``, or ``random`` annealed to it (arXiv 2411.00776), with
                       embeddings that tell each token which comes next. Sampling and likelihood are always in raster
    order_start        share of the training up to which every image has a random order of its own
    order_end          share from which on none has; in between their number falls linearly
    """

    head: HeadConfig = field(default_factory=HeadConfig)
    order: str = "raster"
    order_start: float = 0.5
    order_end: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        check_orders(self.order, self.order_start, self.order_end)
