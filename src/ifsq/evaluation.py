"""What is measured of a tokenizer and of a generator, each number with its protocol card. Called by ``pipeline``.

One path for both kinds of generator: the same labels, the same decoder, the same judge, the same reference images.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ifsq.codes import CodeSpec
from ifsq.codes.cache import CodeSet
from ifsq.data import ImageSource, iterate_once, sample_order, to_float, to_uint8
from ifsq.data.draws import mix
from ifsq.data.images import DataConfig
from ifsq.data.transforms import RESIZE_KERNEL
from ifsq.generators.ar import ARGenerator
from ifsq.generators.base import Generator
from ifsq.generators.diffusion.sample import function_evaluations
from ifsq.generators.train import take
from ifsq.metrics import FeatureStatistics, JudgeNet, ProtocolCard, Reconstruction, code_statistics, fd_name
from ifsq.metrics.codebook import entropy_bits
from ifsq.metrics.distribution import frechet_from_statistics
from ifsq.metrics.judge import FEATURES
from ifsq.quantizers import FSQ
from ifsq.tokenizer.model import Tokenizer
from ifsq.training.checkpoint import weights_digest

AT_ONCE = 128  # images that pass through a network together

COMPARED_QUANTIZERS = {
    "FSQ (tanh)": {"bound": "tanh", "cells": "paper"},
    "iFSQ": {"bound": "ifsq", "cells": "paper"},
    "iFSQ, equal cells": {"bound": "ifsq", "cells": "equal"},
}
"""Quantizers whose use of the levels is compared on the latents of one tokenizer."""


@dataclass(frozen=True)
class LevelUse:
    """How one quantizer would use its levels on given latents.

    share     part of all digits that falls on each level, over all dimensions
    fraction  entropy over log2 L, mean over the dimensions: 1 is even use
    """

    share: list[float]
    fraction: float


@dataclass(frozen=True)
class TokenizerMeasured:
    """Cards, the use of levels by several quantizers on the same latents, and the latents' mean and deviation."""

    cards: list[ProtocolCard]
    levels: dict[str, LevelUse]
    latent_mean: list[float]
    latent_std: list[float]


@dataclass(frozen=True)
class Reference:
    """Real images that samples are held against: name, hash, classes and the judge's statistics of their features."""

    name: str
    fingerprint: str
    data: DataConfig
    classes: int
    statistics: FeatureStatistics


@torch.no_grad()
def measure_tokenizer(tokenizer: Tokenizer, images: ImageSource, data: DataConfig, name: str) -> TokenizerMeasured:
    """Reconstruction, codes and levels on every image of a source once, in float32."""
    device = next(tokenizer.parameters()).device
    quality = Reconstruction()
    digits, latents = [], []
    for batch in iterate_once(images, AT_ONCE):
        latent = tokenizer.latent(batch.images.to(device))
        quantized = tokenizer.quantizer(latent)
        quality.add(batch.images, tokenizer.decode(quantized.codes).cpu())
        if quantized.digits is not None:
            digits.append(quantized.digits.cpu())
        latents.append(latent.cpu())
    scores = quality.scores()
    blank = _blank(data, name, images.fingerprint, scores.n, tokenizer)
    cards = [
        replace(blank, metric="PSNR, dB", values={"mean": scores.psnr, "std": scores.psnr_std}),
        replace(blank, metric="SSIM", values={"mean": scores.ssim, "std": scores.ssim_std}),
    ]
    if digits:
        cards += _code_cards(torch.cat(digits), tokenizer, data, blank)
    return TokenizerMeasured(cards, *_levels(torch.cat(latents), tokenizer))


def _code_cards(
    digits: Int[Tensor, "n h w d"], tokenizer: Tokenizer, data: DataConfig, blank: ProtocolCard
) -> list[ProtocolCard]:
    """How levels and indices are used."""
    quantizer, side = tokenizer.quantizer, data.size // tokenizer.factor
    levels = quantizer.levels
    assert levels is not None
    if tokenizer.kind == "residual":
        groups = (quantizer.dim,) * (len(levels) // quantizer.dim)
    else:
        groups = getattr(quantizer, "groups", (len(levels),))
    # The lattice plays no part in counting.
    use = code_statistics(digits, CodeSpec(levels, groups, "little", "equal", (side, side)))
    cards = [
        replace(blank, metric="level entropy / log2 L", values={"mean": use.mean_fraction}),
        replace(blank, metric="dead levels", values={"sum": float(sum(use.dead_levels)), "of": float(sum(levels))}),
    ]
    for number, group in enumerate(use.groups):
        which = f" of group {number}" if len(use.groups) > 1 else ""
        cards += [
            replace(
                blank, metric=f"index use{which}", values={"share": group.fraction, "at most": group.fraction_limit}
            ),
            replace(blank, metric=f"index perplexity{which}", values={"perplexity": group.perplexity}),
        ]
    return cards


def evenly(classes: int, n: int) -> Int[Tensor, "n"]:
    """``n`` labels, every class as often as any other (the first ones once more where n does not divide)."""
    return torch.arange(n) % classes


def reference(judge: JudgeNet, images: ImageSource, data: DataConfig, name: str) -> Reference:
    """The judge's view of every image of a source."""
    statistics = FeatureStatistics(judge.feature_dim)
    for batch in iterate_once(images, AT_ONCE):
        statistics.add(_features(judge, batch.images))
    return Reference(name, images.fingerprint, data, len(images.classes), statistics)


@torch.no_grad()
def draw_images(
    generator: Generator, tokenizer: Tokenizer, labels: Int[Tensor, "n"], seed: int, options: dict[str, Any]
) -> UInt8[np.ndarray, "n H W 3"]:
    """8-bit images, one a label, drawn in batches whose seeds follow from ``seed``."""
    images = []
    for number, part in enumerate(labels.split(AT_ONCE)):
        drawn = generator.sample(part, seed=mix(seed, number), **options)
        images.append(to_uint8(tokenizer.decode(drawn.codes)))
    return np.concatenate(images)


@dataclass(frozen=True)
class Kept:
    """8-bit reconstructions of real images and their labels."""

    images: UInt8[np.ndarray, "n H W 3"]
    labels: Int[Tensor, "n"]


def spread(images: ImageSource, n: int) -> list[int]:
    """At most ``n`` indices drawn over a source, always the same: neither its first images nor every so-manieth are a
    sample, since a folder is sorted by class and the bundled sources go round the classes."""
    return sample_order(0, 0, len(images))[:n].tolist()


@torch.no_grad()
def reconstructed(tokenizer: Tokenizer, images: ImageSource, n: int) -> Kept:
    """``n`` images spread over a source, through the tokenizer: the best that a generator of its codes can do."""
    device = next(tokenizer.parameters()).device
    kept, labels = [], []
    for batch in iterate_once(images, AT_ONCE, indices=spread(images, n)):
        kept.append(to_uint8(tokenizer(batch.images.to(device)).images))
        labels.append(batch.labels)
    return Kept(np.concatenate(kept), torch.cat(labels))


def measure_samples(
    judge: JudgeNet,
    against: Reference,
    images: UInt8[np.ndarray, "n H W 3"],
    labels: Int[Tensor, "n"],
    card: ProtocolCard,
) -> list[ProtocolCard]:
    """Fréchet distance to the reference, and how often the judge sees the class that was asked for.

    A judge that learned other classes (see `pipeline.evaluate_generator`) says nothing about them.
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
    generator: Generator, tokenizer: Tokenizer, against: Reference, seed: int, options: dict[str, Any]
) -> ProtocolCard:
    """The protocol of a set of samples, without a metric yet."""
    own = {name: value for name, value in options.items() if name != "guidance"}
    guidance = options.get("guidance", 1.0)
    if generator.kind == "ar":
        evaluations = generator.spec.tokens * (1 if guidance == 1 else 2)
    else:
        evaluations = function_evaluations(options["steps"], options["solver"], guidance)
    return replace(
        _blank(against.data, against.name, against.fingerprint, 0, tokenizer),
        seed=seed,
        guidance=guidance,
        sampler=", ".join(f"{name} {value}" for name, value in own.items()),
        function_evaluations=evaluations,
        generator_hash=weights_digest(generator),
    )


@torch.no_grad()
def measure_likelihood(generator: Generator, codes: CodeSet, card: ProtocolCard) -> list[ProtocolCard]:
    """Bits per image of held-out codes, for a generator that has a likelihood; nothing for one that has none."""
    if not isinstance(generator, ARGenerator):
        return []
    device = next(generator.parameters()).device
    nats = [generator.nll(take(codes, rows, device)).cpu() for rows in torch.arange(len(codes)).split(AT_ONCE)]
    bits = torch.cat(nats) / np.log(2)
    values = {"mean": float(bits.mean()), "std": float(bits.std(correction=0))}
    return [replace(card, metric="bits per image", values=values, n=len(codes), sampler="", guidance=1.0)]


def _levels(
    latents: Float[Tensor, "n d h w"], tokenizer: Tokenizer
) -> tuple[dict[str, LevelUse], list[float], list[float]]:
    """Level use of the compared quantizers, where the level counts admit them, and the latents' statistics."""
    levels = tokenizer.config.quantizer.levels
    used = {}
    compared = COMPARED_QUANTIZERS if tokenizer.kind == "fsq" else {}
    for name, options in compared.items():
        if options["cells"] == "paper" and options["bound"] != "tanh" and any(L % 2 == 0 for L in levels):
            continue
        digits = FSQ(levels, channel_first=True, **options)(latents).digits.flatten(0, -2)  # type: ignore[arg-type]
        counts = [np.bincount(digits[:, k].numpy(), minlength=L) for k, L in enumerate(levels)]
        fractions = [entropy_bits(c) / np.log2(L) for c, L in zip(counts, levels, strict=True)]
        longest = max(levels)
        total = np.stack([np.pad(c, (0, longest - len(c))) for c in counts]).sum(axis=0)
        used[name] = LevelUse((total / total.sum()).tolist(), float(np.mean(fractions)))
    return used, latents.mean(dim=(0, 2, 3)).tolist(), latents.std(dim=(0, 2, 3)).tolist()


def _blank(data: DataConfig, name: str, fingerprint: str, n: int, tokenizer: Tokenizer) -> ProtocolCard:
    bundled = data.source.startswith("bundled:")
    return ProtocolCard(
        metric="",
        values={},
        reference=name,
        reference_hash=fingerprint,
        n=n,
        size=data.size,
        crop="the bundled recipe" if bundled else data.crop,
        resize_kernel="bicubic (Pillow)" if bundled else RESIZE_KERNEL,
        dtype=str(next(tokenizer.parameters()).dtype).removeprefix("torch."),
        tokenizer_hash=tokenizer.digest(),
    )


@torch.no_grad()
def _features(judge: JudgeNet, images: Tensor) -> Tensor:
    return judge.features(images.to(next(judge.parameters()).device)).cpu()


@torch.no_grad()
def _logits(judge: JudgeNet, images: Tensor) -> Tensor:
    return judge.logits(images.to(next(judge.parameters()).device)).cpu()


def _chunks(images: UInt8[np.ndarray, "n H W 3"]) -> Iterator[np.ndarray]:
    for start in range(0, len(images), AT_ONCE):
        yield images[start : start + AT_ONCE]
