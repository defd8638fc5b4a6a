"""What is measured of samples, each number with its protocol card.

One path for both kinds of generator: the same labels, the same decoder, the same judge, the same reference images.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from ifsq.codes.cache import CodeCache, CodeSet
from ifsq.config import InputError, build
from ifsq.data import DataError, ImageSource, iterate_once, open_images, to_float, to_uint8, write_png
from ifsq.data.images import DataConfig
from ifsq.data.sampler import AT_ONCE
from ifsq.evaluation.judge import FEATURES, JudgeNet, train_judge
from ifsq.evaluation.labels import BALANCED, LIKE_REFERENCE, labels_balanced, labels_like
from ifsq.evaluation.protocol import blank_card, name_of, spread
from ifsq.evaluation.record import Evaluation
from ifsq.evaluation.sheets import SHEET_CLASSES, class_sheet, real_sheet
from ifsq.experiment import Pair
from ifsq.generators import Generator, Sampling
from ifsq.metrics import FeatureStatistics, ProtocolCard, fd_name
from ifsq.metrics.distribution import frechet_from_statistics
from ifsq.store.files import make_folder
from ifsq.store.run import Run
from ifsq.store.weights import weights_digest
from ifsq.tokenizer.model import Tokenizer
from ifsq.training.config import TrainConfig
from ifsq.training.log import Reporter


def measure_generator(
    run: Run,
    pair: Pair,
    cache: CodeCache,
    sampling: Sampling,
    reporter: Reporter,
    *,
    samples: int,
    seed: int,
    balanced: bool,
) -> Evaluation:
    """Measure a generator, an untrained twin and its tokenizer alone against the real images, in this process.

    cache     the codes that the run was trained on
    sampling  how they are drawn
    samples   images drawn, of the classes that the training images have and in their proportions
    balanced  draw every one of these classes alike instead

    Writes ``samples/classes.png`` (one class a row) and ``samples/real.png``. Raises InputError.
    """
    generator, tokenizer, origin = pair.generator, pair.tokenizer, pair.generator.origin
    data = build(DataConfig, cache.about["data"], str(cache.folder))
    real = open_images(data, "train", channels=tokenizer.channels)
    if real.fingerprint != cache.about["fingerprints"]["train"]:
        raise InputError(
            f"{data.source}: has changed since {cache.folder} was written, or another build read it otherwise;"
            " encode it again"
        )
    device = next(generator.parameters()).device
    judge = train_judge(run.folder.parent, data, tokenizer.channels, device, reporter)
    against = reference(judge, real, data, name_of(data, "train"))
    codes = cache.read("train", tokenizer.codebook())
    labels = (labels_balanced if balanced else labels_like)(codes.labels, samples)
    law = BALANCED if balanced else LIKE_REFERENCE
    card = sampling_card(generator, tokenizer, against, seed, sampling, law)
    images = draw_images(generator, tokenizer, labels, seed, sampling)
    cards = measure_samples(judge, against, images, labels, card)
    held_out = cache.about["fingerprints"]["val"]
    told = replace(card, reference=name_of(data, "val"), reference_hash=held_out, function_evaluations=1)
    cards += measure_likelihood(generator, cache.read("val"), told)
    twin = draw_images(untrained(run, codes).to(device), tokenizer, labels, seed, sampling)
    cards.append(_renamed(measure_samples(judge, against, twin, labels, card)[0], "untrained generator"))
    kept = reconstructed(tokenizer, real, samples)
    floor = replace(card, guidance=0.0, sampler="", labels="", function_evaluations=0, generator_hash="")
    cards.append(_renamed(measure_samples(judge, against, kept.images, kept.labels, floor)[0], "tokenizer alone"))
    shown = labels.unique().tolist()[:SHEET_CLASSES]
    counts = {label: int((codes.labels == label).sum()) for label in shown}
    make_folder(run.folder / "samples")
    write_png(class_sheet(images, labels.numpy(), shown), run.folder / "samples" / "classes.png")
    write_png(real_sheet(real, counts), run.folder / "samples" / "real.png")
    occurring = tuple(origin.classes[label] for label in codes.labels.unique().tolist())
    names = tuple(origin.classes[label] for label in shown)
    return Evaluation(tuple(cards), run.step, classes=occurring, shown=names)


def untrained(run: Run, codes: CodeSet) -> Generator:
    """The generator as it was before its first step, on the CPU; ``codes`` are those it is trained on."""
    described = run.weights().described
    torch.manual_seed(run.experiment(TrainConfig, "train").seed)
    twin = Generator.from_description(described, run.name)
    twin.observe(codes)
    return twin.eval()


def _renamed(card: ProtocolCard, what: str) -> ProtocolCard:
    return replace(card, metric=f"{card.metric}, {what}")


@dataclass(frozen=True)
class Reference:
    """Real images that samples are held against: name, hash, classes and the judge's statistics of their features."""

    name: str
    fingerprint: str
    data: DataConfig
    classes: int
    statistics: FeatureStatistics


def reference(judge: JudgeNet, images: ImageSource, data: DataConfig, name: str) -> Reference:
    """The judge's view of every image of a source."""
    statistics = FeatureStatistics(judge.feature_dim)
    for batch in iterate_once(images, AT_ONCE):
        statistics.add(_features(judge, batch.images))
    return Reference(name, images.fingerprint, data, len(images.classes), statistics)


@torch.no_grad()
def draw_images(
    generator: Generator, tokenizer: Tokenizer, labels: Int[Tensor, "n"], seed: int, sampling: Sampling
) -> UInt8[np.ndarray, "n H W c"]:
    """8-bit images, one a label; image number i has random numbers of its own, see `Generator.sample`."""
    images = []
    for first in range(0, len(labels), AT_ONCE):
        drawn = generator.sample(labels[first : first + AT_ONCE], sampling, seed=seed, first=first)
        images.append(to_uint8(tokenizer.decode_sampled(drawn)))
    return np.concatenate(images)


@dataclass(frozen=True)
class Kept:
    """8-bit reconstructions of real images and their labels."""

    images: UInt8[np.ndarray, "n H W c"]
    labels: Int[Tensor, "n"]


@torch.no_grad()
def reconstructed(tokenizer: Tokenizer, images: ImageSource, n: int) -> Kept:
    """``n`` images spread over a source, through the tokenizer: the best that a generator of its codes can do.

    Fewer where some are skipped. Raises DataError where none can be read.
    """
    device = next(tokenizer.parameters()).device
    kept, labels = [], []
    drawn = spread(images, n)
    for batch in iterate_once(images, AT_ONCE, indices=sorted(drawn) if images.block else drawn):
        if not len(batch.images):  # none of them could be read
            continue
        kept.append(to_uint8(tokenizer(batch.images.to(device)).images))
        labels.append(batch.labels)
    if not kept:
        raise DataError(f"none of {min(n, len(images))} images could be read")
    return Kept(np.concatenate(kept), torch.cat(labels))


def measure_samples(
    judge: JudgeNet,
    against: Reference,
    images: UInt8[np.ndarray, "n H W c"],
    labels: Int[Tensor, "n"],
    card: ProtocolCard,
) -> list[ProtocolCard]:
    """Fréchet distance to the reference, and how often the judge sees the class that was asked for.

    A judge that learned other classes (see `train_judge`) says nothing about them.
    """
    statistics = FeatureStatistics(judge.feature_dim)
    right = 0
    for part, told in zip(_chunks(images), labels.split(AT_ONCE), strict=True):
        floats = to_float(part)
        statistics.add(_features(judge, floats))
        right += int((_logits(judge, floats).argmax(dim=1) == told).sum())
    card = replace(card, n=len(images), features=f"{FEATURES} {weights_digest(judge)[:12]}")
    distance = frechet_from_statistics(statistics, against.statistics)
    distances = [replace(card, metric=fd_name(FEATURES), values={"distance": distance})]
    if judge.num_classes != against.classes:
        return distances
    return [*distances, replace(card, metric="class agreement", values={"share": right / len(images)})]


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
def measure_likelihood(generator: Generator, codes: CodeSet, card: ProtocolCard) -> list[ProtocolCard]:
    """Bits per image of held-out codes, for a generator that has a likelihood; nothing for one that has none."""
    device = next(generator.parameters()).device
    nats = []
    for rows in torch.arange(len(codes)).split(AT_ONCE):
        part = generator.nll(codes.batch(rows, device))
        if part is None:
            return []
        nats.append(part.cpu())
    bits = torch.cat(nats) / np.log(2)
    values = {"mean": float(bits.mean()), "std": float(bits.std(correction=0))}
    return [replace(card, metric="bits per image", values=values, n=len(codes), sampler="", guidance=1.0, labels="")]


@torch.no_grad()
def _features(judge: JudgeNet, images: Tensor) -> Tensor:
    return judge.features(images.to(next(judge.parameters()).device)).cpu()


@torch.no_grad()
def _logits(judge: JudgeNet, images: Tensor) -> Tensor:
    return judge.logits(images.to(next(judge.parameters()).device)).cpu()


def _chunks(images: UInt8[np.ndarray, "n H W c"]) -> Iterator[np.ndarray]:
    for start in range(0, len(images), AT_ONCE):
        yield images[start : start + AT_ONCE]
