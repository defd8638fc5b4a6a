"""Which teacher, and what of it: the options of an experiment file."""

from dataclasses import dataclass

LARGEST_SIDE = 4096
"""Pixels a side, above any use of it."""
POSITIONS = ("repa", "published")


@dataclass(frozen=True)
class TeacherConfig:
    """A teacher, opened by `ifsq.pretrained.teachers.open_teacher`.

    source     a folder or a repository ``owner/name`` of the hub in the form of transformers, a short name of one as
               ``dinov2-vit-b``, the folder of a teacher that was trained here, or a registered name as
               ``efficientnet-lite0``
    layer      1 is the first block or stage; 0: the one that a teacher gives by itself, of a transformer the last
               after its norm
    side       pixels that the shorter side of an image is resized to; the longer one follows the token grid. 0: so
               many that the teacher has one patch a token, as in REPA
    positions  how a learned table of positions is resampled for a grid other than its own. ``repa``: bicubic,
               antialiased, as REPA and iFSQ do; ``published``: as the network's own code does, for DINOv2 without
               registers bicubic with a stretch of 0.1 patches
    """

    source: str = ""
    layer: int = 0
    side: int = 0
    positions: str = "repa"

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("source='': expected a folder, a repository owner/name, or the name of a teacher")
        if self.layer < 0:
            raise ValueError(f"layer={self.layer}: expected 1 for the first, or 0 for the teacher's own choice")
        if self.side and not 16 <= self.side <= LARGEST_SIDE:
            raise ValueError(f"side={self.side}: expected 16 to {LARGEST_SIDE} pixels, or 0 for one patch a token")
        if self.positions not in POSITIONS:
            raise ValueError(f"positions={self.positions!r}: expected one of {', '.join(POSITIONS)}")
