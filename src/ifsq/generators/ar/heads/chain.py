"""The chain head, ours and cheap: a small MLP a group, told the state and the groups already drawn."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ifsq.generators.ar.heads.base import Pick, SoftmaxHead
from ifsq.generators.trunk.block import NORM_EPS
from ifsq.generators.trunk.output import OutputLayer
from ifsq.nn.norm import RMSNorm


class ChainHead(SoftmaxHead):
    """One MLP a group on ``projection of the state + embeddings of the groups before it``.

    hidden  width of the MLPs
    depth   residual layers of each
    """

    def __init__(self, width: int, vocab_sizes: Sequence[int], hidden: int, depth: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width, eps=NORM_EPS)
        self.from_state = nn.Linear(width, hidden * len(vocab_sizes))  # all groups in one multiplication
        self.tables = nn.ModuleList(nn.Embedding(v, hidden) for v in vocab_sizes[:-1])
        self.layers = nn.ModuleList(_linears(hidden, depth) for _ in vocab_sizes)
        self.norms = nn.ModuleList(RMSNorm(hidden, eps=NORM_EPS) for _ in vocab_sizes)
        self.output = nn.ModuleList(OutputLayer(hidden, v) for v in vocab_sizes)

    def before_output(
        self, state: Float[Tensor, "b t width"], indices: Int[Tensor, "b t g"]
    ) -> list[Float[Tensor, "b t _"]]:
        seen, known = [], self._split(state)
        for k in range(len(self.output)):
            seen.append(self._through(k, known[k]))
            self._tell(k, known, indices[..., k])
        return seen

    def draw(self, state: Float[Tensor, "r width"], pick: Pick) -> Int[Tensor, "r g"]:
        drawn, known = [], self._split(state)
        for k in range(len(self.output)):
            drawn.append(pick(self.output[k](self._through(k, known[k])), k))
            self._tell(k, known, drawn[k])
        return torch.stack(drawn, dim=-1)

    def _split(self, state: Tensor) -> list[Tensor]:
        """What each group knows at first: its part of the projected state."""
        return list(self.from_state(self.norm(state)).chunk(len(self.output), dim=-1))

    def _through(self, k: int, x: Tensor) -> Tensor:
        """Through the layers of group k."""
        for layer in self.layers[k].children():
            x = x + layer(F.silu(x))
        return self.norms[k](x)

    def _tell(self, k: int, known: list[Tensor], indices: Tensor) -> None:
        """Add the embedding of group k to what the later groups know."""
        if k + 1 < len(known):
            embedded = self.tables[k](indices)
            known[k + 1 :] = [later + embedded for later in known[k + 1 :]]


def _linears(width: int, depth: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
