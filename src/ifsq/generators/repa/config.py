"""To what a generator is aligned, at which depth, how strongly and for how long."""

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

from ifsq.pretrained.teachers import TeacherConfig

SELF = "self"
"""The teacher that is the generator's own averaged weights."""
PROJECTORS = ("mlp", "conv")
TOKENS = ("predicted", "read")
DECAYS = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class AlignmentConfig:
    """Alignment of a generator's states to features of teachers, as one more term of its loss.

    teachers      of which the mean is taken, see `TeacherConfig`. The source ``self`` is the generator's own averaged
                  weights (SRA, arXiv 2505.02831), behind ``layer`` blocks, by default twice ``depth``, at most all
    depth         blocks behind which the state is taken: the paper's is 8 of 24
    weight        of the term beside the generator's own loss: the paper's is 2.0 of an autoregressive generator and 0.5
                  of a diffusion one; 0: nothing is aligned, as without this section
    projector     from states to features: ``mlp``, the official one of three layers; ``conv``, a 3x3 convolution over
                  the grid (iREPA, arXiv 2512.10794), whose neighbours behind an autoregressive state have read its
                  token
    hidden        width inside of ``mlp``, in the official code 2048; None: that of the states
    spatial_norm  share of their mean over the tokens that features lose before they are divided by their standard
                  deviation over the tokens (iREPA); None: features as they are
    token         of an autoregressive generator: a feature meets the state that predicts its token (``predicted``, as
                  in the official code), or the one that has just read it (``read``), which the last token has not. Of
                  a diffusion generator both are one, and ``predicted`` is expected
    stop          share of the training from which on nothing is aligned (HASTE, arXiv 2505.16792); 1: never
    decay         of the weight up to there: ``constant``, or ``linear`` or ``cosine`` to 0
    cleaner       ``self`` of a diffusion generator sees the same noise at a time nearer to the data by up to this, each
                  image at its own
    features      folders of features cached by ``ifsq features``, one for each teacher but ``self``; empty: beside the
                  codes, where that puts them. Of images that are encoded in training (``data.online``) none: the
                  teachers look at these
    """

    teachers: tuple[TeacherConfig, ...]
    depth: int
    weight: float
    projector: str = "mlp"
    hidden: int | None = None
    spatial_norm: float | None = None
    token: str = "predicted"
    stop: float = 1.0
    decay: str = "constant"
    cleaner: float = 0.2
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.teachers or len(set(self.teachers)) < len(self.teachers):
            raise ValueError(f"teachers={[one.source for one in self.teachers]}: expected at least one, each once")
        for name, choices in (("projector", PROJECTORS), ("token", TOKENS), ("decay", DECAYS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(choices)}")
        for name in ("depth", "hidden"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight={self.weight}: expected a number of at least 0")
        for name in ("spatial_norm", "stop", "cleaner"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: expected a share, 0 to 1")
        if self.projector == "conv" and self.token == "read":
            raise ValueError("projector='conv' of token='read': expected 'predicted', whose states fill the grid")
        if sum(one.source == SELF for one in self.teachers) > 1:
            raise ValueError(f"teachers: {SELF!r} stands twice; expected it once")
        if self.own is not None and self.own != TeacherConfig(SELF, self.own.layer):
            raise ValueError(f"teachers: {SELF!r} looks at no images; expected no option but layer")
        if "" in self.features:
            raise ValueError(f"features={list(self.features)}: expected names of folders")
        if self.features and len(self.features) != len(self.seeing):
            names = ", ".join(one.source for one in self.seeing) or "no teacher"
            raise ValueError(f"features={list(self.features)}: expected a folder for each of {names}")

    @property
    def seeing(self) -> tuple[TeacherConfig, ...]:
        """The teachers that look at images."""
        return tuple(one for one in self.teachers if one.source != SELF)

    @property
    def own(self) -> TeacherConfig | None:
        """The generator's own averaged weights as a teacher."""
        return next((one for one in self.teachers if one.source == SELF), None)

    @property
    def annealed(self) -> tuple[str, ...]:
        """What follows the share of the training that is behind, in words."""
        return () if self.stop == 1 and self.decay == "constant" else ("the weight of the alignment is",)

    def weight_at(self, progress: float) -> float:
        """Weight of the term with a share of the training behind, 0 to 1; 0 where nothing is aligned any more."""
        if progress >= self.stop and self.stop < 1:
            return 0.0
        left = max(0.0, 1 - progress / self.stop)
        shares = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}
        return self.weight * shares[self.decay]

    def aligned_steps(self, steps: int) -> int:
        """The first so many of the steps of a training are aligned, the others are not."""
        return bisect_left(range(steps), True, key=lambda step: not self.weight_at(step / steps))

    def check(self, generator: Any, noisy: bool, *, online: bool) -> None:
        """Raise ValueError unless a generator has the states that are aligned.

        generator  its config
        noisy      whether it reads codes with noise
        online     whether its images are encoded in training
        """
        blocks, orders = generator.depth, getattr(generator, "order", "raster") != "raster"
        for name, depth in (("depth", self.depth), (f"teachers: layer of {SELF!r}", self.own.layer if self.own else 0)):
            if depth > blocks:
                raise ValueError(f"alignment.{name}={depth}: expected 1 to {blocks}, the blocks of the network")
        if self.token != "predicted" and noisy:
            raise ValueError(f"alignment.token={self.token!r} of a generator that reads noise: expected 'predicted'")
        if self.projector == "conv" and orders:
            raise ValueError("alignment.projector='conv' of tokens in random orders: expected 'mlp'")
        if self.features and online:
            raise ValueError("alignment.features with data.online=true: expected none, teachers look at the images")

    def teaching_depth(self, blocks: int) -> int:
        """Blocks behind which ``self`` is looked at, in a network of so many."""
        return (self.own.layer if self.own else 0) or min(2 * self.depth, blocks)
