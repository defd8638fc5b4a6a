"""The tokenizer: encoder, quantizer, decoder, and its form on disk.

``Tokenizer.from_pretrained`` is the only way to get a trained one, from a run folder or from a saved one; the hash of
its weights is its identity in code caches and protocol cards. Called by ``train``, ``pipeline`` and users.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ifsq.codes.spec import CodeSpec
from ifsq.config import InputError, build, to_dict
from ifsq.quantizers import FSQ
from ifsq.tokenizer.conv import ConvConfig, Decoder, Encoder
from ifsq.training.checkpoint import load_weights, weights_digest
from ifsq.training.folder import find_weights, save_model


@dataclass(frozen=True)
class QuantizerConfig:
    """The bottleneck; see `ifsq.quantizers.FSQ`.

    levels       level count of every dimension
    bound        ``ifsq``, ``tanh``, ``gaussian``, ``clamp``, ``standardized``, ``quantile`` or ``learned``
    alpha        slope of the ``ifsq`` bound, and of what the last three start from
    cells        ``paper``, ``symmetric`` or ``equal``
    groups       sizes of the groups of dimensions that share one index; empty for one group
    digit_order  ``little`` or ``big``
    """

    levels: tuple[int, ...] = (17, 17, 17, 17)
    bound: Literal["ifsq", "tanh", "gaussian", "clamp", "standardized", "quantile", "learned"] = "ifsq"
    alpha: float = 1.6
    cells: Literal["paper", "symmetric", "equal"] = "paper"
    groups: tuple[int, ...] = ()
    digit_order: Literal["little", "big"] = "little"

    def __post_init__(self) -> None:
        self.make()  # the quantizer knows what it accepts

    def make(self) -> FSQ:
        """The quantizer."""
        return FSQ(
            self.levels,
            bound=self.bound,
            alpha=self.alpha,
            cells=self.cells,
            groups=self.groups or None,
            digit_order=self.digit_order,
            channel_first=True,
        )


@dataclass(frozen=True)
class TokenizerConfig:
    """Everything that decides the shape of a tokenizer."""

    conv: ConvConfig = field(default_factory=ConvConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)


@dataclass(frozen=True)
class Encoded:
    """What `Tokenizer.encode` returns.

    codes    float (b, d, h, w) in [-1, 1]
    indices  int64 (b, h, w), or (b, h, w, g) with several groups; None where a group has more than 2**63 codes
    digits   int64 (b, h, w, d)
    """

    codes: Float[Tensor, "b d h w"]
    indices: Int[Tensor, "b h w *g"] | None
    digits: Int[Tensor, "b h w d"]


class Tokenizer(nn.Module):
    """Images (b, 3, H, W) in [-1, 1] <-> codes. H and W are multiples of ``factor``."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.conv)
        self.quantizer = config.quantizer.make()
        d = len(config.quantizer.levels)
        self.quant_conv = nn.Conv2d(2 * config.conv.latent, d, 1)
        self.post_quant_conv = nn.Conv2d(d, config.conv.latent, 1)
        self.decoder = Decoder(config.conv)

    @property
    def factor(self) -> int:
        """Pixels a side of one code."""
        return self.config.conv.factor

    def latent(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        """Encoder output before the bound, float32, unbounded."""
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(f"images of {height} x {width} pixels: expected multiples of {self.factor}")
        return self.quant_conv(self.encoder(images)).float()

    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Encoded:
        """Images in [-1, 1] -> codes, indices and digits. Raises ValueError if ``factor`` does not divide the size."""
        quantized = self.quantizer(self.latent(images))
        return Encoded(quantized.codes, quantized.indices, quantized.digits)

    def decode(self, codes: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        """Codes -> images around [-1, 1], not clamped: that is done where images are written."""
        return self.decoder(self.post_quant_conv(codes.to(self.post_quant_conv.weight.dtype)))

    def decode_indices(self, indices: Int[Tensor, "b h w *g"]) -> Float[Tensor, "b 3 H W"]:
        """Indices as `encode` gives them, or with the axis of a single group kept -> images.

        Raises ValueError outside the codebook.
        """
        if len(self.quantizer.groups) == 1 and indices.ndim == 4:
            indices = indices.squeeze(-1)
        return self.decode(self.quantizer.indices_to_codes(indices))

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        """Reconstruction, with the straight-through gradient."""
        return self.decode(self.encode(images).codes)

    def spec(self, height: int, width: int) -> CodeSpec:
        """Layout of the codes of images of this size."""
        quantizer = self.config.quantizer
        return CodeSpec(
            levels=quantizer.levels,
            groups=self.quantizer.groups,
            digit_order=quantizer.digit_order,
            cells=self.quantizer.cells,
            grid=(height // self.factor, width // self.factor),
        )

    def digest(self) -> str:
        """SHA-256 of the weights: the tokenizer's identity."""
        return weights_digest(self)

    def describe(self) -> dict[str, Any]:
        """JSON from which `from_description` builds the same architecture."""
        # A calibrated or converted quantizer has another bound than the one that was asked for.
        q = self.quantizer
        bound = replace(self.config.quantizer, bound=cast(Any, q.bound.name), cells=cast(Any, q.cells))
        return {"kind": "tokenizer", "config": to_dict(replace(self.config, quantizer=bound))}

    @classmethod
    def from_description(cls, described: dict[str, Any], where: str) -> "Tokenizer":
        """Inverse of `describe`, with fresh weights. Raises InputError when it describes something else."""
        if described.get("kind") != "tokenizer":
            raise InputError(f"{where}: holds a {described.get('kind')} model; expected a tokenizer")
        return cls(build(TokenizerConfig, described["config"], where))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer of a run folder (averaged weights of its newest checkpoint) or of a saved one, in eval mode."""
        found = find_weights(Path(folder))
        model = cls.from_description(found.described, str(folder))
        load_weights(model, found.load(), str(folder))
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        save_model(Path(folder), self.describe(), self.state_dict())

    @torch.no_grad()
    def reconstruct(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        """What the codes keep of the images, clamped to [-1, 1]."""
        return self(images).clamp(-1, 1)
