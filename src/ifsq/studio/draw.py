"""Images that a generator draws, with what there is of them on the way."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ifsq.codes import CodeSpec, Sampled
from ifsq.config import InputError, check_seed
from ifsq.data import to_uint8
from ifsq.generators import Generator
from ifsq.generators.watch import Partly, Progress
from ifsq.studio.runs import Drawer
from ifsq.studio.tokens import token_picture
from ifsq.tokenizer.bottleneck import taken_indices
from ifsq.tokenizer.model import Tokenizer

COUNTS = (1, 4, 9)
"""How many images may be asked for: squares."""
KEPT = 6
"""States on the way that are kept, the last among them."""
EVERY = 0.3
"""Seconds between the others, at least."""
WORTH = 4
"""How many times as long as a state took passes before the next, so that a slow decoder costs the drawing a quarter of
its time, not many times that."""
STEPS = {"ar": "token", "masked": "round"}  # what a step of a kind is called; of others a step


@dataclass(frozen=True)
class Asked:
    """What all generators are asked for alike: images 0 to ``count`` - 1 of a seed, of a class by its name."""

    name: str
    seed: int
    guidance: float
    count: int

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.count not in COUNTS:
            raise InputError(f"{self.count} images: expected {', '.join(map(str, COUNTS))}")


@dataclass(frozen=True)
class State:
    """What there is of the images after a step.

    text    how far it is
    share   of the steps, 0 to 1; of a solver that finds its steps itself, of the time
    kept    whether it is one of those to keep
    images  decoded, codes that are not there yet as 0
    tokens  the map of each image; empty where there are none
    """

    text: str
    share: float
    kept: bool
    images: UInt8[np.ndarray, "n H W c"]
    tokens: list[UInt8[np.ndarray, "h w 3"]]


def numbers(name: str, seed: int | float | None, guidance: int | float | None, count: int) -> Asked:
    """What somebody typed, as what is asked for. Raises InputError."""
    if seed is None or not math.isfinite(seed) or seed != int(seed):
        raise InputError(f"seed {'of nothing' if seed is None else f'{seed:g}'}: expected a whole number")
    if guidance is None:
        raise InputError("guidance of nothing: expected a number, 1 for none")
    return Asked(name, int(seed), float(guidance), count)


@torch.no_grad()
def draw_states(drawer: Drawer, asked: Asked, tell: Callable[[State], None]) -> None:
    """Draw, and tell of states on the way and of the images at the end; ``tell`` may raise to stop.

    Raises InputError for a class that the generator does not know, guidance that it does not take, weights that are not
    finite, and where there is not enough memory.
    """
    generator, tokenizer = drawer.pair.generator, drawer.pair.tokenizer
    classes = generator.origin.classes
    if asked.name not in classes:
        raise InputError(f"{drawer.name}: has no class {asked.name!r}")
    options = generator.sampling({"guidance": asked.guidance})
    labels = torch.full((asked.count,), classes.index(asked.name))
    due = -math.inf

    def watch(progress: Progress) -> None:
        nonlocal due
        began = time.monotonic()
        kept = progress.steps is not None and progress.done in milestones(progress.steps)
        if kept or began >= due:
            there = progress.look()
            tell(_state(generator, tokenizer, there, _text(generator, progress, there), _share(progress), kept))
            now = time.monotonic()
            due = now + max(EVERY, WORTH * (now - began))

    try:
        drawn = generator.sample(labels, options, seed=asked.seed, watch=watch)
        content = drawn.codes if drawn.codes is not None else drawn.indices
        assert content is not None  # whatever is drawn has codes or indices
        known = torch.ones(asked.count, 1, *generator.spec.grid, dtype=torch.bool, device=content.device)
        tell(_state(generator, tokenizer, Partly(drawn, known), "drawn", 1.0, True))
    except torch.OutOfMemoryError as error:
        raise InputError(f"{drawer.name}: needs more memory than there is; ask for fewer images") from error


def milestones(steps: int) -> set[int]:
    """After which steps a state is kept: evenly spread. The images at the end are one more, in place of the last."""
    return {math.ceil(steps * part / KEPT) for part in range(1, KEPT)} - {steps}


def _text(generator: Generator, progress: Progress, there: Partly) -> str:
    of = "" if progress.steps is None else f" of {progress.steps}"
    text = f"{STEPS.get(generator.kind, 'step')} {progress.done}{of}"
    if progress.time is not None:
        return f"{text}, time {progress.time:.2f}"
    return text if there.known.shape[1] == 1 else f"{text}, {100 * there.share:.0f} % of the digits"


def _share(progress: Progress) -> float:
    return (progress.time or 0.0) if progress.steps is None else progress.done / progress.steps


def _state(generator: Generator, tokenizer: Tokenizer, there: Partly, text: str, share: float, kept: bool) -> State:
    codes = _codes(tokenizer, there)
    images = to_uint8(tokenizer.decode(codes).clamp(-1, 1))
    return State(text, share, kept, images, _tokens(generator.spec, there.sampled, codes, there.known))


def _codes(tokenizer: Tokenizer, there: Partly) -> Float[Tensor, "b d h w"]:
    """What the decoder reads: 0 where nothing is there, which of a lattice is its middle."""
    if there.sampled.codes is not None:
        return there.sampled.codes
    assert there.sampled.indices is not None
    quantizer = tokenizer.quantizer
    return quantizer.indices_to_codes(taken_indices(quantizer, there.sampled.indices)) * there.known


def _tokens(layout: object, sampled: Sampled, codes: Tensor, known: Tensor) -> list[np.ndarray]:
    """Maps of tokens; of codes with noise those of the nearest points, of vectors none before they are the codebook's.

    A position is there once one of its digits is.
    """
    if not isinstance(layout, CodeSpec):
        return []
    digits = layout.codes_to_digits(codes) if layout.on_lattice else sampled.indices
    if digits is None:
        return []
    there = known.any(dim=1)  # b h w
    return [token_picture(layout, one, which) for one, which in zip(digits, there, strict=True)]
