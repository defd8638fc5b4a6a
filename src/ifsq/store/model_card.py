"""The ``README.md`` of a saved model: what is known of it, in the hub's form, and nothing else.

Front matter in YAML, then facts, use, training and evaluation. Each kind of model gives its own facts and lines of use.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ifsq.config import InputError
from ifsq.store.run import EVALUATION, Run

MARKUP = re.compile(r"[\\`*\[\]<>]")
BACKTICKS = re.compile(r"`+")
LICENSE = "unknown"  # the hub's word; whose weights they are is not for a program to say


@dataclass(frozen=True)
class Provenance:
    """What is known of a model's making; every part may be missing.

    data        source of the images, as the experiment gives it
    steps       optimizer steps that the weights have seen
    evaluation  the table of an ``evaluation.json``, of these very steps
    license     identifier of the weights' licence on the hub
    notes       further sentences
    """

    data: str | None = None
    steps: int | None = None
    evaluation: Mapping[str, Any] | None = None
    license: str = LICENSE
    notes: tuple[str, ...] = ()


UNKNOWN = Provenance()


def provenance(run: Run, steps: int, license: str = LICENSE) -> Provenance:
    """What is known of a training run: its data, and its ``evaluation.json`` where that is of the same step.

    Raises InputError.
    """
    experiment, found = run.table(), run.evaluation()
    if found is not None and not _are_cards(found["cards"]):
        raise InputError(f"{run.folder / EVALUATION}: holds no cards; expected what eval wrote, evaluate again")
    current = found if found is not None and found.get("step") == steps else None
    data = experiment.get("data", {}).get("source") if isinstance(experiment.get("data"), dict) else None
    source = data or experiment.get("codes")
    init = run.config.get("init")
    notes = () if init is None else (_begun(init),)
    return Provenance(source if isinstance(source, str) else None, steps, current, license, notes)


def _begun(init: Mapping[str, Any]) -> str:
    """Where the weights came from that a run began with."""
    how = init.get("how", "Began with weights of")
    return f"{how} {code_span(str(init.get('source')))}, SHA-256 {code_span(str(init.get('digest')))}."


def code_span(text: str) -> str:
    """Somebody's name for something, in Markdown as it is: on one line, whatever it holds."""
    fence = "`" * (1 + max(map(len, BACKTICKS.findall(text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{_one_line(text)}{space}{fence}"


def model_card(title: str, tags: Sequence[str], facts: Mapping[str, str], use: Sequence[str], of: Provenance) -> str:
    """The whole text.

    facts  name -> value, one row each
    use    lines of Python
    """
    front = {"license": of.license, "library_name": "ifsq", "tags": ["ifsq", *tags]}
    lines = ["---"]
    for key, value in front.items():  # a JSON string is YAML too
        listed = [f"- {json.dumps(item)}" for item in value] if isinstance(value, list) else []
        lines += [f"{key}:", *listed] if listed else [f"{key}: {json.dumps(value)}"]
    lines += ["---", "", f"# {title}", "", *_table(("", ""), facts.items()), "", "## Use", ""]
    lines += ["```python", *use, "```", "", "## Training", "", _training(of), *of.notes]
    if of.evaluation is not None:
        lines += ["", "## Evaluation", "", *_evaluation(of.evaluation["cards"])]
    return "\n".join(lines) + "\n"


def _training(of: Provenance) -> str:
    known = [f"data {code_span(of.data)}"] if of.data is not None else []
    known += [f"{of.steps} steps"] if of.steps is not None else []
    return f"Known: {', '.join(known)}." if known else "Data and steps are not recorded in this folder."


def _evaluation(cards: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for card in cards:
        values = ", ".join(f"{name} {value:.4g}" for name, value in card["values"].items())
        # Zero and empty text mean that a field plays no part; the weights' hash stands above.
        unsaid = ("metric", "values", "tokenizer_hash", "generator_hash", *(() if card.get("sampler") else ("seed",)))
        rest = {key: value for key, value in card.items() if key not in unsaid and value not in ("", None, 0)}
        rows.append((card["metric"], values, ", ".join(f"{key} {value}" for key, value in rest.items())))
    return _table(("metric", "value", "protocol"), rows)


def _are_cards(cards: Sequence[Any]) -> bool:
    """Whether these are cards in what is shown of them: a metric, and numbers by name."""
    return all(
        isinstance(card, dict)
        and isinstance(card.get("metric"), str)
        and isinstance(card.get("values"), dict)
        and all(
            type(value) in (int, float) and not abs(value) > sys.float_info.max for value in card["values"].values()
        )
        for card in cards
    )


def _table(head: Sequence[str], rows: Any) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(_plain(str(cell)) for cell in row)} |" for row in cells]


def _plain(text: str) -> str:
    """Text of a cell on one line, in which nothing is Markdown or HTML."""
    return MARKUP.sub(r"\\\g<0>", _one_line(text).replace("|", "/"))


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
