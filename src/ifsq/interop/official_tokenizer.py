"""The FSQ tokenizer of the official repository, in and out of its trainer's ``.ckpt``.

The file is a pickle, opened with ``weights_only=True`` alone: ``{epoch, current_step, optimizer_state, state_dict:
{gen_model, dics_model}, ema_state_dict}``; the model's JSON lies beside it. Parameter names are those of `Tokenizer`.
Left out on the way in: the running mean and variance of the latent, which only its log reads, and the averages that its
EMA takes of integer tables (``_basis`` of ``[9]*6`` drifts from 59049 to 59049.59). Called by ``cli``.
"""

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ifsq.config import InputError, build, read_json
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig
from ifsq.training.checkpoint import load_weights

CLASSES = ("ImageFSQVAEModel", "ImageFSQVAE")
SLOPES = {"scale_sigmoid_16": 1.6, "scale_sigmoid_20": 2.0}
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
DROPPED = re.compile(r"quantize\.(_levels|_basis|_basis_group_\d+|running_mean|running_var)")
NORM_GROUPS = 32


@dataclass(frozen=True)
class OfficialConfig:
    """The model's JSON, by its own names; what has one value that is understood here may be absent.

    act_fun          slope 1.6 or 2 of the sigmoid; without ``do_simple_bound`` it is there and not used
    do_simple_bound  False: the bound of the first FSQ
    factorized_bits  sizes of the index groups
    """

    hidden_size: int
    hidden_size_mult: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    embed_dim: int
    levels: tuple[int, ...]
    do_simple_bound: bool
    act_fun: Literal["scale_sigmoid_16", "scale_sigmoid_20"]
    factorized_bits: tuple[int, ...] | None = None
    encoder_resnet_blocks: tuple[str, ...] | None = None
    encoder_spatial_downsample: tuple[str, ...] | None = None
    decoder_resnet_blocks: tuple[str, ...] | None = None
    decoder_spatial_upsample: tuple[str, ...] | None = None
    encoder_mid_resnet: str | None = None
    decoder_mid_resnet: str | None = None
    encoder_conv_in: str | None = None
    encoder_conv_out: str | None = None
    decoder_conv_in: str | None = None
    decoder_conv_out: str | None = None
    norm_type: str | None = None
    attn_resolutions: tuple[int, ...] | None = None
    double_z: bool | None = None
    use_quant_layer: bool | None = None
    # No part of what an attention-free model computes outside training.
    encoder_attention: str | None = None
    decoder_attention: str | None = None
    resolution: int | None = None
    dropout: float | None = None
    scale: tuple[float, ...] | None = None
    shift: tuple[float, ...] | None = None

    def understood(self) -> dict[str, Any]:
        """The only values that `Tokenizer` can reproduce, by key."""
        n = len(self.hidden_size_mult)
        return {
            "embed_dim": len(self.levels),
            "encoder_resnet_blocks": ("ResnetBlock2D",) * n,
            "encoder_spatial_downsample": ("Downsample",) * (n - 1) + ("",),
            "decoder_resnet_blocks": ("ResnetBlock2D",) * n,
            "decoder_spatial_upsample": ("",) + ("Upsample",) * (n - 1),
            "encoder_mid_resnet": "ResnetBlock2D",
            "decoder_mid_resnet": "ResnetBlock2D",
            "encoder_conv_in": "Conv2d",
            "encoder_conv_out": "Conv2d",
            "decoder_conv_in": "Conv2d",
            "decoder_conv_out": "Conv2d",
            "norm_type": "groupnorm",
            "attn_resolutions": (),
            "double_z": True,
            "use_quant_layer": True,
        }


def read_official(path: Path, config_path: Path, weights: str = "ema") -> Tokenizer:
    """The tokenizer of an official checkpoint, float32, on the CPU, in eval mode.

    weights  ``ema`` (averaged; the official trainer keeps none unless it is asked to) or ``raw``

    Raises InputError when a file is damaged, holds another model, no such weights, or tensors that are not those of the
    config.
    """
    config = read_official_config(config_path)
    table = _read_tensors(path, weights)
    _check_levels(table, config.quantizer.levels, path, config_path)
    table = {key: value for key, value in table.items() if not DROPPED.fullmatch(key)}
    try:
        with torch.device("meta"):  # a config that is wrong by a few zeros asks for no memory
            model = Tokenizer(config)
    except (RuntimeError, TypeError, OverflowError) as error:  # by many zeros: a size is no int64
        raise InputError(
            f"{config_path}: describes no possible model; expected sizes of an official tokenizer"
        ) from error
    load_weights(model, {key: value.to("meta") for key, value in table.items()}, f"{path}, read by {config_path}")
    model.to_empty(device="cpu").load_state_dict(table)
    return model.eval()


def read_official_config(path: Path) -> TokenizerConfig:
    """The architecture that an official ``config.json`` describes. Raises InputError when `Tokenizer` has no such."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object, the config of an official tokenizer")
    kind = found.get("_class_name", CLASSES[0])
    if kind not in CLASSES:
        raise InputError(f"{path}: _class_name: {kind!r}; expected {CLASSES[0]!r}")
    official = build(OfficialConfig, {k: v for k, v in found.items() if not k.startswith("_")}, str(path))
    for key, value in official.understood().items():
        if getattr(official, key) not in (None, value):
            raise InputError(f"{path}: {key}: {_plain(getattr(official, key))!r}; expected {_plain(value)!r}")
    table = {
        "conv": {
            "width": official.hidden_size,
            "multipliers": official.hidden_size_mult,
            "blocks": official.num_res_blocks,
            "groups": NORM_GROUPS,
            "latent": official.z_channels,
        },
        "quantizer": {
            "levels": official.levels,
            "groups": official.factorized_bits or (),
            # Without the simple bound the official class computes the first FSQ, whatever its act_fun.
            **({"alpha": SLOPES[official.act_fun]} if official.do_simple_bound else {"bound": "tanh"}),
        },
    }
    return build(TokenizerConfig, table, str(path))


def import_official(path: Path, config_path: Path, weights: str, out: Path) -> Tokenizer:
    """`read_official`, saved in the folder ``out``, whole or not at all. Raises InputError when ``out`` is taken."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"{out}: exists; expected a new folder")
    tokenizer = read_official(path, config_path, weights)
    place = out.resolve()
    partial = place.with_name(f".partial_{place.name}")
    if partial.exists():
        shutil.rmtree(partial)
    try:
        tokenizer.save_pretrained(partial)
        os.replace(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return tokenizer


def write_official(tokenizer: Tokenizer, path: Path) -> Path:
    """Write ``path`` (``.ckpt``) as the official trainer does, and its config beside it, which is returned.

    The weights stand under both names, ``gen_model`` and ``ema_state_dict``: the official generators read the second,
    and go on with random weights where it is empty. The running statistics are those of a new model. Raises InputError
    for a tokenizer that the official classes cannot hold, and when a file is there already.
    """
    if path.suffix != ".ckpt":
        raise InputError(f"{path}: expected a name that ends in .ckpt")
    config_path = path.with_suffix(".config.json")
    config = _official_config(tokenizer, path)
    for file in (path, config_path):
        if file.exists():
            raise InputError(f"{file}: exists; choose another name or remove it")
    tensors = official_tensors(tokenizer)
    saved = {
        "epoch": 0,
        "current_step": 0,
        "optimizer_state": {},
        "state_dict": {"gen_model": tensors, "dics_model": {}},
        "ema_state_dict": {f"module.{key}": value for key, value in tensors.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partials = [file.with_name(f".partial_{file.name}") for file in (path, config_path)]
    try:
        with partials[0].open("wb") as stream:
            torch.save(saved, stream)
        partials[1].write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        os.replace(partials[1], config_path)
        os.replace(partials[0], path)
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)
    return config_path


def official_tensors(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The state of an FSQ tokenizer under its official names, float32."""
    tensors = {key: value.detach().float().cpu().contiguous() for key, value in tokenizer.state_dict().items()}
    width = (1, tokenizer.quantizer.dim, 1, 1)
    return {**tensors, "quantize.running_mean": torch.zeros(width), "quantize.running_var": torch.ones(width)}


def _official_config(tokenizer: Tokenizer, path: Path) -> dict[str, Any]:
    described = build(TokenizerConfig, tokenizer.describe()["config"], str(path))
    conv, quantizer = described.conv, described.quantizer
    slopes = {slope: name for name, slope in SLOPES.items()}
    for name, value, expected in (
        ("kind", quantizer.kind, ("fsq",)),
        ("patch", conv.patch, (1,)),
        ("norm", conv.norm, ("group",)),
        ("groups of the norm", conv.groups, (NORM_GROUPS,)),
        ("attention", conv.attention, ((),)),  # its resolutions are those of one image size
        ("middle_attention", conv.middle_attention, (False,)),
        ("bound", quantizer.bound, ("ifsq", "tanh")),
        ("alpha", quantizer.alpha if quantizer.bound == "ifsq" else 2.0, tuple(slopes)),
        ("cells", quantizer.cells, ("paper",)),
        ("digit_order", quantizer.digit_order, ("little",)),
    ):
        if value not in expected:
            raise InputError(
                f"{path}: the official tokenizer has no {name}={value!r}; expected {' or '.join(map(repr, expected))}"
            )
    official = OfficialConfig(
        hidden_size=conv.width,
        hidden_size_mult=conv.multipliers,
        num_res_blocks=conv.blocks,
        z_channels=conv.latent,
        embed_dim=len(quantizer.levels),
        levels=quantizer.levels,
        do_simple_bound=quantizer.bound == "ifsq",
        act_fun="scale_sigmoid_16" if quantizer.bound == "ifsq" and quantizer.alpha == 1.6 else "scale_sigmoid_20",
        factorized_bits=quantizer.groups if len(quantizer.groups) > 1 else None,
    )
    named = ("resnet_blocks", "spatial_downsample", "spatial_upsample")  # the class defaults are those of four levels
    blocks = {key: value for key, value in official.understood().items() if key.endswith(named)}
    table = {key: value for key, value in asdict(official).items() if value is not None}
    return {"_class_name": CLASSES[0], **{key: _plain(value) for key, value in {**table, **blocks}.items()}}


def _read_tensors(path: Path, weights: str) -> dict[str, Tensor]:
    """The table of the weights asked for, without prefixes."""
    if weights not in ("ema", "raw"):
        raise InputError(f"weights {weights!r}: expected 'ema' or 'raw'")
    place = "ema_state_dict" if weights == "ema" else "state_dict.gen_model"
    found = _load(path)
    for name in place.split("."):
        if not isinstance(found, dict) or name not in found:
            inside = ", ".join(map(str, list(found)[:6])) if isinstance(found, dict) else type(found).__name__
            raise InputError(
                f"{path}: holds no {place} (but {inside}); expected a file of the official tokenizer trainer"
            )
        found = found[name]
    if not isinstance(found, dict):
        raise InputError(f"{path}: {place} is a {type(found).__name__}; expected tensors by name")
    if not found:
        other = (
            "it was trained without EMA; expected tensors, take the raw weights"
            if weights == "ema"
            else "expected tensors"
        )
        raise InputError(f"{path}: {place} is empty; {other}")
    table: dict[str, Tensor] = {}
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or not value.is_floating_point():
            raise InputError(f"{path}: {place}: {key!r} is {_describe(value)}; expected a floating-point tensor")
        bare = _without_prefix(key)
        if bare in table:
            raise InputError(f"{path}: {place}: {key!r} stands twice, with and without its prefix; expected it once")
        table[bare] = value
    return table


def _load(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; expected an official .ckpt")
    try:
        # Mapped: the optimizer and the discriminator beside the weights are never read.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError:
        raise
    except Exception as error:  # a damaged or foreign pickle raises whatever it likes
        told = str(error).strip().partition("\n")[0][:120]
        raise InputError(
            f"{path}: cannot be read with weights_only=True ({told}); expected an official .ckpt of tensors"
        ) from error


def _check_levels(table: dict[str, Tensor], levels: tuple[int, ...], path: Path, config_path: Path) -> None:
    """The averaged weights hold the levels, which no shape tells."""
    key = "quantize._levels"
    if key in table and tuple(table[key].flatten().round().tolist()) != levels:
        found = [round(level) for level in table[key].flatten().tolist()]
        raise InputError(f"{path}: {key!r} is {found}; expected {list(levels)}, the levels in {config_path}")


def _without_prefix(key: str) -> str:
    while key.startswith(PREFIXES):
        key = key.partition(".")[2]
    return key


def _describe(value: Any) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
