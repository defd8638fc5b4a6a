"""What is measured of samples, each number with its protocol card.

One path for both kinds of generator: the same labels, the same decoder, the same judge, the same reference images.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ifsq.codes.cache import CodeCache, CodeSet
from ifsq.config import InputError, build
from ifsq.data import DataError, ImageSource, iterate_once, open_images, to_float, to_uint8, write_png
from ifsq.data.images import DataConfig
from ifsq.data.sampler import AT_ONCE
from ifsq.evaluation.judge import FEATURES, JudgeNet, share_judge
from ifsq.evaluation.labels import BALANCED, LIKE_REFERENCE, labels_balanced, labels_like
from ifsq.evaluation.protocol import blank_card, dealt, name_of, sample_indices
from ifsq.evaluation.record import Evaluation
from ifsq.evaluation.samples import Part, sample_parts
from ifsq.evaluation.sheets import CLASS_COLUMNS, SHEET_CLASSES, class_sheet, real_sheet
from ifsq.experiment import Pair
from ifsq.generators import Generator, Sampling
from ifsq.metrics import FeatureStatistics, ProtocolCard, fd_name
from ifsq.metrics.distribution import frechet_from_statistics
from ifsq.store.files import make_folder
from ifsq.store.run import Run
from ifsq.store.weights import weights_digest
from ifsq.tokenizer.model import Tokenizer
from ifsq.training.config import TrainConfig
from ifsq.training.distributed import World, from_first, gather_or_refuse
from ifsq.training.log import Reporter


def measure_generator(
    run: Run,
    pair: Pair,
    cache: CodeCache,
    sampling: Sampling,
    world: World,
    reporter: Reporter,
    *,
    samples: int,
    seed: int,
    balanced: bool,
    suffix: str = "",
) -> Evaluation:
    """Measure a generator, an untrained twin and its tokenizer alone against the real images that it learned from.

    cache     the codes that the run was trained on
    sampling  how they are drawn
    samples   images drawn, of the classes that the training images have and in their proportions
    balanced  draw every one of these classes alike instead
    suffix    of the names of pictures

    Whole batches are dealt out to the processes; what each has counted is merged, no process holds all images, and all
    get the result. Writes ``samples/classes.png`` (one class a row) and ``samples/real.png``. Raises InputError.
    """
    generator, tokenizer, origin = pair.generator, pair.tokenizer, pair.generator.origin
    data = build(DataConfig, cache.about["data"], str(cache.folder))
    real = open_images(data, "train", channels=tokenizer.channels)
    if real.fingerprint != cache.about["fingerprints"]["train"]:
        raise InputError(
            f"{data.source}: has changed since {cache.folder} was written, or another build read it otherwise;"
            " encode it again"
        )
    judge = share_judge(run.folder.parent, data, tokenizer.channels, world, reporter)
    against = reference(judge, real, data, name_of(data, "train"), world)
    codes = cache.read("train", tokenizer.codebook())
    labels = (labels_balanced if balanced else labels_like)(codes.labels, samples)
    card = sampling_card(generator, tokenizer, against, seed, sampling, BALANCED if balanced else LIKE_REFERENCE)
    shown = labels.unique().tolist()[:SHEET_CLASSES]
    pictured = [number for label in shown for number in (labels == label).nonzero()[:CLASS_COLUMNS, 0].tolist()]

    def drawn(model: Generator, keep: Collection[int] = ()) -> Seen:
        numbers = dealt(range(samples), AT_ONCE, world)
        return look(judge, sample_parts(model, tokenizer, labels, seed, sampling, numbers), world, keep)

    seen = drawn(generator, pictured)
    cards = sample_cards(judge, against, seen, card)
    if "val" in cache.splits:
        held_out = cache.about["fingerprints"]["val"]
        of = replace(card, reference=name_of(data, "val"), reference_hash=held_out, function_evaluations=1)
        cards += measure_likelihood(generator, cache.read("val"), of, world)
    twin = untrained(run, codes).to(world.device)
    cards.append(_renamed(sample_cards(judge, against, drawn(twin), card)[0], "untrained generator"))
    alone = look(judge, reconstructed_parts(tokenizer, real, samples, world), world)
    if not alone.features.n:
        raise DataError(f"none of {min(samples, len(real))} images could be read")
    floor = replace(card, guidance=0.0, sampler="", labels="", function_evaluations=0, generator_hash="")
    cards.append(_renamed(sample_cards(judge, against, alone, floor)[0], "tokenizer alone"))
    counts = {label: int((codes.labels == label).sum()) for label in shown}
    from_first(world, lambda: _write_sheets(run, suffix, seen, labels, real, counts))
    occurring = tuple(origin.classes[label] for label in codes.labels.unique().tolist())
    return Evaluation(tuple(cards), run.step, classes=occurring, shown=tuple(origin.classes[label] for label in shown))


def suffix_of(sampling: Sampling, usual: Sampling) -> str:
    """What the files of an evaluation are called beyond their names where it was not drawn as usual."""
    own = [f"_{name}_{value}" for name, value in vars(sampling).items() if value != vars(usual)[name]]
    return "".join(own).replace(", ", "-").translate({ord("("): None, ord(")"): None})


def untrained(run: Run, codes: CodeSet) -> Generator:
    """The generator as it was before its first step, on the CPU; ``codes`` are those it is trained on."""
    described = run.weights().described
    torch.manual_seed(run.experiment(TrainConfig, "train").seed)
    twin = Generator.from_description(described, run.name)
    twin.observe(codes)
    return twin.eval()


class Seen:
    """What the judge has seen of images, small enough to send.

    features  statistics of its features
    right     how often it saw the class that was asked for
    kept      the images that sheets show, by number
    """

    def __init__(self, dim: int) -> None:
        self.features = FeatureStatistics(dim)
        self.right = 0
        self.kept: dict[int, np.ndarray] = {}

    def merge(self, other: "Seen") -> None:
        """Count what ``other``, of other images, has counted."""
        self.features.merge(other.features)
        self.right += other.right
        self.kept |= other.kept


@torch.no_grad()
def look(judge: JudgeNet, parts: Iterable[Part], world: World, keep: Collection[int] = ()) -> Seen:
    """The judge's view of the parts of all processes, in every process; what one of them refuses, all refuse.

    keep  numbers of the images that are to be kept
    """

    def count() -> Seen:
        seen = Seen(judge.feature_dim)
        for part in parts:
            floats = to_float(part.images)
            seen.features.add(_features(judge, floats))
            seen.right += int((_logits(judge, floats).argmax(dim=1) == part.labels).sum())
            seen.kept |= {n: image for n, image in zip(part.numbers, part.images, strict=True) if n in keep}
        return seen

    first, *others = gather_or_refuse(world, count)
    for other in others:
        first.merge(other)
    return first


@dataclass(frozen=True)
class Reference:
    """Real images that samples are held against: name, hash, classes and the judge's statistics of their features."""

    name: str
    fingerprint: str
    data: DataConfig
    classes: int
    statistics: FeatureStatistics


def reference(judge: JudgeNet, images: ImageSource, data: DataConfig, name: str, world: World) -> Reference:
    """The judge's view of every image of a source; each process looks at a part, and all get the whole."""

    def count() -> FeatureStatistics:
        statistics = FeatureStatistics(judge.feature_dim)
        mine = [index for batch in dealt(range(len(images)), AT_ONCE, world) for index in batch]
        for read in iterate_once(images, AT_ONCE, indices=mine):
            statistics.add(_features(judge, read.images))
        return statistics

    first, *others = gather_or_refuse(world, count)
    for other in others:
        first.merge(other)
    return Reference(name, images.fingerprint, data, len(images.classes), first)


@torch.no_grad()
def reconstructed_parts(tokenizer: Tokenizer, images: ImageSource, n: int, world: World) -> Iterator[Part]:
    """``n`` images spread over a source, through the tokenizer: the best that a generator of its codes can do.

    This process's batches of them. Fewer where some are skipped.
    """
    device = next(tokenizer.parameters()).device
    drawn = sample_indices(images, n)
    mine = [index for batch in dealt(sorted(drawn) if images.block else drawn, AT_ONCE, world) for index in batch]
    for read in iterate_once(images, AT_ONCE, indices=mine):
        if len(read.images):  # else none of them could be read
            yield Part(to_uint8(tokenizer(read.images.to(device)).images), read.labels, read.indices)


def sample_cards(judge: JudgeNet, against: Reference, seen: Seen, card: ProtocolCard) -> list[ProtocolCard]:
    """Fréchet distance to the reference, and how often the judge sees the class that was asked for.

    A judge that learned other classes (see `train_judge`) says nothing about them.
    """
    n = seen.features.n
    card = replace(card, n=n, features=f"{FEATURES} {weights_digest(judge)[:12]}")
    distance = frechet_from_statistics(seen.features, against.statistics)
    distances = [replace(card, metric=fd_name(FEATURES), values={"distance": distance})]
    if judge.num_classes != against.classes:
        return distances
    return [*distances, replace(card, metric="class agreement", values={"share": seen.right / n})]


def sampling_card(
    generator: Generator, tokenizer: Tokenizer, against: Reference, seed: int, sampling: Sampling, labels: str
) -> ProtocolCard:
    """The protocol of a set of samples, without a metric yet; ``labels`` says in words which classes were asked for."""
    return replace(
        blank_card(against.data, against.name, against.fingerprint, 0, tokenizer),
        seed=seed,
        labels=labels,
        guidance=sampling.guidance,
        sampler=sampling.sampler,
        function_evaluations=generator.cost(sampling),
        generator_hash=weights_digest(generator),
    )


@torch.no_grad()
def measure_likelihood(generator: Generator, codes: CodeSet, card: ProtocolCard, world: World) -> list[ProtocolCard]:
    """Bits per image of held-out codes, for a generator that has a likelihood; nothing for one that has none."""
    device = next(generator.parameters()).device
    batches = dealt(range(len(codes)), AT_ONCE, world)
    parts = [generator.nll(codes.batch(torch.tensor(list(rows)), device)) for rows in batches]
    shares = world.gather([None if part is None else part.cpu() for part in parts])
    # Dealt in turn, so in turn they are in the order of the codes again.
    nats = [share[turn] for turn in range(len(shares[0])) for share in shares if turn < len(share)]
    known = [part for part in nats if part is not None]
    if not known:
        return []
    bits = torch.cat(known) / np.log(2)
    values = {"mean": float(bits.mean()), "std": float(bits.std(correction=0))}
    return [replace(card, metric="bits per image", values=values, n=len(codes), sampler="", guidance=1.0, labels="")]


def _write_sheets(
    run: Run, suffix: str, seen: Seen, labels: Int[Tensor, "n"], real: ImageSource, counts: dict[int, int]
) -> None:
    """Samples and real images of the classes in ``counts``, which says how many real ones there are."""
    folder = run.folder / "samples"
    make_folder(folder)
    numbers = sorted(seen.kept)
    images = np.stack([seen.kept[number] for number in numbers])
    write_png(class_sheet(images, labels[numbers].numpy(), list(counts)), folder / f"classes{suffix}.png")
    write_png(real_sheet(real, counts), folder / f"real{suffix}.png")


def _renamed(card: ProtocolCard, what: str) -> ProtocolCard:
    return replace(card, metric=f"{card.metric}, {what}")


@torch.no_grad()
def _features(judge: JudgeNet, images: Tensor) -> Tensor:
    return judge.features(images.to(next(judge.parameters()).device)).cpu()


@torch.no_grad()
def _logits(judge: JudgeNet, images: Tensor) -> Tensor:
    return judge.logits(images.to(next(judge.parameters()).device)).cpu()
