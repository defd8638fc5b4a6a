"""The masked head, after BAR (arXiv 2602.09024): one light network fills in the groups that are not known yet.

Training hides a random set of each token's groups and predicts all of them at once from the trunk's state and the
groups that are left; so the network learns every order, and a token can be drawn in as few evaluations as is wanted.
"""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ifsq.generators.ar.heads.base import Pick, SoftmaxHead
from ifsq.generators.trunk.block import NORM_EPS
from ifsq.generators.trunk.output import OutputLayer
from ifsq.nn.mlp import SwiGLU
from ifsq.nn.norm import RMSNorm


class MaskedHead(SoftmaxHead):
    """One MLP on ``projection of the state + an embedding of each group``, a vector of its own where it is masked.

    hidden  width of the MLP
    depth   its residual layers
    steps   evaluations that draw a token: its groups in their order, in so many parts; None: one a group

    What is drawn has an exact likelihood, which `nats` gives: each group given the groups of earlier parts. With one
    group a part that is the whole chain rule, in a fixed order. Groups of one part are drawn independently of each
    other, so fewer steps lose what they say of each other, and `nats` shows the loss.

    Training minimises the mean of -log p over all orders, one group a part: for the mixture of the orders an upper
    bound of the negative log-likelihood (Jensen). For the fixed order it is neither a bound nor exact.

    Raises ValueError where there are more steps than groups.
    """

    def __init__(self, width: int, vocab_sizes: Sequence[int], hidden: int, depth: int, steps: int | None) -> None:
        super().__init__()
        groups = len(vocab_sizes)
        if steps is not None and steps > groups:
            raise ValueError(f"head.steps={steps}: expected at most {groups}, the groups of a token")
        self.parts = [part.tolist() for part in torch.arange(groups, device="cpu").tensor_split(steps or groups)]
        self.norm = RMSNorm(width, eps=NORM_EPS)
        self.from_state = nn.Linear(width, hidden)
        self.tables = nn.ModuleList(nn.Embedding(v + 1, hidden) for v in vocab_sizes)  # the last row: masked
        self.layers = nn.ModuleList(_Layer(hidden) for _ in range(depth))
        self.last_norm = RMSNorm(hidden, eps=NORM_EPS)
        self.output = nn.ModuleList(OutputLayer(hidden, v) for v in vocab_sizes)
        self.masked = tuple(vocab_sizes)  # what stands for an index that is masked

    def before_output(
        self, state: Float[Tensor, "b t width"], indices: Int[Tensor, "b t g"]
    ) -> list[Float[Tensor, "b t _"]]:
        told, seen = self.from_state(self.norm(state)), []
        for part in self.parts:
            known = [
                indices[..., k] if k < part[0] else torch.full_like(indices[..., k], v)
                for k, v in enumerate(self.masked)
            ]
            seen += [self._through(told, known)] * len(part)
        return seen

    def loss(
        self, state: Float[Tensor, "b t width"], indices: Int[Tensor, "b t g"], rng: torch.Generator
    ) -> Float[Tensor, ""]:
        """An unbiased estimate of the mean over all orders of -log p, from one evaluation, nats a token.

        Of arXiv 2110.02037: n groups known, 0 <= n < g, all numbers alike and all sets of n alike;
        g / (g - n) times the cross-entropy of the others.
        """
        images, tokens, groups = indices.shape
        first = torch.randint(groups, (images, 1), generator=rng, device=rng.device)
        n = (first + torch.arange(tokens, device=rng.device)) % groups  # b t: each number as often in an image
        rank = torch.rand(indices.shape, generator=rng, device=rng.device).argsort(-1).argsort(-1)
        known = (rank < n[..., None]).to(indices.device)  # b t g
        share = (groups / (groups - n)).to(indices.device)
        masked = torch.tensor(self.masked, device=indices.device)
        x = self._through(self.from_state(self.norm(state)), torch.where(known, indices, masked).unbind(-1))
        nats = torch.stack([layer(x, indices[..., k]) for k, layer in enumerate(self.output)], dim=-1)
        return (nats * ~known * share[..., None]).sum(-1).mean()

    def draw(self, state: Float[Tensor, "r width"], pick: Pick) -> Int[Tensor, "r g"]:
        told = self.from_state(self.norm(state))
        indices = [torch.full((len(state),), v, device=state.device) for v in self.masked]
        for part in self.parts:
            x = self._through(told, indices)
            for k in part:
                indices[k] = pick(self.output[k](x), k)
        return torch.stack(indices, dim=-1)

    def _through(self, told: Tensor, indices: Iterable[Tensor]) -> Tensor:
        """What the output layers see, (..., hidden), of indices or what stands for masked ones."""
        x = told
        for table, known in zip(self.tables, indices, strict=True):
            x = x + table(known)
        for layer in self.layers:
            x = layer(x)
        return self.last_norm(x)


class _Layer(nn.Module):
    """A SwiGLU of twice the width behind an RMSNorm, added to the stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width, eps=NORM_EPS)
        self.mlp = SwiGLU(width, 2 * width, bias=False)

    def forward(self, x: Float[Tensor, "*r width"]) -> Float[Tensor, "*r width"]:
        return x + self.mlp(self.norm(x))
