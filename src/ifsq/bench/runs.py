"""The runs that a report speaks of: what was logged of their training, and what was measured of them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ifsq.bench.figures import LARGEST
from ifsq.config import InputError
from ifsq.evaluation.record import Evaluation, read_evaluation, read_evaluations
from ifsq.evaluation.sheets import SHEET_CLASSES
from ifsq.generators import Generator
from ifsq.metrics.card import ProtocolCard, compare
from ifsq.store.run import EVALUATION, Run
from ifsq.training.config import TrainConfig
from ifsq.training.log import read_metrics

MOST = 2.0**63  # steps and images that are taken for such
OWN = ("guidance", "sampler", "function_evaluations", "dtype")
"""Fields of a card in which the generators of a page may differ: how each is sampled."""
MOST_DIFFERENCES = 4  # of a run from others of its kind, that the page tells
TITLES = {"tokenizer": "tokenizer", **{kind: cls.title for kind, cls in Generator.kinds.items()}}


@dataclass(frozen=True)
class Reported:
    """A run that the page speaks of: what was logged of its training and what was measured.

    evaluations  of its steps, where they were measured one by one
    label        what the page calls it; empty: its kind
    group        what the page calls it and those that differ from it in the seed of training alone
    differs      in which options, with their values, it differs from others of its kind on the page
    """

    run: Run
    metrics: list[dict[str, Any]]
    evaluation: Evaluation
    evaluations: dict[int, Evaluation] = field(default_factory=dict)
    label: str = ""
    group: str = ""
    differs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("label", "group"):
            object.__setattr__(self, name, getattr(self, name) or TITLES[self.kind])

    @property
    def folder(self) -> Path:
        """Where the run lies."""
        return self.run.folder

    @property
    def kind(self) -> str:
        """``tokenizer`` or a kind of generator."""
        return self.run.kind

    @property
    def seed(self) -> int | None:
        """Of its training; None where its experiment names none."""
        train = self.run.config.get("experiment", {}).get("train", {})
        seed = train.get("seed") if isinstance(train, dict) else None
        return seed if isinstance(seed, int) else None

    def card(self, metric: str) -> ProtocolCard | None:
        """What was measured under this name; None where it was not."""
        return next((card for card in self.evaluation.cards if card.metric == metric), None)

    def figure(self, metric: str, value: str) -> float | None:
        """One measured number, or None where it was not measured."""
        card = self.card(metric)
        return None if card is None else card.values.get(value)

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of the classes on the sheets of a generator; an older evaluation shows its first ones."""
        return self.evaluation.shown or self.evaluation.classes[:SHEET_CLASSES]

    def logged(self, name: str) -> list[tuple[int, float]]:
        """A figure of ``metrics.jsonl`` with its steps, where it was a number that can be drawn."""
        known = [(row["step"], row[name]) for row in self.metrics if row.get(name) is not None]
        return [(step, float(value)) for step, value in known if abs(value) < LARGEST and abs(step) < MOST]

    @property
    def batch(self) -> int:
        """Examples of a step. Raises InputError."""
        return self.run.experiment(TrainConfig, "train").batch

    @property
    def last(self) -> tuple[int, float]:
        """The last step that was logged, and the seconds of training by then."""
        return max(self.logged("seconds"))

    def trained(self) -> str:
        """Steps and minutes of its training."""
        step, seconds = self.last
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


def read_runs(folders: Sequence[Path]) -> list[Reported]:
    """The runs of a page, each under a name of its own, tokenizers first. Raises InputError, as `read_run`."""
    opened = [Run.open(folder) for folder in folders]
    places = [run.folder.resolve() for run in opened]
    for at, run in enumerate(opened):
        if places[at] in places[:at]:
            raise InputError(f"{run.folder}: is given twice; expected each run once")
    runs = named([read_run(run) for run in opened])
    return sorted(runs, key=lambda run: run.kind != "tokenizer")


def named(runs: Sequence[Reported]) -> list[Reported]:
    """The same runs, each with a label of its own, the group of its seeds, and what sets it apart.

    A kind that is there once is called by its title, others by the end of their folder's path as well.
    """
    found = []
    for run in runs:
        alike = [other for other in runs if other.kind == run.kind]
        title = TITLES[run.kind]
        if len(alike) == 1:
            found.append(run)
            continue
        tails = path_tails([other.folder for other in alike])
        seeds = [other for other in alike if _but_seed(other) == _but_seed(run)]
        label = group = f"{title}, {tails[alike.index(run)]}"
        if len(seeds) > 1 and len({other.seed for other in seeds}) == len(seeds):
            tail = _without_seed(tails[alike.index(seeds[0])], seeds[0].seed)
            group = title if len(seeds) == len(alike) else f"{title}, {tail}"
            label = f"{group}, seed {run.seed}"
        found.append(replace(run, label=label, group=group, differs=_differs(run, alike)))
    return found


def path_tails(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart, as many parts of each."""
    paths = [folder.resolve() for folder in folders]
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        tails = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(tails)) == len(tails):
            break
    return tails


def _without_seed(name: str, seed: int | None) -> str:
    """A folder's name without the number of its seed at the end."""
    return re.sub(rf"[_.-]?(seed|s)?[_-]?{seed}$", "", name) or name


def _but_seed(run: Reported) -> dict[str, Any]:
    """Its experiment without the seed of training and its folder."""
    flat = _flat(run.run.config.get("experiment", {}))
    return {name: value for name, value in flat.items() if name not in ("out", "train.seed")}


def _differs(run: Reported, alike: Sequence[Reported]) -> tuple[str, ...]:
    tables = [_flat(other.run.config.get("experiment", {})) for other in alike]
    mine = tables[alike.index(run)]
    names = dict.fromkeys(name for table in tables for name in table if name != "out")
    apart = [name for name in names if any(table.get(name) != mine.get(name) for table in tables)]
    told = [f"{name} {str(mine[name])[:60] if name in mine else 'not there'}" for name in apart[:MOST_DIFFERENCES]]
    more = len(apart) - len(told)
    return (*told, *([f"{more} more"] if more else []))


def _flat(table: Any, prefix: str = "") -> dict[str, Any]:
    """Values by dotted names."""
    if not isinstance(table, dict):
        return {prefix.removesuffix("."): table}
    return {name: value for key, inner in table.items() for name, value in _flat(inner, f"{prefix}{key}.").items()}


def refuse_unlike(runs: Sequence[Reported]) -> None:
    """Raise InputError unless figures that stand beside each other were taken in the same way.

    How a generator samples is its own. A generator on a page with tokenizers is of one of them.
    """
    for kinds in (
        [run for run in runs if run.kind == "tokenizer"],
        [run for run in runs if run.kind != "tokenizer"],
    ):
        for other in kinds[1:]:
            _refuse_unlike_cards(kinds[0], other)
    hashes = {run.folder: {card.tokenizer_hash for card in run.evaluation.cards} for run in runs}
    tokenizers = [run.folder for run in runs if run.kind == "tokenizer"]
    for run in runs if tokenizers else ():
        if not any(hashes[run.folder] == hashes[tokenizer] for tokenizer in tokenizers):
            names = ", ".join(map(str, tokenizers))
            expected = "its own" if len(tokenizers) == 1 else "its own among them"
            raise InputError(f"{run.folder}: was evaluated with another tokenizer than {names}; expected {expected}")


def _refuse_unlike_cards(first: Reported, other: Reported) -> None:
    theirs = {card.metric: card for card in other.evaluation.cards}
    for metric, mine in {card.metric: card for card in first.evaluation.cards}.items():
        if metric not in theirs:
            continue
        try:
            compare(mine, theirs[metric], allow=OWN)
        except ValueError as error:
            raise InputError(f"{first.folder} and {other.folder}: {metric}: {error}; evaluate both again") from error
