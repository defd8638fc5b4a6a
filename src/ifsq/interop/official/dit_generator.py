"""A DiT or SiT as a `DiffusionGenerator`, and such a generator as an official DiT.

What its trainer did to the latents, a multiplier and statistics, becomes the generator's mean and standard deviation of
the codes, which are stored with the weights: samples come out as the tokenizer's codes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ifsq.codes import CodeSpec, LatentSpec
from ifsq.config import InputError, build, read_json
from ifsq.generators import DiffusionGenerator, Origin
from ifsq.generators.diffusion import DiffusionSampling, DiTConfig
from ifsq.generators.diffusion.scale import SCALED
from ifsq.interop.diffusers_kl import ORIGIN
from ifsq.interop.official.dit import (
    OURS,
    check_tables,
    first_half,
    is_weight,
    tables_of,
    to_official,
)
from ifsq.interop.official.dit_config import (
    GUIDED,
    MULTIPLIER,
    PATHS,
    PREDICTIONS,
    SAMPLED,
    TRAINED,
    Sizes,
    Told,
    grid_of,
    heads_of,
    mlp_ratio_of,
    sizes_of,
    told_by,
    trainer_of,
)
from ifsq.interop.official.form import check_form, made_of
from ifsq.interop.official.latents import statistics_in
from ifsq.interop.official.projectors import projector_arguments
from ifsq.store.weights import tensors_digest
from ifsq.tokenizer.model import Tokenizer

CARRIED = {
    *("depth", "width", "heads", "size", "patch", "mlp_ratio", "mlp", "norm", "rope", "qk_norm", "label_dropout"),
    *("path", "prediction", "guidance_channels", "multiplier"),
    *("weighting", "min_snr_gamma", "cosine_weight", "coupling"),
    *("time_sampling", "time_mean", "time_std", "time_scale", "time_shift", "time_shift_base"),
}
"""Options of which the official class has any value, or that only training and guidance read."""
ENOUGH = 1e-6  # of a multiplier, in parts of it


@dataclass(frozen=True)
class Scale:
    """What a person says of a DiT besides its grid, heads and tokenizer.

    trainer     ``official``, ``sit`` or ``dit``: whose meaning time and output have; empty: as the file says
    multiplier  that latents were multiplied by in its training; None: as the file says
    statistics  ``latents_stats.pt`` of a training on normalised latents
    """

    trainer: str = ""
    multiplier: float | None = None
    statistics: Path | None = None


@dataclass(frozen=True)
class Behind:
    """The codes that a DiT models, as its tokenizer has them, or as latents without one."""

    spec: CodeSpec | LatentSpec
    digest: str = ""
    codebook: Tensor | None = None


def read_dit(
    table: Mapping[str, Tensor],
    found: Any,
    grid: tuple[int, int] | None,
    heads: int | None,
    tokenizer: str,
    scale: Scale,
    path: Path,
    place: str = "",
) -> DiffusionGenerator:
    """The generator of a table by bare names, float32, on the CPU, in eval mode.

    found             the whole file, for what its trainer wrote into it
    grid, heads       None: as the file says
    tokenizer         folder of the one that it was trained behind; empty: none, and samples are latents alone
    place             of the table in the file ``path``

    Raises InputError for what is missing, left over, of another shape or type or not finite, for what nothing tells,
    and for a tokenizer of other codes.
    """
    where = f"{path}: {place}".rstrip(": ")
    sizes, told = sizes_of(table, where), told_by(found, str(path))
    if told.classes not in (None, sizes.classes):
        raise InputError(
            f"{where}: y_embedder of {sizes.classes} classes and the null class; its config says {told.classes}"
        )
    trainer = trainer_of(told, sizes, path, scale.trainer)
    number = heads_of(sizes, told, heads, where)
    behind = _behind(sizes, grid_of(sizes, told, grid, where), tokenizer, where)
    mean, std = _scale(told, scale, trainer, sizes.channels, where)
    _check_autoencoder(std, trainer, tokenizer, where)
    config = build(DiTConfig, _config(sizes, number, told, trainer, where), where)
    sampling = {**SAMPLED[trainer], **told.sampling}
    build(DiffusionSampling, sampling, f"{where}: config: sample")
    weights = {key: value for key, value in table.items() if is_weight(key)}
    if not config.learned_variance and sizes.outputs == 2 * sizes.channels:
        weights = first_half(weights, sizes.channels, sizes.patch)

    def make() -> DiffusionGenerator:
        return DiffusionGenerator(config, behind.spec, sizes.classes, sizes.channels)

    check_form(make, to_official, weights, where)
    own = {f"{OURS}{key}": value for key, value in weights.items()} | {"code_mean": mean, "code_std": std}
    if behind.codebook is not None:
        own["codebook"] = behind.codebook
    model = made_of(make, own, where)
    try:
        model.check_weights()
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    check_tables(table, model.dit, where)
    model.origin = Origin(tuple(map(str, range(sizes.classes))), tokenizer, behind.digest, sampling=sampling)
    return model


def official_tensors(model: DiffusionGenerator) -> dict[str, Tensor]:
    """The network of a generator by its official names, float32, on the CPU, with its fixed tables."""
    state = {key: value.detach().float().cpu().contiguous() for key, value in to_official(model.state_dict()).items()}
    return {**state, **tables_of(model.dit)}


def digest_of(model: DiffusionGenerator, own: Mapping[str, Tensor]) -> str:
    """By which what is kept of a file is known to belong to the generator: its tensors and the scale of its codes."""
    return tensors_digest({**own, "code_mean": model.code_mean, "code_std": model.code_std})


def official_file(
    model: DiffusionGenerator, projectors: Mapping[str, Tensor], depth: int | None, where: str
) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
    """What the official trainer would save, and the statistics that its latents are normalised by, None without any.

    depth  blocks behind which the projectors read the states; None where nothing tells it

    The weights stand under ``model``, wrapped as there, and ``ema``, the options under ``config``. Raises InputError,
    naming ``where``, for a generator that the official class cannot hold.
    """
    _refuse_unknown_there(model, where)
    tensors = {**official_tensors(model), **projectors}
    mean, std = model.code_mean.cpu(), model.code_std.cpu()
    even = not bool(mean.any()) and bool(((std - std[0]).abs() <= ENOUGH * std[0]).all())
    config = _arguments(model, 1 / float(std[0]) if even else None)
    config["model"] |= projector_arguments(projectors, depth)
    wrapped = {f"module.{key}": value for key, value in tensors.items()}
    saved = {"model": wrapped, "ema": dict(tensors), "opt": {}, "config": config}
    return saved, None if even else {"mean": mean.view(1, -1, 1, 1), "std": std.view(1, -1, 1, 1)}


def _config(sizes: Sizes, heads: int, told: Told, trainer: str, where: str) -> dict[str, Any]:
    return {
        "depth": sizes.depth,
        "width": sizes.width,
        "heads": heads,
        "patch": sizes.patch,
        "mlp_ratio": mlp_ratio_of(sizes, where),
        "mlp": "swiglu" if sizes.swiglu else "gelu",
        "norm": "rms" if sizes.rms else "layer",
        "rope": sizes.rope,
        "qk_norm": sizes.qk_norm,
        "adaln_shift": sizes.modulation == 6,
        "guidance_channels": GUIDED if sizes.channels > GUIDED else None,
        **TRAINED[trainer],
        **told.options,
    }


def _scale(told: Told, asked: Scale, trainer: str, channels: int, where: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the codes: the network sees ``(code - mean) / std``."""
    known = told.multiplier or (MULTIPLIER if trainer != "official" else None)
    multiplier = asked.multiplier or known
    if asked.multiplier is not None and not 0 < asked.multiplier < math.inf:
        raise InputError(f"{where}: --multiplier {asked.multiplier:g}; expected a positive number")
    if multiplier is None:
        raise InputError(
            f"{where}: does not say what its latents were multiplied by; give --multiplier (the official files have"
            " 1.092421)"
        )
    if told.multiplier not in (None, multiplier):
        raise InputError(f"{where}: --multiplier {multiplier:g}; expected {told.multiplier:g}, as its config says")
    if told.normalized and asked.statistics is None:
        raise InputError(
            f"{where}: was trained on normalised latents (latent_norm); give --statistics latents_stats.pt"
        )
    if asked.statistics is None:
        return torch.zeros(channels), torch.full((channels,), 1 / multiplier)
    if told.normalized is False:
        raise InputError(f"{where}: --statistics; expected none, as its config says (latent_norm: false)")
    mean, std = (value.flatten().float() for value in statistics_in(asked.statistics))
    if len(mean) != channels or len(std) != channels:
        raise InputError(
            f"{asked.statistics}: {len(mean)} and {len(std)} channels; expected {channels}, as {where} has"
        )
    return mean, std / multiplier


def _behind(sizes: Sizes, grid: tuple[int, int], folder: str, where: str) -> Behind:
    if not folder:
        return Behind(LatentSpec(sizes.channels, grid))
    tokenizer = Tokenizer.from_pretrained(folder)
    spec, codebook = tokenizer.layout(grid[0] * tokenizer.factor, grid[1] * tokenizer.factor), tokenizer.codebook()
    channels = spec.dim if codebook is None else codebook.shape[1]
    if channels != sizes.channels:
        raise InputError(
            f"{where}: models {sizes.channels} channels; {folder} has {channels}: expected the tokenizer of its"
            " training"
        )
    return Behind(spec, tokenizer.digest(), codebook)


def _check_autoencoder(std: Tensor, trainer: str, folder: str, where: str) -> None:
    """Raise InputError for a tokenizer whose latents diffusers scales otherwise than this DiT sees them.

    One of the official trainer may have been trained with a multiplier or statistics of its own, near that scale.
    """
    origin = Path(folder) / ORIGIN
    if not folder or not origin.is_file():
        return
    scaled = float(read_json(origin).get("scaling_factor", MULTIPLIER))
    if trainer != "official" and scaled != MULTIPLIER:
        seen = f"times {MULTIPLIER}"
    elif not all(SCALED[0] <= scaled * one <= SCALED[1] for one in std.tolist()):
        seen = f"divided by {', '.join(f'{one:.4g}' for one in std.tolist()[:4])}"
    else:
        return
    raise InputError(
        f"{where}: sees latents {seen}; those of {folder} are scaled by {scaled:g}: expected the tokenizer of its"
        " training"
    )


def _arguments(model: DiffusionGenerator, multiplier: float | None) -> dict[str, dict[str, Any]]:
    """The sections of the official YAML that say what the model is, but for projectors, and what its latents are.

    multiplier  None where statistics normalise them
    """
    config, side = model.config, model.spec.grid[0]
    return {
        "model": {
            "input_size": side,
            "patch_size": config.patch,
            "in_channels": model.code_dim,
            "hidden_size": config.width,
            "depth": config.depth,
            "num_heads": config.heads,
            "mlp_ratio": config.mlp_ratio,
            "class_dropout_prob": config.label_dropout,
            "num_classes": model.num_classes,
            "use_qknorm": config.qk_norm,
            "use_swiglu": config.mlp == "swiglu",
            "use_rope": config.rope,
            "use_rmsnorm": config.norm == "rms",
        },
        "data": {
            "latent_norm": multiplier is None,
            "latent_multiplier": 1.0 if multiplier is None else float(f"{multiplier:.7g}"),
        },
        "transport": {
            "path_type": {ours: theirs for theirs, ours in PATHS.items()}[config.path],
            "prediction": config.prediction,
            "use_cosine_loss": config.cosine_weight > 0,
            "use_lognorm": config.time_sampling == "lognorm",
        },
    }


def _refuse_unknown_there(model: DiffusionGenerator, where: str) -> None:
    """Whatever is not `CARRIED` must have its default."""
    config, grid = model.config, model.spec.grid
    wanted: list[tuple[str, Any, Any, str]] = [
        (one.name, getattr(config, one.name), one.default, "the official class has no such option")
        for one in fields(config)
        if one.name not in CARRIED
    ]
    wanted.append(("grid", grid, (grid[0], grid[0]), "the official class has square grids"))
    if config.path not in PATHS.values():
        wanted.append(("path", config.path, "linear", "the official trainer has no such path"))
    if config.prediction not in PREDICTIONS:
        wanted.append(("prediction", config.prediction, "velocity", "the official trainer has no such prediction"))
    if config.qk_norm:
        wanted.append(("norm", config.norm, "rms", "the official class then normalises queries and keys otherwise"))
    for name, value, expected, why in wanted:
        if value != expected:
            raise InputError(f"{where}: {name}={value!r}: {why}; expected {expected!r}")
