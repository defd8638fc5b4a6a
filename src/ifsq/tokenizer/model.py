"""The tokenizer: encoder, quantizer, decoder, and its form on disk.

``Tokenizer.from_pretrained`` is the only way to get a trained one, from a run folder or from a saved one; the hash of
its weights is its identity in code caches and protocol cards. Called by ``train``, ``pipeline`` and users.
"""

from dataclasses import dataclass, field, fields, replace
from math import log2
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ifsq.codes.spec import CODEBOOK, CodeSpec, LatentSpec
from ifsq.config import InputError, build, to_dict
from ifsq.quantizers import BSQ, FSQ, KL, LFQ, VQ, Identity, ResidualFSQ
from ifsq.quantizers.bottleneck import Bottleneck
from ifsq.store.weights import build_with, weights_digest
from ifsq.tokenizer.blocks import unrounded
from ifsq.tokenizer.checks import check_codes, check_images, check_indices
from ifsq.tokenizer.conv import ConvConfig, Decoded, Decoder, Encoder
from ifsq.tokenizer.tiling import Tiling, tiled
from ifsq.training.folder import find_weights, save_model
from ifsq.training.hub import push
from ifsq.training.model_card import UNKNOWN, Provenance, model_card

# The options of each kind of bottleneck; the others must keep their defaults, or an experiment says what is not done.
KINDS: dict[str, tuple[str, ...]] = {
    "fsq": ("levels", "bound", "alpha", "cells", "groups", "digit_order"),
    "residual": ("levels", "stages", "bound", "alpha", "cells", "digit_order"),
    "vq": ("dim", "codebook_size", "commitment_weight", "codebook_weight", "normalize", "ema", "revive_after"),
    "lfq": ("dim", "commitment_weight", "entropy_weight", "groups"),
    "bsq": ("dim", "commitment_weight", "entropy_weight", "groups"),
    "kl": ("dim", "kl_weight"),
    "ae": ("dim",),
}


@dataclass(frozen=True)
class QuantizerConfig:
    """The bottleneck; see `ifsq.quantizers`.

    kind               ``fsq``, ``residual`` (FSQ in stages), ``vq``, ``lfq``, ``bsq``, ``kl`` (VAE), ``ae`` (nothing)
    levels             level count of every dimension (of a stage)
    bound              ``ifsq``, ``tanh``, ``gaussian``, ``clamp``, ``standardized``, ``quantile`` or ``learned``
    alpha              slope of the ``ifsq`` bound, and of what the last three start from
    cells              ``paper``, ``symmetric`` or ``equal``; residual: ``equal``
    groups             sizes of the index groups; empty for one group
    digit_order        ``little`` or ``big``
    stages             of residual FSQ
    dim                code dimensions of the other kinds
    codebook_size      codes of ``vq``
    commitment_weight  of the term that pulls the encoder to the codes
    codebook_weight    of the term that pulls the codes to the encoder
    normalize          whether codes and latents of ``vq`` lie on the unit sphere
    ema                whether the codebook follows moving averages
    revive_after       training batches after which an unused code is replaced; 0: never
    entropy_weight     of the entropy loss of ``lfq`` and ``bsq``
    kl_weight          of the divergence from N(0, 1), a sum over the latent of an image
    """

    kind: Literal["fsq", "residual", "vq", "lfq", "bsq", "kl", "ae"] = "fsq"
    levels: tuple[int, ...] = (17, 17, 17, 17)
    bound: Literal["ifsq", "tanh", "gaussian", "clamp", "standardized", "quantile", "learned"] = "ifsq"
    alpha: float = 1.6
    cells: Literal["paper", "symmetric", "equal"] = "paper"
    groups: tuple[int, ...] = ()
    digit_order: Literal["little", "big"] = "little"
    stages: int = 2
    dim: int = 4
    codebook_size: int = 16384
    commitment_weight: float = 0.25
    codebook_weight: float = 1.0
    normalize: bool = False
    ema: bool = False
    revive_after: int = 0
    entropy_weight: float = 0.1
    kl_weight: float = 1e-6

    def __post_init__(self) -> None:
        for option in fields(self):
            if option.name not in ("kind", *KINDS[self.kind]) and getattr(self, option.name) != option.default:
                raise ValueError(
                    f"{option.name}={getattr(self, option.name)!r} with kind={self.kind!r}: expected options of this"
                    f" kind, {', '.join(KINDS[self.kind])}"
                )
        try:
            with torch.device("meta"):  # the quantizer knows what it accepts; its size is no matter yet
                self.make()
        except (RuntimeError, TypeError, OverflowError) as error:  # a size that is no int64
            raise ValueError(f"kind={self.kind!r}: {str(error).partition(chr(10))[0]}") from error

    def make(self) -> FSQ | Bottleneck:
        """The quantizer."""
        if self.kind == "fsq":
            return FSQ(
                self.levels,
                bound=self.bound,
                alpha=self.alpha,
                cells=self.cells,
                groups=self.groups or None,
                digit_order=self.digit_order,
                channel_first=True,
            )
        if self.kind == "residual":
            return ResidualFSQ(
                self.levels,
                self.stages,
                bound=self.bound,
                alpha=self.alpha,
                cells=self.cells,
                digit_order=self.digit_order,
                channel_first=True,
            )
        if self.kind == "vq":
            return VQ(
                self.codebook_size,
                self.dim,
                commitment_weight=self.commitment_weight,
                codebook_weight=self.codebook_weight,
                normalize=self.normalize,
                ema=self.ema,
                revive_after=self.revive_after,
                channel_first=True,
            )
        if self.kind == "kl":
            return KL(self.dim, weight=self.kl_weight, channel_first=True)
        if self.kind == "ae":
            return Identity(self.dim, channel_first=True)
        return {"lfq": LFQ, "bsq": BSQ}[self.kind](
            self.dim,
            commitment_weight=self.commitment_weight,
            entropy_weight=self.entropy_weight,
            groups=self.groups or None,
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

    codes    float (b, d, h, w); in [-1, 1] where they are a lattice's
    indices  int64 (b, h, w), or (b, h, w, g) with several groups or stages; None where there are none
    digits   int64 (b, h, w, n), for FSQ n = d; None where there are none
    """

    codes: Float[Tensor, "b d h w"]
    indices: Int[Tensor, "b h w *g"] | None
    digits: Int[Tensor, "b h w n"] | None


@dataclass(frozen=True)
class Autoencoded:
    """What a forward pass of the `Tokenizer` returns.

    images  (b, c, H, W), float32
    losses  auxiliary losses by name, weighted
    last    input of the decoder's last convolution, detached: what `Decoder.last_gradient` takes
    """

    images: Float[Tensor, "b c H W"]
    losses: dict[str, Tensor]
    last: Float[Tensor, "b width _ _"]


class Tokenizer(nn.Module):
    """Images (b, c, H, W) in [-1, 1] <-> codes. H and W are multiples of ``factor``."""

    quantizer: FSQ | Bottleneck

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.conv)
        self.quantizer = config.quantizer.make()
        self.quant_conv = nn.Conv2d(2 * config.conv.latent, self.quantizer.width, 1)
        self.post_quant_conv = nn.Conv2d(self.quantizer.dim, config.conv.latent, 1)
        self.decoder = Decoder(config.conv)

    @property
    def channels(self) -> int:
        """Of the images, 3 for RGB and 1 for luminance."""
        return self.config.conv.in_channels

    @property
    def factor(self) -> int:
        """Pixels a side of one code."""
        return self.config.conv.factor

    def latent(
        self, images: Float[Tensor, "b c H W"], tile: int | None = None, overlap: int | None = None
    ) -> Float[Tensor, "b d h w"]:
        """Encoder output before the bound, float32, unbounded. Tiles and refusals as in `encode`."""
        check_images(images, self.channels, self.factor)
        if tile is None:
            return self._latent(images)
        return tiled(self._latent, images, Tiling.of_pixels(tile, overlap, self.factor), self.factor, 1)

    def encode(self, images: Float[Tensor, "b c H W"], tile: int | None = None, overlap: int | None = None) -> Encoded:
        """Images in [-1, 1] -> codes, indices and digits.

        tile     pixels a side of what is encoded at once, a multiple of ``factor``; None: the whole image. Latents are
                 blended and then quantized; the memory beside images and latents is that of one tile
        overlap  pixels that neighbouring tiles share at least, a multiple of ``factor`` up to half a tile; None: a
                 quarter of the tile

        A tile sees nothing beyond its edge. Layer and RMS norm go by position, so well inside a tile the latents are
        those of the whole image. A group norm takes its statistics, and attention its keys, from the tile alone: the
        latents then differ everywhere, the more the tile differs from the image, and tokens may.
        Raises ValueError for what are no images: bytes, another rank or number of channels, none at all, sides that
        ``factor`` does not divide, and on a CPU values far outside [-1, 1] and NaN; and for such tiles.
        """
        quantized = self.quantizer(self.latent(images, tile, overlap))
        return Encoded(quantized.codes, quantized.indices, quantized.digits)

    def decode(
        self, codes: Float[Tensor, "b d h w"], tile: int | None = None, overlap: int | None = None
    ) -> Float[Tensor, "b c H W"]:
        """Codes -> images around [-1, 1], float32, not clamped: that is done where images are written.

        Tiles, in pixels of the image, as in `encode`; the images of the tiles are blended. Raises ValueError for
        integers, other shapes, and on a CPU codes that are not finite.
        """
        check_codes(codes, self.quantizer.dim)
        if tile is None:
            return self._decode(codes)
        return tiled(self._decode, codes, Tiling.of_pixels(tile, overlap, self.factor), 1, self.factor)

    def decode_indices(
        self, indices: Int[Tensor, "b h w *g"], tile: int | None = None, overlap: int | None = None
    ) -> Float[Tensor, "b c H W"]:
        """Indices as `encode` gives them, or with the axis of a single group kept -> images; tiles as in `decode`.

        Raises ValueError for floats, other shapes and, on a CPU, outside the codebook.
        """
        q = self.quantizer
        if isinstance(q, ResidualFSQ):  # whose first stages alone are a coarser image
            check_indices(indices, range(1, q.num_quantizers + 1))
        else:
            groups = len(getattr(q, "groups", (1,)))
            check_indices(indices, range(groups, groups + 1))
            indices = indices.squeeze(-1) if indices.ndim == 4 and groups == 1 else indices
        return self.decode(q.indices_to_codes(indices), tile, overlap)

    def forward(self, images: Float[Tensor, "b c H W"]) -> Autoencoded:
        """Reconstruction, with the quantizer's gradient, and what the quantizer adds to the loss; else as `encode`."""
        quantized = self.quantizer(self.latent(images))
        decoded = self._decoded(quantized.codes)
        return Autoencoded(_at_least_float(decoded.images), quantized.losses, decoded.last.detach())

    def optimize(self, precision: Literal["bf16", "fp32"] = "bf16", *, compile: bool = False) -> "Tokenizer":
        """Make this tokenizer fast for inference, in place, and return it: eval mode, no gradients, channels last.

        precision  ``bf16``: encoder and decoder in bfloat16, with sums in float32; the encoder's last convolutions and
                   the quantizer stay in float32. Some tokens differ from those of ``fp32``
        compile    whether encoder and decoder go through `torch.compile`; the first call of each image size takes long

        Images, latents and codes are float32 as before. With ``bf16`` the weights are rounded: `digest` then names
        another tokenizer, and `save_pretrained` writes the rounded ones. Raises ValueError.
        """
        if precision not in ("bf16", "fp32"):
            raise ValueError(f"precision={precision!r}: expected 'bf16' or 'fp32'")
        self.eval().requires_grad_(False)
        if precision == "bf16":
            for module in (self.encoder, self.decoder, self.post_quant_conv):
                module.to(torch.bfloat16)
            self.encoder.conv_out.float()
        for module in (self.encoder, self.decoder):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if compile:
                module.compile()
        return self

    def _latent(self, images: Tensor) -> Tensor:
        features = self.encoder(images.to(self.encoder.conv_in.weight.dtype))
        return unrounded(self.quant_conv, features).float()

    def _decode(self, codes: Tensor) -> Tensor:
        return _at_least_float(self._decoded(codes).images)

    def _decoded(self, codes: Tensor) -> Decoded:
        return self.decoder(self.post_quant_conv(codes.to(self.post_quant_conv.weight.dtype)))

    @property
    def kind(self) -> str:
        """Of the bottleneck."""
        return self.config.quantizer.kind

    def spec(self, height: int, width: int) -> CodeSpec:
        """Layout of the digits of images of this size.

        ``residual``: digits of the whole lattice, its stages joined, one group a dimension; ``vq``: the number of the
        code. Raises InputError for ``ae`` and ``kl``.
        """
        config, q = self.config.quantizer, self.quantizer
        grid = (height // self.factor, width // self.factor)
        if isinstance(q, FSQ):
            return CodeSpec(config.levels, q.groups, config.digit_order, q.cells, grid)
        if isinstance(q, LFQ):
            return CodeSpec(q.levels, q.groups, "little", "symmetric", grid, q.scale)
        if isinstance(q, ResidualFSQ):
            finest = tuple(L**q.num_quantizers for L in q.stage_levels)
            return CodeSpec(finest, (1,) * q.dim, config.digit_order, "equal", grid)
        if isinstance(q, VQ):
            return CodeSpec((config.codebook_size,), (1,), "little", CODEBOOK, grid)
        raise InputError(f"kind={self.kind!r}: its codes are continuous; expected a tokenizer with digits")

    def digits(self, encoded: Encoded, spec: CodeSpec) -> Int[Tensor, "b h w d"]:
        """The digits of what `encode` returned, in the layout that `spec` gives."""
        if self.kind == "residual":  # its own are stacked by stage
            return spec.codes_to_digits(encoded.codes)
        assert encoded.digits is not None  # what has a `CodeSpec` has digits
        return encoded.digits

    def layout(self, height: int, width: int) -> CodeSpec | LatentSpec:
        """What a cache of this tokenizer's codes holds: digits, or latents of ``ae`` and ``kl``. Raises InputError."""
        if self.kind in ("ae", "kl"):
            return LatentSpec(self.quantizer.dim, (height // self.factor, width // self.factor))
        spec = self.spec(height, width)
        if max(spec.levels) > 2**16:
            raise InputError(f"levels={list(spec.levels)}: a cache holds digits of 16 bits; expected at most 65536")
        return spec

    def digest(self) -> str:
        """SHA-256 of the weights: the tokenizer's identity."""
        return weights_digest(self)

    def describe(self) -> dict[str, Any]:
        """JSON from which `from_description` builds the same architecture."""
        # A calibrated or converted quantizer has another bound than the one that was asked for.
        config, q = self.config, self.quantizer
        if isinstance(q, FSQ):
            bound = replace(config.quantizer, bound=cast(Any, q.bound.name), cells=cast(Any, q.cells))
            config = replace(config, quantizer=bound)
        return {"kind": "tokenizer", "config": to_dict(config)}

    @classmethod
    def from_description(cls, described: dict[str, Any], where: str) -> "Tokenizer":
        """Inverse of `describe`, with fresh weights. Raises InputError when it describes something else."""
        return cls(_config_of(described, where))

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None) -> "Tokenizer":
        """The tokenizer of a run (averaged weights of its newest checkpoint) or of a saved model, in eval mode.

        source    a folder, or a repository ``owner/name`` of the Hugging Face hub where no such folder is (extra
                  ``hub``); a `Path` is always a folder
        revision  branch, tag or commit of the repository

        Raises InputError.
        """
        found = find_weights(source, revision)
        config = _config_of(found.described, str(source))
        model = build_with(lambda: cls(config), found.load(), str(source), halves=found.step is None)
        return model.eval()

    def save_pretrained(self, folder: str | Path, made: Provenance = UNKNOWN) -> None:
        """Write ``config.json``, ``model.safetensors`` and the model card ``README.md``, whole or not at all.

        made  what the card says of data, steps, evaluation and licence
        """
        save_model(Path(folder), self.describe(), self.state_dict(), tokenizer_card(self, made))

    def push_to_hub(self, repo_id: str, made: Provenance = UNKNOWN, *, private: bool = False) -> str:
        """`save_pretrained` into the repository ``owner/name`` of the hub; returns the commit's address."""
        with TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "model", made)
            return push(Path(folder) / "model", repo_id, private=private)

    @torch.no_grad()
    def reconstruct(self, images: Float[Tensor, "b c H W"], tile: int | None = None) -> Float[Tensor, "b c H W"]:
        """What the codes keep of the images, clamped to [-1, 1]; tiles as in `encode`."""
        return self.decode(self.encode(images, tile).codes, tile).clamp(-1, 1)


def _config_of(described: dict[str, Any], where: str) -> TokenizerConfig:
    if described.get("kind") != "tokenizer":
        raise InputError(f"{where}: holds a {described.get('kind')} model; expected a tokenizer")
    if not isinstance(described.get("config"), dict):
        raise InputError(f"{where}: its description is damaged: config: expected a table")
    return build(TokenizerConfig, described["config"], where)


def _at_least_float(images: Tensor) -> Tensor:
    return images.to(torch.promote_types(images.dtype, torch.float32))


def tokenizer_card(tokenizer: Tokenizer, made: Provenance) -> str:
    """The text of ``README.md``: sizes and bits, use, and what is known of the training."""
    config, kind = tokenizer.config, tokenizer.kind
    facts = {
        "parameters": f"{sum(p.numel() for p in tokenizer.parameters()):,}",
        "image channels": str(tokenizer.channels),
        "pixels a side of one code": str(tokenizer.factor),
        "bottleneck": kind,
        "code dimensions": str(tokenizer.quantizer.dim),
        **rate_of(config.quantizer),
        "SHA-256 of the weights": tokenizer.digest(),
    }
    use = (
        "import ifsq",
        'tokenizer = ifsq.Tokenizer.from_pretrained(".")  # this folder, or owner/name on the hub',
        "images = tokenizer.decode(tokenizer.encode(images).codes)  # "
        f"float (b, {tokenizer.channels}, H, W) in [-1, 1]",
    )
    return model_card(f"Image tokenizer ({kind}, f{tokenizer.factor})", ("image-tokenizer", kind), facts, use, made)


def rate_of(quantizer: QuantizerConfig) -> dict[str, str]:
    """Levels or codebook, and bits, in words."""
    if quantizer.kind in ("kl", "ae"):
        return {"codes": "continuous"}
    if quantizer.kind == "vq":
        return {"codebook": str(quantizer.codebook_size), "bits a position": f"{log2(quantizer.codebook_size):.4g}"}
    levels = (2,) * quantizer.dim if quantizer.kind in ("lfq", "bsq") else quantizer.levels
    stages = quantizer.stages if quantizer.kind == "residual" else 1
    tokens = stages if quantizer.kind == "residual" else len(quantizer.groups) or 1
    bits = stages * sum(map(log2, levels))
    return {
        "levels": " x ".join(map(str, levels)) + (f", {stages} stages" if stages > 1 else ""),
        "bits a position": f"{bits:.4g}",
        "tokens a position": str(tokens),
        **({"bits a token": f"{bits / tokens:.4g}, on average"} if tokens > 1 else {"bits a token": f"{bits:.4g}"}),
    }
