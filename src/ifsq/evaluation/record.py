"""``evaluation.json``: what was measured of a run, written whole and read strictly."""

from dataclasses import asdict, dataclass, field

from ifsq.config import InputError, build
from ifsq.metrics.card import ProtocolCard
from ifsq.quantizers.usage import LevelUse
from ifsq.store.run import EVALUATION, Run


@dataclass(frozen=True)
class Evaluation:
    """The content of the file. What one kind of run has and the other has not is empty there.

    cards     a figure each, with its protocol
    step      of the checkpoint that was measured; None of a saved model
    levels    how several quantizers would use their levels, by name
    latent    ``mean`` and ``std`` of every dimension
    left_out  measurements that could not be taken, and why
    skipped   a line about each image that could not be read
    classes   names of those that were drawn
    shown     names of those on the sheets; of older files the first classes
    """

    cards: tuple[ProtocolCard, ...]
    step: int | None = None
    levels: dict[str, LevelUse] = field(default_factory=dict)
    latent: dict[str, tuple[float, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.cards:
            raise ValueError("cards []: expected at least one protocol card")


def write_evaluation(run: Run, evaluation: Evaluation, suffix: str = "") -> None:
    """Write the file, or ``evaluation<suffix>.json`` of other images than the usual ones. Raises InputError."""
    run.write_evaluation(asdict(evaluation) | {"cards": [card.to_dict() for card in evaluation.cards]}, suffix)


def read_evaluation(run: Run) -> Evaluation | None:
    """Read it; None where there is none. Raises InputError naming what is missing, unknown or of another type."""
    path, table = run.folder / EVALUATION, run.evaluation()
    if table is None:
        return None
    for card in table["cards"]:
        if not isinstance(card, dict):
            raise InputError(f"{path}: cards: {str(card)[:80]!r}: expected a JSON object; evaluate the run again")
        try:
            ProtocolCard.check_fields(card)  # which fields there are; what they may hold, `build` says
        except ValueError as error:
            raise InputError(f"{path}: {error}; evaluate the run again") from error
    return build(Evaluation, table, str(path))
