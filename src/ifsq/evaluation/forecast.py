"""A forecast of how well a tokenizer's codes can be generated, without a generator: what its tokens and decoder say.

Of tokens, from a cache: how many bits they take alone and given their neighbours, see `ifsq.metrics.ngram`. Of the
decoder: the Fréchet distance of reconstructions, and that of what lies between codes. The latter is the interpolated
FID of arXiv 2603.05630: every image's code is averaged with that of the nearest other image, decoded, and all of these
are held against the images. There, over continuous tokenizers, it ranks as generation does and reconstruction does not.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ifsq.codes import CodeSpec
from ifsq.codes.cache import CodeCache
from ifsq.config import InputError, build
from ifsq.data import DataConfig, DataError, iterate_once, sample_order, to_uint8
from ifsq.data.sampler import max_batch
from ifsq.evaluation.networks import load_networks
from ifsq.evaluation.options import ImagesToMeasure, TokenizerEvaluation, images_to_measure
from ifsq.evaluation.protocol import blank_card, name_of
from ifsq.evaluation.record import Evaluation
from ifsq.evaluation.tokenizer import FEATURES_AT_ONCE, Extractor, extractors_of
from ifsq.metrics import FeatureStatistics, ProtocolCard
from ifsq.metrics.codebook import CodeCounts
from ifsq.metrics.distribution import frechet_from_statistics
from ifsq.metrics.ngram import MOST_POSITIONS, neighbour_entropy
from ifsq.nn.modes import exact_float32
from ifsq.sources import check_cache, load_tokenizer, workers_of
from ifsq.store.run import Run
from ifsq.tokenizer.model import Tokenizer
from ifsq.training.distributed import World
from ifsq.training.log import Reporter

MOST_IMAGES = 10_000
"""Whose codes are held in memory and compared with each other; drawn, where there are more."""
READ_AT_ONCE = 4096  # images of a cache
COMPARED_AT_ONCE = 512  # codes, with all others
DECODED = "decoded midpoint of each image's code and the nearest other image's, against the images"
COUNTED = "held-out tokens by counts of {n} training images (Witten and Bell)"


def forecast_tokenizer(
    run: Run, codes: Path | None, options: TokenizerEvaluation, world: World, reporter: Reporter
) -> tuple[Evaluation, str]:
    """All of a forecast, and what the name of its file adds for other images than the run's held-out ones.

    codes    cache of this tokenizer's codes with splits ``train`` and ``val``; None: nothing is said of tokens
    options  images, and networks whose features distances are of; one process alone

    Raises InputError, before a judge is trained, and DataError where too few images can be read.
    """
    tokenizer = load_tokenizer(run, world.device, options.levels)
    on = images_to_measure(run, options, tokenizer)
    if len(on.indices) > MOST_IMAGES:
        on = replace(on, indices=on.indices[:MOST_IMAGES], name=f"{on.name}, {MOST_IMAGES} drawn")
    cards, left_out = ([], ["tokens: no cache was given"]) if codes is None else token_cards(tokenizer, codes)
    networks = load_networks(options, run.folder.absolute().parent, on, tokenizer.channels, world, reporter)
    extractors = extractors_of(networks)
    if not extractors:
        left_out.append("distances: no network was asked for, or there is one image")
        return _evaluation(cards, run, left_out, ()), on.suffix
    found, skipped = distance_cards(tokenizer, on, extractors, workers_of(run, options.reading), reporter)
    return _evaluation([*cards, *found], run, [*left_out, *networks.left_out], skipped), on.suffix


def _evaluation(cards: Sequence[ProtocolCard], run: Run, left_out: Sequence[str], skipped: Sequence[str]) -> Evaluation:
    if not cards:
        raise InputError(f"{run.name}: {'; '.join(left_out)}; expected something to measure")
    return Evaluation(tuple(cards), run.step, left_out=tuple(left_out), skipped=tuple(skipped))


def token_cards(tokenizer: Tokenizer, folder: Path) -> tuple[list[ProtocolCard], list[str]]:
    """Entropies of the tokens of a cache, and what it does not allow in words.

    Of the indices as an autoregressive generator sees them and, where these are of several dimensions, of the digits:
    sums over groups or dimensions, each given its own neighbours alone. Raises InputError for the cache of another.
    """
    cache = CodeCache.open(folder)
    check_cache(cache, tokenizer, "to be forecast")
    layout = cache.layout
    if not isinstance(layout, CodeSpec):
        return [], ["tokens: the codes are continuous"]
    if "val" not in cache.splits:
        return [], [f"tokens: {folder} holds no split val to be held out"]
    train, held_out = (_digits(cache, split) for split in ("train", "val"))
    data = build(DataConfig, cache.about["data"], str(folder))
    name, fingerprint = name_of(data, "val"), cache.about["fingerprints"]["val"]
    blank = blank_card(data, name, fingerprint, len(held_out), tokenizer)
    blank = replace(blank, method=COUNTED.format(n=len(train)))
    kinds = [("index", layout.vocab_sizes, layout.digits_to_indices)]
    if layout.vocab_sizes != layout.levels:
        kinds.append(("digit", layout.levels, lambda digits: digits))
    cards = []
    for what, sizes, tokens in kinds:
        columns = [(_column(tokens, train, at), _column(tokens, held_out, at), size) for at, size in enumerate(sizes)]
        each = [neighbour_entropy(*column) for column in columns]
        values = {
            "held out": sum(one.alone for one in each),
            "given left": sum(one.left for one in each),
            "given left and above": sum(one.both for one in each),
            "plug-in": sum(one.plug_in for one in each),
            "at most": float(np.log2(np.array(sizes, dtype=np.float64)).sum()),
        }
        cards.append(replace(blank, metric=f"{what} entropy, bits a position", values=values))
    counted = replace(blank, n=len(train), reference=name_of(data, "train"), method="training images of the cache")
    return [
        *cards,
        *_use_cards(layout, train, replace(counted, reference_hash=cache.about["fingerprints"]["train"])),
    ], []


def _digits(cache: CodeCache, split: str) -> Tensor:
    """As stored, (n, h, w, d), of all images or of so many drawn ones as are counted; the first crop, not mirrored."""
    codes = cache.read(split)
    most = max(1, MOST_POSITIONS // cache.spec.tokens)
    rows = torch.from_numpy(np.sort(sample_order(0, 0, len(codes))[:most]))
    dtype = cache.spec.digit_dtype
    return torch.cat([codes.batch(part).content.to(dtype) for part in rows.split(READ_AT_ONCE)])


def _column(tokens: Callable[[Tensor], Tensor], digits: Tensor, at: int) -> Int[Tensor, "n h w"]:
    return torch.cat([tokens(part.long())[..., at] for part in digits.split(READ_AT_ONCE)])


def _use_cards(spec: CodeSpec, digits: Tensor, blank: ProtocolCard) -> list[ProtocolCard]:
    """How evenly levels are used, and which part of the indices."""
    counts = CodeCounts(spec.levels, spec.groups)
    for part in digits.split(READ_AT_ONCE):
        counts.add(part)
    use = counts.statistics()
    share = [float(np.mean([getattr(group, name) for group in use.groups])) for name in ("fraction", "fraction_limit")]
    return [
        replace(blank, metric="level entropy / log2 L", values={"mean": use.mean_fraction}),
        replace(blank, metric="index use", values=dict(zip(("share", "at most"), share, strict=True))),
    ]


def distance_cards(
    tokenizer: Tokenizer, on: ImagesToMeasure, extractors: dict[str, Extractor], workers: int, reporter: Reporter
) -> tuple[list[ProtocolCard], list[str]]:
    """Distances of reconstructions and of midpoints, by their networks; a line about each image that cannot be read.

    Raises DataError where fewer than two can.
    """
    batch = max_batch(*on.data.sides)
    device = next(tokenizer.parameters()).device
    seen, codes, skipped = _Seen(extractors, device), list[Tensor](), list[str]()
    reporter.start("images", 0, 2 * len(on.indices))
    with exact_float32(), torch.no_grad():
        with closing(iterate_once(on.images, batch, indices=sorted(on.indices), workers=workers)) as batches:
            for read in batches:
                skipped += read.skipped
                if not len(read.images):
                    continue
                images = read.images.to(device)
                codes.append(tokenizer.encode(images).codes.cpu())
                seen.add("images", to_uint8(images))
                seen.add("reconstructions", to_uint8(tokenizer.decode(codes[-1].to(device))))
                reporter.advance(sum(map(len, codes)), {})
        n = sum(map(len, codes))
        if n < 2:
            raise DataError(f"{on.name}: {n} images could be read; expected two at least, for distances of features")
        for rows, kind, decoded in _between(tokenizer, torch.cat(codes), batch):
            seen.add(kind, decoded)
            reporter.advance(n + rows.stop, {})
    reporter.finish({})
    blank = blank_card(on.data, on.name, on.images.fingerprint, n, tokenizer)
    cards = []
    for metric, extractor in extractors.items():
        told = replace(blank, features=extractor.told)
        values = {"distance": seen.distance(metric, "midpoints")}
        if ("snapped", metric) in seen.statistics:
            values["snapped"] = seen.distance(metric, "snapped")
        cards += [
            replace(told, metric=metric, values={"distance": seen.distance(metric, "reconstructions")}),
            replace(told, metric=f"i{metric.removeprefix('r')}", values=values, method=DECODED),
        ]
    return cards, sorted(skipped)


class _Seen:
    """Features of several kinds of images by several networks, summed."""

    def __init__(self, extractors: dict[str, Extractor], device: torch.device) -> None:
        self.extractors, self.device = extractors, device
        self.statistics: dict[tuple[str, str], FeatureStatistics] = {}

    def add(self, kind: str, images: UInt8[np.ndarray, "b H W c"]) -> None:
        for metric, extractor in self.extractors.items():
            sums = self.statistics.setdefault((kind, metric), FeatureStatistics(extractor.dim))
            for part in torch.from_numpy(images).movedim(-1, 1).split(FEATURES_AT_ONCE):
                sums.add(extractor.features(part.to(self.device)))

    def distance(self, metric: str, kind: str) -> float:
        """Of a kind from the images."""
        return frechet_from_statistics(self.statistics[kind, metric], self.statistics["images", metric])


def _between(
    tokenizer: Tokenizer, codes: Float[Tensor, "n d h w"], batch: int
) -> Iterator[tuple[range, str, UInt8[np.ndarray, "b H W c"]]]:
    """Rows, and images between their codes and the nearest others: as they come, and snapped to what can be drawn."""
    device = next(tokenizer.parameters()).device
    snapped = _snapping(tokenizer)
    for start in range(0, len(codes), batch):
        rows = range(start, min(start + batch, len(codes)))
        middle = (codes[rows.start : rows.stop] + codes[nearest_others(codes, rows)]) / 2
        yield rows, "midpoints", to_uint8(tokenizer.decode(middle.to(device)))
        if snapped is not None:
            yield rows, "snapped", to_uint8(tokenizer.decode(snapped(middle).to(device)))


def _snapping(tokenizer: Tokenizer) -> Callable[[Tensor], Tensor] | None:
    """Codes (b, d, h, w) -> the nearest that the tokenizer can produce; None of continuous ones."""
    lattice, codebook = tokenizer.quantizer.lattice, tokenizer.codebook()
    if codebook is not None:

        def to_vector(codes: Tensor) -> Tensor:
            rows = codes.movedim(1, -1)
            nearest = torch.cdist(rows.flatten(0, 2), codebook).argmin(dim=1)
            return F.embedding(nearest, codebook).view(rows.shape).movedim(-1, 1)

        return to_vector
    if lattice is None:
        return None
    return lambda codes: lattice.digits_to_codes(lattice.codes_to_digits(codes.movedim(1, -1))).movedim(-1, 1)


def nearest_others(codes: Float[Tensor, "n d h w"], rows: range) -> Int[Tensor, "b"]:
    """Of each of these rows the nearest other, by the Euclidean distance of whole codes."""
    flat, found = codes.flatten(1), []
    for part in torch.arange(rows.start, rows.stop).split(COMPARED_AT_ONCE):
        distances = torch.cdist(flat[part], flat)
        distances[torch.arange(len(part)), part] = torch.inf
        found.append(distances.argmin(dim=1))
    return torch.cat(found)
