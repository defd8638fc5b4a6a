"""``import official``: what a checkpoint holds, told by its tensors, and its import.

A tokenizer of the official trainer, with its config beside it; LlamaGen's tokenizer; a LlamaGen or a DiT, of the
official trainer or as published. Whatever else a file holds is kept in the folder, so that its export is the file
again, but for what decoding has left in it and the key of a service that the official trainer writes into every
checkpoint.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ifsq.config import InputError
from ifsq.generators.repa.kept import ASIDE, write_projectors
from ifsq.interop.files import read_checkpoint
from ifsq.interop.official import dit_generator
from ifsq.interop.official.checkpoint import choose_weights, kind_of
from ifsq.interop.official.dit_generator import Scale, read_dit
from ifsq.interop.official.llamagen import without_caches
from ifsq.interop.official.llamagen_config import told_by
from ifsq.interop.official.llamagen_generator import Choices, official_tensors, read_llamagen
from ifsq.interop.official.llamagen_vq import own_tensors, read_vq
from ifsq.interop.official.projectors import depth_told, projectors_of
from ifsq.interop.official.sidecar import write_sidecar
from ifsq.interop.official.tokenizer import import_found
from ifsq.interop.official.tokenizer_config import read_official_config
from ifsq.store.files import check_free
from ifsq.store.model import new_folder
from ifsq.store.model_card import Provenance, code_span
from ifsq.store.weights import tensors_digest

READ = {"llamagen": "a LlamaGen", "llamagen vq": "a tokenizer of LlamaGen", "dit": "a DiT"}
OTHERS = {
    "llamagen t2i": "a text-conditional LlamaGen, which is not read; expected a class-conditional one",
}


@dataclass(frozen=True)
class Asked:
    """What a person says of a checkpoint.

    config   JSON of a tokenizer of the official trainer, which has none inside
    weights  ``ema`` or ``raw``; None: the averaged ones, of other files than that tokenizer's where they have any
    choices  of a LlamaGen or a DiT
    scale    of a DiT
    """

    config: Path | None = None
    weights: str | None = None
    choices: Choices = field(default_factory=Choices)
    scale: Scale = field(default_factory=Scale)


def import_checkpoint(path: Path, out: Path, asked: Asked | None = None) -> list[str]:
    """Read a checkpoint and save its model in the folder ``out``, whole or not at all; returns lines about it.

    Raises InputError when ``out`` is taken, a file is damaged or holds something else, or says too little.
    """
    asked = asked or Asked()
    check_free(out)
    config = None if asked.config is None else read_official_config(asked.config)
    found = read_checkpoint(path)
    kind = kind_of(found)
    if kind in OTHERS:
        raise InputError(f"{path}: holds {OTHERS[kind]}")
    if kind not in ("llamagen", "dit") and (name := _first_choice(asked.choices)):
        raise InputError(f"{path}: holds no LlamaGen or DiT; expected no --{name}, which is of one")
    if kind != "dit" and (name := _first_choice(asked.scale)):
        raise InputError(f"{path}: holds no DiT; expected no --{name}, which is of one")
    if kind == "tokenizer":
        if config is None or asked.config is None:
            raise InputError(f"{path}: holds no model by its own tensors; of an official tokenizer expected --config")
        import_found(found, config, path, asked.config, asked.weights or "ema", out)
        return [f"tokenizer: {out}"]
    if config is not None:
        raise InputError(f"{path}: holds {READ[kind]}, whose tensors tell its sizes; expected no --config")
    read = {"llamagen vq": _import_vq, "llamagen": _import_llamagen, "dit": _import_dit}[kind]
    return read(found, path, asked, out)


def _import_vq(found: Any, path: Path, asked: Asked, out: Path) -> list[str]:
    place, table = choose_weights(found, asked.weights, path)
    tokenizer = read_vq(table, _where(path, place))
    with new_folder(out) as partial:
        tokenizer.save_pretrained(partial, Provenance(notes=(_note(path, place),)))
        own = own_tensors(tokenizer)
        write_sidecar(partial, found, {}, own, tensors_digest(own), path.stat().st_size)
    config = tokenizer.config
    size = f"f{tokenizer.factor}, {config.quantizer.codebook_size} codes of {config.quantizer.dim}"
    return [f"tokenizer: {out}, LlamaGen's of {size}"]


def _import_llamagen(found: Any, path: Path, asked: Asked, out: Path) -> list[str]:
    place, table = choose_weights(found, asked.weights, path)
    model = read_llamagen(table, told_by(found, str(path)), asked.choices, path, place)
    projectors, depth = projectors_of(table), depth_told(found, str(path))
    with new_folder(out) as partial:
        model.save_pretrained(partial, Provenance(notes=(_note(path, place),)))
        if projectors:
            write_projectors(partial, projectors, depth)
        own = {**official_tensors(model), **projectors}
        kept = without_key(without_caches(found))
        write_sidecar(partial, kept, {}, own, tensors_digest(own), path.stat().st_size)
    config, spec = model.config, model.spec
    codes, grid = " + ".join(map(str, spec.vocab_sizes)), "x".join(map(str, spec.grid))
    size = f"{config.depth} layers of width {config.width}, {config.heads} heads, {codes} codes on {grid}"
    lines = [f"generator: {out}, a LlamaGen of {size}, {model.num_classes} classes{_which(place)}"]
    if projectors:
        lines.append(f"projectors of REPA: {out / ASIDE}")
    if not asked.choices.tokenizer:
        lines.append("no tokenizer: samples are indices alone; import it with --tokenizer RUN for images")
    return lines


def _import_dit(found: Any, path: Path, asked: Asked, out: Path) -> list[str]:
    place, table = choose_weights(found, asked.weights, path)
    choices = asked.choices
    model = read_dit(table, found, choices.grid, choices.heads, choices.tokenizer, asked.scale, path, place)
    projectors, depth = projectors_of(table), depth_told(found, str(path))
    with new_folder(out) as partial:
        model.save_pretrained(partial, Provenance(notes=(_note(path, place),)))
        if projectors:
            write_projectors(partial, projectors, depth)
        own = {**dit_generator.official_tensors(model), **projectors}
        write_sidecar(partial, without_key(found), {}, own, dit_generator.digest_of(model, own), path.stat().st_size)
    config, grid = model.config, "x".join(map(str, model.spec.grid))
    size = f"{config.depth} blocks of width {config.width}, {config.heads} heads, patch {config.patch}"
    codes = f"{model.code_dim} channels on {grid}, {model.num_classes} classes"
    lines = [f"generator: {out}, a DiT of {size}, {codes}{_which(place)}"]
    if projectors:
        lines.append(f"projectors of REPA: {out / ASIDE}")
    if not choices.tokenizer:
        lines.append("no tokenizer: samples are latents alone; import it with --tokenizer RUN for images")
    return lines


def without_key(found: Any) -> Any:
    """A checkpoint without the key of Weights & Biases in its config."""
    config = found.get("config") if isinstance(found, dict) else None
    service = config.get("wandb") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(service, dict):
        return found
    plain = {name: value for name, value in service.items() if name != "key"}
    return {**found, "config": {**config, "wandb": plain}}


def _first_choice(choices: Choices | Scale) -> str | None:
    return next((one.name for one in fields(choices) if getattr(choices, one.name) != one.default), None)


def _where(path: Path, place: str) -> str:
    return f"{path}: {place}".rstrip(": ")


def _note(path: Path, place: str) -> str:
    return f"Imported from {code_span(path.name)}{_which(place)}."


def _which(place: str) -> str:
    return {"": "", "ema": ", averaged weights"}.get(place, ", unaveraged weights")
