"""The ``README.md`` of a saved model: what is known of it, in the hub's form, and nothing else.

Front matter in YAML, then facts, use, training and evaluation. Each kind of model gives its own facts and lines of use.
Called by ``folder`` and the models' ``save_pretrained``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifsq.config import InputError, read_json

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


def provenance(run: Path, experiment: Mapping[str, Any], steps: int, license: str = LICENSE) -> Provenance:
    """Of a training run: its data, and its ``evaluation.json`` where that is of the same step. Raises InputError."""
    file = run / "evaluation.json"
    found = read_json(file) if file.is_file() else None
    if found is not None and (not isinstance(found, dict) or not isinstance(found.get("cards"), list)):
        raise InputError(f"{file}: holds no cards; expected what eval wrote, evaluate again")
    current = found if found is not None and found.get("step") == steps else None
    data = experiment.get("data", {}).get("source") if isinstance(experiment.get("data"), dict) else None
    return Provenance(data or experiment.get("codes"), steps, current, license)


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
    known = [f"data `{of.data}`"] if of.data is not None else []
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


def _table(head: Sequence[str], rows: Any) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(str(cell).replace('|', '/').replace(chr(10), ' ') for cell in row)} |" for row in cells]
