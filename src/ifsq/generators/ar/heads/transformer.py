"""The official factorized head: at each position a causal transformer over ``[state, group 0, group 1, ...]``."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ifsq.generators.ar.heads.base import Pick, SoftmaxHead
from ifsq.generators.trunk.block import NORM_EPS
from ifsq.generators.trunk.output import OutputLayer
from ifsq.nn.cache import KVCache
from ifsq.nn.embed import Rotary
from ifsq.nn.norm import RMSNorm


class TransformerHead(SoftmaxHead):
    """Blocks over the state and the trunk's embeddings of the groups before.

    embeddings  the trunk's tables, one a group. They are the trunk's parameters and keep its names: the head holds them
                in a tuple, which registers nothing
    rope        the trunk's rotary table, whose first rows are the positions here, as official checkpoints expect
    """

    def __init__(
        self,
        width: int,
        vocab_sizes: Sequence[int],
        blocks: nn.ModuleList,
        rope: Rotary,
        embeddings: Sequence[nn.Module],
    ) -> None:
        super().__init__()
        if len(vocab_sizes) > len(rope.table):
            raise ValueError(f"{len(vocab_sizes)} groups: the transformer head on this grid takes {len(rope.table)}")
        self.blocks = blocks
        self.rope = rope
        self.norm = RMSNorm(width, eps=NORM_EPS)
        self.output = nn.ModuleList(OutputLayer(width, v) for v in vocab_sizes)
        self.embeddings = tuple(embeddings)

    def before_output(
        self, state: Float[Tensor, "b t width"], indices: Int[Tensor, "b t g"]
    ) -> list[Float[Tensor, "b t _"]]:
        groups = len(self.output)
        known = [state] + [self.embeddings[k](indices[..., k]) for k in range(groups - 1)]
        x = torch.stack(known, dim=-2).flatten(0, 1)  # b*t g width
        for block in self.blocks:
            x = block(x, self.rope)
        x = self.norm(x).unflatten(0, state.shape[:2])
        return list(x.unbind(dim=-2))

    def draw(self, state: Float[Tensor, "r width"], pick: Pick) -> Int[Tensor, "r g"]:
        groups = len(self.output)
        caches = [KVCache(groups) for _ in self.blocks]
        drawn: list[Tensor] = []
        x = state[:, None]
        for k in range(groups):
            if k > 0:
                x = self.embeddings[k - 1](drawn[-1])[:, None]
            for block, cache in zip(self.blocks, caches, strict=True):
                x = block(x, self.rope, cache)
            drawn.append(pick(self.output[k](self.norm(x[:, 0])), k))
        return torch.stack(drawn, dim=-1)
