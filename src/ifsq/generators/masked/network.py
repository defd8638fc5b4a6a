"""The network of the masked generator: a bidirectional transformer over digits, some of them hidden.

It reads ``[class, position 0, ..., position t-1]``: each position is the sum of its digits' embeddings, with one for
hidden digits, and an embedding of its place. A layer a digit gives its logits, at every position. It is not told how
many are hidden: what it reads says so.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ifsq.codes import CodeSpec, LatentSpec
from ifsq.generators.conditioning import LabelEmbedding
from ifsq.generators.masked.config import MaskedConfig
from ifsq.generators.taps import Taps
from ifsq.generators.trunk.block import NORM_EPS
from ifsq.generators.trunk.network import MAX_VOCAB, TrunkGenerator, make_layers, make_rope
from ifsq.generators.trunk.output import OutputLayer
from ifsq.nn.norm import RMSNorm


class MaskedNetwork(TrunkGenerator):
    """The layers of a `MaskedGenerator`, which stand in the generator itself: checkpoints name them without a prefix.

    Digits are int64 (b, t, d) of the positions in row-major order; ``hidden`` is of the same shape.
    """

    config: MaskedConfig
    spec: CodeSpec

    def __init__(
        self, config: MaskedConfig, spec: CodeSpec | LatentSpec, num_classes: int, code_dim: int | None = None
    ) -> None:
        super().__init__(config, spec, num_classes, code_dim)
        if isinstance(spec, LatentSpec):
            raise ValueError(
                f"latents of {spec.dim} channels have no digits: expected digits (fsq, vq, lfq, bsq, ...) for a masked"
                " generator"
            )
        if max(spec.levels) > MAX_VOCAB:
            raise ValueError(f"a digit of {max(spec.levels)} levels: expected at most {MAX_VOCAB}")
        self.cls_embedding = LabelEmbedding(num_classes, config.class_tokens * config.width)
        self.digit_embeddings = nn.ModuleList(nn.Embedding(v + 1, config.width) for v in spec.levels)  # last: hidden
        self.positions = nn.Embedding(spec.tokens, config.width)
        self.dropout = nn.Dropout(config.dropouts.token)
        self.layers = make_layers(config, causal=False)
        self.rope = make_rope(config, spec.grid, config.class_tokens)
        self.norm = RMSNorm(config.width, eps=NORM_EPS)
        self.output = nn.ModuleList(OutputLayer(config.width, v) for v in spec.levels)
        self.initialize(self.output.parameters())

    def embed(self, digits: Int[Tensor, "b t d"], hidden: Bool[Tensor, "b t d"]) -> Float[Tensor, "b t width"]:
        """Positions as the trunk reads them; what stands where a digit is hidden is not read."""
        x = self.positions.weight.expand(len(digits), -1, -1)
        for k, (table, levels) in enumerate(zip(self.digit_embeddings, self.spec.levels, strict=True)):
            x = x + table(torch.where(hidden[..., k], levels, digits[..., k]))
        return x

    def states(
        self,
        digits: Int[Tensor, "b t d"],
        hidden: Bool[Tensor, "b t d"],
        labels: Int[Tensor, "b"],
        depth: int | None = None,
        taps: Taps | None = None,
    ) -> Float[Tensor, "b t width"]:
        """The trunk's states of the positions, after all blocks or the first ``depth``; labels may hold the null class.

        taps  what it is told begins with the class's positions
        """
        prefix = self.prefix(labels)
        x = self.dropout(torch.cat([prefix, self.embed(digits, hidden)], dim=1))
        return self.trunk(x, depth=depth, condition=prefix[:, 0], taps=taps)[:, prefix.shape[1] :]

    def logits(
        self, digits: Int[Tensor, "b t d"], hidden: Bool[Tensor, "b t d"], labels: Int[Tensor, "b"]
    ) -> list[Float[Tensor, "b t _"]]:
        """Logits (b, t, levels) of each digit given those that are not hidden; those of a known one mean nothing."""
        x = self.norm(self.states(digits, hidden, labels))
        return [layer(x) for layer in self.output]

    def nats(
        self,
        digits: Int[Tensor, "b t d"],
        hidden: Bool[Tensor, "b t d"],
        labels: Int[Tensor, "b"],
        taps: Taps | None = None,
    ) -> Float[Tensor, "b"]:
        """``-log p`` of the hidden digits given the others, each by itself, summed over them; float32."""
        x = self.norm(self.states(digits, hidden, labels, taps=taps))
        nats = torch.stack([layer(x, digits[..., k]) for k, layer in enumerate(self.output)], dim=-1)  # b t d
        return (nats * hidden).sum(dim=(1, 2))

    @property
    def units(self) -> int:
        """What is hidden and revealed as one, in an image: its digits, or its positions."""
        return self.spec.tokens * (self.spec.dim if self.config.mask == "digit" else 1)

    def of_digits(self, units: Bool[Tensor, "b n"]) -> Bool[Tensor, "b t d"]:
        """What holds of the units of an image, for each digit."""
        return units.unflatten(1, (self.spec.tokens, -1)).expand(-1, -1, self.spec.dim)
