"""A thing that was looked at."""

from dataclasses import asdict, dataclass
from typing import Literal

State = Literal["ok", "absent", "slow", "look", "broken"]
STATES: dict[State, str] = {
    "ok": "as it should be",
    "absent": "not here, and nobody needs it who does not use it",
    "slow": "works, and takes longer than it could",
    "look": "works, and may be what is odd",
    "broken": "ifsq does not work like this",
}


@dataclass(frozen=True)
class Finding:
    """One thing, in a line.

    part    what it belongs to: ``packages``, ``extras``, ``devices``, ``memory``, ``disk``, ``weights``, ``settings``
    name    of the thing
    state   see `STATES`
    found   what is there
    remedy  what a person can do; empty where there is nothing to do
    """

    part: str
    name: str
    state: State
    found: str
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        """Plain values, for JSON."""
        return asdict(self)
