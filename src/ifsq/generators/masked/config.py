"""Sizes and options of the masked generator."""

from dataclasses import dataclass

from ifsq.generators.masked.schedule import check_schedule
from ifsq.generators.trunk.config import TrunkConfig

MASKS = ("digit", "position")


@dataclass(frozen=True)
class MaskedConfig(TrunkConfig):
    """Size and options of a `MaskedGenerator`.

    Beside what every `TrunkConfig` has:

    mask      what is hidden and revealed as one: a ``digit`` by itself, which then sees those of its own position that
              are known, or a ``position`` with all its digits, which are drawn independently of each other
    schedule  how many are hidden in training, see `ifsq.generators.masked.schedule`: ``linear``, each number as often,
              or ``cosine``, more often many. The loss is the same bound, with another spread
    """

    mask: str = "digit"
    schedule: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask not in MASKS:
            raise ValueError(f"mask={self.mask!r}: expected one of {', '.join(MASKS)}")
        check_schedule(self.schedule)
