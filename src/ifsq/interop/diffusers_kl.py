"""Stable Diffusion's autoencoder (``AutoencoderKL`` of diffusers) as a `Tokenizer` of kind ``kl``.

The folder is diffusers' own, or the root of a pipeline; diffusers itself is not needed (see ``diffusers_files``). Codes
are its latents as the encoder gives them. ``scaling_factor`` and ``shift_factor`` belong to its generators, which see
``(codes - shift_factor) * scaling_factor``; they stay in ``diffusers.json`` beside the tokenizer.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ifsq.config import InputError, build, read_json
from ifsq.interop.assemble import assemble
from ifsq.interop.diffusers_files import fetch, read_parts, weights_in
from ifsq.store.files import check_free, write_text
from ifsq.store.model import new_folder
from ifsq.store.model_card import Provenance, code_span
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig

ORIGIN = "diffusers.json"
MIDDLE_BLOCKS = 2  # always, in diffusers

RENAMED = (
    (re.compile(r"^encoder\.down_blocks\.(\d+)\.resnets\."), r"encoder.down.\1.block."),
    (re.compile(r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\."), r"encoder.down.\1.downsample."),
    (re.compile(r"^decoder\.up_blocks\.(\d+)\.resnets\."), r"decoder.up.\1.block."),
    (re.compile(r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0\."), r"decoder.up.\1.upsample."),
    (re.compile(r"^(encoder|decoder)\.mid_block\.resnets\."), r"\1.mid_block."),
    (re.compile(r"^(encoder|decoder)\.mid_block\.attentions\.0\.group_norm\."), r"\1.mid_attention.norm."),
    (
        re.compile(r"^(encoder|decoder)\.mid_block\.attentions\.0\.(?:to_out\.0|proj_attn)\."),
        r"\1.mid_attention.proj_out.",
    ),
    (
        re.compile(r"^(encoder|decoder)\.mid_block\.attentions\.0\.(?:to_)?([qkv])(?:uery|ey|alue)?\."),
        r"\1.mid_attention.\2.",
    ),
    (re.compile(r"\.conv_shortcut\."), ".nin_shortcut."),
    (re.compile(r"\.conv_norm_out\."), ".norm_out."),
)
UP = re.compile(r"^decoder\.up\.(\d+)\.")


@dataclass(frozen=True)
class DiffusersConfig:
    """The config of ``AutoencoderKL``, with its defaults; what has one value that is understood here may be absent.

    block_out_channels       channels of each resolution, finest first; multiples of the first
    layers_per_block         residual blocks of a resolution; 2, as many as in the middle
    latent_channels          of the codes
    norm_num_groups          of the group norm
    scaling_factor           generators see ``(codes - shift_factor) * scaling_factor``: kept, not applied
    shift_factor
    mid_block_add_attention  whether attention follows the first of the middle blocks
    use_quant_conv           False: the encoder's means and log variances go out as they are
    use_post_quant_conv      False: the decoder takes the codes as they are
    """

    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    in_channels: int = 3
    out_channels: int = 3
    act_fn: str = "silu"
    down_block_types: tuple[str, ...] | None = None
    up_block_types: tuple[str, ...] | None = None
    # Of pipelines, not of the network.
    sample_size: int | tuple[int, ...] | None = None
    force_upcast: bool | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None

    def understood(self) -> dict[str, Any]:
        """The only values that `Tokenizer` can reproduce, by key."""
        n = len(self.block_out_channels)
        return {
            "out_channels": self.in_channels,
            "act_fn": "silu",
            "layers_per_block": MIDDLE_BLOCKS,
            "down_block_types": ("DownEncoderBlock2D",) * n,
            "up_block_types": ("UpDecoderBlock2D",) * n,
        }


def import_diffusers(source: str, out: Path, revision: str | None = None) -> Tokenizer:
    """Read the autoencoder and save it in the folder ``out``, which appears whole or not at all.

    source    a folder of it or of a pipeline, or such a repository ``owner/name`` of the hub where no such folder is
    revision  of the repository

    Raises InputError when it is no such autoencoder, has options that `Tokenizer` has not, or ``out`` is taken.
    """
    check_free(out)
    folder = fetch(source, revision)
    tokenizer, config = read_diffusers(folder)
    note = (
        f"Imported from diffusers' AutoencoderKL {code_span(source)}. Its generators see "
        f"`(codes - {config.shift_factor or 0:g}) * {config.scaling_factor:g}`; codes here are not shifted or scaled."
    )
    with new_folder(out) as partial:
        tokenizer.save_pretrained(partial, Provenance(notes=(note,)))
        write_text(partial / ORIGIN, json.dumps(read_json(folder / "config.json"), indent=1) + "\n")
    return tokenizer


def read_diffusers(folder: Path) -> tuple[Tokenizer, DiffusersConfig]:
    """The tokenizer of such a folder, float32, on the CPU, in eval mode, and its config. Raises InputError."""
    config = _read_options(folder / "config.json")
    described = _tokenizer_config(config, folder / "config.json")
    weights = weights_in(folder)
    table = {_own_name(key, config): value for key, value in read_parts(weights).items()}
    table = {key: _as_linear(key, value) for key, value in table.items()}
    for name, used, width in (
        ("quant_conv", config.use_quant_conv, 2 * config.latent_channels),
        ("post_quant_conv", config.use_post_quant_conv, config.latent_channels),
    ):
        if not used:  # the convolution that changes nothing
            identity = {f"{name}.weight": torch.eye(width)[..., None, None], f"{name}.bias": torch.zeros(width)}
            table = {**identity, **table}
    return assemble(described, table, f"{weights}, read by {folder / 'config.json'}"), config


def _read_options(path: Path) -> DiffusersConfig:
    found = read_json(path)
    if not isinstance(found, dict) or found.get("_class_name") != "AutoencoderKL":
        name = found.get("_class_name") if isinstance(found, dict) else type(found).__name__
        raise InputError(f"{path}: _class_name: {name!r}; expected 'AutoencoderKL'")
    # None stands for the default, as it does there.
    given = {key: value for key, value in found.items() if not key.startswith("_") and value is not None}
    config = build(DiffusersConfig, given, str(path))
    for key, value in config.understood().items():
        if getattr(config, key) not in (None, value):
            found_value = getattr(config, key)
            raise InputError(f"{path}: {key}: {_plain(found_value)!r}; expected {_plain(value)!r}")
    return config


def _tokenizer_config(config: DiffusersConfig, path: Path) -> TokenizerConfig:
    widths = config.block_out_channels
    if not widths or widths[0] < 1 or any(width % widths[0] for width in widths):
        raise InputError(f"{path}: block_out_channels: {list(widths)}; expected multiples of the first")
    table = {
        "conv": {
            "width": widths[0],
            "multipliers": [width // widths[0] for width in widths],
            "blocks": config.layers_per_block,
            "groups": config.norm_num_groups,
            "latent": config.latent_channels,
            "in_channels": config.in_channels,
            "middle_attention": config.mid_block_add_attention,
        },
        "quantizer": {"kind": "kl", "dim": config.latent_channels},
    }
    return build(TokenizerConfig, table, str(path))


def _own_name(key: str, config: DiffusersConfig) -> str:
    for pattern, name in RENAMED:
        key = pattern.sub(name, key)
    # Its first decoder block is the coarsest, ours the finest.
    last = len(config.block_out_channels) - 1
    return UP.sub(lambda match: f"decoder.up.{last - int(match[1])}.", key)


def _as_linear(key: str, value: Tensor) -> Tensor:
    """Old files hold the projections of attention as 1x1 convolutions."""
    return value[..., 0, 0] if ".mid_attention." in key and value.ndim == 4 else value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
