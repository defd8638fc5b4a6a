"""What is measured of a tokenizer, each number with its protocol card, over any number of processes.

Every image once; all metrics on clamped 8-bit images, all networks in float32.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ifsq.data import DataError, ImageBatch, ImageSource, iterate_once, to_float, to_uint8
from ifsq.data.images import DataConfig, size_text
from ifsq.data.sampler import max_batch
from ifsq.evaluation.judge import FEATURES
from ifsq.evaluation.levels import LevelCounts
from ifsq.evaluation.networks import Networks
from ifsq.evaluation.options import ImagesToMeasure
from ifsq.evaluation.protocol import blank_card, dealt, sample_indices
from ifsq.evaluation.record import Evaluation
from ifsq.metrics import (
    CodeCounts,
    CodeStatistics,
    FeatureStatistics,
    ImageScores,
    ProtocolCard,
    fd_name,
    ms_ssim,
    psnr,
    ssim,
)
from ifsq.metrics.distribution import frechet_from_statistics
from ifsq.metrics.reconstruction import ms_ssim_name, ms_ssim_scales
from ifsq.nn.modes import exact_float32
from ifsq.pretrained.lpips import LPIPS
from ifsq.store.weights import weights_digest
from ifsq.tokenizer.model import Tokenizer
from ifsq.training.distributed import World, from_first, gather_or_refuse
from ifsq.training.log import Reporter

WATCHED = 1024  # images at most that are looked at while a tokenizer trains
FEATURES_AT_ONCE = 32  # images: Inception enlarges each to 299 pixels
METHODS = {
    "PSNR, dB": "mean over images",
    "SSIM": "Gaussian window 11 x 11, border reflected, mean over images",
    "MS-SSIM": "Gaussian window 11 x 11, mean over images",
    "LPIPS": "mean over images",
}
"""What a name leaves open; `ifsq.metrics.reconstruction` says all."""


def measure_tokenizer(
    tokenizer: Tokenizer, on: ImagesToMeasure, networks: Networks, world: World, reporter: Reporter, *, workers: int = 0
) -> Evaluation:
    """Measure a tokenizer on images; every process takes a part, and all get the whole result, of no step yet.

    workers  processes that read ahead

    Whole batches are dealt out, so that a network sees the same batches however many processes there are. An image that
    could not be read is missing in ``n``. Raises DataError when too few could.
    """
    batch, indices = max_batch(*on.data.sides), sorted(on.indices)
    mine = [index for share in dealt(indices, batch, world) for index in share]
    tally = _Tally(tokenizer, on.data, networks)
    reporter.start("images", 0, len(indices))

    def count() -> _Counted:
        with exact_float32(), closing(iterate_once(on.images, batch, indices=mine, workers=workers)) as batches:
            for read in batches:
                tally.add(read)
                reporter.advance(min(tally.n * world.size, len(indices)), {})
        return tally.counted

    first, *others = gather_or_refuse(world, count)
    reporter.finish({})

    def result() -> Evaluation:
        for other in others:
            first.merge(other)
        return _result(first, tokenizer, on, networks)

    return from_first(world, result)


@torch.no_grad()
def held_out_figures(tokenizer: Tokenizer, world: World, images: ImageSource) -> dict[str, float]:
    """What is watched while a tokenizer trains: PSNR of all held-out images, or of `WATCHED` drawn over them.

    ``skipped``, where some of them cannot be read, is their number. What one process refuses, all refuse.
    """
    drawn = sorted(sample_indices(images, WATCHED))

    def count() -> tuple[list[Tensor], int]:
        measured, skipped = [], 0
        for batch in iterate_once(images, max_batch(*images.shape[:2]), indices=drawn[world.rank :: world.size]):
            skipped += len(batch.skipped)
            if len(batch.images):
                measured.append(psnr(batch.images, tokenizer(batch.images.to(world.device)).images.cpu()))
        return measured, skipped

    shares = gather_or_refuse(world, count)
    decibels = [part for share, _ in shares for part in share]
    if not decibels:
        raise DataError(f"held-out images: none of {len(drawn)} could be read")
    left_out = sum(skipped for _, skipped in shares)
    return {"psnr": float(torch.cat(decibels).mean()), **({"skipped": float(left_out)} if left_out else {})}


class _Counted:
    """What has been counted of some images, small enough to send: counts, moments, and a few numbers an image."""

    def __init__(self, tokenizer: Tokenizer, features: dict[str, int]) -> None:
        quantizer = tokenizer.quantizer
        self.n = 0
        self.skipped: list[str] = []
        self.scores = ImageScores()
        self.codes = CodeCounts(quantizer.levels, quantizer.groups) if quantizer.levels and quantizer.groups else None
        self.levels = LevelCounts(tokenizer)
        self.latents = FeatureStatistics(quantizer.width)
        self.originals = {name: FeatureStatistics(dim) for name, dim in features.items()}
        self.reconstructions = {name: FeatureStatistics(dim) for name, dim in features.items()}

    def merge(self, other: "_Counted") -> None:
        """Count what ``other``, of other images, has counted."""
        self.n += other.n
        self.skipped += other.skipped
        self.scores.merge(other.scores)
        if self.codes is not None and other.codes is not None:
            self.codes.merge(other.codes)
        self.levels.merge(other.levels)
        self.latents.merge(other.latents)
        for mine, theirs in ((self.originals, other.originals), (self.reconstructions, other.reconstructions)):
            for name, statistics in mine.items():
                statistics.merge(theirs[name])


class _Tally:
    """Runs batches through a tokenizer and the networks, and counts."""

    def __init__(self, tokenizer: Tokenizer, data: DataConfig, networks: Networks) -> None:
        self.tokenizer, self.lpips = tokenizer, networks.lpips
        self.device = next(tokenizer.parameters()).device
        self.scales = ms_ssim_scales(*data.sides)
        self.extractors = extractors_of(networks)
        dims = {name: extractor.dim for name, extractor in self.extractors.items()}
        self.counted = _Counted(tokenizer, dims)

    @property
    def n(self) -> int:
        """Images so far."""
        return self.counted.n

    @torch.no_grad()
    def add(self, batch: ImageBatch) -> None:
        """Count a batch; it may be empty, where none of its images could be read."""
        counted = self.counted
        counted.skipped += batch.skipped
        if not len(batch.images):
            return
        images = batch.images.to(self.device)
        latent = self.tokenizer.latent(images)
        quantized = self.tokenizer.quantizer(latent)
        again = to_uint8(self.tokenizer.decode(quantized.codes))
        counted.n += len(images)
        counted.latents.add(latent.movedim(1, -1).flatten(0, -2))
        counted.levels.add(latent)
        if counted.codes is not None:
            counted.codes.add(quantized.digits.cpu())
        kept = to_float(again).to(self.device)
        counted.scores.add(self._scores(images, kept))
        originals = torch.from_numpy(to_uint8(images)).movedim(-1, 1).to(self.device)
        reconstructions = torch.from_numpy(again).movedim(-1, 1).to(self.device)
        for name, extractor in self.extractors.items():
            for part in originals.split(FEATURES_AT_ONCE):
                counted.originals[name].add(extractor.features(part))
            for part in reconstructions.split(FEATURES_AT_ONCE):
                counted.reconstructions[name].add(extractor.features(part))

    def _scores(self, images: Float[Tensor, "b c H W"], again: Float[Tensor, "b c H W"]) -> dict[str, Tensor]:
        scores = {} if self.lpips is None else {_lpips_name(self.lpips): self.lpips(images, again)}
        if self.device.type == "mps":  # which has no float64
            images, again = images.cpu(), again.cpu()
        scores |= {"PSNR, dB": psnr(images, again), "SSIM": ssim(images, again)}
        if self.scales:
            scores[ms_ssim_name(self.scales)] = ms_ssim(images, again)
        return scores


@dataclass(frozen=True)
class Extractor:
    """Features of 8-bit images for a Fréchet distance; ``told`` names them and their weights on the card."""

    dim: int
    told: str
    features: Callable[[UInt8[Tensor, "b c H W"]], Float[Tensor, "b f"]]


def extractors_of(networks: Networks) -> dict[str, Extractor]:
    """By the name of the distance: that between reconstructions and their own originals, hence the r."""
    found = {}
    inception, judge = networks.inception, networks.judge
    if inception is not None:
        found[f"r{fd_name(inception.name)}"] = Extractor(
            2048, f"{inception.name} {weights_digest(inception)[:12]}", lambda images: inception(images)["2048"]
        )
    if judge is not None:
        found[f"r{fd_name(FEATURES)}"] = Extractor(
            judge.feature_dim,
            f"{FEATURES} {weights_digest(judge)[:12]}",
            lambda images: judge.features(images.float() / 127.5 - 1),
        )
    return found


def _lpips_name(lpips: LPIPS) -> str:
    """``LPIPS`` with the published weights alone."""
    return "LPIPS" if lpips.official else f"LPIPS({lpips.name})"


def _result(counted: _Counted, tokenizer: Tokenizer, on: ImagesToMeasure, networks: Networks) -> Evaluation:
    data, name, extractors = on.data, on.name, extractors_of(networks)
    if counted.n < (2 if extractors else 1):
        raise DataError(
            f"{name}: {counted.n} images could be read; expected one at least, two for distances of features"
        )
    blank = blank_card(data, name, on.images.fingerprint, counted.n, tokenizer)
    cards = _score_cards(counted.scores, blank, networks.lpips)
    cards += [
        replace(blank, metric=metric, features=extractor.told, values={"distance": distance})
        for metric, extractor in extractors.items()
        for distance in [frechet_from_statistics(counted.reconstructions[metric], counted.originals[metric])]
    ]
    if counted.codes is not None:
        cards += _code_cards(counted.codes.statistics(), blank)
    left_out = () if ms_ssim_scales(*data.sides) else (f"MS-SSIM: {size_text(data.size)} pixels, needs 22",)
    # The deviation of a single value is not known; every other is the unbiased one.
    latents = counted.latents
    deviation = latents.covariance.diagonal().sqrt() if latents.n > 1 else torch.zeros_like(latents.mean)
    return Evaluation(
        cards=tuple(cards),
        levels=counted.levels.use(),
        latent={"mean": tuple(latents.mean.tolist()), "std": tuple(deviation.tolist())},
        left_out=left_out,
        skipped=tuple(sorted(counted.skipped)),
    )


def _score_cards(scores: ImageScores, blank: ProtocolCard, lpips: LPIPS | None) -> list[ProtocolCard]:
    """PSNR first, then the others in the order of `METHODS`."""
    summary = scores.summary()
    cards = []
    for start, method in METHODS.items():
        for metric in (metric for metric in summary if metric.startswith(start)):
            features = f"{lpips.name} {weights_digest(lpips)[:12]}" if lpips is not None and start == "LPIPS" else ""
            values = {"mean": summary[metric].mean, "std": summary[metric].std}
            cards.append(replace(blank, metric=metric, method=method, values=values, features=features))
    return cards


def _code_cards(use: CodeStatistics, blank: ProtocolCard) -> list[ProtocolCard]:
    """How levels and indices are used."""
    levels = sum(map(len, use.histograms))
    cards = [
        replace(blank, metric="level entropy / log2 L", values={"mean": use.mean_fraction}),
        replace(blank, metric="dead levels", values={"sum": float(sum(use.dead_levels)), "of": float(levels)}),
    ]
    for number, group in enumerate(use.groups):
        which = f" of group {number}" if len(use.groups) > 1 else ""
        share = {"share": group.fraction, "at most": group.fraction_limit}
        cards += [
            replace(blank, metric=f"index use{which}", values=share),
            replace(blank, metric=f"index perplexity{which}", values={"perplexity": group.perplexity}),
        ]
    return cards
