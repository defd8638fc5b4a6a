"""How many bits held-out codes take by a generator: exactly, or as a bound, with a protocol card."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ifsq.codes import CodeBatch, CodeSet, CodeSpec
from ifsq.codes.cache import CodeCache
from ifsq.config import InputError, build
from ifsq.data import DataConfig, sample_order
from ifsq.evaluation.protocol import blank_card, dealt, name_of
from ifsq.generators import DiffusionGenerator, Generator, MaskedGenerator
from ifsq.generators.diffusion.likelihood import AT_ONCE, Likelihood, LikelihoodOptions, likelihood
from ifsq.generators.masked.bound import BoundOptions
from ifsq.metrics import ProtocolCard
from ifsq.sources import Pair
from ifsq.store.weights import weights_digest
from ifsq.training.distributed import World
from ifsq.training.log import Reporter, Silent

EXACT = "bits per image"
BOUND = "bits per image, upper bound"
DENSITY = "bits per image, density of latents"
BITS = (EXACT, BOUND, DENSITY)
"""The metrics that are bits of images."""


def measure_bits(
    pair: Pair,
    cache: CodeCache,
    images: int,
    options: Mapping[str, Any] | None,
    seed: int,
    world: World,
    reporter: Reporter | None = None,
) -> ProtocolCard:
    """The card of at most so many held-out images, drawn over them and always the same; all processes share them.

    Of a generator with an exact likelihood that; of a diffusion one a bound or, of latents, a density: see
    `likelihood`; of a masked one a bound: see `BoundOptions`.

    options  of `LikelihoodOptions` or `BoundOptions`; None: their defaults
    seed     of its random numbers, which an image has by its place among those that are measured

    Raises InputError where no codes are held out, and on options that the generator has not.
    """
    model, tokenizer = pair.generator, pair.tokenizer
    if images < 1:
        raise InputError(f"images {images}: expected at least 1")
    if "val" not in cache.splits:
        raise InputError(f"{cache.folder}: holds no split val; expected held-out codes, whose bits are counted")
    asked = _asked(model, options)
    codes = cache.read("val", tokenizer.codebook())
    rows = torch.tensor(sample_order(0, 0, len(codes))[:images])
    data = build(DataConfig, cache.about["data"], str(cache.folder))
    blank = blank_card(data, name_of(data, "val"), cache.about["fingerprints"]["val"], len(rows), tokenizer)
    evaluations = 1 if asked is None else 0  # of a bound they are counted
    card = replace(blank, guidance=1.0, generator_hash=weights_digest(model), function_evaluations=evaluations)
    return bits_card(model, codes, rows, asked, seed, world, card, AT_ONCE, reporter)


def bits_card(
    model: Generator,
    codes: CodeSet,
    rows: Int[Tensor, "n"],
    asked: LikelihoodOptions | BoundOptions | None,
    seed: int,
    world: World,
    card: ProtocolCard,
    at_once: int,
    reporter: Reporter | None = None,
) -> ProtocolCard:
    """The bits of these images by their rows among the codes, and of a bound how it was found, on a card.

    asked    None of a generator whose likelihood is exact
    seed     of a bound's random numbers, which an image has by its place in ``rows``
    at_once  images that are dealt out to a process together
    """
    device, reporter = next(model.parameters()).device, reporter or Silent()
    mine, counted = [], 0
    reporter.start("bits", 0, len(rows))
    for turn in dealt(range(len(rows)), at_once, world):
        mine.append(_bits(model, codes.batch(rows[list(turn)], device), asked, seed, turn[0]))
        counted += len(turn) * world.size
        reporter.advance(min(counted, len(rows)), {})
    reporter.finish({})
    shares = world.gather(mine)
    # Dealt in turn, so in turn they are in the order of the images again.
    parts = [share[turn] for turn in range(len(shares[0])) for share in shares if turn < len(share)]
    bits = torch.cat([found.bits for found in parts])
    mean = float(bits.mean())
    values = {"mean": mean, "std": float(bits.std(correction=0)), "per token": mean / model.spec.tokens}
    card = replace(card, metric=EXACT, values=values, n=len(rows), dtype=model.arithmetic())
    if asked is None:
        return card
    errors = [found.error for found in parts if found.error is not None]
    if errors:
        values[parts[0].error_of] = float(torch.cat(errors).square().sum().sqrt()) / len(rows)
    return replace(
        card,
        metric=BOUND if isinstance(model.spec, CodeSpec) else DENSITY,
        seed=seed,
        sampler=asked.sampler,
        method=parts[0].method,
        function_evaluations=round(float(torch.cat([found.evaluations for found in parts]).double().mean())),
    )


@dataclass(frozen=True)
class _Bits:
    """What was found of some images.

    bits, evaluations  (b,), the latter of the network for an image
    error              of each image's bits, where it is estimated, and what it is the error of, in words
    method             in words
    """

    bits: Tensor
    evaluations: Tensor
    error: Tensor | None = None
    error_of: str = ""
    method: str = ""


def _asked(model: Generator, options: Mapping[str, Any] | None) -> LikelihoodOptions | BoundOptions | None:
    """The options of the generator's kind; None of one whose likelihood is exact."""
    if isinstance(model, DiffusionGenerator):
        return build(LikelihoodOptions, options or {}, "likelihood")
    if isinstance(model, MaskedGenerator):
        return build(BoundOptions, options or {}, "likelihood")
    if options is not None:
        raise InputError(f"a generator of kind {model.kind}: its likelihood is exact and has no options")
    return None


def _bits(
    model: Generator, batch: CodeBatch, options: LikelihoodOptions | BoundOptions | None, seed: int, first: int
) -> _Bits:
    """Of the images numbered from ``first`` on."""
    count = len(batch.labels)
    try:
        if isinstance(options, LikelihoodOptions):
            found = likelihood(model, batch, options, seed=seed, first=first)
            error, method = None if found.exact else found.error, _method(model, options, found)
            return _Bits(found.bits, found.evaluations, error, "error of the trace", method)
        if isinstance(options, BoundOptions) and isinstance(model, MaskedGenerator):
            bound = model.bound(batch, options, seed=seed, first=first)
            error = None if bound.error is None else bound.error / math.log(2)
            evaluations = torch.full((count,), bound.evaluations)
            method = f"all orders, one {model.config.mask} a step"
            return _Bits(bound.nats / math.log(2), evaluations, error, "error of the draws", method)
    except ValueError as error:  # options that suit other codes
        raise InputError(f"likelihood: {error}") from error
    nats = model.nll(batch)
    assert nats is not None  # a kind without options has an exact one
    return _Bits(nats.double().cpu() / math.log(2), torch.ones(count))


def _method(model: Generator, options: LikelihoodOptions, found: Likelihood) -> str:
    probes = "probe" if options.probes == 1 else "probes"
    trace = "exact trace" if found.exact else f"Hutchinson's estimator, {options.probes} {probes}"
    if not isinstance(model.spec, CodeSpec):
        return trace
    path = options.dequantization == "path"
    noise = f"path's noise of {options.spread:g} half cells" if path else "uniform noise"
    return f"{noise} within the cells, read at t = {found.time:.4g}; {trace}"
