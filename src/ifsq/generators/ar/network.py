"""The network of the autoregressive generator: a LlamaGen-style transformer over the indices of the code grid.

The sequence is ``[class, token 0, ..., token t-2]`` in row-major order and predicts tokens 0..t-1; the class may take
several positions. A token of several groups is read as the sum of its groups' embeddings and predicted by one of
`heads`. Paper: section 4 (LlamaGen); arXiv 2406.06525.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ifsq.codes import CodeSpec, LatentSpec
from ifsq.generators.ar.config import ARConfig
from ifsq.generators.ar.heads.base import SoftmaxHead
from ifsq.generators.ar.heads.chain import ChainHead
from ifsq.generators.ar.heads.joint import JointHead
from ifsq.generators.ar.heads.masked import MaskedHead
from ifsq.generators.ar.heads.transformer import TransformerHead
from ifsq.generators.ar.order import in_order
from ifsq.generators.conditioning import LabelEmbedding
from ifsq.generators.taps import Taps
from ifsq.generators.trunk.block import Block
from ifsq.generators.trunk.network import MAX_VOCAB, TrunkGenerator, make_layers, make_rope
from ifsq.nn.embed import Rotary, RotaryAlong


class ARNetwork(TrunkGenerator):
    """The layers of an `ARGenerator`, which stand in the generator itself: checkpoints name them without a prefix."""

    config: ARConfig
    spec: CodeSpec

    def __init__(
        self, config: ARConfig, spec: CodeSpec | LatentSpec, num_classes: int, code_dim: int | None = None
    ) -> None:
        super().__init__(config, spec, num_classes, code_dim)
        if isinstance(spec, LatentSpec):
            raise ValueError(
                f"latents of {spec.dim} channels have no indices: expected digits (fsq, vq, lfq, bsq, ...) for an"
                " autoregressive generator"
            )
        if max(spec.vocab_sizes) > MAX_VOCAB:
            raise ValueError(
                f"a group of {max(spec.vocab_sizes)} codes: expected at most {MAX_VOCAB}; use smaller groups"
            )
        self.cls_embedding = LabelEmbedding(num_classes, config.class_tokens * config.width)
        self.tok_embeddings = nn.ModuleList(nn.Embedding(v, config.width) for v in spec.vocab_sizes)
        orders = config.order != "raster"
        self.target_positions = nn.Embedding(spec.tokens, config.width) if orders else None
        self.dropout = nn.Dropout(config.dropouts.token)
        self.layers = make_layers(config, causal=True)
        self.rope = make_rope(config, spec.grid, config.class_tokens)
        # The official head's positions are the trunk's first: one of the class, then the grid's.
        rope = self.rope if config.class_tokens == 1 else make_rope(config, spec.grid, 1)
        self.head = _make_head(config, spec.vocab_sizes, rope, list(self.tok_embeddings))
        self.initialize(self.head.output.parameters())

    def embed(self, indices: Int[Tensor, "b t g"]) -> Float[Tensor, "b t width"]:
        """Tokens as the trunk reads them: the sum of their groups' embeddings."""
        embedded = [table(indices[..., k]) for k, table in enumerate(self.tok_embeddings)]
        return torch.stack(embedded).sum(dim=0) if len(embedded) > 1 else embedded[0]

    def add_target_positions(
        self, x: Float[Tensor, "b t width"], targets: Int[Tensor, "b s"] | int | Tensor, skip: int = 0
    ) -> Float[Tensor, "b t width"]:
        """Plus the embeddings of the grid positions that are predicted behind each; x itself in a model without orders.

        targets  row-major positions; or the first of some that follow each other, as a number or a scalar of the device
        skip     positions of x that predict none: all of the class but the last
        """
        if self.target_positions is None:
            return x
        if not isinstance(targets, Tensor) or targets.ndim == 0:
            targets = targets + torch.arange(x.shape[1] - skip, device=x.device)
        return x + F.pad(self.target_positions(targets), (0, 0, skip, 0))

    def rope_along(self, order: Int[Tensor, "b t"]) -> RotaryAlong:
        """Rotary positions of the class and of all tokens but the last as they come in an order."""
        prefixes = self.config.class_tokens
        class_rows = torch.arange(prefixes, device=order.device).expand(len(order), -1)
        return self.rope.along(torch.cat([class_rows, prefixes + order[:, :-1]], dim=1))

    def states(
        self,
        indices: Int[Tensor, "b t g"],
        labels: Int[Tensor, "b"],
        depth: int | None = None,
        order: Int[Tensor, "b t"] | None = None,
        taps: Taps | None = None,
    ) -> Float[Tensor, "b t width"]:
        """The trunk's teacher-forced states; ``labels`` may hold the null class.

        order  in which the tokens of each image come, see `ifsq.generators.ar.order`: state i predicts token
               ``order[:, i]``; ``indices`` are in raster whatever it says. None is raster
        taps   see `trunk`; what it is told begins with the class's positions, of which here only the last is left
        """
        prefix = self.prefix(labels)
        before = prefix.shape[1] - 1
        tokens = indices if order is None else in_order(indices, order)
        x = torch.cat([prefix, self.embed(tokens[:, :-1])], dim=1)
        x = self.dropout(self.add_target_positions(x, 0 if order is None else order, before))
        rope = None if order is None else self.rope_along(order)
        return self.trunk(x, depth=depth, condition=prefix[:, 0], rope=rope, taps=taps)[:, before:]

    def logits(
        self, indices: Int[Tensor, "b t g"] | Int[Tensor, "b t"], labels: Int[Tensor, "b"]
    ) -> list[Float[Tensor, "b t _"]]:
        """Teacher-forced logits (b, t, vocabulary) of each group, in the mode that the generator is in.

        indices  the first t tokens of images in row-major order, of one group also without the last axis
        labels   classes; ``num_classes`` is the null class

        Logits of token i depend on the tokens before it, those of a group also on the token's groups before it.
        Raises ValueError where shapes, indices or labels do not fit.
        """
        self._check(indices, labels)
        indices = indices.reshape(*indices.shape[:2], -1)
        return self.head.logits(self.states(indices, labels), indices)

    def _check(self, indices: Tensor, labels: Tensor) -> None:
        sizes, tokens = self.spec.vocab_sizes, self.spec.tokens
        groups = indices.shape[2] if indices.ndim == 3 else 1
        if indices.ndim not in (2, 3) or groups != len(sizes) or not 1 <= indices.shape[1] <= tokens:
            whole = f"(b, {tokens}, {len(sizes)})" + (f" or (b, {tokens})" if len(sizes) == 1 else "")
            raise ValueError(f"indices of shape {tuple(indices.shape)}: expected {whole}, or the first of these tokens")
        if labels.shape != indices.shape[:1]:
            raise ValueError(f"labels of shape {tuple(labels.shape)}: expected one for each of {len(indices)} images")
        beside = labels[(labels < 0) | (labels > self.num_classes)]
        if beside.numel():
            raise ValueError(f"label {int(beside[0])}: expected 0 to {self.num_classes}, the null class")
        for group, size in enumerate(sizes):
            given = indices[..., group] if indices.ndim == 3 else indices
            wrong = given[(given < 0) | (given >= size)]
            if wrong.numel():
                raise ValueError(f"index {int(wrong[0])} in group {group}: expected 0 to {size - 1}")


def _make_head(config: ARConfig, sizes: tuple[int, ...], rope: Rotary, embeddings: Sequence[nn.Module]) -> SoftmaxHead:
    head = config.head
    if len(sizes) == 1:
        if head.kind == "masked":
            raise ValueError(
                f"head.kind='masked': the tokens have one group of {sizes[0]} codes;"
                " expected several groups, or another kind"
            )
        return JointHead(config.width, sizes[0])
    hidden = config.width if head.width is None else head.width
    if head.kind == "chain":
        return ChainHead(config.width, sizes, hidden, head.depth)
    if head.kind == "masked":
        return MaskedHead(config.width, sizes, hidden, head.depth, head.steps)
    blocks = nn.ModuleList(Block(config) for _ in range(head.depth))
    return TransformerHead(config.width, sizes, blocks, rope, embeddings)
