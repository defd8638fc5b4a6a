"""What the stages of a grid do: each is a function of `ifsq.pipeline` with its arguments, which a process can be sent.

Every one can be run again after an interruption, and goes on or finds that it is done.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from ifsq import pipeline
from ifsq.bench.grid.guidance import Search
from ifsq.bench.protocol import Better
from ifsq.config import InputError
from ifsq.data.crops import Crops
from ifsq.data.images import Size
from ifsq.evaluation import GeneratorEvaluation, TokenizerEvaluation
from ifsq.evaluation.record import Evaluation, read_cards, write_cards
from ifsq.experiment import GeneratorExperiment, TokenizerExperiment
from ifsq.pretrained.teachers import TeacherConfig
from ifsq.pretraining import TeacherExperiment
from ifsq.store.files import make_folder, write_bytes
from ifsq.store.run import EVALUATION, EVALUATIONS, Run
from ifsq.training.log import Reporter

EVALUATED = ("rF", "level entropy", "index use")
"""How metrics begin that a forecast has of other images than an evaluation of the same tokenizer, or of the same."""


@runtime_checkable
class Work(Protocol):
    """What a stage does."""

    def run(self, folder: Path, device: str, reporter: Reporter) -> None:
        """Do it, or what is left of it, in the stage's folder. Raises InputError, and Interrupted."""


@dataclass(frozen=True)
class TrainTokenizer:
    """Train a tokenizer."""

    experiment: TokenizerExperiment
    kind: ClassVar[str] = "tokenizer"

    def run(self, folder: Path, device: str, reporter: Reporter) -> None:
        """See `Work`."""
        pipeline.train_tokenizer(self.experiment, device, reporter)


@dataclass(frozen=True)
class TrainTeacher:
    """Train a teacher."""

    experiment: TeacherExperiment
    kind: ClassVar[str] = "teacher"

    def run(self, folder: Path, device: str, reporter: Reporter) -> None:
        """See `Work`."""
        pipeline.train_teacher(self.experiment, device, reporter)


@dataclass(frozen=True)
class TrainGenerator:
    """Train a generator."""

    experiment: GeneratorExperiment

    @property
    def kind(self) -> str:
        """The generator's own."""
        return self.experiment.kind

    def run(self, folder: Path, device: str, reporter: Reporter) -> None:
        """See `Work`."""
        pipeline.train_generator(self.experiment, device, reporter)


@dataclass(frozen=True)
class Encoding:
    """How a grid writes codes: arguments of `ifsq.pipeline.encode`.

    size    pixels a side, or height and width; None: what the tokenizer was trained on
    flip    the codes of the mirrored images too
    crops   several of each training image
    batch   pictures that pass through the tokenizer together; 0: as many as are usual at their size
    levels  one of the tokenizer's nested levels, at which it is measured too; 0: those of its experiment
    """

    size: Size | None = None
    flip: bool = False
    crops: Crops | None = None
    batch: int = 0
    levels: int = 0


@dataclass(frozen=True)
class Encode:
    """Write the codes of a tokenizer's own images.

    tokenizer  its folder
    source     as ``data.source`` of its experiment
    """

    tokenizer: Path
    source: str
    how: Encoding = field(default_factory=Encoding)

    def run(self, folder: Path, device: str, reporter: Reporter) -> None:
        """See `Work`."""
        how = self.how
        pipeline.encode(
            self.tokenizer, self.source, folder, how.size, how.flip, device, reporter,
            crops=how.crops, batch=how.batch, levels=how.levels,
        )  # fmt: skip


@dataclass(frozen=True)
class CacheFeatures:
    """Write what a teacher sees in the training pictures of codes."""

    codes: Path
    teacher: TeacherConfig

    def run(self, folder: Path, device: str, reporter: Reporter) -> None:
        """See `Work`."""
        pipeline.cache_features(self.codes, self.teacher, folder, device=device, reporter=reporter)


@dataclass(frozen=True)
class MeasureTokenizer:
    """Measure a tokenizer: its run has the evaluation as usual, the stage the cards alone."""

    tokenizer: Path
    options: TokenizerEvaluation

    def run(self, folder: Path, device: str, reporter: Reporter) -> None:
        """See `Work`."""
        cards = pipeline.evaluate_tokenizer(self.tokenizer, device, reporter, self.options)
        write_cards(folder / EVALUATION, Evaluation(tuple(cards), Run.open(self.tokenizer).step))


@dataclass(frozen=True)
class Forecast:
    """What a tokenizer and its codes say beforehand of generation; the stage has what no evaluation of it has."""

    tokenizer: Path
    codes: Path
    options: TokenizerEvaluation

    def run(self, folder: Path, device: str, reporter: Reporter) -> None:
        """See `Work`."""
        cards = pipeline.forecast(self.tokenizer, self.codes, device, reporter, self.options)
        own = [card for card in cards if not card.metric.startswith(EVALUATED)]
        write_cards(folder / EVALUATION, Evaluation(tuple(own), Run.open(self.tokenizer).step))


@dataclass(frozen=True)
class MeasureGenerator:
    """Measure a generator, by one seed of sampling.

    steps     of checkpoints that are kept; empty: all; None: the newest
    usual     whether the run gets the files too, as those of `ifsq.pipeline.evaluate_generator`, which a report shows
    guidance  scale at which is sampled, or the folder of the stage that chose it; None: the run's own
    """

    generator: Path
    asked: GeneratorEvaluation
    steps: tuple[int, ...] | None = None
    usual: bool = False
    guidance: float | Path | None = None

    def run(self, folder: Path, device: str, reporter: Reporter) -> None:
        """See `Work`."""
        scale = Search.read(self.guidance).guidance if isinstance(self.guidance, Path) else self.guidance
        sampling = None if scale is None else {"guidance": scale}
        pipeline.evaluate_generator(
            self.generator, self.asked, device, reporter, sampling, steps=self.steps, out=folder
        )
        for file in sorted(folder.rglob("*.*")) if self.usual else ():
            if file.suffix in (".json", ".png"):
                place = (self.generator / file.relative_to(folder)).parent
                make_folder(place)
                write_bytes(place / f"{file.stem.partition('_guidance_')[0]}{file.suffix}", file.read_bytes())


@dataclass(frozen=True)
class ChooseGuidance:
    """Take the scale of guidance with the best figure of a search, see `Search`.

    searched  scale, training seed, and the folder of what was measured, by metric and value
    better    which figures are
    """

    searched: tuple[tuple[float, int, Path], ...]
    metric: str
    value: str
    better: Better

    def run(self, folder: Path, device: str, reporter: Reporter) -> None:
        """See `Work`."""
        figures: dict[float, dict[int, list[float]]] = {}
        for scale, seed, place in self.searched:
            values = {card.metric: card.values for card in evaluations_in(place)[-1].cards}.get(self.metric, {})
            if not math.isfinite(figure := values.get(self.value, math.nan)):
                raise InputError(f"{place}: has no {self.metric}, {self.value}, by which the best guidance is taken")
            figures.setdefault(scale, {}).setdefault(seed, []).append(figure)
        found = Search.best(figures, self.metric, self.value, self.better)
        scales = ", ".join(f"{scale:g}" for scale in figures)
        reporter.say(f"best guidance by {self.metric}: {found.guidance:g} of {scales}")
        found.write(folder)


def evaluations_in(folder: Path) -> list[Evaluation]:
    """What a stage measured, by step, oldest first; of a stage that has one evaluation alone, that one.

    Raises InputError.
    """
    files = list((folder / EVALUATIONS).glob("step_*.json")) or [folder / EVALUATION]
    try:
        return sorted((read_cards(file) for file in files), key=lambda one: one.step or 0)
    except InputError as error:
        raise InputError(f"{error}; remove {folder} for the stage to be done again") from error


@dataclass(frozen=True)
class MeasureLikelihood:
    """Bits of held-out images.

    seed   of a bound's random numbers
    steps  as of `MeasureGenerator`
    """

    generator: Path
    images: int
    seed: int
    steps: tuple[int, ...] | None = None

    def run(self, folder: Path, device: str, reporter: Reporter) -> None:
        """See `Work`."""
        run = Run.open(self.generator)
        steps = (run.step,) if self.steps is None else self.steps or run.kept
        for step in steps:
            reporter.say(f"bits of {self.images} held-out images, step {step}")
            card = pipeline.likelihood(
                self.generator, self.images, device, seed=self.seed, step=step, reporter=reporter
            )
            write_cards(folder / EVALUATIONS / f"step_{step}.json", Evaluation((card,), step))
