"""What is measured of samples, each number with its protocol card.

One path for both kinds of generator and all steps of a run: the same labels, decoder, networks and reference images.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ifsq.codes.cache import CodeCache, CodeSet
from ifsq.config import InputError, build, check_seed
from ifsq.data import DataConfig, DataError, ImageSource, open_images, write_png
from ifsq.data.sampler import AT_ONCE
from ifsq.evaluation.collect import Collected, Look, Seen, collect
from ifsq.evaluation.given import DrawnImages, ReconstructedImages, SourceImages
from ifsq.evaluation.image_cards import LEAST, image_cards
from ifsq.evaluation.in_training import features_at_hand
from ifsq.evaluation.judge import JudgeFeatures, share_judge
from ifsq.evaluation.labels import BALANCED, LIKE_REFERENCE, labels_balanced, labels_like
from ifsq.evaluation.likelihood import bits_card
from ifsq.evaluation.nearest import nearest_images
from ifsq.evaluation.protocol import blank_card, name_of
from ifsq.evaluation.record import Evaluation, write_evaluation
from ifsq.evaluation.reference import Reference, View, views_of
from ifsq.evaluation.samples import MOST_SAMPLES
from ifsq.evaluation.sheets import (
    CLASS_COLUMNS,
    PAIR_COLUMNS,
    SHEET_CLASSES,
    class_sheet,
    neighbour_sheet,
    real_sheet,
)
from ifsq.generators import DiffusionGenerator, Generator, MaskedGenerator, Sampling
from ifsq.generators.masked.bound import BoundOptions
from ifsq.generators.train import training_flops
from ifsq.metrics import ProtocolCard
from ifsq.pretrained.features import load_features
from ifsq.pretrained.network import FeatureNetwork
from ifsq.pretrained.pixels import Pixels
from ifsq.sources import Pair
from ifsq.store.files import make_folder
from ifsq.store.run import Run
from ifsq.store.weights import weights_digest
from ifsq.training.config import TrainConfig
from ifsq.training.distributed import World, from_first, in_turn
from ifsq.training.log import Reporter

MOST_PAIRS = 10_000
LONGEST_IN_NAME = 32  # characters of a value
NAMEABLE = re.compile(r"[\w.+-]+")


@dataclass(frozen=True)
class GeneratorEvaluation:
    """What is asked of the evaluation of a generator.

    samples   images drawn, of the classes that the training images have and in their proportions
    seed      of their random numbers
    balanced  draw every one of these classes alike instead
    twin      measure an untrained generator too
    features  networks beside the judge, see `load_features`; None: EfficientNet-Lite0 where it is installed
              These compare images pair by pair too, as many of each side as there are samples, at most `MOST_PAIRS`
    cache     keep the statistics of the training images, see `views_of`
    bits      measure the bits of all held-out images too, or a bound of them; of a diffusion generator there are none

    Raises InputError for numbers of samples and seeds that there are not.
    """

    samples: int = 1000
    seed: int = 0
    balanced: bool = False
    twin: bool = True
    features: tuple[str, ...] | None = None
    cache: bool = True
    bits: bool = True

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if not 2 <= self.samples <= MOST_SAMPLES:
            raise InputError(f"samples {self.samples}: expected 2 to {MOST_SAMPLES}")
        if self.features and len(set(self.features)) < len(self.features):
            raise InputError(f"features {', '.join(self.features)}: expected each once")


@dataclass
class Held:
    """What all steps of a run are held against, made once.

    run, pair       the pair as it was opened; steps differ in the generator's weights alone
    asked, sampling how images are drawn
    codes, labels   of the training images; the labels that are asked for
    real, data      the training images, and how they were made
    looks, views    networks, the judge first, and what they see of the training images
    flops           of training, an image
    beside          what no step changes, once it is measured: an untrained generator, and the tokenizer alone
    out             where evaluations and pictures are written; None: into the run
    """

    run: Run
    pair: Pair
    cache: CodeCache
    asked: GeneratorEvaluation
    sampling: Sampling
    codes: CodeSet
    labels: Int[Tensor, "n"]
    real: ImageSource
    data: DataConfig
    looks: list[Look]
    views: list[View]
    flops: int
    beside: list[ProtocolCard] = field(default_factory=list)
    out: Path | None = None

    @property
    def into(self) -> Run:
        """The run, to write to."""
        return self.run if self.out is None else replace(self.run, folder=self.out)

    @property
    def shown(self) -> list[int]:
        """Labels of the classes on the sheets."""
        return self.labels.unique().tolist()[:SHEET_CLASSES]


def hold(
    run: Run,
    pair: Pair,
    cache: CodeCache,
    asked: GeneratorEvaluation,
    sampling: Sampling,
    world: World,
    reporter: Reporter,
) -> Held:
    """Open the training images and let the networks see them; the judge is trained where it is not there yet.

    cache  the codes that the run was trained on

    Raises InputError in every process.
    """
    tokenizer = pair.tokenizer
    data = build(DataConfig, cache.about["data"], str(cache.folder))
    real = open_images(data, "train", channels=tokenizer.channels)
    if real.fingerprint != cache.about["fingerprints"]["train"]:
        raise InputError(
            f"{data.source}: has changed since {cache.folder} was written, or another build read it otherwise;"
            " encode it again"
        )
    judge = share_judge(run.folder.parent, data, tokenizer.channels, world, reporter)
    agreement = judge.num_classes == len(real.classes)
    pairs = min(asked.samples, MOST_PAIRS) if min(asked.samples, len(real)) >= LEAST else 0
    looks = [
        Look(JudgeFeatures(judge), agreement=agreement),
        *(Look(network, pairs=pairs) for network in _networks(asked, real, world)),
    ]
    name = name_of(data, "train")
    images = SourceImages(real, name, data)
    views = views_of(Reference(name, real.fingerprint, images), looks, world, reporter, asked.cache)
    codes = cache.read("train", tokenizer.codebook())
    labels = (labels_balanced if asked.balanced else labels_like)(codes.labels, asked.samples)
    flops = training_flops(pair.generator)
    return Held(run, pair, cache, asked, sampling, codes, labels, real, data, looks, views, flops)


def measure_generator(
    held: Held, generator: Generator, step: int | None, world: World, reporter: Reporter, suffix: str | None = None
) -> Evaluation:
    """Measure a generator, and beside it an untrained one and the tokenizer alone.

    generator  the weights of a step of the run
    suffix     of the names of the pictures ``samples/classes.png`` (one class a row), ``samples/real.png`` and
               ``samples/neighbours.png``; None: none are written

    Whole batches are dealt out to the processes; what each has counted is merged, no process holds all images, and all
    get the result. Raises InputError in every process.
    """
    shown, labels = held.shown, held.labels
    pictured = [number for label in shown for number in (labels == label).nonzero()[:CLASS_COLUMNS, 0].tolist()]
    drawn = _look(held, generator, held.looks, world, reporter, f"samples of step {step}", pictured)
    card = sampling_card(held, generator)
    cards = sample_cards(held, held.looks, drawn.seen, card, world)
    if held.asked.bits and "val" in held.cache.splits:
        held_out = held.cache.about["fingerprints"]["val"]
        of = replace(card, reference=name_of(held.data, "val"), reference_hash=held_out, function_evaluations=1)
        cards += measure_likelihood(generator, held.cache.read("val"), of, world)
    held.beside = held.beside or _beside(held, world, reporter)
    cards += held.beside
    searched = "" if suffix is None else from_first(world, lambda: _write_sheets(held, suffix, drawn.kept))
    classes = generator.origin.classes
    train = held.run.experiment(TrainConfig, "train")
    taken = None if step is None else step * train.batch
    return Evaluation(
        tuple(cards),
        step,
        classes=tuple(classes[label] for label in held.codes.labels.unique().tolist()),
        shown=tuple(classes[label] for label in shown),
        seen=taken,
        flops=None if taken is None else float(taken * held.flops),
        neighbours=searched,
    )


def suffix_of(sampling: Sampling, usual: Sampling, average: bool = True) -> str:
    """What the files of an evaluation are called beyond their names where it was not drawn as usual."""
    own = [f"_{name}_{_in_name(value)}" for name, value in vars(sampling).items() if value != vars(usual)[name]]
    return "".join(own) if average else f"{''.join(own)}_raw"


def untrained(run: Run, codes: CodeSet) -> Generator:
    """The generator as it was before its first step, on the CPU; ``codes`` are those it is trained on."""
    described = run.weights().described
    torch.manual_seed(run.experiment(TrainConfig, "train").seed)
    twin = Generator.from_description(described, run.name)
    twin.observe(codes)
    return twin.eval()


def sample_cards(
    held: Held, looks: Sequence[Look], seen: Sequence[Seen], card: ProtocolCard, world: World
) -> list[ProtocolCard]:
    """Fréchet distances to the training images, and how often the judge sees the class that was asked for.

    A judge that learned other classes (see `train_judge`) says nothing about them.
    """
    found = []
    for look, one, view in zip(looks, seen, held.views[: len(looks)], strict=True):
        cards, _ = image_cards(look, one, view, card, world)
        found += cards
        if look.agreement:
            share = {"share": one.right / one.n}
            found.append(replace(card, metric="class agreement", values=share, n=one.n, features=cards[0].features))
    return found


def sampling_card(held: Held, generator: Generator) -> ProtocolCard:
    """The protocol of a set of samples, without a metric yet."""
    sampling = held.sampling
    return replace(
        blank_card(held.data, name_of(held.data, "train"), held.real.fingerprint, 0, held.pair.tokenizer),
        seed=held.asked.seed,
        labels=BALANCED if held.asked.balanced else LIKE_REFERENCE,
        guidance=sampling.guidance,
        sampler=generator.sampler(sampling),
        dtype=generator.arithmetic(sampling),
        function_evaluations=generator.cost(sampling),
        generator_hash=weights_digest(generator),
    )


def measure_steps(
    held: Held,
    steps: Sequence[int | None],
    average: bool,
    suffix: str,
    world: World,
    reporter: Reporter,
) -> dict[int | None, Evaluation]:
    """Measure steps of a run by the same protocol, and write what was found of each; the last is the one in ``held``.

    Arguments as of `ifsq.pipeline.evaluate_generator`; ``suffix`` of the files' names, see `suffix_of`.
    """
    found: dict[int | None, Evaluation] = {}
    for step in steps:
        newest = step == held.run.step
        model = held.pair.generator
        if step != steps[-1]:
            model = Generator.from_run(held.run, step, average).to(world.device)
        one = measure_generator(held, model, step, world, reporter, suffix if newest else None)
        found[step] = one = replace(one, weights="average" if average else "raw")
        if step is not None:
            from_first(world, partial(write_evaluation, held.into, one, suffix, step))
        if newest:
            from_first(world, partial(write_evaluation, held.into, one, suffix))
    return found


@torch.no_grad()
def measure_likelihood(generator: Generator, codes: CodeSet, card: ProtocolCard, world: World) -> list[ProtocolCard]:
    """Bits per image and per token of held-out codes, or a bound of them with its error; of a diffusion one nothing."""
    if isinstance(generator, DiffusionGenerator):
        return []
    asked = BoundOptions() if isinstance(generator, MaskedGenerator) else None
    card = replace(card, sampler="", guidance=1.0, labels="")
    return [bits_card(generator, codes, torch.arange(len(codes)), asked, 0, world, card, AT_ONCE)]


def _networks(asked: GeneratorEvaluation, real: ImageSource, world: World) -> list[FeatureNetwork]:
    """Those that look beside the judge. Raises InputError, as for images that are too small for one."""
    if asked.features is None:
        network = features_at_hand(real.shape[:2], world)
        return [] if isinstance(network, Pixels) else [network]
    networks = [in_turn(world, lambda name=name: load_features(name)) for name in asked.features]  # type: ignore[misc]
    for network in networks:
        if min(real.shape[:2]) < network.smallest:
            raise InputError(
                f"features {network.name}: expected images of at least {network.smallest} pixels a side, got"
                f" {min(real.shape[:2])}"
            )
    return [network.to(world.device) for network in networks]


def _look(
    held: Held,
    generator: Generator,
    looks: Sequence[Look],
    world: World,
    reporter: Reporter,
    what: str,
    keep: Sequence[int] = (),
) -> Collected:
    """What networks see of a generator's samples; ``what`` they are called, those numbered ``keep`` are kept."""
    images = DrawnImages(generator, held.pair.tokenizer, held.labels, held.asked.seed, held.sampling)
    return collect(looks, images, range(len(images)), world, reporter, what, keep)


def _beside(held: Held, world: World, reporter: Reporter) -> list[ProtocolCard]:
    """Of an untrained generator, by the judge alone, and of the tokenizer alone."""
    cards: list[ProtocolCard] = []
    if held.asked.twin:
        twin = untrained(held.run, held.codes).to(world.device)
        judge = [replace(held.looks[0], agreement=False)]
        seen = _look(held, twin, judge, world, reporter, "samples of an untrained generator").seen
        found = sample_cards(held, judge, seen, sampling_card(held, twin), world)
        cards += [_renamed(card, "untrained generator") for card in found]
    source = SourceImages(held.real, name_of(held.data, "train"), held.data)
    again = ReconstructedImages(source, held.pair.tokenizer)
    looks, numbers = [replace(look, agreement=False) for look in held.looks], again.chosen(held.asked.samples)
    alone = collect(looks, again, numbers, world, reporter, "reconstructions").seen
    if alone[0].n < 2:
        raise DataError(f"{alone[0].n} of {len(numbers)} images could be read; expected two at least")
    card = replace(
        sampling_card(held, held.pair.generator),
        guidance=0.0,
        sampler="",
        labels="",
        function_evaluations=0,
        generator_hash="",
    )
    return cards + [_renamed(one, "tokenizer alone") for one in sample_cards(held, looks, alone, card, world)]


def _write_sheets(held: Held, suffix: str, kept: dict[int, np.ndarray]) -> str:
    """The samples that were kept, by number, real images of their classes, and those nearest to the first samples.

    Returns how these were found, as `Nearest.searched`.
    """
    folder = held.into.folder / "samples"
    make_folder(folder)
    numbers = sorted(kept)
    images = np.stack([kept[number] for number in numbers])
    counts = {label: int((held.codes.labels == label).sum()) for label in held.shown}
    labels = held.labels[numbers].numpy()
    write_png(class_sheet(images, labels, held.shown), folder / f"classes{suffix}.png")
    write_png(real_sheet(held.real, counts), folder / f"real{suffix}.png")
    first = np.concatenate([np.flatnonzero(labels == label)[:PAIR_COLUMNS] for label in held.shown])
    found = nearest_images(images[first], held.real)
    sheet = neighbour_sheet(images[first], found.images, labels[first], held.shown)
    write_png(sheet, folder / f"neighbours{suffix}.png")
    return found.searched


def _in_name(value: object) -> str:
    """An option's value as a part of a file's name; what is long or no name, as times or a folder, by its hash."""
    told = str(value).replace(", ", "-").translate({ord("("): None, ord(")"): None})
    if len(told) <= LONGEST_IN_NAME and NAMEABLE.fullmatch(told):
        return told
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def _renamed(card: ProtocolCard, what: str) -> ProtocolCard:
    return replace(card, metric=f"{card.metric}, {what}")
