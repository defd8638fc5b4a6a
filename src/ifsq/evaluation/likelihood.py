"""How many bits held-out codes take by a generator: exactly, or as a bound, with a protocol card."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from ifsq.codes import CodeBatch, CodeSpec
from ifsq.codes.cache import CodeCache
from ifsq.config import InputError, build
from ifsq.data import DataConfig, sample_order
from ifsq.evaluation.protocol import blank_card, dealt, name_of
from ifsq.generators import Generator
from ifsq.generators.diffusion import DiffusionGenerator
from ifsq.generators.diffusion.likelihood import AT_ONCE, Likelihood, LikelihoodOptions, likelihood
from ifsq.metrics import ProtocolCard
from ifsq.sources import Pair
from ifsq.store.weights import weights_digest
from ifsq.training.distributed import World

EXACT = "bits per image"
BOUND = "bits per image, upper bound"
DENSITY = "bits per image, density of latents"


def measure_bits(
    pair: Pair, cache: CodeCache, images: int, options: LikelihoodOptions | None, seed: int, world: World
) -> ProtocolCard:
    """The card of at most so many held-out images, drawn over them and always the same; all processes share them.

    Of a generator with an exact likelihood that; of a diffusion one a bound or, of latents, a density: see
    `likelihood`.

    options  of a diffusion generator; None: its defaults
    seed     of its noise and its probes, which an image has by its place among those that are measured

    Raises InputError where no codes are held out, and on options that the generator has not.
    """
    model, tokenizer = pair.generator, pair.tokenizer
    if images < 1:
        raise InputError(f"images {images}: expected at least 1")
    if "val" not in cache.splits:
        raise InputError(f"{cache.folder}: holds no split val; expected held-out codes, whose bits are counted")
    if options is not None and not isinstance(model, DiffusionGenerator):
        raise InputError(f"a generator of kind {model.kind}: its likelihood is exact and has no options")
    codes = cache.read("val", tokenizer.codebook())
    rows = torch.tensor(sample_order(0, 0, len(codes))[:images])
    device, options = next(model.parameters()).device, options or LikelihoodOptions()
    turns = dealt(range(len(rows)), AT_ONCE, world)
    mine = [_bits(model, codes.batch(rows[list(turn)], device), options, seed, turn[0]) for turn in turns]
    shares = world.gather(mine)
    # Dealt in turn, so in turn they are in the order of the images again.
    parts = [share[turn] for turn in range(len(shares[0])) for share in shares if turn < len(share)]
    data = build(DataConfig, cache.about["data"], str(cache.folder))
    blank = blank_card(data, name_of(data, "val"), cache.about["fingerprints"]["val"], len(rows), tokenizer)
    card = replace(blank, dtype=model.arithmetic(), guidance=1.0, generator_hash=weights_digest(model))
    bits = torch.cat([bits for bits, _ in parts])
    mean = float(bits.mean())
    values = {"mean": mean, "std": float(bits.std(correction=0)), "per token": mean / model.spec.tokens}
    estimates = [found for _, found in parts if found is not None]
    if not estimates:
        return replace(card, metric=EXACT, values=values, function_evaluations=1)
    errors = [found.error for found in estimates if found.error is not None]
    if errors and not estimates[0].exact:
        values["error of the trace"] = float(torch.cat(errors).square().sum().sqrt()) / len(rows)
    return replace(
        card,
        metric=BOUND if isinstance(model.spec, CodeSpec) else DENSITY,
        values=values,
        seed=seed,
        sampler=options.sampler,
        method=_method(model, options, estimates[0]),
        function_evaluations=round(float(torch.cat([found.evaluations for found in estimates]).double().mean())),
    )


def _bits(
    model: Generator, batch: CodeBatch, options: LikelihoodOptions, seed: int, first: int
) -> tuple[Tensor, Likelihood | None]:
    """Bits of the images numbered from ``first`` on, and how they were estimated where they are not exact."""
    nats = model.nll(batch)
    if nats is not None:
        return nats.double().cpu() / math.log(2), None
    try:
        found = likelihood(model, batch, options, seed=seed, first=first)
    except ValueError as error:  # options that suit other codes
        raise InputError(f"likelihood: {error}") from error
    return found.bits, found


def _method(model: Generator, options: LikelihoodOptions, found: Likelihood) -> str:
    probes = "probe" if options.probes == 1 else "probes"
    trace = "exact trace" if found.exact else f"Hutchinson's estimator, {options.probes} {probes}"
    if not isinstance(model.spec, CodeSpec):
        return trace
    path = options.dequantization == "path"
    noise = f"path's noise of {options.spread:g} half cells" if path else "uniform noise"
    return f"{noise} within the cells, read at t = {found.time:.4g}; {trace}"
