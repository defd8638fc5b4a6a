"""The sizes and options of a DiT or SiT: what its tensors tell, what its trainer wrote into the file, the published
file's name, and a person.

Facts. Official trainer: as its YAML, under ``config``. Published SiT: time 0 is noise and 1 data, the network gives the
velocity, and the second half of its output is of no use. Published DiT: time is a step of DDPM, 0 to 999 from data to
noise, and the network gives noise and the range of the variance. Both see Stable Diffusion's latents times 0.18215.
"""

import math
import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ifsq.config import InputError
from ifsq.generators.diffusion.config import SIZES
from ifsq.interop.official.reader import Reader, count, section, shape_of

TRAINERS = ("official", "sit", "dit")
TRAINED: dict[str, dict[str, Any]] = {
    "official": {},
    "sit": {"time_sampling": "uniform"},
    "dit": {"path": "ddpm", "prediction": "noise", "learned_variance": True, "time_sampling": "uniform"},
}
"""Of `DiTConfig`, where the file says nothing else."""
SAMPLED: dict[str, dict[str, Any]] = {"official": {}, "sit": {}, "dit": {"solver": "ddpm", "respacing": "250"}}
"""Of `DiffusionSampling`, likewise."""
HEADS = {(size.depth, size.width): size.heads for size in SIZES.values()}
"""Heads of attention of the official sizes, by depth and width."""
PUBLISHED = re.compile(r"^(DiT|SiT)-XL-2-(256|512)(?:x\2)?\.")
"""Names of the published files, with the pixels a side of their images."""
MODEL_TYPE = re.compile(r"^DiT-(\w+)/\d+$")
FACTOR = 8
"""Pixels a side of a latent of Stable Diffusion."""
MULTIPLIER = 0.18215
"""Of these latents, in both published trainers."""
PATHS = {"Linear": "linear", "GVP": "cosine", "VP": "vp"}
PREDICTIONS = ("velocity", "noise", "score")
"""Of the official trainer and the SiT's, as of ours."""
SOLVERS = {"euler": "euler", "heun2": "heun", "midpoint": "midpoint", "dopri5": "dopri5"}
"""Names of torchdiffeq's methods that are ours too."""
GUIDED = 3
"""Channels that the official code, the DiT's and the SiT's guide."""


@dataclass(frozen=True)
class Sizes:
    """What shapes tell.

    outputs     channels of what the network gives
    modulation  widths that modulate a block
    mlp         hidden width
    head        width of a head of attention, where a tensor tells it
    tokens      of the position table, where there is one
    """

    depth: int
    width: int
    channels: int
    patch: int
    outputs: int
    classes: int
    modulation: int
    mlp: int
    swiglu: bool
    rms: bool
    qk_norm: bool
    rope: bool
    head: int | None
    tokens: int | None

    @property
    def official(self) -> bool:
        """Whether the block has parts that only the official class has."""
        return self.swiglu or self.rms or self.qk_norm or self.rope


@dataclass(frozen=True)
class Told:
    """What the trainer wrote into the file; None where it tells nothing.

    trainer     one of `TRAINERS`
    normalized  whether latents are normalised by statistics of their own before the multiplier
    """

    trainer: str | None = None
    heads: int | None = None
    classes: int | None = None
    grid: tuple[int, int] | None = None
    multiplier: float | None = None
    normalized: bool | None = None
    options: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)


def sizes_of(table: Mapping[str, Tensor], where: str) -> Sizes:
    """The sizes of a DiT by its bare names. Raises InputError naming a tensor that is missing or of another kind.

    That all others have these sizes is for `check_form`.
    """
    width, channels, patch, across = shape_of(table, "x_embedder.proj.weight", 4, "a DiT", where)
    rows, _ = shape_of(table, "y_embedder.embedding_table.weight", 2, "a class-conditional DiT", where)
    outputs, _ = shape_of(table, "final_layer.linear.weight", 2, "a DiT", where)
    modulation, _ = shape_of(table, "blocks.0.adaLN_modulation.1.weight", 2, "a DiT", where)
    if min(width, channels, patch) < 1 or patch != across:
        raise InputError(f"{where}: patches of {patch}x{across}; expected squares")
    if rows < 2:
        raise InputError(f"{where}: y_embedder of {rows} row; expected the classes and the null class")
    if outputs % patch**2:
        raise InputError(f"{where}: final_layer.linear of {outputs} rows; expected a multiple of {patch**2}")
    if modulation not in (4 * width, 6 * width):
        raise InputError(f"{where}: blocks.0.adaLN_modulation of {modulation} rows; expected 4 or 6 times {width}")
    swiglu = "blocks.0.mlp.w12.weight" in table
    mlp, _ = shape_of(table, f"blocks.0.mlp.{'w12' if swiglu else 'fc1'}.weight", 2, "a DiT", where)
    heads = [table[key].shape[-1] for key in ("blocks.0.attn.q_norm.weight", "feat_rope.freqs_cos")
             if key in table and table[key].ndim]  # fmt: skip
    position = table.get("pos_embed")
    return Sizes(
        depth=count(table, r"blocks\.(\d{1,6})\."),
        width=width,
        channels=channels,
        patch=patch,
        outputs=outputs // patch**2,
        classes=rows - 1,
        modulation=modulation // width,
        mlp=mlp // 2 if swiglu else mlp,
        swiglu=swiglu,
        rms="blocks.0.norm1.weight" in table,
        qk_norm="blocks.0.attn.q_norm.weight" in table,
        rope="feat_rope.freqs_cos" in table,
        head=heads[0] if heads else None,
        tokens=None if position is None else shape_of(table, "pos_embed", 3, "a DiT", where)[1],
    )


def told_by(found: Any, where: str) -> Told:
    """What the official trainer's config tells, or the arguments that the DiT's and the SiT's trainers save.

    Raises InputError for what `DiffusionGenerator` has not, and for values of another type.
    """
    config, arguments = (found.get(name) if isinstance(found, dict) else None for name in ("config", "args"))
    if isinstance(config, dict):
        return _official(config, Reader(where))
    if isinstance(arguments, Namespace) and "image_size" in vars(arguments):
        return _released(vars(arguments), where)
    return Told()


def trainer_of(told: Told, sizes: Sizes, path: Path, asked: str) -> str:
    """One of `TRAINERS`: whose meaning time and output have. Raises InputError where nothing tells it."""
    named = PUBLISHED.match(path.name)
    known = told.trainer or ("official" if sizes.official else named[1].lower() if named else None)
    if asked and known not in (None, asked):
        raise InputError(f"{path}: --trainer {asked}; expected {known}, as the file says")
    trainer = asked or known
    if trainer is None:
        raise InputError(f"{path}: does not say what time and output mean to it; give --trainer official, sit or dit")
    expected = {"official": (1,), "sit": (1, 2), "dit": (2,)}[trainer]
    if sizes.outputs not in [times * sizes.channels for times in expected]:
        wanted = " or ".join(str(times * sizes.channels) for times in expected)
        raise InputError(f"{path}: gives {sizes.outputs} channels; expected {wanted} of --trainer {trainer}")
    return trainer


def heads_of(sizes: Sizes, told: Told, asked: int | None, where: str) -> int:
    """Heads of attention. Raises InputError where nothing tells them, or two things tell otherwise."""
    by_tensor = sizes.width // sizes.head if sizes.head and not sizes.width % sizes.head else None
    known = by_tensor or told.heads or HEADS.get((sizes.depth, sizes.width))
    heads = known if asked is None else asked
    if heads is None:
        raise InputError(
            f"{where}: {sizes.depth} blocks of width {sizes.width} are no official size, so that its heads are not"
            " known; give --heads"
        )
    for said, source in ((by_tensor, "its tensors say"), (told.heads, "its config says")):
        if said not in (None, heads):
            raise InputError(f"{where}: {heads} heads; expected {said}, as {source}")
    if heads < 1 or sizes.width % heads:
        raise InputError(f"{where}: {heads} heads; expected a divisor of its width {sizes.width}")
    return heads


def grid_of(sizes: Sizes, told: Told, asked: tuple[int, int] | None, where: str) -> tuple[int, int]:
    """Rows and columns of codes. Raises InputError where nothing tells them, or two things tell otherwise."""
    side = math.isqrt(sizes.tokens or 0) * sizes.patch
    if sizes.tokens is not None and side**2 != sizes.tokens * sizes.patch**2:
        raise InputError(f"{where}: pos_embed of {sizes.tokens} tokens; expected a square")
    known = (side, side) if side else told.grid
    grid = asked or known
    if grid is None:
        raise InputError(f"{where}: does not say its grid of codes; give --grid, as 16x16")
    for said, given in ((known, "--grid " + _text(grid)), (told.grid, "pos_embed of " + _text(grid))):
        if said not in (None, grid):
            raise InputError(f"{where}: {given}; expected {_text(said)}, as the file says")
    if grid[0] != grid[1]:
        raise InputError(f"{where}: --grid {_text(grid)}; expected a square, as the official class has it")
    return grid


def mlp_ratio_of(sizes: Sizes, where: str) -> float:
    """Hidden width over width, as the config has it. Raises InputError where nothing gives it."""
    whole = math.ceil(1.5 * sizes.mlp) if sizes.swiglu else sizes.mlp
    for ratio in (4.0, whole / sizes.width, (whole + 0.5) / sizes.width):
        hidden = int(sizes.width * ratio)
        if sizes.mlp and (int(2 / 3 * hidden) if sizes.swiglu else hidden) == sizes.mlp:
            return ratio
    raise InputError(f"{where}: mlp of width {sizes.mlp}; expected one by a ratio to {sizes.width}")


def _official(config: dict[Any, Any], one: Reader) -> Told:
    model, data, transport = (section(config, name) for name in ("model", "data", "transport"))
    if section(config, "scheduler").get("diffusion") is True:
        raise InputError(
            f"{one.where}: scheduler.diffusion: true; expected transport, the one that it can be trained by"
        )
    size, factor = one.whole(data, "image_size"), one.whole(section(config, "vae"), "downsample_ratio")
    side = one.whole(model, "input_size") or (size // (factor or FACTOR) if size else None)
    named = MODEL_TYPE.match(str(model.get("model_type", "")))
    heads = SIZES[named[1]].heads if named and named[1] in SIZES else None
    multiplier = one.number(data, "latent_multiplier", 0.0)
    return Told(
        trainer="official",
        heads=one.whole(model, "num_heads") or heads,
        classes=one.whole(model, "num_classes") or one.whole(data, "num_classes"),
        grid=(side, side) if side else None,
        multiplier=_positive(multiplier, one.where) if "latent_multiplier" in data else None,
        normalized=data.get("latent_norm") is True if data else None,
        options={"label_dropout": one.number(model, "class_dropout_prob", 0.1), **_objective(transport, one)},
        sampling=_sampling(one, section(config, "sample")),
    )


def _released(arguments: dict[str, Any], where: str) -> Told:
    """By the arguments of the DiT's trainer, and of the SiT's, which have a path."""
    one = Reader(where)
    if "proj_coeff" in arguments or "enc_type" in arguments:
        raise InputError(f"{where}: is a SiT of REPA's trainer, whose time runs from data to noise; it is not read")
    size = one.whole(arguments, "image_size")
    sit = "path_type" in arguments
    return Told(
        trainer="sit" if sit else "dit",
        classes=one.whole(arguments, "num_classes"),
        grid=(size // FACTOR, size // FACTOR) if size else None,
        multiplier=MULTIPLIER,
        options=_objective(arguments, one) if sit else {},
    )


def _objective(transport: dict[Any, Any], one: Reader) -> dict[str, Any]:
    """Of `DiTConfig`, by the section that the official trainer and the SiT's have in common."""
    path, prediction = transport.get("path_type", "Linear"), transport.get("prediction", "velocity")
    for name, value, choices in (("path_type", path, tuple(PATHS)), ("prediction", prediction, PREDICTIONS)):
        if value not in choices:
            raise InputError(f"{one.where}: {name}: {value!r}; expected one of {', '.join(choices)}")
    return {
        "path": PATHS[path],
        "prediction": prediction,
        "cosine_weight": 1.0 if transport.get("use_cosine_loss") is True else 0.0,
        "time_sampling": "lognorm" if transport.get("use_lognorm") is True else "uniform",
    }


def _sampling(one: Reader, sample: dict[Any, Any]) -> dict[str, Any]:
    """Of `DiffusionSampling`, which checks them. Its method is left out where we have none of the name."""
    steps, solver = sample.get("num_sampling_steps"), SOLVERS.get(str(sample.get("sampling_method")))
    found: dict[str, Any] = {} if solver is None else {"solver": solver}
    if solver == "dopri5":  # whose steps are those that are looked at
        found |= {name: one.number(sample, name, default) for name, default in (("rtol", 1e-3), ("atol", 1e-6))}
    elif steps is not None:
        found["steps"] = steps[0] if isinstance(steps, list) and steps else steps
    if "cfg_scale" in sample:
        found["guidance"] = one.number(sample, "cfg_scale", 1.0)
    if shift := one.number(sample, "timestep_shift", 0.0):
        found["timestep_shift"] = shift
    if start := one.number(sample, "cfg_interval_start", 0.0):
        found["guidance_interval"] = [start, 1.0]
    return found


def _positive(value: float, where: str) -> float:
    if not value > 0:
        raise InputError(f"{where}: latent_multiplier: {value:g}; expected a positive number")
    return value


def _text(grid: tuple[int, int] | None) -> str:
    return "x".join(map(str, grid or ()))
