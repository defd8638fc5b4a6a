"""The autoregressive generator: a LlamaGen-style transformer over the indices of the code grid in row-major order.

The sequence is ``[class, token 0, ..., token t-2]`` and predicts tokens 0..t-1; a token of several groups is read as
the sum of its groups' embeddings and predicted by one of `heads`. Paper: section 4 (LlamaGen); arXiv 2406.06525.
Called by ``generators.train`` and ``pipeline`` through the face of `Generator`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ifsq.codes.spec import CodeSpec
from ifsq.config import InputError
from ifsq.generators.ar.block import Block
from ifsq.generators.ar.heads import HEADS, ChainHead, Head, JointHead, TransformerHead
from ifsq.generators.ar.sample import Decoding, draw, guide
from ifsq.generators.base import CodeBatch, Generator, Sampled
from ifsq.generators.conditioning import LabelEmbedding, check_guidance, drop_labels
from ifsq.generators.streams import uniforms
from ifsq.nn.attention import KVCache, head_width
from ifsq.nn.embed import PREFIXES, Rotary
from ifsq.nn.modes import evaluating

MAX_VOCAB = 2**20  # codes of a group: each has a row in an embedding and one in an output layer


@dataclass(frozen=True)
class ARConfig:
    """Size and options of an `ARGenerator`; the defaults are the official ones but for dropout, rope_class and head.

    depth, width, heads  of the trunk
    mlp_multiple_of      the SwiGLU width is int(8/3 width), rounded up to a multiple of this
    dropout              on embeddings and on what each layer adds
    label_dropout        share of training labels replaced by the null class
    rope_base            base of the rotary angles
    rope_class           what the rotary table does to the class token: ``identity``, or ``zero`` as the official code
    head                 ``chain`` or ``transformer``, where tokens have several groups; one group has one softmax
    head_depth           residual layers of a chain head, blocks of a transformer head
    head_width           width of the chain head; None is the trunk's
    initializer_range    standard deviation of the initial weights
    """

    depth: int
    width: int
    heads: int
    mlp_multiple_of: int = 256
    dropout: float = 0.0
    label_dropout: float = 0.1
    rope_base: float = 10000.0
    rope_class: str = "identity"
    head: str = "chain"
    head_depth: int = 2
    head_width: int | None = None
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        head_width(self.width, self.heads)
        for name in ("depth", "mlp_multiple_of", "head_depth", "head_width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        if self.initializer_range < 0:
            raise ValueError(f"initializer_range={self.initializer_range}: expected at least 0")
        for name in ("dropout", "label_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected a share of at least 0 and below 1")
        if self.rope_class not in PREFIXES:
            raise ValueError(f"rope_class={self.rope_class!r}: expected one of {', '.join(PREFIXES)}")
        if self.head not in HEADS:
            raise ValueError(f"head={self.head!r}: expected one of {', '.join(HEADS)}")

    @property
    def mlp_width(self) -> int:
        """Hidden width of the SwiGLU layers."""
        return math.ceil(int(8 * self.width / 3) / self.mlp_multiple_of) * self.mlp_multiple_of


class ARGenerator(Generator):
    """Next-token model of the indices of an image, given its class. See `Generator` for the arguments.

    Raises ValueError where a group has more than 2**20 codes, or the head width does not suit rotary positions.
    """

    kind = "ar"

    def __init__(self, config: ARConfig, spec: CodeSpec, num_classes: int) -> None:
        super().__init__(spec, num_classes)
        if max(spec.vocab_sizes) > MAX_VOCAB:
            raise ValueError(
                f"a group of {max(spec.vocab_sizes)} codes: expected at most {MAX_VOCAB}; use smaller groups"
            )
        self.config = config
        self.cls_embedding = LabelEmbedding(num_classes, config.width)
        self.tok_embeddings = nn.ModuleList(nn.Embedding(v, config.width) for v in spec.vocab_sizes)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = _make_blocks(config, config.depth)
        per_head = head_width(config.width, config.heads)
        self.rope = Rotary(spec.grid, per_head, base=config.rope_base, prefix=config.rope_class)
        self.head = _make_head(config, spec.vocab_sizes, self.rope)
        self._initialize()

    def logits(self, indices: Int[Tensor, "b t g"], labels: Int[Tensor, "b"]) -> list[Float[Tensor, "b t _"]]:
        """Teacher-forced logits (b, t, vocabulary) of each group; ``labels`` may hold the null class."""
        x = torch.cat([self.cls_embedding(labels)[:, None], self._embed(indices[:, :-1])], dim=1)
        return self.head(self._trunk(self.dropout(x)), indices, self.tok_embeddings)

    def loss(self, batch: CodeBatch, rng: torch.Generator) -> dict[str, Tensor]:
        """``loss``: cross-entropy in nats per token, summed over its groups; ``bits_per_token``: the same in bits."""
        labels = batch.labels
        if self.training:
            labels = drop_labels(labels, self.num_classes, self.config.label_dropout, rng)
        loss = self._token_nats(batch, labels).mean()
        return {"loss": loss, "bits_per_token": loss.detach() / math.log(2)}

    def nll(self, batch: CodeBatch) -> Float[Tensor, "b"]:
        """Negative log-likelihood of each image in nats, given its label; no dropout of any kind, no gradient."""
        with evaluating(self):
            return self._token_nats(batch, batch.labels).sum(dim=1)

    def sample(
        self,
        labels: Int[Tensor, "b"],
        *,
        guidance: float = 1.0,
        seed: int = 0,
        first: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        greedy: bool = False,
        guidance_interval: int | None = None,
    ) -> Sampled:
        """Draw one image's codes for every label; see `Generator.sample`, `Decoding` and `generate`.

        An image's random numbers, one a token and group, are its own.
        """
        self.check_labels(labels)
        decoding = Decoding(temperature, top_k, top_p, greedy)
        device = self.cls_embedding.embedding_table.weight.device
        groups = len(self.spec.groups)
        numbers = list(uniforms(seed, first, len(labels), self.spec.tokens * groups).to(device).unbind(1))
        numbers.reverse()
        finite: list[Tensor] = []

        def choose(logits: Tensor) -> Tensor:
            if len(numbers) <= groups:  # the last token sees all before it, so NaN anywhere is NaN there
                finite.append(logits.amax(dim=-1).isfinite().all())
            return draw(logits, decoding, numbers.pop())

        indices = self.generate(labels, choose, guidance, guidance_interval).unflatten(1, self.spec.grid)
        if not bool(torch.stack(finite).all()):
            raise InputError("the logits are not finite numbers: expected finite weights")
        return Sampled(self.spec.digits_to_codes(self.spec.indices_to_digits(indices)), indices)

    def generate(
        self,
        labels: Int[Tensor, "b"],
        choose: Callable[[Tensor], Tensor],
        guidance: float = 1.0,
        guidance_interval: int | None = None,
    ) -> Int[Tensor, "b t g"]:
        """Decode token by token with a cache; ``choose`` turns float32 logits (b, v) into indices (b,).

        guidance           1 is none, else ``null + s * (class - null)`` of the logits, at twice the batch
        guidance_interval  guide the first so many tokens only, then go on with half the batch; None guides all
                           (the official ``cfg_interval`` n guides n + 2)
        """
        check_guidance(guidance)
        if guidance_interval is not None and guidance_interval < 0:
            raise ValueError(f"guidance_interval={guidance_interval}: expected None or a count of tokens")
        device = self.cls_embedding.embedding_table.weight.device
        labels = labels.to(device)
        guided = self.spec.tokens if guidance_interval is None else guidance_interval
        guided = 0 if guidance == 1 else guided
        rows = torch.cat([labels, torch.full_like(labels, self.num_classes)]) if guided > 0 else labels
        caches = [KVCache(self.spec.tokens) for _ in self.layers]
        tokens: list[Tensor] = []
        with evaluating(self):
            x = self.cls_embedding(rows)[:, None]
            for position in range(self.spec.tokens):
                if position == guided:
                    x = x[: len(labels)]
                    for cache in caches:
                        cache.keep_first(len(labels))
                pick = _guided(choose, guidance) if position < guided else _plain(choose)
                drawn = self.head.draw(self._trunk(x, caches)[:, 0], pick, self.tok_embeddings)
                tokens.append(drawn[: len(labels)])
                x = self._embed(drawn[:, None])
        return torch.stack(tokens, dim=1)

    def _embed(self, indices: Tensor) -> Tensor:
        embedded = [table(indices[..., k]) for k, table in enumerate(self.tok_embeddings)]
        return torch.stack(embedded).sum(dim=0) if len(embedded) > 1 else embedded[0]

    def _trunk(self, x: Tensor, caches: list[KVCache] | None = None) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x, self.rope, None if caches is None else caches[i])
        return x

    def _token_nats(self, batch: CodeBatch, labels: Tensor) -> Tensor:
        """Cross-entropy (b, t) in nats, summed over groups, float32."""
        indices = self.spec.digits_to_indices(batch.digits).flatten(1, 2)
        nats = [
            F.cross_entropy(logits.to(torch.float32).movedim(-1, 1), indices[..., k], reduction="none")
            for k, logits in enumerate(self.logits(indices, labels))
        ]
        return torch.stack(nats).sum(dim=0)

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for parameter in self.head.output.parameters():
            nn.init.zeros_(parameter)


def _make_blocks(config: ARConfig, depth: int) -> nn.ModuleList:
    return nn.ModuleList(Block(config.width, config.heads, config.mlp_width, config.dropout) for _ in range(depth))


def _make_head(config: ARConfig, sizes: tuple[int, ...], rope: Rotary) -> Head:
    if len(sizes) == 1:
        return JointHead(config.width, sizes[0])
    if config.head == "chain":
        return ChainHead(
            config.width, sizes, config.width if config.head_width is None else config.head_width, config.head_depth
        )
    return TransformerHead(config.width, sizes, _make_blocks(config, config.head_depth), rope)


def _plain(choose: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda logits: choose(logits.to(torch.float32))


def _guided(choose: Callable[[Tensor], Tensor], guidance: float) -> Callable[[Tensor], Tensor]:
    """Both halves of the batch go on with the index drawn from their combined logits."""
    return lambda logits: choose(guide(logits, guidance)).repeat(2)
