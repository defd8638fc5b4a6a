"""The random numbers of a batch of images, token by token and group by group; each image's are its own."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from ifsq.codes import CodeSpec
from ifsq.generators.streams import gumbels, uniforms


class Noise(ABC):
    """What `draw` is given."""

    @abstractmethod
    def of(self, first: int, count: int, group: int) -> Float[Tensor, "bt *codes"]:
        """Numbers of ``count`` tokens from ``first`` on, those of an image together."""


class Uniforms(Noise):
    """One number of [0, 1) a token and group."""

    def __init__(self, spec: CodeSpec, seed: int, first: int, images: int, device: torch.device) -> None:
        shape = (spec.tokens, len(spec.groups))
        self._numbers = uniforms(seed, first, images, shape[0] * shape[1]).unflatten(1, shape).to(device)

    def of(self, first: int, count: int, group: int) -> Float[Tensor, "bt"]:
        return self._numbers[:, first : first + count, group].flatten()


class Gumbels(Noise):
    """A Gumbel number a code, made where its token is first asked for and kept until tokens behind it are."""

    def __init__(self, spec: CodeSpec, seed: int, first: int, images: int, device: torch.device) -> None:
        self._sizes = list(spec.vocab_sizes)
        self._of_images, self._device = (seed, first, images), device
        self._kept: dict[int, tuple[Tensor, ...]] = {}

    def of(self, first: int, count: int, group: int) -> Float[Tensor, "bt v"]:
        for place in [place for place in self._kept if place < first]:
            del self._kept[place]
        for place in range(first, first + count):
            if place not in self._kept:
                numbers = gumbels(*self._of_images, place, sum(self._sizes)).to(self._device)
                self._kept[place] = numbers.split(self._sizes, dim=1)
        return torch.stack([self._kept[place][group] for place in range(first, first + count)], dim=1).flatten(0, 1)


NOISES: dict[str, type[Uniforms] | type[Gumbels]] = {"uniform": Uniforms, "gumbel": Gumbels}
