"""How decoding goes through a network: keys and values are kept, and only new positions are computed."""

from abc import ABC, abstractmethod

from jaxtyping import Float, Int
from torch import Tensor

from ifsq.generators.ar.heads.base import Pick
from ifsq.generators.ar.network import ARNetwork
from ifsq.generators.trunk.block import Modulation
from ifsq.nn.cache import KVCache


class Steps(ABC):
    """A batch of images on its way through a network, several tokens or one at a time.

    A state predicts the token that comes next. Rows are images, or images twice where they are guided.
    """

    network: ARNetwork

    @abstractmethod
    def first(self, labels: Int[Tensor, "r"]) -> Float[Tensor, "r width"]:
        """Begin with the class of each row, which may be the null class: the state that predicts token 0."""

    @abstractmethod
    def next(self, indices: Int[Tensor, "r t g"]) -> Float[Tensor, "r t width"]:
        """Go on behind t more tokens: the state after each of them."""

    @abstractmethod
    def draw(self, state: Float[Tensor, "r width"], pick: Pick) -> Int[Tensor, "r g"]:
        """The tokens that follow states, by the network's head; see `Head.draw`. Any number of rows."""

    @abstractmethod
    def keep_first(self, rows: int) -> None:
        """Go on with the first ``rows`` rows alone."""

    @abstractmethod
    def rewind(self, tokens: int) -> None:
        """Forget all tokens but the first ``tokens``; the next ones take their places. 0 leaves the class alone."""


class PlainSteps(Steps):
    """The network's own modules, as in training: what every other way is measured against.

    whole  of the caches, see `KVCache`
    """

    def __init__(self, network: ARNetwork, *, whole: bool = False) -> None:
        self.network = network
        self._prefixes = network.config.class_tokens
        length = self._prefixes + network.spec.tokens - 1
        self._caches = [KVCache(length, whole=whole) for _ in network.layers]
        self._modulations: list[Modulation] | None = None

    def first(self, labels: Int[Tensor, "r"]) -> Float[Tensor, "r width"]:
        prefix = self.network.prefix(labels)
        self._modulations = self.network.modulations(prefix)
        return self._trunk(self.network.add_target_positions(prefix, 0, self._prefixes - 1))[:, -1]

    def next(self, indices: Int[Tensor, "r t g"]) -> Float[Tensor, "r t width"]:
        target = self._caches[0].position - self._prefixes + 1
        return self._trunk(self.network.add_target_positions(self.network.embed(indices), target))

    def draw(self, state: Float[Tensor, "r width"], pick: Pick) -> Int[Tensor, "r g"]:
        return self.network.head.draw(state, pick)

    def keep_first(self, rows: int) -> None:
        for cache in self._caches:
            cache.keep_first(rows)
        if self._modulations is not None:
            self._modulations = [modulation[:rows] for modulation in self._modulations]

    def rewind(self, tokens: int) -> None:
        for cache in self._caches:
            cache.rewind(self._prefixes + tokens)

    def _trunk(self, x: Tensor) -> Tensor:
        return self.network.trunk(x, self._caches, modulations=self._modulations)
