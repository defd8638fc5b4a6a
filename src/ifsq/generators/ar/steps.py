"""How decoding goes through a network: keys and values are kept, and only new positions are computed."""

from abc import ABC, abstractmethod

from jaxtyping import Float, Int
from torch import Tensor

from ifsq.generators.ar.heads.base import Pick
from ifsq.generators.ar.network import ARNetwork
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
    """The network's own modules, as in training: what every other way is measured against."""

    def __init__(self, network: ARNetwork) -> None:
        self.network = network
        self._caches = [KVCache(network.spec.tokens) for _ in network.layers]

    def first(self, labels: Int[Tensor, "r"]) -> Float[Tensor, "r width"]:
        return self.network.trunk(self.network.cls_embedding(labels)[:, None], self._caches)[:, -1]

    def next(self, indices: Int[Tensor, "r t g"]) -> Float[Tensor, "r t width"]:
        return self.network.trunk(self.network.embed(indices), self._caches)

    def draw(self, state: Float[Tensor, "r width"], pick: Pick) -> Int[Tensor, "r g"]:
        return self.network.head.draw(state, pick)

    def keep_first(self, rows: int) -> None:
        for cache in self._caches:
            cache.keep_first(rows)

    def rewind(self, tokens: int) -> None:
        for cache in self._caches:
            cache.rewind(1 + tokens)
