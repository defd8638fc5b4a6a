"""Projectors on disk: beside an imported generator, and in the checkpoints of a run that is aligned.

Both have the names of `Alignment`, ``projectors.0.2.weight``, which are the official ones.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ifsq.config import InputError, digest
from ifsq.generators.repa.alignment import Alignment
from ifsq.generators.repa.config import AlignmentConfig
from ifsq.generators.repa.encode import named
from ifsq.store.files import write_tensors
from ifsq.store.run import Run
from ifsq.store.weights import load_weights, read_tensors, tensors_digest
from ifsq.training.config import TrainConfig
from ifsq.training.distributed import World, gather_or_refuse
from ifsq.training.warm_start import Start

ASIDE = "projectors.safetensors"
"""Beside an imported generator, which has no use for them."""
PART = "projectors"


@dataclass(frozen=True)
class Kept:
    """Projectors that lie beside a generator.

    depth   blocks behind which they read the states; None where nothing tells it
    config  of their training; None where another project trained them
    """

    tensors: Mapping[str, Tensor]
    depth: int | None = None
    config: AlignmentConfig | None = None


def write_projectors(folder: Path, tensors: Mapping[str, Tensor], depth: int | None) -> None:
    """Write `ASIDE` into the folder of a saved model. Raises InputError."""
    about = {"depth": "" if depth is None else str(depth)}
    write_tensors(folder / ASIDE, tensors, about | {"digest": _vouched(tensors, about["depth"])})


def kept_projectors(run: Run) -> Kept | None:
    """Those of a saved model or of a run's newest checkpoint; None where there are none.

    Raises InputError where they are damaged.
    """
    if run.trained:
        tensors = run.beside("companion")
        if tensors is None:
            return None
        config = run.experiment(AlignmentConfig, "alignment")
        return Kept(tensors, config.depth, config)
    path = run.folder / ASIDE
    if not os.path.lexists(path):
        return None
    tensors = read_tensors(path)
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if not about:  # of before anything vouched for them
        return Kept(tensors)
    if about.get("digest") != _vouched(tensors, about.get("depth", "")):
        raise InputError(f"{path}: is damaged or was changed; import the checkpoint again")
    return Kept(tensors, int(about["depth"]) if about["depth"] else None)


def begin_with_projectors(start: Start, companion: Alignment | None, config: TrainConfig, world: World) -> Start:
    """Give a companion the projectors beside the weights that ``train.init`` names, where they fit; `Start` with that.

    They fit where the shapes are the same, and depth, teachers, ``token`` and ``spatial_norm`` as far as the source
    tells them; else they start fresh, and a note says why. With ``train.init_parts`` they start fresh too. Raises
    InputError in every process where they are damaged.
    """
    if start.record is None or companion is None or config.init_parts:
        return start
    own = companion

    def take() -> tuple[int, str]:
        kept = kept_projectors(Run.open(config.init))
        if kept is None:
            return 0, ""
        if differs := _difference(kept, own):
            return 0, f"init: {PART} start fresh: those of {config.init} have {differs}"
        load_weights(own, kept.tensors, f"{config.init}: {PART}")
        return len(kept.tensors), f"init: {PART} of {config.init}: took {len(kept.tensors)}"

    found = gather_or_refuse(world, take)
    if any(one != found[0] for one in found):
        raise InputError(f"train.init={config.init}: processes see other {PART} there; expected the same everywhere")
    count, note = found[0]
    if not note:
        return start
    part, number = ("taken", count) if count else ("fresh", len(own.state_dict()))
    record = {**start.record, part: {**start.record[part], PART: number}}
    return replace(start, record=record, notes=(*start.notes, note))


def _difference(kept: Kept, own: Alignment) -> str:
    """What keeps projectors from standing in for these; empty where nothing does."""
    config, theirs = own.config, kept.config
    pairs: list[tuple[str, object, object]] = [
        ("depth", config.depth if kept.depth is None else kept.depth, config.depth)
    ]
    if theirs is not None:
        pairs.append(("teachers", _names(theirs), _names(config)))
        pairs += [(name, getattr(theirs, name), getattr(config, name)) for name in ("token", "spatial_norm")]
    there, here = ({k: tuple(value.shape) for k, value in one.items()} for one in (kept.tensors, own.state_dict()))
    pairs += [(f"tensor {name!r} of", there.get(name), here.get(name)) for name in sorted(there | here)]
    return next((f"{name} {one}, asked for {other}" for name, one, other in pairs if one != other), "")


def _names(config: AlignmentConfig) -> str:
    return ", ".join(map(named, config.teachers))


def _vouched(tensors: Mapping[str, Tensor], depth: str) -> str:
    return digest({"tensors": tensors_digest(tensors), "depth": depth})
