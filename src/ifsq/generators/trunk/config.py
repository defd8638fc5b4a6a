"""Sizes and options of the transformer of a generator of digits or indices."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from ifsq.generators.sizes import BY_SIZE, Size, numbers_of
from ifsq.nn.attention import head_width
from ifsq.nn.embed import PREFIXES

MAX_CLASS_TOKENS = 1024  # a table of their positions is made before a weight is read
SIZES = {  # the trunks of the official models
    "S": Size(12, 384, 12),
    "B": Size(12, 768, 12),
    "L": Size(24, 1024, 16),
    "XL": Size(36, 1280, 20),
    "XXL": Size(48, 1536, 24),
    "3B": Size(24, 3200, 32),
}


class Dropouts(NamedTuple):
    """Shares of what is dropped in training: of embeddings, of what attention adds, of what the MLP adds."""

    token: float
    residual: float
    mlp: float


@dataclass(frozen=True)
class TrunkConfig:
    """Size and options of a transformer; the defaults are LlamaGen's but for dropout and rope_class.

    depth              blocks of the trunk
    width              of the trunk
    heads              of the trunk's attention
    size               an official one, ``S``, ``B``, ``L``, ``XL``, ``XXL`` or ``3B``, in place of the three numbers
                       above, which may be left out and must not say otherwise; empty: by these numbers
    mlp_multiple_of    the SwiGLU width is int(8/3 width), rounded up to a multiple of this
    kv_heads           heads of keys and values, each shared by as many query heads (grouped-query attention, arXiv
                       2305.13245); a divisor of ``heads``; None is as many as these
    qk_norm            RMS-normalise queries and keys
    dropout            on embeddings and on what each layer adds
    token_dropout      on the embeddings alone; None is ``dropout``, as of the two below
    residual_dropout   on what attention adds
    mlp_dropout        on what the MLP adds
    drop_path          share of the images for which the last block adds nothing in training (stochastic depth, arXiv
                       1603.09382), linearly from 0 at the first. The official code then has no dropout; here it is
                       what it says
    label_dropout      share of training labels replaced by the null class
    class_tokens       positions before the grid that tell the class, each with an embedding of its own
    adaln              the class also shifts, scales and gates every block of the trunk, by the embedding of its first
                       position (adaLN-Zero, arXiv 2212.09748); blocks then begin as the identity
    rope_base          base of the rotary angles, above 0
    rope_class         what the rotary table does to the class token: ``identity``, or ``zero`` as the official code
    initializer_range  standard deviation of the initial weights
    """

    depth: int = BY_SIZE
    width: int = BY_SIZE
    heads: int = BY_SIZE
    size: str = ""
    mlp_multiple_of: int = 256
    kv_heads: int | None = None
    qk_norm: bool = False
    dropout: float = 0.0
    token_dropout: float | None = None
    residual_dropout: float | None = None
    mlp_dropout: float | None = None
    drop_path: float = 0.0
    label_dropout: float = 0.1
    class_tokens: int = 1
    adaln: bool = False
    rope_base: float = 10000.0
    rope_class: str = "identity"
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for name, value in numbers_of(self, SIZES).items():
            object.__setattr__(self, name, value)
        head_width(self.width, self.heads)
        if self.mlp_multiple_of < 1:
            raise ValueError(f"mlp_multiple_of={self.mlp_multiple_of}: expected at least 1")
        if not 1 <= self.class_tokens <= MAX_CLASS_TOKENS:
            raise ValueError(f"class_tokens={self.class_tokens}: expected 1 to {MAX_CLASS_TOKENS}")
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise ValueError(f"kv_heads={self.kv_heads}: expected a divisor of heads={self.heads}")
        if not self.rope_base > 0:
            raise ValueError(f"rope_base={self.rope_base}: expected a positive number")
        if self.initializer_range < 0:
            raise ValueError(f"initializer_range={self.initializer_range}: expected at least 0")
        shares = ("dropout", "token_dropout", "residual_dropout", "mlp_dropout", "drop_path", "label_dropout")
        for name in shares:
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name}={value}: expected a share of at least 0 and below 1")
        if self.rope_class not in PREFIXES:
            raise ValueError(f"rope_class={self.rope_class!r}: expected one of {', '.join(PREFIXES)}")

    @property
    def mlp_width(self) -> int:
        """Hidden width of the SwiGLU layers."""
        return math.ceil(int(8 * self.width / 3) / self.mlp_multiple_of) * self.mlp_multiple_of

    @property
    def dropouts(self) -> Dropouts:
        """All three as they are used."""
        own = (self.token_dropout, self.residual_dropout, self.mlp_dropout)
        return Dropouts(*(self.dropout if share is None else share for share in own))
