"""Anybody's images against a reference: what is asked, and the measuring, over any number of processes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ifsq.config import InputError, check_seed
from ifsq.data.images import Reading, Size, height_width, size_text
from ifsq.evaluation.collect import Look, collect
from ifsq.evaluation.given import (
    ArrayImages,
    DrawnImages,
    GivenImages,
    is_npz,
    open_source,
    refuse_other_size,
    refuse_split,
    told_of,
)
from ifsq.evaluation.image_cards import LEAST, bias_of, image_cards
from ifsq.evaluation.record import Evaluation
from ifsq.evaluation.reference import Reference, open_reference, views_of
from ifsq.evaluation.samples import Classes, asked_for, samples_card
from ifsq.generators import Generator
from ifsq.metrics import ProtocolCard
from ifsq.pretrained.features import load_features
from ifsq.pretrained.network import FeatureNetwork
from ifsq.sources import load_pair
from ifsq.store.run import CONFIG, Run
from ifsq.training.distributed import World, gather_or_refuse, in_turn
from ifsq.training.log import Reporter

DRAWN = 1000
"""Images that a run draws where nothing else is said."""


@dataclass(frozen=True)
class ImageEvaluation:
    """What is measured against what.

    samples          an .npz in ADM's layout, a data source, or the folder of a generator run, which is then sampled
    reference        an .npz of images or statistics, or a data source
    features         names of feature networks, see `load_features`
    weights          file of the weights of the one network that is named; empty: found by checksum, or fetched
    count            images, drawn over the samples; 0: all of them, and `DRAWN` of a run
    size             pixels a side, or height and width, that data sources are brought to; 0: they are as they are
    split            of the samples; empty: ``val``, ``test``, or all of a source without splits
    reference_split  of the reference; empty: ``train``, or all of a source without splits
    pairs            images of each side at most that are compared pair by pair; 0: none
    seed, sampling, classes, step
                     of a run: how its images are drawn (see `asked_for`), from which of its checkpoints
    cache            whether the statistics of the reference are kept
    reading          how data sources are read
    """

    samples: str
    reference: str
    features: tuple[str, ...] = ("inception",)
    weights: str = ""
    count: int = 0
    size: Size = 0
    split: str = ""
    reference_split: str = ""
    pairs: int = 10_000
    seed: int = 0
    sampling: Mapping[str, Any] = field(default_factory=dict)
    classes: Classes = "balanced"
    step: int | None = None
    cache: bool = True
    reading: Reading = field(default_factory=Reading)

    def __post_init__(self) -> None:
        for name, value in (("count", self.count), ("pairs", self.pairs)):
            if value and value < LEAST:
                raise InputError(f"{name} {value}: expected at least {LEAST}")
        if min(height_width(self.size)) < 0:
            raise InputError(f"size {size_text(self.size)}: expected at least 1")
        if len(set(self.features)) != len(self.features) or not self.features:
            raise InputError(f"features {' '.join(self.features) or 'none'}: expected different names, one at least")
        if self.weights and len(self.features) > 1:
            raise InputError(f"weights {self.weights}: given for {len(self.features)} networks; expected one")
        check_seed(self.seed)


def measure_images(asked: ImageEvaluation, world: World, reporter: Reporter) -> Evaluation:
    """Measure samples against a reference; every process takes a part, and all get the whole result.

    Raises InputError in every process.
    """
    opened: list[tuple[GivenImages, Reference]] = []

    def open_both() -> tuple[str, str]:
        opened.append(_open(asked, world))
        return opened[0][0].fingerprint, opened[0][1].fingerprint

    if len(set(gather_or_refuse(world, open_both))) > 1:
        raise InputError(
            f"{asked.samples}, {asked.reference}: are not the same for every process; expected equal files on all"
            " machines, and of a run that is being trained a --step"
        )
    samples, reference = opened[0]
    networks = _networks(asked, samples, world)
    count = asked.count or len(samples)
    looks = [Look(network, spatial=True, score=True, pairs=asked.pairs) for network in networks]
    views = views_of(reference, looks, world, reporter, asked.cache)
    found = collect(looks, samples, samples.chosen(count), world, reporter, "samples")
    cards: list[ProtocolCard] = []
    left_out: list[str] = []
    for look, seen, view in zip(looks, found.seen, views, strict=True):
        some, without = image_cards(look, seen, view, _blank(samples, reference, count), world)
        cards += some
        left_out += without
        if note := bias_of(look, seen, view):
            reporter.say(f"{look.network.name}: {note}")
    skipped = {*found.skipped, *(line for view in views for line in view.skipped)}
    return Evaluation(tuple(cards), left_out=tuple(left_out), skipped=tuple(sorted(skipped)))


def _open(asked: ImageEvaluation, world: World) -> tuple[GivenImages, Reference]:
    """Samples and reference, of one size. Raises InputError."""
    samples = _open_samples(asked, world)
    if asked.count > len(samples):
        raise InputError(f"count {asked.count}: expected {LEAST} to {len(samples)}, the images of {samples.name}")
    least = LEAST if asked.pairs else 2
    if len(samples) < least:
        raise InputError(f"{samples.name}: {len(samples)} images; expected at least {least} to measure")
    reference = open_reference(asked.reference, asked.reference_split, asked.size, samples.size, asked.reading)
    images = reference.images
    if images is not None and len(images) < least:
        raise InputError(f"{reference.name}: {len(images)} images; expected at least {least} to measure")
    if images is not None and images.size != samples.size:
        raise InputError(
            f"{reference.name}: is of {size_text(images.size)} pixels, {samples.name} of {size_text(samples.size)};"
            " expected one size (--size brings folders and other data sources to it)"
        )
    return samples, reference


def _open_samples(asked: ImageEvaluation, world: World) -> GivenImages:
    place = Path(asked.samples)
    is_run, is_file = (place / CONFIG).is_file(), is_npz(asked.samples)
    if not is_run and (given := _of_a_run(asked)):
        raise InputError(f"{given}: is of a generator run, and {asked.samples} is none")
    if not (is_run or is_file):
        return open_source(asked.samples, asked.split, asked.size, asked.size, asked.reading)
    refuse_split(asked.samples, asked.split)
    images = ArrayImages(place) if is_file else _open_run(asked, world)
    refuse_other_size(images, asked.size)
    return images


def _of_a_run(asked: ImageEvaluation) -> str:
    """The first of the options that say how a run is sampled, where one is given; else empty."""
    usual = {entry.name: entry.default for entry in fields(asked)}
    given = [f"sampling.{name}" for name in asked.sampling]
    for name in ("step", "seed", "classes"):
        if (value := getattr(asked, name)) != usual[name]:
            given.append(f"{name} {value}")
    return given[0] if given else ""


def _open_run(asked: ImageEvaluation, world: World) -> GivenImages:
    """The images that a generator run draws. Raises InputError for a run of another kind."""
    run = Run.open(asked.samples)
    if run.kind not in Generator.kinds and run.kind != "model":
        raise InputError(f"{run.name}: is the run of a {run.kind}; expected images, or the run of a generator")
    pair = load_pair(run, world.device, asked.step)
    sampling = pair.generator.sampling(asked.sampling)
    labels = asked_for(run, pair.generator, (), asked.count or DRAWN, asked.classes, asked.seed)
    card = samples_card(pair, labels, sampling, asked.seed, "drawn", asked.step, average=True)
    decides = card.to_dict() | {"code_version": ""}
    return DrawnImages(
        pair.generator,
        pair.tokenizer,
        labels.labels,
        asked.seed,
        sampling,
        name=f"{asked.samples}, {len(labels.labels)} drawn",
        fingerprint=hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest(),
        told=told_of(card),
    )


def _networks(asked: ImageEvaluation, samples: GivenImages, world: World) -> list[FeatureNetwork]:
    """The networks that are asked for, on this process's device. Raises InputError, as for images too small for one."""
    found = []
    for name in asked.features:
        network = in_turn(world, lambda name=name: load_features(name, asked.weights or None))  # type: ignore[misc]
        side = min(samples.shape[:2])
        if side < network.smallest:
            raise InputError(
                f"{samples.name}: is of {size_text(samples.size)} pixels; {network.name} expects at least"
                f" {network.smallest} a side"
            )
        found.append(network.to(world.device))
    return found


def _blank(samples: GivenImages, reference: Reference, n: int) -> ProtocolCard:
    """The card of a measurement, without metric and values yet."""
    of = reference.images
    crops = (samples.crop, "not known" if of is None else of.crop)
    kernels = (samples.kernel, "not known" if of is None else of.kernel)
    card = ProtocolCard(
        metric="",
        values={},
        reference=reference.name,
        reference_hash=reference.fingerprint,
        n=n,
        size=samples.size,
        crop=_both(*crops),
        resize_kernel=_both(*kernels),
        dtype="8-bit images",
        samples=samples.name,
        samples_hash=samples.fingerprint,
    )
    return replace(card, **samples.told)


def _both(samples: str, reference: str) -> str:
    return samples if samples == reference else f"{samples}; of the reference: {reference}"
