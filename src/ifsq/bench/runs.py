"""The runs that a report speaks of: what was logged of their training, and what was measured of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ifsq.config import InputError
from ifsq.evaluation.record import Evaluation, read_evaluation, read_evaluations
from ifsq.evaluation.sheets import SHEET_CLASSES
from ifsq.generators import Generator
from ifsq.metrics.card import compare
from ifsq.store.run import EVALUATION, Run
from ifsq.training.config import TrainConfig
from ifsq.training.log import read_metrics

MOST = 2.0**63  # steps and figures that matplotlib can draw
OWN = ("guidance", "sampler", "function_evaluations", "dtype")
"""Fields of a card in which the generators of a page may differ: how each is sampled."""
TITLES = {"tokenizer": "tokenizer", **{kind: cls.title for kind, cls in Generator.kinds.items()}}


@dataclass(frozen=True)
class Reported:
    """A run that the page speaks of: what was logged of its training and what was measured.

    evaluations  of its steps, where they were measured one by one
    """

    run: Run
    metrics: list[dict[str, Any]]
    evaluation: Evaluation
    evaluations: dict[int, Evaluation] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the run lies."""
        return self.run.folder

    @property
    def kind(self) -> str:
        """``tokenizer`` or a kind of generator."""
        return self.run.kind

    @property
    def name(self) -> str:
        """What the page calls it."""
        return TITLES[self.kind]

    def figure(self, metric: str, value: str) -> float | None:
        """One measured number, or None where it was not measured."""
        for card in self.evaluation.cards:
            if card.metric == metric:
                return card.values.get(value)
        return None

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of the classes on the sheets of a generator; an older evaluation shows its first ones."""
        return self.evaluation.shown or self.evaluation.classes[:SHEET_CLASSES]

    def logged(self, name: str) -> list[tuple[int, float]]:
        """A figure of ``metrics.jsonl`` with its steps, where it was a number that can be drawn."""
        known = [(row["step"], row[name]) for row in self.metrics if row.get(name) is not None]
        return [(step, float(value)) for step, value in known if abs(value) < MOST and abs(step) < MOST]

    @property
    def batch(self) -> int:
        """Examples of a step. Raises InputError."""
        return self.run.experiment(TrainConfig, "train").batch

    def trained(self) -> str:
        """Steps and minutes of its training."""
        step, seconds = max(self.logged("seconds"))
        return f"{step} steps, {seconds / 60:.1f} min"


def read_run(run: Run) -> Reported:
    """What a run's folder says of it. Raises InputError where it is not evaluated, or was trained on since."""
    folder = run.folder
    if run.kind not in TITLES:
        raise InputError(f"{folder}: is a {run.kind}; expected a tokenizer or generator run")
    metrics = read_metrics(folder / "metrics.jsonl")
    evaluation = read_evaluation(run)
    if evaluation is None:
        verb = "tokenizer" if run.kind == "tokenizer" else "generator"
        raise InputError(f"{folder}: is not evaluated yet; run ifsq {verb} eval {folder}")
    reported = Reported(run, metrics, evaluation, read_evaluations(run))
    if not reported.logged("seconds"):
        raise InputError(f"{folder}: has logged no step yet; train it first")
    if run.step is None or run.step != evaluation.step:
        raise InputError(f"{folder}: was trained on since it was evaluated; evaluate it again")
    if run.kind != "tokenizer" and not evaluation.classes:
        raise InputError(f"{folder / EVALUATION}: names no classes; evaluate the run again")
    return reported


def refuse_unlike(runs: Sequence[Reported]) -> None:
    """Raise InputError unless figures that stand beside each other were taken in the same way.

    How a generator samples is its own. A tokenizer is the one behind the generators.
    """
    measured = {run.folder: {card.metric: card for card in run.evaluation.cards} for run in runs}
    first, *others = [run.folder for run in runs if run.kind != "tokenizer"] or [Path()]
    for other in others:
        for metric in [metric for metric in measured[first] if metric in measured[other]]:
            try:
                compare(
                    measured[first][metric],
                    measured[other][metric],
                    allow=OWN,
                )
            except ValueError as error:
                raise InputError(f"{first} and {other}: {metric}: {error}; evaluate both again") from error
    hashes = {run.folder: {card.tokenizer_hash for card in run.evaluation.cards} for run in runs}
    for tokenizer in [run.folder for run in runs if run.kind == "tokenizer"]:
        if unlike := [folder for folder, found in hashes.items() if found != hashes[tokenizer]]:
            raise InputError(f"{unlike[0]}: was evaluated with another tokenizer than {tokenizer}; expected its own")
