"""From the trunk's state at a position to the indices of its groups.

joint        one group: one softmax over its codes
chain        several: a small MLP a group, told the state and the groups already drawn (ours, cheap)
transformer  several: the official factorized head, a causal transformer over ``[state, group 0, group 1, ...]``

Every head predicts group k from the groups before it, so the product over groups is exact. Called by ``model``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ifsq.generators.ar.block import NORM_EPS
from ifsq.nn.attention import KVCache
from ifsq.nn.embed import Rotary
from ifsq.nn.norm import RMSNorm

HEADS = ("chain", "transformer")

Pick = Callable[[Tensor], Tensor]  # logits (r, v) of r rows -> their indices (r,)


class Head(nn.Module, ABC):
    """Logits of every group, teacher-forced or drawn one after the other.

    ``embeddings`` are the trunk's tables, one a group, for the head that shares them.
    """

    output: nn.ModuleList

    @abstractmethod
    def forward(
        self, state: Float[Tensor, "b t width"], indices: Int[Tensor, "b t g"], embeddings: nn.ModuleList
    ) -> list[Float[Tensor, "b t _"]]:
        """Logits (b, t, vocabulary of the group) for each group, given the true indices of the groups before it."""

    @abstractmethod
    def draw(self, state: Float[Tensor, "r width"], pick: Pick, embeddings: nn.ModuleList) -> Int[Tensor, "r g"]:
        """Indices of one position; ``pick`` turns the logits of a group into its indices."""


class JointHead(Head):
    """One linear layer over the codes of the only group."""

    def __init__(self, width: int, vocab: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width, eps=NORM_EPS)
        self.output = nn.ModuleList([nn.Linear(width, vocab, bias=False)])

    def forward(
        self, state: Float[Tensor, "b t width"], indices: Int[Tensor, "b t g"], embeddings: nn.ModuleList
    ) -> list[Float[Tensor, "b t _"]]:
        return [self.output[0](self.norm(state))]

    def draw(self, state: Float[Tensor, "r width"], pick: Pick, embeddings: nn.ModuleList) -> Int[Tensor, "r g"]:
        return pick(self.output[0](self.norm(state)))[:, None]


class ChainHead(Head):
    """One MLP a group on ``projection of the state + embeddings of the groups before it``.

    hidden  width of the MLPs;  depth  residual layers of each
    """

    def __init__(self, width: int, vocab_sizes: Sequence[int], hidden: int, depth: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width, eps=NORM_EPS)
        self.from_state = nn.Linear(width, hidden * len(vocab_sizes))  # all groups in one multiplication
        self.tables = nn.ModuleList(nn.Embedding(v, hidden) for v in vocab_sizes[:-1])
        self.layers = nn.ModuleList(_linears(hidden, depth) for _ in vocab_sizes)
        self.norms = nn.ModuleList(RMSNorm(hidden, eps=NORM_EPS) for _ in vocab_sizes)
        self.output = nn.ModuleList(nn.Linear(hidden, v, bias=False) for v in vocab_sizes)

    def forward(
        self, state: Float[Tensor, "b t width"], indices: Int[Tensor, "b t g"], embeddings: nn.ModuleList
    ) -> list[Float[Tensor, "b t _"]]:
        logits, told = [], list(self._split(state))
        for k in range(len(self.output)):
            logits.append(self._logits(k, told))
            self._tell(k, told, indices[..., k])
        return logits

    def draw(self, state: Float[Tensor, "r width"], pick: Pick, embeddings: nn.ModuleList) -> Int[Tensor, "r g"]:
        drawn, told = [], list(self._split(state))
        for k in range(len(self.output)):
            drawn.append(pick(self._logits(k, told)))
            self._tell(k, told, drawn[k])
        return torch.stack(drawn, dim=-1)

    def _split(self, state: Tensor) -> tuple[Tensor, ...]:
        return self.from_state(self.norm(state)).chunk(len(self.output), dim=-1)

    def _logits(self, k: int, told: list[Tensor]) -> Tensor:
        x = told[k]
        for layer in self.layers[k].children():
            x = x + layer(F.silu(x))
        return self.output[k](self.norms[k](x))

    def _tell(self, k: int, told: list[Tensor], indices: Tensor) -> None:
        """Add the embedding of group k to what the later groups know."""
        if k + 1 < len(told):
            embedded = self.tables[k](indices)
            told[k + 1 :] = [known + embedded for known in told[k + 1 :]]


class TransformerHead(Head):
    """The official factorized head: per position a causal transformer over the state and the trunk's group embeddings.

    Its positions are the first rows of the trunk's rotary table ``rope``, as the official checkpoints expect.
    """

    def __init__(self, width: int, vocab_sizes: Sequence[int], blocks: nn.ModuleList, rope: Rotary) -> None:
        super().__init__()
        if len(vocab_sizes) > len(rope.table):
            raise ValueError(f"{len(vocab_sizes)} groups: the transformer head on this grid takes {len(rope.table)}")
        self.blocks = blocks
        self.rope = rope
        self.norm = RMSNorm(width, eps=NORM_EPS)
        self.output = nn.ModuleList(nn.Linear(width, v, bias=False) for v in vocab_sizes)

    def forward(
        self, state: Float[Tensor, "b t width"], indices: Int[Tensor, "b t g"], embeddings: nn.ModuleList
    ) -> list[Float[Tensor, "b t _"]]:
        groups = len(self.output)
        known = [state] + [embeddings[k](indices[..., k]) for k in range(groups - 1)]
        x = torch.stack(known, dim=-2).flatten(0, 1)  # b*t g width
        for block in self.blocks:
            x = block(x, self.rope)
        x = self.norm(x).unflatten(0, state.shape[:2])
        return [self.output[k](x[..., k, :]) for k in range(groups)]

    def draw(self, state: Float[Tensor, "r width"], pick: Pick, embeddings: nn.ModuleList) -> Int[Tensor, "r g"]:
        groups = len(self.output)
        caches = [KVCache(groups) for _ in self.blocks]
        drawn: list[Tensor] = []
        x = state[:, None]
        for k in range(groups):
            if k > 0:
                x = embeddings[k - 1](drawn[-1])[:, None]
            for block, cache in zip(self.blocks, caches, strict=True):
                x = block(x, self.rope, cache)
            drawn.append(pick(self.output[k](self.norm(x[:, 0]))))
        return torch.stack(drawn, dim=-1)


def _linears(width: int, depth: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
