"""The transformer of a generator that tells the class in positions before the grid, after LlamaGen (arXiv 2406.06525).

Its layers stand in the generator itself: checkpoints name them without a prefix.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import cast

from jaxtyping import Float, Int
from torch import Tensor, nn

from ifsq.generators.base import Generator
from ifsq.generators.conditioning import LabelEmbedding
from ifsq.generators.taps import Taps
from ifsq.generators.trunk.block import Block, Modulation
from ifsq.generators.trunk.config import TrunkConfig
from ifsq.nn.attention import head_width
from ifsq.nn.cache import KVCache
from ifsq.nn.embed import Rotary, RotaryAlong

MAX_VOCAB = 2**20  # codes of a digit or a group: each has a row in an embedding and one in an output layer


class TrunkGenerator(Generator):
    """A generator whose blocks are `Block`; it makes the three named here, in the order that its checkpoints have."""

    config: TrunkConfig
    cls_embedding: LabelEmbedding
    layers: nn.ModuleList
    rope: Rotary

    def prefix(self, labels: Int[Tensor, "b"]) -> Float[Tensor, "b n width"]:
        """What the trunk reads before the first token: the embeddings of the class, which may be the null class."""
        return self.cls_embedding(labels).unflatten(1, (self.config.class_tokens, self.config.width))

    def modulations(self, prefix: Float[Tensor, "b n width"]) -> list[Modulation] | None:
        """What ``adaln`` does to each block, once for all positions; None without it."""
        if not self.config.adaln:
            return None
        return [cast(Block, layer).modulated_by(prefix[:, 0]) for layer in self.layers]

    def trunk(
        self,
        x: Float[Tensor, "b t width"],
        caches: Sequence[KVCache] | None = None,
        depth: int | None = None,
        condition: Float[Tensor, "b width"] | None = None,
        modulations: Sequence[Modulation] | None = None,
        rope: Rotary | RotaryAlong | None = None,
        taps: Taps | None = None,
    ) -> Float[Tensor, "b t width"]:
        """Through all blocks, or the first ``depth``.

        caches       one a block: x is the next t positions alone
        condition    with ``adaln`` the first embedding of the class
        modulations  or what `modulations` makes of it
        rope         `rope_along` an order; None is raster
        taps         is told of x and of the state after every block
        """
        rope = self.rope if rope is None else rope
        if taps is not None:
            taps.keep(0, x)
        for i, layer in enumerate(islice(self.layers, depth)):
            cache = None if caches is None else caches[i]
            x = layer(x, rope, cache, condition, None if modulations is None else modulations[i])
            if taps is not None:
                taps.keep(i + 1, x)
        return x

    @property
    def depth(self) -> int:
        return len(self.layers)

    @property
    def token_grid(self) -> tuple[int, int]:
        return self.spec.grid

    def initialize(self, output: Iterable[nn.Parameter]) -> None:
        """Give all layers their first weights: normal ones, and zeros of the last layers, ``output``."""
        zero = list(output)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, Block) and module.adaLN_modulation is not None:
                zero += module.adaLN_modulation.parameters()
        for parameter in zero:
            nn.init.zeros_(parameter)


def make_layers(config: TrunkConfig, *, causal: bool) -> nn.ModuleList:
    """The blocks of a trunk."""
    return nn.ModuleList(Block(config, rate, adaln=config.adaln, causal=causal) for rate in _drop_paths(config))


def make_rope(config: TrunkConfig, grid: tuple[int, int], class_tokens: int) -> Rotary:
    """Rotary positions of so many positions of the class, then of the grid's."""
    per_head = head_width(config.width, config.heads)
    return Rotary(grid, per_head, base=config.rope_base, prefix=config.rope_class, prefixes=class_tokens)


def _drop_paths(config: TrunkConfig) -> Iterator[float]:
    """Of every block, linearly from 0 at the first."""
    for number in range(config.depth):
        yield config.drop_path * number / max(1, config.depth - 1)
