"""The network of the autoregressive generator: a LlamaGen-style transformer over the indices of the code grid.

The sequence is ``[class, token 0, ..., token t-2]`` in row-major order and predicts tokens 0..t-1; a token of several
groups is read as the sum of its groups' embeddings and predicted by one of `heads`. Paper: section 4 (LlamaGen);
arXiv 2406.06525.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ifsq.codes import CodeSpec, LatentSpec
from ifsq.generators.ar.block import Block
from ifsq.generators.ar.config import ARConfig
from ifsq.generators.ar.heads.base import SoftmaxHead
from ifsq.generators.ar.heads.chain import ChainHead
from ifsq.generators.ar.heads.joint import JointHead
from ifsq.generators.ar.heads.transformer import TransformerHead
from ifsq.generators.base import Generator
from ifsq.generators.conditioning import LabelEmbedding
from ifsq.nn.attention import head_width
from ifsq.nn.cache import KVCache
from ifsq.nn.embed import Rotary

MAX_VOCAB = 2**20  # codes of a group: each has a row in an embedding and one in an output layer


class ARNetwork(Generator):
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
        self.cls_embedding = LabelEmbedding(num_classes, config.width)
        self.tok_embeddings = nn.ModuleList(nn.Embedding(v, config.width) for v in spec.vocab_sizes)
        self.dropout = nn.Dropout(config.dropouts.token)
        self.layers = nn.ModuleList(Block(config, rate) for rate in _drop_paths(config))
        per_head = head_width(config.width, config.heads)
        self.rope = Rotary(spec.grid, per_head, base=config.rope_base, prefix=config.rope_class)
        self.head = _make_head(config, spec.vocab_sizes, self.rope, list(self.tok_embeddings))
        self._initialize()

    def embed(self, indices: Int[Tensor, "b t g"]) -> Float[Tensor, "b t width"]:
        """Tokens as the trunk reads them: the sum of their groups' embeddings."""
        embedded = [table(indices[..., k]) for k, table in enumerate(self.tok_embeddings)]
        return torch.stack(embedded).sum(dim=0) if len(embedded) > 1 else embedded[0]

    def trunk(
        self, x: Float[Tensor, "b t width"], caches: Sequence[KVCache] | None = None, depth: int | None = None
    ) -> Float[Tensor, "b t width"]:
        """Through all blocks, or the first ``depth``; with ``caches``, one a block, x is the next t positions alone."""
        for i, layer in enumerate(islice(self.layers, depth)):
            x = layer(x, self.rope, None if caches is None else caches[i])
        return x

    def states(
        self, indices: Int[Tensor, "b t g"], labels: Int[Tensor, "b"], depth: int | None = None
    ) -> Float[Tensor, "b t width"]:
        """The trunk's teacher-forced states; ``labels`` may hold the null class."""
        x = torch.cat([self.cls_embedding(labels)[:, None], self.embed(indices[:, :-1])], dim=1)
        return self.trunk(self.dropout(x), depth=depth)

    def logits(self, indices: Int[Tensor, "b t g"], labels: Int[Tensor, "b"]) -> list[Float[Tensor, "b t _"]]:
        """Teacher-forced logits (b, t, vocabulary) of each group; ``labels`` may hold the null class."""
        return self.head.logits(self.states(indices, labels), indices)

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for parameter in self.head.output.parameters():
            nn.init.zeros_(parameter)


def _drop_paths(config: ARConfig) -> Iterator[float]:
    """Of every block, linearly from 0 at the first."""
    for number in range(config.depth):
        yield config.drop_path * number / max(1, config.depth - 1)


def _make_head(config: ARConfig, sizes: tuple[int, ...], rope: Rotary, embeddings: Sequence[nn.Module]) -> SoftmaxHead:
    head = config.head
    if len(sizes) == 1:
        return JointHead(config.width, sizes[0])
    if head.kind == "chain":
        return ChainHead(config.width, sizes, config.width if head.width is None else head.width, head.depth)
    blocks = nn.ModuleList(Block(config) for _ in range(head.depth))
    return TransformerHead(config.width, sizes, blocks, rope, embeddings)
