"""``ifsq doctor``."""

import argparse
import json
from typing import Any

from ifsq.cli.parser import verb
from ifsq.cli.terminal import say

MARKS = {"ok": "", "absent": "not here, ", "slow": "SLOW, ", "look": "LOOK, ", "broken": "BROKEN, "}


def add_doctor(verbs: Any) -> None:
    """``doctor``."""
    doctor = verb(
        verbs,
        "doctor",
        "say what is installed, what the machine has, and what is slow or broken here",
        _doctor,
        alone=True,
        device=False,
    )
    doctor.add_argument("--json", action="store_true", help="one line of JSON in place of text")


def _doctor(options: argparse.Namespace) -> None:
    from ifsq.config import InputError
    from ifsq.doctor import examine

    found = examine()
    broken = [one for one in found if one.state == "broken"]
    if options.json:
        say(json.dumps({"broken": len(broken), "found": [one.to_dict() for one in found]}))
    else:
        _tell(found)
    if broken:
        raise InputError("; ".join(f"{one.name}: {one.found}; {one.remedy}" for one in broken))


def _tell(found: Any) -> None:
    """A line a thing, and those worth a look again at the end."""
    part = ""
    for one in found:
        if one.part != part:
            part = one.part
            say(part)
        say(f"{one.name}: {MARKS[one.state]}{one.found}{_remedy(one)}", indent=2)
    odd = [one for one in found if one.state in ("slow", "look", "broken")]
    say(f"to look at: {', '.join(f'{one.name} ({one.state})' for one in odd)}" if odd else "nothing to look at")


def _remedy(one: Any) -> str:
    return f" -> {one.remedy}" if one.remedy else ""
