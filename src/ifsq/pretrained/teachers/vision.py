"""Teachers among published vision transformers: DINOv2, DINOv3, SigLIP 2, CLIP and MAE, through transformers.

A folder holds what the hub's repository holds: ``config.json``, weights as safetensors, ``preprocessor_config.json``.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ifsq.config import InputError, read_json
from ifsq.pretrained.teachers.config import TeacherConfig
from ifsq.pretrained.teachers.face import ImageTeacher, teacher_digest
from ifsq.pretrained.teachers.families import FAMILIES, Family
from ifsq.pretrained.teachers.preprocessing import Preprocessing, read_preprocessing
from ifsq.store.files import first_line
from ifsq.store.weights import refuse_infinite

CONFIG, PIXELS = "config.json", "preprocessor_config.json"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
STRETCH = 0.1
"""Patches by which the published DINOv2 stretches its table: the scale is (new + 0.1) / old."""


def open_vision(folder: Path, config: TeacherConfig) -> "VisionTeacher":
    """The teacher of a folder, on the CPU. Raises InputError where it holds none, or transformers is not there."""
    family = _family(folder)
    pixels = read_preprocessing(folder / PIXELS, family.pixels)
    if not (folder / WHOLE).is_file() and not (folder / INDEX).is_file():
        raise InputError(f"{folder}: holds no {WHOLE}; expected the weights of {family.name} as safetensors")
    network = _read_network(folder, family)
    return VisionTeacher(network, family, pixels, config, Path(config.source).name)


class VisionTeacher(ImageTeacher):
    """A vision transformer of transformers; its features are those of the patches, without class and register tokens.

    network  of ``family.model``; frozen here
    config   layer, size of the images and resampling of positions, see `TeacherConfig`

    Raises InputError for a layer that the network has not, and for a network of other images than colour.
    """

    def __init__(
        self, network: nn.Module, family: Family, pixels: Preprocessing, config: TeacherConfig, name: str
    ) -> None:
        super().__init__()
        said: Any = network.config
        depth = int(said.num_hidden_layers)
        if config.layer > depth:
            raise InputError(f"{config.source}: layer={config.layer}; expected 1 to {depth}, or 0 for the last")
        if said.num_channels != 3:
            raise InputError(f"{config.source}: a network of {said.num_channels} channels; expected 3")
        self.family, self.pixels, self.layer, self.side = family, pixels, config.layer, config.side
        self.patch, self.width = int(said.patch_size), int(said.hidden_size)
        self.leading = family.leading + int(getattr(said, "num_register_tokens", 0))
        self.name = name if not config.layer else f"{name}/{config.layer}"
        if hasattr(said, "mask_ratio"):
            said.mask_ratio = 0.0  # MAE would hide three quarters of the patches
        self.network = network.requires_grad_(False).eval()
        settings = {"family": family.name, **pixels.settings, "layer": config.layer, "side": config.side}
        if family.table:
            settings["positions"] = config.positions
        # Some versions of transformers put the network of CLIP and SigLIP one name deeper.
        table = {key.removeprefix("vision_model."): value for key, value in network.state_dict().items()}
        self.digest = teacher_digest(table, settings)
        if family.table:
            _resample_own_positions(network, family, config.positions, self.patch)

    def maps(self, images: Float[Tensor, "b 3 H W"], grid: tuple[int, int]) -> Float[Tensor, "b f _ _"]:
        """See `ImageTeacher.maps`."""
        rows, columns = self.own_grid(grid)
        seen = self.pixels(images, (rows * self.patch, columns * self.patch))
        tokens = self._tokens(seen, rows, columns)  # b, leading + rows * columns, f
        return tokens[:, self.leading :].transpose(1, 2).unflatten(2, (rows, columns))

    def own_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Patches a side for a token grid: as many as tokens, or what ``side`` pixels hold."""
        if not self.side:
            return grid
        rows, columns = (max(1, round(count * self.side / min(grid) / self.patch)) for count in grid)
        return rows, columns

    def _tokens(self, seen: Tensor, rows: int, columns: int) -> Tensor:
        given: dict[str, Any] = {"pixel_values": seen}
        if self.family.resizes:
            given["interpolate_pos_encoding"] = True
        if self.family.packed:
            given = _packed(seen, self.patch, rows, columns)
        if self.family.model == "ViTMAEModel":  # patches are shuffled by the order of this noise
            given["noise"] = torch.arange(rows * columns, device=seen.device).float().expand(len(seen), -1)
        if not self.layer:
            return self.network(**given).last_hidden_state
        return self.network(**given, output_hidden_states=True).hidden_states[self.layer]


def resample_positions(
    table: Float[Tensor, "1 n f"], grid: tuple[int, int], *, stretch: float = 0.0, antialias: bool = True
) -> Float[Tensor, "1 _ f"]:
    """A square table of positions, row-major, for another grid: bicubic, corners not aligned, in float32.

    stretch    patches added to the new grid where the scale is computed, not where positions are counted
    antialias  as timm resamples; torch's antialiased kernel is another cubic than its plain one, also enlarging
    """
    side = math.isqrt(table.shape[1])
    square = table.float().transpose(1, 2).unflatten(2, (side, side))  # 1 f side side
    if stretch:
        scale = [(count + stretch) / side for count in grid]
        found = F.interpolate(square, scale_factor=scale, mode="bicubic", antialias=antialias)
    else:
        found = F.interpolate(square, grid, mode="bicubic", antialias=antialias)
    return found.flatten(2).transpose(1, 2).to(table.dtype)


def _resample_own_positions(network: nn.Module, family: Family, positions: str, patch: int) -> None:
    """Let a network resample its table of positions as ``positions`` asks."""
    if positions == "published" and family.model != "Dinov2Model":
        return  # as transformers does; for registers that is antialiased
    (inside,) = [module for module in network.modules() if hasattr(module, "interpolate_pos_encoding")]
    kept = family.leading  # of the table: registers have no positions
    stretch = STRETCH if positions == "published" else 0.0

    def resampled(embeddings: Tensor, height: int, width: int) -> Tensor:
        held = getattr(inside, family.table)
        table = held.weight[None] if isinstance(held, nn.Embedding) else held
        grid = (height // patch, width // patch)
        if grid[0] == grid[1] and grid[0] * grid[1] == table.shape[1] - kept:
            return table
        own = resample_positions(table[:, kept:], grid, stretch=stretch, antialias=positions == "repa")
        return torch.cat([table[:, :kept], own], dim=1)

    inside.interpolate_pos_encoding = resampled  # type: ignore[assignment]


def _packed(seen: Tensor, patch: int, rows: int, columns: int) -> dict[str, Tensor]:
    """What SigLIP 2 of any aspect ratio is given: patches (b, n, row * column * channel), none of which is padding."""
    cells = seen.unflatten(3, (columns, patch)).unflatten(2, (rows, patch))  # b c rows p columns p
    patches = cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    return {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.int64, device=seen.device),
        "spatial_shapes": torch.tensor([[rows, columns]], device=seen.device).expand(len(seen), -1),
    }


def _family(folder: Path) -> Family:
    said = read_json(folder / CONFIG)
    kind = said.get("model_type") if isinstance(said, dict) else None
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InputError(f"{folder / CONFIG}: model_type={kind!r}; expected one of {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def _read_network(folder: Path, family: Family) -> nn.Module:
    """The network with all of its weights, finite, in float32; what a file holds beside it is left out."""
    transformers = load_transformers(folder)
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    failures = (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, ZeroDivisionError)
    with _quiet(transformers), torch.random.fork_rng(devices=[]):
        try:
            network, found = getattr(transformers, family.model).from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32,
                output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
        except (*failures, SafetensorError, StrictDataclassError) as error:
            raise InputError(f"{folder}: cannot be read as {family.name}: {first_line(error)}") from error
    _check_found(found, family, folder)
    refuse_infinite(network.state_dict(), str(folder))
    return network


def _check_found(found: dict[str, Any], family: Family, folder: Path) -> None:
    """Raise InputError naming the first tensor that is missing, of another shape or of another network."""
    for key, given, expected in sorted(found["mismatched_keys"]):
        raise InputError(f"{folder}: tensor {key!r} has shape {tuple(given)}, expected {tuple(expected)}")
    for key in sorted(found["missing_keys"]):
        raise InputError(f"{folder}: tensor {key!r} is missing; expected the weights of {family.name}")
    for key in sorted(found["unexpected_keys"]):
        if not key.startswith(family.left_out or ("\0",)):
            raise InputError(f"{folder}: tensor {key!r} is not part of {family.name}; expected its weights alone")
    for told in found["error_msgs"]:
        raise InputError(f"{folder}: cannot be read as {family.name}: {told}")


def load_transformers(source: str | Path) -> ModuleType:
    """The package of the networks. Raises InputError, naming the teacher, where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f"{source}: its network comes with transformers, which is not installed; pip install 'ifsq[repa]'"
        ) from error
    return transformers


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Without its bars and its report: what is wrong with a file is said in one line."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
