"""The tokenizers of LlamaGen, VQ-16 and VQ-8 (``VQModel``), in and out.

The file is ``{"model": tensors}``. Their architecture is that of `Tokenizer` with other names: ``conv_blocks`` of the
decoder begin with the coarsest resolution, the projections of attention are 1x1 convolutions, and the codebook is
normalised where it is used. Its log of codes (``codebook_used``) is left out on the way in. All sizes follow from the
tensors' shapes.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ifsq.config import InputError, build
from ifsq.interop.assemble import assemble
from ifsq.interop.official.form import check_form
from ifsq.interop.official.tokenizer_config import NORM_GROUPS
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig

USED = "quantize.codebook_used"
LAST_USED = 65536
"""Codes that the log holds."""
COMMITMENT = 0.25
MIDDLE = ("mid_block.0", "mid_attention", "mid_block.1")
PROJECTION = re.compile(r"\.(attn\.\d+|mid_attention)\.(q|k|v|proj_out)\.weight$")
LEVEL = re.compile(r"^(encoder|decoder)\.(?:conv_blocks|down|up)\.(\d+)\.(.*)$")


def read_vq(table: Mapping[str, Tensor], where: str) -> Tokenizer:
    """The tokenizer of a table by LlamaGen's bare names, float32, on the CPU, in eval mode.

    Raises InputError naming the first tensor that is missing, left over, of another shape or type, or not finite.
    """
    config = vq_config(table, where)
    levels = len(config.conv.multipliers)
    table = {key: value for key, value in table.items() if key != USED}
    check_form(lambda: Tokenizer(config), lambda state: their_tensors(state, levels), table, where)
    own = {own_name(key, levels): value for key, value in table.items()}
    return assemble(
        config, {key: value[..., 0, 0] if PROJECTION.search(key) else value for key, value in own.items()}, where
    )


def vq_config(table: Mapping[str, Tensor], where: str) -> TokenizerConfig:
    """The architecture that the shapes of a table tell. Raises InputError."""
    levels = _count(table, r"encoder\.conv_blocks\.(\d{1,6})\.")
    width = _shape(table, "encoder.conv_in.weight", 4, where)[0]
    widths = [_shape(table, f"encoder.conv_blocks.{i}.res.0.conv1.weight", 4, where)[0] for i in range(levels)]
    codebook, dim = _shape(table, "quantize.embedding.weight", 2, where)
    wrong = next((one for one in widths if one % width), None)
    if wrong is not None or widths[0] != width:
        raise InputError(f"{where}: encoder of widths {widths}; expected multiples of {width}, that of its first layer")
    attends = [f"encoder.conv_blocks.{i}.attn.0.q.weight" in table for i in range(levels)]
    conv = {
        "width": width,
        "multipliers": [one // width for one in widths],
        "blocks": _count(table, r"encoder\.conv_blocks\.0\.res\.(\d{1,6})\."),
        "groups": NORM_GROUPS,
        "latent": _shape(table, "encoder.conv_out.weight", 4, where)[0],
        "double_latent": False,
        "in_channels": _shape(table, "encoder.conv_in.weight", 4, where)[1],
        "attention": [2**i for i in range(levels) if attends[i]],
        "middle_blocks": len(MIDDLE) - 1,
        "middle_attention": True,
    }
    quantizer = {
        "kind": "vq",
        "dim": dim,
        "codebook_size": codebook,
        "commitment_weight": COMMITMENT,
        "normalize": True,
    }
    return build(TokenizerConfig, {"conv": conv, "quantizer": quantizer}, where)


def is_vq(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer is built as LlamaGen's are, and not as the official ones."""
    return tokenizer.kind == "vq" and not tokenizer.config.conv.double_latent


def vq_tensors(tokenizer: Tokenizer, where: str) -> dict[str, Tensor]:
    """The tensors of ``VQModel``, float32; its log of codes is that of a new model.

    Raises InputError, naming ``where``, for what LlamaGen's class cannot hold.
    """
    _refuse_unknown_there(tokenizer.config, where)
    return {**own_tensors(tokenizer), USED: torch.zeros(LAST_USED)}


def own_tensors(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """A tokenizer's tensors by LlamaGen's names and in its shapes, float32, on the CPU."""
    state = {key: value.detach().float().cpu().contiguous() for key, value in tokenizer.state_dict().items()}
    return their_tensors(state, len(tokenizer.config.conv.multipliers))


def their_tensors(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Our state by LlamaGen's names: the projections of attention as 1x1 convolutions."""
    return {
        their_name(key, levels): value[..., None, None] if PROJECTION.search(key) else value
        for key, value in state.items()
    }


def own_name(key: str, levels: int) -> str:
    """LlamaGen's name of a tensor -> ours."""
    key = re.sub(r"\.mid\.([012])\.", lambda match: f".{MIDDLE[int(match[1])]}.", key)
    key = re.sub(r"^quantize\.", "quantizer.", key)
    return _level(key, levels, {"encoder": "down", "decoder": "up"}, ".res.", ".block.")


def their_name(key: str, levels: int) -> str:
    """Inverse of `own_name`."""
    for place, name in enumerate(MIDDLE):
        key = key.replace(f".{name}.", f".mid.{place}.")
    key = re.sub(r"^quantizer\.", "quantize.", key)
    return _level(key, levels, {"encoder": "conv_blocks", "decoder": "conv_blocks"}, ".block.", ".res.")


def _level(key: str, levels: int, names: Mapping[str, str], old: str, new: str) -> str:
    """Another name for a layer of a resolution; the decoder's are counted from the other end."""
    match = LEVEL.match(key)
    if match is None:
        return key
    part, number, rest = match[1], int(match[2]), f".{match[3]}"
    at = number if part == "encoder" else levels - 1 - number
    return f"{part}.{names[part]}.{at}{rest.replace(old, new, 1)}"


def _refuse_unknown_there(config: TokenizerConfig, where: str) -> None:
    conv, quantizer = config.conv, config.quantizer
    lowest = (conv.factors[-1],)
    wanted: tuple[tuple[str, Any, Any], ...] = (
        ("normalize", quantizer.normalize, True),
        ("ema", quantizer.ema, False),
        ("revive_after", quantizer.revive_after, 0),
        ("norm", conv.norm, "group"),
        ("groups", conv.groups, NORM_GROUPS),
        ("patch", conv.patch, 1),
        ("in_channels", conv.in_channels, 3),
        ("attention", conv.attention, lowest),
        ("middle_attention", conv.middle_attention, True),
        ("middle_blocks", conv.blocks if conv.middle_blocks is None else conv.middle_blocks, len(MIDDLE) - 1),
    )
    for name, value, expected in wanted:
        if value != expected:
            raise InputError(f"{where}: LlamaGen's tokenizer has no {name}={value!r}; expected {expected!r}")


def _count(table: Mapping[str, Tensor], pattern: str) -> int:
    """How many are numbered, by the greatest number."""
    found = [int(match[1]) for key in table if (match := re.match(pattern, key))]
    return 1 + max((number for number in found if number < len(table)), default=0)


def _shape(table: Mapping[str, Tensor], key: str, axes: int, where: str) -> tuple[int, ...]:
    if key not in table:
        raise InputError(f"{where}: tensor {key!r} is missing; expected those of LlamaGen's VQModel")
    if table[key].ndim != axes:
        raise InputError(f"{where}: tensor {key!r} has shape {tuple(table[key].shape)}, expected {axes} axes")
    return tuple(table[key].shape)
