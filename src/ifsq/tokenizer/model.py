"""The tokenizer: encoder, quantizer, decoder, and its form on disk.

``Tokenizer.from_pretrained`` is the only way to get a trained one, from a run folder or from a saved one; the hash of
its weights is its identity in code caches and protocol cards.
"""

from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ifsq.codes import CodeSpec, LatentSpec, Sampled
from ifsq.config import InputError, build, digest, to_dict
from ifsq.quantizers.bottleneck import Bottleneck
from ifsq.store.hub import push
from ifsq.store.model import save_model
from ifsq.store.model_card import UNKNOWN, Provenance, model_card
from ifsq.store.run import Run
from ifsq.store.weights import build_with, weights_digest
from ifsq.tokenizer.blocks import unrounded
from ifsq.tokenizer.bottleneck import QuantizerConfig, in_force, rate_of, round_to, taken_indices
from ifsq.tokenizer.checks import check_codes, check_images
from ifsq.tokenizer.conv import ConvConfig, Decoded, Decoder, Encoder
from ifsq.tokenizer.tiling import Tiling, tiled
from ifsq.training.precision import computes_bfloat16


@dataclass(frozen=True)
class TokenizerConfig:
    """Everything that decides the shape of a tokenizer.

    conv       encoder and decoder, see `ConvConfig`
    quantizer  the bottleneck between them, see `QuantizerConfig`
    """

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

    quantizer: Bottleneck

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.conv)
        self.quantizer = config.quantizer.make()
        self.quant_conv = nn.Conv2d(config.conv.features, self.quantizer.width, 1)
        self.post_quant_conv = nn.Conv2d(self.quantizer.dim, config.conv.latent, 1)
        self.decoder = Decoder(config.conv)

    @property
    def channels(self) -> int:
        """Channels of the images: 3 for RGB, 1 for luminance."""
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
        codes = self.quantizer.indices_to_codes(taken_indices(self.quantizer, indices))
        return self.decode(codes, tile, overlap)

    def decode_sampled(self, drawn: Sampled) -> Float[Tensor, "b c H W"]:
        """What a generator drew -> images: by its codes or, where they are in the codebook alone, by its indices.

        Raises ValueError, as `decode` and `decode_indices`.
        """
        if drawn.codes is not None:
            return self.decode(drawn.codes)
        if drawn.indices is None:
            raise ValueError("neither codes nor indices: expected what a generator draws")
        return self.decode_indices(drawn.indices)

    def at_levels(self, levels: int) -> "Tokenizer":
        """A copy that rounds to so many levels in every dimension: one of those that ``nested_levels`` trained.

        Weights and mode are the same. Raises InputError for any other.
        """
        config = replace(self.config, quantizer=self.config.quantizer.at(levels))
        copied = deepcopy(self)
        copied.config = config
        round_to(copied.quantizer, config.quantizer)
        return copied

    def codebook(self) -> Float[Tensor, "v d"] | None:
        """The vectors that a cache's digits number, float32 on the CPU; None of other tokenizers."""
        lattice = self.quantizer.lattice
        if lattice is None or lattice.has_codes:
            return None
        numbers = torch.arange(lattice.levels[0], device=next(self.parameters()).device)
        return self.quantizer.indices_to_codes(numbers[None, None])[0, :, 0].T.detach().cpu()

    def forward(self, images: Float[Tensor, "b c H W"]) -> Autoencoded:
        """Reconstruction, with the quantizer's gradient, and what the quantizer adds to the loss; else as `encode`."""
        quantized = self.quantizer(self.latent(images))
        decoded = self._decoded(quantized.codes)
        return Autoencoded(_at_least_float(decoded.images), quantized.losses, decoded.last.detach())

    def optimize(self, precision: Literal["auto", "bf16", "fp32"] = "auto", *, compile: bool = False) -> "Tokenizer":
        """Make this tokenizer fast for inference, in place, and return it: eval mode, no gradients, channels last.

        precision  ``bf16``: encoder and decoder in bfloat16, with sums in float32; the encoder's last convolutions and
                   the quantizer stay in float32. Some tokens differ from those of ``fp32``. ``auto``: bf16 where the
                   tokenizer's device computes in it, else fp32
        compile    whether encoder and decoder go through `torch.compile`; the first call of each image size takes long

        Images, latents and codes are float32 as before. With ``bf16`` the weights are rounded: `digest` then names
        another tokenizer, and `save_pretrained` writes the rounded ones. Raises ValueError.
        """
        if precision not in ("auto", "bf16", "fp32"):
            raise ValueError(f"precision={precision!r}: expected 'auto', 'bf16' or 'fp32'")
        if precision == "auto":
            precision = "bf16" if computes_bfloat16(next(self.parameters()).device.type) else "fp32"
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
        """Kind of the bottleneck."""
        return self.config.quantizer.kind

    def spec(self, height: int, width: int) -> CodeSpec:
        """Layout of the digits of images of this size.

        ``residual``: digits of the whole lattice, its stages joined, one group a dimension; ``vq``: the number of the
        code. Raises InputError for ``ae`` and ``kl``.
        """
        lattice = self.quantizer.lattice
        if lattice is None:
            raise InputError(f"kind={self.kind!r}: its codes are continuous; expected a tokenizer with digits")
        return CodeSpec.of(lattice, (height // self.factor, width // self.factor))

    def digits(self, encoded: Encoded, spec: CodeSpec) -> Int[Tensor, "b h w d"]:
        """The digits of what `encode` returned, in the layout that `spec` gives."""
        assert encoded.digits is not None  # what has a `CodeSpec` has digits
        if encoded.digits.shape[-1] != spec.dim:  # a residual quantizer's are stacked by stage
            return spec.codes_to_digits(encoded.codes)
        return encoded.digits

    def layout(self, height: int, width: int) -> CodeSpec | LatentSpec:
        """What a cache of this tokenizer's codes holds: digits, or latents of ``ae`` and ``kl``. Raises InputError."""
        if self.quantizer.lattice is None:
            return LatentSpec(self.quantizer.dim, (height // self.factor, width // self.factor))
        spec = self.spec(height, width)
        if max(spec.levels) > 2**16:
            raise InputError(f"levels={list(spec.levels)}: a cache holds digits of 16 bits; expected at most 65536")
        return spec

    def digest(self) -> str:
        """SHA-256 of the weights, with nested levels of weights and ``levels``: the tokenizer's identity."""
        quantizer = self.config.quantizer
        weights = weights_digest(self)
        return digest([weights, list(quantizer.levels)]) if quantizer.nested_levels else weights

    def describe(self) -> dict[str, Any]:
        """JSON from which `from_description` builds the same architecture."""
        config = replace(self.config, quantizer=in_force(self.config.quantizer, self.quantizer))
        return {"kind": "tokenizer", "config": to_dict(config)}

    @classmethod
    def from_description(cls, described: dict[str, Any], where: str) -> "Tokenizer":
        """Inverse of `describe`, with fresh weights. Raises InputError when it describes something else."""
        return cls(config_of(described, where))

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None) -> "Tokenizer":
        """The tokenizer of a run (averaged weights of its newest checkpoint) or of a saved model, in eval mode.

        source    a folder, or a repository ``owner/name`` of the Hugging Face hub where no such folder is (extra
                  ``hub``); a `Path` is always a folder
        revision  branch, tag or commit of the repository

        Raises InputError.
        """
        return cls.from_run(Run.open(source, revision))

    @classmethod
    def from_run(cls, run: Run, step: int | None = None, average: bool = True) -> "Tokenizer":
        """`from_pretrained` of what is opened already; ``step`` and ``average`` as of `Run.weights`."""
        found = run.weights(step, average)
        config = config_of(found.described, run.name)
        model = build_with(lambda: cls(config), found.load(), run.name, halves=found.step is None)
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


def config_of(described: dict[str, Any], where: str) -> TokenizerConfig:
    """The config of a tokenizer that is described. Raises InputError when it describes something else."""
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
        f"SHA-256 of the weights{' and the levels' if config.quantizer.nested_levels else ''}": tokenizer.digest(),
    }
    use = (
        "import ifsq",
        'tokenizer = ifsq.Tokenizer.from_pretrained(".")  # this folder, or owner/name on the hub',
        "images = tokenizer.decode(tokenizer.encode(images).codes)  # "
        f"float (b, {tokenizer.channels}, H, W) in [-1, 1]",
    )
    return model_card(f"Image tokenizer ({kind}, f{tokenizer.factor})", ("image-tokenizer", kind), facts, use, made)
