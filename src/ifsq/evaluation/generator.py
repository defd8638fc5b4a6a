"""What is measured of samples, each number with its protocol card.

One path for both kinds of generator: the same labels, the same decoder, the same judge, the same reference images.
"""

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ifsq.codes.cache import CodeCache, CodeSet
from ifsq.config import InputError, build
from ifsq.data import DataError, ImageSource, open_images, write_png
from ifsq.data.images import DataConfig
from ifsq.data.sampler import AT_ONCE
from ifsq.evaluation.collect import Collected, Look, collect
from ifsq.evaluation.given import DrawnImages, ReconstructedImages, SourceImages
from ifsq.evaluation.image_cards import image_cards
from ifsq.evaluation.judge import JudgeFeatures, share_judge
from ifsq.evaluation.labels import BALANCED, LIKE_REFERENCE, labels_balanced, labels_like
from ifsq.evaluation.protocol import blank_card, dealt, name_of
from ifsq.evaluation.record import Evaluation
from ifsq.evaluation.reference import Reference, View, views_of
from ifsq.evaluation.sheets import CLASS_COLUMNS, SHEET_CLASSES, class_sheet, real_sheet
from ifsq.experiment import Pair
from ifsq.generators import Generator, Sampling
from ifsq.metrics import ProtocolCard
from ifsq.store.files import make_folder
from ifsq.store.run import Run
from ifsq.store.weights import weights_digest
from ifsq.training.config import TrainConfig
from ifsq.training.distributed import World, from_first
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
    source = SourceImages(real, name_of(data, "train"), data)
    look = Look(JudgeFeatures(judge), agreement=judge.num_classes == len(real.classes))
    (view,) = views_of(Reference(source.name, real.fingerprint, source), [look], world, reporter)
    codes = cache.read("train", tokenizer.codebook())
    labels = (labels_balanced if balanced else labels_like)(codes.labels, samples)
    blank = blank_card(data, source.name, real.fingerprint, samples, tokenizer)
    card = sampling_card(blank, generator, seed, sampling, BALANCED if balanced else LIKE_REFERENCE)
    shown = labels.unique().tolist()[:SHEET_CLASSES]
    pictured = [number for label in shown for number in (labels == label).nonzero()[:CLASS_COLUMNS, 0].tolist()]

    def drawn(model: Generator, what: str, keep: Collection[int] = ()) -> Collected:
        images = DrawnImages(model, tokenizer, labels, seed, sampling)
        return collect([look], images, range(samples), world, reporter, what, keep)

    seen = drawn(generator, "samples", pictured)
    cards = sample_cards(look, seen, view, card, world)
    if "val" in cache.splits:
        held_out = cache.about["fingerprints"]["val"]
        of = replace(card, reference=name_of(data, "val"), reference_hash=held_out, function_evaluations=1)
        cards += measure_likelihood(generator, cache.read("val"), of, world)
    twin = untrained(run, codes).to(world.device)
    cards.append(_renamed(sample_cards(look, drawn(twin, "untrained"), view, card, world)[0], "untrained generator"))
    again = ReconstructedImages(source, tokenizer)
    alone = collect([look], again, again.chosen(samples), world, reporter, "reconstructions")
    if not alone.seen[0].n:
        raise DataError(f"none of {min(samples, len(real))} images could be read")
    floor = replace(card, guidance=0.0, sampler="", labels="", function_evaluations=0, generator_hash="")
    cards.append(_renamed(sample_cards(look, alone, view, floor, world)[0], "tokenizer alone"))
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


def sample_cards(look: Look, found: Collected, view: View, card: ProtocolCard, world: World) -> list[ProtocolCard]:
    """Fréchet distance to the reference, and how often the judge sees the class that was asked for.

    A judge that learned other classes (see `train_judge`) says nothing about them.
    """
    seen = found.seen[0]
    cards, _ = image_cards(look, seen, view, card, world)
    if not look.agreement:
        return cards
    agreement = replace(card, metric="class agreement", values={"share": seen.right / seen.n}, n=seen.n)
    return [*cards, replace(agreement, features=cards[0].features)]


def sampling_card(
    blank: ProtocolCard, generator: Generator, seed: int, sampling: Sampling, labels: str
) -> ProtocolCard:
    """The protocol of a set of samples, without a metric yet; ``labels`` says in words which classes were asked for."""
    return replace(
        blank,
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
    run: Run, suffix: str, seen: Collected, labels: Int[Tensor, "n"], real: ImageSource, counts: dict[int, int]
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
