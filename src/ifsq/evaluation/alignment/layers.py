"""The layers of a generator or of a tokenizer, and what they make of images."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ifsq.codes import CodeBatch
from ifsq.config import InputError
from ifsq.generators import Generator
from ifsq.nn.modes import evaluating
from ifsq.tokenizer.model import Tokenizer

TIMES = (0.25, 0.5, 0.75, 0.95)
"""Times at which a generator of noised codes is looked at where nobody says others; 0 is noise and 1 data."""


@dataclass(frozen=True)
class Looked:
    """Some of the images that are measured.

    images  in [-1, 1], for who reads images
    codes   of them, for who reads codes; their labels may be the null class
    first   number of the first one among all that are measured
    """

    images: Float[Tensor, "b c H W"] | None
    codes: CodeBatch | None
    first: int


class Layers(ABC):
    """The layers of a network.

    names     of them, in the order in which the data pass
    grid      rows and columns of their positions
    times     at which they are looked at; of a network that reads no noise None alone
    predicts  whether the state at a position has read the positions before it alone, and predicts its own
    reads_tokens  whether the first layer holds the tokens as the first block reads them, of one width with the others
    arithmetic    what the network computes in
    """

    names: tuple[str, ...]
    grid: tuple[int, int]
    times: tuple[float | None, ...] = (None,)
    predicts: bool = False
    reads_tokens: bool = False
    arithmetic: str = "float32"

    @abstractmethod
    def states(self, batch: Looked, time: float | None) -> Sequence[Float[Tensor, "b t _"]]:
        """One of each layer, of one pass in eval mode without gradient; positions row-major."""


class GeneratorLayers(Layers):
    """The input of a generator's first block, called ``0``, and the states after each block.

    times  of a kind that reads noise; empty for `TIMES`
    seed   of the noise

    Raises InputError for times of a kind without noise, and times outside of 0 to 1.
    """

    def __init__(self, generator: Generator, times: Sequence[float] = (), seed: int = 0) -> None:
        self.generator, self.seed = generator, seed
        self.names = tuple(str(depth) for depth in range(generator.depth + 1))
        self.reads_tokens, self.arithmetic = True, generator.arithmetic()
        self.grid, self.predicts = generator.token_grid, generator.causal
        self.times = tuple(times or TIMES) if generator.noisy or times else (None,)
        try:
            for time in self.times:
                generator.check_states((), time)
        except ValueError as error:
            raise InputError(str(error)) from error

    def states(self, batch: Looked, time: float | None) -> Sequence[Float[Tensor, "b t _"]]:
        """See `Layers.states`."""
        assert batch.codes is not None
        return self.generator.states_at(batch.codes, range(len(self.names)), time, self.seed, batch.first)


class TokenizerLayers(Layers):
    """A tokenizer's encoder, a resolution a layer, its latent and its codes; finer maps are averaged to the code grid.

    size  height and width of the images

    Raises InputError for times.
    """

    def __init__(self, tokenizer: Tokenizer, size: tuple[int, int], times: Sequence[float] = ()) -> None:
        if times:
            raise InputError(f"time {times[0]:g}: expected none, a tokenizer reads no noise")
        self.tokenizer, encoder = tokenizer, tokenizer.encoder
        self._watched = [*encoder.down, encoder.mid_block[-1]]
        levels = (f"down {number}" for number in range(1, len(encoder.down) + 1))
        self.names = (*levels, "middle", "latent", "codes")
        self.grid = size[0] // tokenizer.factor, size[1] // tokenizer.factor

    def states(self, batch: Looked, time: float | None) -> Sequence[Float[Tensor, "b t _"]]:
        """See `Layers.states`."""
        assert batch.images is not None
        with evaluating(self.tokenizer), outputs_of(self._watched) as maps:
            latent = self.tokenizer.latent(batch.images)
            maps += [latent, self.tokenizer.quantizer(latent).codes]
        pooled = (F.adaptive_avg_pool2d(one.float(), self.grid) for one in maps)
        return [one.flatten(2).transpose(1, 2) for one in pooled]  # b t width


def check_names(layers: Layers, asked: Sequence[str]) -> None:
    """Raise InputError for a layer that is none."""
    for name in asked:
        if name not in layers.names:
            raise InputError(f"layer {name!r}: expected some of {', '.join(layers.names)}")


@contextmanager
def outputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """A list to which each of the modules adds what it returns, in the order in which they run."""
    found: list[Tensor] = []
    hooks = [module.register_forward_hook(lambda _, __, output: found.append(output)) for module in modules]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
