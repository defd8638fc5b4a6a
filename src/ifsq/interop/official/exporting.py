"""``export official``: a model as the official code, or LlamaGen's, loads it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ifsq.config import InputError
from ifsq.generators import ARGenerator, DiffusionGenerator
from ifsq.generators.repa.kept import kept_projectors
from ifsq.interop.official import dit_generator
from ifsq.interop.official.llamagen_generator import official_file, official_tensors
from ifsq.interop.official.llamagen_vq import is_vq, own_tensors, vq_tensors
from ifsq.interop.official.projectors import unknown_there
from ifsq.interop.official.sidecar import read_sidecar
from ifsq.interop.official.tokenizer import export_tokenizer
from ifsq.store.files import make_folder, whole_file
from ifsq.store.run import MODEL, Run
from ifsq.store.weights import tensors_digest
from ifsq.tokenizer.model import Tokenizer


def export_checkpoint(folder: Path, path: Path) -> list[str]:
    """Write the model of ``folder`` as ``path``; returns lines about it.

    An imported one comes out as it went in, tensor by tensor. Raises InputError for a model that the official classes
    cannot hold, and when a file is there already.
    """
    run = Run.open(folder)
    kind = run.weights().described.get("kind") if run.kind == MODEL else run.kind
    if kind == "tokenizer":
        tokenizer = Tokenizer.from_run(run)
        if is_vq(tokenizer):
            _write(_vq_file(tokenizer, folder, path), path)
            return [f"checkpoint: {path}"]
        written = f"checkpoint: {path}, config: {export_tokenizer(tokenizer, folder, path)}"
        return [written, *_other_levels(tokenizer)]
    if kind == "ar":
        return _write_llamagen(run, path)
    if kind == "diffusion":
        return _write_dit(run, path)
    raise InputError(f"{folder}: holds a {kind} model; expected a tokenizer, an ar or a diffusion generator")


def _other_levels(tokenizer: Tokenizer) -> list[str]:
    """A line about the level counts that the file does not name, as its config holds one."""
    quantizer = tokenizer.config.quantizer
    others = [str(levels) for levels in quantizer.nested_levels if levels != quantizer.levels[0]]
    if not others:
        return []
    also = f"the weights also serve {', '.join(others)}, which the official config cannot say"
    return [f"levels: {quantizer.levels[0]}; {also}"]


def _vq_file(tokenizer: Tokenizer, folder: Path, path: Path) -> Any:
    own = own_tensors(tokenizer)
    kept = read_sidecar(folder, own, tensors_digest(own))
    return {"model": vq_tensors(tokenizer, str(path))} if kept is None else kept[0]


def _write_llamagen(run: Run, path: Path) -> list[str]:
    model = ARGenerator.from_run(run)
    assert isinstance(model, ARGenerator)  # of its kind
    projectors, depth, notes = _projectors(run)
    own = {**official_tensors(model), **projectors}
    kept = read_sidecar(run.folder, own, tensors_digest(own))
    _write(official_file(model, projectors, depth, str(path)) if kept is None else kept[0], path)
    return [f"checkpoint: {path}", *notes]


def _write_dit(run: Run, path: Path) -> list[str]:
    model = DiffusionGenerator.from_run(run)
    assert isinstance(model, DiffusionGenerator)  # of its kind
    projectors, depth, notes = _projectors(run)
    own = {**dit_generator.official_tensors(model), **projectors}
    kept = read_sidecar(run.folder, own, dit_generator.digest_of(model, own))
    if kept is not None:
        _write(kept[0], path)
        return [f"checkpoint: {path}", *notes]
    saved, statistics = dit_generator.official_file(model, projectors, depth, str(path))
    if statistics is None:
        _write(saved, path)
        return [f"checkpoint: {path}", *notes]
    beside = path.with_suffix(".latents_stats.pt")
    _write(saved, path, (beside, statistics))
    return [f"checkpoint: {path}, statistics of its latents (latents_stats.pt): {beside}", *notes]


def _projectors(run: Run) -> tuple[dict[str, Tensor], int | None, list[str]]:
    """Projectors beside a generator that the official classes have too, their depth, and lines about them."""
    kept = kept_projectors(run)
    if kept is None:
        return {}, None, []
    if unknown_there(kept.tensors):
        return {}, None, ["projectors: left out, the official classes have none but three linear layers (mlp)"]
    if kept.config is not None and (kept.config.token, kept.config.spatial_norm) != ("predicted", None):
        told = f"token={kept.config.token!r}, spatial_norm={kept.config.spatial_norm}"
        return {}, None, [f"projectors: left out, the official trainer has no {told}"]
    behind = "" if kept.depth is None else f" behind {kept.depth} blocks"
    return dict(kept.tensors), kept.depth, [f"projectors of REPA: {len(kept.tensors)} tensors{behind}"]


def _write(saved: Any, path: Path, *others: tuple[Path, Any]) -> None:
    """The file and those beside it, which are there before it is."""
    if path.suffix != ".pt":
        raise InputError(f"{path}: expected a name that ends in .pt")
    for file in (path, *(place for place, _ in others)):
        if file.exists():
            raise InputError(f"{file}: exists; choose another name or remove it")
    make_folder(path.parent)
    with whole_file(path) as partial, partial.open("wb") as stream:
        torch.save(saved, stream)
        for place, other in others:
            with whole_file(place) as partial, partial.open("wb") as beside:
                torch.save(other, beside)
