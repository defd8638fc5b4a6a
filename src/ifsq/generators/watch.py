"""Who looks on while a generator draws: how far it is, and what there is of the images by then."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ifsq.codes import Sampled


@dataclass(frozen=True)
class Partly:
    """What there is of the images of a batch.

    sampled  as `Generator.sample` returns it, with 0 for what is not there yet: codes and indices; of a kind that
             begins with noise its codes as they are, which no tokenizer produces, and no indices
    known    which codes are there, (b, d, h, w), where these are channels of their own, or (b, 1, h, w)
    """

    sampled: Sampled
    known: Bool[Tensor, "b _ h w"]

    @property
    def share(self) -> float:
        """Of the codes that are there, 0 to 1."""
        return float(self.known.to(torch.float32).mean())


@dataclass(frozen=True)
class Progress:
    """How far the drawing of a batch is.

    done   steps behind: tokens, rounds, or steps of a solver
    steps  of all; None where the solver finds them itself
    look   gives what there is by now; to be called while one is told, and what it costs it costs then
    time   of what began with noise: 0, noise, to 1, data
    """

    done: int
    steps: int | None
    look: Callable[[], Partly]
    time: float | None = None


Watch = Callable[[Progress], None]
"""Is told of every step. What it raises ends the drawing and comes out of it."""


def blank_where_unknown(codes: Float[Tensor, "b d h w"] | None, known: Tensor) -> Float[Tensor, "b d h w"] | None:
    """Codes with 0 where they are not there yet."""
    return None if codes is None else codes * known
